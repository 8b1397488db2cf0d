"""Windows as the head reads them, small enough to keep thousands: text indices in place of vectors.

The library's `head_inputs` decides order, truncation and padding here as it does in the worker. It is asked for vectors
two float16 wide whose four bytes are the text's index, and so hands back indices; the vectors of an encoder are put in
afterwards, by any number of trainings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from xplat_stream.serving.features import HeadInputs, head_inputs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from trainer.texts import TextTable
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

    def every(self, step: int) -> Compact:
        """Return every so manyth window."""
        return Compact(
            self.text[::step], self.platform[::step], self.action[::step], self.age[::step], self.length[::step]
        )

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
    longest = max(part.action.shape[1] for part in parts)
    text, platform, action, age = (
        np.concatenate([np.pad(array, ((0, 0), (0, longest - array.shape[1]))) for array in arrays])
        for arrays in zip(
            *((part.vectors.view("<i4")[..., 0], part.platform, part.action, part.age) for part in parts), strict=True
        )
    )
    return Compact(text, platform, action, age, (action > 0).sum(axis=1))


def vector_table(vectors: NDArray[np.float16]) -> NDArray[np.float16]:
    """Return (texts + 1, width): the vectors in the order of the `TextTable` under row 0, the empty text's zeros."""
    return np.concatenate([np.zeros((1, vectors.shape[1]), np.float16), vectors])
