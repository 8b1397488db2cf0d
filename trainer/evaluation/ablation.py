"""What each option brings: variants of a method beside it, on the same users, with paired intervals.

ablation = Ablation(SplitMethod(), [SplitMethod(TrainOptions(members=1), "one member")], folds=range(2))
table = ablate(study, ablation)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from trainer.data.study import EVERYTHING
from trainer.measuring.measures import Counts, Interval, bootstrap_mean, bootstrap_micro_f1, ndcg, paired_f1
from trainer.measuring.methods import try_method
from trainer.run.progress import silent

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from numpy.typing import NDArray

    from trainer.data.study import Study
    from trainer.measuring.methods import Method
    from trainer.run.progress import Report

HELPS: Final = "helps"
HURTS: Final = "hurts"
NOTHING: Final = "brings nothing"


@dataclass(frozen=True, slots=True)
class Ablation:
    """What is set beside what, on whom."""

    base: Method
    variants: Sequence[Method]
    folds: Collection[int]
    """Only their users are evaluated: fewer of them, so that more lines can be paid for."""


class AblationLine(msgspec.Struct, frozen=True):
    """One variant beside the base."""

    name: str
    ndcg10: float
    difference: Interval
    """NDCG@10 of the variant minus the base's, paired."""
    micro_f1_difference: Interval
    verdict: str
    """`HELPS` or `HURTS` where the interval excludes zero, else `NOTHING`."""


class AblationTable(msgspec.Struct, frozen=True):
    """Every variant beside the base, on the same users."""

    base: str
    folds: int
    users: int
    ndcg10: Interval
    """Of the base."""
    micro_f1: Interval
    """Of the base."""
    lines: list[AblationLine]


def ablate(
    study: Study,
    ablation: Ablation,
    *,
    report: Report = silent,
    measured: Callable[[AblationLine], None] = lambda _: None,
) -> AblationTable:
    """Try the base and every variant, all on the users of the same folds.

    `report` is told of each method how many folds are done; `measured` each line as soon as there is one, for a table
    may take hours.
    """
    rows = np.flatnonzero(np.isin(study.fold[study.test.user], list(ablation.folds)))
    base_ndcg, base_counts = _measured(study, ablation.base, ablation.folds, rows, report)
    lines = []
    for method in ablation.variants:
        found, counts = _measured(study, method, ablation.folds, rows, report)
        difference, micro = bootstrap_mean(found - base_ndcg), paired_f1(counts, base_counts)
        lines.append(AblationLine(method.name, float(found.mean()), difference, micro, verdict(difference)))
        measured(lines[-1])
    return AblationTable(
        ablation.base.name,
        len(ablation.folds),
        len(rows),
        bootstrap_mean(base_ndcg),
        bootstrap_micro_f1(base_counts),
        lines,
    )


def verdict(difference: Interval) -> str:
    """Return what a paired difference says in a word."""
    if difference.excludes_zero:
        return HELPS if difference.value > 0 else HURTS
    return NOTHING


def _measured(
    study: Study,
    method: Method,
    folds: Collection[int],
    rows: NDArray[np.int64],
    report: Report,
) -> tuple[NDArray[np.float64], Counts]:
    """Return NDCG@10 of the users at these positions, and what was foretold of them."""
    trial = try_method(
        study,
        method,
        views=(EVERYTHING,),
        folds=folds,
        report=lambda done: report(method.name, done, len(folds), {}),
    )[EVERYTHING]
    targets = study.test.targets[rows]
    return ndcg(trial.scores[rows], targets), Counts.of(trial.chosen()[rows], targets)
