"""Weak labels: what a text without categories looks like, by the pretrained encoder alone.

A label's name and aliases are a text too. Where an item names no category, the label whose text lies nearest is taken
for its own, as in zero-shot classification by sentence embeddings (Yin et al. 2019, arXiv:1909.00161). How near is near
enough is learnt from the items that do name one: weak labels are given only where, on those, the nearest label was
right at least half the time, and they count as much as they were right.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trainer.data.texts import TextTable
    from xplat_stream.taxonomy import Taxonomy

_RIGHT_ENOUGH: Final = 0.5
_KNOWN_AT_LEAST: Final = 20
"""Texts of known label, of a threshold's own, below which nothing can be said about how often it is right."""

_BATCH: Final = 64


class WeakLabels(NamedTuple):
    """Labels of texts that name none."""

    own: NDArray[np.float32]  # (texts, labels), 1 = the nearest label of a text that got one
    trust: NDArray[np.float32]  # (texts,), how often such a label is right; 0 = none given


def label_texts(taxonomy: Taxonomy) -> list[str]:
    """Return what each label is called, in taxonomy order."""
    return [
        ". ".join(part for part in (label.name, ", ".join(label.aliases), label.description) if part)
        for label in taxonomy.labels
    ]


def weak_labels(texts: TextTable, vectors: NDArray[np.float32], labels: NDArray[np.float32]) -> WeakLabels:
    """Give texts without categories the nearest label. `vectors`: (texts, any), `labels`: (labels, any), unit length.

    Gives none at all where the texts of known label do not say how near is near enough.
    """
    similar = vectors @ labels.T  # (texts, labels)
    nearest, nearness = similar.argmax(axis=1), similar.max(axis=1)
    known = np.flatnonzero(texts.own_known)
    order = known[np.argsort(-nearness[known], kind="stable")]
    right = texts.own[order, nearest[order]]
    precision = np.cumsum(right) / np.arange(1, len(order) + 1)  # of all that lie at least as near
    fit = np.flatnonzero(precision >= _RIGHT_ENOUGH)
    own, trust = np.zeros_like(texts.own), np.zeros(len(texts.texts), np.float32)
    if len(fit) and fit[-1] + 1 >= _KNOWN_AT_LEAST:
        given = np.flatnonzero(~texts.own_known & (nearness >= nearness[order[fit[-1]]]))
        own[given, nearest[given]] = 1
        trust[given] = precision[fit[-1]]
    return WeakLabels(own, trust)
