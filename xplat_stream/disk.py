"""What a crash must not leave half done: files that are replaced whole, and a lock that dies with its holder."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING, Final

import msgspec

from xplat_stream.errors import OperatorError
from xplat_stream.failpoints import reached

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_ASK_AGAIN_S: Final = 0.1


@contextmanager
def written_whole(path: Path) -> Iterator[IO[bytes]]:
    """Replace a file by what is written inside the block: whoever reads it, even after a crash, finds old or new.

    A block that raises leaves the old one. Raises `OSError`.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        reached("file.written")
        partial.replace(path)
        reached("file.replaced")
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def write_whole(path: Path, content: bytes) -> None:
    """Replace a small file. As `written_whole`."""
    with written_whole(path) as file:
        file.write(content)


def flush_folder(path: Path) -> None:
    """Have the names in a folder survive a power cut. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _Holder(msgspec.Struct, frozen=True):
    """Who has a lock, as its file says it."""

    doing: str
    pid: int
    host: str
    since: datetime

    def __str__(self) -> str:
        return f"{self.doing} since {self.since:%H:%M:%S}Z, by process {self.pid} on {self.host}"


@contextmanager
def held(path: Path, doing: str, *, patience_s: float = 0.0) -> Iterator[None]:
    """Hold a lock file inside the block. The system lets it go when the process dies, whatever it dies of.

    `doing`: what a second one is told, such as "release 7 is being promoted". Raises `OperatorError` that names who
    has it, where that one did not let go within `patience_s`; `OSError` when the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + patience_s
    with path.open("a+b") as lock:
        while not _taken(lock):
            if time.monotonic() >= deadline:
                raise OperatorError(
                    _holder(lock),
                    where=str(path),
                    expected="one at a time",
                    fix="Wait until that is through, or end that process.",
                )
            time.sleep(_ASK_AGAIN_S)
        lock.truncate(0)
        lock.write(msgspec.json.encode(_Holder(doing, os.getpid(), socket.gethostname(), datetime.now(UTC))))
        lock.flush()
        yield


def _taken(lock: IO[bytes]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(lock: IO[bytes]) -> str:
    """Return who holds a lock, in words. Who has just taken it may not have said so yet."""
    lock.seek(0)
    try:
        return str(msgspec.json.decode(lock.read(), type=_Holder))
    except ValueError:
        return "another process is at work here"
