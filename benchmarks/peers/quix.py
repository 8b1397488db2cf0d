"""Quix Streams."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from benchmarks.peers.environments import installer, python_of, version_of
from benchmarks.peers.peer import Peer, Place, last_values, windows_of_peers

if TYPE_CHECKING:
    from benchmarks.windows import Windows


def _windows(place: Place) -> Windows:
    held = last_values(place.settings, f"changelog__quix--{place.source}--default")
    return windows_of_peers(
        (key.partition(b"|")[0].decode(), msgspec.json.decode(value)) for key, value in held.items()
    )


QUIX = Peer(
    "quix",
    f"Quix Streams {version_of('quix')}",
    "RocksDB and changelog; at least once, and folding twice changes nothing",
    prepare=installer("quix"),
    command=lambda _: [str(python_of("quix")), "-m", "benchmarks.programs.quix"],
    windows=_windows,
)
