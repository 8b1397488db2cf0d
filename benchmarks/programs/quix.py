"""The peer: Quix Streams as its documentation shows it, state in RocksDB with a changelog, written at each checkpoint.

A sink is what it has for output at checkpoints; a second consumer of the same frame would publish every event.
"""

from __future__ import annotations

import os
from typing import Any

import orjson
from confluent_kafka import Producer
from quixstreams import Application, State
from quixstreams.sinks import BaseSink

from benchmarks.programs.law import Kept, fold, kept, summary


class Summaries(BaseSink):
    """One output a dirty user a checkpoint."""

    def __init__(self, topic: str) -> None:
        super().__init__()
        self._topic = topic
        self._dirty: dict[Any, tuple[int, dict[str, int]]] = {}
        self._producer = Producer(
            {"bootstrap.servers": os.environ["BENCH_BOOTSTRAP"], "enable.idempotence": True, "linger.ms": 5}
        )

    def add(self, value: Any, key: Any, partition: int, **_: Any) -> None:
        """Take the newest summary of a user."""
        self._dirty[key] = (partition, value)

    def flush(self) -> None:
        """Send them, and wait until Kafka has them."""
        for key, (partition, value) in self._dirty.items():
            while True:
                try:
                    self._producer.produce(self._topic, orjson.dumps(value), key, partition)
                except BufferError:
                    self._producer.poll(0.05)
                else:
                    break
        if self._producer.flush(30):
            raise RuntimeError("Kafka did not take everything within 30 s")
        self._dirty.clear()


def fold_into(event: dict[str, Any], state: State) -> dict[str, int]:
    """Fold one event into its user's window."""
    window: list[Kept] = state.get("window", default=[])
    fold(window, kept(event))
    state.set("window", window)
    return summary(window)


def main() -> None:
    """Run until told to stop."""
    app = Application(
        os.environ["BENCH_BOOTSTRAP"],
        consumer_group="quix",
        auto_offset_reset="earliest",
        commit_interval=1.0,
        state_dir=os.environ["BENCH_FOLDER"],
        loglevel="WARNING",
    )
    events = app.dataframe(app.topic(os.environ["BENCH_SOURCE"], value_deserializer="json", key_deserializer="bytes"))
    events = events.apply(fold_into, stateful=True)
    events.sink(Summaries(os.environ["BENCH_OUTPUT"]))
    app.run()


if __name__ == "__main__":
    main()
