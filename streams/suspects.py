"""Records that were in hand when the worker crashed, remembered across restarts.

A record that crashes the worker every time would stop its partition for ever. The first crash is blamed on the chunk,
which is tried again; from the second on its records are handled one by one, which finds the one; the third blamed on
that single record condemns it to the dead letters. Only crashes that nobody foresaw are blamed on records: a lost
lease, a full disk or a broker that is away are no record's fault.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from streams.batches import Record

CRASHES_FILE: Final = "crashes.json"
IN_HAND_FILE: Final = "in-hand-{}.json"
_CAREFUL_FROM: Final = 2
_CONDEMNED_FROM: Final = 3


class Suspicion(msgspec.Struct, frozen=True):
    """A stretch of one partition's log that was in hand during so many crashes in a row."""

    topic: str
    partition: int
    first: int
    last: int
    crashes: int = 0

    def covers(self, record: Record) -> bool:
        """Tell whether a record lies in this stretch."""
        return (self.topic, self.partition) == (record.topic, record.partition) and (
            self.first <= record.offset <= self.last
        )

    def overlaps(self, other: Suspicion) -> bool:
        """Tell whether two stretches share a record."""
        return (
            (self.topic, self.partition) == (other.topic, other.partition)
            and self.first <= other.last
            and other.first <= self.last
        )


class Suspects:
    """The suspicions of one state folder."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / CRASHES_FILE
        self._held = _read(self._file)
        self.alone = asyncio.Lock()
        """Held while suspects are handled, so that a crash is not blamed on what others had in hand."""

    def __bool__(self) -> bool:
        return bool(self._held)

    def careful(self, records: Iterable[Record]) -> bool:
        """Tell whether these records have to be handled one by one."""
        wary = [one for one in self._held if one.crashes >= _CAREFUL_FROM]
        return bool(wary) and any(one.covers(record) for record in records for one in wary)

    def condemned(self, record: Record) -> bool:
        """Tell whether this very record crashed the worker too often."""
        return any(
            one.first == one.last and one.crashes >= _CONDEMNED_FROM and one.covers(record) for one in self._held
        )

    def blame(self, records: Sequence[Record]) -> None:
        """Blame a crash on records, once more where they were blamed before."""
        self._write(_blamed(self._held, stretches(records)))

    def acquit(self, records: Sequence[Record]) -> None:
        """Forget suspicions that these records, handled without a crash, end."""
        passed = stretches(records)
        left = [
            one
            for one in self._held
            if not any((one.topic, one.partition) == (it.topic, it.partition) and one.last <= it.last for it in passed)
        ]
        if left != self._held:
            self._write(left)

    def _write(self, held: list[Suspicion]) -> None:
        self._held = held
        staged = self._file.with_suffix(".new")
        staged.write_bytes(msgspec.json.encode(held))
        staged.replace(self._file)


def stretches(records: Sequence[Record]) -> list[Suspicion]:
    """Return the stretches that these records, in offset order within a topic, span; the ends of a run are enough."""
    spans: dict[tuple[str, int], tuple[int, int]] = {}
    for record in records:
        where = (record.topic, record.partition)
        spans[where] = (spans.get(where, (record.offset,))[0], record.offset)
    return [Suspicion(topic, partition, first, last) for (topic, partition), (first, last) in spans.items()]


class InHand:
    """Word of what is being handled of one partition, for the case that the process dies without one.

    A file that stays open and is overwritten in place: what is written outlives the process, and to write it takes
    2 µs, where making and removing a file a chunk took most of a millisecond.
    """

    def __init__(self, folder: Path, partition: int) -> None:
        self._path = folder / IN_HAND_FILE.format(partition)
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        self._length = 0

    def note(self, records: Sequence[Record]) -> None:
        """Write down which records are in hand now; none, where nothing is."""
        word = msgspec.json.encode(stretches(records))
        os.pwrite(self._file, word.ljust(self._length), 0)  # blanks over what is left of a longer one
        self._length = max(self._length, len(word))

    def close(self) -> None:
        """Remove the word: what was in hand was let go, and is no record's fault."""
        os.close(self._file)
        self._path.unlink(missing_ok=True)


def forget_in_hand(folder: Path) -> None:
    """Remove what a process left that was killed from outside: no record's fault."""
    for path in folder.glob(IN_HAND_FILE.format("*")):
        path.unlink()


def blame_in_hand(folder: Path) -> None:
    """Blame a process's sudden death on all it had in hand. Called by whoever saw it die."""
    held = _read(folder / CRASHES_FILE)
    for path in folder.glob(IN_HAND_FILE.format("*")):
        held = _blamed(held, _read(path))
        path.unlink()
    (folder / CRASHES_FILE).write_bytes(msgspec.json.encode(held))


def _blamed(held: list[Suspicion], stretches: Iterable[Suspicion]) -> list[Suspicion]:
    for one in stretches:
        before = [other for other in held if other.overlaps(one)]
        crashes = 1 + max((other.crashes for other in before), default=0)
        held = [other for other in held if other not in before] + [msgspec.structs.replace(one, crashes=crashes)]
    return held


def _read(path: Path) -> list[Suspicion]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[Suspicion])
    except (FileNotFoundError, msgspec.DecodeError):
        return []
