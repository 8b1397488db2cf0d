"""What a worker process consists of, put together; `streams.app` ties it to Faust's life cycle."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from streams.lanes import Lanes
from streams.outbox import Outbox
from streams.pipeline import Pipeline
from streams.recovery import Recovery
from streams.reports import Reports
from streams.shadow import Shadow
from streams.silence import Silence
from streams.store import claim
from streams.supervisor import RESTARTS
from streams.suspects import forget_in_hand
from streams.switch import ReleaseSwitch
from streams.warming import Warmer
from streams.watchdog import Watchdog, boot_time
from xplat_stream.errors import EXIT_SOFTWARE, DamagedState, XplatError
from xplat_stream.kafka.reports import read_reports, write_reports
from xplat_stream.kafka.topics import check_topics
from xplat_stream.metrics import Metrics
from xplat_stream.serving import CircuitBreaker, ModelRepository, TritonScorer
from xplat_stream.serving.texts import TextVectors
from xplat_stream.taxonomy import load_taxonomy

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from xplat_stream.settings import Settings

log = logging.getLogger("xplat.worker")

_METRICS_INTERVAL_S: Final = 1.0
_DISK_FAILS: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
_LOOP_SILENCE_S: Final = 10.0


def stop_worker(error: BaseException) -> None:
    """Leave at once: an exception nobody foresaw must not let one more offset be committed."""
    if isinstance(error, OSError) and error.errno in _DISK_FAILS:
        where = f" ({error.filename})" if error.filename else ""
        error = DamagedState(
            f"the state folder's disk fails: {error.strerror}{where}. Make room; nothing was acknowledged."
        )
    code = error.exit_code if isinstance(error, XplatError) else EXIT_SOFTWARE
    try:
        if isinstance(error, XplatError):
            sys.stderr.write(f"xplat worker stopped: {error}\n")
        else:
            log.critical("xplat worker stopped: %s: %s", type(error).__name__, error, exc_info=error)
        sys.stderr.flush()
    finally:
        os._exit(code)  # also where the log lies on the disk that is full


class Worker:
    """The parts of one worker process. They are made when partitions arrive for the first time."""

    def __init__(self, settings: Settings) -> None:
        self.behind = False
        """Whether the log holds records that were not even fetched; `streams.app` finds out."""
        self._settings = settings
        self._folder = Path(settings.worker.datadir)
        self._metrics = Metrics(restarts=int(os.environ.get(RESTARTS, "0")))
        self._silence = Silence(settings.platforms, after_s=settings.worker.silence_s)
        self._loop_ran_at = boot_time()
        self._claim: int | None = None
        self._outbox: Outbox | None = None
        self._lanes: Lanes | None = None
        self._shadow: Shadow | None = None
        self._watchdog: Watchdog | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def claim_state(self) -> None:
        """Take the state folder for this process alone, or stop."""
        try:
            if self._claim is None:  # Faust says twice that a worker begins
                self._claim = claim(self._folder)
                forget_in_hand(self._folder)
        except XplatError as error:
            stop_worker(error)

    async def take_over(self, partitions: Iterable[int], started: Callable[[int], None]) -> None:
        """Bring the state of these partitions up to date and start their lanes, or stop. See `Lanes.take_over`."""
        try:
            lanes = self._lanes or await self._open()
            if self._shadow is not None:
                self._shadow.begin()
            await lanes.take_over(partitions, started)
            self.behind = False
        except Exception as error:  # noqa: BLE001 - whatever it is, this worker has no state to work on
            stop_worker(error)

    async def let_go(self) -> None:
        """Stop all lanes where they stand."""
        if self._lanes is not None:
            await self._lanes.let_go()

    async def put(self, event: Any) -> None:
        """Hand a chunk to the lane of its partition."""
        if self._lanes is not None:
            await self._lanes.put(event)

    async def close(self) -> None:
        """Stop everything; what is not acknowledged is read again by whoever comes next."""
        if self._watchdog is not None:
            self._watchdog.close()
        for task in self._tasks:
            task.cancel()
        await self.let_go()
        if self._outbox is not None:
            await self._outbox.stop()

    def run(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run something beside the lanes for as long as the worker lives; if it fails, the worker stops."""
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(_stop_on_failure)
        self._tasks.append(task)

    async def _open(self) -> Lanes:
        settings, metrics = self._settings, self._metrics
        partitions = await asyncio.to_thread(check_topics, settings)
        watchdog = self._watchdog = Watchdog(
            session_s=settings.worker.session_timeout_s,
            stall_s=settings.worker.stall_timeout_s,
            working=self._working,
            done=lambda: (metrics.chunks, metrics.rescored, metrics.restored, vectors.encoded),
            on_failure=stop_worker,
        )
        self._outbox = Outbox(settings, check_lease=watchdog.check_lease)
        await self._outbox.start()
        scorer = TritonScorer(settings.triton)
        breaker = CircuitBreaker(scorer)
        vectors = TextVectors(breaker)
        taxonomy = load_taxonomy(settings.model.taxonomy).for_purpose(settings.model.sensitive_purpose)
        shadow = self._shadow = Shadow(
            settings.release.shadow_share, scorer=scorer, vectors=vectors, taxonomy=taxonomy, metrics=metrics
        )
        pipeline = Pipeline(
            settings,
            taxonomy=taxonomy,
            partitions=partitions,
            outbox=self._outbox,
            scorer=breaker,
            vectors=vectors,
            shadow=shadow,
            silence=self._silence,
            metrics=metrics,
        )
        recovery = Recovery(settings, self._outbox, metrics)
        warmer = Warmer(scorer, vectors)
        lanes = Lanes(settings, pipeline, metrics, recovery=recovery, warmer=warmer, on_failure=stop_worker)
        switch = ReleaseSwitch(
            settings,
            repository=ModelRepository.of(settings),
            scorer=scorer,
            breaker=breaker,
            vectors=vectors,
            pipeline=pipeline,
            shadow=shadow,
            warmer=warmer,
            stores=lambda: lanes.stores,
            metrics=metrics,
        )
        await switch.start()
        # Windows are lists of bytes without cycles: looking for garbage among them costs a fifth of a chunk's time.
        gc.freeze()
        gc.set_threshold(100_000, 20, 100)
        self.run(switch.follow(), "switch")
        self.run(breaker.watch(), "breaker")
        self.run(shadow.run(), "shadow")
        reports = Reports(
            shadow,
            lambda: lanes.progress,
            lambda: lanes.warmth,
            read=partial(read_reports, settings),
            write=partial(write_reports, settings),
        )
        self.run(reports.run(settings.release.report_interval_s), "reports")
        self.run(self._write_metrics(), "metrics")
        self._lanes = lanes
        self._loop_ran_at = boot_time()
        watchdog.start()
        return lanes

    def _working(self) -> bool:
        """Tell, from another thread, whether there is work: an event loop that does not even count is at work."""
        looping = boot_time() - self._loop_ran_at < _LOOP_SILENCE_S
        return self.behind or not looping or (self._lanes is not None and self._lanes.busy)

    async def _write_metrics(self) -> None:
        while True:
            self._loop_ran_at = boot_time()
            self._metrics.silent = sorted(self._silence.silent())
            self._metrics.unread = self._lanes.unread if self._lanes else 0
            progress = list(self._lanes.progress.values()) if self._lanes else []
            self._metrics.active_users = sum(one.active for one in progress)
            self._metrics.active_scored = sum(one.scored for one in progress)
            await asyncio.to_thread(self._metrics.write, self._folder)  # a rename may wait for the disk
            await asyncio.sleep(_METRICS_INTERVAL_S)


def _stop_on_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        stop_worker(error)
