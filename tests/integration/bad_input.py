"""Every kind of bad input, and of good input that looks bad: docs/reference/bad-input.md has a row for each name."""

from __future__ import annotations

import gzip
import json
import time
import unicodedata
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from xplat_stream.adapters import encode_event
from xplat_stream.event import MAX_EVENT_BYTES
from xplat_stream.testing import make_event

if TYPE_CHECKING:
    from collections.abc import Callable

REMOVED: Final = object()
BOMB_BYTES: Final = 24 * 1024 * 1024


class Record(NamedTuple):
    """What is produced to the topic of the shop."""

    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()
    partition: int = -1
    """-1: where murmur2 puts the key."""


class Bad(NamedTuple):
    """The one reason a record is rejected for, and the record as a user's."""

    reason: str
    make: Callable[[str], Record]


class Good(NamedTuple):
    """Records of a user, and how many events the window holds in the end."""

    kept: int
    make: Callable[[str], list[Record]]
    user: str = "plain"


def good(user: str, **fields: Any) -> bytes:
    """Return a good event as bytes."""
    return encode_event(make_event(user_id=user, **fields))


def changed(user: str, path: str, value: object) -> bytes:
    """Return the good event with one field replaced, or taken out."""
    envelope = json.loads(good(user))
    *parents, last = path.split(".")
    owner = envelope
    for parent in parents:
        owner = owner[parent]
    if value is REMOVED:
        del owner[last]
    else:
        owner[last] = value
    return json.dumps(envelope).encode()


def ahead(minutes: int) -> str:
    """Return a time so far from now."""
    return (datetime.now(UTC) + timedelta(minutes=minutes)).isoformat()


def _field(reason: str, path: str, value: object) -> Bad:
    return Bad(reason, lambda user: Record(user.encode(), changed(user, path, value)))


def _bytes(reason: str, spoil: Callable[[bytes], bytes | None]) -> Bad:
    return Bad(reason, lambda user: Record(user.encode(), spoil(good(user))))


def _swap(reason: str, old: bytes, new: bytes) -> Bad:
    return _bytes(reason, lambda value: value.replace(old, new, 1))


def _key(reason: str, key: Callable[[str], bytes | None], name: str = "") -> Bad:
    return Bad(reason, lambda user: Record(key(user + name), good(user + name)))


def _ignored(reason: str, written: bytes) -> Bad:
    """Write something where nothing is read."""
    return _swap(reason, b'"specversion"', b'"x":' + written + b',"specversion"')


BAD: Final[dict[str, Bad]] = {
    "null-value": _bytes("empty", lambda _: None),
    "empty-value": _bytes("empty", lambda _: b""),
    "no-key": _key("bad_key", lambda _: None),
    "empty-key": _key("bad_key", lambda _: b""),
    "long-key": _key("bad_key", lambda _: b"k" * 2000),
    "other-key": _key("key_mismatch", lambda _: b"someone-else"),
    "key-with-a-blank": _key("key_mismatch", lambda user: user.encode() + b" "),
    "key-not-utf8": _key("key_mismatch", lambda _: b"\xff\xfe"),
    "key-in-another-unicode-form": _key(
        "key_mismatch", lambda user: unicodedata.normalize("NFC", user).encode(), "e\u0301"
    ),
    "user-twice": Bad(
        "key_mismatch",
        lambda user: Record(user.encode(), good(user).replace(b'"platform"', b'"user_id":"other","platform"', 1)),
    ),
    "bad-byte": _swap("encoding", b"Thing", b"\xff\xfe"),
    "bad-byte-in-an-ignored-field": _ignored("encoding", b'"\xff"'),
    "surrogate-bytes": _swap("encoding", b"Thing", b"\xed\xa0\x80"),
    "half-a-surrogate-pair": _swap("encoding", b"Thing", rb"\ud83d"),
    "byte-order-mark": _bytes("encoding", lambda value: b"\xef\xbb\xbf" + value),
    "utf-16": _bytes("encoding", lambda value: value.decode().encode("utf-16")),
    "gzipped-value": _bytes("encoding", gzip.compress),
    "raw-nul": _swap("syntax", b"Thing", b"a\0b"),
    "truncated": _bytes("syntax", lambda value: value[:-20]),
    "trailing-garbage": _bytes("syntax", lambda value: value + b"}"),
    "two-documents": _bytes("syntax", lambda value: value + b"\n" + value),
    "avro": _bytes("syntax", lambda _: b"\x00\x00\x00\x00\x01\x0aavro"),
    "protobuf": _bytes("syntax", lambda _: b"\x0a\x05shop1\x12\x04view"),
    "nan": _ignored("syntax", b"NaN"),
    "infinity": _ignored("syntax", b"-Infinity"),
    "deep": _ignored("depth", b"[" * 10_000 + b"]" * 10_000),
    "time-1e400": _bytes("type", lambda value: value.replace(value.split(b'"time":')[1].split(b",")[0], b"1e400")),
    "time-minus-zero": _bytes("type", lambda value: value.replace(value.split(b'"time":')[1].split(b",")[0], b"-0")),
    "time-in-milliseconds": _field("type", "time", 1_767_225_600_000),
    "time-in-seconds": _field("type", "time", 1_767_225_600.5),
    "boolean-for-time": _field("type", "time", value=True),
    "integer-past-64-bits": _field("type", "data.object.id", 2**63 + 1),
    "number-for-boolean": _field("type", "data.consent", {"personalization": 1}),
    "number-for-action": _field("type", "data.action", 1.0),
    "null-object": _field("type", "data.object", None),
    "numbers-for-tags": _field("type", "data.object.tags", ["a", 1]),
    "one-mebibyte": _field("size", "data.object.text", "x" * (1 << 20)),
    "100000-tags": _field("size", "data.object.tags", ["t"] * 100_000),
    "decompression-bomb": _bytes("size", lambda value: value + b" " * BOMB_BYTES),
    "missing-action": _field("missing_field", "data.action", REMOVED),
    "missing-id": _field("missing_field", "id", REMOVED),
    "missing-user": _field("missing_field", "data.user_id", REMOVED),
    "unknown-type": _field("unknown_type", "type", "org.xplat.behavior.v9"),
    "unknown-specversion": _field("unknown_type", "specversion", "0.3"),
    "unknown-action": _field("unknown_action", "data.action", "teleport"),
    "unknown-object-type": _field("value", "data.object.type", "spaceship"),
    "empty-id": _field("value", "id", ""),
    "long-id": _field("value", "data.object.id", "i" * 257),
    "no-time-zone": _field("value", "time", "2026-01-01T00:00:00"),
    "leap-second": _field("value", "time", "2026-06-30T23:59:60Z"),
    "milliseconds-as-text": _field("value", "time", "1767225600000"),
    "year-10000": _field("value", "time", "10000-01-01T00:00:00Z"),
    "year-9999": _field("time_range", "time", "9999-12-31T23:59:59Z"),
    "before-1970": _field("time_range", "time", "1969-07-20T20:17:00Z"),
    "ten-minutes-ahead": Bad("time_range", lambda user: Record(user.encode(), changed(user, "time", ahead(10)))),
    "other-platform": _field("platform_mismatch", "data.platform", "video"),
    "platform-with-an-invisible-letter": _field("platform_mismatch", "data.platform", "shop\u200b"),
}


def _one(path: str, value: object) -> Callable[[str], list[Record]]:
    return lambda user: [Record(user.encode(), changed(user, path, value))]


def _plain(*headers: tuple[str, bytes], partition: int = -1) -> Callable[[str], list[Record]]:
    return lambda user: [Record(user.encode(), good(user), headers, partition)]


def _many(user: str, number: int, **fields: Any) -> list[Record]:
    event = make_event(user_id=user)
    return [
        Record(user.encode(), good(user, **{"event_id": event.event_id, "occurred_at": event.occurred_at, **fields}))
        for _ in range(number)
    ]


def _padded(user: str) -> list[Record]:
    value = good(user)
    return [Record(user.encode(), value + b" " * (MAX_EVENT_BYTES - len(value)))]


def _late(user: str) -> list[Record]:
    old = int(time.time() * 1000) - 91 * 86_400_000
    return [Record(user.encode(), good(user, occurred_at=at)) for at in (old, old + 91 * 86_400_000)]


def _two_contents(user: str) -> list[Record]:
    event_id = make_event().event_id
    return [Record(user.encode(), good(user, event_id=event_id, object_id=name)) for name in "ab"]


GOOD: Final[dict[str, Good]] = {
    "html-in-ids": Good(1, _one("data.object.id", "</script><b>"), "<img src=x onerror=alert(1)>&amp;"),
    "sql-in-ids": Good(1, _one("id", "1'); drop table events; --"), "'; drop table users; --"),
    "newline-and-csv-in-ids": Good(1, _one("data.object.id", 'a,"b"\n=1+1'), 'a\r\n;"b",=1+1'),
    "path-in-ids": Good(1, _one("data.object.id", "../../etc/passwd"), "../../../../etc/passwd"),
    "markup-in-ids": Good(1, _one("data.object.id", "[red]"), "[/red] :smile: %s {0} \x1b[2J"),
    "escaped-nul-in-ids": Good(1, _one("data.object.id", "a\0b"), "a\0b"),
    "right-to-left-in-ids": Good(1, _one("data.object.id", "\u202eabc"), "\u202eabc\u200b"),
    "composed-letter": Good(1, _plain(), "\u00e9"),
    "decomposed-letter": Good(1, _plain(), "e\u0301"),
    "id-not-a-uuid": Good(1, _one("id", "☕ 7")),
    "key-twice": Good(
        1, lambda user: [Record(user.encode(), good(user).replace(b'"action"', b'"action":"like","action"', 1))]
    ),
    "unknown-fields": Good(1, _one("data.dwell_ms", {"a": [{"b": -1}]})),
    "negative-dwell-time": Good(1, _one("data.dwell_ms", -1)),
    "endless-dwell-time": Good(1, _one("data.dwell_ms", 10**12)),
    "vector-of-another-width": Good(1, _one("data.object.embedding", [0.0, 0.0])),
    "1e400-in-an-ignored-field": Good(
        1, lambda user: [Record(user.encode(), good(user).replace(b'"id"', b'"x":[1e400,-0,1e99],"id"', 1))]
    ),
    "exactly-32-kib": Good(1, _padded),
    "6000-tags": Good(1, _one("data.object.tags", ["t"] * 6000)),
    "no-headers": Good(1, _plain()),
    "1000-headers": Good(1, _plain(*((f"h{number}", b"x" * 20) for number in range(1000)))),
    "header-values-not-utf8": Good(1, _plain(("traceparent", b"\xff\xfe\x00"), ("content-type", b"application/avro"))),
    "foreign-origin-headers": Good(1, _plain(("topic", b"behavior.video.v1"), ("received-at-ms", b"soon"))),
    "another-partition": Good(1, _plain(partition=0)),
    "same-event-three-times": Good(1, lambda user: _many(user, 3, object_id="a", object_title="tea")),
    "same-id-other-content": Good(2, _two_contents),
    "1970": Good(1, _one("time", "1970-01-01T00:00:00Z")),
    "seconds-taken-for-milliseconds": Good(1, _one("time", "1970-01-21T10:53:45.600Z")),
    "four-minutes-ahead": Good(1, lambda user: [Record(user.encode(), changed(user, "time", ahead(4)))]),
    "another-time-zone": Good(1, _one("time", "2026-01-01T02:00:00.123456789+02:00")),
    "older-than-the-horizon": Good(1, _late),
    "unknown-item": Good(1, lambda user: [Record(user.encode(), good(user, object_title="", object_id="new"))]),
    "consent-declined": Good(0, _one("data.consent", {"personalization": False})),
    "consent-unsaid": Good(1, _one("data.consent", None)),
    "1000-events-of-one-user": Good(50, lambda user: [Record(user.encode(), good(user)) for _ in range(1000)]),
}
