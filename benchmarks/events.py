"""The workload: JSON events of a fixed population on a topic that is filled before anything is timed.

Users and items are drawn from Zipf's law. Everything follows from the seed, times included, so the windows that must
come out are known beforehand, and are the same in every run of one size.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from benchmarks.windows import SOURCE, row_of_worker
from xplat_stream.adapters import encode_event
from xplat_stream.event import Event, Millis, Object, UserId
from xplat_stream.kafka.consumer import partition_for
from xplat_stream.kafka.producer import EventProducer
from xplat_stream.window import WindowSpec, row_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.windows import Windows
    from xplat_stream.settings import Settings

PLATFORM: Final = "bench"
SPEC: Final = WindowSpec(50, timedelta(days=90))
_ITEMS: Final = 2000
_ACTIONS: Final = ("view", "view", "click", "like", "purchase")
_START_MS: Final = 1_735_689_600_000
"""2025-01-01T00:00:00Z."""
_SPAN_MS: Final = 2 * SPEC.horizon_ms
"""Twice the horizon, whatever the number of events: of a rare user's window, part has to fall out by age."""


@dataclass(frozen=True)
class Workload:
    """`events` of `users`, evenly spaced in time; the one at `number` is the same in every workload of one size."""

    events: int
    users: int
    partitions: int
    seed: int = 11

    @property
    def step_ms(self) -> int:
        """Milliseconds from one event to the next, at least 1."""
        return max(1, _SPAN_MS // self.events)

    def time_of(self, number: int) -> Millis:
        """Return when an event happened."""
        return Millis(_START_MS + number * self.step_ms)

    def folded(self, partition: int, newest: int) -> int:
        """Return how many of a partition's events are at most as new as a time in milliseconds."""
        return bisect_right(self._numbers[partition], (newest - _START_MS) // self.step_ms)

    @cached_property
    def _numbers(self) -> list[list[int]]:
        found: list[list[int]] = [[] for _ in range(self.partitions)]
        where = self._partitions_of_users
        for number, user in enumerate(self._choices):
            found[where[user]].append(number)
        return found

    def all_events(self) -> Iterator[Event]:
        """Yield them in the order of their times."""
        chance = random.Random(self.seed + 1)
        items = [
            Object(f"item-{one}", "product", title=f"Item number {one} of the benchmark", categories=("Sports",))
            for one in range(_ITEMS)
        ]
        bought = chance.choices(items, cum_weights=_zipf(_ITEMS), k=self.events)
        done = chance.choices(_ACTIONS, k=self.events)
        for number, (user, item, action) in enumerate(zip(self._choices, bought, done, strict=True)):
            yield Event(f"{SOURCE}#{number:08d}", UserId(_user(user)), PLATFORM, action, item, self.time_of(number))

    @cached_property
    def _choices(self) -> list[int]:
        return random.Random(self.seed).choices(range(self.users), cum_weights=_zipf(self.users), k=self.events)

    @cached_property
    def _partitions_of_users(self) -> list[int]:
        return [partition_for(_user(one).encode(), self.partitions) for one in range(self.users)]


def fill(settings: Settings, workload: Workload, topic: str) -> tuple[float, Windows]:
    """Publish the events on a topic. Returns the mean size of a value in bytes, and the windows to expect.

    Raises `DeliveryError`.
    """
    total = 0
    windows: dict[str, deque[tuple[int, bytes]]] = {}
    with EventProducer(settings, **{"linger.ms": 50}) as producer:
        for event in workload.all_events():
            value = encode_event(event)
            total += len(value)
            producer.send_raw(topic, event.user_id.encode(), value)
            window = windows.get(event.user_id)
            if window is None:
                window = windows[event.user_id] = deque(maxlen=SPEC.per_platform)
            window.append((event.occurred_at, row_of_worker(row_of(event))))
    expected = {}
    for user, window in windows.items():
        start = window[-1][0] - SPEC.horizon_ms
        expected[user] = [row for time, row in window if time >= start]
    return total / workload.events, expected


def _user(rank: int) -> str:
    return f"user-{rank:06d}"


def _zipf(size: int) -> list[float]:
    """Return the running sum of 1, 1/2, 1/3 …: weights of the ranks under Zipf's law with exponent 1."""
    return list(accumulate(1 / rank for rank in range(1, size + 1)))
