"""Dead letters: read as they were written, explained, and replayed so that every event counts once."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import any_events
from xplat_stream import rejected
from xplat_stream.adapters import REASONS, decode_event, encode_event
from xplat_stream.cli import _escaped, _plain, _shortened
from xplat_stream.errors import DataError, DeliveryError, RejectedEvent
from xplat_stream.kafka.codec import (
    MAX_LETTER_BYTES,
    REPLAYED,
    Headers,
    Letter,
    Origin,
    dead_letter,
    read_letter,
    replay_receipt,
)
from xplat_stream.kafka.log import Span
from xplat_stream.kafka.topics import REJECTED, REKEYED, behavior_topic
from xplat_stream.rejected import find_rejected, list_rejected, readmit, replay_rejected, select, whole_value
from xplat_stream.settings import Settings
from xplat_stream.testing import make_event

if TYPE_CHECKING:
    from collections.abc import Iterator

NOW_MS = 1_900_000_000_000
SHOP = behavior_topic("shop")


def letter_of(
    key: bytes | None, value: bytes | None, *, reason: str = "crash", topic: str = SHOP, at_ms: int = NOW_MS
) -> Letter:
    """Return the letter a worker would have written."""
    letter, headers = dead_letter(value, RejectedEvent(reason, "why"), Origin(topic, 0, 7, at_ms))
    return read_letter(key, letter, headers)


@given(
    key=st.none() | st.binary(max_size=8),
    value=st.none() | st.binary(max_size=8),
    reason=st.sampled_from(sorted(REASONS)),
    detail=st.text(max_size=20),
    origin=st.builds(
        Origin,
        topic=st.sampled_from([SHOP, REKEYED]),
        partition=st.integers(0, 99),
        offset=st.integers(0, 2**62),
        received_at_ms=st.integers(0, 253_402_300_799_999),
    ),
)
def test_a_letter_is_read_as_it_was_written(
    key: bytes | None, value: bytes | None, reason: str, detail: str, origin: Origin
) -> None:
    """Original bytes, null or not, key, reason, detail and origin to the millisecond; and so is a receipt's origin."""
    letter, headers = dead_letter(value, RejectedEvent(reason, detail), origin)
    assert read_letter(key, letter, headers) == Letter(
        key, value, reason, detail.encode("utf-8", "replace").decode(), origin, None
    )
    receipt = read_letter(key, None, replay_receipt(origin))
    assert (receipt.reason, receipt.origin) == (REPLAYED, origin)


@pytest.mark.parametrize("at_ms", [-1, 2**62], ids=["no time", "year 146 million"])
def test_an_impossible_kafka_time_is_no_reason_to_stop(at_ms: int) -> None:
    """A letter is written whatever a producer claims as Kafka's time."""
    assert letter_of(b"u", b"x", at_ms=at_ms).origin.received_at_ms in {0, 253_402_300_799_999}


@pytest.mark.parametrize(
    "spoiled",
    [
        [],
        [("reason", None)],
        [("reason", b"size"), ("topic", b"\xff"), ("partition", b"0"), ("offset", b"0"), ("received-at", b"now")],
        [("reason", b"size"), ("topic", b"t"), ("partition", b"x"), ("offset", b"0"), ("received-at", b"2026-01-01")],
    ],
)
def test_a_foreign_record_is_told_from_a_letter(spoiled: Headers) -> None:
    """What no worker wrote is recognized, not misread."""
    with pytest.raises((KeyError, ValueError)):
        read_letter(None, b"", spoiled)


@given(event=any_events())
def test_what_is_admissible_is_readmitted_under_its_own_key(event: Any) -> None:
    """A crash letter of a good event goes back to its platform's topic, unaltered."""
    letter = letter_of(event.user_id.encode(), encode_event(event), topic=behavior_topic("shop"), at_ms=2**43)
    if event.platform == "shop":
        found = readmit(letter, letter.value)
        assert found == (SHOP, event.user_id.encode())
    else:
        with pytest.raises(RejectedEvent, match="platform_mismatch"):
            readmit(letter, letter.value)


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        pytest.param(None, "bad_key", id="none"),
        pytest.param(b"", "bad_key", id="empty"),
        pytest.param(b"k" * 1025, "bad_key", id="long"),
        pytest.param(b"someone-else", "key_mismatch", id="other"),
        pytest.param(b"\xff", "key_mismatch", id="no text"),
    ],
)
def test_the_event_says_whose_it_is_only_when_asked(key: bytes | None, reason: str) -> None:
    """A wrong key stays wrong, unless a person decides that the event is right."""
    letter = letter_of(key, encode_event(make_event(user_id="ann")), reason=reason)
    with pytest.raises(RejectedEvent) as caught:
        readmit(letter, letter.value)
    assert caught.value.reason == reason
    assert readmit(letter, letter.value, key_from_event=True) == (SHOP, b"ann")


def test_only_the_key_is_taken_from_the_event() -> None:
    """What is wrong with the event itself stays so."""
    letter = letter_of(None, encode_event(make_event(platform="video")))
    with pytest.raises(RejectedEvent, match="platform_mismatch"):
        readmit(letter, letter.value, key_from_event=True)


def test_the_future_does_not_pass_by_waiting() -> None:
    """An event is held against the Kafka time at which it first arrived."""
    letter = letter_of(b"user-1", encode_event(make_event(occurred_at=NOW_MS + 600_000)), reason="time_range")
    with pytest.raises(RejectedEvent, match="time_range"):
        readmit(letter, letter.value)


@pytest.mark.parametrize("key", [b"user-1", None])
def test_without_consent_nothing_is_published(key: bytes | None) -> None:
    """Also where the key has to be repaired, and also of a forwarded record."""
    value = encode_event(make_event()).replace(b'"data":{', b'"data":{"consent":{"personalization":false},')
    assert decode_event(value) is None
    assert readmit(letter_of(key, value), value, key_from_event=True) is None
    assert readmit(letter_of(key, value, topic=REKEYED), value, key_from_event=True) is None


def test_a_forwarded_record_goes_back_to_its_platform() -> None:
    """The event names it; the topic of forwarded records is the workers' own."""
    value = encode_event(make_event(platform="video"))
    assert readmit(letter_of(b"user-1", value, topic=REKEYED), value) == (behavior_topic("video"), b"user-1")


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"reason": "sise"}, "no letter has the reason 'sise' .*one of empty, size"),
        ({"topic": "shop"}, "no letter comes from the topic 'shop' .*behavior.<platform>.v1"),
        ({"topic": REJECTED}, "no letter comes from the topic"),
        ({"place": "behavior.shop.v1:3"}, "no place in a log.*TOPIC:PARTITION:OFFSET"),
        ({"place": "behavior.shop.v1:3:x"}, "no place in a log"),
        ({"place": "1:2"}, "no place in a log"),
    ],
)
def test_a_mistaken_selection_is_named(wanted: dict[str, str], words: str) -> None:
    """One line says what is wrong with which option."""
    with pytest.raises(DataError, match=words):
        select(**wanted)


def test_a_selection_is_all_that_is_said() -> None:
    """Reason, topic and place narrow it down together; nothing said, nothing left out."""
    letter = letter_of(b"u", b"x", reason="syntax")
    assert select().takes(letter)
    assert select("syntax", SHOP, f"{SHOP}:00:07").takes(letter)
    assert not select("size", SHOP).takes(letter)
    assert not select(topic=REKEYED).takes(letter)
    assert not select(place=f"{SHOP}:0:8").takes(letter)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\x1b[2J\x00", "a\\nb\\x1b[2J\\x00"),
        ("\u202eabc\u200b", "\\u202eabc\\u200b"),
        ("[red]x[/] :smile:", "[red]x[/] :smile:"),
        ("Läufer ☕ 跑步", "Läufer ☕ 跑步"),
        ("\U000e0001", "\\U000e0001"),
    ],
)
def test_other_peoples_text_is_shown_and_not_obeyed(text: str, shown: str) -> None:
    """Control characters, invisible ones and markup reach no terminal as such."""
    assert _escaped(text) == shown
    assert _plain(text).plain == shown
    assert _plain(text).spans == []


def test_bytes_are_shown_shortened() -> None:
    """The start, and how many there are in truth."""
    assert _shortened(None) == "none"
    assert _shortened(b"\xff\x00a") == "\\xff\\x00a (3 bytes)"
    assert _shortened(b"x" * 241) == "x" * 240 + "… (241 bytes)"
    assert _shortened(b"x" * 300, whole=5_000_000).endswith("… (5000000 bytes)")


class FakeKafka:
    """Topics in memory, as the letters' page reads and writes them. `fail_after`: acknowledgements until one fails."""

    def __init__(self) -> None:
        self.topics: dict[str, list[SimpleNamespace]] = {SHOP: [], REJECTED: [], REKEYED: []}
        self.fail_after = -1
        self.flushes = 0
        self._pending: list[tuple[Any, ...]] = []

    def append(self, topic: str, key: bytes | None, value: bytes | None, headers: Headers = ()) -> Origin:
        """Append a record, and return where it is."""
        held = self.topics[topic]
        origin = Origin(topic, 0, len(held), NOW_MS + len(held))
        held.append(
            SimpleNamespace(
                key=lambda: key,
                value=lambda: value,
                headers=lambda: list(headers),
                offset=lambda: origin.offset,
                timestamp=lambda: (1, origin.received_at_ms),
            )
        )
        return origin

    def reject(self, key: bytes | None, value: bytes | None, reason: str = "crash", topic: str = SHOP) -> Origin:
        """Append a record to its topic and its letter to the letters."""
        origin = self.append(topic, key, value)
        letter, headers = dead_letter(value, RejectedEvent(reason, "why"), origin)
        self.append(REJECTED, key, letter, headers)
        return origin

    def spans(self, _settings: Settings, topics: list[str]) -> list[Span]:
        """See `xplat_stream.kafka.log.spans`."""
        return [Span(topic, 0, 0, len(self.topics[topic])) for topic in topics if topic in self.topics]

    def read_span(self, _settings: Settings, span: Span) -> Iterator[list[SimpleNamespace]]:
        """See `xplat_stream.kafka.log.read_span`. Records that retention has removed are None."""
        yield [one for one in self.topics[span.topic][span.start : span.end] if one is not None]

    def send_raw(self, topic: str, key: bytes | None, value: bytes | None, *, headers: Headers, **_: Any) -> None:
        """Queue a record until the next flush."""
        self._pending.append((topic, key, value, headers))

    def flush(self) -> None:
        """Append what is queued, or fail after some of it."""
        pending, self._pending = self._pending, []
        for record in pending:
            if self.fail_after == 0:
                message = "told to fail"
                raise DeliveryError(message, left=1)
            self.fail_after -= 1
            self.append(*record)
        self.flushes += 1

    def event_ids(self, topic: str = SHOP) -> Counter[str]:
        """Count the ids of what can be admitted on a topic under its keys."""
        found = Counter[str]()
        for one in self.topics[topic]:
            event = decode_event(one.value())
            if event is not None and event.user_id.encode() == one.key():
                found[event.event_id] += 1
        return found


@pytest.fixture
def kafka(monkeypatch: pytest.MonkeyPatch) -> FakeKafka:
    """Return the Kafka that the page on letters sees in this test."""
    made = FakeKafka()
    monkeypatch.setattr(rejected, "spans", made.spans)
    monkeypatch.setattr(rejected, "read_span", made.read_span)
    monkeypatch.setattr(rejected, "partition_counts", lambda _: dict.fromkeys(made.topics, 1))
    monkeypatch.setattr(rejected.EventProducer, "__init__", lambda *_: None)
    monkeypatch.setattr(rejected.EventProducer, "send_raw", lambda _, *record, **rest: made.send_raw(*record, **rest))
    monkeypatch.setattr(rejected.EventProducer, "flush", lambda *_: made.flush())
    return made


SETTINGS = Settings()


def test_every_letter_has_one_fate(kafka: FakeKafka) -> None:
    """Published, already published, still bad, withheld, gone, homeless: the counts add up."""
    good, mislaid = make_event(user_id="ann"), make_event(user_id="bob")
    kafka.reject(b"ann", encode_event(good))
    kafka.reject(b"x", encode_event(mislaid), "key_mismatch")
    kafka.reject(b"ann", b"{", "syntax")
    kafka.reject(b"ann", b'{"specversion":"0.3"}', "type")
    declined = encode_event(good).replace(b'"data":{', b'"data":{"consent":{"personalization":false},')
    kafka.reject(b"ann", declined)
    for platform in ("rejected", "podcast"):
        kafka.reject(b"ann", encode_event(make_event(user_id="ann", platform=platform)), "value", topic=REKEYED)
    cut = kafka.reject(b"ann", b"x" * (MAX_LETTER_BYTES + 9), "size")
    lost = kafka.reject(b"ann", b"y" * (MAX_LETTER_BYTES + 9), "size")
    kafka.topics[SHOP][lost.offset] = None  # type: ignore[call-overload]
    before = len(kafka.topics[SHOP])

    rehearsed = replay_rejected(SETTINGS, key_from_event=True, dry_run=True)
    assert len(kafka.topics[SHOP]) == before
    first = replay_rejected(SETTINGS)
    second = replay_rejected(SETTINGS, key_from_event=True)
    third = replay_rejected(SETTINGS, key_from_event=True)

    assert rehearsed.dry_run
    assert rehearsed.replayed == {"crash": 1, "key_mismatch": 1}
    assert (first.replayed, first.already) == ({"crash": 1}, 0)
    assert first.still == {"key_mismatch": 1, "syntax": 1, "missing_field": 1, "size": 1}
    assert (second.replayed, second.already) == ({"key_mismatch": 1}, 1)
    assert (third.replayed, third.already) == ({}, 2)
    for done in (rehearsed, first, second, third):
        assert done.withheld == 1
        assert done.gone == (f"{SHOP}:0:{lost.offset}",)
        assert done.homeless == {behavior_topic("podcast"): 1, REJECTED: 1}
        fates = (done.replayed.values(), done.still.values(), done.homeless.values())
        assert sum(map(sum, fates)) + done.already + done.withheld + len(done.gone) == done.letters == 9
    published = kafka.topics[SHOP][before:]
    assert [one.key() for one in published] == [b"ann", b"bob"]
    assert [decode_event(one.value()) for one in published] == [good, mislaid]
    assert whole_value(SETTINGS, find_rejected(SETTINGS, select("size"), limit=2)[0].letter) == b"x" * (
        MAX_LETTER_BYTES + 9
    )
    assert cut.offset != lost.offset


@pytest.mark.parametrize("fail_after", range(8))
def test_an_interrupted_replay_is_finished_by_the_next(kafka: FakeKafka, fail_after: int) -> None:
    """Wherever it breaks off, the next run publishes the rest; a receipt is never there before its event."""
    events = [make_event(user_id="ann") for _ in range(3)]
    for event in events:
        kafka.reject(None, encode_event(event), "bad_key")
    kafka.fail_after = fail_after
    try:
        replay_rejected(SETTINGS, key_from_event=True)
    except DeliveryError:
        assert fail_after < 6
    else:
        assert fail_after >= 6
    receipts = sum(dict(one.headers())["reason"] == b"replayed" for one in kafka.topics[REJECTED])
    assert receipts == max(0, min(3, fail_after - 3))
    assert sum(kafka.event_ids().values()) == min(3, fail_after)
    kafka.fail_after = -1
    replay_rejected(SETTINGS, key_from_event=True)
    assert kafka.event_ids().keys() == {event.event_id for event in events}
    held = len(kafka.topics[SHOP])
    assert replay_rejected(SETTINGS, key_from_event=True).already == 3
    assert len(kafka.topics[SHOP]) == held


def test_receipts_follow_in_parts(kafka: FakeKafka, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long replay that is interrupted starts again near where it stopped."""
    monkeypatch.setattr(rejected, "_RECEIPTS_EVERY", 2)
    for _ in range(5):
        kafka.reject(b"ann", encode_event(make_event(user_id="ann")))
    assert replay_rejected(SETTINGS).replayed == {"crash": 5}
    assert kafka.flushes == 6
    assert replay_rejected(SETTINGS).already == 5


def test_a_letter_written_twice_is_one(kafka: FakeKafka) -> None:
    """A crash, or a second group of workers, writes a letter again; it is listed, shown and replayed once."""
    kafka.reject(b"ann", encode_event(make_event(user_id="ann")))
    twin = kafka.topics[REJECTED][0]
    kafka.append(REJECTED, twin.key(), twin.value(), twin.headers())
    kafka.append(REJECTED, b"k", b"not a letter")
    listing = list_rejected(SETTINGS)
    assert (listing.letters, listing.replayed, listing.foreign) == (1, 0, 1)
    assert replay_rejected(SETTINGS).replayed == {"crash": 1}
    (count,) = list_rejected(SETTINGS).counts
    assert (count.reason, count.meaning, count.topic) == ("crash", REASONS["crash"], SHOP)
    assert (count.letters, count.replayed) == (1, 1)
    (found,) = find_rejected(SETTINGS, select(), limit=10)
    assert found.replayed


def test_the_newest_letters_are_shown(kafka: FakeKafka) -> None:
    """As many as asked for, of those meant, the newest last."""
    for number in range(4):
        kafka.reject(b"ann", b"%d" % number, "syntax")
        kafka.reject(b"ann", b"", "empty")
    found = find_rejected(SETTINGS, select("syntax"), limit=2)
    assert [one.letter.value for one in found] == [b"2", b"3"]
    assert [one.letter.value for one in find_rejected(SETTINGS, select(place=f"{SHOP}:0:2"), limit=2)] == [b"1"]
