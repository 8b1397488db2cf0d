"""The pictures of a report, drawn without a display. Blue is the main method, orange the best linear baseline."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from trainer.evaluation.findings import Findings, GroupLine
    from trainer.measuring.measures import Interval

MAIN: Final = "#1f5fa8"
LINEAR: Final = "#e07b1a"
QUIET: Final = "#8a8f98"
_DPI: Final = 130
_Z: Final = 1.96
"""Of a 95 % interval."""
_DARK_CELL: Final = 0.6


def draw_all(findings: Findings, folder: Path) -> None:
    """Draw every plot that the findings have something for."""
    _save(_methods(findings), folder / "methods.png")
    _save(_history(findings), folder / "history.png")
    _save(_labels(findings), folder / "labels.png")
    _save(_calibration(findings), folder / "calibration.png")
    if findings.matrix:
        _save(_matrix(findings), folder / "matrix.png")


def _methods(findings: Findings) -> Figure:
    lines = sorted(findings.methods, key=lambda line: line.ndcg10.value)
    figure, (left, right) = _panels(1, 2, width=10.5, height=1.4 + 0.36 * len(lines))
    for axes, title, values in (
        (left, "NDCG@10", [line.ndcg10 for line in lines]),
        (right, "micro-F1", [line.micro_f1 for line in lines]),
    ):
        for place, (line, value) in enumerate(zip(lines, values, strict=True)):
            color = _color(line.name, findings)
            axes.errorbar(value.value, place, xerr=_arms([value]), fmt="o", color=color, capsize=3, markersize=6)
            axes.annotate(f"{value.value:.3f}", (value.value, place), (0, 6), textcoords="offset points",
                          ha="center", fontsize=8, color=color)  # fmt: skip
        axes.set_title(title, loc="left")
        axes.set_ylim(-0.6, len(lines) - 0.3)
        axes.grid(axis="x", alpha=0.3)
    left.set_yticks(range(len(lines)), [line.name for line in lines])
    right.set_yticks(range(len(lines)), [""] * len(lines))
    figure.suptitle(f"{findings.users:,} users, 95 % by bootstrap over users", x=0.99, ha="right", fontsize=9)
    return figure


def _history(findings: Findings) -> Figure:
    figure, (axes, below) = _panels(2, 1, width=7.2, height=5.4, ratios=(3, 1))
    lines = [line for line in findings.lengths if line.users > 1]
    places = np.arange(len(lines), dtype=float)

    def series(name: str, color: str, shift: float, values: Sequence[Interval]) -> None:
        axes.errorbar(places + shift, [value.value for value in values], yerr=_arms(values), fmt="o-", color=color,
                      capsize=3, label=name, markersize=5, linewidth=1.3)  # fmt: skip

    series("popularity", QUIET, -0.08, [line.popularity for line in lines])
    series(findings.best_linear, LINEAR, 0.0, [line.best_linear for line in lines])
    series(findings.main, MAIN, 0.08, [line.ndcg10 for line in lines])
    axes.set_ylabel("NDCG@10")
    axes.set_xticks(places, [""] * len(lines))
    for panel in (axes, below):
        panel.set_xlim(-0.6, len(lines) - 0.4)
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
    axes.grid(axis="y", alpha=0.3)
    _bars(below, lines, places)
    return figure


def _bars(axes: Any, lines: Sequence[GroupLine], places: np.ndarray[Any, Any]) -> None:
    axes.bar(places, [line.users for line in lines], color=QUIET, width=0.6)
    for place, line in zip(places, lines, strict=True):
        axes.annotate(f"{line.users:,}", (place, line.users), (0, 2), textcoords="offset points", ha="center",
                      fontsize=8)  # fmt: skip
    axes.set_ylim(0, 1.25 * max((line.users for line in lines), default=1))
    axes.set_yticks([])
    axes.set_ylabel("users")
    axes.set_xticks(places, [line.group for line in lines])
    axes.set_xlabel("events in the window at the cut")
    axes.spines["left"].set_visible(False)


def _labels(findings: Findings) -> Figure:
    lines = findings.labels[::-1]
    figure, (left, right) = _panels(1, 2, width=10.5, height=1.5 + 0.25 * len(lines))
    places = np.arange(len(lines))
    for place, line in zip(places, lines, strict=True):
        left.plot([line.best_linear_f1, line.f1], [place, place], color="#c8ccd2", linewidth=2, zorder=1)
    left.scatter([line.best_linear_f1 for line in lines], places, color=LINEAR, s=24, label=findings.best_linear)
    left.scatter([line.f1 for line in lines], places, color=MAIN, s=24, label=findings.main)
    left.set_yticks(places, [f"{line.label}  ({line.users})" for line in lines], fontsize=8)
    left.set_xlabel("F1")
    left.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    for place, line in zip(places, lines, strict=True):
        color = QUIET if not line.gain.excludes_zero else MAIN if line.gain.value > 0 else "#b03030"
        right.errorbar(line.gain.value, place, xerr=_arms([line.gain]), fmt="o", color=color, capsize=2, markersize=4)
    right.axvline(0, color="black", linewidth=0.8)
    right.set_yticks(places, [""] * len(lines))
    right.set_xlabel("gain in F1, paired, 95 %")
    for axes in (left, right):
        axes.set_ylim(-0.7, len(lines) - 0.3)
        axes.grid(axis="x", alpha=0.3)
    return figure


def _calibration(findings: Findings) -> Figure:
    figure, (axes, below) = _panels(2, 1, width=5.6, height=6.2, ratios=(4, 1))
    found = findings.calibration
    axes.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle=":")
    for name, color, points, ece in (
        ("before", QUIET, found.before, found.ece["as is"]),
        ("after", MAIN, found.after, found.chosen),
    ):
        axes.errorbar([point.score for point in points], [point.frequency for point in points], yerr=_chance(points),
                      fmt="o-", color=color, label=f"{name}: ECE {ece.value:.4f}", markersize=5, capsize=2,
                      linewidth=1.3, elinewidth=0.8)  # fmt: skip
        below.step(
            np.arange(11) / 10,
            [*_filled(points), _filled(points)[-1]],
            where="post",
            color=color,
            linewidth=1.4,
        )
    axes.set_ylabel("share that came true")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="upper left")
    below.set_yscale("log")
    below.set_xlim(0, 1)
    below.set_xlabel("score")
    below.set_ylabel("scores")
    return figure


def _chance(points: Sequence[Any]) -> np.ndarray[Any, Any]:
    """Return (2, points): the Wilson interval of each share, below and above it."""
    share = np.array([point.frequency for point in points])
    size = np.array([point.scores for point in points])
    middle = (share + _Z**2 / (2 * size)) / (1 + _Z**2 / size)
    half = _Z / (1 + _Z**2 / size) * np.sqrt(share * (1 - share) / size + _Z**2 / (4 * size**2))
    return np.asarray(np.maximum(np.stack([share - middle + half, middle + half - share]), 0))


def _filled(points: Sequence[Any], bins: int = 10) -> list[int]:
    """Return the counts of all bins; those without a point are empty."""
    counts = [0] * bins
    for point in points:
        counts[min(int(point.score * bins), bins - 1)] += point.scores
    return counts


def _matrix(findings: Findings) -> Figure:
    sources = sorted({cell.source for cell in findings.matrix})
    targets = sorted({cell.target for cell in findings.matrix})
    width = max(3.4 + 1.9 * len(targets), 5.2)
    figure, (left, right) = _panels(1, 2, width=2 * width, height=1.8 + 0.62 * len(sources))
    for axes, title, field in (
        (left, "source alone over popularity", "alone"),
        (right, "added to the target alone", "added"),
    ):
        values = {(cell.source, cell.target): getattr(cell, field) for cell in findings.matrix}
        known = [abs(value.value) for value in values.values() if not math.isnan(value.value)]
        reach = max([*known, 1e-3])
        grid = np.full((len(sources), len(targets)), np.nan)
        for (source, target), value in values.items():
            grid[sources.index(source), targets.index(target)] = value.value
        axes.imshow(grid, cmap="RdBu", vmin=-reach, vmax=reach, aspect="auto")
        for (source, target), value in values.items():
            words = "–" if math.isnan(value.low) else f"{value.value:+.4f}\n[{value.low:+.3f}, {value.high:+.3f}]"
            color = "white" if abs(value.value) > _DARK_CELL * reach else "black"
            weight = "bold" if value.excludes_zero else "normal"
            place = (targets.index(target), sources.index(source))
            axes.text(*place, words, ha="center", va="center", fontsize=8, color=color, weight=weight)
        axes.set_xticks(range(len(targets)), targets)
        axes.set_yticks(range(len(sources)), sources)
        axes.set_xlabel("target")
        axes.set_ylabel("source")
        axes.set_title(f"{title}, NDCG@10", loc="left", fontsize=10)
    return figure


def _panels(
    rows: int, columns: int, *, width: float, height: float, ratios: Sequence[float] = ()
) -> tuple[Figure, tuple[Any, Any]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    made = figure.subplots(rows, columns, height_ratios=list(ratios) or None)
    for axes in made:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, (made[0], made[1])


def _arms(values: Sequence[Interval]) -> np.ndarray[Any, Any]:
    """Return (2, values): how far each interval reaches below and above its value."""
    arms = np.array([[value.value - value.low, value.high - value.value] for value in values])
    return np.asarray(np.abs(arms.T))


def _color(name: str, findings: Findings) -> str:
    return MAIN if name == findings.main else LINEAR if name == findings.best_linear else QUIET


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure).print_figure(path, dpi=_DPI)
