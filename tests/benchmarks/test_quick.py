"""What counts as slower than the baseline, and how much noise is allowed for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from benchmarks import command
from benchmarks.quick import LEAST, Baseline, Known, compared, learned, read_baseline, write_baseline
from xplat_stream.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

STEADY = {"fold_vs_floor": 0.5, "admit_cost": 0.6}


def baseline(**values: float) -> Baseline:
    """Return one with these figures, 10 % of which may be noise."""
    return Baseline("2026-01-01", 2, 0.5, {name: Known(value, 0.1, (value,)) for name, value in values.items()})


def test_slower_is_told_both_ways_round() -> None:
    """A cost that grew and a speed that fell are slower by the same share; the other way round they are faster."""
    known = baseline(fold_vs_floor=0.5, admit_cost=0.6)
    worse = compared(known, {"fold_vs_floor": 0.4, "admit_cost": 0.75})
    assert [(one.verdict, one.slower) for one in worse.values()] == [("slower", 0.25)] * 2
    better = compared(known, {"fold_vs_floor": 0.625, "admit_cost": 0.48})
    assert [(one.verdict, one.slower) for one in better.values()] == [("faster", -0.2)] * 2
    assert {one.verdict for one in compared(known, STEADY).values()} == {"ok"}


def test_a_baseline_allows_for_the_noise_it_was_measured_with() -> None:
    """Twice the range of its runs, and no less than what matters of a figure at the least."""
    runs = [{"admit_cost": value, "bytes_per_user": 2000.0} for value in (0.9, 1.0, 1.2)]
    found = learned([{**dict.fromkeys(LEAST, 1.0), **run} for run in runs])
    assert found.figures["admit_cost"] == Known(1.0, 0.6, (0.9, 1.0, 1.2))
    assert found.figures["bytes_per_user"].tolerance == LEAST["bytes_per_user"]


def test_a_baseline_is_read_as_it_was_written(tmp_path: Path) -> None:
    """And without one the way to make it is told."""
    path = tmp_path / "baseline.json"
    with pytest.raises(DataError, match="--accept"):
        read_baseline(path)
    write_baseline(path, baseline(**STEADY))
    assert read_baseline(path) == baseline(**STEADY)


def test_the_committed_baseline_has_every_figure() -> None:
    """Each with a tolerance that is not below what matters."""
    figures = read_baseline(command.BASELINE).figures
    assert set(figures) == set(LEAST)
    assert all(known.tolerance >= LEAST[name] for name, known in figures.items())


def test_a_slow_stage_is_measured_again_and_fails_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise passes the second time; what stays slow is named, and the exit code is 1."""
    path = tmp_path / "baseline.json"
    write_baseline(path, baseline(**STEADY))
    answers = iter([0.8, 0.62, 0.8, 0.9])
    stages = (
        lambda _: command.Outcome({"fold_vs_floor": 0.5}),
        lambda _: command.Outcome({"admit_cost": next(answers)}),
    )
    monkeypatch.setattr(command, "_QUICK_STAGES", stages)
    noise, slow = (CliRunner().invoke(command.app, ["quick", "--baseline", str(path), "--json"]) for _ in range(2))
    assert noise.exit_code == 0
    assert '"ok":true,"slower":[]' in noise.stdout.splitlines()[-1]
    assert slow.exit_code == 1
    assert '"slower":["admit_cost"]' in slow.stdout.splitlines()[-1]
    assert list(answers) == []
