"""The systems that the fold path is measured beside, one module each, all of one shape (`Peer`)."""

from __future__ import annotations

from typing import Final

from benchmarks.peers.bytewax import BYTEWAX
from benchmarks.peers.faust import FAUST
from benchmarks.peers.floor import FLOOR
from benchmarks.peers.kafka_streams import KAFKA_STREAMS
from benchmarks.peers.ours import OURS
from benchmarks.peers.pathway import PATHWAY
from benchmarks.peers.peer import Peer, Place
from benchmarks.peers.quix import QUIX
from xplat_stream.errors import SettingsError

__all__ = ["PEERS", "Peer", "Place", "chosen"]

PEERS: Final[dict[str, Peer]] = {
    peer.name: peer for peer in (OURS, FLOOR, PATHWAY, BYTEWAX, QUIX, *KAFKA_STREAMS, FAUST)
}


def chosen(names: str) -> list[Peer]:
    """Return the peers of a comma-separated list, or all of them, ours first. Raises `SettingsError`."""
    wanted = set(PEERS) if names == "all" else {name.strip() for name in names.split(",")} | {OURS.name}
    if unknown := sorted(wanted - PEERS.keys()):
        raise SettingsError(
            f"unknown peers: {', '.join(unknown)}",
            where="--peers",
            expected=f"all, or some of {', '.join(PEERS)}",
            fix="Correct the names.",
        )
    return [peer for name, peer in PEERS.items() if name in wanted]
