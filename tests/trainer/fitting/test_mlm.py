"""Masked-word pretraining: which words are hidden, and that the encoder learns to guess them."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from tests.trainer.conftest import OPTIONS
from trainer.fitting.checkpoint import Checkpoint
from trainer.fitting.mlm import mask_words, pretrain
from trainer.networks.models import read_base
from trainer.run.progress import silent
from trainer.run.schedule import seeded
from xplat_stream.errors import DataError
from xplat_stream.serving.features import TextFeatures, TokenBatch

MASK, SPECIAL = 4, (0, 2, 3)


def test_one_word_in_seven_is_guessed_and_most_are_hidden():
    """15 % of the words are to be guessed: 80 % of those hidden, 10 % replaced, 10 % left; all else stays."""
    random = np.random.default_rng(0)
    ids = random.integers(5, 1000, (200, 64))
    mask = np.ones_like(ids)
    ids[:, 0], ids[:, 60:], mask[:, 60:] = 2, 0, 0
    batch = TokenBatch(list(range(200)), ids, mask)

    read, guessed = mask_words(batch, mask_id=MASK, special=SPECIAL, vocabulary=1000, random=random)

    assert guessed[:, 1:60].mean() == pytest.approx(0.15, abs=0.01)
    assert not guessed[:, 0].any()
    assert not guessed[:, 60:].any()
    assert (read[guessed] == MASK).mean() == pytest.approx(0.8, abs=0.03)
    assert (read[guessed] == ids[guessed]).mean() == pytest.approx(0.1, abs=0.02)
    assert np.array_equal(read[~guessed], ids[~guessed])


def pretrained(base, texts, options, **how):
    with seeded(1, 1):
        read = read_base(base)
        features = TextFeatures(Tokenizer.from_str(read.tokenizer_json().decode()), max_tokens=32)
        pretrain(read, features, texts, options, **{"checkpoint": Checkpoint.off(), "report": silent} | how)
        return read.model.state_dict()


def test_guessing_gets_better(dataset, tiny_base):
    """Over the steps the loss of the guesses falls, and it is the encoder that changed."""
    losses = []

    def report(stage, done, total, metrics):
        losses.append(metrics["loss"])

    options = msgspec.structs.replace(OPTIONS, mlm_steps=60)
    after = pretrained(tiny_base, dataset.texts.texts, options, report=report)

    assert np.mean(losses[-10:]) < np.mean(losses[:10])
    assert not torch.equal(
        after["encoder.layer.0.attention.self.query.weight"],
        read_base(tiny_base).model.state_dict()["encoder.layer.0.attention.self.query.weight"],
    )


def test_it_is_not_done_twice(dataset, tiny_base, tmp_path):
    """A resumed training finds the pretrained weights and takes no step."""
    options = msgspec.structs.replace(OPTIONS, mlm_steps=2)

    def kept(*, resume):
        return Checkpoint(tmp_path, every=OPTIONS.checkpoint_every, resume=resume)

    before = pretrained(tiny_base, dataset.texts.texts, options, checkpoint=kept(resume=False))
    steps = []
    after = pretrained(
        tiny_base,
        dataset.texts.texts,
        options,
        checkpoint=kept(resume=True),
        report=lambda *told: steps.append(told),
    )

    assert not steps
    assert all(map(torch.equal, after.values(), before.values()))


def test_a_tokenizer_without_a_mask_is_refused(tiny_base):
    """An encoder that was never pretrained on masked words is told apart, with the way out."""
    read = read_base(tiny_base)
    read.tokenizer.mask_token = None
    features = TextFeatures(Tokenizer.from_str(read.tokenizer_json().decode()))

    with pytest.raises(DataError, match=r"no mask.*`mlm_steps` at 0"):
        pretrain(read, features, ["a"], OPTIONS, checkpoint=Checkpoint.off(), report=silent)
