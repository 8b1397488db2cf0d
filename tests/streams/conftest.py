"""A pipeline with everything real but Kafka and Triton: those two are doubles that record what reaches them."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import faust
import msgspec
import pytest
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from streams import recovery as recovery_module
from streams.consumer import Chunk, ChunkConsumer, transport_for
from streams.pipeline import Pipeline
from streams.reading import Reading
from streams.shadow import Shadow
from streams.silence import Silence
from streams.store import PartitionStore
from xplat_stream.adapters import encode_event
from xplat_stream.errors import InvalidScores, TritonUnavailable
from xplat_stream.event import item_text
from xplat_stream.kafka.codec import decode_profile
from xplat_stream.kafka.consumer import partition_for
from xplat_stream.kafka.log import Span
from xplat_stream.kafka.topics import PROFILES, TopicFacts, behavior_topic, changelog_topic
from xplat_stream.metrics import Metrics
from xplat_stream.serving import CircuitBreaker
from xplat_stream.serving.texts import TextVectors
from xplat_stream.settings import Settings
from xplat_stream.state import USER_PREFIX
from xplat_stream.taxonomy import load_taxonomy
from xplat_stream.testing import START, FakeScorer
from xplat_stream.window import WindowSpec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator
    from pathlib import Path

    from confluent_kafka import TopicPartition

    from xplat_stream.event import Event
    from xplat_stream.kafka.codec import ProfileRecord

SHOP = TP("behavior.shop.v1", 0)
GENERATION = 3
PARTITIONS = 4
RECEIVED_MS = 1_900_000_000_000


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


class FakeOutbox:
    """Takes what the pipeline publishes; every topic and partition counts its own offsets."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, int, list[tuple[Any, ...]]]] = []
        self.steps: list[str] = []
        self.fault: BaseException | None = None
        self._ends: dict[tuple[str, int], int] = {}

    async def send(self, topic: str, partition: int, records: Iterable[tuple[Any, Any]]) -> int:
        """Record the records, and return what `confirm` answers: the offset after the last one."""
        return await self.send_with_headers(topic, partition, [(key, value, []) for key, value in records])

    async def send_with_headers(self, topic: str, partition: int, records: Iterable[tuple[Any, ...]]) -> int:
        """See `send`."""
        held = list(records)
        self.sent.append((topic, partition, held))
        if not held:
            return 0
        self.steps.append(f"send {topic}")
        end = self._ends.get((topic, partition), 0) + len(held)
        self._ends[topic, partition] = end
        return end

    async def confirm(self, deliveries: Iterable[int]) -> list[int]:
        """Return the ends, unless told to fail."""
        self.steps.append("confirm")
        if self.fault is not None:
            raise self.fault
        return list(deliveries)

    def on(self, topic: str) -> list[tuple[Any, ...]]:
        """Return the records of a topic, in order."""
        return [record for name, _, records in self.sent if name == topic for record in records]


class FakeChangelog:
    """The changelog of the partitions in `records`, as recovery reads and marks it; also recovery's outbox."""

    def __init__(self) -> None:
        self.records: dict[int, list[tuple[bytes, bytes | None]]] = {}
        self.facts = TopicFacts("topic-id", PARTITIONS, 604_800_000)
        self.fault: BaseException | None = None
        self.reads: list[Span] = []
        self.committed: list[TopicPartition] = []
        self.before_batch: Callable[[], None] = lambda: None
        self.batch = 2000

    async def send(self, _topic: str, partition: int, records: Iterable[tuple[bytes, bytes | None]]) -> int:
        """Append the records, and return what `confirm` answers: the offset after the last one."""
        if self.fault is not None:
            raise self.fault
        held = self.records.setdefault(partition, [])
        held.extend(records)
        return len(held)

    async def confirm(self, deliveries: Iterable[int]) -> list[int]:
        """Return the ends."""
        return list(deliveries)

    def spans(self, _settings: Settings, topics: list[str]) -> list[Span]:
        """Answer as a broker that knows which partitions are empty, and is wrong about where the others end."""
        return [Span(topics[0], number, 0, bool(self.records.get(number))) for number in range(PARTITIONS)]

    def read(self, _settings: Settings, span: Span, *, stopped: Callable[[], bool]) -> Iterator[list[Any]]:
        """Yield the records of a span in batches."""
        self.reads.append(span)
        records = list(enumerate(self.records[span.partition]))[span.start : span.end]
        while records and not stopped():
            self.before_batch()
            batch, records = records[: self.batch], records[self.batch :]
            yield [
                SimpleNamespace(key=lambda r=r: r[1][0], value=lambda r=r: r[1][1], offset=lambda r=r: r[0])
                for r in batch
            ]


@pytest.fixture
def changelog(monkeypatch: pytest.MonkeyPatch) -> FakeChangelog:
    """Return the changelog that recovery reads in this test."""
    made = FakeChangelog()
    monkeypatch.setattr(recovery_module, "spans", made.spans)
    monkeypatch.setattr(recovery_module, "read_span", made.read)
    monkeypatch.setattr(recovery_module, "topic_facts", lambda *_: made.facts)
    monkeypatch.setattr(recovery_module, "committed", lambda *_: made.committed)
    return made


class Bench:
    """The pipeline on its bench, with one partition's store."""

    def __init__(self, folder: Path) -> None:
        self.settings = Settings()
        self.now_s = 0.0
        self.folder = folder
        self.outbox = FakeOutbox()
        self.scorer = FakeScorer()
        self.metrics = Metrics()
        self.away: list[bool] = []
        self.breaker = CircuitBreaker(self.scorer)
        self.vectors = TextVectors(self.scorer)
        self.now = START
        self.shadow = Shadow(
            1.0,
            scorer=self.scorer,
            vectors=self.vectors,
            taxonomy=load_taxonomy(),
            metrics=self.metrics,
            now=lambda: self.now,
        )
        self.pipeline = Pipeline(
            self.settings,
            taxonomy=load_taxonomy(),
            partitions=PARTITIONS,
            outbox=self.outbox,
            scorer=self.scorer,
            vectors=self.vectors,
            shadow=self.shadow,
            silence=Silence(self.settings.platforms, after_s=60, clock=lambda: self.now_s),
            metrics=self.metrics,
        )
        self.spec = WindowSpec(self.settings.window.per_platform, self.settings.window.horizon)
        self.store = PartitionStore(folder / "partition", self.spec, cached_users=1000)
        self.partition = partition_for(b"user-1", PARTITIONS)
        self._offset = 0

    def record(self, event: Event | None = None, **fields: Any) -> SimpleNamespace:
        """Return a record as the consumer hands it over."""
        self._offset += 1
        made: dict[str, Any] = {
            "topic": behavior_topic("shop"),
            "partition": self.partition,
            "offset": self._offset,
            "timestamp": RECEIVED_MS,
            "headers": (),
            "key": b"user-1",
            "value": b"",
            "event": event,
        }
        if event is not None:
            made |= {
                "topic": behavior_topic(event.platform),
                "key": event.user_id.encode(),
                "value": encode_event(event),
            }
        return SimpleNamespace(**{**made, **fields})

    async def handle(self, *records: SimpleNamespace, partition: int | None = None, unread: bool = False) -> None:
        """Handle one chunk of texts that the encoder has read, as far as it answers; or that are `unread`."""
        if not unread:
            await self._read_ahead(records)
        await self.pipeline.handle(self.store, self.partition if partition is None else partition, records)

    def use(self, vectors: TextVectors) -> None:
        """Let these be the vectors that memory holds."""
        self.vectors = self.pipeline._vectors = vectors
        self.pipeline.reading = Reading(vectors)

    async def _read_ahead(self, records: Iterable[SimpleNamespace]) -> None:
        release, things = self.pipeline.release, [one.event.object for one in records if one.event is not None]
        if release is not None:
            named = dict(self.pipeline._named(item_text(thing), thing.iab, thing.categories) for thing in things)
            texts = {one: entry for one, entry in named.items() if entry.text}
            with suppress(TritonUnavailable, InvalidScores):
                await self.vectors.encode(release, texts | self.store.texts(texts))

    async def read(self) -> None:
        """Let the encoder read what has to be, and score whoever waited for it, until nobody waits any more."""
        reading = self.pipeline.reading
        while True:
            ready = reading.step(self.store, self.partition, self.pipeline.release, lambda: None, most=64)
            if ready:
                await self.pipeline.rescore(self.store, self.partition, ready)
            elif (queue := reading._queues.get(self.partition)) and queue.task:
                await asyncio.wait([queue.task])
            else:
                return

    def profiles(self) -> list[ProfileRecord]:
        """Return the profiles published, in order."""
        return [decode_profile(value) for _, value, _ in self.outbox.on(PROFILES)]

    def states(self) -> list[tuple[bytes, bytes]]:
        """Return the user states written to the changelog, in order."""
        changelog = self.outbox.on(changelog_topic(self.settings.worker.app))
        return [(key[1:], value) for key, value, _ in changelog if key.startswith(USER_PREFIX)]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """Yield a pipeline on its bench."""
    made = Bench(tmp_path)
    yield made
    made.store.close()


def user_on(partition: int, number: int = 0) -> str:
    """Return a user whose own partition is this one."""
    names = map("someone-{}".format, range(400))
    return [name for name in names if partition_for(name.encode(), PARTITIONS) == partition][number]


def without(value: bytes, **changes: Any) -> bytes:
    """Return an event's JSON with fields of its data replaced."""
    envelope = msgspec.json.decode(value)
    envelope["data"] |= changes
    return msgspec.json.encode(envelope)


def _unconnected_app() -> faust.App:
    app = faust.App("test", broker="kafka://127.0.0.1:1", store="memory://", web_enabled=False)
    app.consumer_generation_id = GENERATION
    return app


@pytest.fixture
async def consumer(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ChunkConsumer]:
    """Yield a consumer of an app that is connected to nothing, and knows no end of any log."""
    app = _unconnected_app()
    app.transport = transport_for(app)
    made = app.consumer
    assert isinstance(made, ChunkConsumer)
    monkeypatch.setattr(made._thread, "highwater", lambda _: None)
    made.resume_flow()
    yield made
    made._thread.thread_loop.close()  # made with the object, closed by the thread that never ran


@pytest.fixture
async def stock_consumer() -> AsyncIterator[driver.Consumer]:
    """Yield Faust's own consumer of an app that is connected to nothing."""
    app = _unconnected_app()
    made = app.consumer
    assert type(made) is driver.Consumer
    app.topics.acking_topics.add(SHOP.topic)
    made.resume_flow()
    yield made
    made._thread.thread_loop.close()


def raw_records(*offsets: int) -> list[Any]:
    """Return records of one partition as aiokafka gives them."""
    return [SimpleNamespace(offset=offset, timestamp=1000, timestamp_type=0) for offset in offsets]


def chunk_of(last: int, *, start: int = 0, generation: int = GENERATION) -> Chunk:
    """Return a chunk from an offset to another; stock Faust's consumer takes it for the message of the last."""
    chunk = Chunk(
        SHOP.topic, SHOP.partition, last, 1.0, 0, None, None, raw_records(last), None, 0, 0, SHOP,
        generation_id=generation,
    )  # fmt: skip
    chunk.start = start
    return chunk
