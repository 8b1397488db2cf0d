"""Self-training: what is read with certainty is known from then on, what a text names itself stays."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch

from tests.trainer.fitting.test_fit import fitting_of
from tests.trainer.people import study
from tests.trainer.tiny import make_tiny_base
from trainer.data.texts import TextTable
from trainer.evaluation.split import SplitMethod
from trainer.fitting.fit_head import fit_head
from trainer.measuring.methods import split
from trainer.networks.head import Head, HeadShape
from trainer.networks.self_training import with_read_labels
from trainer.run.options import TrainOptions


def test_sure_labels_are_taken_and_named_ones_stay():
    """A text that names a label keeps it alone; of the others those read with nine tenths or more get theirs."""
    own = np.array([[1, 0], [0, 0], [0, 0], [0, 0]], np.float32)
    texts = TextTable.of_own([], ["named", "sure", "sure of both", "unsure"], own)
    head = Head(HeadShape(labels=2, platforms=1, width=2), torch.zeros(2))
    torch.nn.init.eye_(head.evidence.weight)
    torch.nn.init.zeros_(head.evidence.bias)
    table = np.array([[0, 0], [0, 9], [0, 9], [9, 9], [1, 1]], np.float16)

    found = with_read_labels(texts, head, table)

    assert found.own.tolist() == [[1, 0], [0, 1], [1, 1], [0, 0]]
    assert found.own_known.tolist() == [True, True, True, False]
    assert not texts.own_known[1]


def test_a_refresh_of_the_head_reads_them_too(dataset, table):
    """On vectors that stay as they are the label layer is fitted again with what it was sure of."""
    options = TrainOptions(max_events=24, seed=3, head_epochs=1, members=1)
    plain, again = (
        fit_head(fitting_of(dataset, msgspec.structs.replace(options, self_training=on)), table) for on in (False, True)
    )

    assert not torch.equal(plain.evidence.weight, again.evidence.weight)


@pytest.mark.parametrize("teachers", [0, 1])
def test_videos_that_name_no_label_are_read(tmp_path, monkeypatch, teachers):
    """The second fit knows labels of videos, which name none, and so do its teachers; there is no third."""
    told = []

    def noted(texts, head, table):
        found = with_read_labels(texts, head, table)
        told.append((texts.own_known.sum(), found.own_known.sum()))
        return found

    monkeypatch.setattr("trainer.fitting.joint.with_read_labels", noted)
    monkeypatch.setattr("trainer.networks.self_training._SURE", 0.0)  # an encoder of weights at random is never sure
    base = str(make_tiny_base(tmp_path, study().texts.texts))
    options = TrainOptions(
        base=base, adapter="none", max_tokens=16, members=1, head_epochs=1, self_training=True, teachers=teachers
    )
    parts = split(study(), 0)
    method = SplitMethod(options)
    found = method.fit(study(), parts.train, parts.tune)
    plain = replace(method, options=msgspec.structs.replace(options, self_training=False))

    assert len(told) == 1
    assert told[0][0] < told[0][1]
    assert not np.array_equal(found.table, plain.fit(study(), parts.train, parts.tune).table)
