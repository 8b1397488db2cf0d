"""Two releases beside each other: sums that add up whoever counted, and limits that say why."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xplat_stream.comparison import Comparison, Side, breaches, ndcg
from xplat_stream.settings import ReleaseSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

LABELS = 6
LIMITS = ReleaseSettings(min_compared=20)

scores = st.lists(st.floats(0, 1, width=32), min_size=LABELS, max_size=LABELS)
steps = st.one_of(
    st.tuples(st.just("add"), scores, scores),
    st.tuples(st.just("judge"), scores, scores, st.sets(st.integers(0, LABELS - 1), min_size=1)),
    st.tuples(st.just("call"), st.booleans(), st.floats(0, 100)),
    st.tuples(st.just("ask"), st.booleans(), st.booleans()),
)


def counted(done: Sequence[tuple[Any, ...]]) -> Comparison:
    """Return a comparison that was fed all of these."""
    comparison = Comparison()
    for kind, *arguments in done:
        if kind == "add":
            comparison.add(*arguments)
        elif kind == "judge":
            comparison.judge(*arguments)
        else:
            side = comparison.active if arguments[0] else comparison.other
            if kind == "call":
                side.add_call(arguments[1])
            else:
                side.asked += 1
                side.failed += arguments[1]
    return comparison


def as_written(comparison: Comparison) -> Any:
    """Return what goes into a report, key order aside."""
    return msgspec.json.decode(msgspec.json.encode(comparison))


@given(done=st.lists(steps, max_size=12), data=st.data())
def test_parts_add_up_to_the_whole(done: list[tuple[Any, ...]], data: st.DataObject) -> None:
    """However windows were shared out among workers and restarts, merging is associative and gives the one sum."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(done)), min_size=2, max_size=2)))
    a, b, c = (counted(done[start:end]) for start, end in zip([0, *cuts], [*cuts, len(done)], strict=True))
    assert a.merge(b).merge(c) == a.merge(b.merge(c)) == counted(done)
    assert b.merge(a) == a.merge(b)
    assert a.merge(Comparison()) == a


@given(done=st.lists(steps, max_size=6))
def test_a_report_comes_back_as_it_was(done: list[tuple[Any, ...]]) -> None:
    """Nothing is lost as JSON."""
    comparison = counted(done)
    assert msgspec.json.decode(msgspec.json.encode(comparison), type=Comparison) == comparison


@given(done=st.lists(steps, max_size=6))
def test_turned_twice_is_the_same(done: list[tuple[Any, ...]]) -> None:
    """Either release can be judged against the other."""
    comparison = counted(done)
    turned = comparison.turned()
    assert turned.turned() == comparison
    assert turned.ndcg == comparison.ndcg[::-1]
    assert turned.drift == pytest.approx([-one for one in comparison.drift])


def test_two_that_say_the_same_agree() -> None:
    """Full overlap, no flip, no difference, no drift."""
    comparison = counted([("add", [0.9, 0.1, 0.3, 0.2, 0.6, 0.5], [0.9, 0.1, 0.3, 0.2, 0.6, 0.5])])
    assert (comparison.agreement, comparison.flips_a_user, comparison.mean_difference) == (1.0, 0.0, 0.0)
    assert comparison.drift == [0.0] * LABELS


def test_what_differs_is_counted() -> None:
    """One of six labels falls from the first place to the last: out of the top five, across 0.5, by 0.9."""
    comparison = counted([("add", [0.9, 0.1, 0.3, 0.2, 0.4, 0.2], [0.0, 0.1, 0.3, 0.2, 0.4, 0.2])])
    assert comparison.agreement == pytest.approx(4 / 5)
    assert comparison.flips == 1
    assert comparison.mean_difference == pytest.approx(0.15)
    assert comparison.drift == pytest.approx([0.9, 0, 0, 0, 0, 0])


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        pytest.param({0}, 1.0, id="first"),
        pytest.param({1}, 1 / 1.584962500721156, id="second"),
        pytest.param({0, 1}, 1.0, id="first two"),
        pytest.param({2, 0}, (1 + 0.5) / (1 + 1 / 1.584962500721156), id="first and third"),
    ],
)
def test_ndcg_is_the_trainers(labels: set[int], expected: float) -> None:
    """A true label counts by its rank; the best order there can be is 1; equal scores rank by label order."""
    assert ndcg([0.9, 0.5, 0.5], labels) == pytest.approx(expected)


def test_ndcg_needs_something_done() -> None:
    """Nothing done says nothing of a ranking."""
    with pytest.raises(ValueError, match="labels is empty"):
        ndcg([0.5], ())


def test_latency_is_known_to_a_tenth() -> None:
    """Whatever the durations, their p99 is found within a tenth, from counts that merge."""
    chance = random.Random(1)
    durations = sorted(chance.lognormvariate(1, 1) for _ in range(1000))
    side = Side()
    for duration in durations:
        side.add_call(duration / 1000)
    assert side.latency_ms(0.99) == pytest.approx(durations[989], rel=0.1)
    assert side.latency_ms(0.5) == pytest.approx(durations[499], rel=0.1)
    assert Side().latency_ms(0.99) == 0.0


def good(count: int = 200) -> Comparison:
    """Return a comparison of two releases that are as good as each other, with some chance in it."""
    chance = random.Random(2)
    comparison = Comparison()
    for _ in range(count):
        one = [chance.random() for _ in range(LABELS)]
        two = [min(1.0, max(0.0, score + chance.gauss(0, 0.05))) for score in one]
        comparison.add(one, two)
        comparison.judge(one, two, {chance.randrange(LABELS)})
        for side in (comparison.active, comparison.other):
            side.asked += 1
            side.add_call(chance.uniform(0.004, 0.006))
    return comparison


def test_a_good_release_breaches_nothing() -> None:
    """Chance is no breach."""
    assert breaches(good(), LIMITS) == []


@pytest.mark.parametrize(
    ("spoil", "figure", "where"),
    [
        pytest.param(lambda one: setattr(one.active, "failed", 10), "errors", "", id="errors"),
        pytest.param(lambda one: one.active.calls.update({40: 10}), "latency", "", id="latency"),
        pytest.param(lambda one: one.active.scores.__setitem__(2, 0), "drift", "pets", id="drift"),
        pytest.param(
            lambda one: [one.judge([0.1, 0.9, 0, 0, 0, 0], [0.9, 0.1, 0, 0, 0, 0], {0}) for _ in range(100)],
            "ndcg",
            "",
            id="ndcg",
        ),
    ],
)
def test_a_breach_has_figure_and_limit(spoil: Any, figure: str, where: str) -> None:
    """What is broken is named with what was found and what is allowed; seen from the other side it is none."""
    comparison = good()
    spoil(comparison)
    (breach,) = breaches(comparison, LIMITS, ("cars", "books", "pets"))
    assert (breach.figure, breach.where) == (figure, where)
    assert abs(breach.found) > breach.limit
    assert str(breach).startswith(f"{figure} of {where} is " if where else f"{figure} is ")
    assert [one.figure for one in breaches(comparison.turned(), LIMITS)] == (["drift"] if where else [])


def test_a_server_that_is_away_is_no_breach() -> None:
    """What fails under both releases at the same time is not the release's fault."""
    comparison = good()
    comparison.active.failed = comparison.other.failed = 150
    assert breaches(comparison, LIMITS) == []


def test_little_is_no_evidence() -> None:
    """Below the smallest number of users nothing is a breach."""
    comparison = counted([("add", [1.0] * LABELS, [0.0] * LABELS)] * 19 + [("ask", True, True)] * 19)
    assert breaches(comparison, LIMITS) == []
    assert len(breaches(counted([("add", [1.0] * LABELS, [0.0] * LABELS)] * 20), LIMITS)) == LABELS


def test_a_loss_that_may_be_chance_is_no_breach() -> None:
    """The mean is beyond the limit, what is certain of it is not."""
    comparison = Comparison()
    for number in range(30):
        best, worst = [0.9, 0.1], [0.1, 0.9]
        better = number % 5 < 2
        comparison.judge(best if better else worst, worst if better else best, {0})
    one, two = comparison.ndcg
    assert two - one > LIMITS.max_ndcg_loss
    assert breaches(comparison, LIMITS) == []
