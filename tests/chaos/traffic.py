"""What the producers of a cycle send: drawn from the seed alone, so that a seed can be replayed."""

from __future__ import annotations

import random
import threading
import time
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.tiny_release import WORDS
from xplat_stream.adapters import encode_event
from xplat_stream.errors import DeliveryError
from xplat_stream.event import ACTIONS, Event, Millis, UserId
from xplat_stream.kafka import EventProducer
from xplat_stream.kafka.consumer import partition_for
from xplat_stream.kafka.topics import behavior_topic
from xplat_stream.testing import make_event

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from xplat_stream.settings import Settings

PLATFORMS = ("shop", "video", "social")
_BASE_MS = 1_767_225_600_000  # 2026-01-01: fixed, because events are part of what a seed gives
_MONTH_MS = 30 * 86_400_000
_OVERSIZE_BYTES = (40_000, 400_000, 1_900_000)
_ACKNOWLEDGED_WITHIN_S = 120.0


class Record(NamedTuple):
    """A record as it is produced."""

    topic: str
    key: bytes
    value: bytes


def drawn_events(name: str, number: int, *, seed: str, users: int = 60, newcomers: bool = True) -> list[Event]:
    """Return events, half of them of newcomers whom nobody saw before, half of people who are there all the time.

    The first show a lost event for ever, since their windows never become full; the second have the revisions.
    """
    chance = random.Random(seed)
    crowds = (name, "steady") if newcomers else ("steady",)
    return [
        make_event(
            event_id=f"//chaos.example#{name}-{one}",
            user_id=UserId(f"{chance.choice(crowds)}-{chance.randrange(users)}"),
            platform=chance.choice(PLATFORMS),
            action=chance.choice(ACTIONS),
            occurred_at=Millis(_BASE_MS - chance.randrange(_MONTH_MS)),
            object_id=f"item-{chance.randrange(5000)}",
            object_title=f"{chance.choice(WORDS)} {chance.choice(WORDS)}",
        )
        for one in range(number)
    ]


def recorded(events: Sequence[Event]) -> list[Record]:
    """Return the records of events."""
    return [Record(behavior_topic(one.platform), one.user_id.encode(), encode_event(one)) for one in events]


def repeated(records: Sequence[Record], chance: random.Random) -> list[Record]:
    """Return every record three times, in any order."""
    everything = list(records) * 3
    chance.shuffle(everything)
    return everything


def with_oversize(records: Sequence[Record], chance: random.Random) -> list[Record]:
    """Return the records with some in between that are larger than an event, or nearly all a broker takes."""
    found = list(records)
    for size in _OVERSIZE_BYTES:
        like = chance.choice(records)
        found.insert(chance.randrange(len(found)), like._replace(value=like.value.ljust(size)))
    return found


def probes(name: str, partitions: int) -> list[Event]:
    """Return one event for every partition, each of somebody new."""
    users: dict[int, str] = {}
    for number in count():
        user = f"probe-{name}-{number}"
        users.setdefault(partition_for(user.encode(), partitions), user)
        if len(users) == partitions:
            break
    return [
        make_event(
            event_id=f"//chaos.example#{user}",
            user_id=UserId(user),
            occurred_at=Millis(_BASE_MS),
            object_id="probe",
            object_title="running shoes",
        )
        for user in users.values()
    ]


class Traffic:
    """A producer in a thread of its own that spreads records over a time. `finish` it."""

    def __init__(self, settings: Settings, records: Sequence[Record], *, seconds: float, **producer: Any) -> None:
        """`producer`: options of librdkafka that differ from the SDK's."""
        self.unacknowledged = 0
        self._settings = settings
        self._records = records
        self._pause_s = seconds / max(1, len(records))
        self._options = {"message.max.bytes": 4 << 20, **producer}
        self._thread = threading.Thread(target=self._run, name="traffic")
        self._thread.start()

    def _run(self) -> None:
        try:
            with EventProducer(self._settings, **self._options) as producer:
                for record in _paced(self._records, self._pause_s):
                    producer.send_raw(*record, patience_s=_ACKNOWLEDGED_WITHIN_S)
        except DeliveryError as error:
            self.unacknowledged = error.left

    @property
    def running(self) -> bool:
        """Whether there is something to send or to be acknowledged."""
        return self._thread.is_alive()

    def finish(self) -> None:
        """Wait until everything is sent and acknowledged."""
        self._thread.join()


def _paced(records: Sequence[Record], pause_s: float) -> Iterator[Record]:
    began = time.monotonic()
    for number, record in enumerate(records):
        if (ahead_s := began + number * pause_s - time.monotonic()) > 0:
            time.sleep(ahead_s)
        yield record
