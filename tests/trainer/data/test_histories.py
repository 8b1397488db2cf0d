"""A log as people: on disk as in memory, whatever order it comes in, and no larger in memory for being longer."""

from __future__ import annotations

import tempfile
import tracemalloc
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.strategies import any_events, events, taxonomies
from tests.trainer.conftest import OPTIONS, SPEC
from tests.trainer.corpus import make_log, taxonomy
from trainer.data.dataset import cut_log
from trainer.data.exclusions import CONFLICTS, REPEATED
from trainer.data.histories import Log, gather
from trainer.data.prepare import _arrays
from trainer.data.study import Task, cut_study
from xplat_stream.event import NEGATIVE_ACTIONS, Event, Millis, Object, UserId, item_text
from xplat_stream.window import row_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from xplat_stream.taxonomy import Taxonomy

FEW = settings(max_examples=30, deadline=None)


def stored(stream: Iterable[Event], labels: Taxonomy, folder: str, **options) -> Log:
    return gather("log", stream, labels, folder=Path(folder), **options)


def as_words(log: Log) -> dict:
    """Return everything a log says, spelled out."""
    return {
        "platforms": log.platforms,
        "items": log.items,
        "texts": log.texts.texts,
        "hashes": log.texts.hashes,
        "rows": log.texts.row_of,
        "own": log.texts.own.tolist(),
        "events": log.events,
        "excluded": log.excluded,
        "histories": [
            (one.user_id, one.rows, *(column.tolist() for column in one[2:6]), one.mask) for one in log.histories
        ],
    }


@FEW
@given(stream=st.lists(any_events() | events("ann") | events("bob"), max_size=40), labels=taxonomies())
def test_on_disk_as_in_memory(stream, labels):
    """A log of any events is read back from disk exactly as it is gathered in memory."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        _small_shards(patch)
        found = stored(iter(stream), labels, folder, expected=len(stream))

        assert as_words(found) == as_words(gather("log", stream, labels))


@FEW
@given(
    stream=st.lists(events("ann") | events("bob"), max_size=30),
    order=st.randoms(use_true_random=False),
)
def test_order_and_repeats_change_nothing(stream, order):
    """A log read twice in another order gives the same people; only the counts of what was read grow."""
    again = [*stream, *stream]
    order.shuffle(again)

    one, other = as_words(gather("log", stream, taxonomy())), as_words(gather("log", again, taxonomy()))

    assert one["histories"] == other["histories"]
    assert one["texts"] == other["texts"]
    assert other["events"] == 2 * one["events"]
    assert other["excluded"]["repeated events"] == 2 * one["excluded"]["repeated events"] + sum(
        len(history[1]) for history in one["histories"]
    )


@FEW
@given(stream=st.lists(any_events() | events("ann"), max_size=30), labels=taxonomies())
def test_a_history_is_the_set_of_a_users_rows(stream, labels):
    """A history holds each distinct row once, in the window's order, with platform, item, text and labels of it."""
    log = gather("log", stream, labels)
    place = {label: 1 << number for number, label in enumerate(labels.ids())}
    expected: dict[str, dict[bytes, tuple]] = {}
    for event in stream:
        item = event.object
        named = labels.label_ids(iab=item.iab, categories=item.categories)
        mask = 0 if event.action in NEGATIVE_ACTIONS else sum(place[label] for label in named)
        told = (event.platform, item.id, item_text(item), event.occurred_at, mask)
        expected.setdefault(event.user_id, {})[row_of(event)] = told

    texts = ["", *log.texts.texts]
    found = {
        history.user_id: {
            row: (log.platforms[platform], log.items[item][1], texts[text], time, mask)
            for row, platform, item, text, time, mask in zip(
                history.rows,
                history.platform.tolist(),
                history.item.tolist(),
                history.text.tolist(),
                history.time.tolist(),
                history.mask,
                strict=True,
            )
        }
        for history in log.histories
    }

    assert found == expected
    assert [history.user_id for history in log.histories] == sorted(expected)
    assert all(history.rows == sorted(history.rows) for history in log.histories)


@FEW
@given(
    times=st.lists(st.integers(0, 50) | st.integers(0, 2**45), min_size=1, max_size=60),
    share=st.floats(0.1, 0.99),
    least=st.integers(1, 3),
)
def test_the_split_time_is_the_sorted_logs(times, share, least):
    """The time found by counting into bins is the one that sorting all eligible times would give."""
    stream = [
        Event(f"//t#{number}", UserId(f"u{number % 7}"), "shop", "view", Object("i", "product"), Millis(time))
        for number, time in enumerate(times)
    ]
    log = gather("log", stream, taxonomy())
    eligible = np.sort(
        np.concatenate([one.time for one in log.histories if len(one.time) >= least] or [np.zeros(0, np.int64)])
    )
    if not len(eligible):
        with pytest.raises(ValueError, match="no user"):
            log.histories.nth_time(share, min_events=least)
        return

    found = log.histories.nth_time(share, min_events=least)

    assert found == (eligible[0], eligible[min(int(len(eligible) * share), len(eligible) - 1)], eligible[-1])


@pytest.mark.parametrize("most", [10**6, 37], ids=["all", "thinned"])
def test_examples_and_cuts_are_the_same_from_disk(tmp_path, monkeypatch, most):
    """Training examples and a study made of a stored log are, to the bit, those of the log in memory."""
    _small_shards(monkeypatch)
    log = make_log(users=60, events_each=30)
    options = msgspec.structs.replace(OPTIONS, max_examples=most, min_examples=1)
    task = Task(target=("shop",), min_label_users=5, max_examples=most)
    held, found = gather("log", log, taxonomy()), stored(log, taxonomy(), tmp_path, expected=len(log))

    for one, other in (
        (_arrays(held, cut_log(held, SPEC, options)), _arrays(found, cut_log(found, SPEC, options))),
        (vars_of(cut_study(held, SPEC, task)), vars_of(cut_study(found, SPEC, task))),
    ):
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[name], other[name]) for name in one)


def vars_of(study) -> dict:
    cuts = study.train
    return {
        "user": cuts.user,
        "before": cuts.before,
        "at": cuts.at,
        "targets": cuts.targets,
        "next_texts": cuts.next_texts,
        "weights": cuts.weights,
        **cuts.inputs._asdict(),
        "test": study.test.at,
        "own": study.texts.own,
        "fold": study.fold,
    }


def test_examples_are_thinned_evenly():
    """More examples than asked for are thinned over all users, not cut off after the first ones."""
    log = gather("log", make_log(users=60, events_each=30), taxonomy())
    options = msgspec.structs.replace(OPTIONS, max_examples=40, min_examples=1)

    few, many = cut_log(log, SPEC, options).train, cut_log(log, SPEC, OPTIONS).train

    assert len(few) == 40
    assert len(set(few.users)) > 25
    assert set(zip(few.users, few.cuts.tolist(), strict=True)) <= set(zip(many.users, many.cuts.tolist(), strict=True))


def test_a_study_keeps_every_evaluated_cut():
    """However few cuts are kept, the last of every user stays: it is what is evaluated."""
    log = gather("log", make_log(users=60, events_each=30), taxonomy())

    few, many = (cut_study(log, SPEC, Task(min_label_users=5, max_examples=most)) for most in (30, 10**6))

    assert len(few.train) < len(many.train) / 2
    assert np.array_equal(few.test.at, many.test.at)
    assert np.array_equal(few.test.targets, many.test.targets)


def test_events_without_ids_are_told_apart_by_content(tmp_path):
    """By content, one user's same action on one item at one time counts once; another time or action is another."""

    def event(number: int, **changes) -> Event:
        made = Event(f"//r#{number}", UserId("ann"), "shop", "view", Object("i", "product", "Tea"), Millis(1000))
        return msgspec.structs.replace(made, **changes)

    stream = [event(1), event(2), event(3, action="like"), event(4, occurred_at=Millis(1001)), event(5)]
    stream.append(event(6, user_id=UserId("bob")))

    for log in (
        gather("log", stream, taxonomy(), by_content=True),
        stored(stream, taxonomy(), tmp_path, by_content=True),
    ):
        assert [len(history.rows) for history in log.histories] == [3, 1]
        assert log.excluded == {REPEATED: 2, CONFLICTS: 0}


def test_an_id_with_two_contents_is_counted(tmp_path):
    """Both events count, as the window law has it; an id that comes again, or for another user, conflicts with none."""
    event = Event("//r#1", UserId("ann"), "shop", "view", Object("i", "product", "Tea"), Millis(1000))
    later = msgspec.structs.replace(event, occurred_at=Millis(2000))
    stream = [event, later, event, msgspec.structs.replace(event, user_id=UserId("bob"))]

    for log in (gather("log", stream, taxonomy()), stored(stream, taxonomy(), tmp_path)):
        assert [len(history.rows) for history in log.histories] == [2, 1]
        assert log.excluded == {REPEATED: 1, CONFLICTS: 1}


def people(users: int, each: int) -> Iterator[Event]:
    """Yield events of the same people about the same things, made as they are asked for."""
    items = [Object(f"i{number}", "product", f"thing {number}", categories=("Travel",)) for number in range(50)]
    for number in range(users * each):
        user = UserId(f"u{number % users}")
        yield Event(f"//t#{number}", user, "shop", "view", items[number % 50], Millis(1_780_000_000_000 + number * 997))


def held_at_most(each: int, folder: Path) -> tuple[int, int]:
    """Return the most bytes that Python and numpy held, and that Arrow held, while a log was stored and cut."""
    folder.mkdir()
    options = msgspec.structs.replace(OPTIONS, max_examples=300, label_period=timedelta(days=30))
    tracemalloc.start()
    log = gather("log", people(20, each), taxonomy(), folder=folder, expected=20 * each)
    cut_log(log, SPEC, options)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak, pa.total_allocated_bytes()


def test_a_longer_log_of_the_same_people_takes_no_more_memory(tmp_path, monkeypatch):
    """Six times the events are held in little more memory: shards and examples bound it, not the log."""
    _small_shards(monkeypatch, shard=500, at_once=250)
    short, _ = held_at_most(60, tmp_path / "short")
    long, left = held_at_most(360, tmp_path / "long")

    assert long < 1.3 * short
    assert left < 1_000_000


def _small_shards(patch: pytest.MonkeyPatch, shard: int = 5, at_once: int = 7) -> None:
    """Let a small log go the way of a large one."""
    patch.setattr("trainer.data.histories.EVENTS_A_SHARD", shard)
    patch.setattr("trainer.data.histories._AT_ONCE", at_once)
