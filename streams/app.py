"""The Faust app: ``faust -A streams.app worker``, or ``xplat worker``, which checks everything first.

Faust gives the consumer group, rebalancing, commits and the service life cycle. Windows, changelog, recovery and output
are this project's own; docs/adr/0001-own-state-on-faust.md says why.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

import faust
from aiokafka.errors import IllegalStateError

from streams.consumer import ChunkSchema, OwnerAssignor, transport_for
from streams.worker import Worker
from xplat_stream.errors import KafkaUnavailable
from xplat_stream.kafka.log import spans
from xplat_stream.kafka.topics import REKEYED, behavior_topic, check_topics, platforms_on
from xplat_stream.settings import load_settings

if TYPE_CHECKING:
    from xplat_stream.settings import Settings

log = logging.getLogger("xplat.worker")

_FETCH_BYTES: Final = 4 * 1024 * 1024
_LAG_INTERVAL_S: Final = 10.0


def create_app(settings: Settings) -> faust.App:
    """Return the Faust app for these settings. Nothing is connected before it starts."""
    app = _configured(settings)
    worker = Worker(settings)
    channel = app.topic(
        *map(behavior_topic, settings.platforms),
        REKEYED,
        schema=ChunkSchema(),
        partitions=settings.kafka.partitions,
    )

    @app.on_worker_init.connect
    def begin(*_: Any, **__: Any) -> None:
        worker.claim_state()

    @app.on_rebalance_complete.connect
    async def take_over(*_: Any, **__: Any) -> None:
        # Nothing may be fetched between here and the seek that follows: stop the flow also where Faust did not.
        app.consumer.stop_flow()
        app.flow_control.suspend()
        await app.consumer.wait_for_stopped_flow()
        partitions = {tp.partition for tp in app.consumer.assignment()}
        app.consumer.hold_back(partitions)
        await worker.take_over(partitions, started=app.consumer.let_flow)

    @app.on_partitions_revoked.connect
    async def let_go(*_: Any, **__: Any) -> None:
        await worker.let_go()

    @app.on_before_shutdown.connect
    async def close(*_: Any, **__: Any) -> None:
        await worker.close()

    @app.agent(channel)
    async def chunks(stream: Any) -> None:
        async for event in stream.noack().events():
            if event.message.generation_id == app.consumer_generation_id:
                await worker.put(event)

    @app.task
    async def watch(*_: Any) -> None:
        worker.run(_watch_platforms(app, settings), "platforms")
        worker.run(_watch_lag(app, worker, settings), "lag")

    return app


def _configured(settings: Settings) -> faust.App:
    patience_s = settings.worker.session_timeout_s
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
        broker_session_timeout=patience_s,
        broker_heartbeat_interval=patience_s / 5,
        broker_rebalance_timeout=max(30.0, patience_s),
        broker_request_timeout=max(40.0, patience_s),
        broker_commit_interval=1.0,
        stream_wait_empty=False,
        stream_buffer_maxsize=settings.kafka.partitions,
        stream_recovery_delay=0.0,
        stream_processing_timeout=600.0,
    )
    app.transport = transport_for(app)
    return app


async def _watch_platforms(app: faust.App, settings: Settings) -> None:
    """Read a platform's topic as soon as it exists, without a restart."""
    while True:
        await asyncio.sleep(settings.worker.metadata_interval_s)
        if app.rebalancing:
            continue
        read = [one for one in app.topics if REKEYED in one.topics]  # the agent reads from a copy of its channel
        known = {topic for one in read for topic in one.topics}
        try:
            found = [behavior_topic(platform) for platform in await asyncio.to_thread(platforms_on, settings)]
        except KafkaUnavailable as error:
            log.warning("new platforms cannot be looked for now: %s", error)
            continue
        new = [topic for topic in found if topic not in known]
        if new:
            await asyncio.to_thread(check_topics, settings)
            log.info("new platform topics: %s", ", ".join(new))
            for one in read:
                one.topics = [*one.topics, *new]
            await app.consumer.subscribe(await app.topics._update_indices())  # noqa: SLF001 - held by the contract test


async def _watch_lag(app: faust.App, worker: Worker, settings: Settings) -> None:
    """Say whether records wait that were not fetched: a fetcher that died without a word is found out by it."""
    every_s = min(_LAG_INTERVAL_S, settings.worker.stall_timeout_s / 4)
    while True:
        await asyncio.sleep(every_s)
        if app.rebalancing:
            continue
        topics = sorted({tp.topic for tp in app.consumer.assignment()})
        try:
            held = await asyncio.to_thread(spans, settings, topics)
        except KafkaUnavailable:
            worker.behind = False  # nothing can be fetched; that is no stall
            continue
        ends = {(span.topic, span.partition): span.end for span in held}
        try:
            async with asyncio.timeout(every_s):
                reached = await app.consumer.read_skipped()
        except (TimeoutError, IllegalStateError):  # the consumer's thread does not answer, or the assignment is over
            worker.behind = not app.rebalancing
            continue
        worker.behind = any(ends.get((tp.topic, tp.partition), 0) > (at or 0) for tp, at in reached.items())


app = create_app(load_settings())
