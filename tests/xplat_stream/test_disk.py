"""A file is replaced whole or not at all; a lock names its holder and dies with it."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from xplat_stream.disk import held, write_whole, written_whole
from xplat_stream.errors import OperatorError

if TYPE_CHECKING:
    from pathlib import Path

HOLD = """
import sys, time
from pathlib import Path
from xplat_stream.disk import held
with held(Path(sys.argv[1]), "release 7 is being promoted"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    """Whoever dies while writing leaves the old content and nothing else."""
    path = tmp_path / "deep" / "file"
    write_whole(path, b"old")
    with pytest.raises(KeyboardInterrupt), written_whole(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert (path.read_bytes(), list(path.parent.iterdir())) == (b"old", [path])


def test_a_second_one_is_told_who_is_at_it(tmp_path: Path) -> None:
    """By what, which process and where; killed, it has let go."""
    lock = tmp_path / "lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    with holder.stdout:
        holder.stdout.readline()
        told = rf"release 7 is being promoted since .*Z, by process {holder.pid} on \S+ \("
        with pytest.raises(OperatorError, match=told), held(lock, "release 8 is being promoted"):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait(60)
    with held(lock, "release 8 is being promoted"):
        pass


def test_who_is_patient_comes_next(tmp_path: Path) -> None:
    """A program waits for the one before it; a lock whose holder has not said yet who it is says so."""
    lock = tmp_path / "lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    with holder.stdout:
        holder.stdout.readline()
        lock.write_bytes(b"")
        with pytest.raises(OperatorError, match="another process"), held(lock, "more", patience_s=0.2):
            pass
        holder.send_signal(signal.SIGKILL)
        with held(lock, "more", patience_s=60):
            pass
        holder.wait(60)
