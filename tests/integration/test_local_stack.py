"""The local stack: what `up`, `down` and `status` promise, against the real servers."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from xplat_stream import local
from xplat_stream.errors import KafkaUnavailable, StackError, TritonUnavailable
from xplat_stream.local import kafka, triton
from xplat_stream.local import stack as stack_module
from xplat_stream.local.jars import JarLock, check_jars
from xplat_stream.local.process import alive, is_free, last_words, spawn, stop, wait_for
from xplat_stream.settings import LocalSettings, Settings, load_settings

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.integration

QUIET: dict[str, Any] = {"log_level": 0, "error_cb": lambda _error: None}
RECORDS = 2000


def free_port() -> int:
    """Return a port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def produce(bootstrap: str, topic: str, count: int) -> int:
    """Send records and return how many were acknowledged."""
    admin = AdminClient({"bootstrap.servers": bootstrap, **QUIET})  # held: without it the answer never comes
    admin.create_topics([NewTopic(topic, 1, 1)])[topic].result(30)
    acknowledged: list[None] = []
    producer = Producer({"bootstrap.servers": bootstrap, "acks": "all", **QUIET})
    for number in range(count):
        producer.produce(
            topic, value=str(number).encode(), on_delivery=lambda error, _: None if error else acknowledged.append(None)
        )
    producer.flush(30)
    return len(acknowledged)


def consume(bootstrap: str, topic: str, count: int) -> list[bytes]:
    """Read the first records of a topic."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "test", **QUIET})
    try:
        consumer.assign([TopicPartition(topic, 0, 0)])
        return [record.value() or b"" for record in consumer.consume(count, timeout=30)]
    finally:
        consumer.close()


def test_up_again_changes_nothing(stack: Settings) -> None:
    """A second `up` starts nothing: same processes, same addresses, and it says so."""
    before = local.status(stack)
    lines: list[str] = []
    after = local.up(stack, report=lines.append)
    assert (after.kafka.pid, after.triton.pid) == (before.kafka.pid, before.triton.pid)
    assert lines == [f"kafka {before.kafka.address} already up", f"triton {before.triton.address} already up"]


def test_status_tells_how_both_servers_are(stack: Settings) -> None:
    """`status` names address, process, health, age and folders, and can be printed as JSON."""
    state = local.status(stack)
    for server in (state.kafka, state.triton):
        assert server.running
        assert server.healthy
        assert not server.external
        assert server.pid
        assert server.up_s is not None
        assert Path(server.log).is_file()
        assert Path(server.folder).is_dir()
    assert state.kafka.address == stack.kafka.bootstrap
    assert msgspec.json.decode(msgspec.json.encode(state))["triton"]["address"] == stack.triton.url


def test_other_commands_find_the_stack(stack: Settings, tmp_path: Path) -> None:
    """Settings read with the stack's home name the stack's addresses, with nothing else set."""
    found = load_settings({"XPLAT_LOCAL__HOME": stack.local.home}, folder=tmp_path)
    assert (found.kafka.bootstrap, found.triton.url) == (stack.kafka.bootstrap, stack.triton.url)


def test_servers_listen_on_loopback_only(stack: Settings) -> None:
    """Nothing of the stack can be reached from another machine: no listener is bound to any other address."""
    ports = msgspec.json.decode((Path(stack.local.home) / "ports.json").read_bytes(), type=dict[str, int]).values()
    listeners = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text(encoding="ascii").splitlines()[1:]:
            address, port = line.split()[1].split(":")
            if line.split()[3] == "0A" and int(port, 16) in ports:
                listeners[int(port, 16)] = address
    assert set(listeners) == set(ports)
    loopback = {"0100007F", "0000000000000000FFFF00000100007F"}
    assert set(listeners.values()) <= loopback


def test_acknowledged_records_survive_a_killed_broker(
    stack: Settings, stack_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    """`up` right after `kill -9` comes back at the same address with every record; `status` tells of a kill."""
    settings, lines = stack_settings(tmp_path), list[str]()
    try:
        first = local.up(settings, report=lines.append, external_triton=stack.triton.url)
        assert first.triton.external
        assert produce(first.kafka.address, "survivors", RECORDS) == RECORDS
        os.kill(first.kafka.pid or 0, signal.SIGKILL)
        second = local.up(settings, report=lines.append, external_triton=stack.triton.url)
        assert second.kafka.address == first.kafka.address
        assert second.kafka.pid != first.kafka.pid
        assert consume(second.kafka.address, "survivors", RECORDS) == [str(n).encode() for n in range(RECORDS)]
        os.kill(second.kafka.pid or 0, signal.SIGKILL)
        assert wait_for(lambda: not local.status(settings).kafka.running, timeout_s=60)
        assert not local.status(settings).kafka.healthy
        third = local.up(settings, report=lines.append, external_triton=stack.triton.url)
        assert third.kafka.address == first.kafka.address
    finally:
        local.down(settings, report=lines.append)
    assert any(line.startswith("kafka") and "stopped after" in line for line in lines)
    assert not (Path(settings.local.home) / "stack.json").exists()
    assert is_free(int(first.kafka.address.rpartition(":")[2]))
    assert local.status(stack).triton.healthy  # an external server is never stopped
    local.down(settings, report=lines.append)
    assert lines[-1] == "nothing runs"


def test_a_running_server_is_not_lost_to_an_external_one(stack: Settings) -> None:
    """An external address beside a running child is refused: the child would run on, unknown to `down`."""
    with pytest.raises(StackError, match="xplat down"):
        local.up(stack, report=lambda _line: None, external_kafka=stack.kafka.bootstrap)


def test_changed_settings_of_a_running_server_are_refused(stack: Settings, tmp_path: Path) -> None:
    """`up` with another model repository than the running Triton serves says so instead of ignoring it."""
    other = msgspec.structs.replace(stack, model=msgspec.structs.replace(stack.model, repository=str(tmp_path)))
    with pytest.raises(StackError, match="runs with other settings"):
        local.up(other, report=lambda _line: None)


@pytest.mark.parametrize("field", ["kafka_port", "triton_port"])
def test_a_taken_port_is_named(stack_settings: Callable[..., Settings], tmp_path: Path, field: str) -> None:
    """A port that was asked for and is taken stops `up` with its number, before anything is started."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        settings = stack_settings(tmp_path, **{field: port})
        with pytest.raises(StackError, match=f"port {port} is taken.*XPLAT_LOCAL__{field.upper()}"):
            local.up(settings, report=lambda _line: None)
    assert not local.status(settings).kafka.running


def test_an_unwritable_home_is_one_clear_line(tmp_path: Path) -> None:
    """Where the home cannot be made, `up` says which folder and which variable, in one line."""
    (tmp_path / "file").write_bytes(b"")
    settings = Settings(local=LocalSettings(home=str(tmp_path / "file" / "home")))
    with pytest.raises(StackError, match=r"cannot be written.*XPLAT_LOCAL__HOME") as caught:
        local.up(settings, report=lambda _line: None)
    assert "\n" not in str(caught.value)
    local.down(settings, report=lambda _line: None)


@pytest.mark.parametrize(
    ("jars", "complaint"),
    [
        ({"a.jar": b"altered", "b.jar": b"b"}, "a.jar is not the published file"),
        ({"a.jar": b"a"}, "missing b.jar"),
        ({"a.jar": b"a", "b.jar": b"b", "c.jar": b"c"}, "unknown c.jar"),
    ],
)
def test_only_the_locked_jars_may_run(tmp_path: Path, jars: dict[str, bytes], complaint: str) -> None:
    """A jar that is altered, missing or unknown is refused by name."""
    known = {f"{n}.jar": hashlib.sha256(n.encode()).hexdigest() for n in "ab"}
    lock = JarLock(name="letters", version="0", endpoint="", jars=known)
    for name, content in jars.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(StackError, match=complaint):
        check_jars([tmp_path / name for name in jars], lock)


def test_a_tampered_jar_starts_nothing(
    stack: Settings, stack_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    """`up` checks every jar at every start: one changed byte on disk, and no broker is started."""
    settings = stack_settings(tmp_path)
    home, jars = Path(settings.local.home), []
    home.mkdir(parents=True)
    for jar in msgspec.json.decode((Path(stack.local.home) / "kafka-jars.json").read_bytes(), type=list[str]):
        path = Path(jar)
        if path.name.startswith("kafka-clients"):
            path = Path(shutil.copy(path, tmp_path))
            path.write_bytes(path.read_bytes()[:-1] + b"\xff")
        jars.append(str(path))
    (home / "kafka-jars.json").write_bytes(msgspec.json.encode(jars))
    with pytest.raises(StackError, match=r"kafka-clients-.* is not the published file"):
        local.up(settings, report=lambda _line: None, external_triton=stack.triton.url)
    assert not local.status(settings).kafka.running


def test_a_server_that_dies_while_starting_is_explained(
    stack: Settings, stack_settings: Callable[..., Settings], tmp_path: Path
) -> None:
    """The error names the log file and repeats its last complaint, so that nobody has to guess."""
    settings = stack_settings(tmp_path)
    data = Path(settings.local.home) / "kafka"
    data.mkdir(parents=True)
    (data / "meta.properties").write_text("version=1\ncluster.id=x\nnode.id=7\n", encoding="utf-8")
    with pytest.raises(StackError, match=r"kafka stopped while starting: .*Stored node id 7.*kafka\.log"):
        local.up(settings, report=lambda _line: None, external_triton=stack.triton.url)
    local.down(settings, report=lambda _line: None)


def test_external_servers_must_answer(
    stack_settings: Callable[..., Settings], tmp_path: Path, stack: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An external address where nobody answers is told as such, and as retriable."""
    monkeypatch.setattr(stack_module, "EXTERNAL_WITHIN_S", 0.5)
    settings, nobody = stack_settings(tmp_path), f"127.0.0.1:{free_port()}"
    with pytest.raises(KafkaUnavailable, match=nobody):
        local.up(settings, report=lambda _line: None, external_kafka=nobody)
    with pytest.raises(TritonUnavailable, match=nobody):
        local.up(settings, report=lambda _line: None, external_kafka=stack.kafka.bootstrap, external_triton=nobody)


def test_a_started_process_is_known_at_once_and_stopped_by_force_where_needed(tmp_path: Path) -> None:
    """A process is alive from the moment `spawn` returns; one that ignores SIGTERM is killed, and both are reaped."""
    for number in range(50):
        child = spawn(["/bin/sleep", "60"], log=tmp_path / f"{number}.log", env={})
        assert alive(child)
        assert not stop(child, patience_s=10)
        assert not alive(child)
    log = tmp_path / "stubborn.log"
    stubborn = spawn(["/bin/sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"], log=log, env={})
    assert wait_for(lambda: b"ready" in log.read_bytes(), timeout_s=60)
    assert stop(stubborn, patience_s=0.2)
    assert not Path(f"/proc/{stubborn.pid}").exists()


def test_a_reused_pid_is_left_alone(tmp_path: Path) -> None:
    """A pid that now belongs to another program is neither reported as ours nor stopped."""
    ours = spawn(["/bin/sleep", "60"], log=tmp_path / "log", env={})
    try:
        for stranger in (
            msgspec.structs.replace(ours, start_ticks=ours.start_ticks - 1),
            msgspec.structs.replace(ours, command_sha256="0" * 64),
        ):
            assert wait_for(lambda stranger=stranger: not alive(stranger), timeout_s=60)  # type: ignore[misc]
            assert not stop(stranger, patience_s=1)
        assert alive(ours)
    finally:
        stop(ours, patience_s=10)


def test_a_python_without_triton_is_told_what_to_do() -> None:
    """Python 3.13 has no local Triton; the error says which Python has, and what to set instead."""
    with pytest.raises(StackError, match=r"3\.11 or 3\.12.*XPLAT_TRITON__URL"):
        triton.check_python((3, 13))


@pytest.mark.parametrize(("version", "used"), [("21.0.8", True), ("17", True), ("11.0.2", False), ("1.8.0_392", False)])
def test_a_new_enough_java_home_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, version: str, used: bool
) -> None:
    """The JVM of JAVA_HOME is taken from version 17 on; an older one is passed over for the one from PyPI."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "java").touch(0o755)
    (tmp_path / "release").write_text(f'IMPLEMENTOR="x"\nJAVA_VERSION="{version}"\n', encoding="utf-8")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    assert (kafka.find_java() == tmp_path / "bin" / "java") is used
    assert kafka.find_java().is_file()


def test_the_last_words_are_the_last_complaint(tmp_path: Path) -> None:
    """Out of a Java log comes the cause, not the stack frame or the shutdown chatter below it."""
    log = tmp_path / "kafka.log"
    log.write_text(
        "INFO starting\nERROR Exiting due to fatal exception\njava.lang.RuntimeException: x\n\tat a.b(C.java:1)\n"
        "Caused by: java.net.BindException: Address in use\n\t... 9 more\nINFO shut down\n",
        encoding="utf-8",
    )
    assert last_words(log) == "Caused by: java.net.BindException: Address in use"
