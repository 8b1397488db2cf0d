"""Curves are kept by whoever was asked, beside the progress that is shown."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from tests.trainer.conftest import OPTIONS
from trainer.run.tracking import Tracked, tracked
from xplat_stream.errors import DataError


class Kept:
    """A tracker that keeps everything in a list."""

    def __init__(self) -> None:
        self.points = []

    def log(self, values, step):
        self.points.append((step, values))


def test_tensorboard_keeps_the_curves(tmp_path):
    """What a run reports can be read back from TensorBoard's files, under stage and metric."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    told = []
    with tracked(
        lambda *words: told.append(words), "tensorboard", folder=tmp_path, run="first", options=OPTIONS
    ) as report:
        for step in range(1, 21):
            report("encoder", step, 20, {"loss": 1 / step})
    read = EventAccumulator(str(tmp_path / "first"))
    read.Reload()

    assert [(point.step, round(point.value, 3)) for point in read.Scalars("encoder/loss")] == [(10, 0.1), (20, 0.05)]
    assert len(told) == 20


def test_steps_never_go_back():
    """The head's steps follow the encoder's, so that one axis holds a whole run; a stage's end is always kept."""
    tracker = Kept()
    report = Tracked(lambda *_: None, tracker)
    for stage, steps in (("encoder", 15), ("vectors", 3), ("head", 12)):
        for step in range(1, steps + 1):
            report(stage, step, steps, {} if stage == "vectors" else {"loss": 0.5})

    assert tracker.points == [
        (10, {"encoder/loss": 0.5}),
        (15, {"encoder/loss": 0.5}),
        (28, {"head/loss": 0.5}),
        (30, {"head/loss": 0.5}),
    ]


def test_nobody_is_asked_by_name_none(tmp_path):
    """Without a tracker the report is the one that was given, and no file is written."""

    def report(*_):
        """Tell nobody."""

    with tracked(report, "none", folder=tmp_path, run="first", options=OPTIONS) as given:
        assert given is report
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_tracker_that_is_not_installed_is_one_line(tmp_path, name):
    """A tracker without its package is refused before the training, and the line says what to install."""
    if find_spec(name) is not None:
        pytest.skip(f"{name} is installed here")

    with (
        pytest.raises(DataError, match=f"{name} is not installed.*pip install {name}"),
        tracked(print, name, folder=tmp_path, run="first", options=OPTIONS),
    ):
        pass


def test_an_unknown_tracker_is_named_with_those_there_are(tmp_path):
    """A name that is no tracker is refused with the names that are."""
    with (
        pytest.raises(DataError, match=r"'aim'.*none, tensorboard, wandb, mlflow"),
        tracked(print, "aim", folder=tmp_path, run="first", options=OPTIONS),
    ):
        pass
