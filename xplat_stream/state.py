"""What a worker keeps, as it lies in RocksDB and in the changelog. Pure.

Two kinds of record share one store and one changelog, told apart by the first byte of the key: ``w`` + user id holds
a user's state, ``t`` + text hash holds a text with its vector. Both merge, so a store, a changelog and a paused
worker's leftovers are reconciled in any order. A third key, ``b``, carries no state: whoever takes a partition over
appends it to know where the changelog ends.
"""

from __future__ import annotations

from struct import Struct, pack, unpack_from
from typing import TYPE_CHECKING, Final, NamedTuple, Self

import msgspec

from xplat_stream.window import FORMAT as WINDOW_FORMAT
from xplat_stream.window import READ_FORMATS, BehaviorWindow, WindowSpec, packed_end

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xplat_stream.event import Millis, TextHash, UserId

USER_PREFIX: Final = b"w"
TEXT_PREFIX: Final = b"t"
BARRIER_KEY: Final = b"b"
"""Its records are tombstones: compaction keeps the last one at the most, and readers of state pass over them."""

FORMAT: Final = 1
_HEAD = Struct(">BBQIH")  # format, flags, revision, release, number of scores
_PENDING: Final = 1
MAX_VECTORS: Final = 3
"""Encoder versions of which a text has a vector at the most: of the active, the previous and a coming release."""

_SCORE_STEPS: Final = 0xFFFF


def user_key(user_id: UserId) -> bytes:
    """Return the store and changelog key of a user's state."""
    return USER_PREFIX + user_id.encode()


def text_key(text_hash: TextHash) -> bytes:
    """Return the store and changelog key of a text."""
    return TEXT_PREFIX + text_hash


def is_pending(packed: bytes) -> bool:
    """Tell from a packed user state, without unpacking it, whether the profile still has to be scored."""
    return bool(packed[1] & _PENDING)


class Glance(NamedTuple):
    """What re-scoring asks of a user: which release scored the last profile, and when the newest event was."""

    release: int
    pending: bool
    end: Millis


def glance(packed: bytes) -> Glance:
    """Return it from a packed state without unpacking it. Raises `ValueError` where the formats are others."""
    _, flags, _, release, _ = _HEAD.unpack_from(packed) if len(packed) >= _HEAD.size else (0,) * 5
    return Glance(release, bool(flags & _PENDING), packed_end(packed, _scores_end(packed)))


def check_record(key: bytes, value: bytes) -> None:
    """See that a changelog record is of a kind and format known here, far cheaper than unpacking a user's state.

    Raises `ValueError`.
    """
    if key.startswith(USER_PREFIX):
        _scores_end(value)
    elif key.startswith(TEXT_PREFIX):
        TextEntry.unpack(value)
    else:
        message = f"a record is of the unknown kind {key[:1]!r}; expected {USER_PREFIX!r} or {TEXT_PREFIX!r}"
        raise ValueError(message)


def _scores_end(packed: bytes) -> int:
    """Return where the window begins in a user's packed state. Raises `ValueError` where the formats are others."""
    if len(packed) < _HEAD.size or packed[0] != FORMAT:
        message = f"user state of {len(packed)} bytes has format {packed[:1].hex()}; expected {FORMAT:02x}"
        raise ValueError(message)
    end = _HEAD.size + 2 * int.from_bytes(packed[_HEAD.size - 2 : _HEAD.size], "big")
    if len(packed) <= end or packed[end] not in READ_FORMATS:
        message = f"window format is {packed[end : end + 1].hex() or 'absent'}; expected {WINDOW_FORMAT:02x}"
        raise ValueError(message)
    return end


class Publication(NamedTuple):
    """What was last published for a user: needed for change detection, outside the replay law.

    `scores` holds one value in 0..65535 a label, in the release's label order; empty before the first scoring.
    `pending` says that the profile still has to be scored. `scored_revision`: the revision whose window the scores are
    of; kept in memory only, 0 where it is not known any more.
    """

    revision: int = 0
    release: int = 0
    scores: tuple[int, ...] = ()
    pending: bool = False
    scored_revision: int = 0

    def published(self, release: int, scores: Sequence[float]) -> Self:
        """Return the next publication state after `scores` of `release` went out under this revision."""
        steps = tuple([round(score * _SCORE_STEPS) for score in scores])
        return type(self)(self.revision, release, steps, scored_revision=self.revision)

    def expecting(self, release: int) -> Self:
        """Return what to write before the profile that `release` is about to score goes out.

        The record then never names a release that did not score the last profile; scores of another one do not count.
        """
        return type(self)(self.revision, release, self.scores if release == self.release else ())

    def last_scores(self) -> list[float]:
        """Return the scores last published, to 1/65535, in label order; empty before the first scoring."""
        return [score / _SCORE_STEPS for score in self.scores]

    def score_of(self, label_index: int) -> float | None:
        """Return the score last published for a label, to 1/65535, or None before the first scoring."""
        return self.scores[label_index] / _SCORE_STEPS if label_index < len(self.scores) else None


class UserState(NamedTuple):
    """The window of one user and what was last published of it."""

    window: BehaviorWindow
    publication: Publication

    @property
    def pending(self) -> bool:
        """Whether the profile still has to be scored."""
        return self.publication.pending

    def left_pending(self) -> Self:
        """Return it with the profile still to be scored."""
        return self._replace(publication=self.publication._replace(pending=True))

    def glance(self) -> Glance:
        """Return what `glance` says of the packed state."""
        return Glance(self.publication.release, self.pending, self.window.end)

    def merge(self, other: Self) -> Self:
        """Union the windows; keep the publication of the highest revision, of equal ones one that is pending.

        A worker writes a revision before it is scored, and as pending if that fails. A paused worker and its successor
        can publish one revision too: any fixed order will do.
        """
        newest = max(self.publication, other.publication, key=lambda one: (one.revision, one.pending, one))
        return type(self)(self.window.merge(other.window), newest)

    def pack(self) -> bytes:
        """Return the changelog value: a 16-byte head, the scores, the window."""
        publication = self.publication
        scores = publication.scores
        head = _HEAD.pack(
            FORMAT, _PENDING if publication.pending else 0, publication.revision, publication.release, len(scores)
        )
        return head + pack(f">{len(scores)}H", *scores) + bytes(self.window)

    @classmethod
    def unpack(cls, spec: WindowSpec, packed: bytes) -> Self:
        """Read a changelog value. Raises `ValueError` for an unknown format or a wrong length."""
        scores_end = _scores_end(packed)
        _, flags, revision, release, count = _HEAD.unpack_from(packed)
        scores = unpack_from(f">{count}H", packed, _HEAD.size)
        return cls(
            BehaviorWindow.from_bytes(spec, packed[scores_end:]),
            Publication(revision, release, scores, bool(flags & _PENDING)),
        )


class TextEntry(msgspec.Struct, frozen=True, array_like=True):
    """A text that windows refer to, with the vectors that encoder versions gave it.

    `labels`: taxonomy label ids that the platform's own categories give the item; used as evidence.
    `vector`: of the newest encoder; float16, little-endian, as many as that is wide; empty while `encoder` is 0 (not
    encoded yet). `others`: of older encoders, the newest first: while another release is on its way, or may be gone
    back to, several are needed.
    """

    text: str
    labels: tuple[str, ...] = ()
    encoder: int = 0
    vector: bytes = b""
    others: tuple[tuple[int, bytes], ...] = ()

    @property
    def vectors(self) -> dict[int, bytes]:
        """Every vector that is there, by encoder version."""
        return dict([(self.encoder, self.vector), *self.others]) if self.encoder and self.vector else dict(self.others)

    def with_vector(self, encoder: int, vector: bytes) -> Self:
        """Return it with the vector of an encoder beside those it has."""
        return self.merge(type(self)(self.text, self.labels, encoder, vector))

    def merge(self, other: Self) -> Self:
        """Keep the vectors of the newest encoders, of each encoder one, and what came with the very newest."""
        first, second = sorted((self, other), key=lambda one: (one.encoder, one.vector, one.text, one.labels))
        if not (first.others or second.others or (first.vectors and first.encoder < second.encoder)):
            return second
        held: dict[int, bytes] = {}
        for encoder, vector in (*first.vectors.items(), *second.vectors.items()):
            held[encoder] = max(vector, held.get(encoder, b""))
        older = sorted((pair for pair in held.items() if pair[0] < second.encoder), reverse=True)
        return msgspec.structs.replace(second, others=tuple(older[: MAX_VECTORS - 1]))

    def pack(self) -> bytes:
        """Return the changelog value (msgpack array); without `others` as it was before there were any."""
        return _pack_text(self if self.others else (self.text, self.labels, self.encoder, self.vector))

    @classmethod
    def unpack(cls, packed: bytes) -> TextEntry:
        """Read a changelog value. Raises `ValueError` (msgspec's is one) when it is not a text entry."""
        return _unpack_text(packed)


_pack_text = msgspec.msgpack.Encoder().encode
_unpack_text = msgspec.msgpack.Decoder(TextEntry).decode
