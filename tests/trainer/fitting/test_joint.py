"""Teachers: what the served model learns from beside what happened."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from tests.trainer.people import study
from tests.trainer.tiny import make_tiny_base
from trainer.data.examples import last_of_each
from trainer.evaluation.split import SplitMethod
from trainer.fitting.fit_head import Fitting, LabelledWindows
from trainer.fitting.joint import words_said
from trainer.measuring.measures import ndcg
from trainer.measuring.methods import split
from trainer.run.options import TrainOptions
from trainer.run.progress import silent


@pytest.fixture(scope="module")
def parts():
    return split(study(), 0)


def fitting_of(parts):
    train, tune = LabelledWindows.of_cuts(parts.train), LabelledWindows.of_cuts(parts.tune)
    return Fitting(train, tune, study().texts, len(study().platforms), TrainOptions(), silent)


@pytest.mark.parametrize("person", [0, 1, 10])
def test_words_say_of_nobody_what_they_learned_from_that_person(parts, person):
    """Whatever a person did next, what is said of that person stays the same; what is said of others does not."""
    fitting = fitting_of(parts)
    own = parts.train.user == np.unique(parts.train.user)[person]
    targets = np.where(own[:, None], 1 - fitting.train.targets, fitting.train.targets)
    said, altered = (
        words_said(one) for one in (fitting, fitting._replace(train=replace(fitting.train, targets=targets)))
    )

    assert np.array_equal(said[own], altered[own])
    assert not np.array_equal(said[~own], altered[~own])


def test_words_tell_what_people_do_next(parts):
    """Of people they never saw they rank far better than what is popular."""
    train = parts.train
    said, popular = words_said(fitting_of(parts)), np.tile(train.targets.mean(axis=0), (len(train), 1))
    last = last_of_each(train.user)
    assert ndcg(said[last], train.targets[last]).mean() > ndcg(popular[last], train.targets[last]).mean() + 0.1


@pytest.mark.parametrize(("people", "taught"), [(19, False), (20, True)])
def test_few_people_teach_nothing(tmp_path, parts, people, taught):
    """From nineteen people the model is fitted as without teachers."""
    base = str(make_tiny_base(tmp_path, study().texts.texts))
    some = parts.train.take(np.flatnonzero(parts.train.user <= np.unique(parts.train.user)[people - 1]))
    options = TrainOptions(base=base, adapter="none", max_tokens=16, members=1, head_epochs=1)
    asked, alone = (
        SplitMethod(msgspec.structs.replace(options, words_teacher=on)).fit(study(), some, parts.tune).table
        for on in (True, False)
    )
    assert np.array_equal(asked, alone) is not taught
