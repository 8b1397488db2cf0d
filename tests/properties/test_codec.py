"""What goes in comes out, and what is not an event says so in one of the closed reasons, whatever its bytes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from hypothesis import example, given
from hypothesis import strategies as st

from tests.strategies import any_events
from xplat_stream.adapters import REASONS, admit, decode_event, encode_event
from xplat_stream.errors import RejectedEvent
from xplat_stream.event import MAX_ID_CHARS, OBJECT_TYPES, Event, item_text

if TYPE_CHECKING:
    from collections.abc import Callable

LATE_MS = 9_000_000_000_000


def holds(value: bytes) -> None:
    """Decode and admit: an event, no consent, or a rejection with a known reason."""
    found = [fate(decode_event, value), fate(admit, b"u", value, platform="shop", received_at_ms=LATE_MS)]
    for event in found:
        if isinstance(event, str):
            assert event in REASONS
        else:
            assert event is None or (event.event_id and event.user_id and event.object.type in OBJECT_TYPES)


def fate(read: Callable[..., Event | None], *record: object, **origin: object) -> Event | str | None:
    """Return what a record becomes: an event, None, or the reason of its rejection. Other errors pass through."""
    try:
        return read(*record, **origin)
    except RejectedEvent as rejection:
        return rejection.reason


@given(any_events())
def test_an_event_round_trips(event: Event) -> None:
    """Decoding what was encoded gives the event back, in any Unicode."""
    assert decode_event(encode_event(event)) == event


@given(any_events())
def test_a_published_event_is_admitted(event: Event) -> None:
    """An event published as it is, under its user's key on its platform's topic, is admitted."""
    key = event.user_id.encode()
    assert admit(key, encode_event(event), platform=event.platform, received_at_ms=event.occurred_at) == event


@given(any_events(), st.data())
def test_truncation_is_rejected(event: Event, data: st.DataObject) -> None:
    """A record cut anywhere is never taken for an event."""
    whole = encode_event(event)
    cut = data.draw(st.integers(0, len(whole) - 1))
    assert fate(decode_event, whole[:cut]) in ("empty", "syntax", "encoding")


@given(any_events(), st.data(), st.integers(1, 255))
def test_a_flipped_byte_is_read_or_rejected(event: Event, data: st.DataObject, flip: int) -> None:
    """A damaged record is an event or a rejection with a known reason, never another error."""
    damaged = bytearray(encode_event(event))
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= flip
    holds(bytes(damaged))


@given(st.binary(max_size=300))
@example(b"\x00\x00\x00\x00\x01avro")
@example(b"[" * 10_000)
@example(b'{"specversion":"1.0"}')
def test_any_bytes_are_read_or_rejected(value: bytes) -> None:
    """Whatever arrives on a topic is answered, never crashed on."""
    holds(value)


JSON_VALUES: st.SearchStrategy[Any] = st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists)


@given(JSON_VALUES, st.sampled_from(["data", "time", "id"]))
def test_any_json_in_any_field_is_read_or_rejected(value: object, field: str) -> None:
    """A field of any JSON type is answered."""
    envelope: dict[str, Any] = {
        "specversion": "1.0",
        "id": "1",
        "source": "//a",
        "type": "org.xplat.behavior.v1",
        "time": "2026-01-01T00:00:00Z",
        "data": {"user_id": "u", "platform": "shop", "action": "view", "object": {"id": "o", "type": "product"}},
    }
    envelope[field] = value
    holds(json.dumps(envelope).encode())  # the standard writer lets NaN through: platforms do send it


@given(st.none() | st.binary(max_size=2000), any_events())
def test_any_key_is_admitted_or_rejected(key: bytes | None, event: Event) -> None:
    """Only the user's own id is a key."""
    found = fate(admit, key, encode_event(event), platform=event.platform, received_at_ms=event.occurred_at)
    if not key or len(key) > 4 * MAX_ID_CHARS:
        assert found == "bad_key"
    else:
        assert found == (event if key == event.user_id.encode() else "key_mismatch")


@given(any_events())
def test_a_text_is_never_longer_than_a_transformer_reads(event: Event) -> None:
    """Titles and bodies are cut; an object with words has a text, one without has none."""
    text = item_text(event.object)
    item = event.object
    assert bool(text) == bool(item.title or item.categories or item.tags or item.text)
    assert len(text) <= 4 * 512 + 6
