"""The log → training examples. Windows are made by the library's own code, so training reads what serving reads.

An example is a user at a **cut**: the window holds what happened up to the cut, the target says which labels the user
touched in the period after it. The split is in time: a training example's period ends before `split_at`, and every
validation cut lies at or after it. Validation users are halved by a hash of their id: `tune` decides when to stop and
how to calibrate, `test` is looked at once, by the evaluation.
"""

from __future__ import annotations

from bisect import bisect_right
from datetime import UTC, datetime
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import numpy as np

from trainer.data.examples import Cut, Examples, ExampleWriter, Trail, Windows, cuts_of, last_of_each
from trainer.data.histories import Log, gather
from trainer.data.study import target_platforms
from trainer.data.texts import bit_positions
from xplat_stream.drift import Shares
from xplat_stream.errors import DataError
from xplat_stream.event import Millis
from xplat_stream.serving.releases import DataSpan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from trainer.data.study import Cuts, Study
    from trainer.data.texts import TextTable
    from trainer.run.options import TrainOptions
    from xplat_stream.event import Event, UserId
    from xplat_stream.taxonomy import Taxonomy
    from xplat_stream.window import WindowSpec

_MORE: Final = "Get more of it with `xplat simulate --history 50000` or `xplat replay`, then train again."
TOPICS: Final = "behavior.*.v1"

SplitBy = Literal["user", "time"]
"""Who is validated on: other users than are trained on, or everybody, later."""


class Dataset(NamedTuple):
    """Everything a training run knows of the log."""

    taxonomy: Taxonomy
    platforms: tuple[str, ...]
    texts: TextTable
    train: Examples
    tune: Examples
    test: Examples
    split_at: Millis
    """Training periods end before it; validation cuts lie at or after it. 0 where the split is by user."""
    label_period_ms: int
    skipped_users: int
    """Users with fewer than `min_events` events, or with nothing to foretell."""
    target: frozenset[int] = frozenset()
    """Platforms foretold, as windows number them, from 1; none: all."""
    span: DataSpan | None = None
    """What of the log it was made of."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The label ids, in the order of targets and scores."""
        return self.taxonomy.ids()


def build_examples(events: Iterable[Event], taxonomy: Taxonomy, spec: WindowSpec, options: TrainOptions) -> Dataset:
    """Cut every user's history into examples.

    Raises `DataError` when that gives too few of them, saying what there is and what is needed.
    """
    return cut_log(gather(TOPICS, events, taxonomy), spec, options)


def cut_log(log: Log, spec: WindowSpec, options: TrainOptions) -> Dataset:
    """Cut every user's history into examples, one user after the other. Raises as `build_examples`.

    What is held grows with the examples, of which there are `options.max_examples` for training at the most and as many
    for validation, and with the distinct texts; not with the events.
    """
    if not log.events:
        raise _too_little("the log holds no events", log, options)
    eligible = np.flatnonzero(log.histories.lengths >= options.min_events)
    if not len(eligible):
        raise _too_little(f"none of {len(log.histories)} users has {options.min_events} events", log, options)
    first, split_at, last = log.histories.nth_time(1 - options.validation_share, min_events=options.min_events)
    period_ms = max(1, min(int(options.label_period.total_seconds() * 1000), (last - first) // 8))

    def trails() -> Iterator[Trail]:
        for user in eligible.tolist():
            yield Trail.of(log.histories[user], log.platforms)

    def examples(range_ms: tuple[int, int], most: int) -> Examples:
        def cut(trail: Trail) -> list[Cut]:
            return cuts_of(trail, options.label_events, period_ms, range_ms=range_ms, most=most)

        windows = Windows(log.texts, log.platforms, options.max_events)
        writer = ExampleWriter(spec, windows, labels=len(log.taxonomy))
        for trail, cuts in _thinned(trails, cut, users=len(eligible), most=most, total=options.max_examples):
            writer.add(trail, cuts)
        return writer.examples()

    train = examples((first, split_at - 1), options.max_cuts)
    late = examples((split_at, last), options.max_evaluation_cuts)
    is_test = np.array([_is_test(user) for user in late.users], bool)
    tune, test = late.take(np.flatnonzero(~is_test)), late.take(np.flatnonzero(is_test))
    _check_enough(log, len(eligible), (train, tune, test), options)
    return Dataset(
        log.taxonomy,
        log.platforms,
        _with_next_labels(log.texts, trails(), options.label_events, period_ms, split_at),
        train,
        tune,
        test,
        Millis(split_at),
        period_ms,
        len(log.histories) - len(eligible),
        span=data_span(log),
    )


def data_span(log: Log, labels: Sequence[int] | None = None) -> DataSpan:
    """Return what a log holds, as a manifest says it. `labels`: those a release is made for; none given: all."""
    first, last = (datetime.fromtimestamp(one / 1000, UTC) for one in log.histories.span_ms())
    ids = log.taxonomy.ids()
    touched = log.histories.touched(len(ids))
    kept = {ids[one]: touched[one] for one in (range(len(ids)) if labels is None else labels)}
    visited = dict(zip(log.platforms, log.histories.visited(len(log.platforms)), strict=True))
    return DataSpan(log.name, first, last, log.events, len(log.histories), Shares.of(kept, visited))


def _thinned(
    trails: Callable[[], Iterable[Trail]], cut: Callable[[Trail], list[Cut]], *, users: int, most: int, total: int
) -> Iterator[tuple[Trail, list[Cut]]]:
    """Yield every trail that is cut, with its cuts: all of them, or `total` spread evenly over all users'."""
    if users * most <= total:
        for trail in trails():
            yield trail, cut(trail)
        return
    count = sum(len(cut(trail)) for trail in trails())
    kept = set(np.linspace(0, count - 1, min(count, total)).round().astype(int).tolist())
    at = 0
    for trail in trails():
        cuts = cut(trail)
        yield trail, [one for number, one in enumerate(cuts, at) if number in kept]
        at += len(cuts)


def split_study(study: Study, options: TrainOptions, by: SplitBy) -> Dataset:
    """Split a study's cuts for one release, by user or in time; validation users are halved as ever.

    ``user``: every fifth user (`fold_of`, fold 0) is validated on, at the last cut, and never trained on. ``time``: up
    to `options.max_evaluation_cuts` cuts a user at or after `split_at`, which `options.validation_share` of the events
    lie behind; trained on is what was over before it. Raises `DataError` where that leaves too little.
    """
    cuts = study.train
    ends = _ends(study, cuts)
    split_at = 0
    if by == "user":
        validated = study.fold == 0
        last = last_of_each(cuts.user)
        train, late = np.flatnonzero(~validated[cuts.user]), last[validated[cuts.user[last]]]
        late = late[np.isin(cuts.user[late], study.test.user)]
    else:
        split_at = study.histories.nth_time(1 - options.validation_share, min_events=1)[1]
        train = np.flatnonzero(ends < split_at)
        late = _newest(cuts, np.flatnonzero(cuts.at >= split_at), options.max_evaluation_cuts)
    users = study.histories.users
    is_test = np.array([_is_test(users[user]) for user in cuts.user[late].tolist()], bool)
    tune, test = late[~is_test], late[is_test]
    if len(train) < options.min_examples or not len(tune) or not len(test):
        raise DataError(
            f"too little to train on: {len(train)} training and {len(tune)} + {len(test)} validation "
            f"examples, split by {by}",
            where=study.name,
            expected=f"{options.min_examples} training examples, and validation examples of several users",
            fix="Name more data, another --target or --split, or lower --min-label-users.",
        )
    return Dataset(
        study.taxonomy,
        study.platforms,
        with_targets(study.texts, cuts.inputs.newest_texts()[train], cuts.targets[train]),
        _examples(study, cuts, ends, train),
        _examples(study, cuts, ends, tune),
        _examples(study, cuts, ends, test),
        Millis(split_at),
        0,
        len(study.histories) - len(np.unique(cuts.user)),
        study.target(),
    )


def _examples(study: Study, cuts: Cuts, ends: NDArray[np.int64], rows: NDArray[np.int64]) -> Examples:
    users = study.histories.users
    return Examples(
        [users[user] for user in cuts.user[rows].tolist()],
        cuts.at[rows],
        cuts.inputs.take(rows).trimmed(),
        cuts.targets[rows],
        cuts.next_texts[rows],
        cuts.weights[rows],
        ends[rows],
    )


def _ends(study: Study, cuts: Cuts) -> NDArray[np.int64]:
    """Return when each cut's target was over (cuts,), in milliseconds: the last event that may have gone into it."""
    target = np.array(sorted(target_platforms(study.task, study.platforms)))
    ends = np.zeros(len(cuts), np.int64)
    named_of, times = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for row, user in enumerate(cuts.user.tolist()):
        if not row or user != cuts.user[row - 1]:
            history = study.histories[user]
            named_of = np.flatnonzero((np.array(history.mask, object) != 0) & np.isin(history.platform, target))
            times = history.time[named_of]
        # Labelled events of the cut's own moment may have been counted from the last of them on.
        after = int(np.searchsorted(times, cuts.at[row], side="right"))
        ends[row] = times[min(after - 1 + study.task.label_events, len(times)) - 1]
    return ends


def _newest(cuts: Cuts, rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Return the last `most` of each user's rows, which are in order of user and time."""
    users = cuts.user[rows]
    last = np.searchsorted(users, users, side="right")
    return rows[last - np.arange(len(rows)) <= most]


def _is_test(user_id: UserId) -> bool:
    return blake2b(user_id.encode(), digest_size=1).digest()[0] % 2 == 1


def _with_next_labels(table: TextTable, trails: Iterable[Trail], most: int, period_ms: int, split_at: int) -> TextTable:
    """Give every text the mean target of the events that carry it: what its readers did next, before the split."""
    total: NDArray[np.float64] = np.zeros((len(table.texts) + 1, table.own.shape[1]))
    count: NDArray[np.float64] = np.zeros(len(table.texts) + 1)
    for trail in trails:
        inside = bisect_right(trail.times, split_at - 1)
        targets = trail.next_masks(range(inside), most, period_ms, limit=split_at - 1)
        for position, (mask, _) in targets.items():
            text = trail.texts[position]
            count[text] += 1
            total[text, bit_positions(mask)] += 1
    return _with_shares(table, total, count)


def with_targets(table: TextTable, newest: NDArray[np.int32], targets: NDArray[np.float32]) -> TextTable:
    """Give every text the mean target (cuts, labels) of the cuts whose newest text it is (cuts,)."""
    total: NDArray[np.float64] = np.zeros((len(table.texts) + 1, targets.shape[1]))
    count: NDArray[np.float64] = np.zeros(len(table.texts) + 1)
    np.add.at(total, newest, targets)
    np.add.at(count, newest, 1)
    return _with_shares(table, total, count)


def _with_shares(table: TextTable, total: NDArray[np.float64], count: NDArray[np.float64]) -> TextTable:
    """Return the table with `total` (texts + 1, labels) touched after `count` (texts + 1,) events of each text."""
    shares = total[1:] / np.maximum(count[1:, None], 1)
    return table._replace(next_labels=shares.astype(np.float32), next_count=count[1:].astype(np.float32))


def _check_enough(log: Log, users: int, parts: tuple[Examples, Examples, Examples], options: TrainOptions) -> None:
    if not log.texts.own_known.any():
        raise DataError(
            f"none of {log.events} events carries a category of the taxonomy, so there is nothing to learn",
            where=log.name,
            expected="`categories` or `iab` on the items of one platform at the least",
            fix="Send them, or name a taxonomy that has your categories as aliases (XPLAT_MODEL__TAXONOMY).",
        )
    train, tune, test = parts
    if len(train) < options.min_examples or not len(tune) or not len(test):
        counts = f"{len(train)} training and {len(tune)} + {len(test)} validation examples"
        raise _too_little(
            f"{log.events} events of {users} users with {options.min_events} or more give {counts}", log, options
        )


def _too_little(what: str, log: Log, options: TrainOptions) -> DataError:
    return DataError(
        f"too little to train on: {what}",
        where=log.name,
        expected=f"{options.min_examples} training examples, and validation examples of several users",
        fix=_MORE,
    )
