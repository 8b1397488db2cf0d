"""Kafka, disks and workers of two partitions in memory, around the production pipeline and store: what a crash finds.

Only what is outside is a double. Every effect of the doubles is a step with a name, entered before and left after;
a worker crashes at any of them by number, or stands still there while another one takes its partition over. Nothing
here waits for anything, so a coroutine is driven by `send(None)`, without an event loop.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from functools import partial, reduce
from pathlib import Path
from types import SimpleNamespace, coroutine
from typing import TYPE_CHECKING, Any, NamedTuple

from streams.pipeline import Pipeline
from streams.shadow import Shadow
from streams.silence import Silence
from streams.store import PartitionStore
from xplat_stream.adapters import admit, encode_event
from xplat_stream.errors import RejectedEvent, TritonUnavailable, XplatError
from xplat_stream.event import Event, Millis, Object, UserId
from xplat_stream.kafka.codec import decode_profile
from xplat_stream.kafka.consumer import partition_for
from xplat_stream.kafka.topics import PROFILES, REJECTED, REKEYED, behavior_topic, changelog_topic
from xplat_stream.metrics import Metrics
from xplat_stream.profile import window_digest
from xplat_stream.serving.texts import TextVectors
from xplat_stream.settings import Settings, WindowSettings
from xplat_stream.state import BARRIER_KEY, TEXT_PREFIX, USER_PREFIX, TextEntry, UserState, text_key, user_key
from xplat_stream.taxonomy import Label, Taxonomy
from xplat_stream.testing import FakeScorer, make_release
from xplat_stream.window import BehaviorWindow, Row, WindowSpec, row_of

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator, Iterable, Iterator, Mapping

    from xplat_stream.event import TextHash
    from xplat_stream.kafka.codec import Headers
    from xplat_stream.serving.releases import Release

Pick = Callable[[int], int]
"""Chance: returns a number in [0, n)."""

PARTITIONS = 2
SETTINGS = Settings(window=WindowSettings(per_platform=3, horizon_days=2.0))
SPEC = WindowSpec(SETTINGS.window.per_platform, SETTINGS.window.horizon)
CHANGELOG = changelog_topic(SETTINGS.worker.app)
TAXONOMY = Taxonomy("test", "1", 500, (Label("1", "one", "One", aliases=("one",)), Label("2", "two", "Two")))
RELEASE = make_release(labels=TAXONOMY.ids(), width=4, margin=-1e9)
RECEIVED_MS = 1_750_000_000_000
HOUR_MS = 3_600_000


# ---- the log ---------------------------------------------------------------------------------------------------------


class Item(NamedTuple):
    """One record that can be published, and what it has to lead to."""

    topic: str
    key: bytes
    value: bytes
    user: str
    row: tuple[str, Row] | None
    """What it adds to its user's window; None for a record that is not admitted."""
    rejected: bool


def _user(partition: int, number: int) -> str:
    names = (name for name in map("user-{}".format, range(99)) if partition_for(name.encode(), PARTITIONS) == partition)
    return [next(names) for _ in range(number + 1)][number]


def _items() -> list[Item]:
    """Return good events, out of order, late, tied, repeated ids with other contents, and records to be rejected."""
    items = []
    for partition in range(PARTITIONS):
        for number in range(3):
            user = _user(partition, number)
            for nth, hours in enumerate((0, -1, 0, -30, 1, -60, 2, -49, 3, 1)):
                event = Event(
                    event_id=f"//t#{user}-{nth % 8}",
                    user_id=UserId(user),
                    platform=("shop", "video")[nth % 2],
                    action=("view", "like")[nth // 5],
                    object=Object(
                        id=str(nth), type="video", title=("", "film", "shoes", "tea")[nth % 4], tags=("one",)
                    ),
                    occurred_at=Millis(RECEIVED_MS + hours * HOUR_MS - HOUR_MS * 4),
                )
                items.append(_item(event.platform, user, encode_event(event)))
            items.append(_item("shop", user, b'{"specversion":'))
    return items


def _item(platform: str, user: str, value: bytes) -> Item:
    topic = behavior_topic(platform)
    try:
        event = admit(user.encode(), value, platform=platform, received_at_ms=RECEIVED_MS)
    except RejectedEvent:
        return Item(topic, user.encode(), value, user, None, rejected=True)
    assert event is not None
    return Item(topic, user.encode(), value, user, (platform, row_of(event)), rejected=False)


ITEMS = _items()


class Written(NamedTuple):
    """A record in Kafka. `stale`: its writer's partition belonged to another worker when it arrived."""

    key: bytes
    value: bytes | None
    headers: Headers
    stale: bool


class Handed:
    """A batch the client was given. `left`: what Kafka has not got yet; `end`: the offset after the last record."""

    def __init__(self, topic: str, partition: int, records: list[tuple[Any, Any, Headers]]) -> None:
        self.topic = topic
        self.partition = partition
        self.left = records
        self.end = 0

    @property
    def place(self) -> tuple[str, int]:
        """Where it goes: topic and partition."""
        return self.topic, self.partition


# ---- the doubles -----------------------------------------------------------------------------------------------------


class Crash(BaseException):
    """The process ends here: no handler inside may catch it."""


@coroutine
def _standstill() -> Generator[None, None, None]:
    yield


class Steps:
    """Where a worker is: every effect is counted on entry and on leaving, and one of them may be its last."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.last: int | None = None
        """The number of the step at which the process ends."""

    def reach(self, name: str) -> None:
        """Count a step; end the process if it is the last one."""
        self.names.append(name)
        if len(self.names) == self.last:
            raise Crash

    async def wait(self, name: str) -> None:
        """Count a step and stand still until driven on."""
        self.reach(name)
        await _standstill()


class Disk(dict[bytes, bytes]):
    """What RocksDB holds on one host: it survives the process, and is lost with the host."""


class DiskStore(PartitionStore):
    """The production store over a `Disk`."""

    def __init__(self, disk: Disk, steps: Steps) -> None:
        self._disk = disk
        self._steps = steps
        super().__init__(Path("disk"), SPEC, cached_users=2)

    def write(self) -> list[tuple[bytes, bytes]]:
        """See `PartitionStore.write`; a crash before or after it."""
        self._steps.reach("before write")
        records = super().write()
        self._steps.reach("after write")
        return records

    def _open(self) -> None:
        pass

    def _get(self, key: bytes) -> bytes | None:
        return self._disk.get(key)

    def _get_many(self, keys: list[bytes]) -> list[bytes | None]:
        return [self._disk.get(key) for key in keys]

    def _write_batch(self, changes: dict[bytes, bytes | None]) -> None:
        for key, value in changes.items():
            if value is None:
                self._disk.pop(key, None)
            else:
                self._disk[key] = value

    def _iterate(self, from_key: bytes) -> Iterator[tuple[bytes, bytes]]:
        return iter(sorted(pair for pair in self._disk.items() if pair[0] >= from_key))

    def _close(self) -> None:
        pass


class SteppedPipeline(Pipeline):
    """The production pipeline, which can crash before and after its steps that have no effect outside."""

    def __init__(self, steps: Steps, **parts: Any) -> None:
        super().__init__(
            SETTINGS, taxonomy=TAXONOMY, partitions=PARTITIONS, silence=Silence([], after_s=3_600), **parts
        )
        self._steps = steps

    def admit(self, *arguments: Any, **options: Any) -> Any:
        """See `Pipeline.admit`."""
        self._steps.reach("before admit")
        admitted = super().admit(*arguments, **options)
        self._steps.reach("after admit")
        return admitted

    def fold(self, *arguments: Any) -> Any:
        """See `Pipeline.fold`."""
        self._steps.reach("before fold")
        repaired = super().fold(*arguments)
        self._steps.reach("after fold")
        return repaired


class SteppedScorer(FakeScorer):
    """The public double, which stands still before and after it answers."""

    def __init__(self, steps: Steps) -> None:
        super().__init__()
        self._steps = steps

    async def encode(self, release: Release, texts: Any) -> list[bytes]:
        """See `Scorer.encode`."""
        await self._steps.wait("before encode")
        vectors = await super().encode(release, texts)
        await self._steps.wait("after encode")
        return vectors

    async def score(self, release: Release, inputs: Any) -> Any:
        """See `Scorer.score`."""
        await self._steps.wait("before score")
        scores = await super().score(release, inputs)
        await self._steps.wait("after score")
        return scores


class InlineVectors(TextVectors):
    """The cache without its tasks: a worker here has one lane, so no two calls ask for the same text."""

    async def encode(self, release: Release, entries: Mapping[TextHash, TextEntry]) -> dict[TextHash, TextEntry]:
        """See `TextVectors.encode`."""
        held = self.of(release.encoder)
        self.learn(entries)
        if absent := self.missing(release.encoder, entries):
            await self._encode(release, {one: entries[one].text for one in absent})
        return {one: entry.with_vector(release.encoder, held[one]) for one, entry in entries.items()}


class WorldOutbox:
    """Kafka's client. A batch goes out at once or when it is waited for; a crash may leave any prefix of it written."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._waiting: list[Handed] = []

    async def send(self, topic: str, partition: int, records: Iterable[tuple[Any, Any]]) -> Handed:
        """See `Outbox.send`."""
        return await self.send_with_headers(topic, partition, [(key, value, []) for key, value in records])

    async def send_with_headers(
        self, topic: str, partition: int, records: Iterable[tuple[Any, Any, Headers]]
    ) -> Handed:
        """See `Outbox.send_with_headers`."""
        handed = Handed(topic, partition, list(records))
        if handed.left:
            await self._worker.steps.wait(f"before send {topic}")
            self._waiting.append(handed)
            if self._worker.prompt:
                self._write(handed, len(handed.left))
            await self._worker.steps.wait(f"after send {topic}")
        return handed

    async def confirm(self, deliveries: Iterable[Handed]) -> list[int]:
        """Write what is waited for, after what was handed over earlier for the same partition."""
        wanted = list(deliveries)
        await self._worker.steps.wait("before confirm")
        for handed in wanted:
            while handed.left:
                first = next(one for one in self._waiting if one.place == handed.place)
                self._write(first, len(first.left))
        await self._worker.steps.wait("after confirm")
        return [handed.end for handed in wanted]

    def break_off(self, pick: Pick) -> None:
        """Leave of every batch what chance had already brought to Kafka; nothing overtakes within a partition."""
        broken = set()
        for handed in list(self._waiting):
            if handed.place not in broken:
                self._write(handed, pick(len(handed.left) + 1))
                broken |= {handed.place} if handed.left else set()

    def _write(self, handed: Handed, count: int) -> None:
        for record in handed.left[:count]:
            handed.end = self._worker.write(handed.place, *record)
        del handed.left[:count]
        if not handed.left:
            self._waiting.remove(handed)


# ---- workers and their world -----------------------------------------------------------------------------------------


def _driven(work: Callable[[], Coroutine[None, None, None]]) -> Generator[None, None, None]:
    """Begin the work with the first step: who is thrown away before leaves no coroutine that nobody awaited."""
    yield from work().__await__()


class Worker:
    """One process's lane of one partition, from taking over to its end. See `streams.lanes` for what it follows."""

    store_type: type[DiskStore] = DiskStore
    pipeline_type: type[SteppedPipeline] = SteppedPipeline
    outbox_type: type[WorldOutbox] = WorldOutbox

    def __init__(self, world: World, partition: int, disk: Disk, *, prompt: bool, scored: bool) -> None:
        self.world = world
        self.partition = partition
        self.disk = disk
        self.prompt = prompt
        """Whether Kafka gets a batch when it is handed over, or when it is waited for."""
        self.generation = world.generations[partition]
        self.steps = Steps()
        self.scorer = SteppedScorer(self.steps)
        self.outbox = self.outbox_type(self)
        self.store = self.store_type(disk, self.steps)
        vectors, metrics = InlineVectors(self.scorer), Metrics()
        self._vectors = vectors
        self.pipeline = self.pipeline_type(
            self.steps,
            outbox=self.outbox,
            scorer=self.scorer,
            vectors=vectors,
            shadow=Shadow(0.0, scorer=self.scorer, vectors=vectors, taxonomy=TAXONOMY, metrics=metrics),
            metrics=metrics,
        )
        self.pipeline.release = RELEASE if scored else None
        self._position = self._first_position()
        self._done: Counter[str] = Counter()
        self._life: Generator[None, None, None] | None = _driven(self._restore)
        self.alive = True

    @property
    def busy(self) -> bool:
        """Whether there is something left of what it was told to do."""
        return self._life is not None

    @property
    def owner(self) -> bool:
        """Whether the partition is still this worker's."""
        return self.generation == self.world.generations[self.partition]

    def go(self, most: int = 1_000) -> None:
        """Drive through at most so many steps; what is raised ends the process."""
        while self._life is not None and most:
            most -= 1
            try:
                self._life.send(None)
            except StopIteration:
                self._life = None
            except (Crash, XplatError):
                self.end()

    def end(self) -> None:
        """End the process where it stands."""
        self.alive = False
        if self._life is not None:
            self._life.close()
            self._life = None
        self.outbox.break_off(self.world.pick)

    def handle(self, counts: Mapping[str, int], *, commit: bool) -> None:
        """Begin a chunk of so many records of each topic, to be driven on by `go`."""
        assert not self.busy
        log = self.world.logs[self.partition]
        ends = {
            topic: end
            for topic in log
            if (end := min(len(log[topic]), self._position[topic] + counts.get(topic, 0))) > self._position[topic]
        }
        records = [record for topic, end in ends.items() for record in log[topic][self._position[topic] : end]]
        self._position.update({topic: end - self._position[topic] for topic, end in ends.items()})
        if records:
            self._life = _driven(partial(self._chunk, records, ends, commit=commit))

    def rescore(self) -> None:
        """Begin to score again whose profiles are degraded, to be driven on by `go`."""
        assert not self.busy
        if self.store.has_pending:
            self._life = _driven(self._rescore)

    def write(self, place: tuple[str, int], key: bytes, value: bytes | None, headers: Headers) -> int:
        """Append a record to Kafka. Returns the offset after it."""
        return self.world.append(place, Written(key, value, headers, not self.owner))

    def _first_position(self) -> Counter[str]:
        return Counter(self.world.committed[self.partition])

    async def _restore(self) -> None:
        place = CHANGELOG, self.partition
        await self.steps.wait("before barrier")
        end, position = self.write(place, BARRIER_KEY, None, []), self.store.changelog_position()
        changelog = self.world.topics[place]
        while position < end:
            some = changelog[position : min(end, position + 4)]
            position += len(some)
            await self.steps.wait("before restore")
            self.store.restore([(one.key, one.value) for one in some if one is not None], position=position)
            self.steps.reach("after restore")
        if self.store.is_dirty:
            await self.pipeline.flush(self.store, self.partition)

    async def _chunk(self, records: list[SimpleNamespace], ends: dict[str, int], *, commit: bool) -> None:
        """Gather two chunks and take them through the other steps together, as a lane does that is behind."""
        admitted = self.pipeline.admit(self.store, self.partition, records[:1])
        if records[1:]:
            await self.steps.wait("between chunks")
            self.pipeline.admit(self.store, self.partition, records[1:], into=admitted)
        await self.pipeline.finish(self.store, self.partition, admitted)
        await self._acknowledge(ends, commit=commit)

    async def _rescore(self) -> None:
        """Have the texts read that some who are pending need, and score them."""
        users, release = self.store.pending(limit=2), self.pipeline.release
        if release is not None:
            needed = {one for user_id in users for one in self.store.user(user_id).window.text_hashes()}
            with suppress(TritonUnavailable):
                await self._vectors.encode(release, self.pipeline.reading.lacking(self.store, needed, release))
        await self.pipeline.rescore(self.store, self.partition, users)

    async def _acknowledge(self, ends: dict[str, int], *, commit: bool) -> None:
        for topic, end in ends.items():
            await self.steps.wait("before ack")
            self._done[topic] = end
            self.steps.reach("after ack")
        if commit:
            await self.steps.wait("before commit")
            if self.owner:
                self.world.committed[self.partition].update(
                    {topic: end - self.world.committed[self.partition][topic] for topic, end in self._done.items()}
                )
            await self.steps.wait("after commit")


class World:
    """Two partitions: their logs, what workers wrote, their hosts' disks, and who owns them."""

    def __init__(self, pick: Pick, worker_type: type[Worker] = Worker) -> None:
        self.pick = pick
        self._worker_type = worker_type
        self.topics: defaultdict[tuple[str, int], list[Written | None]] = defaultdict(list)
        self.logs: list[defaultdict[str, list[SimpleNamespace]]] = [defaultdict(list) for _ in range(PARTITIONS)]
        self.published: list[tuple[Item, SimpleNamespace]] = []
        self.committed: list[Counter[str]] = [Counter() for _ in range(PARTITIONS)]
        self.generations = [0] * PARTITIONS
        self.disks: list[list[Disk]] = [[] for _ in range(PARTITIONS)]
        self.workers: list[Worker | None] = [None] * PARTITIONS
        self.paused: list[Worker] = []
        """Zombies: workers that stand still in the middle of a chunk while another one has their partition."""
        self.steps: Counter[str] = Counter()

    def publish(self, item: Item, partition: int) -> None:
        """Append a record to the log of its topic."""
        self.published.append((item, self._logged(item.topic, partition, item.key, item.value, ())))

    def append(self, place: tuple[str, int], record: Written) -> int:
        """Append what a worker wrote. Returns the offset after it."""
        if place[0] == REKEYED:
            self._logged(*place, record.key, record.value, tuple(record.headers))
        held = self.topics[place]
        held.append(record)
        return len(held)

    def _logged(self, topic: str, partition: int, key: bytes, value: bytes | None, headers: Any) -> SimpleNamespace:
        log = self.logs[partition][topic]
        record = SimpleNamespace(
            topic=topic,
            partition=partition,
            offset=len(log),
            timestamp=RECEIVED_MS,
            key=key,
            value=value,
            headers=headers,
        )
        log.append(record)
        return record

    def take_over(self, partition: int, *, lost: bool = False, prompt: bool = True, scored: bool = False) -> Worker:
        """Give the partition to a new worker, on a host that had it before or, where `lost`, on a fresh one."""
        former = self.workers[partition]
        if former is not None and former.alive:
            self._retire(former)
        self.generations[partition] += 1
        used = [id(worker.disk) for worker in self.paused]
        free = [disk for disk in self.disks[partition] if id(disk) not in used]
        if lost or not free:
            disk = Disk()
            self.disks[partition].append(disk)
        else:
            disk = free[-1 - self.pick(len(free))]
        made = self.workers[partition] = self._worker_type(self, partition, disk, prompt=prompt, scored=scored)
        return made

    def _retire(self, worker: Worker) -> None:
        if worker.busy:
            self.paused.append(worker)
        else:
            self._end(worker)

    def _end(self, worker: Worker) -> None:
        if worker.alive:
            worker.end()
        self.steps.update(worker.steps.names)

    def wake(self, zombie: Worker, most: int) -> None:
        """Let a paused worker go on, though its partition is another's, and perhaps with the chunk behind that."""
        zombie.go(most)
        if zombie.alive and not zombie.busy and self.pick(3):
            zombie.handle(dict.fromkeys(self.logs[zombie.partition], 1), commit=True)
            zombie.go(most)
        if not zombie.busy:
            self.paused.remove(zombie)
            self._end(zombie)

    def compact(self, partition: int) -> None:
        """Remove what has a newer record under its key from the changelog, as Kafka may at any time."""
        held = self.topics[CHANGELOG, partition]
        last = {record.key: offset for offset, record in enumerate(held) if record is not None}
        for offset, record in enumerate(held):
            if record is not None and last[record.key] != offset:
                held[offset] = None

    def settle(self) -> None:
        """Let everybody end, then let one new worker a partition read what is left, until nothing is."""
        for zombie in list(self.paused):
            self.wake(zombie, 1_000)
        for partition, worker in enumerate(self.workers):
            if worker is not None:
                self._end(worker)
                self.workers[partition] = None
            self.take_over(partition, lost=bool(self.pick(2)), prompt=bool(self.pick(2)))
        for _ in range(PARTITIONS):  # what one forwards to the other is read in the next round
            for partition, worker in enumerate(self.workers):
                assert worker is not None
                worker.go()
                while any(self.committed[partition][topic] < len(log) for topic, log in self.logs[partition].items()):
                    worker.handle(dict.fromkeys(self.logs[partition], 3), commit=True)
                    assert worker.busy, "records are left that nobody will read"
                    worker.go()
                    assert worker.alive

    # ---- what has to hold --------------------------------------------------------------------------------------------

    def expected(self) -> dict[str, BehaviorWindow]:
        """Fold the log offline: the window of everybody whose events were admitted."""
        rows: defaultdict[str, list[tuple[str, Row]]] = defaultdict(list)
        for item, _ in self.published:
            if item.row is not None:
                rows[item.user].append(item.row)
        return {user: BehaviorWindow(SPEC).fold(added) for user, added in rows.items()}

    def check(self) -> None:
        """Compare everything written with the log. Call `settle` first."""
        self.check_texts()
        expected = self.expected()
        for partition in range(PARTITIONS):
            held = [record for record in self.topics[CHANGELOG, partition] if record is not None]
            mine = {user for user in expected if partition_for(user.encode(), PARTITIONS) == partition}
            found = {record.key[1:].decode() for record in held if record.key.startswith(USER_PREFIX)}
            assert found == mine, "the changelog has other users than the log"
            profiles = self.topics[PROFILES, partition]
            assert {record.key.decode() for record in profiles if record is not None} == mine, "profiles"
            for user in mine:
                self._check_user(
                    expected[user],
                    [record for record in held if record.key == user_key(UserId(user))],
                    [record for record in profiles if record is not None and record.key == user.encode()],
                )
                worker = self.workers[partition]
                assert worker is not None
                assert worker.store.user(UserId(user)).window == expected[user], "the recovered state"
        self._check_letters()
        self._check_profile_revisions()

    def _check_profile_revisions(self) -> None:
        """See that no user's profiles go back to a lower revision where no paused worker wrote any."""
        last: dict[bytes, int] = {}
        spoiled = {record.key for partition in range(PARTITIONS) for record in self._all(partition) if record.stale}
        for record in (one for partition in range(PARTITIONS) for one in self.topics[PROFILES, partition] if one):
            if record.value is not None and not {record.key, user_key(UserId(record.key.decode()))} & spoiled:
                revision = decode_profile(record.value).data.revision
                assert revision >= last.get(record.key, 0), "a profile's revision goes back"
                last[record.key] = revision

    def _all(self, partition: int) -> list[Written]:
        return [one for topic in (CHANGELOG, PROFILES) for one in self.topics[topic, partition] if one is not None]

    def check_texts(self) -> None:
        """See that every text a window refers to is in the changelog. Call `settle` first."""
        for user, window in self.expected().items():
            held = self.topics[CHANGELOG, partition_for(user.encode(), PARTITIONS)]
            texts = {record.key for record in held if record is not None and record.key.startswith(TEXT_PREFIX)}
            assert {text_key(one) for one in window.text_hashes()} <= texts, "texts are missing from the changelog"

    @staticmethod
    def _check_user(expected: BehaviorWindow, states: list[Written], profiles: list[Written]) -> None:
        read = [UserState.unpack(SPEC, state.value) for state in states if state.value is not None]
        assert reduce(UserState.merge, read).window == expected, "all changelog records of a user together"
        published = [decode_profile(profile.value).data for profile in profiles if profile.value is not None]
        assert read[-1].window == expected, "the last changelog record"
        if not profiles[-1].stale:
            assert published[-1].window.digest == window_digest(bytes(expected)), "the last profile"
        if not any(record.stale for record in (*states, *profiles)):
            revisions = [state.publication.revision for state in read]
            assert revisions == sorted(revisions), "a revision in the changelog goes back"

    def _check_letters(self) -> None:
        letters = {
            (headers["topic"].decode(), int(headers["partition"]), int(headers["offset"]))
            for record in self.topics[REJECTED, 0]
            if record is not None and (headers := dict(record.headers))
        }
        bad = {(one.topic, one.partition, one.offset) for item, one in self.published if item.rejected}
        assert letters == bad, "dead letters"


def play(world: World) -> None:
    """Live through one history that the world's `pick` draws, to its end, and check it."""
    pick = world.pick
    for partition in range(PARTITIONS):
        world.take_over(partition, prompt=bool(pick(2)), scored=not pick(4))
    for _ in range(3 + pick(8)):
        for _ in range(pick(4)):
            item = ITEMS[pick(len(ITEMS))]
            world.publish(item, partition_for(item.key, PARTITIONS) if pick(8) else pick(PARTITIONS))
        partition = pick(PARTITIONS)
        worker = world.workers[partition]
        if worker is None or not worker.alive:
            worker = world.take_over(partition, lost=not pick(3), prompt=bool(pick(2)), scored=not pick(4))
        _work(worker, pick)
        if worker.busy and not pick(3):
            world.take_over(partition, lost=bool(pick(2)), prompt=bool(pick(2)), scored=not pick(4))
        elif world.paused and not pick(4):
            world.wake(world.paused[pick(len(world.paused))], 1 + pick(12))
    world.settle()
    world.check()


def _work(worker: Worker, pick: Pick) -> None:
    """Let a worker finish what it is at, handle a chunk and score again, as far as chance lets it."""
    if not pick(3):
        worker.steps.last = len(worker.steps.names) + 1 + pick(24)
    worker.go(pick(30) or 1_000)
    if worker.alive and not worker.busy:
        worker.handle({topic: pick(4) for topic in worker.world.logs[worker.partition]}, commit=bool(pick(4)))
        worker.scorer.fail_next(not pick(3))
        worker.go(pick(30) or 1_000)
    if worker.alive and not worker.busy and not pick(2):
        worker.rescore()
        worker.go(pick(30) or 1_000)
