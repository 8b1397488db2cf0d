"""Events whose titles are new in a given share: what decides how much the encoder has to do.

Users are active as the simulated people are, one of them is hot, or they follow Zipf's law. Times of a user only grow,
so that the first profile whose `as_of` is an event's time, or later, is the first that knows of the event.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from itertools import accumulate, count
from random import Random
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from benchmarks.releases import SEED
from xplat_stream.adapters import encode_event
from xplat_stream.event import Event, Millis, Object, UserId
from xplat_stream.kafka.producer import EventProducer
from xplat_stream.kafka.topics import behavior_topic
from xplat_stream.population import Population
from xplat_stream.taxonomy import load_taxonomy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xplat_stream.settings import Settings

_PATIENCE_S: Final = 240.0


class Record(NamedTuple):
    """An event as it is written."""

    topic: str
    key: bytes
    value: bytes


class Traffic:
    """Events without end, of people with interests of their own. `new_share`: of titles that nobody saw before."""

    def __init__(self, users: int) -> None:
        self._people = Population(load_taxonomy(), users=users, seed=SEED)
        self._random = Random(SEED)
        self._following = self._people.source(0)
        self._serial = count(1)
        self._last: dict[str, int] = {}
        self._ranked = [UserId(user_id) for user_id in self._people.truth(0)]
        self._weights: list[float] | None = None
        self._hot = 0.0
        self.new_share = 0.0

    def spread(self, *, hot: float = 0.0, zipf: float = 0.0) -> None:
        """Let one user have the share `hot` of the events, or the n-th user 1 / n^`zipf`; else all as they are."""
        self._hot = hot
        ranks = range(1, len(self._ranked) + 1)
        self._weights = list(accumulate(1 / rank**zipf for rank in ranks)) if zipf else None

    def next(self, at_ms: int) -> Record:
        """Return an event of somebody, dated `at_ms` or just after the user's last one."""
        happened = self._following(at_ms)
        user, item = happened.user_id, happened.object
        if self._weights is not None:
            user = self._random.choices(self._ranked, cum_weights=self._weights)[0]
        elif self._random.random() < self._hot:
            user = self._ranked[0]
        if self._random.random() < self.new_share:
            item = msgspec.structs.replace(item, title=f"{item.title}, no. {next(self._serial)}")
        return self._about(user, happened.platform, happened.action, item, at_ms)

    def history(self, events: int, *, until_ms: int, span_ms: int) -> list[Record]:
        """Return so many events before `until_ms`, after one of every title of the catalogue by somebody else."""
        reader, start_ms = UserId("bench-reader"), until_ms - span_ms
        seen = [self._about(reader, item.platform, "view", item.object, start_ms) for item in self._people.items()]
        return seen + [self.next(start_ms + span_ms * number // events) for number in range(events)]

    def burst(self, events: int) -> list[Record]:
        """Return events of the last moments, a millisecond apart."""
        start_ms = time.time_ns() // 1_000_000 - events
        return [self.next(start_ms + number) for number in range(events)]

    def _about(self, user: UserId, platform: str, action: str, item: Object, at_ms: int) -> Record:
        at = self._last[user] = max(self._last.get(user, 0) + 1, at_ms)
        event = Event(f"//bench#{next(self._serial)}", user, platform, action, item, Millis(at))
        return Record(behavior_topic(event.platform), user.encode(), encode_event(event))


def write(settings: Settings, records: list[Record]) -> None:
    """Write records as fast as Kafka takes them. Raises `DeliveryError`."""
    with EventProducer(settings, **{"linger.ms": 20}) as producer:
        for record in records:
            producer.send_raw(*record)


@contextmanager
def load(settings: Settings, traffic: Traffic, rate: float) -> Iterator[None]:
    """Write `rate` events a second inside the block, each dated when it is written."""
    stop = threading.Event()
    writer = threading.Thread(target=_keep_up, args=(settings, traffic, rate, stop), daemon=True)
    writer.start()
    try:
        yield
    finally:
        stop.set()
        writer.join(_PATIENCE_S)


def _keep_up(settings: Settings, traffic: Traffic, rate: float, stop: threading.Event) -> None:
    """Write until told to stop. Raises `DeliveryError`."""
    begun, sent = time.monotonic(), 0
    with EventProducer(settings, **{"linger.ms": 0}) as producer:
        while not stop.is_set():
            while sent < (time.monotonic() - begun) * rate and not stop.is_set():
                producer.send_raw(*traffic.next(time.time_ns() // 1_000_000))
                sent += 1
            stop.wait(0.002)
