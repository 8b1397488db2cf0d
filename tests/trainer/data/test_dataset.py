"""Examples: what a window holds, what a target says, and where the split lies."""

from __future__ import annotations

from datetime import timedelta

import msgspec
import numpy as np
import pytest

from tests.trainer.conftest import OPTIONS, SPEC
from tests.trainer.corpus import DAY_MS, START_MS, make_log, taxonomy
from trainer.data.compact import compact
from trainer.data.dataset import build_examples
from trainer.run.options import TrainOptions
from xplat_stream.errors import DataError
from xplat_stream.event import Event, Millis, Object, UserId
from xplat_stream.serving.features import head_inputs
from xplat_stream.window import BehaviorWindow, WindowSpec, row_of

LABELS = taxonomy().ids()
PETS = LABELS.index("541")
TRAVEL = LABELS.index("719")


def everything(dataset):
    return [
        (user, cut, part.inputs.take(np.array([row])).trimmed(), target, end)
        for part in (dataset.train, dataset.tune, dataset.test)
        for row, (user, cut, target, end) in enumerate(zip(part.users, part.cuts, part.targets, part.ends, strict=True))
    ]


def at(day: float, label: str = "", *, action: str = "view", user: str = "u", number: int = 0) -> Event:
    return Event(
        f"//shop#{user}{day}{number}",
        UserId(user),
        "shop",
        action,
        Object(
            id=f"i{day}{number}", type="product", title=f"thing {day} {number}", categories=(label,) if label else ()
        ),
        Millis(START_MS + round(day * DAY_MS)),
    )


def compact_of(windows, dataset):
    return compact(windows, dataset.texts, platforms=dataset.platforms, max_events=OPTIONS.max_events)


def same_inputs(one, other):
    return all(map(np.array_equal, one, other))


def test_window_is_the_one_a_worker_would_have(log, dataset):
    """The window of an example is the fold of the user's events up to its cut, and holds nothing after it."""
    by_user: dict[str, list[Event]] = {}
    for event in log:
        by_user.setdefault(event.user_id, []).append(event)

    for user, cut, window, _, _ in everything(dataset):
        before = [(event.platform, row_of(event)) for event in by_user[user] if event.occurred_at <= cut]
        expected = BehaviorWindow(SPEC).fold(before)

        assert expected.end == cut
        assert same_inputs(window, compact_of([expected], dataset))


def test_target_is_what_was_touched_next(log, dataset):
    """A target names exactly the labels of the next events within the label period."""
    by_user: dict[str, list[Event]] = {}
    for event in log:
        by_user.setdefault(event.user_id, []).append(event)

    for user, cut, _, target, end in everything(dataset)[::7]:
        later = [event for event in by_user[user] if cut < event.occurred_at <= cut + dataset.label_period_ms]
        following = later[: OPTIONS.label_events]
        named = {label for event in following for label in taxonomy().label_ids(categories=event.object.categories)}

        assert {LABELS[index] for index in np.flatnonzero(target)} == named
        assert end == following[-1].occurred_at


def test_validation_lies_after_training(dataset):
    """No training period reaches the split; no validation cut lies before it."""
    assert dataset.train.ends.max() < dataset.split_at
    assert min(dataset.tune.cuts.min(), dataset.test.cuts.min()) >= dataset.split_at


def test_validation_users_are_apart(dataset):
    """A user helps either to calibrate or to evaluate, never both."""
    assert not set(dataset.tune.users) & set(dataset.test.users)


def test_duplicates_and_order_change_nothing(log, dataset):
    """The log read twice, backwards, gives the same examples: arrival order and redelivery do not matter."""
    again = build_examples([*reversed(log), *log], taxonomy(), SPEC, OPTIONS)

    assert same_inputs(again.train.inputs, dataset.train.inputs)
    assert np.array_equal(again.train.targets, dataset.train.targets)
    assert np.array_equal(again.test.cuts, dataset.test.cuts)


def test_negative_actions_are_no_target():
    """Hiding something of a label is not touching it."""
    events = [
        event
        for user in map(str, range(40))
        for event in (
            *(at(day, "Travel", user=user) for day in range(12)),
            *(at(day + 0.5, "Pets", action="hide", user=user) for day in range(12)),
        )
    ]
    options = TrainOptions(label_period=timedelta(days=1))

    dataset = build_examples(events, taxonomy(), SPEC, options)

    assert dataset.train.targets[:, TRAVEL].any()
    assert not dataset.train.targets[:, PETS].any()


def test_cut_takes_in_its_whole_millisecond():
    """Events of one millisecond are on the same side of every cut."""
    events = [
        at(day, "Travel", user=user, number=number)
        for user in map(str, range(40))
        for day in range(12)
        for number in (0, 1)
    ]

    dataset = build_examples(events, taxonomy(), SPEC, TrainOptions(label_period=timedelta(days=2)))

    assert (dataset.train.inputs.length % 2 == 0).all()


def test_thin_users_are_skipped(log):
    """A user below `min_events` gives no example, and is counted."""
    thin = at(1, "Travel", user="thin")

    dataset = build_examples([*log, thin], taxonomy(), SPEC, OPTIONS)

    assert "thin" not in dataset.train.users
    assert dataset.skipped_users == 1


def test_texts_without_categories_learn_from_what_came_next(dataset):
    """A text of a platform without categories has no labels of its own, and those its readers touched next."""
    texts = dataset.texts
    unlabelled = ~texts.own_known & (texts.next_count > 0)

    assert unlabelled.any()
    assert texts.next_labels[unlabelled].any(axis=1).mean() > 0.9
    assert texts.next_labels.max() <= 1


def test_too_little_says_what_to_do():
    """Too few events end in a line that counts them, says how many are needed and where to get more."""
    with pytest.raises(DataError, match="xplat simulate") as caught:
        build_examples(make_log(users=2, events_each=10), taxonomy(), SPEC, OPTIONS)

    assert "20 events of 2 users" in str(caught.value)
    assert "100 training examples" in str(caught.value)


def test_nothing_at_all_says_so():
    """An empty log is told as such."""
    with pytest.raises(DataError, match="holds no events"):
        build_examples([], taxonomy(), SPEC, OPTIONS)


def test_no_category_says_so():
    """A log whose items name no category of the taxonomy cannot be trained on, and the line says why."""
    events = [at(day, user=user) for user in map(str, range(40)) for day in range(12)]

    with pytest.raises(DataError, match="carries a category"):
        build_examples(events, taxonomy(), SPEC, OPTIONS)


def test_young_log_shortens_the_period():
    """A log of two hours has examples too: the period shrinks to an eighth of its span."""
    events = make_log(users=60, events_each=30, days=1)

    dataset = build_examples(events, taxonomy(), SPEC, TrainOptions(label_period=timedelta(days=30)))

    assert dataset.label_period_ms <= DAY_MS // 8
    assert len(dataset.train) >= TrainOptions().min_examples


@pytest.mark.parametrize("max_events", [pytest.param(4, id="truncated"), pytest.param(64, id="whole")])
def test_compact_windows_are_the_librarys_inputs(log, dataset, table, max_events):
    """Indices filled with vectors are, to the bit, what the library builds for the worker."""
    by_user: dict[str, list[Event]] = {}
    for event in log:
        by_user.setdefault(event.user_id, []).append(event)
    windows = [
        BehaviorWindow(SPEC).fold((event.platform, row_of(event)) for event in events[: 3 + number % 30])
        for number, events in enumerate(by_user.values())
    ]
    vectors = {name: table[row].tobytes() for name, row in dataset.texts.row_of.items()}
    expected = head_inputs(windows, vectors, platforms=dataset.platforms, width=64, max_events=max_events)

    small = compact(windows, dataset.texts, platforms=dataset.platforms, max_events=max_events)
    found = small.with_vectors(table, np.arange(len(windows)))

    length = found.action.shape[1]
    for name in found._fields:
        assert np.array_equal(getattr(found, name), getattr(expected, name)[:, :length])
    assert not expected.action[:, length:].any()
    assert small.length.max() <= max_events


def test_spec_truncates_windows(log):
    """A window keeps no more events of a platform than the spec allows."""
    dataset = build_examples(log, taxonomy(), WindowSpec(per_platform=3), OPTIONS)

    counts = [np.bincount(row[row > 0]).max() for row in dataset.train.inputs.platform]
    assert max(counts) == 3


def test_options_are_closed():
    """An option that does not exist is refused."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"head_onyl": True}, TrainOptions)
