"""How a group of workers grows: what an event costs, how even the work is, and how long a partition stands still.

The same records for every number of workers and of partitions, in a stack of its own each time. They are written at
once when all workers own their partitions, so start-up is in no figure. Then, under a steady load, a worker is killed
and one with an empty folder joins in its place. No release is active: this is the fold path.
"""

from __future__ import annotations

import time
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import msgspec

from benchmarks.fleet import Fleet, caught_up
from benchmarks.freshness import ends, keep_the_brokers_time
from benchmarks.stack import private_stack
from benchmarks.traffic import Traffic, load, write
from xplat_stream.catalogue import PLATFORMS
from xplat_stream.kafka.log import Span, read_span
from xplat_stream.kafka.topics import PROFILES, create_topics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from benchmarks.freshness import Ends
    from xplat_stream.settings import Settings

_USERS: Final = 5000
_STEADY_S: Final = 3.0


class Gaps(msgspec.Struct, frozen=True):
    """Longest time in which a partition published nothing, in milliseconds."""

    kept_ms: int
    """Of the partitions that stayed with their worker."""
    moved_ms: int
    """Of those that another worker took over."""


class Scaled(msgspec.Struct, frozen=True):
    """One number of workers over one number of partitions."""

    workers: int
    partitions: int
    cpu_us: float
    """Of all workers together, an event."""
    events_per_s: float
    """By the clock, from the first event written to the last one counted."""
    fairness: float
    """The busiest worker's share of the events over the fair share: 1 is even."""
    steady_gap_ms: int
    """Longest time in which a partition published nothing under the steady load, while nothing changed."""
    killed: Gaps | None
    """While a worker was killed and the others took over; None for one worker."""
    joined: Gaps | None
    """While a worker joined."""


class ScaleResult(msgspec.Struct, frozen=True):
    """One run."""

    events: int
    rate: float
    """Events a second of the steady load."""
    rows: tuple[Scaled, ...]


def bench_scale(
    *, workers: Sequence[int], partitions: Sequence[int], events: int, rate: float, report: Callable[[str], None]
) -> ScaleResult:
    """Measure all combinations. Raises `StackError`."""
    rows = []
    for count in partitions:
        for number in workers:
            with private_stack(lambda _: None, platforms=PLATFORMS, partitions=count) as (settings, home):
                rows.append(_measured(settings, home, workers=number, events=events, rate=rate))
            report(_line(rows[-1]))
    return ScaleResult(events, rate, tuple(rows))


def table(rows: Sequence[Scaled]) -> str:
    """Return a Markdown table."""
    gaps = "longest gap, ms: steady | killed: kept | moved | joined: kept | moved"
    head = f"| partitions | workers | CPU us/event | events/s | busiest | {gaps} |"
    return "\n".join([head, "|" + "---:|" * 10, *map(_line, rows)])


def _line(row: Scaled) -> str:
    gaps = [row.steady_gap_ms]
    gaps += [ms for one in (row.killed, row.joined) if one is not None for ms in (one.kept_ms, one.moved_ms)]
    measured = (f"{row.cpu_us:.1f}", f"{row.events_per_s:,.0f}", f"{row.fairness:.2f} x")
    cells = (row.partitions, row.workers, *measured, *(f"{gap:,}" for gap in gaps), *[""] * (5 - len(gaps)))
    return f"| {' | '.join(map(str, cells))} |"


def _measured(settings: Settings, home: Path, *, workers: int, events: int, rate: float) -> Scaled:
    create_topics(settings)
    keep_the_brokers_time(settings)
    traffic = Traffic(_USERS)
    records = traffic.burst(events)
    fleet = Fleet(settings, home, workers, chunk_events=settings.worker.chunk_events)
    try:
        fleet.until(lambda: fleet.owns_all, "every worker has partitions")
        before, began = fleet.counts(), time.monotonic()
        write(settings, records)
        fleet.until(lambda: fleet.total("events") >= events, "the events are read")
        took_s, used = time.monotonic() - began, fleet.counts().since(before)
        busiest = max(one.events for one in fleet.metrics())
        gaps: dict[str, Gaps] = {}
        for name, change in _changes(fleet, workers).items():
            since, before_change = ends(settings), fleet.owners()
            with load(settings, traffic, rate):
                time.sleep(_STEADY_S)
                change()
                fleet.until(lambda: fleet.owns_all, f"every partition is owned: {name}")
                time.sleep(_STEADY_S)
            caught_up(settings)
            kept = {one for one, owner in fleet.owners().items() if before_change.get(one) == owner}
            times = dict(_times(settings, since, ends(settings)))
            gaps[name] = Gaps(
                longest_gap(times[one] for one in kept), longest_gap(times[one] for one in times.keys() - kept)
            )
        return Scaled(
            workers=workers,
            partitions=settings.kafka.partitions,
            cpu_us=round(used.cpu_s["worker"] / events * 1e6, 2),
            events_per_s=round(events / took_s),
            fairness=round(busiest * workers / events, 3),
            steady_gap_ms=gaps["steady"].kept_ms,
            killed=gaps.get("killed"),
            joined=gaps.get("joined"),
        )
    finally:
        fleet.stop()


def _changes(fleet: Fleet, workers: int) -> dict[str, Callable[[], None]]:
    """Return what happens to the group, in order. Where one worker is all there is, nothing is killed."""
    alone: dict[str, Callable[[], None]] = {"steady": lambda: None}
    return alone if workers == 1 else alone | {"killed": lambda: fleet.kill(0), "joined": lambda: fleet.start(workers)}


def _times(settings: Settings, since: Ends, until: Ends) -> Iterator[tuple[int, list[int]]]:
    """Yield partitions with when their profiles were appended in between, in milliseconds by the broker's clock."""
    for (topic, partition), end in until.items():
        if topic == PROFILES:
            span = Span(topic, partition, since[topic, partition], end)
            yield partition, [message.timestamp()[1] for messages in read_span(settings, span) for message in messages]


def longest_gap(partitions: Iterable[Sequence[int]]) -> int:
    """Return the longest time between two moments of one partition."""
    return max((later - sooner for times in partitions for sooner, later in pairwise(times)), default=0)
