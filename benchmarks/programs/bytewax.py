"""The peer: bytewax with SQLite recovery and an epoch a second, started by its own ``bytewax.run``.

Windows live in memory; at the end of every epoch what changed is snapshotted, pickled, into SQLite beside the offsets.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import bytewax.operators as op
import orjson
from bytewax.connectors.kafka import KafkaSink, KafkaSinkMessage, KafkaSource, KafkaSourceMessage
from bytewax.dataflow import Dataflow
from bytewax.operators import StatefulBatchLogic

from benchmarks.programs.law import Kept, fold, kept, summary

if TYPE_CHECKING:
    from collections.abc import Iterable

COMMIT = timedelta(seconds=1)
BROKERS = [os.environ["BENCH_BOOTSTRAP"]]


class Window(StatefulBatchLogic[Kept, dict[str, int], bytes]):
    """One user's window, published a second after the first event that changed it."""

    def __init__(self, snapshot: bytes | None) -> None:
        self._window: list[Kept] = [] if snapshot is None else orjson.loads(snapshot)
        self._publish_at: datetime | None = None

    def on_batch(self, values: list[Kept]) -> tuple[Iterable[dict[str, int]], bool]:
        """Fold."""
        for event in values:
            fold(self._window, event)
        if self._publish_at is None:
            self._publish_at = datetime.now(UTC) + COMMIT
        return (), StatefulBatchLogic.RETAIN

    def on_notify(self) -> tuple[Iterable[dict[str, int]], bool]:
        """Publish."""
        self._publish_at = None
        return (summary(self._window),), StatefulBatchLogic.RETAIN

    def notify_at(self) -> datetime | None:
        """Say when to publish."""
        return self._publish_at

    def snapshot(self) -> bytes:
        """Return what recovery keeps; as JSON it is pickled in a third less time than as lists."""
        return bytes(orjson.dumps(self._window))


def decode(message: Any) -> tuple[str, Kept]:
    """Return the user and what is kept of the event."""
    if not isinstance(message, KafkaSourceMessage):
        raise TypeError(message)
    return message.key.decode(), kept(orjson.loads(message.value))


def encode(published: tuple[str, dict[str, int]]) -> KafkaSinkMessage[bytes, bytes]:
    """Return the output record."""
    user, value = published
    return KafkaSinkMessage(user.encode(), orjson.dumps(value))


flow = Dataflow("bytewax")
source = op.input("source", flow, KafkaSource(BROKERS, [os.environ["BENCH_SOURCE"]]))
windows = op.stateful_batch("windows", op.map("decode", source, decode), Window)
sink = KafkaSink(BROKERS, os.environ["BENCH_OUTPUT"], add_config={"partitioner": "murmur2_random"})
op.output("sink", op.map("encode", windows, encode), sink)
