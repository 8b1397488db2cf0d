"""Dead letters: counted, explained, and published again once what rejected them is mended.

**Each event counts once, however often this is run.** A letter that can be admitted now is published to its platform's
topic; when Kafka has acknowledged that, a receipt naming the letter's origin is appended to `behavior.rejected.v1`
itself, and a letter with a receipt is never published again. Between the two steps a run can be interrupted: then the
next run publishes the event once more, with the same id and content, which a window, being a set, ignores. So the
receipt is what keeps runs cheap, and the window law what keeps them right. A receipt lies in the topic of the letters,
behind its letter: retention removes it after the letter, and looking for it reads no log but this one.

**A letter never comes back.** What today's code still rejects is not published. Admission is asked under the Kafka
time of the first arrival: an event from the future does not become one of the present by waiting. The published
record has the present as its Kafka time, so that retention keeps it as long as any other; what was admissible
at its first time is so at a later one.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from xplat_stream.adapters import REASONS, admit, decode_event
from xplat_stream.errors import DataError, RejectedEvent
from xplat_stream.kafka import EventProducer
from xplat_stream.kafka.codec import REPLAYED, Letter, Origin, read_letter, replay_receipt
from xplat_stream.kafka.log import read_span, spans
from xplat_stream.kafka.producer import EVENT_HEADERS
from xplat_stream.kafka.topics import REJECTED, REKEYED, behavior_topic, partition_counts, platform_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from xplat_stream.kafka.log import Span
    from xplat_stream.settings import Settings

_KEY_REASONS: Final = frozenset({"bad_key", "key_mismatch"})
_RECEIPTS_EVERY: Final = 500


class Selection(NamedTuple):
    """Which letters are meant; an empty field means all of them. Made by `select`."""

    reason: str = ""
    topic: str = ""
    place: str = ""

    def takes(self, letter: Letter) -> bool:
        """Tell whether a letter is meant."""
        return (
            self.reason in {"", letter.reason}
            and self.topic in {"", letter.origin.topic}
            and self.place in {"", letter.place}
        )


EVERYTHING: Final = Selection()


def select(reason: str = "", topic: str = "", place: str = "") -> Selection:
    """Return the selection in a person's words; `place` as ``topic:partition:offset``. Raises `DataError`."""
    if reason and reason not in REASONS:
        raise DataError(
            f"no letter has the reason {reason!r}",
            where="--reason",
            expected=f"one of {', '.join(REASONS)}",
            fix="`xplat rejected list` shows those there are.",
        )
    if topic and topic != REKEYED and platform_of(topic) is None:
        raise DataError(
            f"no letter comes from the topic {topic!r}",
            where="--topic",
            expected=f"behavior.<platform>.v1 or {REKEYED}",
            fix="`xplat rejected list` shows those there are.",
        )
    if place:
        name, *numbers = place.rsplit(":", 2)
        if len(numbers) != 2 or not all(number.isdecimal() for number in numbers):  # noqa: PLR2004 - partition, offset
            raise DataError(
                f"no place in a log: {place!r}",
                where="--offset",
                expected="TOPIC:PARTITION:OFFSET, as in behavior.shop.v1:3:1042",
                fix="`xplat rejected show` prints the place of every letter.",
            )
        place = ":".join((name, *(str(int(number)) for number in numbers)))
    return Selection(reason, topic, place)


class Found(NamedTuple):
    """A letter as it lies in the topic. `replayed`: a receipt says that it was published again."""

    letter: Letter
    written_at: datetime
    replayed: bool


class LetterCount(msgspec.Struct, frozen=True):
    """The letters of one reason from one topic."""

    reason: str
    meaning: str
    topic: str
    letters: int
    replayed: int
    """Of those, how many were published again."""
    last_at: datetime
    """When the last of them was written."""


class Listing(msgspec.Struct, frozen=True):
    """Everything `behavior.rejected.v1` holds, counted."""

    letters: int
    replayed: int
    foreign: int
    """Records there that no worker wrote; nothing is done with them."""
    counts: tuple[LetterCount, ...]


class Replay(msgspec.Struct, frozen=True):
    """What became of the letters that were meant: every one is in exactly one of the other fields."""

    letters: int
    replayed: dict[str, int]
    """Published again (in a dry run: would be), by the reason of the letter."""
    already: int
    """Published by an earlier run."""
    still: dict[str, int]
    """Inadmissible also today, by today's reason; not published."""
    withheld: int
    """Events of users who have not consented to personalization; not published."""
    gone: tuple[str, ...]
    """Places of letters that hold only the start of a long value, whose whole retention has removed."""
    homeless: dict[str, int]
    """By topic: letters whose topic this broker does not have."""
    dry_run: bool


class Readmitted(NamedTuple):
    """An event that is admissible today: the topic it belongs on and its key."""

    topic: str
    key: bytes


def readmit(letter: Letter, value: bytes | None, *, key_from_event: bool = False) -> Readmitted | None:
    """Hold a letter with its whole original value against today's admission.

    `key_from_event`: where the key is what is wrong, take the event's own user instead. A letter from
    `behavior.rekeyed.v1` belongs on the topic of the platform its event names: the worker that forwarded it had held
    that against the topic. None when the user has not consented. Raises `RejectedEvent`.
    """
    key = letter.key
    platform = platform_of(letter.origin.topic)
    if platform is None:
        forwarded = decode_event(value)
        if forwarded is None:
            return None
        platform = forwarded.platform
    try:
        event = admit(key, value, platform=platform, received_at_ms=letter.origin.received_at_ms)
    except RejectedEvent as rejection:
        if not key_from_event or rejection.reason not in _KEY_REASONS:
            raise
        event = decode_event(value)
        if event is None:
            return None
        key = event.user_id.encode()
        event = admit(key, value, platform=platform, received_at_ms=letter.origin.received_at_ms)
    return None if event is None or key is None else Readmitted(behavior_topic(platform), key)


def list_rejected(settings: Settings) -> Listing:
    """Count all letters by reason and topic, most first. Raises `KafkaUnavailable`, `DeliveryError`."""
    box = _Letterbox(settings)
    letters: dict[Origin, str] = {}
    last: dict[tuple[str, str], datetime] = {}
    for letter, written_at in box.letters():
        letters[letter.origin] = letter.reason
        where = (letter.reason, letter.origin.topic)
        last[where] = max(written_at, last.get(where, written_at))
    total = Counter((reason, origin.topic) for origin, reason in letters.items())
    replayed = Counter((letters[origin], origin.topic) for origin in box.receipts if origin in letters)
    counts = [
        LetterCount(
            reason, REASONS.get(reason, "not known to this version"), topic, number, replayed[reason, topic], at
        )
        for (reason, topic), number in total.most_common()
        for at in (last[reason, topic],)
    ]
    return Listing(len(letters), replayed.total(), box.foreign, tuple(counts))


def find_rejected(settings: Settings, which: Selection, *, limit: int) -> list[Found]:
    """Return the last `limit` letters that are meant, newest last. Raises `KafkaUnavailable`, `DeliveryError`."""
    box = _Letterbox(settings)
    found = deque(((letter, at) for letter, at in box.letters() if which.takes(letter)), maxlen=limit)
    return [Found(letter, at, letter.origin in box.receipts) for letter, at in found]


def replay_rejected(
    settings: Settings, which: Selection = EVERYTHING, *, key_from_event: bool = False, dry_run: bool = False
) -> Replay:
    """Publish the letters that are meant and admissible today. Once more, or after an interruption: see above.

    Raises `KafkaUnavailable`, `DeliveryError`; what was published until then stays so.
    """
    box = _Letterbox(settings)
    box.read_receipts()
    topics = partition_counts(settings)
    replayed, still, homeless = Counter[str](), Counter[str](), Counter[str]()
    letters = already = withheld = 0
    gone: list[str] = []
    with _Publisher(settings) as publisher:
        for letter, _ in box.letters():
            if not which.takes(letter):
                continue
            letters += 1
            if letter.origin in box.receipts:
                already += 1
                continue
            try:
                value = whole_value(settings, letter)
            except LookupError:
                gone.append(letter.place)
                continue
            try:
                found = readmit(letter, value, key_from_event=key_from_event)
            except RejectedEvent as rejection:
                still[rejection.reason] += 1
                continue
            if found is None:
                withheld += 1
            elif found.topic not in topics or platform_of(found.topic) is None:
                homeless[found.topic] += 1
            else:
                replayed[letter.reason] += 1
                if not dry_run:
                    publisher.publish(letter, found, value)
    return Replay(letters, dict(replayed), already, dict(still), withheld, tuple(gone), dict(homeless), dry_run)


def whole_value(settings: Settings, letter: Letter) -> bytes | None:
    """Return the original value: the letter's, or where that is only its start, the one at its place in the log.

    Raises `LookupError` when it is not there any more.
    """
    if letter.cut_from is None or letter.value is None:
        return letter.value
    origin = letter.origin
    for span in spans(settings, [origin.topic]):
        if span.partition == origin.partition and span.start <= origin.offset < span.end:
            for messages in read_span(settings, span._replace(start=origin.offset, end=origin.offset + 1)):
                for message in messages:
                    value: bytes = message.value() or b""
                    # A topic made again has other records at the same offsets.
                    if len(value) == letter.cut_from and value.startswith(letter.value):
                        return value
    message = f"{letter.place} is not in the log any more"
    raise LookupError(message)


class _Letterbox:
    """What the topic holds at one moment. Values pass through; only where they came from is remembered."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._spans: Sequence[Span] = spans(settings, [REJECTED])
        self.receipts: set[Origin] = set()
        """Origins of letters that were replayed, as far as has been read."""
        self.foreign = 0

    def read_receipts(self) -> None:
        """Read all of it for the receipts, which lie behind the letters they are of."""
        for _ in self.letters():
            pass

    def letters(self) -> Iterator[tuple[Letter, datetime]]:
        """Yield every letter once, with the time it was written.

        After a crash a worker writes a letter again, and every group of workers writes its own.
        """
        seen: set[Origin] = set()
        self.foreign = 0
        for span in self._spans:
            for messages in read_span(self._settings, span):
                for message in messages:
                    try:
                        letter = read_letter(message.key(), message.value(), message.headers() or ())
                    except (KeyError, ValueError):
                        self.foreign += 1
                        continue
                    if letter.reason == REPLAYED:
                        self.receipts.add(letter.origin)
                    elif letter.origin not in seen:
                        seen.add(letter.origin)
                        yield letter, datetime.fromtimestamp(message.timestamp()[1] / 1000, UTC)


class _Publisher(EventProducer):
    """Publishes events, and receipts only for events that Kafka has acknowledged."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._unreceipted: list[Letter] = []

    def publish(self, letter: Letter, found: Readmitted, value: bytes | None) -> None:
        """Publish an event; its receipt follows with those of the others."""
        created_at_ms = max(time.time_ns() // 1_000_000, letter.origin.received_at_ms)
        headers = [*EVENT_HEADERS, ("replayed-from", letter.place.encode())]
        self.send_raw(found.topic, found.key, value, headers=headers, created_at_ms=created_at_ms)
        self._unreceipted.append(letter)
        if len(self._unreceipted) >= _RECEIPTS_EVERY:
            self.flush()

    def flush(self, timeout_s: float = 60.0) -> None:
        """Wait until events are acknowledged, and then until their receipts are. Raises `DeliveryError`."""
        super().flush(timeout_s)
        receipted, self._unreceipted = self._unreceipted, []
        for letter in receipted:
            self.send_raw(REJECTED, letter.key, None, headers=replay_receipt(letter.origin))
        super().flush(timeout_s)
