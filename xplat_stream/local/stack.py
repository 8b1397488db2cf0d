"""`up`, `down` and `status` of the local stack.

`up` prepares both servers before it starts either, so that what is missing is told while nothing runs; it then
starts both at once and waits for each to answer. Calling it again finds what runs and starts only what does not.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from xplat_stream.errors import KafkaUnavailable, StackError, TritonUnavailable
from xplat_stream.local import health, kafka, triton
from xplat_stream.local.process import LOOPBACK, choose_port, is_free, is_open, last_words, spawn, stop, wait_for
from xplat_stream.local.record import PORTS_FILE, Server, Stack, locked, read_ports, read_stack, write
from xplat_stream.settings import STACK_FILE

if TYPE_CHECKING:
    from collections.abc import Callable

    from xplat_stream.settings import Settings

HEALTHY_WITHIN_S: Final = 120.0  # measured: 4 s on two cores; the rest is for a loaded machine
EXTERNAL_WITHIN_S: Final = 10.0
STATUS_WITHIN_S: Final = 2.0
STOP_PATIENCE_S: Final = 20.0


class ServerState(msgspec.Struct, frozen=True):
    """How one server is."""

    name: str
    address: str
    """host:port; empty where it was never started."""
    pid: int | None
    running: bool
    healthy: bool
    external: bool
    """Somebody else's server: used, never started or stopped."""
    up_s: float | None
    folder: str
    """Kafka's data, or the model repository Triton serves."""
    log: str


class StackState(msgspec.Struct, frozen=True):
    """How the local stack is."""

    home: str
    kafka: ServerState
    triton: ServerState


class _Launch(msgspec.Struct, frozen=True):
    """A server that is ready to be started."""

    name: str
    server: Server
    command: list[str]
    env: Mapping[str, str]

    def start(self) -> Server:
        child = spawn(self.command, log=Path(self.server.log), env=self.env)
        return msgspec.structs.replace(self.server, child=child)


def up(
    settings: Settings,
    *,
    report: Callable[[str], None],
    external_kafka: str | None = None,
    external_triton: str | None = None,
) -> StackState:
    """Start what does not run yet and return once all of it answers.

    A server given as `external_kafka` or `external_triton` is checked and used, and none is started in its place.
    """
    home = _home(settings)
    with locked(home):
        before = read_stack(home)
        began = time.monotonic()
        try:
            broker = _prepared_kafka(settings, home, before.kafka, external_kafka, report)
            server = _prepared_triton(settings, home, before.triton, external_triton, report)
            fresh = {it.name for it in (broker, server) if isinstance(it, _Launch)}
            # Written after each start, so that an interrupted `up` leaves nothing `down` does not know of.
            if isinstance(broker, _Launch):
                broker = broker.start()
                write(home / STACK_FILE, Stack.of(kafka=broker, triton=before.triton))
            if isinstance(server, _Launch):
                server = server.start()
            write(home / STACK_FILE, Stack.of(kafka=broker, triton=server))
        except OSError as error:
            raise StackError(
                f"the local stack cannot be prepared: {error}",
                where=str(home),
                expected="a folder this user may write, with room",
                fix="Free or change the path named above.",
            ) from error
        for name, started, probe in (("kafka", broker, _kafka_is_up), ("triton", server, _triton_is_up)):
            how = "already up" if started.child else "answers (external)"
            if name in fresh:
                _await_healthy(name, started, probe)
                how = f"up after {time.monotonic() - began:.1f} s"
            report(f"{name} {started.address} {how}")
    return _states(home, broker, server, healthy=True)


def down(settings: Settings, *, report: Callable[[str], None]) -> None:
    """Stop what `up` started, Triton first; do nothing where nothing runs."""
    home = _home(settings)
    if not home.is_dir():
        report("nothing runs")
        return
    with locked(home):
        stack = read_stack(home)
        stopped = [_stopped(*pair, report) for pair in (("triton", stack.triton), ("kafka", stack.kafka))]
        (home / STACK_FILE).unlink(missing_ok=True)
        if not any(stopped):
            report("nothing runs")


def status(settings: Settings) -> StackState:
    """Look at both servers without changing anything."""
    home = _home(settings)
    stack = read_stack(home)
    return _states(home, stack.kafka, stack.triton, healthy=None)


def _home(settings: Settings) -> Path:
    return Path(settings.local.home).resolve()


def _prepared_kafka(
    settings: Settings,
    home: Path,
    before: Server | None,
    external: str | None,
    report: Callable[[str], None],
) -> Server | _Launch:
    if external:
        _not_ours("kafka", before)
        if not health.kafka_answers(external, timeout_s=EXTERNAL_WITHIN_S):
            raise KafkaUnavailable(
                f"no Kafka answers within {EXTERNAL_WITHIN_S:.0f} s",
                where=external,
                expected="a running broker",
                fix="Start it, or unset XPLAT_KAFKA__BOOTSTRAP to have `xplat up` start one.",
            )
        return Server(address=external)
    data = str(home / "kafka")
    if before and _still_serves("kafka", before, _kafka_is_up, port=settings.local.kafka_port, folder=data):
        return before
    last = read_ports(home)
    port = choose_port(wanted=settings.local.kafka_port, previous=last.kafka, variable="XPLAT_LOCAL__KAFKA_PORT")
    controller = choose_port(wanted=0, previous=last.kafka_controller, variable="XPLAT_LOCAL__KAFKA_PORT")
    _report_moved("kafka", last.kafka, port, settings.local.kafka_port, report)
    write(home / PORTS_FILE, msgspec.structs.replace(last, kafka=port, kafka_controller=controller))
    command = kafka.command(
        home=home, port=port, controller_port=controller, heap_mb=settings.local.kafka_heap_mb, report=report
    )
    server = Server(address=f"{LOOPBACK}:{port}", folder=data, log=str(home / "logs" / "kafka.log"))
    return _Launch(name="kafka", server=server, command=command, env=dict(os.environ))


def _prepared_triton(
    settings: Settings,
    home: Path,
    before: Server | None,
    external: str | None,
    report: Callable[[str], None],
) -> Server | _Launch:
    if external:
        _not_ours("triton", before)
        silent = [url for url in external.split(",") if not health.triton_answers(url, timeout_s=EXTERNAL_WITHIN_S)]
        if silent:
            raise TritonUnavailable(
                f"no Triton says it is ready within {EXTERNAL_WITHIN_S:.0f} s",
                where=",".join(silent),
                expected="a running server's gRPC address",
                fix="Start it, or unset XPLAT_TRITON__URL to have `xplat up` start one.",
            )
        return Server(address=external)
    repository = Path(settings.model.repository).resolve()
    if before and _still_serves(
        "triton", before, _triton_is_up, port=settings.local.triton_port, folder=str(repository)
    ):
        return before
    repository.mkdir(parents=True, exist_ok=True)
    last = read_ports(home)
    variable = "XPLAT_LOCAL__TRITON_PORT"
    ports = msgspec.structs.replace(
        last,
        triton=choose_port(wanted=settings.local.triton_port, previous=last.triton, variable=variable),
        triton_http=choose_port(wanted=0, previous=last.triton_http, variable=variable),
        triton_metrics=choose_port(wanted=0, previous=last.triton_metrics, variable=variable),
    )
    _report_moved("triton", last.triton, ports.triton, settings.local.triton_port, report)
    write(home / PORTS_FILE, ports)
    command = triton.command(
        home=home,
        repository=repository,
        port=ports.triton,
        http_port=ports.triton_http,
        metrics_port=ports.triton_metrics,
    )
    server = Server(address=f"{LOOPBACK}:{ports.triton}", folder=str(repository), log=str(home / "logs" / "triton.log"))
    return _Launch(name="triton", server=server, command=command, env=triton.environment())


def _not_ours(name: str, before: Server | None) -> None:
    """Refuse to lose sight of a child that still runs."""
    if before and before.running:
        raise StackError(
            f"an external {name} is set while the local one runs",
            where=before.address,
            expected="one of the two",
            fix="Run `xplat down` first, or unset the variable.",
        )


def _still_serves(name: str, before: Server, probe: Callable[[str], bool], *, port: int, folder: str) -> bool:
    """Tell whether the server of an earlier `up` can be kept; one that was just killed is seen off first.

    Settings that it was not started with are refused rather than ignored.
    """
    if not before.running:
        return False
    if (port and before.address != f"{LOOPBACK}:{port}") or before.folder != folder:
        raise StackError(
            f"{name} runs with other settings than these",
            where=f"{before.address}, {before.folder}",
            expected=f"port {port or 'any'}, {folder}",
            fix="Run `xplat down`, then `xplat up`.",
        )
    if wait_for(lambda: not before.running or probe(before.address), timeout_s=HEALTHY_WITHIN_S):
        return before.running
    raise _unhealthy(name, before)


def _report_moved(name: str, last: int, port: int, wanted: int, report: Callable[[str], None]) -> None:
    if last and not wanted and port != last and not is_free(last):
        report(f"{name}: port {last} of the last run is taken, using {port}")


def _kafka_is_up(address: str) -> bool:
    return (
        _is_open(address) and health.kafka_answers(address, timeout_s=2) and health.kafka_accepts(address, timeout_s=5)
    )


def _triton_is_up(address: str) -> bool:
    return _is_open(address) and health.triton_answers(address, timeout_s=2)


def _tritons_answer(addresses: str, *, timeout_s: float) -> bool:
    return all(health.triton_answers(url, timeout_s=timeout_s) for url in addresses.split(","))


def _is_open(address: str) -> bool:
    return is_open(int(address.rpartition(":")[2]))


def _await_healthy(name: str, server: Server, probe: Callable[[str], bool]) -> None:
    if wait_for(lambda: not server.running or probe(server.address), timeout_s=HEALTHY_WITHIN_S) and server.running:
        return
    raise _unhealthy(name, server)


def _unhealthy(name: str, server: Server) -> StackError:
    how = f"does not answer after {HEALTHY_WITHIN_S:.0f} s" if server.running else "stopped while starting"
    return StackError(
        f"{name} {how}: {last_words(Path(server.log))}",
        where=server.log,
        expected=f"a healthy {name}",
        fix="Read the log, correct what it names, and run `xplat down`, then `xplat up`.",
    )


def _stopped(name: str, server: Server | None, report: Callable[[str], None]) -> bool:
    if server is None or server.child is None or not server.running:
        return False
    began = time.monotonic()
    forced = stop(server.child, patience_s=STOP_PATIENCE_S)
    report(f"{name} {server.address} {'killed' if forced else 'stopped'} after {time.monotonic() - began:.1f} s")
    return True


def _states(home: Path, broker: Server | None, server: Server | None, *, healthy: bool | None) -> StackState:
    return StackState(
        home=str(home),
        kafka=_state("kafka", broker, health.kafka_answers, healthy=healthy),
        triton=_state("triton", server, _tritons_answer, healthy=healthy),
    )


def _state(name: str, server: Server | None, answers: Callable[..., bool], *, healthy: bool | None) -> ServerState:
    """Describe a server; `healthy` is passed in where it was just found out."""
    server = server or Server(address="")
    external = bool(server.address) and server.child is None
    running = server.running
    if healthy is None:
        healthy = (running or external) and answers(server.address, timeout_s=STATUS_WITHIN_S)
    return ServerState(
        name=name,
        address=server.address,
        pid=server.child.pid if server.child and running else None,
        running=running or (external and healthy),
        healthy=healthy,
        external=external,
        up_s=round(time.time() - server.child.started_at, 1) if server.child and running else None,
        folder=server.folder,
        log=server.log,
    )
