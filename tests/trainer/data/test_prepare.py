"""What is kept for the next run, when it is used, and how a recording is split."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest

from tests.trainer.conftest import OPTIONS, SPEC
from tests.trainer.corpus import make_log, taxonomy
from tests.trainer.recording import rows, write
from trainer.data.dataset import Dataset, cut_log, split_study
from trainer.data.exclusions import CONFLICTS, REPEATED
from trainer.data.histories import gather
from trainer.data.prepare import Recorded, _arrays, _restored, prepare
from trainer.data.sources import cached_log
from trainer.data.study import Task, cut_study
from trainer.run.progress import silent
from xplat_stream.errors import DataError
from xplat_stream.settings import LocalSettings, Settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from xplat_stream.event import Event

FEW = msgspec.structs.replace(OPTIONS, min_examples=20)
TASK = Task(min_label_users=5)


class CountingSource:
    """A log in memory that counts how often it is read."""

    name, by_content = "counted", False

    def __init__(self, events: tuple[Event, ...], version: int = 1) -> None:
        self.taxonomy, self.expected, self.excluded = taxonomy(), len(events), {"read": 0}
        self._events, self._version = events, version
        self.reads = 0
        self.fail_after = len(events)

    def identity(self) -> object:
        return {"version": self._version}

    def events(self) -> Iterator[Event]:
        self.reads += 1
        for number, event in enumerate(self._events):
            if number == self.fail_after:
                raise KeyboardInterrupt
            self.excluded["read"] += 1
            yield event


def same(one: Dataset, other: Dataset) -> bool:
    """Tell whether two datasets are the same to the bit."""
    assert (one.labels, one.platforms, one.split_at, one.label_period_ms, one.skipped_users) == (
        other.labels,
        other.platforms,
        other.split_at,
        other.label_period_ms,
        other.skipped_users,
    )
    pairs = [(one.texts[3:], other.texts[3:])]
    for mine, theirs in ((one.train, other.train), (one.tune, other.tune), (one.test, other.test)):
        assert mine.users == theirs.users
        names = ("cuts", "targets", "next_texts", "weights", "ends")
        pairs += [(mine.inputs, theirs.inputs), *((getattr(mine, one), getattr(theirs, one)) for one in names)]
    return one.texts[:3] == other.texts[:3] and all(
        np.array_equal(mine, theirs) for left, right in pairs for mine, theirs in zip(left, right, strict=True)
    )


def test_the_second_run_reads_nothing(tmp_path):
    """A log that is in the cache is not read again, and is the same."""
    source = CountingSource(make_log(users=30, events_each=20))
    first = cached_log(source, tmp_path)
    again = cached_log(source, tmp_path)

    assert source.reads == 1
    assert first.log.excluded == again.log.excluded == {REPEATED: 0, CONFLICTS: 0, "read": 600}
    assert [one.rows for one in first.log.histories] == [one.rows for one in again.log.histories]


def test_examples_of_the_same_choices_are_made_once(tmp_path):
    """Arrays are made where their key is not there yet, and found where it is; another key makes others."""
    held = cached_log(CountingSource(make_log(users=30, events_each=20)), tmp_path)
    made: list[int] = []

    def arrays(key: int):
        return held.arrays({"key": key}, lambda: made.append(key) or {"a": np.arange(key)})["a"]

    assert [len(arrays(key)) for key in (3, 4, 3, 4)] == [3, 4, 3, 4]
    assert made == [3, 4]


def test_what_comes_from_the_cache_is_what_was_made(tmp_path):
    """A dataset kept as arrays is restored to the bit, labels and users included."""
    log = gather("log", make_log(users=80, events_each=30), taxonomy(), folder=tmp_path)
    whole = cut_log(log, SPEC, FEW)
    split = split_study(cut_study(log, SPEC, TASK, max_events=24), FEW, "user")

    for data in (whole, split):
        assert same(_restored(log, _arrays(log, data)), data)


def test_a_run_that_is_killed_leaves_nothing_to_be_read(tmp_path):
    """A log is in the cache whole or not at all."""
    source = CountingSource(make_log(users=30, events_each=20))
    source.fail_after = 300
    with pytest.raises(KeyboardInterrupt):
        cached_log(source, tmp_path)
    source.fail_after = 600

    assert not list(tmp_path.glob("log-*"))
    assert cached_log(source, tmp_path).log.events == 600


def test_three_logs_are_kept(tmp_path):
    """The one that was not used for longest goes first."""
    events = make_log(users=5, events_each=5)
    for version in (1, 2, 3, 1, 4):
        cached_log(CountingSource(events, version), tmp_path)
    sources = [CountingSource(events, version) for version in (1, 3, 4, 2)]
    for source in sources:
        cached_log(source, tmp_path)

    assert [source.reads for source in sources] == [0, 0, 0, 1]


def test_a_disk_that_refuses_is_told(tmp_path):
    """A cache that cannot be written is one line that names it."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match=r"cache cannot be used.*XPLAT_LOCAL__HOME"):
        cached_log(CountingSource(()), tmp_path / "file" / "cache")


def prepared(tmp_path: Path, **changes):
    settings = Settings(local=LocalSettings(home=str(tmp_path / "home")))
    return prepare(settings, FEW, silent, Recorded(tmp_path / "rec", "tags", TASK, **changes))


def test_a_changed_recording_is_another_log(tmp_path):
    """The cache goes by the files' contents: an event more is seen, an equal copy is not read again."""
    events, items = rows()
    write(tmp_path / "rec", events, items)
    first = prepared(tmp_path)
    (entry,) = (tmp_path / "home" / "cache").iterdir()
    shutil.copytree(tmp_path / "rec", tmp_path / "copy" / "rec")
    prepare(
        Settings(local=LocalSettings(home=str(tmp_path / "home"))),
        FEW,
        silent,
        Recorded(tmp_path / "copy" / "rec", "tags", TASK),
    )
    assert list((tmp_path / "home" / "cache").iterdir()) == [entry]

    write(tmp_path / "rec", [*events, (events[0][0], "forum-eu", items[0][0], "1400000000", "like")], items)

    assert prepared(tmp_path).events == first.events + 1


def test_by_user_nobody_is_both_trained_and_validated_on(tmp_path):
    """Validation users give one cut each, their last, and no training example; the two halves share nobody."""
    write(tmp_path / "rec", *rows())
    data = prepared(tmp_path).data
    trained, tuned, tested = (set(part.users) for part in (data.train, data.tune, data.test))

    assert len(trained | tuned | tested) == len(trained) + len(tuned) + len(tested)
    assert len(data.tune) == len(tuned)
    assert len(data.test) == len(tested)
    assert data.split_at == 0


def test_in_time_training_is_over_before_validation_begins(tmp_path):
    """No training target reaches the split, no validation cut lies before it, at most three of a user."""
    write(tmp_path / "rec", *rows())
    data = prepared(tmp_path, split="time").data

    assert data.train.ends.max() < data.split_at
    assert min(data.tune.cuts.min(), data.test.cuts.min()) >= data.split_at
    assert max(map(data.test.users.count, data.test.users)) <= 3
    assert set(data.train.users) & set(data.test.users)


def test_an_end_is_never_before_the_last_event_of_the_target(tmp_path):
    """The `ends` of a recording's examples hold every labelled event the target was made of."""
    log = gather("log", make_log(users=60, events_each=30), taxonomy(), folder=tmp_path)
    study = cut_study(log, SPEC, TASK)
    data = split_study(study, FEW, "user")
    place = {user: number for number, user in enumerate(study.histories.users)}
    label = {one: number for number, one in enumerate(study.taxonomy.ids())}

    for row, user in enumerate(data.train.users):
        history = study.histories[place[user]]
        inside = (history.time >= data.train.cuts[row]) & (history.time <= data.train.ends[row])
        seen = {name for at in np.flatnonzero(inside) for name in label if history.mask[at] >> label[name] & 1}
        wanted = {name for name in label if data.train.targets[row, label[name]]}
        assert wanted <= seen
