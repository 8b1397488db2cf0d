"""Which records count: the one gate in front of a window, used live by the worker and offline by `xplat verify`.

Admission depends on the record alone (its key, value, topic and Kafka time), never on the clock of the reader, so the
same log is admitted the same way for ever.
"""

from __future__ import annotations

from typing import Final

from xplat_stream.adapters.cloudevents import decode_event
from xplat_stream.errors import RejectedEvent
from xplat_stream.event import CLOCK_TOLERANCE_MS, MAX_ID_CHARS, Event

REASONS: Final[dict[str, str]] = {
    "empty": "the record has no value",
    "size": "the value is longer than an event may be",
    "encoding": "the value is not UTF-8 without a byte order mark, or has half a surrogate pair",
    "syntax": "the value is not one JSON document",
    "depth": "the JSON is nested too deeply",
    "type": "a field has another JSON type than the schema says",
    "missing_field": "a required field is absent",
    "value": "a field has the right type and an impossible value",
    "unknown_type": "the CloudEvents version or type is not known",
    "unknown_action": "the action is not in the vocabulary",
    "platform_mismatch": "the event names another platform than the topic it arrived on",
    "time_range": "the event is dated before 1970 or after its own record",
    "bad_key": "the record has no usable key",
    "key_mismatch": "the record's key is not the event's user",
    "crash": "handling the record crashed the worker three times in a row",
}
"""Every dead-letter reason, with its meaning."""


def admit(key: bytes | None, value: bytes | None, *, platform: str, received_at_ms: int) -> Event | None:
    """Return the admitted event of a record that arrived on a platform's topic at Kafka's time `received_at_ms`.

    None when the user has not consented to personalization. Raises `RejectedEvent`.
    """
    event = decode_event(value)
    if not key or len(key) > 4 * MAX_ID_CHARS:
        raise RejectedEvent("bad_key", f"key of {len(key or b'')} bytes; expected the user id in UTF-8")
    if event is None:
        return None
    if event.platform != platform:
        detail = f"platform {event.platform!r} on the topic of {platform!r}"
        raise RejectedEvent("platform_mismatch", detail)
    if event.user_id.encode() != key:
        raise RejectedEvent("key_mismatch", f"key {key[:40]!r} is not the user {event.user_id[:40]!r}")
    if event.occurred_at > received_at_ms + CLOCK_TOLERANCE_MS:
        ahead_s = (event.occurred_at - received_at_ms) / 1000
        raise RejectedEvent("time_range", f"dated {ahead_s:.0f} s after its own record; at most 300 s")
    return event
