"""From a source to what a release is trained on, through the cache."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from trainer.data.compact import Compact
from trainer.data.dataset import Dataset, cut_log, data_span, split_study
from trainer.data.examples import Examples
from trainer.data.sources import FolderSource, TopicSource, cached_log
from trainer.data.study import Task, cut_study
from xplat_stream.event import Millis
from xplat_stream.window import WindowSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from trainer.data.dataset import SplitBy
    from trainer.data.histories import Log
    from trainer.run.options import TrainOptions
    from trainer.run.progress import Report
    from xplat_stream.kafka.log import Span
    from xplat_stream.settings import Settings

CACHE_FOLDER: Final = "cache"
"""Below the stack's folder (XPLAT_LOCAL__HOME)."""

_ARRAYS: Final = 2
"""Version of what `_arrays` returns: what an older one cached is cut again."""

_PARTS: Final = ("train", "tune", "test")
_EXAMPLE_OPTIONS: Final = (
    "label_period", "label_events", "max_cuts", "max_evaluation_cuts", "min_events", "validation_share",
    "max_examples", "min_examples", "max_events",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Recorded:
    """A recorded folder as training data: whose labels, what is foretold, how it is split."""

    folder: Path
    labels: str = "categories:2-3"
    """See `LabelRule.parse`."""
    task: Task = field(default_factory=Task)
    split: SplitBy = "user"


class Prepared(NamedTuple):
    """What a release is trained on, and what there is to say of where it came from."""

    data: Dataset
    spec: WindowSpec
    """The windows' own: a worker that serves the release needs the same."""
    events: int
    excluded: dict[str, int]
    """What was left out or should be known → how often; nothing goes away silently."""


def prepare(
    settings: Settings,
    options: TrainOptions,
    report: Report,
    recorded: Recorded | None = None,
    *,
    within: Sequence[Span] | None = None,
) -> Prepared:
    """Return the examples of the topics, or of a recorded folder. Raises `DataError`, `KafkaUnavailable`.

    `within`: the stretches of the topics to read; none given: all they hold now.
    """
    root = Path(settings.local.home) / CACHE_FOLDER
    if recorded is None:
        held = cached_log(TopicSource(settings, report, within), root)
        spec = WindowSpec(settings.window.per_platform, settings.window.horizon)
    else:
        source = FolderSource(recorded.folder, recorded.labels, min_users=recorded.task.min_label_users, report=report)
        held = cached_log(source, root)
        spec = spec_holding(held.log, settings.window.per_platform)
    log = held.log
    report("read", 1, 1, {"events": log.events})
    key = {
        "arrays": _ARRAYS,
        "spec": [spec.per_platform, spec.horizon_ms],
        "options": {name: getattr(options, name) for name in _EXAMPLE_OPTIONS},
        "task": None if recorded is None else [asdict(recorded.task), recorded.split],
    }
    data = _restored(log, held.arrays(key, lambda: _arrays(log, _cut(log, spec, options, recorded))))
    return Prepared(data, spec, log.events, log.excluded)


def spec_holding(log: Log, per_platform: int) -> WindowSpec:
    """Return a window spec whose horizon holds the whole log: a recording may be of years."""
    first, last = log.histories.span_ms()
    return WindowSpec(per_platform, timedelta(milliseconds=last - first + 1))


def _cut(log: Log, spec: WindowSpec, options: TrainOptions, recorded: Recorded | None) -> Dataset:
    if recorded is None:
        return cut_log(log, spec, options)
    study = cut_study(log, spec, recorded.task, max_events=options.max_events)
    return split_study(study, options, recorded.split)


def _arrays(log: Log, data: Dataset) -> Mapping[str, NDArray[Any]]:
    """Return a dataset as arrays; users are named by their place in the log, labels by theirs in its taxonomy."""
    place = {user: number for number, user in enumerate(log.histories.users)}
    label = {one: number for number, one in enumerate(log.taxonomy.ids())}
    found: dict[str, NDArray[Any]] = {
        "labels": np.array([label[one] for one in data.labels], np.int64),
        "next_labels": data.texts.next_labels,
        "next_count": data.texts.next_count,
        "target": np.array(sorted(data.target), np.int64),
        "about": np.array([data.split_at, data.label_period_ms, data.skipped_users], np.int64),
    }
    for name in _PARTS:
        part: Examples = getattr(data, name)
        found[f"{name}-users"] = np.array([place[user] for user in part.users], np.int64)
        found |= {f"{name}-{one}": getattr(part, one) for one in ("cuts", "targets", "next_texts", "weights", "ends")}
        found |= {f"{name}-inputs-{one}": array for one, array in part.inputs._asdict().items()}
    return found


def _restored(log: Log, arrays: Mapping[str, NDArray[Any]]) -> Dataset:
    kept = arrays["labels"]
    own = log.texts.own[:, kept]
    split_at, period_ms, skipped = arrays["about"].tolist()
    train, tune, test = (
        Examples(
            [log.histories.users[user] for user in arrays[f"{name}-users"].tolist()],
            arrays[f"{name}-cuts"],
            Compact(*(arrays[f"{name}-inputs-{one}"] for one in Compact._fields)),
            *(arrays[f"{name}-{one}"] for one in ("targets", "next_texts", "weights", "ends")),
        )
        for name in _PARTS
    )
    return Dataset(
        log.taxonomy.keeping(kept.tolist()),
        log.platforms,
        log.texts._replace(
            own=own, own_known=own.any(axis=1), next_labels=arrays["next_labels"], next_count=arrays["next_count"]
        ),
        train,
        tune,
        test,
        Millis(split_at),
        period_ms,
        skipped,
        frozenset(arrays["target"].tolist()),
        data_span(log, kept.tolist()),
    )
