"""Weak labels: given where the nearest label is right often enough, and counted as much as it is right."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from tests.trainer.conftest import OPTIONS
from tests.trainer.corpus import taxonomy
from trainer.fitting.fit import Hints, fit_encoder
from trainer.networks.weak import label_texts, weak_labels
from trainer.run.progress import silent
from xplat_stream.errors import DataError

LABELS = 4


def texts_like(dataset, labels, known, right):
    """Return a table of texts whose own labels are those given, shifted by one where they are not right."""
    own = np.zeros((len(labels), LABELS), np.float32)
    for row, (label, is_known, is_right) in enumerate(zip(labels, known, right, strict=True)):
        own[row, (label + (not is_right)) % LABELS] = is_known
    return dataset.texts._replace(texts=["t"] * len(labels), own=own, own_known=np.array(known))


def near(labels, nearness):
    """Return unit vectors that lie so near to their label's axis, and the rest of the way off all labels."""
    vectors = np.zeros((len(labels), LABELS + 1), np.float32)
    for row, (label, share) in enumerate(zip(labels, nearness, strict=True)):
        vectors[row, label], vectors[row, -1] = share, (1 - share**2) ** 0.5
    return vectors


def test_near_texts_get_the_nearest_label(dataset):
    """Where near is right and far is not, texts as near as the right ones get a label, and no others."""
    labels = [0, 1, 2, 3] * 20
    known = [True] * 60 + [False] * 20
    right = [True] * 30 + [False] * 50
    nearness = [0.9] * 30 + [0.3] * 30 + [0.95] * 10 + [0.2] * 10

    found = weak_labels(texts_like(dataset, labels, known, right), near(labels, nearness), np.eye(LABELS, LABELS + 1))

    assert np.array_equal(np.flatnonzero(found.trust), np.arange(60, 70))
    assert np.array_equal(found.own[60:70].argmax(axis=1), labels[60:70])
    assert not found.own[:60].any()
    assert found.trust[60] == pytest.approx(1.0, abs=0.5)


def test_none_are_given_where_the_nearest_is_mostly_wrong(dataset):
    """An encoder that cannot tell the labels apart gives no text any."""
    labels = [0, 1, 2, 3] * 20
    found = weak_labels(
        texts_like(dataset, labels, [True] * 60 + [False] * 20, [False] * 80),
        near(labels, [0.9] * 80),
        np.eye(LABELS, LABELS + 1),
    )

    assert not found.trust.any()


def test_none_are_given_on_thin_evidence(dataset):
    """A handful of texts that name their label say nothing about how often the nearest is right."""
    labels = [0, 1, 2, 3] * 5
    found = weak_labels(
        texts_like(dataset, labels, [True] * 10 + [False] * 10, [True] * 20),
        near(labels, [0.9] * 20),
        np.eye(LABELS, LABELS + 1),
    )

    assert not found.trust.any()


def test_labels_are_called_by_their_names_and_aliases():
    """A label's text holds its name first."""
    assert [text.split(".")[0] for text in label_texts(taxonomy())] == [label.name for label in taxonomy().labels]


def test_an_encoder_learns_with_them(dataset, tiny_base):
    """A training with weak labels runs to its end."""
    options = msgspec.structs.replace(OPTIONS, weak_labels=True, encoder_texts_shown=60, max_texts=60, threads=1)

    assert fit_encoder(dataset.texts, options, tiny_base, silent, hints=Hints(label_texts=label_texts(taxonomy())))


def test_without_names_there_are_no_weak_labels(dataset, tiny_base):
    """Asked for without what labels are called, it says so."""
    with pytest.raises(DataError, match="what the labels are called"):
        fit_encoder(dataset.texts, msgspec.structs.replace(OPTIONS, weak_labels=True), tiny_base, silent)
