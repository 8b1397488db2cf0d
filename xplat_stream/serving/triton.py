"""The one place that speaks to Triton: inference with pinned versions and deadlines, and loading of new versions.

Several servers, named in one setting, are replicas: what is loaded is loaded on all of them or it is an error; calls
take turns, and one that a replica does not answer is asked of the next.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.grpc import aio as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from xplat_stream.errors import InvalidScores, ReleaseError, TritonUnavailable
from xplat_stream.failpoints import reached
from xplat_stream.serving.releases import ENCODER, HEAD

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from numpy.typing import NDArray

    from xplat_stream.serving.features import HeadInputs
    from xplat_stream.serving.releases import Release
    from xplat_stream.settings import TritonSettings

GOLDEN_TOLERANCE: Final = 5e-3
"""Largest difference between a golden answer and the server's: float16 inputs and another CPU's kernels stay below."""

log = logging.getLogger("xplat.triton")

_LOAD_S: Final = 120.0
_POLL_S: Final = 0.05
_WORDS: Final = 300
"""Characters of what Triton says of an error."""

_AWAY: Final = frozenset({"StatusCode.UNAVAILABLE", "StatusCode.DEADLINE_EXCEEDED"})
_REST_S: Final = 1.0
_LONGEST_REST_S: Final = 60.0


class _Replica:
    """One server, and when it is worth asking again."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.client = triton.InferenceServerClient(url)
        self._rest_s = 0.0
        self.rests_until = 0.0

    def answered(self) -> None:
        """Note that it is there."""
        if self._rest_s:
            log.warning("the model server at %s answers again", self.url)
        self._rest_s = self.rests_until = 0.0

    def failed(self, now: float) -> None:
        """Leave it alone for a while, longer each time: asking one that hangs costs a deadline."""
        if now >= self.rests_until:  # else a call that was under way already
            self._rest_s = min(_LONGEST_REST_S, 2 * self._rest_s or _REST_S)
            self.rests_until = now + self._rest_s


class TritonScorer:
    """Scores with the two models of a release, on any of the servers. Use it inside one event loop; `close` it."""

    def __init__(self, settings: TritonSettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._replicas = [_Replica(one.url) for one in settings.replicas]
        self._turn = 0

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
        scores = await self.score(release, golden.head_inputs())
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
        """Load the newest versions of a model and wait until `version` is ready everywhere; those in use stay loaded.

        Raises `ReleaseError` with Triton's own words when one does not load it, `TritonUnavailable` when one is not
        there.
        """
        await self.require_all()
        for replica in self._replicas:
            reached("triton.loading")
            try:
                await replica.client.load_model(model, client_timeout=_LOAD_S)
                async with asyncio.timeout(_LOAD_S):
                    while not await replica.client.is_model_ready(model, str(version)):  # noqa: ASYNC110 - asks a server
                        await asyncio.sleep(_POLL_S)
            except (InferenceServerException, TimeoutError) as error:
                raise ReleaseError(
                    f"Triton does not load version {version} of {model}: {_words(error)}",
                    where=replica.url,
                    expected="the version READY",
                    fix="See Triton's log; the versions loaded before keep serving.",
                ) from error
            reached("triton.loaded")

    async def unload(self, model: str) -> None:
        """Let the servers drop every version of a model. Raises `TritonUnavailable`."""
        for replica in self._replicas:
            try:
                await replica.client.unload_model(model, client_timeout=_LOAD_S)
            except InferenceServerException as error:
                raise _unavailable(f"{model} is not unloaded: {_words(error)}", replica.url) from error

    async def is_ready(self, release: Release | None = None) -> bool:
        """Tell whether a server answers and, when one is named, has both models of a release loaded."""
        if release is None:
            return any(await self._all(self._is_live))
        encoder, head = (ENCODER, release.encoder), (HEAD, release.number)
        return any(await self._all(lambda one: self._has(one, *encoder), lambda one: self._has(one, *head)))

    async def has(self, model: str, version: int) -> bool:
        """Tell whether a server has a version loaded."""
        return any(await self._all(lambda one: self._has(one, model, version)))

    async def require_ready(self) -> None:
        """Raise `TritonUnavailable` unless a server answers."""
        if not await self.is_ready():
            raise _unavailable("no model server answers", self._settings.url)

    async def require_all(self) -> None:
        """Raise `TritonUnavailable`, which names it, where one of the servers does not answer."""
        for replica, live in zip(self._replicas, await self._all(self._is_live), strict=True):
            if not live:
                raise _unavailable("the model server does not answer", replica.url)

    async def _all(self, *questions: Callable[[_Replica], Awaitable[bool]]) -> list[bool]:
        """Ask every server everything, all at once, and return which said yes to all of it."""

        async def says_yes(replica: _Replica) -> bool:
            try:
                async with asyncio.timeout(self._settings.deadline_s):
                    return all([await question(replica) for question in questions])
            except (InferenceServerException, TimeoutError):
                return False

        return await asyncio.gather(*(says_yes(replica) for replica in self._replicas))

    async def _is_live(self, replica: _Replica) -> bool:
        return bool(await replica.client.is_server_live())

    async def _has(self, replica: _Replica, model: str, version: int) -> bool:
        return bool(await replica.client.is_model_ready(model, str(version)))

    async def close(self) -> None:
        """Close the connections."""
        for replica in self._replicas:
            await replica.client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def infer(self, model: str, version: int, arrays: dict[str, NDArray[Any]], output: str) -> NDArray[Any]:
        """Ask one version of a model, whatever its inputs, of each server at the most once.

        Raises `TritonUnavailable` when none answers, `InvalidScores`.
        """
        inputs = []
        for name, array in arrays.items():
            one = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
            one.set_data_from_numpy(np.ascontiguousarray(array))
            inputs.append(one)
        errors = []
        for replica in self._in_turn():
            try:
                answer = await replica.client.infer(
                    model,
                    inputs,
                    model_version=str(version),
                    outputs=[InferRequestedOutput(output)],
                    client_timeout=self._settings.deadline_s,
                )
            except InferenceServerException as error:
                what = f"version {version} of {model} does not answer: {_words(error)}"
                errors.append(_unavailable(what, replica.url))
                errors[-1].__cause__ = error
                if error.status() in _AWAY:
                    replica.failed(self._clock())
                continue
            replica.answered()
            found: NDArray[Any] | None = answer.as_numpy(output)
            if found is None:
                message = f"{model} answered without {output}"
                raise InvalidScores(message)
            return found
        raise errors[-1]

    def _in_turn(self) -> list[_Replica]:
        """Return the servers in the order to be asked now: each is the first in its turn, those at rest come last."""
        self._turn = (self._turn + 1) % len(self._replicas)
        now = self._clock()
        return sorted(
            [*self._replicas[self._turn :], *self._replicas[: self._turn]], key=lambda one: one.rests_until > now
        )


def _unavailable(what: str, where: str) -> TritonUnavailable:
    return TritonUnavailable(
        what,
        where=where,
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
