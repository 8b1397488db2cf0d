"""The peer: faust-streaming as its documentation shows it, a Table in RocksDB, written and logged event by event.

Run as ``faust -A benchmarks.programs.stock_faust worker``. A timer publishes each dirty user once a second, which is
all that a table lets be collected.
"""

from __future__ import annotations

import os
from typing import Any

import faust

from benchmarks.programs.law import fold, kept, summary

PARTITIONS = int(os.environ["BENCH_PARTITIONS"])

app = faust.App(
    "stock",
    broker=f"kafka://{os.environ['BENCH_BOOTSTRAP']}",
    store="rocksdb://",
    datadir=os.environ["BENCH_FOLDER"],
    topic_partitions=PARTITIONS,
    table_standby_replicas=0,
    web_enabled=False,
    topic_disable_leader=True,
    broker_commit_interval=1.0,
    consumer_auto_offset_reset="earliest",
    stream_wait_empty=False,
)
source = app.topic(os.environ["BENCH_SOURCE"], key_type=bytes, value_serializer="json")
output = app.topic(os.environ["BENCH_OUTPUT"], key_type=bytes, value_serializer="json", partitions=PARTITIONS)
windows = app.Table("windows", key_type=bytes, partitions=PARTITIONS)
dirty: dict[bytes, tuple[int, dict[str, int]]] = {}


@app.agent(source)
async def keep_last(stream: Any) -> None:
    """Fold each event into its user's window."""
    async for event in stream.events():
        window = windows.get(event.key) or []
        fold(window, kept(event.value))
        windows[event.key] = window
        dirty[event.key] = (event.message.partition, summary(window))


@app.timer(1.0)
async def publish() -> None:
    """Publish who changed since the last time."""
    changed = list(dirty.items())
    dirty.clear()
    for user, (partition, value) in changed:
        await output.send(key=user, value=value, partition=partition)
