"""What is seen of a process from outside while it folds, and the figures that follow. Pure.

The broker's clock says when an output was appended, and the output which event it knows of; the kernel says how much
processor time the process had taken by then. So start-up and warm-up can be told from work without asking the process.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


_PAUSE_MS: Final = 100
"""Outputs of one commit follow each other more closely."""

_LEAST_MS: Final = 2000
"""Two commits: what lies between two outputs that are closer says more about commits than about speed."""


class Sample(NamedTuple):
    """Processor seconds of all threads of a process at a moment (milliseconds since 1970)."""

    at_ms: float
    cpu_s: float


class Step(NamedTuple):
    """Events of all partitions that the outputs appended by a moment know of."""

    at_ms: float
    folded: int


class Trace(NamedTuple):
    """One process, from its start to the last output."""

    samples: Sequence[Sample]
    """The first one at the start of the process."""
    steps: Sequence[Step]
    outputs: int
    peak_bytes: int


def cpu_at(samples: Sequence[Sample], moments_ms: Sequence[float]) -> list[float]:
    """Return the processor seconds that had been taken by each moment."""
    times, seconds = zip(*samples, strict=True)
    return [float(one) for one in np.interp(moments_ms, times, seconds)]


class Rates(NamedTuple):
    """Figures of the part behind the warm-up."""

    events: int
    wall_s: float
    cpu_s: float
    startup_s: float
    """From the start of the process to its first output."""
    startup_cpu_s: float
    """Processor seconds in the same time."""
    from_start: bool
    """Whether the run was too short to be divided: start-up and warm-up are in the figures."""

    @property
    def events_per_s(self) -> float:
        """Events a second of wall time."""
        return self.events / self.wall_s

    @property
    def cpu_us(self) -> float:
        """Processor microseconds of all threads an event."""
        return self.cpu_s / self.events * 1e6


def steps_of(newest: Mapping[tuple[int, int], int], folded: Callable[[int, int], int]) -> list[Step]:
    """Return the steps of outputs: (moment, partition) → time of the newest event that an output knows of.

    `folded(partition, time)` says how many events of a partition are as old as a time, or older.
    """
    done: dict[int, int] = {}
    steps: list[Step] = []
    for (at_ms, partition), time in sorted(newest.items()):
        done[partition] = max(done.get(partition, 0), folded(partition, time))
        if steps and steps[-1].at_ms == at_ms:
            steps.pop()
        steps.append(Step(at_ms, sum(done.values())))
    return steps


def rates(trace: Trace, *, warm_up: int) -> Rates:
    """Return the figures between an output that knows of at least `warm_up` events and the first that knows of all.

    The former is the last before a pause where there are pauses: in the middle of a commit, more has been folded than
    the outputs know of. A run too short to be divided counts from the start of the process.
    """
    start = Step(trace.samples[0].at_ms, 0)
    total = trace.steps[-1].folded
    end = next(step for step in trace.steps if step.folded == total)
    before = [step for step in trace.steps if warm_up <= step.folded < total]
    rested = [one for one, following in pairwise([*before, end]) if following.at_ms - one.at_ms >= _PAUSE_MS]
    begin = next(iter(rested or before), start)
    if end.at_ms - begin.at_ms < _LEAST_MS:
        begin = start
    cpu_first, cpu_begin, cpu_end = cpu_at(trace.samples, [step.at_ms for step in (trace.steps[0], begin, end)])
    return Rates(
        total - begin.folded,
        (end.at_ms - begin.at_ms) / 1000,
        cpu_end - cpu_begin,
        (trace.steps[0].at_ms - start.at_ms) / 1000,
        cpu_first,
        begin is start,
    )
