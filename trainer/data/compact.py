"""Windows as the head reads them, small enough to keep thousands: text indices in place of vectors.

The library's `head_inputs` decides order, truncation and padding here as it does in the worker. It is asked for vectors
two float16 wide whose four bytes are the text's index, and so hands back indices; the vectors of an encoder are put in
afterwards, by any number of trainings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from xplat_stream.serving.features import EVENT_BUCKETS, HeadInputs, head_inputs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from trainer.data.texts import TextTable
    from xplat_stream.window import BehaviorWindow

_CHUNK: Final = 512
_INDEX_WIDTH: Final = 2  # float16 numbers in the bytes of one int32


class Compact(NamedTuple):
    """Head inputs of many windows, padded to the longest. `text` 0 is the zero vector."""

    text: NDArray[np.int32]  # (windows, events), row of the vector table
    platform: NDArray[np.int32]  # (windows, events)
    action: NDArray[np.int32]  # (windows, events), 0 = padding
    age: NDArray[np.float32]  # (windows, events)
    length: NDArray[np.int64]  # (windows,), events before the padding

    def take(self, rows: NDArray[np.int64]) -> Compact:
        """Return some of the windows."""
        return Compact(self.text[rows], self.platform[rows], self.action[rows], self.age[rows], self.length[rows])

    def trimmed(self) -> Compact:
        """Return the windows without the columns that none of them fills."""
        longest = max(1, int(self.length.max(initial=1)))
        length = next((bucket for bucket in EVENT_BUCKETS if bucket >= longest), longest)
        return Compact(
            self.text[:, :length], self.platform[:, :length], self.action[:, :length], self.age[:, :length], self.length
        )

    def newest(self, most: int) -> Compact:
        """Return the windows with their newest `most` events only, which moves those to the front."""
        gone = np.maximum(self.length - most, 0)[:, None]
        if not gone.any():
            return self
        place = np.arange(most) + gone  # (windows, events)
        place = np.minimum(place, self.text.shape[1] - 1)
        return Compact(
            np.take_along_axis(self.text, place, axis=1),
            np.take_along_axis(self.platform, place, axis=1),
            np.take_along_axis(self.action, place, axis=1),
            np.take_along_axis(self.age, place, axis=1),
            np.minimum(self.length, most),
        ).trimmed()

    def every(self, step: int) -> Compact:
        """Return every so manyth window."""
        return self.take(np.arange(0, len(self.length), step))

    def newest_texts(self) -> NDArray[np.int32]:
        """Return the text of each window's newest event (windows,)."""
        newest: NDArray[np.int32] = self.text[np.arange(len(self.text)), np.maximum(self.length - 1, 0)]
        return newest

    def seeing(self, platforms: NDArray[np.int32]) -> Compact:
        """Return the windows with every event hidden but those of some platforms, by index from 1.

        What is left moves to the front and ages are counted from its newest event: the window of a user of whom only
        this was ever known.
        """
        seen = np.isin(self.platform, platforms) & (self.action > 0)
        order = np.argsort(~seen, axis=1, kind="stable")
        length = seen.sum(axis=1)
        longest = max(1, int(length.max(initial=1)))
        order = order[:, :longest]
        present = np.arange(longest) < length[:, None]

        def moved(array: NDArray[Any]) -> NDArray[Any]:
            return np.where(present, np.take_along_axis(array, order, axis=1), 0).astype(array.dtype)

        age = since_newest(moved(self.age), present)
        return Compact(moved(self.text), moved(self.platform), moved(self.action), age, length)

    @classmethod
    def join(cls, parts: Sequence[Compact]) -> Compact:
        """Put windows of several parts together, padded to the longest."""
        longest = max(part.action.shape[1] for part in parts)
        text, platform, action, age = (
            np.concatenate([np.pad(array, ((0, 0), (0, longest - array.shape[1]))) for array in arrays])
            for arrays in zip(*(part[:4] for part in parts), strict=True)
        )
        return cls(text, platform, action, age, np.concatenate([part.length for part in parts]))

    def with_vectors(self, table: NDArray[np.float16], rows: NDArray[np.int64]) -> HeadInputs:
        """Return the inputs of some windows, cut to the longest of them. `table`: see `vector_table`."""
        longest = max(1, int(self.length[rows].max(initial=1)))
        return HeadInputs(
            table[self.text[rows, :longest]],
            self.platform[rows, :longest],
            self.action[rows, :longest],
            self.age[rows, :longest],
        )


def compact(
    windows: Sequence[BehaviorWindow], texts: TextTable, *, platforms: Sequence[str], max_events: int
) -> Compact:
    """Build the head's inputs of these windows with the library's own code."""
    packed = {text_hash: row.to_bytes(4, "little") for text_hash, row in texts.row_of.items()}
    parts = [
        head_inputs(
            windows[start : start + _CHUNK], packed, platforms=platforms, width=_INDEX_WIDTH, max_events=max_events
        )
        for start in range(0, max(1, len(windows)), _CHUNK)
    ]
    return Compact.join(
        [
            Compact(
                part.vectors.view("<i4")[..., 0], part.platform, part.action, part.age, (part.action > 0).sum(axis=1)
            )
            for part in parts
        ]
    )


def since_newest(age: NDArray[np.float32], present: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return ages (windows, events) counted from the newest event that is present: nobody knows of a later one."""
    hours = np.expm1(age.astype(np.float64))
    newest = np.where(present, hours, np.inf).min(axis=1, keepdims=True, initial=np.inf)
    since = np.where(present, hours - np.where(np.isfinite(newest), newest, 0), 0)
    return np.asarray(np.log1p(since), np.float32)


def vector_table(vectors: NDArray[np.float16]) -> NDArray[np.float16]:
    """Return (texts + 1, width): the vectors in the order of the `TextTable` under row 0, the empty text's zeros."""
    return np.concatenate([np.zeros((1, vectors.shape[1]), np.float16), vectors])
