"""A process that is measured: started, followed through its output topic until everything is folded, stopped."""

from __future__ import annotations

import subprocess
import time
from typing import TYPE_CHECKING, Final

from confluent_kafka import OFFSET_BEGINNING, TopicPartition

from benchmarks.peers.environments import PROJECT
from benchmarks.stack import cpu_s, peak_bytes
from benchmarks.trace import Sample, Trace, steps_of
from xplat_stream.errors import StackError
from xplat_stream.kafka.log import log_consumer
from xplat_stream.local.process import last_words

if TYPE_CHECKING:
    from confluent_kafka import Consumer

    from benchmarks.events import Workload
    from benchmarks.peers import Peer, Place

_BATCH: Final = 5000
_SAMPLE_EVERY_S: Final = 0.05
_QUIET_S: Final = 3.0
"""Several commits long: what a process still holds back when all is folded has come out by then."""

_PATIENCE_S: Final = 180.0
"""Without any output."""

_STOP_S: Final = 60.0


def follow(peer: Peer, place: Place, workload: Workload) -> Trace:
    """Run a peer until all events of the workload are in its outputs, and stop it. Raises `StackError`."""
    log = place.home.with_suffix(".log")
    command = list(peer.command(place))
    consumer = log_consumer(place.settings)
    partitions = range(workload.partitions)
    consumer.assign([TopicPartition(place.output, number, OFFSET_BEGINNING) for number in partitions])
    try:
        with log.open("wb") as written:
            samples = [Sample(time.time() * 1000, 0.0)]
            process = subprocess.Popen(
                command,
                cwd=PROJECT,
                env=dict(peer.environment(place)),
                stdin=subprocess.DEVNULL,
                stdout=written,
                stderr=subprocess.STDOUT,
            )
        try:
            trace = _followed(peer, consumer, process, workload, samples)
        finally:
            _stop(process)
    finally:
        consumer.close()
    if trace is None:
        how = f"it ended with {process.returncode}" if process.returncode else "nothing came out of it any more"
        raise StackError(
            f"{peer.name} did not fold everything: {how}: {last_words(log)}",
            where=str(log),
            expected=f"{workload.events} events in its outputs",
            fix="Read the log, or leave this peer out: --peers.",
        )
    return trace


def _followed(
    peer: Peer, consumer: Consumer, process: subprocess.Popen[bytes], workload: Workload, samples: list[Sample]
) -> Trace | None:
    """Return what was seen, None where the process ends or falls silent before everything is folded."""
    newest: dict[tuple[int, int], int] = {}
    ends = [0] * workload.partitions
    outputs = 0
    heard = time.monotonic()
    while process.poll() is None:
        for message in consumer.consume(_BATCH, _SAMPLE_EVERY_S):
            if message.error() is not None:
                continue
            outputs += 1
            partition, end = message.partition(), peer.end_of(message.value())
            moment = (message.timestamp()[1], partition)
            newest[moment] = max(end, newest.get(moment, 0))
            ends[partition] = max(end, ends[partition])
            heard = time.monotonic()
        samples.append(Sample(time.time() * 1000, cpu_s(process.pid)))
        silent_s = time.monotonic() - heard
        if silent_s > _QUIET_S:
            if sum(map(workload.folded, range(workload.partitions), ends)) == workload.events:
                return Trace(samples, steps_of(newest, workload.folded), outputs, peak_bytes(process.pid))
            if silent_s > _PATIENCE_S:
                break
    return None


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End it as an operator would, so that it writes what it still holds."""
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
