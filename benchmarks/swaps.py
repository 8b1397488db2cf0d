"""Many releases in a row, promoted under load: does an update fail, get lost or come late, and does memory grow?

A stack of its own, the real encoder and two heads trained on simulated people; then, while a worker serves a steady
stream, each release in turn is placed, loaded, asked its golden requests, announced and taken up. A profile's latency
is the worker's own figure: Kafka's time of the newest event until publication. It counts as one of a swap if it was
published between the begin of a promotion and the moment the worker had taken the release up, as one of the steady
state otherwise.
"""

from __future__ import annotations

import bisect
import time
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from benchmarks.live import PATIENCE_S, PLATFORMS, Traffic, metrics_of, people, serving, two_heads, until
from benchmarks.stack import private_stack
from trainer.release.release import place_candidate
from xplat_stream.errors import XplatError
from xplat_stream.local.process import memory_of
from xplat_stream.serving.probe import server_memory
from xplat_stream.serving.promote import promote
from xplat_stream.serving.store import ReleaseStore
from xplat_stream.verify import verify, wait_until_caught_up

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.live import Published
    from trainer.release.release import Candidate
    from xplat_stream.demo.children import Child
    from xplat_stream.settings import Settings

_PEOPLE: Final = 300
_ROCKSDB_MB: Final = 8
_WARM_SWAPS: Final = 10
"""Memory is compared with that after so many swaps: caches and arenas have their size by then."""


class SwapsBench(msgspec.Struct, frozen=True):
    """One run. Latencies are of profiles that behavior caused."""

    swaps: int
    failed: int
    """Profiles published without new scores, and promotions that did not come about."""
    lost: int
    """Events missing or doubled, and users whose window or profile is not what the log gives, after all of it."""
    updates: int
    """Profiles that latency was measured of."""
    events_per_s: float
    swap_s: float
    """Mean, from the begin of a promotion until the worker scores with the release."""
    p99_steady_ms: float
    p99_swap_ms: float
    p99_ratio: float
    p50_steady_ms: float
    p50_swap_ms: float
    triton_memory_ratio: float
    """Memory after the last swap over that after the tenth; swaps must be more than ten."""
    worker_memory_ratio: float


def bench_swaps(*, swaps: int, rate: float, pause_s: float, report: Callable[[str], None]) -> SwapsBench:
    """Swap `swaps` times under `rate` events a second, with `pause_s` of steady state after each.

    Raises `StackError`, and what training and promotion raise.
    """
    with private_stack(report, platforms=PLATFORMS) as (stack, home):
        # RocksDB fills what it may take, once: with little it has before the tenth swap, and is no growth behind it.
        settings = msgspec.structs.replace(stack, worker=msgspec.structs.replace(stack.worker, rocksdb_mb=_ROCKSDB_MB))
        heads = two_heads(settings, report)
        with serving(settings, home) as worker, Traffic(settings, people(_PEOPLE), rate) as traffic:
            return _swapped(settings, worker, heads, traffic, swaps, rate, pause_s, report)


def _swapped(  # noqa: PLR0913, PLR0917 - one run's parts
    settings: Settings,
    worker: Child,
    heads: Sequence[Candidate],
    traffic: Traffic,
    swaps: int,
    rate: float,
    pause_s: float,
    report: Callable[[str], None],
) -> SwapsBench:
    before = metrics_of(settings)
    begun, windows, failed, memory = time.time(), [], 0, (0, 0)
    for number in range(1, swaps + 1):
        time.sleep(pause_s)
        started = time.time()
        try:
            release = place_candidate(settings, heads[number % len(heads)]).release
            promote(settings, release, force=True, reason="benchmark")
        except XplatError as error:
            report(f"swap {number} did not come about: {error}")
            failed += 1
            continue
        until(partial(_uses, settings, release), worker, f"release {release} is used")
        windows.append((started, time.time()))
        ReleaseStore.of(settings).collect()
        if number == min(_WARM_SWAPS, swaps):
            memory = _memory(settings, worker)
        if number % _WARM_SWAPS == 0:
            report(f"{number} swaps, {len(traffic.found)} profiles")
    ended = time.time()
    grown = _memory(settings, worker)
    traffic.end()
    caught_up = wait_until_caught_up(settings, timeout_s=PATIENCE_S)
    after = metrics_of(settings)
    verdict = verify(settings)
    failed += after.degraded + after.unscored - before.degraded - before.unscored
    steady, swapping = _apart(traffic.updates(begun, ended), windows)
    p50, p99 = (np.percentile(steady, share) for share in (50, 99))
    swap_p50, swap_p99 = (np.percentile(swapping, share) for share in (50, 99))
    return SwapsBench(
        swaps=len(windows),
        failed=failed,
        lost=verdict.missing + verdict.extra + verdict.differing + (0 if caught_up else 1),
        updates=len(steady) + len(swapping),
        events_per_s=rate,
        swap_s=round(float(np.mean([end - start for start, end in windows])), 2),
        p99_steady_ms=float(p99),
        p99_swap_ms=float(swap_p99),
        p99_ratio=round(float(swap_p99 / p99), 3),
        p50_steady_ms=float(p50),
        p50_swap_ms=float(swap_p50),
        triton_memory_ratio=round(grown[0] / memory[0], 3),
        worker_memory_ratio=round(grown[1] / memory[1], 3),
    )


def _apart(found: Sequence[Published], windows: Sequence[tuple[float, float]]) -> tuple[list[int], list[int]]:
    """Return the latencies outside of all windows, and those inside one."""
    starts = [start for start, _ in windows]
    parts: tuple[list[int], list[int]] = ([], [])
    for one in found:
        place = bisect.bisect_right(starts, one.published_at) - 1
        parts[place >= 0 and one.published_at <= windows[place][1]].append(one.latency_ms)
    return parts


def _uses(settings: Settings, release: int) -> bool:
    return metrics_of(settings).release == release


def _memory(settings: Settings, worker: Child) -> tuple[int, int]:
    """Return the bytes that the model server and the worker hold."""
    return server_memory(settings) or 0, memory_of(worker.pid)
