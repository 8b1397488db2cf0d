from __future__ import annotations

import io

import msgspec
import numpy as np
import pytest
from rich.console import Console

from trainer.evaluation.ranking import (
    IDS,
    NEIGHBORS,
    OURS,
    POPULARITY,
    TEST,
    VALIDATION,
    Counts,
    Ranking,
    RankingOptions,
    figures,
    fit_blend,
    leave_one_out,
    principal,
    rank_items,
    ranks_of,
    render,
)
from trainer.fitting.sequence import SequenceOptions
from trainer.measuring.measures import Interval
from xplat_stream.errors import DataError
from xplat_stream.event import Millis, Object
from xplat_stream.replay import RecordedEvent, Recording

DAY_MS = 86_400_000
SHELF = 60
SMALL = RankingOptions(
    negatives=30,
    models=1,
    text_width=4,
    sequence=SequenceOptions(width=16, layers=1, heads=2, dropout=0.1, negatives=SHELF, batch=16, epochs=30),
)


def recording(events: list[tuple[str, str, str, int]], name: str = "made-up") -> Recording:
    """(user, platform, item, day) → a recording."""
    lines = [
        RecordedEvent(Millis(day * DAY_MS), row, user, platform, item, "rate")
        for row, (user, platform, item, day) in enumerate(events, 1)
    ]
    items = {(one.platform, one.item): Object(one.item, "product", f"title of {one.item}") for one in lines}
    return Recording(name, sorted(lines), items)


def chains(users: int = 90, seed: int = 0) -> Recording:
    """People who go through the items of both platforms in one fixed circle, from anywhere."""
    random = np.random.default_rng(seed)
    events = []
    for user in range(users):
        start, day = int(random.integers(2 * SHELF)), int(random.integers(200))
        for step in range(8):
            place = (start + step) % (2 * SHELF)
            platform = "food" if place % 2 else "kitchen"
            day += int(random.integers(1, 9))
            events.append((f"u{user}", platform, f"i{place:03}", day))
    return recording(events)


def vectors(texts):
    return np.stack([np.array([len(text), ord(text[-1]) % 7, 1], np.float32) for text in texts])


@pytest.fixture(scope="module")
def ranking() -> Ranking:
    return rank_items(chains(), options=SMALL, vectors=vectors)


def test_a_planted_rule_ranks_first(ranking):
    """Where one item always follows another, a sequence model and the blend find it, and popularity does not."""
    for platform in ("food", "kitchen"):
        assert ranking.sampled[IDS][platform].ndcg.value > 0.6
        assert ranking.sampled[OURS][platform].ndcg.value > 0.6
        assert ranking.sampled[POPULARITY][platform].ndcg.value < 0.4
        assert ranking.gain[POPULARITY][platform].high < 0


def test_the_same_seed_gives_the_same_numbers(ranking):
    """A ranking can be measured again; only its CPU time differs."""
    again = rank_items(chains(), options=SMALL, vectors=vectors)
    assert msgspec.structs.replace(again, cpu_seconds=ranking.cpu_seconds) == ranking


def test_a_ranking_survives_json_and_becomes_a_table(ranking):
    """What is written down is what is read again, and every figure of it is shown."""
    assert msgspec.json.decode(msgspec.json.encode(ranking), type=Ranking) == ranking
    assert len(ranking.rows()) == 2 * len(ranking.sampled) * 2
    shown = io.StringIO()
    Console(width=200, file=shown).print(render(ranking))
    assert all(model in shown.getvalue() for model in (NEIGHBORS, OURS))


def test_every_figure_lies_in_its_interval(ranking):
    """Intervals hold their value, and all figures are shares."""
    for _, _, _, found in ranking.rows():
        for interval in (found.hit_rate, found.ndcg, found.reciprocal_rank):
            assert 0 <= interval.low <= interval.value <= interval.high <= 1


def test_the_full_shelf_is_harder_than_a_sample_of_it(ranking):
    """Among more items a rank can only be worse."""
    for model, platforms in ranking.full.items():
        for platform, found in platforms.items():
            assert found.ndcg.value <= ranking.sampled[model][platform].ndcg.value + 1e-9


def test_negatives_are_strangers_of_the_same_platform():
    """No candidate but the first was ever touched by the user, the tested item and later ones included."""
    data = leave_one_out(chains(), ("food", "kitchen"), SMALL)
    for back, asked in ((VALIDATION, data.validation), (TEST, data.test)):
        for user, candidates in enumerate(asked.candidates):
            assert candidates[0] == data.touched[user][-back]
            assert len(set(candidates.tolist())) == 1 + SMALL.negatives
            assert not set(candidates[1:].tolist()) & set(data.touched[user].tolist())
            assert len(set(data.platform[candidates].tolist())) == 1


def test_what_is_asked_is_never_known():
    """Training ends before the validation item; validation before itself; testing before the last event."""
    data = leave_one_out(chains(), ("food", "kitchen"), SMALL)
    for user, touched in enumerate(data.touched):
        for back, known in ((2, data.train), (2, data.validation.known), (1, data.test.known)):
            length = int(known.length[user])
            assert (known.item[user, :length] - 1).tolist() == touched[:-back].tolist()
        assert data.test.now[user] == data.times[user][-2]
        assert data.validation.now[user] == data.times[user][-3]


def test_the_tested_item_is_read_by_nobody():
    """Whatever the last event of a user was, all that models and features are made of is the same."""
    whole = chains()
    last = {line.user: line for line in whole.lines}
    lines = [
        line._replace(item="i000" if line.platform == "kitchen" else "i001") if line is last[line.user] else line
        for line in whole.lines
    ]
    mine = leave_one_out(whole, ("food", "kitchen"), SMALL)
    # The shelves stay as they were: somebody still touches every item.
    other = leave_one_out(Recording(whole.name, lines, whole.items), ("food", "kitchen"), SMALL)
    assert mine.items == other.items
    for first, second in ((mine.train, other.train), (mine.test.known, other.test.known)):
        np.testing.assert_array_equal(first.item, second.item)
        np.testing.assert_array_equal(first.time, second.time)
    np.testing.assert_array_equal(mine.test.now, other.test.now)
    assert (mine.test.wanted != other.test.wanted).any()


def crowd() -> list[tuple[str, str, str, int]]:
    """Others, so that there are items nobody who is looked at has touched."""
    return [
        (f"x{n}", platform, f"{platform}-{n}-{k}", 900 + k)
        for n in range(10)
        for platform in ("food", "kitchen")
        for k in range(2)
    ]


def test_ties_in_time_go_by_platform_then_item():
    """Events of one day: the first platform's before the second's, by item id within one."""
    events = [
        ("u", "kitchen", "k1", 5),
        ("u", "food", "f9", 5),
        ("u", "food", "f3", 5),
        ("u", "kitchen", "k0", 5),
        ("u", "food", "f4", 4),
    ]
    made, options = recording(events + crowd()), RankingOptions(negatives=5)
    for platforms, wanted in (
        (("food", "kitchen"), ["f4", "f3", "f9", "k0", "k1"]),
        (("kitchen", "food"), ["f4", "k0", "k1", "f3", "f9"]),
    ):
        found = leave_one_out(made, platforms, options)
        assert [found.items[item][1] for item in found.touched[found.users.index("u")]] == wanted


def test_users_of_one_platform_are_no_linked_users():
    """Only who was seen on both counts, with three events or more."""
    events = [("both", "food", f"f{n}", n) for n in range(3)] + [("both", "kitchen", "k0", 9)]
    events += [("one", "food", f"f{n}", n) for n in range(30)]
    events += [("two", "food", "f1", 1), ("two", "kitchen", "k1", 2)]
    found = leave_one_out(recording(events + crowd()), ("food", "kitchen"), RankingOptions(negatives=5))
    assert found.users == ["both", *(f"x{n}" for n in range(10))]


def test_counts_read_the_past_up_to_the_last_known_event_only():
    """An item's count fades, begins at its first event, and never looks ahead of the moment it is asked at."""
    events = [("u", "food", "a", 0), ("u", "kitchen", "k", 400), ("u", "food", "y", 500), ("u", "food", "z", 500)]
    events += [("v", "food", "a", 10), ("v", "kitchen", "k", 20), ("v", "food", "y", 500), ("v", "food", "z", 500)]
    data = leave_one_out(recording(events + crowd()), ("food", "kitchen"), RankingOptions(negatives=5))
    place = {name: position for position, (_, name) in enumerate(data.items)}
    later = place["food-0-0"]
    counts = Counts(data)
    assert [int(counts.ever[item]) for item in (place["a"], place["k"], place["z"], later)] == [2, 2, 0, 1]
    asked = np.array([[place["a"], place["k"], later]] * 4)
    before, first, both, late = counts.lately(np.array([-1, 0, 10, 365]) * DAY_MS, asked)
    nothing = counts.lately(np.array([-1]) * DAY_MS, np.array([[place["z"]]]))[0, 0]
    np.testing.assert_array_equal(before, np.stack([nothing] * 3))
    np.testing.assert_array_equal(first[1:], np.stack([nothing] * 2))
    np.testing.assert_array_equal(late[2], nothing)
    np.testing.assert_allclose(first[0, 0], np.log(1 + 1e-2), rtol=1e-5)
    np.testing.assert_allclose(both[0, 0], np.log(1 + np.exp(-2) + 1e-2), rtol=1e-5)  # ten days, two times of five
    np.testing.assert_allclose(late[0, -2:], np.log1p([355, 365]), rtol=1e-5)
    np.testing.assert_allclose(late[1, -2], np.log1p(345), rtol=1e-5)


def test_a_blend_gives_weight_to_what_tells():
    """The feature that the choices follow gets the weight, and noise next to none; a constant one does no harm."""
    random = np.random.default_rng(0)
    features = random.normal(size=(400, 20, 3)).astype(np.float32)
    features[..., 2] = 1
    features[:, 0, 0] += 2
    weights = fit_blend(features)
    assert weights[0] > 1
    assert abs(weights[1]) < 0.2
    assert np.isfinite(weights).all()


def test_a_tie_counts_half():
    """Scores that say nothing rank an item in the middle, not first."""
    nothing = np.zeros((1, 999), np.float32)
    assert ranks_of(nothing, np.zeros(1, np.float32)).tolist() == [500.5]
    assert ranks_of(np.array([[3, 1, 2]], np.float32), np.array([2.5], np.float32)).tolist() == [2]
    counted = np.array([[False, True, True]])
    assert ranks_of(np.array([[3, 1, 2]], np.float32), np.array([2.5], np.float32), counted).tolist() == [1]


def test_figures_are_what_their_names_say():
    """HR, NDCG and MRR of ranks 1, 3 and 11."""
    found = figures(np.array([1.0, 3.0, 11.0]))
    assert found.hit_rate.value == pytest.approx(2 / 3)
    assert found.ndcg.value == pytest.approx((1 + 0.5) / 3)
    assert found.reciprocal_rank.value == pytest.approx((1 + 1 / 3 + 1 / 11) / 3)
    assert isinstance(found.ndcg, Interval)


def test_principal_components_keep_what_varies_and_leave_no_text_at_zero():
    """Distances survive where the width holds what varies; an item without text has no vector."""
    random = np.random.default_rng(0)
    plane = random.normal(size=(30, 2)) @ random.normal(size=(2, 9))
    rows = np.concatenate([plane, np.zeros((1, 9))]).astype(np.float32)
    found = principal(rows, 2)
    assert found.shape == (31, 2)
    assert not found[-1].any()
    np.testing.assert_allclose(np.linalg.norm(found[0] - found[1]), np.linalg.norm(rows[0] - rows[1]), rtol=1e-4)
    assert not principal(np.zeros((3, 4), np.float32), 2).any()


@pytest.mark.parametrize(
    ("platforms", "options", "what"),
    [
        (("food", "garden"), SMALL, "no event of the platform garden"),
        (("food",), SMALL, "fewer than two platforms"),
        (("food", "food"), SMALL, "fewer than two platforms"),
        (("food", "kitchen"), RankingOptions(negatives=999), "items of food untouched"),
    ],
    ids=["unknown", "alone", "twice", "too-few-items"],
)
def test_a_log_that_cannot_be_ranked_is_refused(platforms, options, what):
    """The error says what, where, what was expected and what to do."""
    with pytest.raises(DataError) as caught:
        leave_one_out(chains(), platforms, options)
    assert what in str(caught.value) or "of kitchen untouched" in str(caught.value)
    assert all((caught.value.where, caught.value.expected, caught.value.fix))


def test_users_nobody_linked_are_refused():
    """Two platforms without one person in common have nothing to transfer."""
    apart = recording([(f"{platform}-{n}", platform, f"i{n}", n) for n in range(9) for platform in ("food", "kitchen")])
    with pytest.raises(DataError, match="none of 18 users has an event on each of food, kitchen"):
        leave_one_out(apart, ("food", "kitchen"), SMALL)
