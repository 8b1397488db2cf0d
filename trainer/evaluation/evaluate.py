"""How good is it, and is it better than counting? The model beside two baselines, on the same validation windows.

- *popularity*: every user gets the label frequencies of the training targets;
- *decayed counts*: the user's own label counts, halved every so many days, over popularity. Its two constants are
  chosen on training windows, so it is as strong as counting gets. It sees only what platforms with categories say.

F1 uses one threshold for all labels, chosen on training windows for each method. NDCG@10 needs none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np
from rich.table import Table

from trainer.measuring.baselines import COUNTS, POPULARITY, decayed_counts, shares
from trainer.measuring.measures import Counts, best_threshold, calibration_error, ndcg

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from trainer.data.compact import Compact
    from trainer.data.texts import TextTable
    from xplat_stream.taxonomy import Taxonomy

    Scores = NDArray[np.float32]  # (windows, labels)

MODEL: Final = "model"

_HALF_LIVES_DAYS: Final = (0.25, 1.0, 4.0, 16.0, 64.0)
_PRIOR_WEIGHTS: Final = (0.1, 1.0, 5.0)
_CHOOSE_ON: Final = 2000


class MethodQuality(msgspec.Struct, frozen=True):
    """One method on the validation windows; all figures in [0, 1], more is better."""

    micro_f1: float
    macro_f1: float
    ndcg: float
    """NDCG@10, mean over windows."""
    threshold: float
    label_f1: dict[str, float]
    """Label slug → F1."""


class Evaluation(msgspec.Struct, frozen=True):
    """What a release is worth, beside the baselines."""

    windows: int
    users: int
    calibration_error: float
    """Expected calibration error of the model's scores, ten bins of equal width: 0.01 is one percent off."""
    support: dict[str, int]
    """Label slug → validation windows whose target names it."""
    methods: dict[str, MethodQuality]

    def metrics(self) -> dict[str, float]:
        """Return the figures a manifest keeps."""
        found = {"calibration_error": self.calibration_error, "windows": float(self.windows)}
        for name, method in self.methods.items():
            prefix = "" if name == MODEL else name.replace(" ", "_") + "_"
            found |= {f"{prefix}micro_f1": method.micro_f1, f"{prefix}macro_f1": method.macro_f1}
            found[f"{prefix}ndcg_at_10"] = method.ndcg
        return {name: round(value, 4) for name, value in found.items()}


def evaluate(
    taxonomy: Taxonomy,
    train: tuple[Scores, Scores],
    test: tuple[Scores, Scores],
    *,
    baselines: Mapping[str, tuple[Scores, Scores]],
    users: int,
) -> Evaluation:
    """Compare the model with the baselines.

    `train` and `test` are the model's scores and the targets; `baselines` name → scores of the same windows, of both.
    """
    scores, targets = test
    slugs = [label.slug for label in taxonomy.labels]
    methods = {MODEL: (train[0], scores), **baselines}
    return Evaluation(
        len(targets),
        users,
        calibration_error(scores, targets),
        {slug: int(count) for slug, count in zip(slugs, targets.sum(axis=0), strict=True)},
        {name: _quality(slugs, found, train[1], targets) for name, found in methods.items()},
    )


def _quality(slugs: list[str], scores: tuple[Scores, Scores], train: Scores, test: Scores) -> MethodQuality:
    threshold = best_threshold(scores[0], train)
    counts = Counts.of(scores[1] >= threshold, test)
    return MethodQuality(
        counts.micro_f1(),
        counts.macro_f1(),
        float(ndcg(scores[1], test).mean()),
        float(threshold),
        {slug: round(float(value), 4) for slug, value in zip(slugs, counts.label_f1(), strict=True)},
    )


def baselines(
    texts: TextTable, train: tuple[Compact, Scores], test: Compact, weights: NDArray[np.float32]
) -> dict[str, tuple[Scores, Scores]]:
    """Return what popularity and decayed counts say of the training and the validation windows."""
    inputs, targets = train
    popular = np.average(targets, axis=0, weights=weights).astype(np.float32)  # (labels,)
    step = max(1, len(targets) // _CHOOSE_ON)
    sample = inputs.every(step)
    quality = {}
    for half_life in _HALF_LIVES_DAYS:
        counts = decayed_counts(texts, sample, half_life)
        for prior in _PRIOR_WEIGHTS:
            quality[half_life, prior] = ndcg(shares(counts, popular, prior), targets[::step]).mean()
    half_life, prior = max(quality, key=quality.__getitem__)
    return {
        POPULARITY: (np.tile(popular, (len(targets), 1)), np.tile(popular, (len(test.length), 1))),
        COUNTS: (
            shares(decayed_counts(texts, inputs, half_life), popular, prior),
            shares(decayed_counts(texts, test, half_life), popular, prior),
        ),
    }


def render(evaluation: Evaluation) -> Table:
    """Return a table of all figures, labels by how often they occur."""
    table = Table(title=f"{evaluation.windows} validation windows of {evaluation.users} users", title_justify="left")
    table.add_column("")
    table.add_column("windows", justify="right")
    for name in evaluation.methods:
        table.add_column(name, justify="right")
    for title, field in (("NDCG@10", "ndcg"), ("micro-F1", "micro_f1"), ("macro-F1", "macro_f1")):
        values = [f"{getattr(method, field):.3f}" for method in evaluation.methods.values()]
        table.add_row(title, str(evaluation.windows), *values, style="bold")
    table.add_row("calibration error", "", f"{evaluation.calibration_error:.3f}", end_section=True)
    for slug in sorted(evaluation.support, key=lambda slug: (-evaluation.support[slug], slug)):
        values = [f"{method.label_f1[slug]:.2f}" for method in evaluation.methods.values()]
        table.add_row(f"F1 {slug}", str(evaluation.support[slug]), *values)
    return table
