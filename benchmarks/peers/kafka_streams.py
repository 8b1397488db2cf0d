"""Kafka Streams: with its record cache, without it, and with exactly-once processing.

Compiled by Eclipse's compiler, one of the locked jars: the runtime that the local stack has comes without one.
"""

from __future__ import annotations

import hashlib
import subprocess
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.peers.environments import PROJECT
from benchmarks.peers.peer import ROOT_FOLDER, Peer, Place, last_values, windows_of_peers
from xplat_stream.errors import StackError
from xplat_stream.local.jars import locked_jars, read_lock
from xplat_stream.local.kafka import find_java

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.windows import Windows

_LOCK: Final = Path(__file__).with_name("kafka_streams_jars.json")
_SOURCE: Final = PROJECT / "benchmarks" / "programs" / "FoldStreams.java"
_FOLDER: Final = PROJECT / ROOT_FOLDER / "kafka-streams"
_CACHE_BYTES: Final = 64 << 20
_JVM: Final = (
    "-Xmx2g",
    "-XX:+UseSerialGC",  # the cheapest of the three collectors here, on few cores
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
)


def _class_path(report: Callable[[str], None]) -> str:
    jars = locked_jars(read_lock(_LOCK), _FOLDER / "jars.json", report)
    return ":".join(str(one) for one in [_FOLDER / "classes", *jars])


def _prepare(report: Callable[[str], None]) -> None:
    class_path = _class_path(report)
    mark = _FOLDER / "compiled.sha256"
    wanted = hashlib.sha256(_SOURCE.read_bytes() + _LOCK.read_bytes()).hexdigest()
    if mark.exists() and mark.read_text("ascii") == wanted:
        return
    compiler = [str(find_java()), "-cp", class_path, "org.eclipse.jdt.internal.compiler.batch.Main"]
    compiled = subprocess.run(
        [*compiler, "-17", "-nowarn", "-cp", class_path, "-d", str(_FOLDER / "classes"), str(_SOURCE)],
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    if compiled.returncode:
        raise StackError(
            f"{_SOURCE.name} does not compile: {compiled.stderr.strip()[:400]}",
            where=str(_SOURCE),
            expected="a program for Java 17",
            fix="Correct it.",
        )
    mark.write_text(wanted, "ascii")


def _command(name: str, options: tuple[str, ...], place: Place) -> list[str]:
    settings = (
        f"application.id={name}",
        f"bootstrap.servers={place.settings.kafka.bootstrap}",
        f"state.dir={place.home}",
        "auto.offset.reset=earliest",
        "commit.interval.ms=1000",
        "num.stream.threads=1",
        "replication.factor=1",
    )
    java = [str(find_java()), *_JVM, "-cp", _class_path(lambda _: None)]
    return [*java, "FoldStreams", *settings, *options]


def _windows(name: str, place: Place) -> Windows:
    held = last_values(place.settings, f"{name}-windows-changelog")
    return windows_of_peers((key.decode(), _events(value)) for key, value in held.items())


def _events(packed: bytes) -> Iterator[list[int | str]]:
    """Yield what `WindowSerde` of the program wrote."""
    at = 0
    while at < len(packed):
        event: list[int | str] = [int.from_bytes(packed[at : at + 8], "big")]
        at += 8
        for _ in range(3):
            end = at + 1 + packed[at]
            event.append(packed[at + 1 : end].decode())
            at = end
        yield event


def _variant(name: str, title: str, promise: str, *options: str) -> Peer:
    return Peer(
        name,
        f"Kafka Streams {read_lock(_LOCK).version}, {title}",
        f"RocksDB and changelog; {promise}",
        prepare=_prepare,
        command=partial(_command, name, options),
        windows=partial(_windows, name),
    )


CACHE = f"statestore.cache.max.bytes={_CACHE_BYTES}"
AT_LEAST_ONCE = "at least once, and folding twice changes nothing"

KAFKA_STREAMS = (
    _variant("kafka-streams", "64 MB cache", AT_LEAST_ONCE, CACHE),
    _variant(
        "kafka-streams-no-cache",
        "no cache",
        f"{AT_LEAST_ONCE}; an output an event",
        "statestore.cache.max.bytes=0",
    ),
    _variant(
        "kafka-streams-eos",
        "64 MB cache, exactly_once_v2",
        "each event and each output exactly once",
        CACHE,
        "processing.guarantee=exactly_once_v2",
    ),
)
