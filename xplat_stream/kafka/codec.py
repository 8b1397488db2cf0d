"""What goes through Kafka besides events: profiles, dead letters, release announcements and reports."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple, cast

import msgspec

from xplat_stream.comparison import Comparison
from xplat_stream.profile import Profile

if TYPE_CHECKING:
    from collections.abc import Iterable

    from xplat_stream.errors import RejectedEvent
    from xplat_stream.event import UserId

PROFILE_TYPE: Final = "org.xplat.profile.v1"

Headers = list[tuple[str, bytes]]


class ProfileRecord(msgspec.Struct, frozen=True, gc=False):
    """A profile in its CloudEvents envelope. `latency_ms`: Kafka's time of the newest event → publication."""

    specversion: str
    id: str
    source: str
    type: str
    time: datetime
    partitionkey: str
    datacontenttype: str
    latency_ms: int
    data: Profile


_encode = msgspec.json.Encoder().encode
_decode_profile = msgspec.json.Decoder(ProfileRecord).decode


class SealedProfile(NamedTuple):
    """A profile that is JSON already, which takes a tenth of the memory and is made while the profile is at hand."""

    user_id: UserId
    revision: int
    data: msgspec.Raw


def seal(profile: Profile) -> SealedProfile:
    """Return a profile as JSON that only lacks its envelope."""
    return SealedProfile(profile.user_id, profile.revision, msgspec.Raw(_encode(profile)))


def encode_profile(profile: Profile | SealedProfile, *, source: str, published_at: datetime, latency_ms: int) -> bytes:
    """Return a profile as structured CloudEvents JSON."""
    sealed = seal(profile) if isinstance(profile, Profile) else profile
    return _encode(
        ProfileRecord(
            "1.0",
            f"{sealed.user_id}:{sealed.revision}",
            source,
            PROFILE_TYPE,
            published_at,
            sealed.user_id,
            "application/json",
            latency_ms,
            cast("Profile", sealed.data),
        )
    )


def decode_profile(value: bytes) -> ProfileRecord:
    """Read a profile record. Raises `ValueError`, which msgspec's errors are."""
    return _decode_profile(value)


class Announcement(msgspec.Struct, frozen=True):
    """Which release is active, as announced on `interest.models.v1` under the key ``active``.

    `previous`: the one before it, 0 where there is none to compare with or go back to. `shadow`: the candidate that
    scores a sample of users beside it, 0 for none.
    """

    release: int
    previous: int
    encoder: int
    announced_at: datetime
    shadow: int = 0
    """The release that scores a sample beside the active one; 0: none."""
    rolled_back: int = 0
    """The release that this announcement took back; 0: none."""

    def beside(self, watched: timedelta) -> tuple[int, datetime | None]:
        """Return which release is compared with the active one, 0 for none, and until when; None: until told.

        The shadow where there is one; else the one before, for as long as the active release is watched.
        """
        if self.shadow:
            return self.shadow, None
        return (self.previous, self.announced_at + watched) if watched else (0, None)


ACTIVE_KEY: Final = b"active"
_decode_announcement = msgspec.json.Decoder(Announcement).decode


def encode_announcement(announcement: Announcement) -> bytes:
    """Return an announcement as JSON."""
    return _encode(announcement)


def decode_announcement(value: bytes) -> Announcement:
    """Read an announcement. Raises `ValueError`, which msgspec's errors are."""
    return _decode_announcement(value)


class Report(msgspec.Struct, frozen=True):
    """How far one partition is with the release in use, as its owner says on `interest.models.v1`."""

    partition: int
    at: datetime
    release: int
    """The release in use, 0 before any."""
    active_users: int
    scored_users: int
    """Of those, users whose last profile is of this release."""
    settled: bool
    """Whether a look at every user found none left."""
    compared: tuple[int, int]
    """The active release and the one beside it that `comparison` is of; zeros for none."""
    comparison: Comparison
    since: datetime = datetime(1970, 1, 1, tzinfo=UTC)
    """When the pair was announced: a release that is promoted twice does not begin with what was counted before."""
    encoder: int = 0
    """The encoder whose vectors are made ahead, or kept: a coming release's, else that in use; 0 before any."""
    texts: int = 0
    """Texts of active users."""
    warmed: int = 0
    """Of those, texts whose vector by that encoder lies in the partition's state."""
    warm: bool = False
    """Whether a look at every active user found none without."""
    version: int = 1


class _Versioned(msgspec.Struct, frozen=True):
    version: int


REPORT_VERSION: Final = 1
_decode_report = msgspec.json.Decoder(Report).decode
_decode_version = msgspec.json.Decoder(_Versioned).decode


def report_key(app: str, partition: int | None = None) -> bytes:
    """Return the key of a partition's report, or what the keys of a group's reports begin with."""
    return f"report/{app}/{'' if partition is None else partition}".encode()


def encode_report(report: Report) -> bytes:
    """Return a report as JSON."""
    return _encode(report)


def decode_report(value: bytes) -> Report | None:
    """Read a report; None for one of another version, or not of a worker: nothing depends on a report being read."""
    try:
        return _decode_report(value) if _decode_version(value).version == REPORT_VERSION else None
    except ValueError:  # msgspec's errors are
        return None


class Origin(NamedTuple):
    """Where a record was read: topic, partition, offset and Kafka's own time in milliseconds."""

    topic: str
    partition: int
    offset: int
    received_at_ms: int


_LAST_MS: Final = 253_402_300_799_999  # of the year 9999, past which no calendar goes
MAX_LETTER_BYTES: Final = 2 * 1024 * 1024


REPLAYED: Final = "replayed"
"""In place of a reason: this record says that the letter of the origin it names was published again."""


class Letter(NamedTuple):
    """One record of `behavior.rejected.v1`: what was rejected and why, or a receipt that it was replayed."""

    key: bytes | None
    value: bytes | None
    """The original bytes; a longer value's first 2 MiB where `cut_from` says so."""
    reason: str
    """One of `xplat_stream.adapters.REASONS`, or `REPLAYED`."""
    detail: str
    origin: Origin
    cut_from: int | None
    """The original's length in bytes where the letter holds only its start."""

    @property
    def place(self) -> str:
        """Where the original lies: ``topic:partition:offset``."""
        return f"{self.origin.topic}:{self.origin.partition}:{self.origin.offset}"


def dead_letter(value: bytes | None, rejection: RejectedEvent, origin: Origin) -> tuple[bytes, Headers]:
    """Return the value and headers of a dead letter; `read_letter` reads them.

    The value is the original, byte for byte; one longer than 2 MiB is cut, says so in the header ``cut-from``, and is
    whole at the place the other headers name.
    """
    original = value or b""
    headers: Headers = [
        ("reason", rejection.reason.encode()),
        ("detail", rejection.detail[:1000].encode("utf-8", "replace")),
        *_origin_headers(origin),
    ]
    if value is None:
        headers.append(("null", b"true"))
    if len(original) > MAX_LETTER_BYTES:
        headers.append(("cut-from", str(len(original)).encode()))
    return original[:MAX_LETTER_BYTES], headers


def replay_receipt(origin: Origin) -> Headers:
    """Return the headers of the record, without a value, that says a letter was replayed; `read_letter` reads them."""
    return [("reason", REPLAYED.encode()), *_origin_headers(origin)]


def _origin_headers(origin: Origin) -> Headers:
    received_at_ms = max(0, min(origin.received_at_ms, _LAST_MS))  # a producer may write any number as Kafka's time
    return [
        ("topic", origin.topic.encode()),
        ("partition", str(origin.partition).encode()),
        ("offset", str(origin.offset).encode()),
        ("received-at", datetime.fromtimestamp(received_at_ms / 1000, UTC).isoformat().encode()),
    ]


def read_letter(key: bytes | None, value: bytes | None, headers: Iterable[tuple[str, bytes]]) -> Letter:
    """Read a record of `behavior.rejected.v1`.

    Raises `KeyError` or `ValueError` when it was written neither by a worker nor by a replay.
    """
    named = {name: said for name, said in headers if said is not None}
    received_at = datetime.fromisoformat(named["received-at"].decode())
    origin = Origin(
        named["topic"].decode(),
        int(named["partition"]),
        int(named["offset"]),
        round(received_at.timestamp() * 1000),
    )
    cut_from = named.get("cut-from")
    return Letter(
        key,
        None if "null" in named else value,
        named["reason"].decode(),
        named.get("detail", b"").decode(),
        origin,
        int(cut_from) if cut_from else None,
    )


def rekeyed_headers(topic: str, received_at_ms: int) -> Headers:
    """Return the headers under which a misplaced event travels to its own partition; `first_read` reads them."""
    return [("topic", topic.encode()), ("received-at-ms", str(received_at_ms).encode())]


def first_read(headers: Iterable[tuple[str, bytes | None]]) -> tuple[str, int]:
    """Return the topic and Kafka time under which a rekeyed record was first read.

    Raises `KeyError` or `ValueError` when the record was not written by a worker.
    """
    named = {name: said for name, said in headers if said is not None}
    return named["topic"].decode(), int(named["received-at-ms"])
