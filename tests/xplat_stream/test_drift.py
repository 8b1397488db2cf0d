"""The population stability index: how far what people act on has moved."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xplat_stream.drift import Drift, Shares, drift, psi, shares
from xplat_stream.event import Event, Millis, Object, UserId
from xplat_stream.taxonomy import load_taxonomy

COUNTS = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 1000), min_size=1)


def normal(counts: dict[str, int]) -> dict[str, float]:
    whole = sum(counts.values())
    return {name: count / whole for name, count in counts.items()}


@given(COUNTS, COUNTS)
def test_it_is_a_distance(then: dict[str, int], now: dict[str, int]) -> None:
    """Never below zero, zero for equal shares, and the same from both sides."""
    before, after = normal(then), normal(now)
    assert psi(before, before) == 0
    assert psi(before, after) >= 0
    assert abs(psi(before, after) - psi(after, before)) < 1e-9


def test_it_is_what_the_formula_says() -> None:
    """(.75 - .5) ln(.75 / .5) + (.25 - .5) ln(.25 / .5) = .2747."""
    assert abs(psi({"a": 0.5, "b": 0.5}, {"a": 0.75, "b": 0.25}) - 0.2747) < 1e-4


def test_nothing_to_compare_is_no_drift() -> None:
    """A log of nothing has not moved."""
    assert psi({}, {"a": 1.0}) == psi({"a": 1.0}, {}) == 0


def test_labels_and_platforms_are_both_looked_at() -> None:
    """People who do the same elsewhere have moved; so have people who do something else."""
    here = Shares({"a": 1.0}, {"shop": 0.5, "video": 0.5})
    elsewhere = drift(here, Shares({"a": 1.0}, {"shop": 0.9, "video": 0.1}))
    assert elsewhere.largest > 0.25
    assert elsewhere.labels == 0
    assert {shift.name for shift in elsewhere.shifts} == {"shop", "video"}
    assert drift(here, Shares({"a": 0.5, "b": 0.5}, here.platforms)).largest > 0.25
    assert drift(here, here) == Drift(0, 0)


@pytest.mark.parametrize(("now", "words"), [(0.5, "nothing"), (0.66, "begun"), (0.75, "another")])
def test_what_an_index_means(now: float, words: str) -> None:
    """Below .1 nothing has moved, from .25 on the population is another one."""
    assert words in drift(Shares({"a": 0.5, "b": 0.5}), Shares({"a": now, "b": 1 - now})).words


def test_shares_are_of_labels_named_and_of_platforms() -> None:
    """Items that name no label count for their platform alone."""
    taxonomy = load_taxonomy()
    label = taxonomy.labels[0]
    items = [Object("a", "product", categories=(label.name,)), Object("b", "video")]
    events = [
        Event(f"//a#{number}", UserId("u"), platform, "view", item, Millis(1))
        for number, (platform, item) in enumerate([("shop", items[0]), ("shop", items[0]), ("video", items[1])])
    ]
    found = shares(events, taxonomy)
    assert found.labels == {label.id: 1.0}
    assert found.platforms == {"shop": 2 / 3, "video": 1 / 3}


def test_what_is_disliked_is_no_interest() -> None:
    """It counts for its platform alone, in a log as in what is trained on."""
    taxonomy = load_taxonomy()
    hidden = Event(
        "//a#1", UserId("u"), "shop", "hide", Object("a", "product", categories=(taxonomy.labels[0].name,)), 1
    )
    assert shares([hidden], taxonomy) == Shares({}, {"shop": 1.0})
