"""What the local stack remembers on disk: who runs where (`stack.json`), and which ports were used (`ports.json`).

`stack.json` exists while a stack is up; its `settings` part is what every other command reads the addresses from.
`ports.json` stays after `down`, so that the next `up` comes back at the same addresses.
"""

from __future__ import annotations

import fcntl
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

import msgspec

from xplat_stream.disk import write_whole
from xplat_stream.errors import StackError
from xplat_stream.local.process import Child, alive
from xplat_stream.settings import STACK_FILE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PORTS_FILE: Final = "ports.json"
LOCK_FILE: Final = "stack.lock"


class Server(msgspec.Struct, frozen=True, omit_defaults=True):
    """One server of the stack. Without a `child` it is somebody else's: used, never stopped."""

    address: str
    child: Child | None = None
    folder: str = ""
    log: str = ""

    @property
    def running(self) -> bool:
        """Whether our child runs; somebody else's server is for its health check to judge."""
        return self.child is not None and alive(self.child)


class Stack(msgspec.Struct, frozen=True, omit_defaults=True):
    """Content of `stack.json`."""

    settings: dict[str, dict[str, str]] = {}
    kafka: Server | None = None
    triton: Server | None = None

    @classmethod
    def of(cls, *, kafka: Server | None, triton: Server | None) -> Stack:
        """Record the servers, and their addresses as the settings other commands read."""
        settings = {}
        if kafka:
            settings["kafka"] = {"bootstrap": kafka.address}
        if triton:
            settings["triton"] = {"url": triton.address}
        return cls(settings=settings, kafka=kafka, triton=triton)


class Ports(msgspec.Struct, frozen=True):
    """Ports of the last run; 0 where there was none."""

    kafka: int = 0
    kafka_controller: int = 0
    triton: int = 0
    triton_http: int = 0
    triton_metrics: int = 0


def read_stack(home: Path) -> Stack:
    """Read `stack.json`; an empty stack when there is none."""
    path = home / STACK_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Stack)
    except (FileNotFoundError, NotADirectoryError):
        return Stack()
    except (OSError, msgspec.DecodeError) as error:
        raise StackError(
            f"the local stack's file cannot be read: {error}",
            where=str(path),
            expected="the JSON that `xplat up` writes",
            fix="Delete the file; end the servers it named by hand where they still run.",
        ) from error


def read_ports(home: Path) -> Ports:
    """Read the last run's ports; they are a convenience, so anything unreadable counts as none."""
    with suppress(OSError, msgspec.DecodeError):
        return msgspec.json.decode((home / PORTS_FILE).read_bytes(), type=Ports)
    return Ports()


def write(path: Path, value: msgspec.Struct) -> None:
    """Replace a file, so that a reader never sees half of it. Raises `OSError`."""
    write_whole(path, msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")


@contextmanager
def locked(home: Path) -> Iterator[None]:
    """Let one `up` or `down` at a time work on a home; the second waits, then finds the work done."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        lock = (home / LOCK_FILE).open("ab")
    except OSError as error:
        raise StackError(
            f"the folder of the local stack cannot be written: {error.strerror}",
            where=str(home),
            expected="a folder this user may write",
            fix="Set XPLAT_LOCAL__HOME to another folder.",
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
