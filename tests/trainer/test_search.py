"""The search: within its budget, never worse than the recipe on the users that decide, and not done twice."""

from __future__ import annotations

from types import SimpleNamespace

import msgspec
import pytest

from tests.trainer.conftest import OPTIONS
from trainer.fitting.checkpoint import Checkpoint
from trainer.fitting.fit_head import Fitting, LabelledWindows
from trainer.run.progress import silent
from trainer.search import Searched, search

QUICK = msgspec.structs.replace(OPTIONS, head_epochs=1, search_minutes=0.05)


@pytest.fixture
def searching(dataset, table):
    """Return a function that searches and one list: the options that an encoder was asked for with."""
    asked = []
    train, tune = (LabelledWindows.of_examples(part) for part in (dataset.train, dataset.tune))

    def encoder_of(options, report, checkpoint):
        asked.append(options)
        return SimpleNamespace(vector_table=lambda *_: table)  # an encoder that is ready

    def run(options=QUICK, report=silent, checkpoint=None):
        kept = checkpoint or Checkpoint.off()
        fitting = Fitting(train, tune, dataset.texts, len(dataset.platforms), options, report)
        return search(fitting, encoder_of=encoder_of, checkpoint=kept)

    return run, asked


def test_the_best_trial_is_chosen(searching):
    """The options returned are those of the best trial, the recipe was tried first, and the head's came after."""
    run, asked = searching
    told = []
    options, found = run(report=lambda *words: told.append(words))
    best = max(found.trials, key=lambda trial: trial.ndcg)

    assert asked[0] == QUICK
    assert found.trials[0].options == {
        "encoder_lr": QUICK.encoder_lr,
        "lora_rank": QUICK.lora_rank,
        "encoder_dropout": QUICK.encoder_dropout,
    }
    assert found.ndcg == best.ndcg >= found.usual_ndcg
    assert all(getattr(options, name) == value for name, value in (found.chosen | best.options).items())
    assert {"head_lr", "head_batch", "dropout"} <= set(found.trials[-1].options)
    assert len(told) == len(found.trials)


def test_a_head_is_searched_for_on_the_encoder_there_is(searching):
    """With `head_only` the encoder is asked for once and its options are left alone."""
    run, asked = searching
    _, found = run(msgspec.structs.replace(QUICK, head_only=True, search_minutes=1e-6))

    assert len(asked) == 1
    assert [set(trial.options) & {"encoder_lr"} for trial in found.trials] == [set()]


def test_a_search_is_not_done_twice(searching, tmp_path):
    """A resumed training takes what the search had found."""
    run, asked = searching

    def kept(*, resume):
        return Checkpoint(tmp_path, every=QUICK.checkpoint_every, resume=resume)

    before = run(checkpoint=kept(resume=False))
    asked.clear()

    assert run(checkpoint=kept(resume=True)) == before
    assert not asked


def test_what_was_found_can_be_kept(searching):
    """The outcome goes into JSON and comes back."""
    run, _ = searching
    _, found = run(msgspec.structs.replace(QUICK, search_minutes=1e-6))

    assert msgspec.json.decode(msgspec.json.encode(found), type=Searched) == found
