from __future__ import annotations

import numpy as np
import pytest

from tests.trainer.corpus import DAY_MS, START_MS, taxonomy
from trainer.data.study import A_ONLY, B_ONLY, EVERYTHING, Study, Task, build_study
from trainer.evaluation.sasrec import SASREC, SASRec, window_items
from trainer.fitting.sequence import SequenceOptions
from trainer.measuring.baselines import Popularity
from trainer.measuring.measures import ndcg
from trainer.measuring.methods import split, try_method, views_of
from xplat_stream.event import Event, Millis, Object, UserId
from xplat_stream.window import WindowSpec

SMALL = SASRec(options=SequenceOptions(width=16, layers=1, heads=2, dropout=0.1, batch=8, epochs=20, patience=20))


@pytest.fixture(scope="module")
def study() -> Study:
    """People who buy what the videos they watched are about; the videos have no label."""
    random = np.random.default_rng(0)
    labels = taxonomy().labels[:6]
    events = []
    for user in range(80):
        liked = int(random.integers(len(labels)))
        for step in range(14):
            # Three purchases of anything, that nothing can be told from; then each video before what it was about.
            subject = int(random.integers(len(labels))) if step < 3 else liked
            shop = step < 3 or step % 2 == 0
            number = int(random.integers(3))
            item = Object(
                f"{'buy' if shop else 'watch'}-{subject}-{number}",
                "product" if shop else "video",
                f"{'thing' if shop else 'clip'} {subject} {number}",
                categories=(labels[subject].name,) if shop else (),
            )
            when = Millis(START_MS + user * DAY_MS // 8 + step * 3_600_000)
            platform = "shop" if shop else "video"
            action = "purchase" if shop else "play"
            events.append(Event(f"//{platform}#{user}-{step}", UserId(f"u{user}"), platform, action, item, when))
    task = Task(target=("shop",), label_events=3, min_label_users=3)
    return build_study("made-up", events, taxonomy(), WindowSpec(per_platform=5), task)


def test_interests_cross_from_platform_to_platform(study):
    """Labels of the target are foretold from a source without labels, far better than by how frequent they are."""
    mine = try_method(study, SMALL, views=(A_ONLY,), folds=(0,))[A_ONLY].scores
    other = try_method(study, Popularity(), views=(A_ONLY,), folds=(0,))[A_ONLY].scores
    tried = np.isfinite(mine).all(axis=1)
    targets = study.test.targets[tried]
    assert ndcg(mine[tried], targets).mean() > 0.8
    assert ndcg(mine[tried], targets).mean() > ndcg(other[tried], targets).mean() + 0.1


def test_scores_are_probabilities_and_rows_are_independent(study):
    """In [0, 1], and the same alone as in company."""
    parts = split(study, 0)
    fitted = SMALL.fit(study, parts.train, parts.tune)
    scores = fitted.scores(parts.test)
    assert scores.dtype == np.float32
    assert ((scores >= 0) & (scores <= 1)).all()
    some = np.array([3, 0])
    np.testing.assert_allclose(fitted.scores(parts.test.take(some)), scores[some], atol=1e-5)


def test_a_tested_users_future_is_never_read(study):
    """With other events after every tested user's cut, the scores are the same to the last digit."""
    parts = split(study, 0)
    scores = SMALL.fit(study, parts.train, parts.tune).scores(parts.test)
    histories = list(study.histories)
    for user, before in zip(parts.test.user, parts.test.before, strict=True):
        history = histories[user]
        item = history.item.copy()
        item[before:] = 0
        histories[user] = history._replace(item=item, mask=[*history.mask[:before], *[1] * (len(item) - before)])
    other = study._replace(histories=histories)
    again = SMALL.fit(other, parts.train, parts.tune).scores(parts.test)
    np.testing.assert_array_equal(again, scores)


@pytest.mark.parametrize("view", [A_ONLY, B_ONLY, EVERYTHING])
def test_a_view_shows_the_windows_events_as_items(study, view):
    """The items read are those of the window, hidden platforms and events that left the window not among them."""
    cuts = views_of(study, study.train, view)
    found = window_items(study, cuts, 50)
    text_of = {}
    for history in study.histories:
        text_of.update(zip(history.item.tolist(), history.text.tolist(), strict=True))
    np.testing.assert_array_equal(found.length, cuts.inputs.length)
    for row, length in enumerate(found.length):
        texts = [text_of[item - 1] for item in found.item[row, :length].tolist()]
        assert texts == cuts.inputs.text[row, :length].tolist()


def test_it_is_called_by_its_name():
    """Reports set it beside the others under the name its paper gave it."""
    assert SASRec().name == SASREC == "SASRec"
