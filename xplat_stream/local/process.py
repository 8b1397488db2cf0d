"""Child processes that outlive the command that started them, their ports and their logs.

A server is started detached (own session, so that Ctrl-C in the terminal does not reach it) and from then on
known by its pid alone. Pids are reused, so a pid counts as ours only while `/proc` shows the start time and the
command line it was started with.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from xplat_stream.errors import StackError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

LOOPBACK: Final = "127.0.0.1"
_KILLED_WITHIN_S: Final = 10.0
"""On a busy machine also the kernel takes its time."""

POLL_S: Final = 0.05
# Below Linux' ephemeral range (32768 up): no outgoing connection takes the port between a `down` and the next `up`.
_PORTS: Final = range(20_000, 30_000)
_TAIL_BYTES: Final = 64 * 1024
_TROUBLE: Final = re.compile(r"^E\d{4} |\b(?:ERROR|FATAL|error:)|(?:Error|Exception): |^Caused by: ")
_NOISE: Final = re.compile(r"^\s*(?:at |\.\.\. \d+ more|[+|])")


class Child(msgspec.Struct, frozen=True):
    """A process as `stack.json` remembers it."""

    pid: int
    start_ticks: int
    """When the kernel started it, in clock ticks since boot: with the pid, that is unique."""
    command_sha256: str
    started_at: float
    """Seconds since the epoch."""


def spawn(command: Sequence[str], *, log: Path, env: Mapping[str, str]) -> Child:
    """Start `command` detached, its output in `log`; the log of the run before is kept as `<log>.1`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        log.replace(log.with_name(f"{log.name}.1"))
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    # Not `subprocess`: its handle insists on being waited for, and this process is meant to outlive us.
    pid = os.posix_spawn(
        command[0],
        list(command),
        dict(env),
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), flags, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        setsigdef=[signal.SIGPIPE],  # Python ignores it, and that would be inherited
    )
    return Child(
        pid=pid,
        start_ticks=_stat(pid).start_ticks,
        command_sha256=_fingerprint(b"".join(os.fsencode(word) + b"\0" for word in command)),
        started_at=time.time(),
    )


def alive(child: Child) -> bool:
    """Tell whether the process runs, and still is the one that was started.

    A process that is on its way out counts as alive until its last thread is gone: till then it holds its port.
    """
    with suppress(ChildProcessError):
        os.waitpid(child.pid, os.WNOHANG)  # ours and dead: reap it
    stat = _stat(child.pid)
    if stat.gone or stat.start_ticks != child.start_ticks:
        return False
    try:
        cmdline = Path(f"/proc/{child.pid}/cmdline").read_bytes()
    except OSError:
        return False
    # Empty just after the start and on the way out, when the kernel has no program laid out for it.
    return not cmdline or _fingerprint(cmdline) == child.command_sha256


def memory_of(pid: int) -> int:
    """Return the bytes of memory that a process and all its children hold; what they share is counted once."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError):  # a process may end while it is looked at
            parent = int((folder / "stat").read_text("ascii", "replace").rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(folder.name))
    held, waiting = 0, [pid]
    while waiting:
        one = waiting.pop()
        waiting += children.get(one, [])
        with suppress(OSError):
            rollup = Path(f"/proc/{one}/smaps_rollup").read_text("ascii")
            held += sum(int(line.split()[1]) * 1024 for line in rollup.splitlines() if line.startswith("Pss:"))
    return held


def stop(child: Child, *, patience_s: float) -> bool:
    """End the process, by force after `patience_s`; tell whether force was needed."""
    if not alive(child):
        return False
    os.kill(child.pid, signal.SIGTERM)
    if wait_for(lambda: not alive(child), timeout_s=patience_s):
        return False
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)  # the group: Triton's stubs with it
    wait_for(lambda: not alive(child), timeout_s=_KILLED_WITHIN_S)
    return True


def wait_for(condition: Callable[[], bool], *, timeout_s: float) -> bool:
    """Poll until the condition holds; tell whether it did in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def last_words(log: Path) -> str:
    """Return the line of a log that says most about why its process ended: the last complaint, else the last line."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return "the log cannot be read"
    lines = [line.strip() for line in text.splitlines() if line.strip() and not _NOISE.match(line)]
    complaints = [line for line in lines if _TROUBLE.search(line)]
    return (complaints or lines or ["the log is empty"])[-1][:400]


def is_free(port: int) -> bool:
    """Tell whether a server could listen on the loopback port now."""
    with socket.socket() as probe:
        # As servers do: connections of a killed predecessor in TIME_WAIT do not occupy the port, a listener does.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def is_open(port: int) -> bool:
    """Tell whether somebody listens on the loopback port."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((LOOPBACK, port)) == 0


def choose_port(*, wanted: int, previous: int, variable: str) -> int:
    """Return the port asked for, else the one of the last run, else a free one.

    The last run's comes first so that clients that know the address keep working.
    """
    if wanted:
        if is_free(wanted):
            return wanted
        raise StackError(
            f"port {wanted} is taken by another process",
            where=f"{LOOPBACK}:{wanted}",
            expected="a free port",
            fix=f"Stop what listens there (`ss -ltnp 'sport = :{wanted}'`), or set {variable} to another port or to 0.",
        )
    if previous and is_free(previous):
        return previous
    for _ in range(100):
        port = _PORTS[secrets.randbelow(len(_PORTS))]
        if is_free(port):
            return port
    raise StackError(
        "no free port was found in 100 tries",
        where=f"{LOOPBACK}:{_PORTS.start}-{_PORTS.stop - 1}",
        expected="free loopback ports",
        fix=f"Set {variable} to a free port.",
    )


class _Stat(NamedTuple):
    gone: bool
    start_ticks: int


def _stat(pid: int) -> _Stat:
    """Read what `/proc/<pid>/stat` says; fields are counted from behind the program's name, which may hold anything."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return _Stat(gone=True, start_ticks=0)
    # A zombie nobody reaps is gone; one whose other threads still end is not.
    return _Stat(gone=fields[0] in {b"Z", b"X"} and int(fields[17]) <= 1, start_ticks=int(fields[19]))


def _fingerprint(cmdline: bytes) -> str:
    return hashlib.sha256(cmdline).hexdigest()
