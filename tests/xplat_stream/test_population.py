"""The population: reproducible people whose true interests are known."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from itertools import pairwise

import pytest

from xplat_stream.adapters import admit, encode_event
from xplat_stream.catalogue import MATERIAL, PLATFORMS, material_of
from xplat_stream.event import NEGATIVE_ACTIONS, Event, item_text
from xplat_stream.population import Population
from xplat_stream.taxonomy import Label, Taxonomy, load_taxonomy

TAXONOMY = load_taxonomy()
DAY_MS = 86_400_000
END_MS = 1_767_225_600_000
START_MS = END_MS - 60 * DAY_MS


@pytest.fixture(scope="module")
def population() -> Population:
    """Return a population tests only read."""
    return Population(TAXONOMY, users=60, seed=7)


@pytest.fixture(scope="module")
def history(population: Population) -> list[Event]:
    """Return two months of its events."""
    return list(population.events(START_MS, END_MS, 6000))


def label_of(event: Event) -> str:
    """Return the label id an item is about: its name says so."""
    slug = event.object.id.split("-", 1)[1].rpartition("-")[0]
    return next(label.id for label in TAXONOMY.labels if label.slug == slug)


def moved(before: dict[str, dict[str, float]], after: dict[str, dict[str, float]]) -> list[float]:
    """Return how much of each user's weight lies elsewhere, from 0 to 1."""
    return [sum(abs(before[user][label] - after[user][label]) for label in before[user]) / 2 for user in before]


def test_the_same_seed_gives_the_same_events(population: Population, history: list[Event]) -> None:
    """Another population with the seed, in any process, publishes the same bytes; another seed does not."""
    again = Population(TAXONOMY, users=60, seed=7)
    assert [encode_event(event) for event in again.events(START_MS, END_MS, 6000)] == list(map(encode_event, history))
    assert again.truth(END_MS) == population.truth(END_MS)
    other = Population(TAXONOMY, users=60, seed=8)
    assert next(other.events(START_MS, END_MS, 6000)) != history[0]
    assert other.truth(END_MS) != population.truth(END_MS)


def test_another_process_gives_the_same_events(history: list[Event]) -> None:
    """Nothing depends on the hash seed of a process."""
    code = (
        "from xplat_stream.population import Population; from xplat_stream.taxonomy import load_taxonomy;"
        f"print(next(Population(load_taxonomy(), users=60, seed=7).events({START_MS}, {END_MS}, 6000)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == str(history[0])


def test_events_are_in_time_order_over_the_whole_range(history: list[Event]) -> None:
    """Exactly as many as asked, oldest first, inside the range and spread over it, most users among them."""
    times = [event.occurred_at for event in history]
    assert len(times) == 6000
    assert times == sorted(times)
    assert START_MS <= times[0] < START_MS + DAY_MS
    assert END_MS - DAY_MS < times[-1] < END_MS
    assert 0.45 < sum(time < (START_MS + END_MS) // 2 for time in times) / 6000 < 0.55
    assert len({event.user_id for event in history}) == 60


def test_ids_are_unique_and_say_where_from(history: list[Event], population: Population) -> None:
    """No id comes twice, in one run or in a later one with the same seed."""
    later = list(population.events(END_MS, END_MS + DAY_MS, 500))
    ids = [event.event_id for event in [*history, *later]]
    assert len(set(ids)) == len(ids)
    assert all(event.event_id.startswith(f"//{event.platform}.example/sim#7-") for event in history)


def test_every_event_is_admitted(history: list[Event]) -> None:
    """What the simulator publishes is valid, on its platform's topic, under its user's key."""
    for event in history:
        key, value = event.user_id.encode(), encode_event(event)
        assert admit(key, value, platform=event.platform, received_at_ms=event.occurred_at) == event


def test_the_truth_sums_to_one(population: Population) -> None:
    """Every user has a weight for every label at any time, summing to 1, with two to four strong ones or a change."""
    for at_ms in (0, START_MS, END_MS):
        truth = population.truth(at_ms)
        assert len(truth) == 60
        for weights in truth.values():
            assert set(weights) == set(TAXONOMY.ids())
            assert sum(weights.values()) == pytest.approx(1)
            assert min(weights.values()) > 0
            assert 2 <= sum(weight > 0.01 for weight in weights.values()) <= 8


def test_interests_drift(population: Population) -> None:
    """From one hour to the next little changes; after two months most users want something else."""
    now, soon, later = (population.truth(START_MS + offset) for offset in (0, 3_600_000, 60 * DAY_MS))

    assert max(moved(now, soon)) < 0.05
    assert sum(change > 0.3 for change in moved(now, later)) > 40


def test_interests_never_jump(population: Population) -> None:
    """One interest fades while the next comes in: no half day changes more than a part of anybody's interests."""
    days = [population.truth(START_MS + half * DAY_MS // 2) for half in range(121)]
    assert max(max(moved(before, after)) for before, after in pairwise(days)) < 0.2


def test_events_follow_the_truth(population: Population, history: list[Event]) -> None:
    """What users do is drawn from their interests of that moment; what they reject lies outside of them."""
    for_weight, negative = [], 0
    for event in history[::10]:
        weight = population.truth(event.occurred_at)[event.user_id][label_of(event)]
        if event.action in NEGATIVE_ACTIONS:
            negative += 1
            assert weight < 0.01
        else:
            for_weight.append(weight)
    assert sum(weight > 0.01 for weight in for_weight) / len(for_weight) > 0.8
    assert 0.02 < negative / len(history[::10]) < 0.12


def test_platforms_look_like_themselves(history: list[Event]) -> None:
    """Shops have categories, half of the videos IAB ids, posts only words: interests transfer through text alone."""
    by_platform = {name: [event for event in history if event.platform == name] for name in PLATFORMS}
    assert all(len(events) > 600 for events in by_platform.values())
    assert {event.object.type for event in by_platform["shop"]} == {"product"}
    assert all(event.object.categories for event in by_platform["shop"])
    videos = {event.object.id: event.object for event in by_platform["video"]}
    assert 0.4 < sum(bool(item.iab) for item in videos.values()) / len(videos) < 0.6
    assert not any(item.categories or item.tags for item in videos.values())
    posts = {event.object.id: event.object for event in by_platform["social"]}
    assert all(item.text and not (item.title or item.categories or item.iab) for item in posts.values())
    assert 0.2 < sum(bool(item.tags) for item in posts.values()) / len(posts) < 0.4


def test_some_users_are_on_some_platforms_only(history: list[Event]) -> None:
    """There are users of one, of two and of three platforms."""
    platforms: dict[str, set[str]] = {}
    for event in history:
        platforms.setdefault(event.user_id, set()).add(event.platform)
    counts = Counter(map(len, platforms.values()))
    assert all(counts[number] > 3 for number in (1, 2, 3))


def test_popularity_is_skewed(history: list[Event]) -> None:
    """A few items and labels draw much more than the others."""
    items = Counter(event.object.id for event in history).most_common()
    assert items[0][1] > 10 * items[len(items) // 2][1]
    labels = Counter(map(label_of, history)).most_common()
    assert labels[0][1] > 2 * labels[-1][1]


def test_the_words_cover_the_taxonomy() -> None:
    """Every shipped label has material of its own, and no label without one is left."""
    assert set(MATERIAL) == {label.slug for label in TAXONOMY.labels}
    for material in MATERIAL.values():
        assert len(set(material.products + material.subjects)) >= 20
        assert len(material.shelves) == 3


def test_every_text_is_there_and_of_its_own(population: Population) -> None:
    """At least 1,200 distinct texts, none empty, none longer than a transformer reads."""
    texts = [item_text(item.object) for item in population.items()]
    assert all(len(text) > 10 for text in texts)
    assert max(map(len, texts)) < 160
    assert len(set(texts)) == len(texts) >= 1200


def test_what_platforms_classify_is_right(population: Population) -> None:
    """A category or an IAB id names the item's own label and no other."""
    for item in population.items():
        found = TAXONOMY.label_ids(iab=item.object.iab, categories=item.object.categories)
        assert found == ((item.label_id,) if item.object.iab or item.object.categories else ())


@pytest.mark.parametrize("count", [1, 2, 3, 40])
def test_any_taxonomy_can_be_simulated(count: int) -> None:
    """Labels nobody wrote words for are spoken of by name; a single label is enough."""
    labels = tuple(Label(f"{number}", f"s{number}", f"Label {number}", aliases=("also",)) for number in range(count))
    people = Population(Taxonomy("t", "1", 500, labels), users=5, seed=1)
    assert material_of(labels[0]).subjects == ("Label 0", "also")
    for event in people.events(START_MS, END_MS, 200):
        assert item_text(event.object)
    assert all(sum(weights.values()) == pytest.approx(1) for weights in people.truth(END_MS).values())


@pytest.mark.parametrize("wrong", [{"users": 0}, {"items_per_label": 0}])
def test_an_impossible_population_is_refused(wrong: dict[str, int]) -> None:
    """Nobody, or nothing to act on, is an error at once."""
    with pytest.raises(ValueError, match="expected at least 1"):
        Population(TAXONOMY, **{"users": 1, "seed": 1, **wrong})
