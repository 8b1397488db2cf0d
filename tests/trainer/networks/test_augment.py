"""Texts with words left out: still texts, still in order, and the same ones for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.networks.augment import augmented

TEXTS = st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=12).map(" ".join), min_size=1, max_size=5)


def is_subsequence(part, whole):
    left = iter(whole)
    return all(word in left for word in part)


@pytest.mark.parametrize("how", ["none", "words", "span"])
@given(texts=TEXTS, seed=st.integers(0, 100))
def test_words_are_left_out_and_nothing_else(how, texts, seed):
    """Every text keeps some of its words, in their order; none is empty, and none is swapped with another."""
    found = augmented(texts, how, np.random.default_rng(seed))

    assert len(found) == len(texts)
    for one, text in zip(found, texts, strict=True):
        assert one
        assert is_subsequence(one.split(), text.split())
        assert len(text.split()) > 2 or one == text


@given(texts=TEXTS)
def test_a_span_is_a_stretch(texts):
    """A cropped text is one stretch of the text, about four fifths of it."""
    for one, text in zip(augmented(texts, "span", np.random.default_rng(0)), texts, strict=True):
        assert one in text
        assert len(one.split()) >= 0.8 * len(text.split()) - 0.5


def test_word_dropout_drops_one_in_seven():
    """Over many words about 15 % are gone."""
    (found,) = augmented(["word " * 4000], "words", np.random.default_rng(0))

    assert 0.13 < 1 - len(found.split()) / 4000 < 0.17


def test_the_same_seed_drops_the_same_words():
    """Chance is the generator's alone."""
    texts = ["one two three four five six seven eight"] * 3
    one, other = (augmented(texts, "words", np.random.default_rng(4)) for _ in range(2))

    assert one == other
