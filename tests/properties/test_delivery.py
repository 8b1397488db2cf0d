"""The delivery promise, by histories: whatever crashes where, state and profiles end as what the log says.

Three machines. `core_history` is the order of a chunk's effects and nothing else, over the window law: thousands a
second. `tests.histories.World` runs the production pipeline and store: hundreds a second. The rule-based machine
drives the same world under Hypothesis, which makes what it finds small. `-s` shows the rates.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from functools import reduce
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from tests.histories import (
    CHANGELOG,
    ITEMS,
    PARTITIONS,
    SPEC,
    DiskStore,
    SteppedPipeline,
    Worker,
    World,
    WorldOutbox,
    play,
)
from xplat_stream.event import UserId
from xplat_stream.kafka.codec import decode_profile
from xplat_stream.kafka.consumer import partition_for
from xplat_stream.kafka.topics import PROFILES
from xplat_stream.state import Publication, UserState, user_key
from xplat_stream.window import BehaviorWindow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tests.histories import Pick

CORE_S, PRODUCTION_S = 2.0, 3.0
"""How long the two machines run in `make test`."""

USER = ITEMS[0].user
HOME = partition_for(USER.encode(), PARTITIONS)
GOOD = [item for item in ITEMS if item.user == USER and item.row is not None and item.topic == ITEMS[0].topic]
ROWS = [item.row for item in ITEMS if item.user == USER and item.row is not None]


def chance(seed: int) -> Pick:
    """Return a `pick` that draws the same history for the same seed."""
    draw = random.Random(seed).random
    return lambda number: int(draw() * number)


# ---- the pure core ---------------------------------------------------------------------------------------------------

NOBODY = UserState(BehaviorWindow(SPEC), Publication())


def core_history(  # noqa: C901, PLR0915 - one page, because its order is what is tested
    pick: Pick, *, forget: str = "", zombies: bool = True
) -> None:
    """Live through one history of one user's log and check it. `forget`: the step of recovery or order to leave out.

    A worker's life is a list of effects; a crash runs a part of it, a zombie the rest of it later.
    """
    log = [ROWS[pick(len(ROWS))] for _ in range(1 + pick(8))]
    disks: list[dict[str, Any]] = [{"state": NOBODY, "position": 0}]
    changelog: list[UserState] = []
    profiles: list[BehaviorWindow] = []
    committed = generation = 0
    asleep: list[Iterator[None]] = []
    stale = False

    def life(disk: dict[str, Any], mine: int, count: int) -> Iterator[None]:
        nonlocal committed, stale
        end = len(changelog)
        for record in changelog[disk["position"] : end]:
            disk["state"] = record if forget == "merge" else disk["state"].merge(record)
        disk["position"] = end
        first, state = committed, disk["state"]
        while True:
            yield
            chunk = log[first : first + count]
            window = state.window.fold(chunk)
            changed = window != state.window
            state = UserState(window, state.publication._replace(revision=state.publication.revision + 1))
            disk["state"] = state
            if forget == "confirm" and mine == generation:
                committed = first + len(chunk)
            yield
            if changed or forget != "unchanged":
                changelog.append(state)
                stale |= mine != generation
            yield
            profiles.append(window)
            stale |= mine != generation
            yield
            if mine != generation:
                return
            committed = first = first + len(chunk)
            yield

    def run(one: Iterator[None], steps: int) -> bool:
        return all(next(one, one) is None for _ in range(steps))

    for _ in range(2 + pick(6)):
        generation += 1
        used = pick(len(disks) + 1)
        if used == len(disks) or asleep:
            disks.append({"state": NOBODY, "position": 0})
            used = len(disks) - 1
        worker = life(disks[used], generation, 1 + pick(3))
        going = run(worker, pick(14))
        if asleep and not pick(2):
            run(asleep.pop(), 1 + pick(5))
        if zombies and going and not pick(3):
            asleep.append(worker)
    generation += 1
    disk = disks[0] if pick(2) and not asleep else {"state": NOBODY, "position": 0}
    run(life(disk, generation, len(log)), 6 if committed < len(log) else 1)

    expected = NOBODY.window.fold(log)
    assert committed == len(log)
    assert changelog, "nothing was written"
    assert profiles, "nothing was published"
    assert disk["state"].window == expected, "the recovered state"
    assert reduce(UserState.merge, changelog).window == expected, "all changelog records together"
    if not stale:
        assert changelog[-1].window == expected, "the last changelog record"
        assert profiles[-1] == expected, "the last profile"
        revisions = [state.publication.revision for state in changelog]
        assert revisions == sorted(revisions), "a revision in the changelog goes back"


def histories_in(seconds: float, live: Callable[[Pick], Any], first: int = 0) -> int:
    """Live through histories for so long and return how many; the seed of one that fails is in its traceback."""
    end, seed = time.perf_counter() + seconds, first
    while time.perf_counter() < end:
        try:
            live(chance(seed))
        except AssertionError as error:
            error.add_note(f"replay with chance({seed})")
            raise
        seed += 1
    return seed - first


def test_core_histories() -> None:
    """Thousands of histories a second of the chunk order over the law end in the window that the log says."""
    lived = histories_in(CORE_S, core_history)
    print(f"\npure core: {lived / CORE_S:,.0f} histories a second")  # noqa: T201 - a figure to report
    assert lived > 0


@pytest.mark.parametrize("forget", ["merge", "confirm", "unchanged"])
def test_a_core_that_forgets_a_step_is_found_out(forget: str) -> None:
    """Overwriting in recovery, committing before the changelog, or sparing an unchanged record loses events."""
    with pytest.raises(AssertionError):
        histories_in(60, lambda pick: core_history(pick, forget=forget))


# ---- the production pipeline -----------------------------------------------------------------------------------------


def test_production_histories() -> None:
    """Hundreds of histories a second of the real pipeline and store end as the log says, dead letters included."""
    steps: Counter[str] = Counter()

    def live(pick: Pick) -> None:
        world = World(pick)
        play(world)
        steps.update(world.steps)

    lived = histories_in(PRODUCTION_S, live)
    print(f"\nproduction code: {lived / PRODUCTION_S:,.0f} histories a second")  # noqa: T201 - a figure to report
    for step in (
        "restore",
        "admit",
        "fold",
        "write",
        f"send {CHANGELOG}",
        "encode",
        "score",
        "confirm",
        "ack",
        "commit",
    ):
        assert steps[f"before {step}"] > steps[f"after {step}"] > 0, f"nobody crashed inside {step}"


def _world(count: int, worker_type: type[Worker] = Worker, *, seed: int = 0) -> World:
    """Return a world with a log of one user, and nobody who reads it yet."""
    world = World(chance(seed), worker_type)
    for item in GOOD[:count]:
        world.publish(item, HOME)
    return world


def _steps_of_two_chunks(*, scored: bool) -> list[str]:
    world = _world(4)
    worker = world.take_over(HOME, scored=scored)
    worker.go()
    for _ in range(2):
        worker.handle({GOOD[0].topic: 2}, commit=True)
        worker.go()
        worker.rescore()
        worker.go()
    return worker.steps.names


@pytest.mark.parametrize("scored", [False, True], ids=["no release", "scored"])
@pytest.mark.parametrize("prompt", [False, True], ids=["written when waited for", "written when handed over"])
@pytest.mark.parametrize("lost", [False, True], ids=["same disk", "host lost"])
def test_a_crash_at_every_step_and_again_at_every_step(*, scored: bool, prompt: bool, lost: bool) -> None:
    """Of two chunks, each scored once its texts are read, ended before or after any step, and again where repaired."""
    count = len(_steps_of_two_chunks(scored=scored))
    assert count > 30
    for first in range(1, count + 1):
        for second in range(1, count + 1, 1 if first % 8 == 0 else 9):
            world = _world(4, seed=first * 1000 + second)
            for last in (first, second):
                worker = world.take_over(HOME, lost=lost, prompt=prompt, scored=scored)
                worker.steps.last = last
                while worker.alive and (worker.busy or world.committed[HOME][GOOD[0].topic] < 4):
                    worker.go()
                    if worker.alive:
                        worker.rescore()
                        worker.go()
                    if worker.alive:
                        worker.handle({GOOD[0].topic: 2}, commit=True)
            world.settle()
            world.check()


@pytest.mark.parametrize("prompt", [False, True], ids=["written when waited for", "written when handed over"])
@pytest.mark.parametrize("lost", [False, True], ids=["same disk", "host lost"])
def test_whoever_waits_for_the_encoder_gets_a_scored_profile(*, prompt: bool, lost: bool) -> None:
    """Wherever a process ends, between the chunk's acknowledgement and the scored profile too: a successor makes it."""
    topic, finished = GOOD[0].topic, 0
    for last in range(1, len(_steps_of_two_chunks(scored=True)) + 1):
        world = _world(4, seed=last)
        worker = world.take_over(HOME, prompt=prompt, scored=True)
        worker.steps.last = last
        worker.go()
        for _ in range(2):
            for begin in (lambda one: one.handle({topic: 2}, commit=True), Worker.rescore):
                if worker.alive:
                    begin(worker)
                    worker.go()
        finished += world.committed[HOME][topic] == 4
        worker = world.take_over(HOME, lost=lost, prompt=prompt, scored=True)
        worker.go()
        while world.committed[HOME][topic] < 4:
            worker.handle({topic: 2}, commit=True)
            worker.go()
        while worker.store.pending(limit=1):
            worker.rescore()
            worker.go()
        written = world.topics[PROFILES, HOME][-1]
        assert written is not None
        assert written.value is not None
        assert decode_profile(written.value).data.status == "fresh"
        world.settle()
        world.check()
    assert finished > 3, "no process ended after all was acknowledged"


@pytest.mark.parametrize("prompt", [False, True], ids=["written when waited for", "written when handed over"])
def test_a_worker_paused_at_every_step_finishes_after_its_successor(*, prompt: bool) -> None:
    """What it still writes is stale; it acknowledges nothing, and what is recovered afterwards is what the log says."""
    count = len(_steps_of_two_chunks(scored=True))
    stale = 0
    for pause in range(1, count):
        world = _world(4, seed=pause)
        zombie = world.take_over(HOME, prompt=prompt, scored=True)
        zombie.go()
        zombie.handle({GOOD[0].topic: 2}, commit=True)
        zombie.go(pause)
        successor = world.take_over(HOME, prompt=prompt, scored=True)
        successor.go()
        successor.handle({GOOD[0].topic: 3}, commit=True)
        successor.go()
        committed = world.committed[HOME].copy()
        for one in list(world.paused):
            world.wake(one, 1_000)
        assert world.committed[HOME] == committed
        stale += sum(record is not None and record.stale for record in world.topics[CHANGELOG, HOME])
        world.settle()
        world.check()
    assert stale > 0


class AckFirst(Worker):
    """Acknowledges a chunk before it is handled."""

    async def _chunk(self, records: Any, ends: dict[str, int], *, commit: bool) -> None:
        await self._acknowledge(ends, commit=commit)
        await self.pipeline.handle(self.store, self.partition, records)


class Unconfirmed(WorldOutbox):
    """Believes that what was handed over is written."""

    async def confirm(self, deliveries: Iterable[Any]) -> list[int]:
        return [handed.end for handed in deliveries]


class Overwriting(DiskStore):
    """Takes the changelog's last record for the state, as stock Faust does."""

    def _merged(self, key: bytes, held: bytes | None, values: Any) -> bytes | None:  # noqa: ARG002 - as overridden
        return values[-1]


class Sparing(SteppedPipeline):
    """Writes no record of a window that did not change."""

    def fold(self, store: Any, partition: Any, admitted: Any, release: Any) -> Any:
        before = {user_id: store.user(user_id).window for user_id in admitted.additions}
        found = super().fold(store, partition, admitted, release)
        for user_id, window in before.items():
            if store.user(user_id).window == window:
                store._dirty.pop(user_key(user_id), None)
        return found


class Ahead(Worker):
    """Reads on where its predecessor had read, not where it had committed."""

    def _first_position(self) -> Counter[str]:
        log = self.world.logs[self.partition]
        return Counter({topic: min(len(log[topic]), end + 1) for topic, end in super()._first_position().items()})


BROKEN: dict[str, dict[str, Any]] = {
    "acknowledged before handled": {"": AckFirst},
    "acknowledged before confirmed": {"outbox_type": Unconfirmed},
    "overwritten in recovery": {"store_type": Overwriting},
    "unchanged windows not written": {"pipeline_type": Sparing},
    "read on past the commit": {"": Ahead},
}


def _broken(name: str) -> type[Worker]:
    parts = BROKEN[name]
    return parts.get("") or type("Broken", (Worker,), parts)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_worker_is_found_out(name: str) -> None:
    """Each of these keeps the promise as long as nothing fails; a history in which something does is found."""
    with pytest.raises(AssertionError):
        histories_in(60, lambda pick: play(World(pick, _broken(name))))


def test_texts_survive_two_crashes_before_they_are_in_the_changelog() -> None:
    """A text whose write to RocksDB survived the process, and whose changelog record did not, is sent again."""
    for first in range(1, len(_steps_of_two_chunks(scored=False))):
        world = _world(4, seed=first)
        for lost, steps in ((False, first), (False, first - 2), (False, None), (True, None)):
            worker = world.take_over(HOME, lost=lost, prompt=False)
            worker.steps.last = steps
            worker.go()
            if worker.alive:
                worker.handle({GOOD[0].topic: 4}, commit=True)
                worker.go()
        world.settle()
        world.check_texts()


def test_a_worker_that_meets_records_of_another_stops() -> None:
    """One that goes on after losing its partition may not note a position behind what its successor wrote."""
    world = _world(3)
    zombie = world.take_over(HOME)
    zombie.go()
    zombie.handle({GOOD[0].topic: 1}, commit=True)
    zombie.go(1)
    successor = world.take_over(HOME)
    successor.go()
    successor.handle({GOOD[0].topic: 3}, commit=True)
    successor.go()
    zombie.go()
    assert not zombie.alive
    world.paused.remove(zombie)
    successor.end()
    world.disks[HOME] = [zombie.disk]
    back = world.take_over(HOME)
    assert back.disk is zombie.disk
    back.go()
    assert back.store.user(UserId(USER)).window == world.expected()[USER]


# ---- under Hypothesis ------------------------------------------------------------------------------------------------


class Delivery(RuleBasedStateMachine):
    """The world, one decision at a time, so that a failing history can be made small."""

    worker_type: type[Worker] = Worker
    partitions = st.integers(0, PARTITIONS - 1)
    how = st.booleans()

    def __init__(self) -> None:
        super().__init__()
        self.luck = 0
        self.world = World(lambda number: self.luck % number, self.worker_type)
        for partition in range(PARTITIONS):
            self.world.take_over(partition)

    @rule(numbers=st.lists(st.integers(0, len(ITEMS) - 1), min_size=1, max_size=5), elsewhere=how)
    def publish(self, numbers: list[int], *, elsewhere: bool) -> None:
        """Platforms publish, some of it to a partition that is not the user's."""
        for item in map(ITEMS.__getitem__, numbers):
            self.world.publish(item, (partition_for(item.key, PARTITIONS) + elsewhere) % PARTITIONS)

    @rule(partition=partitions, counts=st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)), commit=how)
    def handle(self, partition: int, counts: tuple[int, ...], *, commit: bool) -> None:
        """A worker that is idle takes the next records."""
        worker = self.world.workers[partition]
        assert worker is not None
        if worker.alive:
            worker.go(0 if worker.busy else 1)
            if not worker.busy:
                worker.handle(dict(zip(self.world.logs[partition], counts, strict=False)), commit=commit)

    @rule(
        partition=partitions,
        most=st.just(1_000) | st.integers(1, 12),
        fault=st.sampled_from(["", "scorer", "crash"]),
        luck=st.integers(0, 3),
    )
    def go(self, partition: int, most: int, fault: str, luck: int) -> None:
        """A worker goes on for some steps; a call of its scorer may fail, or it ends after them."""
        self.luck = luck
        worker = self.world.workers[partition]
        assert worker is not None
        worker.scorer.fail_next(fault == "scorer")
        worker.go(most)
        if fault == "crash" and worker.alive:
            worker.end()

    @rule(partition=partitions, lost=how, prompt=how, scored=how)
    def take_over(self, partition: int, *, lost: bool, prompt: bool, scored: bool) -> None:
        """Another worker gets the partition; if the former one was busy, it stands still from here on."""
        self.world.take_over(partition, lost=lost, prompt=prompt, scored=scored).go()

    @precondition(lambda self: self.world.paused)
    @rule(most=st.integers(1, 12))
    def wake(self, most: int) -> None:
        """The worker that stood still longest goes on."""
        self.world.wake(self.world.paused[0], most)

    @precondition(
        lambda self: not any(record.stale for held in self.world.topics.values() for record in held if record)
    )
    @rule(partition=partitions)
    def compact(self, partition: int) -> None:
        """Kafka compacts the changelog. Not after a stale record: what that can cost is told in delivery.md."""
        self.world.compact(partition)

    def teardown(self) -> None:
        """After recovery and replay, everything is what the log says."""
        self.world.settle()
        self.world.check()


RULES = settings(max_examples=120, stateful_step_count=24, deadline=None, report_multiple_bugs=False)


def test_rules() -> None:
    """No sequence of publishing, crashing, pausing, waking, taking over and compacting breaks the promise."""
    run_state_machine_as_test(Delivery, settings=RULES)


def test_rules_find_a_broken_worker() -> None:
    """Hypothesis finds what is wrong; where a history fails unexpectedly, it goes on to the shortest that does."""
    broken = type("Broken", (Delivery,), {"worker_type": _broken("acknowledged before confirmed")})
    found = settings(RULES, max_examples=2_000, database=None, derandomize=True, phases=[Phase.generate])
    with pytest.raises(AssertionError):
        run_state_machine_as_test(broken, settings=found)
