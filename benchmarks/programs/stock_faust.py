"""The peer: faust-streaming as its documentation shows it, a Table in RocksDB that keeps the last 50 of each user.

Run by `xplat bench` as ``faust -A benchmarks.stock_faust worker``. No output topic: it is given that advantage.
"""

from __future__ import annotations

import os
from typing import Any

import faust

from benchmarks.events import PLATFORM
from xplat_stream.kafka.topics import behavior_topic

KEEP = 50
PARTITIONS = int(os.environ["BENCH_PARTITIONS"])

app = faust.App(
    "stock",
    broker=f"kafka://{os.environ['BENCH_BOOTSTRAP']}",
    store="rocksdb://",
    datadir=os.environ["BENCH_DATADIR"],
    topic_partitions=PARTITIONS,
    table_standby_replicas=0,
    web_enabled=False,
    topic_disable_leader=True,
    broker_commit_interval=1.0,
    consumer_auto_offset_reset="earliest",
    stream_wait_empty=False,
)
source = app.topic(behavior_topic(PLATFORM), key_type=bytes, value_serializer="json")
windows = app.Table("windows", key_type=bytes, partitions=PARTITIONS)


@app.agent(source)
async def keep_last(stream: Any) -> None:
    """Append each event to its user's list, newest 50."""
    async for event in stream.events():
        value = event.value
        data = value["data"]
        window = windows.get(event.key) or []
        window.append([value["time"], value["id"], data["action"], data["object"]["id"]])
        windows[event.key] = window[-KEEP:]
