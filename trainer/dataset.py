"""The log → training examples. Windows are made by the library's own code, so training reads what serving reads.

An example is a user at a **cut**: the window holds what happened up to the cut, the target says which labels the user
touched in the period after it. The split is in time: a training example's period ends before `split_at`, and every
validation cut lies at or after it. Validation users are halved by a hash of their id: `tune` decides when to stop and
how to calibrate, `test` is looked at once, by the evaluation.
"""

from __future__ import annotations

from bisect import bisect_right
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from trainer.examples import Examples, Trail, bit_positions, examples_of
from trainer.texts import TextTable
from xplat_stream.errors import DataError, RejectedEvent
from xplat_stream.event import NEGATIVE_ACTIONS, Event, Millis, UserId, hash_text, item_text
from xplat_stream.kafka.log import Span, behavior_spans, read_behavior
from xplat_stream.window import row_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from trainer.options import TrainOptions
    from trainer.progress import Report
    from xplat_stream.settings import Settings
    from xplat_stream.taxonomy import Taxonomy
    from xplat_stream.window import WindowSpec

_MORE: Final = "Get more of it with `xplat simulate --history 50000` or `xplat replay`, then train again."
_REPORT_EVERY: Final = 2000


class Log(NamedTuple):
    """The admitted events of all platforms, and how many records were not: malformed ones, and without consent."""

    events: list[Event]
    rejected: int
    withheld: int


def read_log(settings: Settings, report: Report | None = None, within: Sequence[Span] | None = None) -> Log:
    """Read every `behavior.<platform>.v1` topic to its present end, or within some spans, admitting as the worker does.

    Raises `KafkaUnavailable`, `DeliveryError`.
    """
    within = behavior_spans(settings) if within is None else within
    total = sum(span.end - span.start for span in within)
    events: list[Event] = []
    rejected = withheld = 0
    for seen, (event, _) in enumerate(read_behavior(settings, within), 1):
        if isinstance(event, RejectedEvent):
            rejected += 1
        elif event is None:
            withheld += 1
        else:
            events.append(event)
        if report is not None and seen % _REPORT_EVERY == 0:
            report("read", seen, total, {"rejected": rejected})
    return Log(events, rejected, withheld)


class Dataset(NamedTuple):
    """Everything a training run knows of the log."""

    labels: tuple[str, ...]
    platforms: tuple[str, ...]
    texts: TextTable
    train: Examples
    tune: Examples
    test: Examples
    split_at: Millis
    """Training periods end before it; validation cuts lie at or after it."""
    label_period_ms: int
    skipped_users: int
    """Users with fewer than `min_events` events."""


def build_examples(events: Sequence[Event], taxonomy: Taxonomy, spec: WindowSpec, options: TrainOptions) -> Dataset:
    """Cut every user's history into examples.

    Raises `DataError` when that gives too few of them, saying what there is and what is needed.
    """
    if not events:
        raise _too_little("the behavior topics hold no events", options)
    table = TextTable.of(events, taxonomy)
    trails, skipped = _trails(events, taxonomy, table, options.min_events)
    times = np.sort(np.concatenate([trail.times for trail in trails])) if trails else np.zeros(1, np.int64)
    first, last = int(times[0]), int(times[-1])
    split_at = int(times[int(len(times) * (1 - options.validation_share))])
    period_ms = max(1, min(int(options.label_period.total_seconds() * 1000), (last - first) // 8))
    width = len(taxonomy)
    train = Examples.join(
        [
            examples_of(
                trail,
                spec,
                options.label_events,
                period_ms,
                range_ms=(first, split_at - 1),
                most=options.max_cuts,
                labels=width,
            )
            for trail in trails
        ],
        width,
    )
    late = [
        examples_of(
            trail,
            spec,
            options.label_events,
            period_ms,
            range_ms=(split_at, last),
            most=options.max_evaluation_cuts,
            labels=width,
        )
        for trail in trails
    ]
    tune = Examples.join([part for part in late if not _is_test(part)], width)
    test = Examples.join([part for part in late if _is_test(part)], width)
    _check_enough(events, trails, table, (train, tune, test), options)
    table = _with_next_labels(table, trails, options.label_events, period_ms, split_at)
    platforms = tuple(sorted({event.platform for event in events}))
    return Dataset(taxonomy.ids(), platforms, table, train, tune, test, Millis(split_at), period_ms, skipped)


def _trails(events: Sequence[Event], taxonomy: Taxonomy, table: TextTable, min_events: int) -> tuple[list[Trail], int]:
    """Return each user's distinct events in order of time, and how many users had too few."""
    bit = {label: 1 << index for index, label in enumerate(taxonomy.ids())}
    by_user: dict[UserId, dict[bytes, tuple[str, int, int]]] = {}
    for event in events:
        text_hash = hash_text(item_text(event.object))
        mask = 0
        if event.action not in NEGATIVE_ACTIONS:
            for label in taxonomy.label_ids(iab=event.object.iab, categories=event.object.categories):
                mask |= bit[label]
        by_user.setdefault(event.user_id, {})[row_of(event, text_hash)] = (
            event.platform,
            mask,
            table.row_of.get(text_hash, 0),
        )
    trails = []
    for user_id in sorted(by_user):
        found = by_user[user_id]
        if len(found) >= min_events:
            trails.append(Trail.of(user_id, found))
    return trails, len(by_user) - len(trails)


def _is_test(part: Examples) -> bool:
    return bool(part.users) and blake2b(part.users[0].encode(), digest_size=1).digest()[0] % 2 == 1


def _with_next_labels(table: TextTable, trails: Sequence[Trail], most: int, period_ms: int, split_at: int) -> TextTable:
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
    shares = total[1:] / np.maximum(count[1:, None], 1)
    return table._replace(next_labels=shares.astype(np.float32), next_count=count[1:].astype(np.float32))


def _check_enough(
    events: Sequence[Event],
    trails: Sequence[Trail],
    table: TextTable,
    parts: tuple[Examples, Examples, Examples],
    options: TrainOptions,
) -> None:
    if not table.own_known.any():
        raise DataError(
            f"none of {len(events)} events carries a category of the taxonomy, so there is nothing to learn",
            where="behavior.*.v1",
            expected="`categories` or `iab` on the items of one platform at the least",
            fix="Send them, or name a taxonomy that has your categories as aliases (XPLAT_MODEL__TAXONOMY).",
        )
    train, tune, test = parts
    if len(train) < options.min_examples or not len(tune) or not len(test):
        counts = f"{len(train)} training and {len(tune)} + {len(test)} validation examples"
        raise _too_little(
            f"{len(events)} events of {len(trails)} users with {options.min_events} or more give {counts}", options
        )


def _too_little(what: str, options: TrainOptions) -> DataError:
    return DataError(
        f"too little to train on: {what}",
        where="behavior.*.v1",
        expected=f"{options.min_examples} training examples, and validation examples of several users",
        fix=_MORE,
    )
