"""The distinct texts of a log: what the encoder reads once each, with what is known of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np

from xplat_stream.event import TextHash, hash_text, item_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from xplat_stream.event import Event
    from xplat_stream.taxonomy import Taxonomy


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
    def of(cls, events: Sequence[Event], taxonomy: Taxonomy) -> Self:
        """Collect the texts of these events, and their own labels."""
        position = {label: index for index, label in enumerate(taxonomy.ids())}
        uses: dict[str, int] = {}
        labels: dict[str, set[int]] = {}
        for event in events:
            text = item_text(event.object)
            if text:
                uses[text] = uses.get(text, 0) + 1
                named = taxonomy.label_ids(iab=event.object.iab, categories=event.object.categories)
                if named:
                    labels.setdefault(text, set()).update(position[label] for label in named)
        texts = sorted(uses, key=lambda text: (-uses[text], text))
        hashes = [hash_text(text) for text in texts]
        own = np.zeros((len(texts), len(taxonomy)), np.float32)
        for row, text in enumerate(texts):
            own[row, sorted(labels.get(text, ()))] = 1
        return cls(
            hashes,
            texts,
            {text_hash: row for row, text_hash in enumerate(hashes, 1)},
            own,
            own.any(axis=1),
            np.zeros_like(own),
            np.zeros(len(texts), np.float32),
        )
