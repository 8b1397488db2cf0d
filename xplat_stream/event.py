"""One action of one user on one platform: the noun everything else is made of. Pure."""

from __future__ import annotations

from hashlib import blake2b
from typing import Annotated, Final, NewType

import msgspec

UserId = NewType("UserId", str)
Millis = NewType("Millis", int)
"""A point in time: whole milliseconds since 1970-01-01T00:00:00Z."""

TextHash = NewType("TextHash", bytes)
"""8 bytes that name a text: `hash_text` of what the transformer reads."""

ACTIONS: Final[tuple[str, ...]] = (
    "impression", "view", "click", "search", "filter", "read", "play", "progress", "complete", "skip",
    "like", "dislike", "rate", "comment", "share", "save", "unsave", "add_to_cart", "remove_from_cart",
    "purchase", "refund", "follow", "unfollow", "hide", "report",
)  # fmt: skip
"""The closed vocabulary. Order is wire format (a window stores the index): append only."""

ACTION_INDEX: Final[dict[str, int]] = {action: index for index, action in enumerate(ACTIONS)}

NEGATIVE_ACTIONS: Final[frozenset[str]] = frozenset(
    {"skip", "dislike", "unsave", "remove_from_cart", "refund", "unfollow", "hide", "report"}
)
"""Evidence against an interest; never a training label."""

OBJECT_TYPES: Final[tuple[str, ...]] = (
    "product", "video", "audio", "article", "post", "page", "game", "app", "user", "query", "other",
)  # fmt: skip

MAX_EVENT_BYTES: Final = 32 * 1024
"""A longer record is rejected before it is parsed: one record must not cost more than a window."""

MAX_ID_CHARS: Final = 256
MAX_TEXT_CHARS: Final = 512
"""What the transformer reads of a title, and of a body: beyond 64 tokens nothing is read anyway."""

CLOCK_TOLERANCE_MS: Final = 5 * 60 * 1000
"""An event dated later than its own record by more than this is rejected: one bad clock cannot move T."""

TEXT_HASH_BYTES: Final = 8


class Object(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What was acted on. Only `id` and `type` are required; the rest is what a transformer can read."""

    id: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ID_CHARS)]
    type: str
    title: str = ""
    text: str = ""
    categories: tuple[str, ...] = ()
    """Paths from coarse to fine, for example ``"Sports > Running"``."""
    iab: tuple[str, ...] = ()
    """IAB Content Taxonomy 3.1 ids, for platforms that already classify their items."""
    tags: tuple[str, ...] = ()


class Event(msgspec.Struct, frozen=True, gc=False):
    """One action of one user on one platform.

    `event_id` is unique over all platforms (CloudEvents `source` and `id` together);
    `occurred_at` is event time, in the platform's words.
    """

    event_id: str
    user_id: UserId
    platform: str
    action: str
    object: Object
    occurred_at: Millis


def item_text(item: Object) -> str:
    """Return what the transformer reads of an object: title, categories, tags, body, in that order.

    Empty when the object says nothing but its id; such an event counts by platform, action and age alone.
    """
    parts = []
    if item.title:
        parts.append(item.title[:MAX_TEXT_CHARS])
    if item.categories:
        parts.append(", ".join(item.categories)[:MAX_TEXT_CHARS])
    if item.tags:
        parts.append(" ".join(item.tags)[:MAX_TEXT_CHARS])
    if item.text:
        parts.append(item.text[:MAX_TEXT_CHARS])
    return ". ".join(parts)


def hash_text(text: str) -> TextHash:
    """Return the 8-byte name of a text.

    64 bits: among ten million texts a collision has a chance of 3e-6 (birthday bound), and shows one wrong vector.
    """
    return TextHash(blake2b(text.encode(), digest_size=TEXT_HASH_BYTES).digest())
