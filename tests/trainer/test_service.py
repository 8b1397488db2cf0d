"""`xplat trainer`: what is due, one at a time, and what a crash leaves to be done."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import msgspec
import pytest

from trainer.service import FOLDER, History, Plan, Seen, TrainerService, due
from xplat_stream.disk import held
from xplat_stream.drift import Shares
from xplat_stream.errors import DataError, KafkaUnavailable, OperatorError, ReleaseError
from xplat_stream.settings import LocalSettings, Settings, TrainerSettings

if TYPE_CHECKING:
    from pathlib import Path

HOUR = 3600.0
LIMITS = TrainerSettings()
SAME, OTHER = Shares({"a": 0.5, "b": 0.5}), Shares({"a": 0.9, "b": 0.1})
BEGUN = History(at=100 * HOUR, encoder_at=90 * HOUR, events=1_000_000, recent=SAME)


@pytest.mark.parametrize(
    ("hours", "new", "recent", "expected"),
    [
        (100.5, 4_999, OTHER, None),
        (100.5, 5_000, SAME, None),
        (101, 5_000, SAME, True),
        (100.5, 200_000, SAME, True),
        (100.5, 5_000, OTHER, True),
        (114, 5_000, OTHER, False),
        (200, 4_999, OTHER, None),
    ],
    ids=["too little new", "nothing due", "time", "events", "drift", "encoder first", "too little new, late"],
)
def test_what_is_due(hours: float, new: int, recent: Shares, expected: bool | None) -> None:
    """By time, by events, by drift; the encoder's turn comes before the head's; never without new events."""
    plan = due(BEGUN, Seen(BEGUN.events + new, recent), hours * HOUR, LIMITS)
    assert (plan.head_only if plan else None) is expected


def test_the_first_training_is_of_encoder_and_head() -> None:
    """A service that never made a release begins with a whole one."""
    plan = due(History(), Seen(5_000, SAME), HOUR, LIMITS)
    assert plan is not None
    assert not plan.head_only


def test_reasons_can_be_switched_off() -> None:
    """Zero is never."""
    never = TrainerSettings(head_every_minutes=0, head_every_events=0, drift=0, encoder_every_hours=0)
    assert due(BEGUN, Seen(2_000_000, OTHER), 1000 * HOUR, never) is None


class Trainings:
    """Remembers what it was asked; fails as told."""

    def __init__(self, *failures: BaseException | None) -> None:
        self.asked: list[tuple[bool, bool]] = []
        self._failures = list(failures)

    def __call__(self, plan: Plan, *, resume: bool) -> int:
        """Count as a release, or fail."""
        self.asked.append((plan.head_only, resume))
        failure = self._failures.pop(0) if self._failures else None
        if failure is not None:
            raise failure
        return len(self.asked)


def too_little() -> DataError:
    return DataError("too little", where="log", expected="more", fix="Wait.")


def service(folder: Path, trainings: Trainings, seen: Seen, *, hours: float = 1.0) -> TrainerService:
    settings = Settings(local=LocalSettings(home=str(folder)))
    (folder / FOLDER).mkdir(exist_ok=True)
    return TrainerService(settings, trainings, lambda: seen, clock=lambda: hours * HOUR)


def test_what_was_done_is_remembered(tmp_path: Path) -> None:
    """A service started again does not train what another one just trained."""
    trainings = Trainings()
    assert service(tmp_path, trainings, Seen(5_000, SAME)).turn() is not None
    assert service(tmp_path, trainings, Seen(5_100, SAME)).turn() is None
    assert service(tmp_path, trainings, Seen(10_000, SAME), hours=2.5).turn() is not None
    assert trainings.asked == [(False, False), (True, False)]


def test_a_training_that_was_killed_goes_on(tmp_path: Path) -> None:
    """What was under way when the process died is resumed at the next start, whatever is due then."""
    with pytest.raises(KeyboardInterrupt):
        service(tmp_path, Trainings(KeyboardInterrupt()), Seen(5_000, SAME)).turn()
    trainings = Trainings()
    assert service(tmp_path, trainings, Seen(5_001, SAME)).turn() is not None
    assert trainings.asked == [(False, True)]


def test_a_training_that_cannot_go_on_begins_again(tmp_path: Path) -> None:
    """A checkpoint of another log or of other options does not keep the service from training."""
    with pytest.raises(KeyboardInterrupt):
        service(tmp_path, Trainings(KeyboardInterrupt()), Seen(5_000, SAME)).turn()
    trainings = Trainings(too_little())
    service(tmp_path, trainings, Seen(5_001, SAME)).turn()
    assert trainings.asked == [(False, True), (False, False)]


def test_a_refused_training_is_tried_again_with_more(tmp_path: Path) -> None:
    """A release that was not made leaves the service waiting for new events, still owing an encoder."""
    refusal = ReleaseError("refused", where="gate", expected="better", fix="Look.")
    trainings = Trainings(too_little(), refusal)
    service(tmp_path, trainings, Seen(5_000, SAME)).turn()
    assert service(tmp_path, trainings, Seen(9_999, SAME)).turn() is None
    service(tmp_path, trainings, Seen(10_000, SAME)).turn()
    service(tmp_path, trainings, Seen(15_000, SAME)).turn()
    assert trainings.asked == [(False, False)] * 3


def test_one_at_a_time(tmp_path: Path) -> None:
    """A second service in the folder is told of the first, and looks at nothing."""

    def looked() -> Seen:
        raise AssertionError

    settings = Settings(local=LocalSettings(home=str(tmp_path)))
    with held(tmp_path / FOLDER / "lock", "a trainer is at work"), pytest.raises(OperatorError, match="is at work"):
        TrainerService(settings, Trainings(), looked).run(threading.Event())


def test_a_broker_that_is_away_ends_nothing(tmp_path: Path) -> None:
    """The service looks again; told to stop, it stops."""
    stop = threading.Event()

    def away() -> Seen:
        stop.set()
        raise KafkaUnavailable("no broker", where="kafka", expected="one", fix="Start it.")

    settings = Settings(local=LocalSettings(home=str(tmp_path)))
    TrainerService(settings, Trainings(), away).run(stop)


def test_a_broken_memory_is_named(tmp_path: Path) -> None:
    """Not guessed around: which file, and what to do."""
    found = service(tmp_path, Trainings(), Seen(5_000, SAME))
    (tmp_path / FOLDER / "history.json").write_bytes(msgspec.json.encode({"at": "yesterday"}))
    with pytest.raises(DataError, match=r"history\.json"):
        found.turn()
