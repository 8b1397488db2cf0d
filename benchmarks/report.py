"""A run as people read it: a table in Markdown, plots in PNG."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from benchmarks.peers.ours import OURS
from benchmarks.trace import cpu_at

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from benchmarks.fold import FoldResult, PeerRun
    from benchmarks.trace import Trace

_OURS_COLOR: Final = "#0b6e4f"
_PEER_COLOR: Final = "#9aa5b1"
_HEAD: Final = (
    "| system | CPU us/event | events per CPU-second | ours is | events/s | peak memory | start-up: s, CPU s "
    "| outputs | windows |"
)


def table(result: FoldResult) -> str:
    """Return the Markdown table of a run, cheapest first, with what it was measured on below it."""
    ours = next(run for run in result.peers if run.name == OURS.name)
    lines = [
        _HEAD,
        "|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for run in sorted(result.peers, key=lambda one: one.cpu_us):
        name = f"**{run.title}**" if run is ours else run.title
        name += ", start-up included" if run.from_start else ""
        lines.append(
            f"| {name} | {run.cpu_us:.2f} | {run.events_per_cpu_s:,} | {_times(ours, run)} | {run.events_per_s:,} "
            f"| {run.peak_mb:,} MB | {run.startup_s}, {run.startup_cpu_s} | {run.outputs:,} | {_windows(run)} |"
        )
    lines += [
        "",
        _circumstances(result),
        "",
        "| system | what it promises | events |",
        "|---|---|---:|",
        *(f"| {run.title} | {run.promise} | {run.events:,} |" for run in result.peers),
    ]
    return "\n".join(lines) + "\n"


def _circumstances(result: FoldResult) -> str:
    return (
        f"{result.events:,} events measured of each after {result.warm_up:,} of warm-up, {result.users:,} users, "
        f"{result.value_bytes:.0f} bytes an event, {result.cores} cores, load average {result.load} at the end; "
        f"expected windows `{result.hash[:12]}`."
    )


def _times(ours: PeerRun, run: PeerRun) -> str:
    return "" if run is ours else f"{ours.events_per_cpu_s / run.events_per_cpu_s:.2f} x"


def _windows(run: PeerRun) -> str:
    return f"**{len(run.differences)} differ**" if run.differences else f"equal, `{run.hash[:12]}`"


def write_report(folder: Path, result: FoldResult, traces: Mapping[str, Trace]) -> list[Path]:
    """Write `fold.md`, `fold.json`, `fold.png` and `fold-progress.png` into a folder and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    page, whole = folder / "fold.md", folder / "fold.json"
    page.write_text(table(result), "utf-8")
    whole.write_bytes(msgspec.json.format(msgspec.json.encode(result)))
    return [page, whole, _bars(folder / "fold.png", result), _progress(folder / "fold-progress.png", result, traces)]


def _bars(path: Path, result: FoldResult) -> Path:
    """Draw cost, speed and memory of each system side by side."""
    from matplotlib.figure import Figure

    runs = sorted(result.peers, key=lambda one: -one.cpu_us)
    figure = Figure(figsize=(14, 1.2 + 0.45 * len(runs)), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    colors = [_OURS_COLOR if run.name == OURS.name else _PEER_COLOR for run in runs]
    for panel, label, values in (
        (panels[0], "CPU microseconds an event, all threads", [run.cpu_us for run in runs]),
        (panels[1], "events a second, one process", [run.events_per_s for run in runs]),
        (panels[2], "peak memory, MB", [run.peak_mb for run in runs]),
    ):
        bars = panel.barh([run.title for run in runs], values, color=colors)
        panel.bar_label(bars, labels=[f" {value:,}" for value in values], fontsize=8)
        panel.set_xlabel(label)
        panel.margins(x=0.18)
        panel.locator_params(axis="x", nbins=4)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    return path


def _progress(path: Path, result: FoldResult, traces: Mapping[str, Trace]) -> Path:
    """Draw the events folded over processor time: start-up, warm-up and evenness, whatever else the machine did."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    panel = figure.subplots()
    for run in result.peers:
        trace = traces[run.name]
        panel.plot(
            [0.0, *cpu_at(trace.samples, [step.at_ms for step in trace.steps])],
            [0.0, *(step.folded / trace.steps[-1].folded for step in trace.steps)],
            label=f"{run.title}, a tenth of the events" if run.events < result.events // 2 else run.title,
            color=_OURS_COLOR if run.name == OURS.name else None,
            linewidth=2.5 if run.name == OURS.name else 1.2,
        )
    panel.axhline(result.warm_up / (result.warm_up + result.events), color="black", linewidth=0.6, linestyle=":")
    panel.set_xlim(left=0)
    panel.set_xlabel("CPU seconds of all threads since the process was started; the dotted line ends the warm-up")
    panel.set_ylabel("share of its events folded")
    panel.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    return path
