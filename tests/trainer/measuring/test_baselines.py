"""Baselines say something sound of every log, also of one that they know nothing in."""

from __future__ import annotations

import numpy as np

from tests.trainer.people import study
from trainer.measuring.baselines import LINEAR_TEXT, Linear
from trainer.measuring.methods import scores_of, split


def test_texts_without_a_common_word_tell_nobody_apart() -> None:
    """Where no word is in three texts the words say nothing: everybody gets the same, and counts go on alone."""
    texts = study().texts._replace(texts=[f"unheard{row}" for row in range(len(study().texts.texts))])
    of = study()._replace(texts=texts)
    parts = split(of, 0)
    words, both, counts = (
        scores_of(method.name, method.fit(of, parts.train, parts.tune), parts.test)
        for method in (Linear(LINEAR_TEXT, counts=False), Linear(), Linear("counts", words=False))
    )
    assert np.ptp(words, axis=0).max() == 0
    np.testing.assert_allclose(both, counts, atol=1e-6)
