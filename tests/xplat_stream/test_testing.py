"""The public doubles are what they say."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from xplat_stream.adapters import admit, encode_event
from xplat_stream.event import UserId
from xplat_stream.testing import START, ManualClock, make_event


def test_made_events_are_valid_and_different() -> None:
    """Every made event is admitted as it is, has an id of its own and a later time than the one before."""
    events = [make_event() for _ in range(50)]
    assert len({event.event_id for event in events}) == 50
    assert [event.occurred_at for event in events] == sorted({event.occurred_at for event in events})
    for event in events:
        key, value = event.user_id.encode(), encode_event(event)
        assert admit(key, value, platform="shop", received_at_ms=event.occurred_at) == event


def test_any_field_of_a_made_event_can_be_set() -> None:
    """Fields of the event by name, those of its object with ``object_`` in front; a mistyped one is refused."""
    event = make_event(user_id=UserId("me"), platform="video", object_type="video", object_tags=("a",))
    assert (event.user_id, event.platform, event.object.type, event.object.tags) == ("me", "video", "video", ("a",))
    with pytest.raises(TypeError):
        make_event(usr="me")
    with pytest.raises(TypeError):
        make_event(object_name="me")


def test_a_manual_clock_moves_when_told() -> None:
    """Time stands still, advances by what is asked, and never goes back."""
    clock = ManualClock()
    assert clock() == clock() == START
    clock.advance(timedelta(hours=1, milliseconds=5))
    assert clock() == datetime(2026, 1, 1, 1, 0, 0, 5000, tzinfo=UTC)
    assert clock.millis() == 1_767_225_600_000 + 3_600_005
    with pytest.raises(ValueError, match="cannot be advanced"):
        clock.advance(timedelta(seconds=-1))
