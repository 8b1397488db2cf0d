"""The floor: a loop over librdkafka, msgspec and RocksDB with nothing around it.

State, changelog and output are written once a dirty user a second, offsets with the state in one batch and committed
after Kafka has everything. It neither rebalances nor recovers, and never forgets a user in memory.
"""

from __future__ import annotations

import os
import signal
import time
from datetime import datetime
from pathlib import Path

import msgspec
from confluent_kafka import Consumer, Producer, TopicPartition
from rocksdict import Options, Rdict, WriteBatch

from benchmarks.programs.law import fold, summary

COMMIT_S = 1.0
CHUNK = 5000
SOURCE = os.environ["BENCH_SOURCE"]
OUTPUT = os.environ["BENCH_OUTPUT"]
CHANGELOG = f"{OUTPUT}-changelog"


class _Object(msgspec.Struct, gc=False):
    id: str


class _Data(msgspec.Struct, gc=False):
    action: str
    object: _Object


class _Event(msgspec.Struct, gc=False):
    id: str
    time: datetime
    data: _Data


class Floor:
    """The state of all partitions, and where it is written."""

    def __init__(self) -> None:
        bootstrap = {"bootstrap.servers": os.environ["BENCH_BOOTSTRAP"]}
        self.consumer = Consumer(
            {**bootstrap, "group.id": "floor", "auto.offset.reset": "earliest", "enable.auto.commit": False}
        )
        self.producer = Producer({**bootstrap, "enable.idempotence": True, "linger.ms": 5})
        self.database = Rdict(str(Path(os.environ["BENCH_FOLDER"]) / "state"), Options(raw_mode=True))
        self.windows: dict[bytes, list[list[int | str]]] = {}
        self.dirty: dict[bytes, int] = {}
        self.offsets: dict[int, int] = {}
        self.decode = msgspec.json.Decoder(_Event).decode
        self.encode_window = msgspec.msgpack.Encoder().encode
        self.decode_window = msgspec.msgpack.Decoder(list[list[int | str]]).decode
        self.encode_summary = msgspec.json.Encoder().encode

    def fold(self) -> None:
        """Take what the log has next."""
        windows, dirty, decode = self.windows, self.dirty, self.decode
        for message in self.consumer.consume(CHUNK, 0.1):
            if message.error() is not None:
                raise SystemExit(str(message.error()))
            key, partition = message.key(), message.partition()
            event = decode(message.value())
            window = windows.get(key)
            if window is None:
                held = self.database.get(key)
                window = windows[key] = [] if held is None else self.decode_window(held)
            data = event.data
            fold(window, [round(event.time.timestamp() * 1000), event.id, data.action, data.object.id])
            dirty[key] = partition
            self.offsets[partition] = message.offset() + 1

    def commit(self) -> None:
        """Make all of it durable, publish it, and tell Kafka."""
        if not self.dirty:
            return
        batch = WriteBatch(raw_mode=True)
        for key, partition in self.dirty.items():
            window = self.windows[key]
            packed = self.encode_window(window)
            batch.put(key, packed)
            self._send(CHANGELOG, packed, key, partition)
            self._send(OUTPUT, self.encode_summary(summary(window)), key, partition)
        for partition, offset in self.offsets.items():
            batch.put(b"\0%d" % partition, b"%d" % offset)
        self.database.write(batch)
        if self.producer.flush(30):
            raise SystemExit("Kafka did not take everything within 30 s")
        self.consumer.commit(offsets=[TopicPartition(SOURCE, *at) for at in self.offsets.items()], asynchronous=False)
        self.dirty.clear()

    def _send(self, topic: str, value: bytes, key: bytes, partition: int) -> None:
        while True:
            try:
                self.producer.produce(topic, value, key, partition)
            except BufferError:
                self.producer.poll(0.05)
            else:
                return


def main() -> None:
    """Fold until told to stop."""
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopping.append(number))
    floor = Floor()
    floor.consumer.subscribe([SOURCE])
    committed = time.monotonic()
    while not stopping:
        floor.fold()
        if time.monotonic() - committed >= COMMIT_S:
            floor.commit()
            committed = time.monotonic()
    floor.commit()
    floor.consumer.close()
    floor.database.close()


if __name__ == "__main__":
    main()
