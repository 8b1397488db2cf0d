"""Recorded folders: labels from any classification, and bad data told or counted, never trained on in silence."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec
import pytest

from tests.trainer.conftest import OPTIONS
from tests.trainer.recording import PLATFORMS, START_S, SUBJECTS, rows, write
from trainer.data.prepare import Prepared, Recorded, prepare
from trainer.data.recorded import LabelRule, read_labelled
from trainer.data.study import Task, build_study
from trainer.run.progress import silent
from xplat_stream.errors import DataError
from xplat_stream.settings import LocalSettings, Settings
from xplat_stream.window import WindowSpec

if TYPE_CHECKING:
    from pathlib import Path

TAGS = LabelRule.parse("tags")


def prepared(tmp_path: Path, events, items, *, labels="tags", min_users=5, **task) -> Prepared:
    """Go the way `xplat train --dataset` goes, up to the examples."""
    folder = write(tmp_path / "rec", events, items)
    settings = Settings(local=LocalSettings(home=str(tmp_path / "home")))
    options = msgspec.structs.replace(OPTIONS, min_examples=20)
    return prepare(settings, options, silent, Recorded(folder, labels, Task(min_label_users=min_users, **task)))


def test_labels_are_the_recordings_own(tmp_path):
    """A taxonomy is made of what the items name, platforms are whatever the file says, users are any strings."""
    found = prepared(tmp_path, *rows())

    assert sorted(found.data.labels) == sorted(("all", *SUBJECTS))
    assert found.data.platforms == PLATFORMS
    assert "ünïcode ☕-0" in {*found.data.train.users, *found.data.tune.users, *found.data.test.users}
    assert found.data.texts.own_known.any()
    assert not found.data.texts.own_known.all()


def test_parents_are_the_paths_above(tmp_path):
    """Of `categories:2-3` the second part is the parent, a group that nobody is scored for; tags have no parents."""
    events, items = rows()
    paths = [(*row[:3], f"all|{row[0][3]}|{row[0].split(':')[1].split('#')[0]}", row[4]) for row in items]
    folder = write(tmp_path / "rec", events, paths)
    found = read_labelled(folder, LabelRule.parse("categories:2-3"), min_users=1).taxonomy

    assert {(label.name, label.parent) for label in found.labels} == {(f"{one[0]} / {one}", one[0]) for one in SUBJECTS}
    assert set(found.groups) == {one[0] for one in SUBJECTS}
    assert read_labelled(folder, TAGS, min_users=1).taxonomy.groups == ()
    assert LabelRule.parse("categories:2-3").parent("a/-") == ""


def test_what_is_missing_is_counted(tmp_path):
    """Items without titles, without labels and without a description are told, and their events count."""
    events, items = rows()
    found = prepared(tmp_path, [*events, ("new", "forum-eu", "nobody described me", str(START_S), "")], items)

    assert found.events == len(events) + 1
    assert found.excluded["items without a title"] == len(items) // 4
    assert found.excluded["items without a label"] == len(items) // 3
    assert found.excluded["events of items nobody described"] == 1


def test_events_in_the_future_are_counted_out(tmp_path):
    """An event dated after now is left out, as a worker would reject it, and cannot move the window or the split."""
    events, items = rows()
    late = (events[0][0], "forum-eu", events[0][2], str(int(time.time()) + 86_400), "like")
    found = prepared(tmp_path, [*events, late, late], items)

    assert found.excluded["events dated in the future"] == 2
    assert found.events == len(events)
    assert max(part.ends.max() for part in (found.data.train, found.data.tune, found.data.test)) < 2_000_000_000_000


def test_repeated_lines_count_once(tmp_path):
    """A line that is there again is the same event, and an item described again is what its last line says."""
    events, items = rows()
    once = prepared(tmp_path / "once", events, items)
    twice = prepared(tmp_path / "twice", [*events, *events[::3]], [*items, *items[:5]])

    assert twice.excluded["repeated events"] == len(events[::3])
    assert twice.excluded["items described again"] == 5
    assert len(once.data.train) == len(twice.data.train)
    assert (once.data.train.targets == twice.data.train.targets).all()


def test_a_title_of_a_megabyte_is_read_to_512_characters(tmp_path):
    """It is counted and cut; nothing carries the megabyte along."""
    events, items = rows()
    item, platform, _, categories, tags = items[0]
    found = prepared(tmp_path, events, [(item, platform, "x" * 2**20, categories, tags), *items[1:]])

    assert found.excluded["titles cut to 512 characters"] == 1
    assert max(map(len, found.data.texts.texts)) < 1100


def test_labels_longer_than_an_id_are_none(tmp_path):
    """A tag of a thousand characters is not made a label."""
    events, items = rows()
    found = prepared(tmp_path, events, [(*row[:4], f"{row[4]},{'y' * 1000}") for row in items])

    assert sorted(found.data.labels) == sorted(("all", *SUBJECTS))


def without(wanted: str):
    """Return rows with only one of something."""
    events, items = rows()
    if wanted == "no events":
        return [], items
    if wanted == "one user":
        return [(events[0][0], *row[1:]) for row in events], items
    if wanted == "one class":
        return events, [(*row[:4], "all") for row in items]
    if wanted == "no class":
        return events, [(*row[:4], "") for row in items]
    if wanted == "all in the future":
        return [(*row[:3], "32503680000", row[4]) for row in events], items
    return events[:40], items


@pytest.mark.parametrize(
    ("wanted", "min_users", "told"),
    [
        ("no events", 5, "the recording holds no events"),
        ("all in the future", 5, r"no events \(2700 dated in the future\)"),
        ("one user", 5, "0 labels with 5 users or more"),
        ("one user", 1, "too little to evaluate: 1 users"),
        ("one class", 5, "1 labels with 5 users or more"),
        ("no class", 5, "0 labels with 5 users or more, of 0"),
        ("few events", 1, "too little to evaluate"),
    ],
)
def test_too_little_is_one_clear_error(tmp_path, wanted, min_users, told):
    """A recording that nothing can be learnt from ends in one line with what there is and what to do."""
    with pytest.raises(DataError, match=told) as caught:
        prepared(tmp_path, *without(wanted), min_users=min_users)

    assert caught.value.fix
    assert not list((tmp_path / "home").glob("cache/log-*/examples-*"))


@pytest.mark.parametrize(
    ("option", "told"),
    [({"target": ("nowhere",)}, "--target"), ({"source": ("beauty", "forum-eu")}, "no event of the platform beauty")],
)
def test_a_platform_nobody_used_is_named(tmp_path, option, told):
    """A target or source that is not in the recording is told with those that are."""
    with pytest.raises(DataError, match=told) as caught:
        prepared(tmp_path, *rows(users=20), **option)

    assert "forum-eu, git_hub, library2" in caught.value.expected


@pytest.mark.parametrize("words", ["", "category", "categories:0", "categories:3-2", "tags:1", "categories:2-3-4"])
def test_a_rule_that_cannot_be_read_is_refused(tmp_path, words):
    """A mistyped --labels is told before anything is read."""
    with pytest.raises(DataError, match="--labels"):
        prepared(tmp_path, *rows(users=20), labels=words)


def test_a_folder_goes_into_a_study_without_being_loaded(tmp_path):
    """`build_study` takes the events as they come from the file, in whatever order they stand there."""
    events, items = rows()
    one = read_labelled(write(tmp_path / "one" / "rec", events, items), TAGS, min_users=5)
    spec, task = WindowSpec(), Task(min_label_users=5)
    study = build_study(one.name, one.events(), one.taxonomy, spec, task)

    assert one.lines == len(events)
    assert one.platforms == PLATFORMS
    assert len(study.test)
    assert all((history.time[1:] >= history.time[:-1]).all() for history in study.histories)
    assert sum(1 for _ in one.events()) == sum(1 for _ in one.events()) == len(events)
