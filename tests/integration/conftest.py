"""What the integration tests share: workers as real processes, a log that grows, and tiny releases without training.

All tests use one broker and one log. Every test has a worker group of its own, which reads that log from its start, so
`verify` compares the whole of it: what earlier tests wrote is backlog for the later ones.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from confluent_kafka import Consumer, TopicPartition
from onnx import TensorProto, helper
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from streams.metrics import Metrics, read_metrics
from xplat_stream.event import ACTIONS, Event, Millis, UserId
from xplat_stream.kafka import EventProducer
from xplat_stream.kafka.codec import ACTIVE_KEY, Announcement, decode_profile, encode_announcement
from xplat_stream.kafka.log import read_span, spans
from xplat_stream.kafka.topics import MODELS, PROFILES, QUIET, REKEYED, behavior_topic, create_topics, platforms_on
from xplat_stream.local.process import wait_for
from xplat_stream.profile import TaxonomyRef
from xplat_stream.serving import Manifest, ModelRepository, TritonScorer
from xplat_stream.serving.features import HeadInputs, TextFeatures
from xplat_stream.serving.releases import ENCODER, HEAD, MANIFEST_FILE, MODEL_FILE, TOKENIZER_FILE, Golden
from xplat_stream.taxonomy import load_taxonomy
from xplat_stream.testing import make_event
from xplat_stream.verify import Verdict, verify, wait_until_caught_up

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from confluent_kafka import Message

    from xplat_stream.kafka.codec import ProfileRecord
    from xplat_stream.profile import Profile
    from xplat_stream.settings import Settings

XPLAT = Path(sys.executable).with_name("xplat")
READY_WITHIN_S = 40.0
CAUGHT_UP_WITHIN_S = 60.0
WIDTH = 64
IR_VERSION, OPSET = 8, 17
ALONE = (str(XPLAT), "worker", "--no-supervise")
"""A worker that is not started again: one that stops fails its test."""

SUPERVISED = (str(XPLAT), "worker")
_serial = count(1)


def environment(settings: Settings, **variables: str) -> dict[str, str]:
    """Return the environment under which a command sees exactly these settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("XPLAT_")}
    return {
        **kept,
        "XPLAT_PLATFORMS": ",".join(settings.platforms),
        "XPLAT_KAFKA__BOOTSTRAP": settings.kafka.bootstrap,
        "XPLAT_TRITON__URL": settings.triton.url,
        "XPLAT_TRITON__DEADLINE_S": str(settings.triton.deadline_s),
        "XPLAT_WORKER__APP": settings.worker.app,
        "XPLAT_WORKER__DATADIR": settings.worker.datadir,
        "XPLAT_WORKER__METADATA_INTERVAL_S": str(settings.worker.metadata_interval_s),
        "XPLAT_WORKER__SESSION_TIMEOUT_S": str(settings.worker.session_timeout_s),
        "XPLAT_WORKER__PUBLISH_TIMEOUT_S": str(settings.worker.publish_timeout_s),
        "XPLAT_WORKER__STALL_TIMEOUT_S": str(settings.worker.stall_timeout_s),
        "XPLAT_WORKER__CHUNK_EVENTS": str(settings.worker.chunk_events),
        "XPLAT_MODEL__REPOSITORY": settings.model.repository,
        "XPLAT_LOCAL__HOME": settings.local.home,
        **variables,
    }


class Worker:
    """One `xplat worker` process and its log."""

    def __init__(self, settings: Settings, log: Path, command: Sequence[str] = ALONE) -> None:
        self.settings = settings
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                env=environment(settings),
                cwd=log.parent,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self.process.poll() is None

    @property
    def children(self) -> list[int]:
        """The processes it started."""
        return [
            int(pid) for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        ]

    @property
    def metrics(self) -> Metrics:
        """What it counted, at most a second ago."""
        return read_metrics(Path(self.settings.worker.datadir))

    def said(self, words: str) -> bool:
        """Tell whether the log holds these words."""
        return words.encode() in self.log.read_bytes()

    def ready(self) -> Worker:
        """Wait until it owns partitions."""
        self.until(lambda: self.said("Worker ready"), "be ready")
        return self

    def until(self, condition: Callable[[], bool], what: str, *, within_s: float = READY_WITHIN_S) -> None:
        """Wait for a condition; a worker that ends meanwhile fails at once, with its log."""
        wait_for(lambda: not self.running or condition(), timeout_s=within_s)
        assert self.running, f"worker ended with {self.process.returncode} instead of: {what}\n{self.words()}"
        assert condition(), f"worker did not {what} within {within_s:.0f} s\n{self.words()}"

    def end(self, number: int = signal.SIGTERM, *, within_s: float = 20.0) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(within_s)

    def words(self) -> str:
        """Return the end of its log."""
        return self.log.read_text("utf-8", "replace")[-6000:]


@pytest.fixture
def group(stack: Settings, tmp_path: Path) -> Settings:
    """Return settings of a worker group that nobody used before, its topics made."""
    settings = msgspec.structs.replace(
        stack,
        worker=msgspec.structs.replace(
            stack.worker,
            app=f"group-{next(_serial)}",
            datadir=str(tmp_path / "state"),
            metadata_interval_s=1.0,
            session_timeout_s=6.0,
        ),
    )
    create_topics(settings)
    return settings


def with_worker(settings: Settings, **fields: Any) -> Settings:
    """Return settings whose worker differs: another folder for a second one of the group, smaller chunks."""
    fields = {name: str(value) if isinstance(value, Path) else value for name, value in fields.items()}
    return msgspec.structs.replace(settings, worker=msgspec.structs.replace(settings.worker, **fields))


@pytest.fixture
def start_worker(tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    """Return a starter of workers. They are killed at the end, and their logs shown where the test failed."""
    workers: list[Worker] = []

    def start(settings: Settings, **options: Any) -> Worker:
        workers.append(Worker(settings, tmp_path / f"worker-{len(workers)}.log", **options))
        return workers[-1]

    yield start
    for worker in workers:
        if worker.running:
            worker.end(signal.SIGKILL)
        sys.stdout.write(f"--- {worker.log.name}, exit code {worker.process.returncode}\n{worker.words()}\n")


def made_events(
    users: int, each: int, *, seed: int, platforms: Sequence[str] = ("shop", "video", "social"), name: str = ""
) -> list[Event]:
    """Return events of several people in random order of time, up to now."""
    chance = random.Random(seed)
    now_ms = int(time.time() * 1000)
    return [
        make_event(
            user_id=UserId(f"{name or seed}-{user}"),
            platform=chance.choice(platforms),
            action=chance.choice(ACTIONS),
            occurred_at=Millis(now_ms - chance.randrange(30 * 86_400_000)),
            object_title=f"{chance.choice(_WORDS)} {chance.choice(_WORDS)}",
        )
        for _ in range(each)
        for user in range(users)
    ]


_WORDS = ("running", "shoes", "coffee", "film", "guitar", "garden", "game", "the", "of", "and")


def publish(settings: Settings, events: Sequence[Event], **overrides: Any) -> None:
    """Publish events and wait until Kafka has them all."""
    with EventProducer(settings, **overrides) as producer:
        for event in events:
            producer.send(event)


def settled(settings: Settings) -> Verdict:
    """Wait until the group has committed the whole log, and compare it with state and profiles."""
    if not wait_until_caught_up(settings, timeout_s=CAUGHT_UP_WITHIN_S):
        pytest.fail(f"the group did not catch up: {behind(settings)}")
    return verify(settings)


def behind(settings: Settings) -> list[str]:
    """Return where the group has not committed all there is."""
    consumer = Consumer({"bootstrap.servers": settings.kafka.bootstrap, "group.id": settings.worker.app, **QUIET})
    try:
        topics = [*map(behavior_topic, platforms_on(settings)), REKEYED]
        return [
            f"{span.topic}[{span.partition}] at {one.offset} of {span.start}..{span.end}"
            for span in spans(settings, topics)
            for one in consumer.committed([TopicPartition(span.topic, span.partition)], timeout=10)
            if span.end > max(one.offset, span.start)
        ]
    finally:
        consumer.close()


def assert_exact(settings: Settings) -> Verdict:
    """Hold the promise: nothing missing, nothing extra, nothing differing."""
    verdict = settled(settings)
    assert (verdict.missing, verdict.extra, verdict.differing) == (0, 0, 0), verdict
    return verdict


def records(settings: Settings, topic: str) -> list[Message]:
    """Return everything a topic holds, partition by partition."""
    return [message for span in spans(settings, [topic]) for batch in read_span(settings, span) for message in batch]


def profiles(settings: Settings) -> list[ProfileRecord]:
    """Return every profile ever published, by partition in order."""
    return [decode_profile(value) for one in records(settings, PROFILES) if (value := one.value()) is not None]


def last_profiles(settings: Settings, prefix: str) -> dict[str, Profile]:
    """Return the last profile of every user whose name begins so."""
    return {one.data.user_id: one.data for one in profiles(settings) if str(one.data.user_id).startswith(prefix)}


class Published(NamedTuple):
    """A release as placed in the repository."""

    number: int
    encoder: int


@pytest.fixture
def publish_release(stack: Settings) -> Callable[..., Published]:
    """Return a maker of releases: graphs by `onnx.helper`, files by `ModelRepository`, loaded, checked, announced."""
    return lambda **options: make_published(stack, **options)


def make_published(
    settings: Settings,
    *,
    encoder: int = 0,
    tilt: float = 1.0,
    golden_off: float = 0.0,
    load: bool = True,
    announce: bool = True,
) -> Published:
    """Publish a release. `encoder`: share one placed before; `tilt` and `golden_off`: another head, a wrong record."""
    repository = ModelRepository(settings.model.repository)
    number = repository.next_number()
    files: dict[str, str] = {}
    tokenizer = _tokenizer()
    if not encoder:
        encoder = number
        content = {MODEL_FILE: encoder_graph(seed=encoder), TOKENIZER_FILE: tokenizer.to_str().encode()}
        files |= repository.place(ENCODER, encoder, content)
    else:
        files |= {
            name: digest
            for name, digest in repository.manifest(_first_with(repository, encoder)).files.items()
            if name.startswith(ENCODER)
        }
    taxonomy = load_taxonomy(settings.model.taxonomy)
    head = head_graph(seed=number, labels=len(taxonomy.ids()), tilt=tilt)
    manifest = Manifest(
        release=number,
        encoder=encoder,
        created_at=datetime.now(UTC),
        taxonomy=TaxonomyRef(taxonomy.name, taxonomy.version, taxonomy.cattax),
        labels=taxonomy.ids(),
        platforms=("shop", "video", "social"),
        width=WIDTH,
        max_tokens=16,
        max_events=64,
        base="test",
        files=files,
        golden=_golden(
            (repository.root / ENCODER / str(encoder) / MODEL_FILE).read_bytes(), head, tokenizer, golden_off
        ),
    )
    # The manifest is part of the folder it lists, so the head's checksum is worked out before it is placed.
    digest = repository_digest(head)
    manifest = msgspec.structs.replace(manifest, files={**files, f"{HEAD}/{number}/{MODEL_FILE}": digest})
    repository.place(HEAD, number, {MODEL_FILE: head, MANIFEST_FILE: msgspec.json.encode(manifest)})
    asyncio.run(_loaded(settings, number, encoder, load=load, check=load and not golden_off))
    if announce:
        announce_release(settings, number, encoder)
    return Published(number, encoder)


async def _loaded(settings: Settings, number: int, encoder: int, *, load: bool, check: bool) -> None:
    async with TritonScorer(settings.triton) as scorer:
        if load:
            await scorer.load(ENCODER, encoder)
            await scorer.load(HEAD, number)
        if check:
            await scorer.check_golden(ModelRepository(settings.model.repository).load(number))


def announce_release(settings: Settings, number: int, encoder: int) -> None:
    """Say on the models topic that a release is active."""
    with EventProducer(settings) as producer:
        said = Announcement(release=number, previous=0, encoder=encoder, announced_at=datetime.now(UTC))
        producer.send_raw(MODELS, ACTIVE_KEY, encode_announcement(said))


def _first_with(repository: ModelRepository, encoder: int) -> int:
    return next(number for number in repository.releases() if repository.manifest(number).encoder == encoder)


def repository_digest(content: bytes) -> str:
    """Return the checksum as a manifest has it."""
    return sha256(content).hexdigest()


def _tokenizer() -> Tokenizer:
    words = {word: index for index, word in enumerate(("[UNK]", *_WORDS))}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    return tokenizer


def _model(graph: onnx.GraphProto) -> bytes:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _constant(name: str, values: np.ndarray[Any, Any], kind: int) -> onnx.TensorProto:
    return helper.make_tensor(name, kind, values.shape, values.flatten().tolist())


def encoder_graph(*, seed: int) -> bytes:
    """Return an encoder: the mean of one random vector a token."""
    table = np.random.default_rng(seed).normal(size=(32, WIDTH)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["token_vectors"]),
        helper.make_node("Cast", ["attention_mask"], ["mask_2d"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask_2d", "last"], ["mask"]),
        helper.make_node("Mul", ["token_vectors", "mask"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "one"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["mask", "one"], ["tokens"], keepdims=0),
        helper.make_node("Max", ["tokens", "least"], ["divisor"]),
        helper.make_node("Div", ["sum", "divisor"], ["vector"]),
    ]
    inputs = [helper.make_tensor_value_info(n, TensorProto.INT64, ["b", "n"]) for n in ("input_ids", "attention_mask")]
    outputs = [helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["b", WIDTH])]
    constants = [
        _constant("table", table, TensorProto.FLOAT),
        _constant("last", np.array([-1]), TensorProto.INT64),
        _constant("one", np.array([1]), TensorProto.INT64),
        _constant("least", np.array([1.0]), TensorProto.FLOAT),
    ]
    return _model(helper.make_graph(nodes, "encoder", inputs, outputs, constants))


def head_graph(*, seed: int, labels: int, tilt: float = 1.0) -> bytes:
    """Return a head: the mean of the events that are no padding, through a random matrix and a sigmoid."""
    matrix = tilt * np.random.default_rng(1000 + seed).normal(size=(WIDTH, labels)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["vectors"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Greater", ["action", "zero"], ["real"]),
        helper.make_node("Cast", ["real"], ["mask_2d"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask_2d", "last"], ["mask"]),
        helper.make_node("Mul", ["wide", "mask"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "one"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["mask", "one"], ["events"], keepdims=0),
        helper.make_node("Max", ["events", "least"], ["divisor"]),
        helper.make_node("Div", ["sum", "divisor"], ["pooled"]),
        # Platform and age are inputs of every head; here they count for nothing, and the graph says so.
        helper.make_node("Cast", ["platform"], ["platform_f"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["platform_f", "age"], ["aside"]),
        helper.make_node("ReduceSum", ["aside", "one"], ["aside_sum"], keepdims=1),
        helper.make_node("Mul", ["aside_sum", "nothing"], ["aside_nothing"]),
        helper.make_node("Add", ["pooled", "aside_nothing"], ["user_vector"]),
        helper.make_node("MatMul", ["user_vector", "matrix"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["scores"]),
    ]
    kinds = {"platform": TensorProto.INT32, "action": TensorProto.INT32, "age": TensorProto.FLOAT}
    inputs = [helper.make_tensor_value_info("vectors", TensorProto.FLOAT16, ["b", "n", WIDTH])]
    inputs += [helper.make_tensor_value_info(name, kind, ["b", "n"]) for name, kind in kinds.items()]
    outputs = [
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["b", labels]),
        helper.make_tensor_value_info("user_vector", TensorProto.FLOAT, ["b", WIDTH]),
    ]
    constants = [
        _constant("matrix", matrix, TensorProto.FLOAT),
        _constant("last", np.array([-1]), TensorProto.INT64),
        _constant("one", np.array([1]), TensorProto.INT64),
        _constant("least", np.array([1.0]), TensorProto.FLOAT),
        _constant("zero", np.array([0]), TensorProto.INT32),
        _constant("nothing", np.array([0.0]), TensorProto.FLOAT),
    ]
    return _model(helper.make_graph(nodes, "head", inputs, outputs, constants))


def _golden(encoder: bytes, head: bytes, tokenizer: Tokenizer, off: float) -> Golden:
    """Work out with onnxruntime what the server has to answer. `off` is added to the recorded scores."""
    texts = ["running shoes", "the film", "coffee and garden game"]
    vectors = np.zeros((len(texts), WIDTH), np.float32)
    for batch in TextFeatures(Tokenizer.from_str(tokenizer.to_str()), max_tokens=16).batches(texts, size=8):
        answer = _run(encoder, {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}, "vector")
        vectors[batch.where] = answer
    window = HeadInputs(
        np.repeat(vectors[None, :, :], 2, axis=0).astype(np.float16),
        np.ones((2, 3), np.int32),
        np.array([[1, 2, 3], [4, 5, 0]], np.int32),
        np.zeros((2, 3), np.float32),
    )
    scores = _run(head, window._asdict(), "scores") + off
    return Golden(
        texts=texts,
        vectors=vectors.tolist(),
        head_vectors=window.vectors.tolist(),
        head_platform=window.platform.tolist(),
        head_action=window.action.tolist(),
        head_age=window.age.tolist(),
        scores=scores.tolist(),
    )


def _run(graph: bytes, inputs: Mapping[str, np.ndarray[Any, Any]], output: str) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    (answer,) = session.run([output], dict(inputs))
    return np.asarray(answer)
