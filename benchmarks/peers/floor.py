"""The hand-written loop that nothing with its promise can be much below."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import msgspec

from benchmarks.peers.peer import Peer, Place, last_values, windows_of_peers

if TYPE_CHECKING:
    from benchmarks.windows import Windows


def _changelog(place: Place) -> str:
    return f"{place.output}-changelog"


def _windows(place: Place) -> Windows:
    held = last_values(place.settings, _changelog(place))
    return windows_of_peers((key.decode(), msgspec.msgpack.decode(value)) for key, value in held.items())


FLOOR = Peer(
    "floor",
    "hand-written loop",
    "RocksDB and changelog; the same where nothing crashes: it cannot recover",
    prepare=lambda _: None,
    command=lambda _: [sys.executable, "-m", "benchmarks.programs.floor"],
    topics=lambda place: [_changelog(place)],
    windows=_windows,
)
