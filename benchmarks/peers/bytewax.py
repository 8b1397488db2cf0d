"""bytewax with SQLite recovery."""

from __future__ import annotations

import pickle
import sqlite3
import subprocess
from contextlib import closing
from typing import TYPE_CHECKING

import msgspec

from benchmarks.peers.environments import installer, python_of, version_of
from benchmarks.peers.peer import Peer, Place, windows_of_peers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.windows import Windows


def _folder(place: Place) -> Path:
    return place.home / "recovery"


def _command(place: Place) -> list[str]:
    python, folder = str(python_of("bytewax")), _folder(place)
    folder.mkdir()
    subprocess.run([python, "-m", "bytewax.recovery", str(folder), "1"], check=True, stdin=subprocess.DEVNULL)
    return [python, "-m", "bytewax.run", "benchmarks.programs.bytewax", "-r", str(folder), "-s", "1", "-b", "0"]


def _windows(place: Place) -> Windows:
    return windows_of_peers(_snapshots(_folder(place) / "part-0.sqlite3"))


def _snapshots(path: Path) -> Iterator[tuple[str, list[list[int | str]]]]:
    """Yield the last snapshot of every user: JSON that a process of this benchmark pickled just now."""
    last = "select state_key, ser_change, max(snap_epoch) from snaps where step_id like '%windows%' group by state_key"
    with closing(sqlite3.connect(path)) as database:
        for user, pickled, _ in database.execute(last):
            yield user, msgspec.json.decode(pickle.loads(pickled))  # noqa: S301


BYTEWAX = Peer(
    "bytewax",
    f"bytewax {version_of('bytewax')}, SQLite recovery",
    "memory, snapshots of a second in SQLite on this host; at least once, and folding twice changes nothing",
    prepare=installer("bytewax"),
    command=_command,
    windows=_windows,
    keeps_promise=False,
)
