"""Pathway."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from benchmarks.peers.environments import installer, python_of, version_of
from benchmarks.peers.peer import Peer, Place, last_values, windows_of_peers

if TYPE_CHECKING:
    from benchmarks.windows import Windows

_decode = msgspec.json.Decoder(list[list[int | str]]).decode


def _end_of(value: bytes) -> int:
    return int(_decode(value)[-1][0])


def _windows(place: Place) -> Windows:
    held = last_values(place.settings, place.output)
    return windows_of_peers((key.decode(), _decode(value)) for key, value in held.items())


PATHWAY = Peer(
    "pathway",
    f"Pathway {version_of('pathway')}, input persisted",
    "memory, inputs kept on this host and folded again; at least once",
    prepare=installer("pathway"),
    command=lambda _: [str(python_of("pathway")), "-m", "benchmarks.programs.pathway"],
    windows=_windows,
    end_of=_end_of,
    keeps_promise=False,
)
