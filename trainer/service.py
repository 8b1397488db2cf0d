"""`xplat trainer`: trains again when it is time, when enough has happened, or when people have changed.

One training at a time: a lock that the operating system lets go of when its holder dies. What is under way is written
down before it begins, so that a service that was killed goes on with it, from its checkpoint.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import msgspec

from xplat_stream.disk import held, write_whole
from xplat_stream.drift import RECENT, Shares, drift, shares
from xplat_stream.errors import DataError, DeliveryError, KafkaUnavailable, XplatError
from xplat_stream.kafka.log import behavior_spans, recent_events
from xplat_stream.taxonomy import load_taxonomy

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from xplat_stream.settings import Settings, TrainerSettings

log = logging.getLogger("xplat.trainer")

FOLDER: Final = "trainer"
"""Below the stack's folder (XPLAT_LOCAL__HOME)."""


class Plan(msgspec.Struct, frozen=True):
    """One training that is due."""

    head_only: bool
    reason: str


class Seen(NamedTuple):
    """The log at a moment."""

    events: int
    """Records ever written to the platforms' topics."""
    recent: Shares


class History(msgspec.Struct, frozen=True):
    """What the service remembers from one start to the next."""

    at: float = 0.0
    """When the last training ended, whatever came of it."""
    encoder_at: float = 0.0
    """When the last one that made an encoder ended."""
    events: int = 0
    """`Seen.events` at its begin."""
    recent: Shares = Shares()
    running: Plan | None = None
    """What is under way; after a crash, what was."""


class Train(Protocol):
    """Trains and publishes a release."""

    def __call__(self, plan: Plan, *, resume: bool) -> int:
        """Return the number of the release. Raises `XplatError` where none came of it."""


def due(history: History, seen: Seen, now: float, settings: TrainerSettings) -> Plan | None:
    """Return the training that is due, if one is. An encoder's brings a head too, so it comes first.

    `now`: seconds since 1970.
    """
    new = seen.events - history.events
    if new < settings.least_events:
        return None
    if not history.encoder_at:
        return Plan(head_only=False, reason="no release of this service yet")
    hours, minutes = (now - history.encoder_at) / 3600, (now - history.at) / 60
    moved = drift(history.recent, seen.recent).largest
    for head_only, measured, limit, reason in (
        (False, hours, settings.encoder_every_hours, f"the encoder is {hours:.1f} hours old"),
        (True, moved, settings.drift, f"labels or platforms moved: PSI {moved:.2f}"),
        (True, new, settings.head_every_events, f"{new} new events"),
        (True, minutes, settings.head_every_minutes, f"the last training is {minutes:.0f} minutes ago"),
    ):
        if limit and measured >= limit:
            return Plan(head_only, reason)
    return None


class TrainerService:
    """Looks at the log again and again, and trains when that is due."""

    def __init__(
        self, settings: Settings, train: Train, look: Callable[[], Seen], *, clock: Callable[[], float] = time.time
    ) -> None:
        self._settings = settings.trainer
        self._folder = Path(settings.local.home) / FOLDER
        self._train = train
        self._look = look
        self._clock = clock

    def run(self, stop: threading.Event) -> None:
        """Serve until told to stop; a training under way ends first.

        Raises `OperatorError` where another service serves from this folder, `DataError` where the folder is unusable.
        """
        with held(self._folder / "lock", "a trainer is at work"):
            while True:
                try:
                    self.turn()
                except (KafkaUnavailable, DeliveryError) as error:  # later, then
                    log.warning("the log cannot be looked at now: %s", error)
                if stop.wait(self._settings.look_every_s):
                    return

    def turn(self) -> Plan | None:
        """Look once, train if that is due, and return what was done.

        Raises what looking raises, and `DataError` where its memory cannot be read.
        """
        history = self._history()
        resume, seen = history.running is not None, self._look()
        plan = history.running or due(history, seen, self._clock(), self._settings)
        if plan is None:
            return None
        log.info("training %s: %s", "a head" if plan.head_only else "encoder and head", plan.reason)
        self._remember(msgspec.structs.replace(history, running=plan))
        made = self._tried(plan, resume=resume)
        now = self._clock()
        encoder_at = now if made and not plan.head_only else history.encoder_at
        self._remember(History(at=now, encoder_at=encoder_at, events=seen.events, recent=seen.recent))
        return plan

    def _tried(self, plan: Plan, *, resume: bool) -> bool:
        """Train; a training that cannot go on from where it stood begins again. Tell whether a release came of it."""
        try:
            release = self._train(plan, resume=resume)
        except XplatError as error:
            if resume and isinstance(error, DataError):
                log.warning("the interrupted training cannot go on, it begins again: %s", error)
                return self._tried(plan, resume=False)
            log.warning("no release came of it: %s", error)
            return False
        log.info("release %d came of it", release)
        return True

    def _history(self) -> History:
        path = self._folder / "history.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=History)
        except FileNotFoundError:
            return History()
        except (OSError, ValueError) as error:
            raise DataError(
                f"what the trainer remembers cannot be read: {error}",
                where=str(path),
                expected="the JSON that `xplat trainer` writes",
                fix="Delete the file: the next training is then one of encoder and head.",
            ) from error

    def _remember(self, history: History) -> None:
        write_whole(self._folder / "history.json", msgspec.json.encode(history))


def look(settings: Settings) -> Seen:
    """Return what the log holds now. Raises `KafkaUnavailable`, `DeliveryError`."""
    held = behavior_spans(settings)
    events = recent_events(settings, RECENT, held)
    return Seen(sum(span.end for span in held), shares(events, load_taxonomy(settings.model.taxonomy)))
