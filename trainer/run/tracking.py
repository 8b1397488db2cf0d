"""The curves of a training, kept by TensorBoard, Weights & Biases or MLflow: a `Report` that writes what it is told.

The trackers are `accelerate`'s; where they write, under which project and account, is theirs to be told (`wandb login`,
``MLFLOW_TRACKING_URI``). Only TensorBoard comes with the extra `trainer`: it needs no account and no server.
"""

from __future__ import annotations

from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import msgspec

from xplat_stream.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from trainer.run.options import TrainOptions
    from trainer.run.progress import Report

TrackerName = Literal["none", "tensorboard", "wandb", "mlflow"]

_PROJECT: Final = "xplat"
_EVERY: Final = 10
"""Steps between two points of a curve; the end of a stage is always one."""


class Tracked:
    """Passes on what it is told, and keeps its numbers as ``<stage>/<metric>``. A `Report`."""

    def __init__(self, report: Report, tracker: Any) -> None:
        self._report = report
        self._tracker = tracker
        self._stage = ""
        self._before = 0
        self._done = 0

    def __call__(self, stage: str, done: int, total: int, metrics: Mapping[str, float]) -> None:
        """See `Report`."""
        self._report(stage, done, total, metrics)
        if stage != self._stage:  # steps go on counting from stage to stage: W&B takes none that goes back
            self._stage, self._before = stage, self._before + self._done
        self._done = done
        if metrics and (done % _EVERY == 0 or done >= total):
            named = {f"{stage}/{name}": float(value) for name, value in metrics.items()}
            self._tracker.log(named, step=self._before + done)


@contextmanager
def tracked(report: Report, name: TrackerName, *, folder: Path, run: str, options: TrainOptions) -> Iterator[Report]:
    """Yield a report that also keeps what it is told. `folder`: of TensorBoard's files, in a folder named `run`.

    Raises `DataError` for a tracker that is unknown or not installed.
    """
    if name == "none":
        yield report
        return
    tracker = _tracker(name, folder, run)
    tracker.start()
    chosen = msgspec.structs.asdict(options)
    tracker.store_init_configuration(
        {key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in chosen.items()}
    )
    try:
        yield Tracked(report, tracker)
    finally:
        tracker.finish()


def _tracker(name: TrackerName, folder: Path, run: str) -> Any:
    if name not in get_args(TrackerName):
        raise DataError(
            f"there is no tracker {name!r}",
            where="tracker",
            expected=f"one of {', '.join(get_args(TrackerName))}",
            fix="Correct it; `tensorboard` needs nothing else.",
        )
    if find_spec(name) is None:
        raise DataError(
            f"the tracker {name} is not installed",
            where="tracker",
            expected=f"the package {name} in this Python environment",
            fix=f"pip install {name}, or choose `tensorboard` or `none`.",
        )
    from accelerate import PartialState
    from accelerate.tracking import MLflowTracker, TensorBoardTracker, WandBTracker

    PartialState()  # the trackers write in the first process only, and ask it which one that is
    match name:
        case "tensorboard":
            return TensorBoardTracker(run, logging_dir=folder)
        case "wandb":
            return WandBTracker(_PROJECT, name=run)
        case _:
            return MLflowTracker(_PROJECT, run_name=run)
