"""The one place that speaks to Triton: inference with pinned versions and deadlines, and loading of new versions."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.grpc import aio as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from xplat_stream.errors import InvalidScores, ReleaseError, TritonUnavailable
from xplat_stream.failpoints import reached
from xplat_stream.serving.features import HeadInputs
from xplat_stream.serving.releases import ENCODER, HEAD

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from xplat_stream.serving.releases import Release
    from xplat_stream.settings import TritonSettings

GOLDEN_TOLERANCE: Final = 5e-3
"""Largest difference between a golden answer and the server's: float16 inputs and another CPU's kernels stay below."""

_LOAD_S: Final = 120.0
_POLL_S: Final = 0.05
_WORDS: Final = 300
"""Characters of what Triton says of an error."""


class TritonScorer:
    """Scores with the two models of a release, on one connection. Use it inside one event loop; `close` it."""

    def __init__(self, settings: TritonSettings) -> None:
        self._settings = settings.replicas[0]
        self._client = triton.InferenceServerClient(self._settings.url)

    async def encode(self, release: Release, texts: Sequence[str]) -> list[bytes]:
        """See `Scorer.encode`."""
        vectors: list[bytes] = [b""] * len(texts)
        for batch in release.texts.batches(texts, size=self._settings.encoder_batch):
            inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
            found = await self.infer(*self._encoder_of(release), inputs, "vector")
            require_shape("vector", found, (len(batch.where), release.manifest.width))
            for position, vector in zip(batch.where, found.astype(np.float16), strict=True):
                vectors[position] = vector.tobytes()
        return vectors

    async def score(self, release: Release, inputs: HeadInputs) -> NDArray[np.float32]:
        """See `Scorer.score`."""
        users = len(inputs.vectors)
        parts = []
        for start in range(0, users, self._settings.head_batch):
            part = {name: array[start : start + self._settings.head_batch] for name, array in inputs._asdict().items()}
            parts.append(self.infer(*self._head_of(release), part, "scores"))
        labels = len(release.manifest.labels)
        scores = np.concatenate(await asyncio.gather(*parts)) if parts else np.zeros((0, labels), np.float32)
        require_shape("scores", scores, (users, labels))
        require_probabilities(scores)
        return scores

    def _encoder_of(self, release: Release) -> tuple[str, int]:
        """Return under which name and version the server has a release's encoder."""
        return ENCODER, release.encoder

    def _head_of(self, release: Release) -> tuple[str, int]:
        return HEAD, release.number

    async def check_golden(self, release: Release) -> None:
        """Ask the release's golden requests. Raises `ReleaseError` when an answer differs, `TritonUnavailable`."""
        golden = release.manifest.golden
        vectors = [np.frombuffer(raw, np.float16) for raw in await self.encode(release, golden.texts)]
        scores = await self.score(
            release,
            HeadInputs(
                np.array(golden.head_vectors, np.float16),
                np.array(golden.head_platform, np.int32),
                np.array(golden.head_action, np.int32),
                np.array(golden.head_age, np.float32),
            ),
        )
        self.require_same(release.number, "vectors", np.array(vectors), golden.vectors)
        self.require_same(release.number, "scores", scores, golden.scores)

    def require_same(self, number: int, name: str, found: NDArray[Any], golden: list[list[float]]) -> None:
        """Raise `ReleaseError` when a server's answer to golden requests is not the one of the trained model."""
        worst = float(np.abs(found.astype(np.float32) - np.array(golden, np.float32)).max())
        if not worst <= GOLDEN_TOLERANCE:  # NaN too
            raise ReleaseError(
                f"release {number} answers differently: golden {name} are off by {worst:.4f}",
                where=self._settings.url,
                expected=f"at most {GOLDEN_TOLERANCE}",
                fix="The server runs other files or another runtime than the trainer exported for.",
            )

    async def load(self, model: str, version: int) -> None:
        """Load the newest versions of a model and wait until `version` is ready; those in use stay loaded.

        Raises `ReleaseError` with Triton's own words when it does not load, `TritonUnavailable` when it is not there.
        """
        await self.require_ready()
        reached("triton.loading")
        try:
            await self._client.load_model(model, client_timeout=_LOAD_S)
            async with asyncio.timeout(_LOAD_S):
                while not await self._client.is_model_ready(model, str(version)):  # noqa: ASYNC110 - asks a server
                    await asyncio.sleep(_POLL_S)
        except (InferenceServerException, TimeoutError) as error:
            raise ReleaseError(
                f"Triton does not load version {version} of {model}: {_words(error)}",
                where=self._settings.url,
                expected="the version READY",
                fix="See Triton's log; the versions loaded before keep serving.",
            ) from error
        reached("triton.loaded")

    async def unload(self, model: str) -> None:
        """Let the server drop every version of a model. Raises `TritonUnavailable`."""
        try:
            await self._client.unload_model(model, client_timeout=_LOAD_S)
        except InferenceServerException as error:
            raise self._unavailable(f"{model} is not unloaded: {_words(error)}") from error

    async def is_ready(self, release: Release | None = None) -> bool:
        """Tell whether the server answers and, when one is named, has both models of a release loaded."""
        try:
            if not await self._client.is_server_live(client_timeout=self._settings.deadline_s):
                return False
            return release is None or (
                await self.has(ENCODER, release.encoder) and await self.has(HEAD, release.number)
            )
        except InferenceServerException:
            return False

    async def has(self, model: str, version: int) -> bool:
        """Tell whether the server has a version loaded."""
        try:
            return bool(await self._client.is_model_ready(model, str(version)))
        except InferenceServerException:
            return False

    async def require_ready(self) -> None:
        """Raise `TritonUnavailable` unless the server answers."""
        if not await self.is_ready():
            raise self._unavailable("no model server answers")

    async def close(self) -> None:
        """Close the connection."""
        await self._client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def infer(self, model: str, version: int, arrays: dict[str, NDArray[Any]], output: str) -> NDArray[Any]:
        """Ask one version of a model, whatever its inputs, once. Raises `TritonUnavailable`, `InvalidScores`."""
        inputs = []
        for name, array in arrays.items():
            one = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
            one.set_data_from_numpy(np.ascontiguousarray(array))
            inputs.append(one)
        try:
            answer = await self._client.infer(
                model,
                inputs,
                model_version=str(version),
                outputs=[InferRequestedOutput(output)],
                client_timeout=self._settings.deadline_s,
            )
        except InferenceServerException as error:
            raise self._unavailable(f"version {version} of {model} does not answer: {_words(error)}") from error
        found: NDArray[Any] | None = answer.as_numpy(output)
        if found is None:
            message = f"{model} answered without {output}"
            raise InvalidScores(message)
        return found

    def _unavailable(self, what: str) -> TritonUnavailable:
        return TritonUnavailable(
            what,
            where=self._settings.url,
            expected="a Triton with the release loaded",
            fix="Run `xplat up`, or set XPLAT_TRITON__URL; `xplat status` says what is there.",
        )


def require_shape(name: str, found: NDArray[Any], shape: tuple[int, ...]) -> None:
    """Raise `InvalidScores` unless an answer has this shape and every number in it is finite."""
    if found.shape != shape:
        message = f"{name} has shape {found.shape}; expected {shape}"
        raise InvalidScores(message)
    if not np.isfinite(found).all():
        message = f"{name} holds NaN or infinity"
        raise InvalidScores(message)


def require_probabilities(scores: NDArray[np.float32]) -> None:
    """Raise `InvalidScores` unless all scores lie in [0, 1]."""
    if scores.size and (scores.min() < 0 or scores.max() > 1):
        message = f"scores reach from {scores.min()} to {scores.max()}; expected [0, 1]"
        raise InvalidScores(message)


def _words(error: BaseException) -> str:
    said = error.message() if isinstance(error, InferenceServerException) else str(error)
    return " ".join((said or type(error).__name__).split())[:_WORDS]  # Triton quotes whole tracebacks
