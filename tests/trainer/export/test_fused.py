"""The fused baseline: it reads windows as a server does, learns from them, and answers in ONNX as it does in torch."""

from __future__ import annotations

import numpy as np
import pytest

from tests.trainer.corpus import PLATFORMS, make_log, taxonomy
from tests.trainer.tiny_base import save_base
from trainer.data.study import EVERYTHING, Task, build_study
from trainer.export.export import run_reader, session
from trainer.export.fused import FusedMethod, FusedOptions, fused_texts
from trainer.export.fused_release import fused_candidate, measured, place_fused
from trainer.measuring.measures import ndcg
from trainer.measuring.methods import split, try_method
from xplat_stream.errors import DataError, ReleaseError
from xplat_stream.event import item_text
from xplat_stream.serving.features import fuse, fused_text
from xplat_stream.serving.fused import FUSED, load_fused
from xplat_stream.serving.releases import ModelRepository
from xplat_stream.window import BehaviorWindow, WindowSpec, row_of

SPEC = WindowSpec(per_platform=10)


@pytest.fixture(scope="module")
def study():
    return build_study("corpus", make_log(users=120, events_each=40), taxonomy(), SPEC, Task(min_label_users=5))


@pytest.fixture(scope="module")
def options(study, tmp_path_factory):
    words = [*study.texts.texts, *PLATFORMS, "view like comment share purchase play complete add_to_cart"]
    base = save_base(tmp_path_factory.mktemp("base"), words)
    return FusedOptions(base=base, max_tokens=64, epochs=12, patience=12, learning_rate=1e-3, threads=1)


@pytest.fixture(scope="module")
def fitted(study, options):
    parts = split(study, 0)
    return FusedMethod(options).fit(study, parts.train, parts.tune)


@pytest.fixture(scope="module")
def candidate(study, fitted):
    parts = split(study, 0)
    return fused_candidate(study, fitted, parts.test, {"ndcg_at_10": 0.5}, base="tiny")


def test_events_are_read_newest_first_and_no_more_than_fit() -> None:
    """A fused text names platform, action and title of the newest events; what no token is left for is not in it."""
    events = [("shop", "view", "running shoes"), ("video", "play", ""), ("shop", "like", "guitar")]

    assert fuse(events, max_tokens=64) == "shop view running shoes. video play. shop like guitar"
    assert fuse(events, max_tokens=4) == "shop view running shoes. video play"
    assert fuse([], max_tokens=64) == ""


def test_training_reads_windows_as_serving_does(study) -> None:
    """The fused text of a cut is, letter for letter, the one a server makes of the window folded from its events."""
    events = make_log(users=120, events_each=40)
    by_user = {}
    for event in events:
        by_user.setdefault(event.user_id, []).append(event)
    texts = dict(zip(study.texts.hashes, study.texts.texts, strict=True))
    rows = np.arange(0, len(study.train), 37)

    for row, text in zip(rows, fused_texts(study, study.train, rows, max_tokens=48), strict=True):
        user = study.histories[study.train.user[row]].user_id
        before = [event for event in by_user[user] if event.occurred_at < study.train.at[row]]
        window = BehaviorWindow(SPEC).fold((event.platform, row_of(event)) for event in before)

        assert all(item_text(event.object) in texts.values() for event in before)
        assert fused_text(window, texts, max_tokens=48) == text


def test_it_learns(study, fitted) -> None:
    """On users it never saw it ranks labels better than popularity, by scores that are probabilities."""
    parts = split(study, 0)
    found = measured(study, fitted, parts.tune, parts.test)
    scores = fitted.scores(parts.test)

    assert found["ndcg_at_10"] > found["popularity_ndcg_at_10"]
    assert found["test_users"] == len(parts.test)
    assert scores.min() >= 0
    assert scores.max() <= 1


def test_rows_are_independent(study, fitted) -> None:
    """A window's scores are its own, in whatever order and company it is scored."""
    cuts = split(study, 0).test
    rows = np.arange(len(cuts))[::-1][:7]

    assert np.abs(fitted.scores(cuts.take(rows)) - fitted.scores(cuts)[rows]).max() < 1e-5


def test_same_seed_same_model(study, options) -> None:
    """Two fits are equal to the bit, and stand in a trial like any method."""
    quick = FusedOptions(base=options.base, max_tokens=16, epochs=1, users=32, threads=1)
    first, second = (try_method(study, FusedMethod(quick), views=[EVERYTHING], folds=[1]) for _ in range(2))
    tested = study.fold[study.test.user] == 1

    assert np.array_equal(first[EVERYTHING].scores, second[EVERYTHING].scores, equal_nan=True)
    assert len(ndcg(first[EVERYTHING].scores[tested], study.test.targets[tested])) == tested.sum()
    assert np.isnan(first[EVERYTHING].scores[~tested]).all()


def test_lower_layers_stay_as_they_were(study, options, fitted) -> None:
    """Only the upper layers learn; asking for more of them than there are is refused."""
    from transformers import AutoModel

    before = AutoModel.from_pretrained(options.base).state_dict()
    top = FusedOptions(base=options.base, max_tokens=16, epochs=1, users=32, trained_layers=1, threads=1)
    parts = split(study, 1)
    after = FusedMethod(top).fit(study, parts.train, parts.tune).network.backbone.state_dict()
    moved = {name for name in before if not before[name].equal(after[name])}

    assert moved
    assert {name for name in moved if not name.startswith("encoder.layer.1.")} == set()
    with pytest.raises(DataError, match="2 layers of which 3"):
        FusedMethod(FusedOptions(base=options.base, trained_layers=3)).fit(study, parts.train, parts.tune)


def test_graph_answers_as_the_network(study, fitted, candidate) -> None:
    """The exported graph scores windows as torch does, and leaves the number of labels to the configuration's -1."""
    cuts = split(study, 0).test
    texts = fused_texts(study, cuts, np.arange(len(cuts)), max_tokens=fitted.max_tokens)
    scores = run_reader(candidate.graph, fitted.features, texts, "scores")
    (output,) = session(candidate.graph, 1).get_outputs()

    assert np.abs(scores - fitted.scores(cuts)).max() < 1e-4
    assert (output.name, output.type) == ("scores", "tensor(float)")
    assert not any(isinstance(size, int) for size in output.shape)


def test_placed_model_is_whole(tmp_path, study, candidate) -> None:
    """It takes the next number of the repository's releases, and an altered file is noticed."""
    repository = ModelRepository(tmp_path / "repository")
    repository.place("interest_head", 6, {"model.onnx": b"a release"})

    manifest = place_fused(repository, repository.next_number(), candidate)
    release = load_fused(repository, 7)

    assert release.manifest == manifest
    assert (release.number, manifest.labels) == (7, study.taxonomy.ids())
    assert repository.next_number() == 8
    (repository.root / FUSED / "7" / "model.onnx").write_bytes(b"altered")
    with pytest.raises(ReleaseError, match="altered"):
        load_fused(repository, 7)
    with pytest.raises(ReleaseError, match="no readable manifest"):
        load_fused(repository, 9)
