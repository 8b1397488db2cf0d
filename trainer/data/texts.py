"""The distinct texts of a log: what the encoder reads once each, with what is known of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from xplat_stream.event import TextHash


class TextTable(NamedTuple):
    """Distinct texts, the most used first. Position in the lists + 1 is the text's index; index 0 is the empty text."""

    hashes: list[TextHash]
    texts: list[str]
    row_of: dict[TextHash, int]
    own: NDArray[np.float32]  # (texts, labels), 1 where an item with this text names the label itself
    own_known: NDArray[np.bool_]  # (texts,)
    next_labels: NDArray[np.float32]  # (texts, labels), share of its readers who touched the label next
    next_count: NDArray[np.float32]  # (texts,), events that share was taken over; 0 = only seen after the split

    @classmethod
    def known(cls, hashes: list[TextHash], texts: list[str], masks: Sequence[int], *, labels: int) -> Self:
        """Return the table of these texts, whose items name the labels in `masks` (bits in taxonomy order)."""
        own = np.zeros((len(texts), labels), np.float32)
        for row, mask in enumerate(masks):
            own[row, bit_positions(mask)] = 1
        return cls.of_own(hashes, texts, own)

    @classmethod
    def of_own(cls, hashes: list[TextHash], texts: list[str], own: NDArray[np.float32]) -> Self:
        """Return the table of these texts, of which nobody knows yet what their readers touched next."""
        return cls(
            hashes,
            texts,
            {text_hash: row for row, text_hash in enumerate(hashes, 1)},
            own,
            own.any(axis=1),
            np.zeros_like(own),
            np.zeros(len(texts), np.float32),
        )


def bit_positions(mask: int) -> list[int]:
    """Return which bits are set, ascending."""
    found = []
    while mask:
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return found
