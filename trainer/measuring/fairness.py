"""How a release does by whom: the gate's held-out people and scores, told apart by platform, activity and label.

Figures of a group come from one resampling of all people, so that the difference of two groups has an interval too:
who is in both is drawn for both. The largest gap of many is large by chance as well; read it with its interval.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
import numpy as np

from trainer.measuring.groups import by_activity
from trainer.measuring.measures import Counts, Resampled, bin_gaps, expected_threshold, ndcg, resampled
from xplat_stream.drift import Drift, Shares
from xplat_stream.errors import ReleaseError
from xplat_stream.serving.fairness import KINDS, FairnessReport, Figure, Gap, Group, since

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from trainer.data.compact import Compact
    from trainer.data.dataset import Dataset
    from trainer.measuring.measures import Interval, Scores
    from xplat_stream.serving.releases import Manifest
    from xplat_stream.serving.store import ReleaseStore
    from xplat_stream.settings import Settings

FEWEST: Final = 30
"""People below whom a figure says nothing."""


class _Who(NamedTuple):
    """A group: who is in it, and which labels F1 and calibration are of (one of them, or all)."""

    kind: str
    name: str
    rows: NDArray[np.bool_]  # (people,)
    label: int | None = None


def begun(settings: Settings, store: ReleaseStore, number: int, data: Dataset) -> FairnessReport | None:
    """Return what can be said of a release before anybody is scored; None of one whose manifest cannot be read."""
    try:
        manifest = store.repository.manifest(number)
    except ReleaseError:
        return None
    found = _drift(store, manifest, data)
    return FairnessReport(
        release=manifest.release,
        made_at=datetime.now(UTC),
        parent=manifest.parent,
        drift=found if isinstance(found, Drift) else None,
        no_drift="" if isinstance(found, Drift) else found,
        sensitive=tuple(label.name for label in data.taxonomy.labels if label.sensitive),
        purpose=settings.model.sensitive_purpose,
    )


def _drift(store: ReleaseStore, manifest: Manifest, data: Dataset) -> Drift | str:
    """Return how far people have moved from the parent's data to the release's own, or why that is not known."""
    if not manifest.parent:
        return "no release was active when it was trained"
    try:
        parent = store.repository.manifest(manifest.parent)
    except ReleaseError:
        return f"the files of release {manifest.parent} are gone"
    return since(parent, manifest.data.shares if manifest.data else Shares(), data.taxonomy)


def measured(report: FairnessReport, data: Dataset, inputs: Compact, scores: Scores, targets: Scores) -> FairnessReport:
    """Return a report with the figures of every group. `inputs`, `scores`, `targets`: of the same people, row by row.

    Everybody has touched a label: NDCG is not of those who did nothing.
    """
    who = _groups(data, inputs, targets)
    counts = Counts.of(scores >= expected_threshold(scores), targets)
    quality = ndcg(scores, targets)
    figures = (_ndcg(who, quality), _micro_f1(who, counts), _calibration(who, scores, targets))
    groups = tuple(
        Group(
            kind=one.kind,
            name=one.name,
            people=(people := int(one.rows.sum())),
            **{
                name: _figure(found.interval(place)) if people >= FEWEST else None
                for name, found in zip(("ndcg10", "micro_f1", "ece"), figures, strict=True)
            },
        )
        for place, one in enumerate(who)
    )
    return msgspec.structs.replace(
        report, people=len(targets), groups=groups, gaps=_gaps(groups, figures[0]), no_groups=""
    )


def _groups(data: Dataset, inputs: Compact, targets: Scores) -> list[_Who]:
    seen = inputs.action > 0
    who = [
        _Who("platform", platform, ((inputs.platform == number) & seen).any(axis=1))
        for number, platform in enumerate(data.platforms, 1)
    ]
    who += [_Who("activity", name, rows) for name, rows in by_activity(inputs.length).items()]
    return who + [
        _Who("label", label.slug, targets[:, place] > 0, place) for place, label in enumerate(data.taxonomy.labels)
    ]


def _ndcg(who: Sequence[_Who], quality: NDArray[np.float64]) -> Resampled:
    parts = [np.stack([quality * one.rows, one.rows], axis=1) for one in who]  # (people, 2) each
    return resampled(np.stack(parts, axis=1), _ratio)


def _micro_f1(who: Sequence[_Who], counts: Counts) -> Resampled:
    parts = []
    for one in who:
        # Of a label everybody counts: who was told of it and did not touch it is wrong as well.
        rows = one.rows if one.label is None else np.ones_like(one.rows)
        of = slice(None) if one.label is None else slice(one.label, one.label + 1)
        whole = counts.named[:, of].sum(axis=1) + counts.true[:, of].sum(axis=1)
        parts.append(np.stack([2.0 * counts.right[:, of].sum(axis=1) * rows, whole * rows], axis=1))
    return resampled(np.stack(parts, axis=1), _ratio)


def _calibration(who: Sequence[_Who], scores: Scores, targets: Scores) -> Resampled:
    everywhere = bin_gaps(scores, targets)  # (people, labels, bins)
    parts = []
    for one in who:
        gaps = everywhere.sum(axis=1) if one.label is None else everywhere[:, one.label]
        rows = one.rows if one.label is None else np.ones_like(one.rows)
        size = scores.shape[1] if one.label is None else 1
        parts.append(np.concatenate([gaps * rows[:, None], (size * rows)[:, None]], axis=1))

    def figure(totals: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.abs(totals[..., :-1]).sum(axis=-1) / np.maximum(totals[..., -1], 1), np.float64)

    return resampled(np.stack(parts, axis=1), figure)


def _ratio(totals: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(totals[..., 0] / np.maximum(totals[..., 1], 1e-12), np.float64)


def _gaps(groups: Sequence[Group], quality: Resampled) -> tuple[Gap, ...]:
    found = []
    for kind in KINDS:
        places = [place for place, one in enumerate(groups) if one.kind == kind and one.ndcg10 is not None]
        if len(places) < 2:  # noqa: PLR2004 - of one group there is no gap
            continue
        best, worst = (choose(places, key=quality.values.__getitem__) for choose in (max, min))
        difference = _figure(quality.difference(best, worst))
        found.append(Gap(kind=kind, best=groups[best].name, worst=groups[worst].name, difference=difference))
    return tuple(sorted(found, key=lambda gap: -gap.difference.value))


def _figure(found: Interval) -> Figure:
    ends = [None if np.isnan(one) else round(one, 4) for one in (found.low, found.high)]
    return Figure(round(found.value, 4), *ends)
