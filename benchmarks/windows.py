"""Windows as they are compared: whoever made them, of equal windows come equal bytes. Pure.

A peer keeps its events as ``[milliseconds, CloudEvents id, action, object id]``, a worker of this project as rows of
its own; both are brought to the part of a row that says when, which event, which text and which action.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING

from xplat_stream.event import ACTION_INDEX, TextHash, hash_text
from xplat_stream.window import TIME_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from xplat_stream.window import Row

Windows = dict[str, list[bytes]]
"""User id → rows, oldest first."""

SOURCE = "//bench"
"""CloudEvents source of every event of the workload."""


@lru_cache(maxsize=1 << 16)
def text_of(item: str) -> TextHash:
    """Return the hash of what the workload's title and category give to read of an object."""
    return hash_text(f"Item number {item.rpartition('-')[2]} of the benchmark. Sports")


def row_of_worker(row: Row) -> bytes:
    """Return what is compared of a row of this project: time 6, event digest 8, text hash 8, action 1."""
    return row[:14] + row[18:]


def row_of_peer(kept: Sequence[int | str]) -> bytes:
    """Return the same of an event as peers keep it."""
    time, name, action, item = kept
    digest = blake2b(f"{SOURCE}#{name}".encode(), digest_size=16).digest()[:8]
    return int(time).to_bytes(TIME_BYTES, "big") + digest + text_of(str(item)) + bytes((ACTION_INDEX[str(action)],))


def hash_of(windows: Mapping[str, Sequence[bytes]]) -> str:
    """Return one hash of all windows of all users."""
    whole = blake2b(digest_size=16)
    for user in sorted(windows):
        rows = windows[user]
        whole.update(f"{user} {len(rows)} ".encode())
        whole.update(b"".join(rows))
    return whole.hexdigest()


def differences(expected: Mapping[str, Sequence[bytes]], found: Mapping[str, Sequence[bytes]]) -> list[str]:
    """Return a line for every user whose windows differ: what is lacking, what is too many, or that they are mixed."""
    lines = []
    for user in sorted(expected.keys() | found.keys()):
        want, have = expected.get(user, ()), found.get(user, ())
        if list(want) == list(have):
            continue
        lacking, extra = _without(want, have), _without(have, want)
        if lacking or extra:
            lines.append(f"{user} lacks {lacking} of {len(want)} events and has {extra} too many")
        else:
            lines.append(f"{user} has its {len(want)} events in another order or more than once")
    return lines


def _without(rows: Iterable[bytes], others: Iterable[bytes]) -> int:
    return len(set(rows) - set(others))
