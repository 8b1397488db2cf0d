"""What was measured held against what it was: ratios only, so that the machine cancels out. Pure but for two files.

A baseline is written from several runs. Its tolerances follow from how far those runs lay apart: a figure counts as
slower when it is worse than the middle one by more than twice their range, and by more than the least that matters.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from statistics import median
from typing import TYPE_CHECKING, Final

import msgspec

from xplat_stream.disk import write_whole
from xplat_stream.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

MORE_IS_BETTER: Final = frozenset({"fold_vs_floor", "recovery_cpu_vs_faust"})
"""Speeds over a peer's; of all other figures less is better."""

LEAST: Final = {
    "admit_cost": 0.1,
    "fold_cost": 0.1,
    "profile_cost": 0.1,
    "bytes_per_user": 0.01,
    "changelog_bytes_per_user": 0.01,
    "fold_vs_floor": 0.15,
    "recovery_cpu_vs_faust": 0.15,
}
"""What is compared, and the least tolerance of each: bytes do not waver, processes of seconds do."""

_RANGES: Final = 2


class Known(msgspec.Struct, frozen=True):
    """A figure of the baseline."""

    value: float
    """The middle one of the runs."""
    tolerance: float
    """How much worse may be noise, as a share of `value`."""
    runs: tuple[float, ...]


class Baseline(msgspec.Struct, frozen=True):
    """Figures by name, and where they are from."""

    measured: str
    """Day."""
    cores: int
    load: float
    """Load average at the end. Under load a peer that commits by the clock commits more often for its events."""
    figures: dict[str, Known]


class Verdict(msgspec.Struct, frozen=True):
    """A figure beside the baseline's."""

    value: float
    baseline: float
    slower: float
    """As a share of the baseline; negative where it became faster, or smaller."""
    tolerance: float
    verdict: str
    """`ok`, `slower`, `faster`."""

    @property
    def is_slower(self) -> bool:
        """Whether noise does not explain it."""
        return self.verdict == "slower"

    def __str__(self) -> str:
        way = "slower" if self.slower >= 0 else "faster"
        told = f"{way} by {abs(self.slower):.1%} of {self.tolerance:.0%} that may be noise"
        return f"{self.verdict:7} {self.value:g}, was {self.baseline:g}: {told}"


def compared(baseline: Baseline, figures: Mapping[str, float | bool | None]) -> dict[str, Verdict]:
    """Return a verdict for each figure that the baseline has."""
    return {
        name: _verdict(name, known, value) for name, known in baseline.figures.items() if (value := figures.get(name))
    }


def _verdict(name: str, known: Known, value: float) -> Verdict:
    slower = _worse(name, value, known.value)
    verdict = "slower" if slower > known.tolerance else "faster" if slower < -known.tolerance else "ok"
    return Verdict(value, known.value, round(slower, 4), known.tolerance, verdict)


def _worse(name: str, value: float, than: float) -> float:
    """Return how much more time, or room, one takes, as a share."""
    return (than / value if name in MORE_IS_BETTER else value / than) - 1


def learned(runs: Iterable[Mapping[str, float | bool | None]]) -> Baseline:
    """Return the baseline of figures that were measured several times."""
    found: dict[str, list[float]] = {name: [] for name in LEAST}
    for run in runs:
        for name, value in run.items():
            if name in found and value is not None:
                found[name].append(value)
    known = {name: _known(name, values) for name, values in found.items()}
    return Baseline(datetime.now(UTC).date().isoformat(), os.cpu_count() or 0, round(os.getloadavg()[0], 1), known)


def _known(name: str, values: list[float]) -> Known:
    middle = median(values)
    apart = (max(values) - min(values)) / middle
    return Known(middle, round(max(LEAST[name], _RANGES * apart), 3), tuple(values))


def read_baseline(path: Path) -> Baseline:
    """Read a baseline. Raises `DataError`."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Baseline)
    except (OSError, msgspec.DecodeError) as error:
        raise DataError(
            f"no baseline: {error}",
            where=str(path),
            expected="what `xplat bench quick --accept` writes",
            fix="Run that on code whose speed is known to be good, on a quiet machine.",
        ) from error


def write_baseline(path: Path, baseline: Baseline) -> None:
    """Write it as people read it. Raises `OSError`."""
    write_whole(path, msgspec.json.format(msgspec.json.encode(baseline)) + b"\n")
