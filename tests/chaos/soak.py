"""Half load for half an hour: what grows, what leaks, what stands still.

Before the clock starts, and before the first sample is taken, everything that is bounded is full: the users' windows,
the hundred texts there are, and once over the memtable of every partition, each 16 MB, which then empties and fills for
ever. What grows afterwards has no bound, or one that no soak reaches: what is kept of every item that was ever seen
shows too, because items and titles are drawn apart, half a million pairs of them.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.chaos.fleet import Fleet
from tests.chaos.stack import Stack
from tests.chaos.traffic import Traffic, drawn_events, recorded
from tests.chaos.watch import ProfileWatch
from tests.tiny_release import make_published
from xplat_stream.kafka.topics import create_topics
from xplat_stream.verify import verify, wait_until_caught_up

if TYPE_CHECKING:
    from tests.chaos.traffic import Record
    from xplat_stream.settings import Settings

WORKERS = 2
USERS = 100
"""Few enough for their windows to be full before the warm-up ends: a window that fills is no leak."""
BURST = 8000
MOST_BURSTS = 40
"""Bursts of the warm-up: sixteen fill the memtables."""
MOST_EVENTS_A_SECOND = 200
SAMPLE_EVERY_S = 5.0
WARM_UP = 0.25
"""Part of the time before the first sample: the allocator gets used to the pace."""
GROWTH_ALLOWED = 0.10
DESCRIPTORS_ALLOWED = 5
STALL_ALLOWED_S = 10.0
CAUGHT_UP_WITHIN_S = 120.0
_PAGE_MB = os.sysconf("SC_PAGE_SIZE") / 2**20
_AVERAGED = 12
"""Samples, a minute of them, whose mean is the memory at the start and at the end."""


class Sample(NamedTuple):
    """What all worker processes together hold."""

    rss_mb: float
    descriptors: int


def run(folder: Path, *, minutes: float, seed: int) -> dict[str, Any]:
    """Measure what the group sustains, stream half of it, and return the figures."""
    print(f"soak: seed {seed}, {minutes:g} minutes; logs in {folder}", flush=True)
    with Stack(folder) as stack:
        settings = stack.settings
        create_topics(settings)
        make_published(settings)
        watch = ProfileWatch(settings)
        try:
            with Fleet(stack.behind_proxies(settings), folder, size=WORKERS) as fleet:
                for slot in fleet.free:
                    fleet.join(slot)
                filled(settings, fleet, seed)
                rate = min(MOST_EVENTS_A_SECOND, round(sustained(settings, seed) / 2))
                print(f"     {rate} events/s from here on", flush=True)
                samples, longest_stall_s = _streamed(settings, fleet, watch, rate=rate, seconds=60 * minutes, seed=seed)
                caught_up = wait_until_caught_up(settings, timeout_s=CAUGHT_UP_WITHIN_S)
            verdict = verify(settings)
        finally:
            watch.close()
    start, end = _mean(samples[:_AVERAGED]), _mean(samples[-_AVERAGED:])
    growth = end.rss_mb / start.rss_mb - 1
    flat = growth <= GROWTH_ALLOWED and end.descriptors <= start.descriptors + DESCRIPTORS_ALLOWED
    return {
        "ok": flat and caught_up and verdict.exact and longest_stall_s <= STALL_ALLOWED_S,
        "failed": "" if caught_up else "the group did not catch up",
        "minutes": minutes,
        "seed": seed,
        "rate": rate,
        "events": verdict.events,
        "rss_start_mb": round(start.rss_mb, 1),
        "rss_end_mb": round(end.rss_mb, 1),
        "rss_growth": round(growth, 3),
        "fds_start": start.descriptors,
        "fds_end": end.descriptors,
        "longest_stall_s": round(longest_stall_s, 1),
        "missing": verdict.missing,
        "extra": verdict.extra,
        "differing": verdict.differing,
        "exits": fleet.exits(),
    }


def filled(settings: Settings, fleet: Fleet, seed: int) -> None:
    """Send bursts until each partition's memtable was full once, which shows as a table on its disk.

    Raises `RuntimeError` when they do not fill.
    """
    for number in range(1, MOST_BURSTS + 1):
        _burst(settings, f"warm-{number}", seed)
        if _tables(fleet) >= settings.kafka.partitions:
            print(f"     {number * BURST} events filled the memtables", flush=True)
            return
    message = f"{MOST_BURSTS * BURST} events did not fill the memtables"
    raise RuntimeError(message)


def _tables(fleet: Fleet) -> int:
    """Count the partitions of which RocksDB has written a table."""
    return len({table.parent for slot in fleet.wanted for table in (slot.disk / "state").rglob("*.sst")})


def sustained(settings: Settings, seed: int) -> float:
    """Measure how many events a second the group takes through every step when there is no end of them."""
    took_s = _burst(settings, "burst", seed)
    print(f"     {BURST} events at once take {took_s:.1f} s: {BURST / took_s:.0f} events/s", flush=True)
    return BURST / took_s


def _burst(settings: Settings, name: str, seed: int) -> float:
    """Send events all at once and return how long the group takes for them, in seconds."""
    records = _records(name, BURST, seed)
    began = time.monotonic()
    Traffic(settings, records, seconds=0).finish()
    wait_until_caught_up(settings, timeout_s=CAUGHT_UP_WITHIN_S)
    return time.monotonic() - began


def _records(name: str, number: int, seed: int) -> list[Record]:
    return recorded(drawn_events(name, number, seed=f"{seed}/{name}", users=USERS, newcomers=False))


def _streamed(
    settings: Settings, fleet: Fleet, watch: ProfileWatch, *, rate: int, seconds: float, seed: int
) -> tuple[list[Sample], float]:
    """Stream for that long; return the samples after the warm-up, and the longest time without any profile."""
    watch.catch_up()
    samples: list[Sample] = []
    longest_stall_s = 0.0
    began = sampled_at = watch.last_at = time.monotonic()
    part = 0
    while time.monotonic() - began < seconds:
        part += 1
        traffic = Traffic(settings, _records(f"part-{part}", 60 * rate, seed), seconds=60.0)
        while traffic.running:
            before = watch.last_at
            watch.poll()
            longest_stall_s = max(
                longest_stall_s, (watch.last_at if watch.last_at > before else time.monotonic()) - before
            )
            if time.monotonic() - sampled_at >= SAMPLE_EVERY_S:
                sampled_at = time.monotonic()
                if sampled_at - began > WARM_UP * seconds:
                    samples.append(taken(fleet))
        now = taken(fleet)
        print(
            f"{part:4} min {now.rss_mb:.0f} MB, {now.descriptors} descriptors, stall {longest_stall_s:.1f} s",
            flush=True,
        )
    return samples, longest_stall_s


def taken(fleet: Fleet) -> Sample:
    """Look at every process of every worker."""
    pids = [pid for slot in fleet.wanted for pid in slot.running.line]
    pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids]
    return Sample(sum(pages) * _PAGE_MB, sum(1 for pid in pids for _ in Path(f"/proc/{pid}/fd").iterdir()))


def _mean(samples: list[Sample]) -> Sample:
    """Return the mean memory and the fewest descriptors: a compaction opens files for a moment, a leak keeps them."""
    return Sample(sum(one.rss_mb for one in samples) / len(samples), min(one.descriptors for one in samples))
