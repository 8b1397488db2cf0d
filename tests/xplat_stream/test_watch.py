"""A watch ends with its time or with a breach, and a breach rolls back."""

from __future__ import annotations

from datetime import timedelta

import pytest

from xplat_stream.comparison import Breach, Comparison
from xplat_stream.errors import KafkaUnavailable
from xplat_stream.kafka.codec import Announcement
from xplat_stream.kafka.reports import ReleaseReport
from xplat_stream.settings import ReleaseSettings, Settings
from xplat_stream.testing import START
from xplat_stream.watch import Watched, watch

SETTINGS = Settings(release=ReleaseSettings(watch_minutes=1.0, min_compared=10))
ANNOUNCED = Announcement(2, 1, 1, START)
AWAY = KafkaUnavailable("away", where="", expected="", fix="")


def said(*, windows: int = 10, score: float = 0.5) -> ReleaseReport:
    """Return a report on releases 2 and 1, whose scores of the first label are these and 0.5."""
    comparison = Comparison()
    for _ in range(windows):
        comparison.add([score, 0.5], [0.5, 0.5])
    return ReleaseReport(2, 1, 4, 4, 4, 10, 10, comparison)


class World:
    """What workers report, one reading after another, and a clock that only sleeping moves."""

    def __init__(self, *reports: ReleaseReport | Exception) -> None:
        self.reports = list(reports)
        self.now_s = 0.0
        self.read_at: list[float] = []
        self.rolled_back: list[tuple[int, tuple[Breach, ...]]] = []

    def read(self, _: Settings, announced: Announcement) -> ReleaseReport:
        """Return the next report; the last one again and again."""
        assert announced == ANNOUNCED
        self.read_at.append(self.now_s)
        found = self.reports.pop(0) if len(self.reports) > 1 else self.reports[0]
        if isinstance(found, Exception):
            raise found
        return found

    def sleep(self, seconds: float) -> None:
        """Let the time pass."""
        self.now_s += seconds

    def roll_back(self, _: Settings, release: int, breaches: tuple[Breach, ...]) -> bool:
        """Note what is to be rolled back."""
        self.rolled_back.append((release, breaches))
        return True

    def watch(self) -> Watched:
        """Watch release 2 against 1."""
        return watch(
            SETTINGS,
            ANNOUNCED,
            roll_back=self.roll_back,
            read=self.read,
            now=lambda: START + timedelta(seconds=self.now_s),
            sleep=self.sleep,
        )


def test_a_good_release_is_kept_when_its_time_is_over() -> None:
    """It is read at every interval, and once more at the very end."""
    world = World(said())
    watched = world.watch()
    assert watched.kept
    assert watched.report == said()
    assert world.read_at == [0, 10, 20, 30, 40, 50, 60]
    assert world.rolled_back == []


def test_a_breach_rolls_back_at_once() -> None:
    """With the release and what it broke; the watch is then over."""
    world = World(said(windows=2, score=0.9), said(), said(score=0.9))
    watched = world.watch()
    assert (watched.kept, watched.rolled_back) == (False, True)
    assert world.now_s == 20
    ((release, breaches),) = world.rolled_back
    assert release == 2
    assert [(one.figure, one.where) for one in breaches] == [("drift", "academic-interests")]
    assert watched.breaches == breaches


def test_a_watch_goes_on_for_what_is_left_of_it() -> None:
    """After a crash of whoever watched: the time counts from the announcement."""
    world = World(said())
    world.now_s = 45.0
    world.watch()
    assert world.read_at == [45, 55, 60]


def test_kafka_being_away_is_no_breach() -> None:
    """It is waited for; only a watch that never saw a report fails."""
    world = World(AWAY, said(), AWAY)
    assert world.watch().kept
    with pytest.raises(KafkaUnavailable):
        World(AWAY).watch()


def test_what_rolling_back_raises_is_told() -> None:
    """Whoever watches has to know that the release is still active."""
    world = World(said(score=0.9))

    def refuse(*_: object) -> bool:
        raise RuntimeError("no previous release")

    world.roll_back = refuse  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="no previous release"):
        world.watch()
