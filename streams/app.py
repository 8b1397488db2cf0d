"""The Faust app: ``faust -A streams.app worker``, or ``xplat worker``, which checks everything first.

Faust gives the consumer group, rebalancing, commits and service life cycle. Windows, changelog, recovery and output are
this project's own; `notes` of the reasons are in docs/adr/0001-own-state-on-faust.md.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import faust

from streams.consumer import ChunkSchema, OwnerAssignor, transport_for
from streams.lanes import Lanes
from streams.metrics import Metrics
from streams.outbox import Outbox
from streams.pipeline import Pipeline
from streams.store import claim
from streams.switch import ReleaseSwitch
from xplat_stream.errors import EXIT_OPERATOR, EXIT_SOFTWARE, OperatorError, XplatError
from xplat_stream.kafka.topics import REKEYED, behavior_topic, check_topics, platforms_on
from xplat_stream.serving import ModelRepository, TritonScorer
from xplat_stream.serving.texts import TextVectors
from xplat_stream.settings import load_settings
from xplat_stream.taxonomy import load_taxonomy

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from xplat_stream.settings import Settings

log = logging.getLogger("xplat.worker")

_METRICS_INTERVAL_S: Final = 1.0
_FETCH_BYTES: Final = 4 * 1024 * 1024


def stop_worker(error: BaseException) -> None:
    """Leave at once: an exception nobody foresaw must not let one more offset be committed."""
    if isinstance(error, XplatError):
        sys.stderr.write(f"xplat worker stopped: {error}\n")
    else:
        log.critical("xplat worker stopped: %s: %s", type(error).__name__, error, exc_info=error)
    sys.stderr.flush()
    os._exit(EXIT_OPERATOR if isinstance(error, OperatorError) and not error.retriable else EXIT_SOFTWARE)


def create_app(settings: Settings) -> faust.App:
    """Return the Faust app for these settings. Nothing is connected before it starts."""
    app = faust.App(
        settings.worker.app,
        broker=[f"kafka://{address}" for address in settings.kafka.bootstrap.split(",")],
        datadir=settings.worker.datadir,
        store="memory://",
        PartitionAssignor=OwnerAssignor,
        table_standby_replicas=1,  # there are no Faust tables; this makes Faust use the assignor above
        topic_partitions=settings.kafka.partitions,
        topic_allow_declare=False,
        topic_disable_leader=True,
        web_enabled=False,
        consumer_auto_offset_reset="earliest",
        consumer_max_fetch_size=_FETCH_BYTES,
        broker_max_poll_records=settings.worker.chunk_events,
        broker_session_timeout=settings.worker.session_timeout_s,
        broker_heartbeat_interval=settings.worker.session_timeout_s / 5,
        broker_rebalance_timeout=max(30.0, settings.worker.session_timeout_s),
        broker_request_timeout=max(40.0, settings.worker.session_timeout_s),
        broker_commit_interval=1.0,
        stream_wait_empty=False,
        stream_recovery_delay=0.0,
        stream_processing_timeout=600.0,
    )
    app.transport = transport_for(app)
    metrics = Metrics()
    outbox = Outbox(settings)
    channel = app.topic(
        *map(behavior_topic, settings.platforms), REKEYED, schema=ChunkSchema(), partitions=settings.kafka.partitions,
        maxsize=settings.kafka.partitions,
    )  # fmt: skip
    parts: dict[str, Any] = {}

    def lanes() -> Lanes | None:
        return parts.get("lanes")

    def run(work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        parts.setdefault("tasks", []).append(task)
        task.add_done_callback(lambda done: done.cancelled() or (done.exception() and stop_worker(done.exception())))

    @app.on_worker_init.connect
    def claim_state(*_: Any, **__: Any) -> None:
        try:
            parts["claim"] = parts.get("claim") or claim(Path(settings.worker.datadir))  # Faust sends it twice
        except XplatError as error:
            stop_worker(error)

    @app.on_before_shutdown.connect
    async def close(*_: Any, **__: Any) -> None:
        for task in parts.get("tasks", []):
            task.cancel()
        if (owned := lanes()) is not None:
            await owned.let_go()
            await outbox.stop()

    async def open_parts() -> None:
        partitions = await asyncio.to_thread(check_topics, settings)
        scorer = TritonScorer(settings.triton)
        vectors = TextVectors(scorer)
        pipeline = Pipeline(
            settings, taxonomy=load_taxonomy(settings.model.taxonomy), partitions=partitions, outbox=outbox,
            scorer=scorer, vectors=vectors, metrics=metrics,
        )  # fmt: skip
        owned = Lanes(settings, pipeline, metrics, on_failure=stop_worker)
        switch = ReleaseSwitch(
            settings, repository=ModelRepository(settings.model.repository), scorer=scorer, vectors=vectors,
            pipeline=pipeline, stores=lambda: owned.stores, metrics=metrics,
        )  # fmt: skip
        await outbox.start()
        await switch.start()
        parts["lanes"] = owned
        # Windows are lists of bytes and hold no cycles: collecting them again and again costs a tenth of a chunk's time.
        gc.freeze()
        gc.set_threshold(100_000, 20, 100)
        run(switch.follow(), "switch")
        run(_write_metrics(metrics, Path(settings.worker.datadir)), "metrics")
        run(_watch_platforms(app, settings), "platforms")

    @app.on_rebalance_complete.connect
    async def take_over(*_: Any, **__: Any) -> None:
        # Nothing may be fetched between here and the seek that follows: stop the flow also where Faust did not.
        app.consumer.stop_flow()
        app.flow_control.suspend()
        await app.consumer.wait_for_stopped_flow()
        try:
            if "lanes" not in parts:
                await open_parts()
            await parts["lanes"].take_over({tp.partition for tp in app.consumer.assignment()})
        except Exception as error:  # noqa: BLE001 - whatever it is, this worker has no state to work on
            stop_worker(error)

    @app.on_partitions_revoked.connect
    async def let_go(*_: Any, **__: Any) -> None:
        if (owned := lanes()) is not None:
            await owned.let_go()

    @app.agent(channel)
    async def chunks(stream: Any) -> None:
        async for event in stream.noack().events():
            owned = lanes()
            if owned is not None and event.message.generation_id == app.consumer_generation_id:
                await owned.put(event)

    app.xplat_settings = settings
    return app


async def _write_metrics(metrics: Metrics, folder: Path) -> None:
    while True:
        metrics.write(folder)
        await asyncio.sleep(_METRICS_INTERVAL_S)


async def _watch_platforms(app: faust.App, settings: Settings) -> None:
    """Read a platform's topic as soon as it exists, without a restart."""
    while True:
        await asyncio.sleep(settings.worker.metadata_interval_s)
        if app.rebalancing:
            continue
        read = [one for one in app.topics if REKEYED in one.topics]  # the agent reads from a copy of `channel`
        known = {topic for one in read for topic in one.topics}
        found = [behavior_topic(platform) for platform in await asyncio.to_thread(platforms_on, settings)]
        new = [topic for topic in found if topic not in known]
        if new:
            await asyncio.to_thread(check_topics, settings)
            log.info("new platform topics: %s", ", ".join(new))
            for one in read:
                one.topics = [*one.topics, *new]
            await app.consumer.subscribe(await app.topics._update_indices())


app = create_app(load_settings())
