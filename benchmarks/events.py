"""The workload: JSON events of a fixed population on a topic that is filled before anything is timed."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Final

from xplat_stream.adapters import encode_event
from xplat_stream.event import Event, Millis, Object, UserId
from xplat_stream.kafka.producer import EventProducer
from xplat_stream.kafka.topics import behavior_topic

if TYPE_CHECKING:
    from xplat_stream.settings import Settings

PLATFORM: Final = "bench"
_ITEMS: Final = 2000
_ACTIONS: Final = ("view", "view", "click", "like", "purchase")


def fill(settings: Settings, *, events: int, users: int, seed: int = 11) -> float:
    """Publish `events` of `users` uniform users on `behavior.bench.v1`. Returns the mean size of a value in bytes."""
    chance = random.Random(seed)
    now = int(time.time() * 1000)
    topic = behavior_topic(PLATFORM)
    total = 0
    with EventProducer(settings, **{"linger.ms": 50}) as producer:
        for number in range(events):
            item = chance.randrange(_ITEMS)
            user = UserId(f"user-{chance.randrange(users):06d}")
            happened = Object(
                f"item-{item}", "product", title=f"Item number {item} of the benchmark", categories=("Sports",)
            )
            event = Event(
                f"//bench#{number:08d}",
                user,
                PLATFORM,
                chance.choice(_ACTIONS),
                happened,
                Millis(now - events + number),
            )
            value = encode_event(event)
            total += len(value)
            producer.send_raw(topic, user.encode(), value)
    return total / events
