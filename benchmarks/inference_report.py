"""One run of `xplat bench inference` as Markdown with curves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from benchmarks.inference import InferenceBench

_MAIN: Final = "#1f5fa8"
_QUIET: Final = "#8a8f98"


def write_report(result: InferenceBench, folder: str | Path) -> Path:
    """Write `inference.md` and its curves into a folder and return the page. Raises `OSError`."""
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    page = root / "inference.md"
    page.write_text(
        "\n".join([*_rates(result, root), *_freshness(result), *_curve(result, root)]) + "\n", encoding="utf-8"
    )
    return page


def _rates(result: InferenceBench, root: Path) -> list[str]:
    if not result.rates:
        return []
    rates = sorted(result.rates.values(), key=lambda one: one.hit_rate)
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    misses = [max(1e-4, 1 - one.hit_rate) for one in rates]
    axes.loglog(misses, [one.updates_per_2_cores for one in rates], "o-", color=_MAIN, label="two cores, by CPU time")
    axes.loglog(misses, [one.updates_per_s for one in rates], "o--", color=_QUIET, label="this run, by the clock")
    axes.set_xlabel("share of titles that the encoder has not seen")
    axes.set_ylabel("updates a second")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    FigureCanvasAgg(figure)
    figure.savefig(root / "rates.png", dpi=130)
    lines = [
        "# Inference",
        "",
        (
            f"{result.events_per_window} events a window; {result.vs_reencoding}x the fused model, which gives "
            f"{result.fused_updates_per_2_cores} updates/s by CPU time of two cores."
        ),
        "",
        (
            "| hits | events an update | updates/s | on 2 cores, by CPU time | worker µs | Triton µs | Kafka µs "
            "| calls saved | users a head call | queue µs | compute µs |"
        ),
        "|" + "---|" * 11,
    ]
    for one in rates:
        head = one.calls["interest_head"]
        cpu = " | ".join(f"{one.cpu_us[name]:.0f}" for name in ("worker", "triton", "kafka"))
        lines.append(
            f"| {one.hit_rate:.2%} | {one.events_per_update:g} | {one.updates_per_s:,.0f} "
            f"| {one.updates_per_2_cores:,.0f} | {cpu} "
            f"| {one.calls_saved:.1%} | {head.rows_a_call:.0f} | {head.queue_us:.0f} | {head.compute_us:.0f} |"
        )
    return [*lines, "", "![updates a second over new titles](rates.png)", ""]


def _freshness(result: InferenceBench) -> list[str]:
    lines = [
        "| event written → profile readable | events/s | p50 ms | p99 ms | p99.9 ms | worst ms | calls saved |",
        "|---|---|---|---|---|---|---|",
    ]
    for part, one in result.freshness.items():
        lines.append(
            f"| {part} | {one.events_per_s:,.0f} | {one.p50_ms:.0f} | {one.p99_ms:.0f} | {one.p999_ms:.0f} "
            f"| {one.worst_ms:.0f} | {one.calls_saved:.1%} |"
        )
    return lines


def _curve(result: InferenceBench, root: Path) -> list[str]:
    """Return what scoring later costs and saves, as the release was measured with."""
    if not result.curve:
        return []
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    saved = [100 * point.saved for point in result.curve]
    axes.plot(saved, [100 * point.disagreement for point in result.curve], "o-", color=_MAIN, label="people held out")
    axes.plot(saved, [100 * point.highest for point in result.curve], ":", color=_MAIN, label="95 % upper bound")
    axes.plot(100 * result.calls_saved, 100 * result.disagreement, "D", color=_QUIET, label="this run")
    axes.set_xlabel("calls of the head saved, %")
    axes.set_ylabel("another top 3, %")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    FigureCanvasAgg(figure)
    figure.savefig(root / "waiting.png", dpi=130)
    lines = ["", "| margin | calls saved | another top 3 | 95 % upper bound |", "|---|---|---|---|"]
    for point in result.curve:
        mark = "**" if point.margin == result.margin else ""
        shares = " | ".join(f"{mark}{share:.2%}{mark}" for share in (point.saved, point.disagreement, point.highest))
        lines.append(f"| {mark}{point.margin:g}{mark} | {shares} |")
    return [*lines, "", "![another top 3 over calls saved](waiting.png)"]
