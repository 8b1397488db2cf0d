"""What `xplat simulate` publishes: the events of a population, with the disorder of a real network mixed in.

The interests behind the events are known (`Population.truth`); they are kept aside in a file, so that profiles can be
measured against them.
"""

from __future__ import annotations

import math
import os
import threading
import time
from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING, Any, Final

import msgspec

from xplat_stream.adapters import encode_event
from xplat_stream.catalogue import PLATFORMS
from xplat_stream.kafka import EventProducer
from xplat_stream.kafka.topics import behavior_topic, create_topics
from xplat_stream.population import Population

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from xplat_stream.event import Event
    from xplat_stream.settings import Settings

__all__ = ["MALFORMED", "Population", "Simulated", "simulate"]

_DAY_MS: Final = 86_400_000
_TICK_S: Final = 0.02
_PROGRESS_EVERY: Final = 100
_MAX_DELAY: Final = 20
"""How many later events may overtake one that is sent out of order."""


class Simulated(msgspec.Struct, frozen=True):
    """What a simulation published. `delivered` counts what Kafka acknowledged: sent, duplicates and bad together."""

    sent: int
    duplicates: int
    out_of_order: int
    bad: int
    delivered: int


def _edited(event: Event, **changes: Any) -> bytes:
    envelope = msgspec.json.decode(encode_event(event))
    for place, value in changes.items():
        owner, key = (envelope["data"], place[5:]) if place.startswith("data_") else (envelope, place)
        if value is None:
            del owner[key]
        else:
            owner[key] = value
    return msgspec.json.encode(envelope)


MALFORMED: Final[tuple[tuple[str, Callable[[Event], bytes]], ...]] = (
    ("encoding", lambda event: encode_event(event).replace(b'"action":"', b'"action":"\xff')),
    ("syntax", lambda event: encode_event(event)[:-20]),
    ("type", lambda event: _edited(event, data_action=7)),
    ("missing_field", lambda event: _edited(event, data_object=None)),
    ("unknown_action", lambda event: _edited(event, data_action="teleport")),
    ("time_range", lambda event: _edited(event, time="9999-12-31T23:59:59Z")),
    ("empty", lambda _: b""),
)
"""Ways to spoil an event, each with the reason it is dead-lettered for."""


class _Publisher:
    """Sends events with the disorder of a real network mixed in: repeats, late-comers, broken records."""

    def __init__(
        self, settings: Settings, rng: Random, shares: tuple[float, float, float], on_sent: Callable[[int], None] | None
    ) -> None:
        self.sent = self.duplicates = self.out_of_order = self.bad = 0
        self.producer = EventProducer(settings)
        self._rng, self._on_sent = rng, on_sent
        self._bad_share, self._duplicate_share, self._out_of_order_share = shares
        self._held: list[tuple[int, Event]] = []

    def offer(self, event: Event) -> None:
        if self._rng.random() < self._out_of_order_share:
            self.out_of_order += 1
            self._held.append((self.sent + self._rng.randint(1, _MAX_DELAY), event))
            return
        self._send(event)
        due = [held for number, held in self._held if number <= self.sent]
        if due:
            self._held = [(number, held) for number, held in self._held if number > self.sent]
            for held in due:
                self._send(held)

    def release(self) -> None:
        """Send what is still held back."""
        for _, event in self._held:
            self._send(event)
        self._held = []

    def _send(self, event: Event) -> None:
        self.producer.send(event)
        self.sent += 1
        if self._rng.random() < self._duplicate_share:
            self.producer.send(event)
            self.duplicates += 1
        if self._rng.random() < self._bad_share:
            _, spoil = MALFORMED[self.bad % len(MALFORMED)]
            self.producer.send_raw(behavior_topic(event.platform), event.user_id.encode(), spoil(event))
            self.bad += 1
        if self._on_sent is not None and self.sent % _PROGRESS_EVERY == 0:
            self._on_sent(self.sent)


def simulate(  # noqa: PLR0913 - each is an option of `xplat simulate`
    settings: Settings,
    population: Population,
    *,
    history_events: int = 0,
    history_days: float = 60.0,
    rate_per_s: float = 20.0,
    seconds: float = 0.0,
    bad_share: float = 0.0,
    duplicate_share: float = 0.0,
    out_of_order_share: float = 0.0,
    truth_path: Path | None = None,
    on_sent: Callable[[int], None] | None = None,
    stop: threading.Event | None = None,
) -> Simulated:
    """Publish a history as fast as Kafka takes it, then live events dated now, `rate_per_s` of them for `seconds`.

    `seconds` 0 goes on until Ctrl-C or until another thread sets `stop`; `rate_per_s` 0 publishes no live events.
    The truth at the end is kept aside in `truth_path`, never published. `on_sent` hears now and then how many are sent.
    Raises `KafkaUnavailable`, `TopicMismatch`, `DeliveryError`.
    """
    create_topics(settings, PLATFORMS)
    stop = stop or threading.Event()
    start_ms = time.time_ns() // 1_000_000
    shares = (bad_share, duplicate_share, out_of_order_share)
    publisher = _Publisher(settings, Random(f"{population.seed}:network:{start_ms}"), shares, on_sent)
    try:
        with suppress(KeyboardInterrupt):
            history_ms = round(history_days * _DAY_MS)
            for event in population.events(start_ms - history_ms, start_ms, history_events):
                if stop.is_set():
                    break
                publisher.offer(event)
            if rate_per_s > 0:
                _live(population, publisher, rate_per_s, seconds, stop)
        publisher.release()
    finally:
        if truth_path is not None:
            _write_truth(truth_path, population, time.time_ns() // 1_000_000)
        publisher.producer.flush()
    return Simulated(
        publisher.sent, publisher.duplicates, publisher.out_of_order, publisher.bad, publisher.producer.delivered
    )


def _live(
    population: Population, publisher: _Publisher, rate_per_s: float, seconds: float, stop: threading.Event
) -> None:
    """Keep to the rate by the clock, not by the pause: what a slow send delays is sent at once afterwards."""
    begun = time.monotonic()
    following = population.source(time.time_ns() // 1_000_000)
    offered = 0
    while not stop.is_set():
        passed = time.monotonic() - begun
        over = 0 < seconds <= passed
        while offered < int((seconds if over else passed) * rate_per_s) and not stop.is_set():
            publisher.offer(following(time.time_ns() // 1_000_000))
            offered += 1
        if over:
            return
        stop.wait(max(_TICK_S, min((offered + 1) / rate_per_s, seconds or math.inf) - (time.monotonic() - begun)))


def _write_truth(path: Path, population: Population, at_ms: int) -> None:
    """Write the truth whole or not at all: an evaluation may be reading the file of the run before."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside.write_bytes(msgspec.json.encode({"at_ms": at_ms, "users": population.truth(at_ms)}))
    beside.replace(path)
