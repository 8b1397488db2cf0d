"""What a worker counts, and the file it shows it in."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from pathlib import Path

METRICS_FILE = "metrics.json"


class Metrics(msgspec.Struct):
    """Counters since the worker started. Written as JSON to `<datadir>/metrics.json` once a second."""

    events: int = 0
    withheld: int = 0
    """Events of users who did not consent to personalization."""
    late: int = 0
    """Events older than the horizon: they changed nothing."""
    repaired: int = 0
    """Windows that events out of order changed behind their newest one."""
    rekeyed: int = 0
    rejected: dict[str, int] = msgspec.field(default_factory=Counter)
    """Dead letters by reason."""
    updates: int = 0
    """Profiles published."""
    scored: int = 0
    """Users whom the head was asked for, those that were scored later included."""
    stale: int = 0
    """Profiles published with scores of an earlier window: the new events could not move them much, or a text was not
    read yet."""
    unscored: int = 0
    """Profiles published before any release was there."""
    degraded: int = 0
    """Profiles published with their last good scores, because scoring was not to be had."""
    rescored: int = 0
    """Profiles scored later, when it was."""
    migrated: int = 0
    """Profiles scored again because another release took over."""
    active_users: int = 0
    """Active users of the partitions owned now, as counted when that release took over."""
    active_scored: int = 0
    """Of those, users whose last profile is of the release in use."""
    silent: list[str] = msgspec.field(default_factory=list)
    """Platforms from which nothing comes at present."""
    restarts: int = 0
    """How often the supervisor has started this worker again."""
    shadow: int = 0
    """The release compared with the active one at present, 0 for none."""
    shadowed: int = 0
    """Windows that both have scored."""
    texts_seen: int = 0
    """Texts that scoring needed, window by window."""
    texts_encoded: int = 0
    """Of those, texts that had to go through the encoder."""
    unread: int = 0
    """Users whose scoring waits for the encoder at present."""
    chunks: int = 0
    restored: int = 0
    """Changelog records merged when partitions were taken over."""
    release: int = 0
    partitions: list[int] = msgspec.field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Write a snapshot; readers see the old one or the new one whole."""
        folder.mkdir(parents=True, exist_ok=True)
        staged = folder / f".{METRICS_FILE}.{os.getpid()}"
        staged.write_bytes(msgspec.json.encode(self))
        staged.replace(folder / METRICS_FILE)


def read_metrics(folder: Path) -> Metrics:
    """Read a worker's last snapshot; zeros when there is none yet."""
    try:
        return msgspec.json.decode((folder / METRICS_FILE).read_bytes(), type=Metrics)
    except (FileNotFoundError, msgspec.DecodeError):
        return Metrics()
