"""A worker of this project, without a release: what the figure holds is everything but the model."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from benchmarks.events import SPEC
from benchmarks.peers.peer import Peer, Place, last_values
from benchmarks.stack import environment, faust_worker
from benchmarks.windows import row_of_worker
from xplat_stream.kafka.topics import PROFILES, changelog_topic
from xplat_stream.state import USER_PREFIX, UserState

if TYPE_CHECKING:
    from benchmarks.windows import Windows

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class _Window(msgspec.Struct, gc=False):
    end: datetime


class _Profile(msgspec.Struct, gc=False):
    window: _Window


class _Record(msgspec.Struct, gc=False):
    data: _Profile


_decode = msgspec.json.Decoder(_Record).decode


def _end_of(value: bytes) -> int:
    return round((_decode(value).data.window.end - _EPOCH).total_seconds() * 1000)


def _command(_: Place) -> list[str]:
    return faust_worker("streams.app")


def _windows(place: Place) -> Windows:
    held = last_values(place.settings, changelog_topic(place.settings.worker.app))
    return {
        key[len(USER_PREFIX) :].decode(): [row_of_worker(row) for _, row in UserState.unpack(SPEC, value).window.rows()]
        for key, value in held.items()
        if key.startswith(USER_PREFIX)
    }


OURS = Peer(
    "ours",
    "xplat-stream worker",
    "RocksDB and changelog; each event in its window exactly once, profiles at least once",
    prepare=lambda _: None,
    command=_command,
    environment=lambda place: environment(place.settings, place.home),
    windows=_windows,
    end_of=_end_of,
    output=PROFILES,
)
