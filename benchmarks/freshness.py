"""Event written → profile readable, read off the two topics afterwards: both keep the broker's own time of a record."""

from __future__ import annotations

from bisect import bisect_left
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource

from xplat_stream.event import Event
from xplat_stream.kafka.codec import decode_profile
from xplat_stream.kafka.log import Span, read_behavior, read_span, spans
from xplat_stream.kafka.topics import ANSWER_S, PROFILES, admin, behavior_topic

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from xplat_stream.settings import Settings

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Ends = dict[tuple[str, int], int]
"""Topic and partition → the offset behind its last record."""


class Seen(NamedTuple):
    """When an event was written, and how long it took until a profile that knows of it could be read; milliseconds."""

    written_ms: int
    took_ms: int


def keep_the_brokers_time(settings: Settings) -> None:
    """Have the broker stamp the records of the topics compared with its own clock."""
    change = ConfigEntry("message.timestamp.type", "LogAppendTime", incremental_operation=AlterConfigOpType.SET)
    topics = [*map(behavior_topic, settings.platforms), PROFILES]
    resources = [ConfigResource(ConfigResource.Type.TOPIC, name, incremental_configs=[change]) for name in topics]
    client = admin(settings)  # held until the futures are done: librdkafka drops requests with their handle
    for future in client.incremental_alter_configs(resources, request_timeout=ANSWER_S).values():
        future.result()


def ends(settings: Settings) -> Ends:
    """Return where events and profiles end now."""
    topics = [*map(behavior_topic, settings.platforms), PROFILES]
    return {(span.topic, span.partition): span.end for span in spans(settings, topics)}


def profiles_between(settings: Settings, before: Ends, after: Ends) -> dict[bytes, tuple[list[int], list[int]]]:
    """Return user → (`as_of`, when readable) of the profiles written in between, in milliseconds, in order."""
    found: dict[bytes, tuple[list[int], list[int]]] = {}
    for span in _between(before, after, profiles=True):
        for messages in read_span(settings, span):
            for message in messages:
                as_of = decode_profile(message.value()).data.as_of - _EPOCH
                knows, readable = found.setdefault(message.key(), ([], []))
                knows.append(round(as_of.total_seconds() * 1000))
                readable.append(message.timestamp()[1])
    return found


def seen_between(
    settings: Settings, before: Ends, after: Ends, profiles: Mapping[bytes, tuple[Sequence[int], Sequence[int]]]
) -> list[Seen]:
    """Return one entry for every event written in between, all of which have to be in one of the profiles."""
    found = []
    for event, message in read_behavior(settings, _between(before, after, profiles=False)):
        if isinstance(event, Event):
            knows, readable = profiles[message.key()]
            written = message.timestamp()[1]
            found.append(Seen(written, readable[bisect_left(knows, event.occurred_at)] - written))
    return found


def _between(before: Ends, after: Ends, *, profiles: bool) -> list[Span]:
    return [
        Span(topic, partition, before[topic, partition], end)
        for (topic, partition), end in after.items()
        if (topic == PROFILES) == profiles
    ]
