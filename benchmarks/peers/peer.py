"""The shape every peer has: a command that folds a topic into windows, and a way to read what it kept."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec

from benchmarks.windows import row_of_peer
from xplat_stream.kafka.log import read_span, spans

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from benchmarks.windows import Windows
    from xplat_stream.settings import Settings

ROOT_FOLDER: Final = ".xplat/peers"
"""Where environments and class files of peers are kept, below the project."""


@dataclass(frozen=True)
class Place:
    """Where one peer works: topics on the broker of `settings`, and an empty folder of its own."""

    settings: Settings
    home: Path
    source: str
    output: str

    def environment(self) -> dict[str, str]:
        """Return what `benchmarks.programs` read."""
        return {
            **os.environ,
            "BENCH_BOOTSTRAP": self.settings.kafka.bootstrap,
            "BENCH_SOURCE": self.source,
            "BENCH_OUTPUT": self.output,
            "BENCH_PARTITIONS": str(self.settings.kafka.partitions),
            "BENCH_FOLDER": str(self.home),
        }


class _Summary(msgspec.Struct, gc=False):
    end: int


_decode_summary = msgspec.json.Decoder(_Summary).decode


def end_of_summary(value: bytes) -> int:
    """Return when the newest event of a published window happened, in milliseconds."""
    return _decode_summary(value).end


@dataclass(frozen=True)
class Peer:
    """One system, or one configuration of it."""

    name: str
    """As `--peers` and the figures say it."""
    title: str
    promise: str
    """What is true of its state and output after a crash, in a line."""
    prepare: Callable[[Callable[[str], None]], None]
    """Install what is missing. Raises `StackError`."""
    command: Callable[[Place], Sequence[str]]
    windows: Callable[[Place], Windows]
    """Read the final window of every user, from the most durable place it has."""
    environment: Callable[[Place], Mapping[str, str]] = Place.environment
    topics: Callable[[Place], Sequence[str]] = lambda _: ()
    """Compacted topics that it expects to be there."""
    end_of: Callable[[bytes], int] = end_of_summary
    output: str = ""
    """Its output topic where the name is not free; else `bench.<name>`."""
    slow: bool = False
    """Whether it is given a tenth of the workload."""
    keeps_promise: bool = field(default=True, kw_only=True)
    """Whether it promises what a worker does: every event in its window exactly once, output at least once."""


def last_values(settings: Settings, topic: str) -> dict[bytes, bytes]:
    """Return the last value of every key of a topic, tombstones left out. Raises `DeliveryError`."""
    last: dict[bytes, bytes | None] = {}
    for span in spans(settings, [topic]):
        for messages in read_span(settings, span):
            last.update((message.key(), message.value()) for message in messages)
    return {key: value for key, value in last.items() if value is not None}


def windows_of_peers(kept: Iterable[tuple[str, Iterable[Sequence[int | str]]]]) -> Windows:
    """Return windows as they are compared, from what the programs keep."""
    return {user: [row_of_peer(event) for event in events] for user, events in kept}
