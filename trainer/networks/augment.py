"""Texts read differently from epoch to epoch, so that a small encoder does not learn titles by heart.

Both ways keep a text's order of words: word dropout (Iyyer et al. 2015, *Deep Unordered Composition Rivals Syntactic
Methods*) and span cropping (as in COCO-LM, Meng et al. 2021, arXiv:2102.08473). Texts of up to two words stay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from trainer.run.options import Augmentation

_DROPPED: Final = 0.15
_KEPT_SPAN: Final = 0.8
_TOO_SHORT: Final = 2


def augmented(texts: Sequence[str], how: Augmentation, random: np.random.Generator) -> list[str]:
    """Return the texts with words left out. The same generator state gives the same texts."""
    if how == "none":
        return list(texts)
    change = _without_words if how == "words" else _span
    return [change(text.split(), random) or text for text in texts]


def _without_words(words: list[str], random: np.random.Generator) -> str:
    if len(words) <= _TOO_SHORT:
        return ""
    kept = random.random(len(words)) >= _DROPPED
    return " ".join(word for word, keep in zip(words, kept, strict=True) if keep)


def _span(words: list[str], random: np.random.Generator) -> str:
    if len(words) <= _TOO_SHORT:
        return ""
    length = max(_TOO_SHORT, round(len(words) * _KEPT_SPAN))
    start = int(random.integers(0, len(words) - length + 1))
    return " ".join(words[start : start + length])
