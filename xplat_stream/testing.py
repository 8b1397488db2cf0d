"""Public doubles for code that uses this library: events, a release, a scorer, a model server and a clock.

All are deterministic.

Needs the ``worker`` extra (numpy, tokenizers), because a release and its scores are made of those.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from itertools import count
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Self

import grpc
import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tritonclient.grpc import service_pb2, service_pb2_grpc

from xplat_stream.errors import InvalidScores, TritonUnavailable
from xplat_stream.event import Event, Millis, Object, UserId
from xplat_stream.profile import TaxonomyRef
from xplat_stream.serving.features import HeadInputs, TextFeatures
from xplat_stream.serving.releases import Golden, Manifest, Release
from xplat_stream.serving.sensitivity import CurvePoint, Estimator, Sensitivity
from xplat_stream.taxonomy import load_taxonomy

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from xplat_stream.serving.scorer import Scorer

__all__ = [
    "START",
    "FakeScorer",
    "FakeTriton",
    "ManualClock",
    "ScorerCall",
    "broken_promises",
    "make_event",
    "make_release",
]

START: Final = datetime(2026, 1, 1, tzinfo=UTC)
"""When made-up time begins."""

_NO_EVENTS: Final = (np.zeros((1, 1), np.int32), np.zeros((1, 1), np.int32), np.zeros((1, 1), np.float32))
_START_MS: Final = int(START.timestamp() * 1000)
_serial = count(1)

Fault = Literal["fail", "nan", "shape", "invalid"]


def make_event(**overrides: Any) -> Event:
    """Return a valid event, the n-th call's own id and second, with any field of `Event` or of `Object` replaced.

    Fields of the object are named with ``object_`` in front: ``make_event(platform="video", object_title="A film")``.
    """
    number = next(_serial)
    of_object = {
        name.removeprefix("object_"): overrides.pop(name) for name in list(overrides) if name.startswith("object_")
    }
    fields: dict[str, Any] = {
        "event_id": f"//test.example#{number}",
        "user_id": UserId("user-1"),
        "platform": "shop",
        "action": "view",
        "object": Object(**{"id": f"item-{number}", "type": "product", "title": f"Thing {number}", **of_object}),
        "occurred_at": Millis(_START_MS + 1000 * number),
        **overrides,
    }
    return Event(**fields)


def make_release(  # noqa: PLR0913 - what a release is made of
    number: int = 1,
    encoder: int = 1,
    *,
    labels: Sequence[str] = (),
    platforms: Sequence[str] = ("shop", "video", "social"),
    width: int = 8,
    max_tokens: int = 16,
    max_events: int = 64,
    margin: float | None = None,
) -> Release:
    """Return a release held in memory, with a tokenizer of single words. `labels` empty: the shipped taxonomy's.

    `margin`: it expects events to move nothing, and scoring waits while the labels on top lead by so many logits; None:
    every update is scored.
    """
    taxonomy = load_taxonomy()
    manifest = Manifest(
        release=number,
        encoder=encoder,
        created_at=START,
        taxonomy=TaxonomyRef(taxonomy.name, taxonomy.version, taxonomy.cattax),
        labels=tuple(labels) or taxonomy.ids(),
        platforms=tuple(platforms),
        width=width,
        max_tokens=max_tokens,
        max_events=max_events,
        base="test",
        files={},
        golden=Golden([], [], [], [], [], [], []),
        sensitivity=None if margin is None else _unmoved(margin, width, len(labels or taxonomy), len(platforms)),
    )
    return Release(manifest, TextFeatures(_tokenizer(), max_tokens=max_tokens))


def _unmoved(margin: float, width: int, labels: int, platforms: int) -> Sensitivity:
    names = np.zeros((width + 1, labels), np.float32).tobytes()
    blank = Estimator(Sensitivity(names, b"", 20, ()), platforms=platforms, width=width, labels=labels)
    nothing = blank.sums(HeadInputs(np.zeros((1, 1, width), np.float16), *_NO_EVENTS))
    weights = np.zeros((blank.features(nothing).shape[1], labels), np.float16).tobytes()
    return Sensitivity(names, weights, 20, (CurvePoint(margin, 0.8, 0.0, 0.005),))


def _tokenizer() -> Tokenizer:
    words = ("[UNK]", "the", "of", "and", "for", "running", "shoes", "coffee", "film", "guitar", "garden", "game")
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))  # noqa: S106
    tokenizer.pre_tokenizer = Whitespace()
    return tokenizer


class ScorerCall(NamedTuple):
    """One call a `FakeScorer` received. `size`: how many texts, or how many users."""

    kind: Literal["encode", "score"]
    release: int
    size: int


class FakeScorer:
    """A `Scorer` without a model: vectors from hashes of the text, scores from the vectors it is given.

    The same texts and inputs give the same answers in any process and any batch. `calls` holds every call, faulty ones
    included. A fault is scripted for coming calls, in the order given, whichever method they are of.
    """

    def __init__(self) -> None:
        self.calls: list[ScorerCall] = []
        self._faults: deque[Fault] = deque()

    def fail_next(self, calls: int = 1) -> None:
        """Let the next calls raise `TritonUnavailable`."""
        self._faults.extend(["fail"] * calls)

    def answer_nan_next(self, calls: int = 1) -> None:
        """Let the next calls answer NaN, unchecked: what a model server sends, not what a `Scorer` may return."""
        self._faults.extend(["nan"] * calls)

    def answer_wrong_shape_next(self, calls: int = 1) -> None:
        """Let the next calls answer with one column too many, unchecked."""
        self._faults.extend(["shape"] * calls)

    def reject_next(self, calls: int = 1) -> None:
        """Let the next calls raise `InvalidScores`, as the real scorer does when a model answers NaN."""
        self._faults.extend(["invalid"] * calls)

    async def encode(self, release: Release, texts: Sequence[str]) -> list[bytes]:
        """See `Scorer.encode`. A unit vector drawn from the hash of the encoder version and the text."""
        fault = self._called(ScorerCall("encode", release.number, len(texts)))
        width = release.manifest.width + (fault == "shape")
        vectors = [_unit(f"{release.encoder}:{text}", width).astype(np.float16) for text in texts]
        if fault == "nan":
            vectors = [np.full(width, np.nan, np.float16) for _ in texts]
        return [vector.tobytes() for vector in vectors]

    async def score(self, release: Release, inputs: HeadInputs) -> NDArray[np.float32]:
        """See `Scorer.score`. A label scores high where recent events' vectors point along the label's own."""
        fault = self._called(ScorerCall("score", release.number, len(inputs.vectors)))
        manifest = release.manifest
        wanted = np.stack([_unit(f"{release.number}:{label}", manifest.width) for label in manifest.labels])
        weight = np.where(inputs.action > 0, np.exp(-inputs.age.astype(np.float64) / 4), 0.0)  # (users, events)
        weight *= 1.0 + 0.01 * inputs.platform + 0.001 * inputs.action
        pooled = np.einsum("ue,uew->uw", weight, inputs.vectors.astype(np.float64))  # (users, width)
        scores = np.round(1.0 / (1.0 + np.exp(-2.0 * pooled @ wanted.T)), 6).astype(np.float32)  # (users, labels)
        if fault == "nan":
            return np.full_like(scores, np.nan)
        return np.pad(scores, ((0, 0), (0, 1))) if fault == "shape" else scores

    async def check_golden(self, release: Release) -> None:
        """See `Scorer.check_golden`. One call of each kind, so that scripted faults reach it."""
        await self.encode(release, ["golden"])
        width = release.manifest.width
        await self.score(release, HeadInputs(np.zeros((1, 1, width), np.float16), *_NO_EVENTS))

    def _called(self, call: ScorerCall) -> Fault | None:
        self.calls.append(call)
        fault = self._faults.popleft() if self._faults else None
        if fault == "fail":
            raise TritonUnavailable(
                "told to fail", where="FakeScorer", expected="a call after the scripted faults", fix="Call again."
            )
        if fault == "invalid":
            message = "told to answer with something that is not a score"
            raise InvalidScores(message)
        return fault


def _unit(name: str, width: int) -> NDArray[np.float64]:
    """Return a unit vector that depends on the name alone, the same in every process."""
    raw = b"".join(blake2b(f"{name}:{part}".encode()).digest() for part in range(-(-width // 32)))
    vector = np.frombuffer(raw, ">i2")[:width].astype(np.float64) + 0.5  # never the zero vector
    return np.asarray(vector / np.linalg.norm(vector), np.float64)


class FakeTriton(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """A model server without models, on a loopback port: it loads folders, and answers zeros and one half.

    As Triton in explicit mode with `latest { num_versions: 3 }`, it has the highest versions that lie in the repository
    when a model is loaded, or when it starts. Use it as a context manager.
    """

    VERSIONS: Final = 3

    def __init__(self, repository: Path, *, width: int = 8, labels: int = 1) -> None:
        self._repository = repository
        self._answers = {"vector": (width, 0.0), "scores": (labels, 0.5)}
        self._server: grpc.Server | None = None
        self._port = 0
        self.loaded: dict[str, set[int]] = {}
        self.refused: set[str] = set()
        """Models that do not load."""
        self.asked: list[tuple[str, int]] = []
        """Model and version of every inference that was answered."""

    @property
    def url(self) -> str:
        """Where it listens, also after it was stopped."""
        return f"127.0.0.1:{self._port}"

    def start(self) -> None:
        """Serve what lies in the repository now, at the address of before."""
        self.loaded = {folder.name: self._highest(folder.name) for folder in self._repository.glob("*/")}
        self._server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        self._port = self._server.add_insecure_port(self.url)
        self._server.start()

    def stop(self) -> None:
        """Be gone, as a server that was killed."""
        if self._server is not None:
            self._server.stop(None).wait()
            self._server = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _highest(self, model: str) -> set[int]:
        folders = self._repository.joinpath(model).glob("*/")
        return set(sorted(int(one.name) for one in folders if one.name.isdecimal())[-self.VERSIONS :])

    def ServerLive(self, *_: Any) -> Any:  # noqa: N802 - so named by the protocol, as those below
        """Say that it is there."""
        return service_pb2.ServerLiveResponse(live=True)

    def ModelReady(self, request: Any, _: Any) -> Any:  # noqa: N802
        """Say whether a version is loaded."""
        return service_pb2.ModelReadyResponse(ready=int(request.version) in self.loaded.get(request.name, ()))

    def RepositoryModelLoad(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Load the highest versions there are, or refuse and keep those of before."""
        if request.model_name in self.refused:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"failed to load '{request.model_name}', told to")
        self.loaded[request.model_name] = self._highest(request.model_name)
        return service_pb2.RepositoryModelLoadResponse()

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Answer as many rows as there are in the first input."""
        model, version = request.model_name, int(request.model_version)
        if version not in self.loaded.get(model, ()):
            context.abort(grpc.StatusCode.NOT_FOUND, f"version {version} of '{model}' is not loaded")
        self.asked.append((model, version))
        answer = service_pb2.ModelInferResponse(model_name=model, model_version=str(version))
        name, rows = request.outputs[0].name, request.inputs[0].shape[0]
        columns, value = self._answers[name]
        answer.outputs.add(name=name, datatype="FP32", shape=[rows, columns])
        answer.raw_output_contents.append(np.full((rows, columns), value, np.float32).tobytes())
        return answer


async def broken_promises(scorer: Scorer, release: Release) -> list[str]:
    """Return in words what a `Scorer` does not keep of its contract; empty for a good one."""
    manifest = release.manifest
    texts = ["running shoes", "a film", "running shoes", "", "x" * 2000, "Ünïcödé ☕ 跑步"]
    vectors = await scorer.encode(release, texts)
    users, events = 3, 8
    head = HeadInputs(
        np.zeros((users, events, manifest.width), np.float16),
        np.zeros((users, events), np.int32),
        np.zeros((users, events), np.int32),
        np.zeros((users, events), np.float32),
    )
    for user in range(1, users):  # user 0 has an empty window
        head.vectors[user, :user] = np.frombuffer(vectors[user], np.float16)[: manifest.width]
        head.action[user, :user] = head.platform[user, :user] = 1
    scores = await scorer.score(release, head)
    second = HeadInputs(head.vectors[1:2], head.platform[1:2], head.action[1:2], head.age[1:2])
    alone = await scorer.score(release, second)
    checks = {
        "one vector a text": len(vectors) == len(texts),
        "vectors are float16 of the release's width": {len(vector) for vector in vectors} == {2 * manifest.width},
        "vectors are finite": all(np.isfinite(np.frombuffer(vector, np.float16)).all() for vector in vectors),
        "the same text gives the same vector": vectors[0] == vectors[2],
        "different texts give different vectors": vectors[0] != vectors[1],
        "no texts, no vectors": await scorer.encode(release, []) == [],
        "scores are (users, labels)": scores.shape == (users, len(manifest.labels)),
        "scores are float32": scores.dtype == np.float32,
        "scores lie in [0, 1]": bool(((scores >= 0) & (scores <= 1)).all()),
        "a user's scores do not depend on the batch": alone.shape[1:] == scores.shape[1:]
        and bool(np.allclose(alone[0], scores[1], atol=1e-3)),
    }
    return [promise for promise, kept in checks.items() if not kept]


class ManualClock:
    """A clock that moves when told to."""

    def __init__(self, start: datetime = START) -> None:
        self._now = start

    def __call__(self) -> datetime:
        """Return the time as an aware UTC datetime."""
        return self._now

    def millis(self) -> Millis:
        """Return the time in whole milliseconds since 1970."""
        return Millis((self._now - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1))

    def advance(self, by: timedelta) -> None:
        """Move the clock; never back. Raises `ValueError`."""
        if by < timedelta(0):
            message = f"a clock cannot be advanced by {by}"
            raise ValueError(message)
        self._now += by
