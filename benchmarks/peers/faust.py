"""Stock Faust tables."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

import msgspec

from benchmarks.peers.peer import Peer, Place, last_values, windows_of_peers
from benchmarks.stack import faust_worker

if TYPE_CHECKING:
    from benchmarks.windows import Windows

STOCK_APP = "benchmarks.programs.stock_faust"
CHANGELOG = "stock-windows-changelog"


def _command(_: Place) -> list[str]:
    return faust_worker(STOCK_APP)


def _windows(place: Place) -> Windows:
    held = last_values(place.settings, CHANGELOG)
    return windows_of_peers((key.decode(), msgspec.json.decode(value)) for key, value in held.items())


FAUST = Peer(
    "faust",
    f"Faust {version('faust-streaming')} table",
    "RocksDB and changelog; commits can pass state that is not written yet",
    prepare=lambda _: None,
    command=_command,
    topics=lambda _: [CHANGELOG],
    windows=_windows,
    slow=True,
    keeps_promise=False,
)
