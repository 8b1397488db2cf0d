"""Events that an evaluation leaves out before it begins, counted by reason: nothing goes away silently."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xplat_stream.event import CLOCK_TOLERANCE_MS, MAX_TEXT_CHARS, hash_text, item_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from xplat_stream.event import Event, Millis

    _Content = tuple[str, str, str, bytes, str, int]

REPEATED: Final = "repeated events"
FUTURE: Final = "events dated in the future"
CONFLICTS: Final = "event ids with two contents, both kept as the window law has it"
LONG_TEXTS: Final = f"titles cut to {MAX_TEXT_CHARS} characters"


def usable(events: Iterable[Event], now: Millis, *, by_content: bool) -> tuple[list[Event], dict[str, int]]:
    """Return the events that can be evaluated on, and how many were left out or are to be known of, by reason.

    An event dated after `now` by more than the worker tolerates is what the worker rejects. `by_content`: a recording
    has no event ids of its own, so an event is a repetition when user, platform, item, text, action and time all are;
    in a topic the id has to be the same as well.
    """
    kept: list[Event] = []
    seen: set[tuple[str, _Content]] = set()
    content_of: dict[str, _Content] = {}
    long_items: set[tuple[str, str]] = set()
    counts = dict.fromkeys((REPEATED, FUTURE, CONFLICTS, LONG_TEXTS), 0)
    for event in events:
        item = event.object
        what = (event.user_id, event.platform, item.id, hash_text(item_text(item)), event.action, event.occurred_at)
        if event.occurred_at > now + CLOCK_TOLERANCE_MS:
            counts[FUTURE] += 1
        elif (known := ("" if by_content else event.event_id, what)) in seen:
            counts[REPEATED] += 1
        else:
            seen.add(known)
            counts[CONFLICTS] += content_of.setdefault(event.event_id, what) != what
            if len(item.title) > MAX_TEXT_CHARS:
                long_items.add((event.platform, item.id))
            kept.append(event)
    counts[LONG_TEXTS] = len(long_items)
    return kept, {reason: count for reason, count in counts.items() if count}
