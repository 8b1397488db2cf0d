"""Progress of a training run: a protocol the trainer calls, and what the command line shows for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rich.console import Console
    from rich.progress import TaskID

STAGES = ("read", "examples", "search", "mlm", "encoder", "vectors", "head", "evaluate", "export", "check", "publish")
"""The stages of a run, in order; `search` and `mlm` only where they were asked for."""


class Report(Protocol):
    """Told where a run stands. `total` 0: not known yet. Called often; it must be quick and must not raise."""

    def __call__(self, stage: str, done: int, total: int, metrics: Mapping[str, float]) -> None:
        """Take note."""


def silent(stage: str, done: int, total: int, metrics: Mapping[str, float]) -> None:
    """Report to nobody."""


def _nobody() -> Report:
    return silent


class RichProgress:
    """Draws one bar a stage on a terminal; elsewhere prints one plain line when a stage ends. A `Report`.

    Use it as a context manager around the run.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = console.is_terminal
        self._bars: dict[str, TaskID] = {}
        self._finished: set[str] = set()
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<10}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[metrics]}"),
            console=console,
            disable=not self._live,
        )

    def __call__(self, stage: str, done: int, total: int, metrics: Mapping[str, float]) -> None:
        """See `Report`."""
        words = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        if self._live:
            if stage not in self._bars:
                self._bars[stage] = self._progress.add_task(stage, total=total or None, metrics=words)
            self._progress.update(self._bars[stage], completed=done, total=total or None, metrics=words)
        elif total and done >= total and stage not in self._finished:
            self._finished.add(stage)
            self._console.print(f"{stage}: {done}/{total} {words}".rstrip(), highlight=False, soft_wrap=True)

    def __reduce__(self) -> tuple[Callable[[], Report], tuple[()]]:
        """In another process there is no terminal of ours: what is sent there is `silent`."""
        return _nobody, ()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
