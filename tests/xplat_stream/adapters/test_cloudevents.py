"""Admission: every bad input has its one reason, and what is good comes through unchanged."""

from __future__ import annotations

import copy
import gzip
import json
from typing import Any

import pytest

from xplat_stream.adapters import REASONS, admit, decode_event, encode_event
from xplat_stream.errors import RejectedEvent
from xplat_stream.event import CLOCK_TOLERANCE_MS, MAX_EVENT_BYTES, Event, Millis, Object, UserId

TIME_MS = 1_767_225_600_000  # 2026-01-01T00:00:00Z
GOOD: dict[str, Any] = {
    "specversion": "1.0",
    "id": "1",
    "source": "//shop.example",
    "type": "org.xplat.behavior.v1",
    "time": "2026-01-01T00:00:00Z",
    "data": {
        "user_id": "u",
        "platform": "shop",
        "action": "view",
        "object": {"id": "o", "type": "product", "title": "Shoes", "categories": ["Sports > Running"]},
    },
}
REMOVED = object()


def admitted(key: bytes | None, value: bytes | None, received_at_ms: int = TIME_MS) -> Event | None:
    """Admit a record that arrived on the shop's topic the moment it is dated."""
    return admit(key, value, platform="shop", received_at_ms=received_at_ms)


def changed(place: str, value: object) -> bytes:
    """Return the good event with one field replaced, or taken out."""
    envelope = copy.deepcopy(GOOD)
    *path, key = place.split(".")
    owner = envelope
    for step in path:
        owner = owner[step]
    if value is REMOVED:
        del owner[key]
    else:
        owner[key] = value
    return json.dumps(envelope).encode()


def text_of(event: dict[str, Any] = GOOD) -> bytes:
    """Return the good event as bytes."""
    return json.dumps(event).encode()


def raw(old: str, new: str) -> bytes:
    """Return the good event with a stretch of its JSON replaced: for what is no JSON."""
    text = text_of().decode()
    assert old in text
    return text.replace(old, new, 1).encode()


def test_the_good_event_is_admitted() -> None:
    """The table below differs from this one by a single fault each."""
    assert admitted(b"u", text_of()) == Event(
        "//shop.example#1",
        UserId("u"),
        "shop",
        "view",
        Object("o", "product", "Shoes", categories=("Sports > Running",)),
        Millis(TIME_MS),
    )


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        pytest.param(None, "empty", id="null"),
        pytest.param(b"", "empty", id="empty"),
        pytest.param(b"   ", "syntax", id="blanks"),
        pytest.param(text_of().replace(b"Shoes", b"Sh\xffes"), "encoding", id="bad-utf8"),
        pytest.param(text_of().replace(b"Shoes", b"\xed\xa0\x80"), "encoding", id="surrogate-bytes"),
        pytest.param(raw("Shoes", "\\ud800"), "encoding", id="lone-surrogate-escape"),
        pytest.param(raw("Shoes", "\\udc00 "), "encoding", id="lone-low-surrogate-escape"),
        pytest.param(raw("Shoes", "\\ud800")[:-1], "syntax", id="lone-surrogate-escape-truncated"),
        pytest.param(
            raw('"id": "1"', '"id": "1", "x": "\\ud800"'), "encoding", id="lone-surrogate-in-an-ignored-field"
        ),
        pytest.param(
            raw('"id": "1"', '"id": "1", "x": "?"').replace(b"?", b"\xff"),
            "encoding",
            id="bad-utf8-in-an-ignored-field",
        ),
        pytest.param(raw("Shoes", "a\0b"), "syntax", id="raw-nul"),
        pytest.param(text_of() + b"\0", "syntax", id="nul-at-the-end"),
        pytest.param(text_of().decode().encode("utf-16-le"), "encoding", id="utf16-without-mark"),
        pytest.param(gzip.compress(text_of()), "encoding", id="gzipped"),
        pytest.param(text_of().decode().encode("utf-16"), "encoding", id="utf16"),
        pytest.param(b"\xef\xbb\xbf" + text_of(), "encoding", id="bom"),
        pytest.param(text_of()[:-1], "syntax", id="truncated"),
        pytest.param(text_of()[: len(text_of()) // 2], "syntax", id="half"),
        pytest.param(text_of() + b"x", "syntax", id="trailing-garbage"),
        pytest.param(text_of() + text_of(), "syntax", id="two-documents"),
        pytest.param(text_of() + b"\n" + text_of(), "syntax", id="two-lines"),
        pytest.param(raw('"id": "1"', '"id": "1", "x": ' + "[" * 10_000 + "]" * 10_000), "depth", id="depth-10000"),
        pytest.param(raw('"2026-01-01T00:00:00Z"', "NaN"), "syntax", id="nan"),
        pytest.param(raw('"id": "1"', '"id": "1", "x": NaN'), "syntax", id="nan-in-an-ignored-field"),
        pytest.param(raw('"2026-01-01T00:00:00Z"', "Infinity"), "syntax", id="infinity"),
        pytest.param(b"\x00\x00\x00\x00\x01avro", "syntax", id="avro"),
        pytest.param(b"[]", "type", id="array"),
        pytest.param(b"null", "type", id="json-null"),
        pytest.param(changed("time", value=True), "type", id="bool-for-time"),
        pytest.param(changed("time", TIME_MS), "type", id="int-for-time"),
        pytest.param(raw('"2026-01-01T00:00:00Z"', "-0"), "type", id="minus-zero-for-time"),
        pytest.param(raw('"2026-01-01T00:00:00Z"', "1e400"), "type", id="1e400-for-time"),
        pytest.param(changed("time", 2**63 + 1), "type", id="int-past-64-bits-for-time"),
        pytest.param(raw('"user_id": "u"', '"user_id": 1e400'), "type", id="1e400-for-string"),
        pytest.param(changed("data.user_id", 10**30), "type", id="int-past-64-bits-for-string"),
        pytest.param(changed("data.user_id", 7), "type", id="int-for-string"),
        pytest.param(changed("data.action", value=True), "type", id="bool-for-string"),
        pytest.param(changed("data.object.categories", "Sports"), "type", id="string-for-list"),
        pytest.param(changed("data.object", "o"), "type", id="string-for-object"),
        pytest.param(changed("data.consent", {"personalization": "no"}), "type", id="string-for-consent"),
        pytest.param(changed("data.consent", {"personalization": 0}), "type", id="int-for-consent"),
        pytest.param(changed("time", "2026-01-01T00:00:00"), "value", id="no-timezone"),
        pytest.param(changed("time", "yesterday"), "value", id="no-date"),
        pytest.param(changed("time", "2026-02-30T00:00:00Z"), "value", id="no-such-day"),
        pytest.param(changed("time", "2026-06-30T23:59:60Z"), "value", id="leap-second"),
        pytest.param(changed("time", "1767225600000"), "value", id="int-as-string"),
        pytest.param(changed("time", "10000-01-01T00:00:00Z"), "value", id="year-10000"),
        pytest.param(changed("time", "9999-12-31T23:59:59Z"), "time_range", id="year-9999"),
        pytest.param(changed("time", "9999-12-31T23:59:59-12:00"), "time_range", id="year-9999-behind-utc"),
        pytest.param(changed("time", "1969-12-31T23:59:59Z"), "time_range", id="negative-time"),
        pytest.param(changed("time", "0001-01-01T00:00:00+14:00"), "time_range", id="year-0"),
        pytest.param(changed("data.object.text", "x" * 1024 * 1024), "size", id="1-MiB"),
        pytest.param(changed("data.object.tags", ["t"] * 100_000), "size", id="100000-tags"),
        pytest.param(changed("id", ""), "value", id="empty-id"),
        pytest.param(changed("source", ""), "value", id="empty-source"),
        pytest.param(changed("id", "x" * 257), "value", id="long-id"),
        pytest.param(changed("data.object.id", ""), "value", id="empty-object-id"),
        pytest.param(changed("data.object.type", "spaceship"), "value", id="unknown-object-type"),
        pytest.param(changed("data.user_id", "x" * 257), "value", id="long-user"),
        pytest.param(changed("data.user_id", ""), "missing_field", id="empty-user"),
        pytest.param(changed("specversion", "0.3"), "unknown_type", id="old-specversion"),
        pytest.param(changed("type", "org.xplat.behavior.v2"), "unknown_type", id="future-type"),
        pytest.param(changed("data.action", "teleport"), "unknown_action", id="unknown-action"),
        pytest.param(changed("data.action", "View"), "unknown_action", id="action-in-another-case"),
        pytest.param(changed("data.platform", "video"), "platform_mismatch", id="wrong-platform"),
        *(
            pytest.param(changed(place, REMOVED), "missing_field", id=f"without-{place}")
            for place in (
                "specversion",
                "id",
                "source",
                "type",
                "time",
                "data",
                "data.user_id",
                "data.platform",
                "data.action",
                "data.object",
                "data.object.id",
                "data.object.type",
            )
        ),
    ],
)
def test_bad_values_have_one_reason(value: bytes | None, reason: str) -> None:
    """Each fault is dead-lettered under the reason that tells the platform what to mend."""
    with pytest.raises(RejectedEvent) as caught:
        admitted(b"u", value)
    assert (caught.value.reason, bool(caught.value.detail)) == (reason, True)
    assert caught.value.reason in REASONS


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        pytest.param(None, "bad_key", id="null"),
        pytest.param(b"", "bad_key", id="empty"),
        pytest.param(b"u" * 1025, "bad_key", id="long"),
        pytest.param(b"v", "key_mismatch", id="another-user"),
        pytest.param(b"u ", "key_mismatch", id="a-blank-more"),
        pytest.param(b"\xff", "key_mismatch", id="no-utf8"),
    ],
)
def test_bad_keys_have_one_reason(key: bytes | None, reason: str) -> None:
    """An event under another key would be folded by the wrong worker, so it is not taken at all."""
    with pytest.raises(RejectedEvent) as caught:
        admitted(key, text_of())
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("ahead_ms", "forgiven"),
    [
        pytest.param(0, True, id="now"),
        pytest.param(CLOCK_TOLERANCE_MS, True, id="at-the-tolerance"),
        pytest.param(CLOCK_TOLERANCE_MS + 1, False, id="a-millisecond-past"),
    ],
)
def test_the_future_ends_after_five_minutes(ahead_ms: int, *, forgiven: bool) -> None:
    """A clock a little ahead is forgiven; one that is not cannot move T."""
    if forgiven:
        assert admitted(b"u", text_of(), TIME_MS - ahead_ms) is not None
    else:
        with pytest.raises(RejectedEvent, match="time_range"):
            admitted(b"u", text_of(), TIME_MS - ahead_ms)


@pytest.mark.parametrize("reader", ["decode", "admit"])
def test_no_consent_no_event(reader: str) -> None:
    """An event whose user declined personalization is dropped without being a fault."""
    value = changed("data.consent", {"personalization": False})
    assert (decode_event(value) if reader == "decode" else admitted(b"u", value)) is None


def test_consent_given_or_unsaid_is_an_event() -> None:
    """Consent is the platform's to collect: it may say so or not."""
    assert decode_event(changed("data.consent", {"personalization": True})) == decode_event(text_of())
    assert decode_event(changed("data.consent", None)) == decode_event(text_of())


def test_an_anonymous_id_stands_in_for_a_user() -> None:
    """A visitor who is not signed in has a profile under the anonymous id; a user id comes first."""
    value = json.loads(changed("data.anonymous_id", "anon"))
    event = decode_event(json.dumps(value).encode())
    assert event is not None
    assert event.user_id == "u"
    del value["data"]["user_id"]
    event = decode_event(json.dumps(value).encode())
    assert event is not None
    assert event.user_id == "anon"


def test_unknown_fields_are_ignored() -> None:
    """A platform may send more than is read, at any depth."""
    assert decode_event(changed("data.object.color", {"r": [1, 2]})) == decode_event(text_of())
    assert decode_event(changed("traceparent", "00-1")) == decode_event(text_of())


@pytest.mark.parametrize("number", ["-0", "1e400", "-1", "1.5", str(2**63 + 1), "1" + "0" * 5000])
def test_numbers_are_in_no_field_of_the_schema(number: str) -> None:
    """A number where nothing is read, a dwell time for example, is not looked at, however large."""
    assert decode_event(raw('"id": "1"', f'"id": "1", "dwell_ms": {number}')) == decode_event(text_of())


def test_of_two_equal_keys_the_last_counts() -> None:
    """A JSON object with a key twice is read one fixed way, the last value; every value has to fit the schema."""
    event = decode_event(raw('"action": "view"', '"action": "view", "action": "like"'))
    assert event is not None
    assert event.action == "like"
    with pytest.raises(RejectedEvent, match="missing_field"):
        decode_event(raw('"data": {', '"data": {}, "data": {'))


def test_a_user_given_twice_has_to_be_the_key_the_last_time() -> None:
    """What is compared with the key is what is folded."""
    assert admitted(b"u", raw('"user_id": "u"', '"user_id": "v", "user_id": "u"')) is not None
    with pytest.raises(RejectedEvent, match="key_mismatch"):
        admitted(b"u", raw('"user_id": "u"', '"user_id": "u", "user_id": "v"'))


@pytest.mark.parametrize(
    "name",
    ["a\nb", "<b>&amp;", "'; drop table users; --", "../../etc/passwd", "\u202eabc", "e\u0301", "\u00e9", "a\0b", "☕"],
)
def test_ids_are_data(name: str) -> None:
    """Whatever characters an id has, it is stored as it came, and two spellings are two users."""
    event = admitted(name.encode(), changed("data.user_id", name))
    assert event is not None
    assert event.user_id == name


def test_times_are_kept_to_the_millisecond_in_utc() -> None:
    """Another zone and finer digits name the same instant."""
    event = decode_event(changed("time", "2026-01-01T02:00:00.123456+02:00"))
    assert event is not None
    assert event.occurred_at == TIME_MS + 123


@pytest.mark.parametrize(
    ("event_id", "source", "name"),
    [
        pytest.param("//shop.example#1", "//shop.example", "1", id="usual"),
        pytest.param("a#b#c", "a#b", "c", id="two-hashes"),
        pytest.param("plain", "//shop", "plain", id="no-source"),
    ],
)
def test_the_event_id_is_source_and_id(event_id: str, source: str, name: str) -> None:
    """CloudEvents' source and id together make the id; one without a source gets the platform's."""
    event = Event(event_id, UserId("u"), "shop", "view", Object("o", "product"), Millis(TIME_MS))
    envelope = json.loads(encode_event(event))
    assert (envelope["source"], envelope["id"], envelope["partitionkey"]) == (source, name, "u")
    again = decode_event(encode_event(event))
    assert again is not None
    assert again.event_id == f"{source}#{name}"


def test_the_size_limit_is_before_parsing() -> None:
    """One byte too many is `size`, whatever the bytes; the limit itself is allowed."""
    padding = MAX_EVENT_BYTES - len(text_of())
    assert decode_event(text_of() + b" " * padding) is not None
    with pytest.raises(RejectedEvent, match="size"):
        decode_event(b"\xff" * (MAX_EVENT_BYTES + 1))


def test_a_hash_belongs_to_the_source_or_to_the_id() -> None:
    """Two pairs of source and id that meet in a `#` are two events, and each survives the way back."""
    pairs = [("//a#b", "c"), ("//a", "b#c"), ("//a", "b#c#"), ("//a", "#"), ("//a#", "b")]
    events = [decode_event(text_of({**GOOD, "source": source, "id": name})) for source, name in pairs]
    assert len({event.event_id for event in events if event}) == len(pairs)
    assert [decode_event(encode_event(event)) for event in events if event] == events
