"""Who is scored again after another release took over, in which order, how fast, and when that is done."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import given

from streams import active as active_module
from streams.migration import Budget, Migration, Progress
from streams.store import PartitionStore
from tests.strategies import publications, windows
from xplat_stream.event import UserId
from xplat_stream.settings import ReleaseSettings
from xplat_stream.state import Publication, UserState, glance
from xplat_stream.testing import START, make_event
from xplat_stream.window import BehaviorWindow, WindowSpec, row_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SPEC = WindowSpec(per_platform=5, horizon=timedelta(days=2))
HOUR_MS = 3_600_000
START_MS = int(START.timestamp() * 1000)


class Bench:
    """A partition's users, and a migration whose clocks move when told to."""

    def __init__(self, folder: Path) -> None:
        self.store = PartitionStore(folder / "partition-0", SPEC, cached_users=1000)
        self.at_s = 0.0
        self.now_s = START.timestamp() + 1e6
        self.budget = Budget(100.0, clock=lambda: self.at_s)
        self.waiting: set[UserId] = set()
        self.at_s = 60.0
        self.migration = self.begin()

    def begin(self) -> Migration:
        """Return what a worker that took the partition over begins with."""
        return Migration(
            self.store,
            self.budget,
            ReleaseSettings(active_days=1.0),
            waits=self.waiting.__contains__,
            clock=lambda: self.at_s,
            now=lambda: self.now_s,
        )

    def put(self, user: str, *, hour: int, release: int, pending: bool = False) -> None:
        """Keep a user whose newest event was in this hour and whom this release scored last."""
        event = make_event(user_id=user, occurred_at=START_MS + hour * HOUR_MS)
        window = BehaviorWindow(SPEC).fold([("shop", row_of(event))])
        self.store.put_user(UserId(user), UserState(window, Publication(1, release, (1,), pending)))
        self.store.write()

    def score(self, users: list[UserId], release: int) -> None:
        """Let a release score users, as the pipeline does."""
        for user in users:
            state = self.store.user(user)
            self.store.put_user(user, UserState(state.window, Publication(2, release, (1,))))
        self.store.write()
        self.migration.note(len(users))

    def all_of(self, release: int, rounds: int = 200, *, withdrawn: int = 0) -> list[list[UserId]]:
        """Score whoever is handed out, a second a round, and return the batches."""
        batches = []
        for _ in range(rounds):
            if users := self.migration.take(release, withdrawn):
                batches.append(users)
                self.score(users, release)
            self.at_s += 1.0
        return batches


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """Yield an empty partition."""
    made = Bench(tmp_path)
    yield made
    made.store.close()


@given(window=windows(SPEC), publication=publications())
def test_a_glance_says_what_the_state_says(window: BehaviorWindow, publication: Publication) -> None:
    """Release, still-to-score flag and T are read off the packed state without unpacking it."""
    state = UserState(window, publication)
    assert glance(state.pack()) == state.glance()


@pytest.mark.parametrize("cut", [0, 5, 20, 70])
def test_a_glance_at_damage_says_so(cut: int) -> None:
    """Packed states that end too early are refused, not misread."""
    window = BehaviorWindow(SPEC).fold([("shop", row_of(make_event())), ("video", row_of(make_event()))])
    with pytest.raises(ValueError, match=r"format|ends inside"):
        glance(UserState(window, Publication(1)).pack()[:cut])


def test_a_budget_grants_its_rate(bench: Bench) -> None:
    """A second grants what it says, and no more than a second's at once; what is given back is granted again."""
    budget = Budget(100.0, clock=lambda: bench.at_s)
    granted = 0
    for _ in range(100):
        bench.at_s += 0.1
        granted += budget.take(64)
    assert granted == pytest.approx(1000, abs=25)
    wait_s = budget.wait_s(64)
    assert wait_s == pytest.approx(0.64, abs=0.12)
    budget.give_back(3)
    assert wait_s - budget.wait_s(64) == pytest.approx(0.03)


def test_what_was_not_taken_is_caught_up_with_at_twice_the_rate(bench: Bench) -> None:
    """A worker that was idle for long does not begin with a second's worth of users at once."""
    budget = Budget(100.0, clock=lambda: bench.at_s)
    bench.at_s += 60.0
    began = bench.at_s
    ends = []
    for _ in range(51):
        assert budget.take(8) == 8
        assert budget.take(8) == 0
        while (wait_s := budget.wait_s(8)) > 0:
            bench.at_s += wait_s
        ends.append(bench.at_s - began)
    assert ends[9] == pytest.approx(10 * 8 / 200)
    assert ends[-1] == pytest.approx((52 * 8 - 100) / 100, abs=0.01)


def test_active_users_of_another_release_come_most_recent_first(bench: Bench) -> None:
    """The inactive, the degraded and those on the release already are left alone."""
    for hour in (1, 40, 50, 45, 48):
        bench.put(f"u{hour}", hour=hour, release=1)
    bench.put("done", hour=49, release=2)
    bench.put("degraded", hour=49, release=1, pending=True)
    assert bench.all_of(2) == [["u50", "u48", "u45", "u40"]]
    assert bench.migration.progress == Progress(2, active=6, scored=5, settled=False)
    bench.put("degraded", hour=49, release=2)
    assert bench.all_of(2) == []
    assert bench.migration.progress == Progress(2, active=6, scored=6, settled=True)


def test_who_waits_for_scoring_is_moved_like_the_others(bench: Bench) -> None:
    """Within the budget and not only when scoring is due; who was scored or degraded meanwhile is left out."""
    for hour in (47, 48, 49, 50):
        bench.put(f"u{hour}", hour=hour, release=1, pending=True)
        bench.waiting.add(UserId(f"u{hour}"))
    bench.put("else", hour=46, release=1)
    assert bench.migration.take(2) == []
    bench.put("u48", hour=48, release=2)
    bench.waiting.remove(UserId("u47"))
    held_s = bench.budget.wait_s(100)
    users = bench.migration.take(2)
    assert users == ["u50", "u49", "else"]
    assert bench.budget.wait_s(100) - held_s == pytest.approx(len(users) / 100)
    bench.score(users, 2)
    assert bench.migration.take(2) == []
    assert bench.migration.progress == Progress(2, active=5, scored=4, settled=False)


def test_all_are_settled_only_by_a_look_at_all(bench: Bench) -> None:
    """After the last one was scored, everyone is looked at once more before it is said that all are through."""
    bench.put("u", hour=1, release=1)
    assert bench.migration.take(2) == []
    assert bench.migration.progress == Progress(2, 1, 0, settled=False)
    users = bench.migration.take(2)
    bench.score(users, 2)
    assert bench.migration.progress == Progress(2, 1, 1, settled=False)
    assert bench.migration.take(2) == []
    assert bench.migration.progress == Progress(2, 1, 1, settled=True)
    assert bench.migration.wait_s(2) == 1.0


def test_the_rate_is_kept(bench: Bench) -> None:
    """A hundred a second: a thousand users take ten seconds."""
    for number in range(1000):
        bench.put(f"u{number:04}", hour=1, release=1)
    bench.budget.take(64)
    began = bench.at_s
    while not bench.migration.progress.settled:
        wait_s = bench.migration.wait_s(2)
        bench.at_s += wait_s
        bench.score(bench.migration.take(2), 2)
    assert bench.at_s - began == pytest.approx(10, abs=1)


def test_memory_is_bounded_whoever_is_left(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where more users are left than are held, they are found by looking again, the most recent of all first."""
    monkeypatch.setattr(active_module, "HELD", 3)
    monkeypatch.setattr(active_module, "_LOOKED_AT", 2)
    for hour in range(8):
        bench.put(f"u{hour}", hour=hour, release=1)
    assert bench.all_of(2) == [["u7", "u6", "u5"], ["u4", "u3", "u2"], ["u1", "u0"]]
    assert bench.migration.progress.settled


def test_another_release_in_the_middle_starts_over(bench: Bench) -> None:
    """Forward or back, everybody ends on the release that was announced last."""
    for number in range(60):
        bench.put(f"u{number:02}", hour=1, release=1)
    bench.migration.take(2)
    first = bench.migration.take(2)
    bench.score(first, 2)
    assert 0 < len(first) < 60
    assert sorted(user for batch in bench.all_of(1) for user in batch) == sorted(first)
    assert bench.migration.progress == Progress(1, 60, 60, settled=True)


def test_nothing_a_withdrawn_release_said_stays(bench: Bench) -> None:
    """After a roll-back those whom the bad release scored come first, active or not; the other inactive stay."""
    bench.put("active", hour=50, release=1)
    bench.put("scored by it", hour=48, release=3)
    bench.put("inactive", hour=1, release=1)
    bench.put("late event", hour=1, release=3)
    assert bench.all_of(2, withdrawn=3) == [["scored by it", "late event", "active"]]
    assert bench.migration.progress == Progress(2, active=2, scored=2, settled=True)


def test_a_roll_back_is_noticed_by_who_stayed(bench: Bench) -> None:
    """A worker that never took the bad release up may get a partition of one that did."""
    bench.put("u", hour=50, release=2)
    bench.all_of(2)
    bench.put("late event", hour=1, release=3)
    assert bench.all_of(2) == []
    assert bench.migration.wait_s(2, 3) == 0
    assert bench.all_of(2, withdrawn=3) == [["late event"]]


def test_a_restart_in_the_middle_goes_on(bench: Bench) -> None:
    """Who is left is read off the state: nobody is scored twice."""
    for number in range(60):
        bench.put(f"u{number:02}", hour=1, release=1)
    bench.migration.take(2)
    first = bench.migration.take(2)
    bench.score(first, 2)
    bench.store.close()
    bench.store = PartitionStore(bench.store.path, SPEC, cached_users=1000)
    bench.migration = bench.begin()
    rest = [user for batch in bench.all_of(2) for user in batch]
    assert sorted([*first, *rest]) == [f"u{number:02}" for number in range(60)]


def test_who_was_touched_meanwhile_is_left_out(bench: Bench) -> None:
    """An ordinary update by the new release makes re-scoring needless."""
    for number in range(3):
        bench.put(f"u{number}", hour=1, release=1)
    bench.migration.take(2)
    bench.put("u1", hour=2, release=2)
    assert bench.migration.take(2) == ["u2", "u0"]


@pytest.mark.parametrize("users", [1, 40])
def test_who_could_not_be_scored_comes_again(bench: Bench, users: int) -> None:
    """While the model server is away nobody is lost and nothing spins."""
    for number in range(users):
        bench.put(f"u{number:02}", hour=1, release=1)
    bench.migration.take(2)
    first = bench.migration.take(2)
    bench.migration.put_back(first)
    assert bench.migration.take(2) == []
    assert bench.migration.wait_s(2) == 1.0
    again = [user for batch in bench.all_of(2) for user in batch]
    assert sorted(again) == [f"u{number:02}" for number in range(users)]
    assert bench.migration.progress.settled


def test_one_wrong_date_does_not_make_everybody_inactive(bench: Bench) -> None:
    """A newest event in the future counts as now."""
    bench.now_s = START.timestamp() + 3600
    bench.put("wrong", hour=1_000_000, release=2)
    bench.put("u", hour=1, release=1)
    assert bench.all_of(2) == [["u"]]


def test_without_a_release_nothing_is_looked_at(bench: Bench) -> None:
    """It is asked again a second later."""
    assert bench.migration.wait_s(0) == 1.0
    assert bench.migration.progress == Progress()
