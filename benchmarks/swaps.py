"""Many releases in a row, promoted under load: does an update fail, get lost or come late, and does memory grow?

A stack of its own, the real encoder and two heads trained on simulated people; then, while a worker serves a steady
stream, each release in turn is placed, loaded, asked its golden requests, announced and taken up. A profile's latency
is the worker's own figure: Kafka's time of the newest event until publication. It counts as one of a swap if it was
published between the begin of a promotion and the moment the worker had taken the release up, as one of the steady
state otherwise.
"""

from __future__ import annotations

import bisect
import threading
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
import numpy as np

from benchmarks.stack import private_stack
from trainer.options import TrainOptions
from trainer.release import place_candidate
from trainer.train import train
from xplat_stream.demo.children import Child
from xplat_stream.errors import StackError, XplatError
from xplat_stream.kafka.consumer import ProfileConsumer
from xplat_stream.local.process import memory_of
from xplat_stream.metrics import Metrics, read_metrics
from xplat_stream.population import Population
from xplat_stream.serving.probe import server_memory
from xplat_stream.serving.promote import promote
from xplat_stream.serving.store import ReleaseStore
from xplat_stream.simulate import simulate
from xplat_stream.taxonomy import load_taxonomy
from xplat_stream.verify import verify, wait_until_caught_up

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from trainer.release import Candidate
    from xplat_stream.settings import Settings

_PLATFORMS: Final = ("shop", "video", "social")
_SEED: Final = 5
_HISTORY: Final = 15_000
_WARM_SWAPS: Final = 10
"""Memory is compared with that after so many swaps: caches and arenas have their size by then."""

_PATIENCE_S: Final = 60.0
_POLL_S: Final = 0.05


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


class _Seen(NamedTuple):
    """When a profile was published, in seconds since 1970, and how late it was."""

    at: float
    latency_ms: int


def bench_swaps(*, swaps: int, rate: float, pause_s: float, report: Callable[[str], None]) -> SwapsBench:
    """Swap `swaps` times under `rate` events a second, with `pause_s` of steady state after each.

    Raises `StackError`, and what training and promotion raise.
    """
    with private_stack(report, platforms=_PLATFORMS) as (settings, home):
        population = Population(load_taxonomy(), users=300, seed=_SEED)
        simulate(settings, population, history_events=_HISTORY, history_days=20, rate_per_s=0)
        heads = _heads(settings, report)
        environment = {
            "XPLAT_LOCAL__HOME": str(home),
            "XPLAT_MODEL__REPOSITORY": settings.model.repository,
            "XPLAT_WORKER__DATADIR": settings.worker.datadir,
        }
        worker = Child(["worker", "--no-supervise"], environment, home / "logs" / "worker.log")
        try:
            _until(lambda: wait_until_caught_up(settings, timeout_s=_PATIENCE_S), worker, "the history is read")
            with _load(settings, population, rate) as seen:
                return _swapped(settings, worker, heads, seen, swaps, rate, pause_s, report)
        finally:
            worker.stop()


def _swapped(  # noqa: PLR0913, PLR0917 - one run's parts
    settings: Settings,
    worker: Child,
    heads: Sequence[Candidate],
    seen: _Profiles,
    swaps: int,
    rate: float,
    pause_s: float,
    report: Callable[[str], None],
) -> SwapsBench:
    before = _metrics(settings)
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
        _until(partial(_uses, settings, release), worker, f"release {release} is used")
        windows.append((started, time.time()))
        ReleaseStore.of(settings).collect()
        if number == min(_WARM_SWAPS, swaps):
            memory = _memory(settings, worker)
        if number % _WARM_SWAPS == 0:
            report(f"{number} swaps, {seen.count} profiles")
    ended = time.time()
    grown = _memory(settings, worker)
    seen.end()
    caught_up = wait_until_caught_up(settings, timeout_s=_PATIENCE_S)
    after = _metrics(settings)
    verdict = verify(settings)
    failed += after.degraded + after.unscored - before.degraded - before.unscored
    steady, swapping = _apart([one for one in seen.found if begun <= one.at <= ended], windows)
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


def _heads(settings: Settings, report: Callable[[str], None]) -> list[Candidate]:
    """Train and promote a first release, and return two heads on its encoder."""
    few = TrainOptions(encoder_texts_shown=1_000, head_windows_shown=20_000, force=True)
    report("training two heads")
    first = train(settings, few)
    again = msgspec.structs.replace(few, head_only=True, seed=few.seed + 1, publish=False)
    second = train(settings, again).candidate
    return [second, first.candidate._replace(encoder=second.encoder)]


class _Profiles:
    """What was published since the load began, told by a thread that reads along."""

    def __init__(self, settings: Settings, population: Population, rate: float) -> None:
        self.found: list[_Seen] = []
        self._stop = threading.Event()
        consumer = ProfileConsumer(settings)  # from here on, before the first event
        self._threads = [
            threading.Thread(target=self._read, args=(consumer,), daemon=True),
            threading.Thread(
                target=simulate,
                args=(settings, population),
                kwargs={"rate_per_s": rate, "stop": self._stop},
                daemon=True,
            ),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def count(self) -> int:
        """Profiles read so far."""
        return len(self.found)

    def end(self) -> None:
        """Publish no more; read what is on its way."""
        self._stop.set()
        for thread in reversed(self._threads):
            thread.join(_PATIENCE_S)

    def _read(self, consumer: ProfileConsumer) -> None:
        with consumer:
            while not self._stop.is_set():
                for change in consumer.changes(idle_s=1.0):
                    record = change.record
                    if record is not None and record.data.cause == "behavior":
                        self.found.append(_Seen(record.time.timestamp(), record.latency_ms))


@contextmanager
def _load(settings: Settings, population: Population, rate: float) -> Iterator[_Profiles]:
    profiles = _Profiles(settings, population, rate)
    try:
        yield profiles
    finally:
        profiles.end()


def _apart(found: Sequence[_Seen], windows: Sequence[tuple[float, float]]) -> tuple[list[int], list[int]]:
    """Return the latencies outside of all windows, and those inside one."""
    starts = [start for start, _ in windows]
    parts: tuple[list[int], list[int]] = ([], [])
    for one in found:
        place = bisect.bisect_right(starts, one.at) - 1
        parts[place >= 0 and one.at <= windows[place][1]].append(one.latency_ms)
    return parts


def _metrics(settings: Settings) -> Metrics:
    return read_metrics(Path(settings.worker.datadir))


def _uses(settings: Settings, release: int) -> bool:
    return _metrics(settings).release == release


def _memory(settings: Settings, worker: Child) -> tuple[int, int]:
    """Return the bytes that the model server and the worker hold."""
    return server_memory(settings) or 0, memory_of(worker.pid)


def _until(true: Callable[[], bool], worker: Child, what: str) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not true():
        worker.check()
        if time.monotonic() > deadline:
            raise StackError(
                f"{what}: not within {_PATIENCE_S:.0f} s",
                where=str(worker.log),
                expected="a worker that serves",
                fix="The whole story is in the log.",
            )
        time.sleep(_POLL_S)
