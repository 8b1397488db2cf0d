"""The oracle: is what the workers keep and publish exactly what the log says?

Every record of every platform topic is admitted and folded again, offline, by the same pure code, and compared with
the last record of every user in the changelog and on the profiles topic.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from xplat_stream.errors import RejectedEvent
from xplat_stream.kafka.codec import decode_profile
from xplat_stream.kafka.consumer import partition_for
from xplat_stream.kafka.log import committed, read_behavior, read_span, spans
from xplat_stream.kafka.topics import (
    PROFILES,
    changelog_topic,
    partition_counts,
)
from xplat_stream.profile import window_digest
from xplat_stream.state import USER_PREFIX, UserState
from xplat_stream.window import BehaviorWindow, Row, WindowSpec, row_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from confluent_kafka import Message

    from xplat_stream.settings import Settings

_FOLD_EVERY = 64
_POLL_S = 0.2


class Verdict(msgspec.Struct, frozen=True):
    """What the comparison found. All of `missing`, `extra` and `differing` are 0 when the promise holds."""

    events: int
    """Records admitted from the platform topics, duplicates included."""
    rejected: int
    users: int
    missing: int
    """Events that the log puts into a window and the changelog's last window lacks."""
    extra: int
    """Events in the changelog's last windows that the log does not put there."""
    differing: int
    """Users whose last window or last profile is not, byte for byte, what the log gives."""
    profiles: int
    conflicts: int = 0
    """Events in the log's windows that share their id with one of other content: both are kept, readers see one."""
    examples: tuple[str, ...] = ()
    """Up to ten of those users, with what differs."""

    @property
    def exact(self) -> bool:
        """Whether state and profiles are exactly what the log says."""
        return self.missing == self.extra == self.differing == 0


class _Expected:
    """Windows folded offline, a batch of events at a time."""

    def __init__(self, spec: WindowSpec) -> None:
        self._empty = BehaviorWindow(spec)
        self._pending: dict[bytes, list[tuple[str, Row]]] = {}
        self._windows: dict[bytes, BehaviorWindow] = {}

    def add(self, key: bytes, platform: str, row: Row) -> None:
        pending = self._pending.setdefault(key, [])
        pending.append((platform, row))
        if len(pending) >= _FOLD_EVERY:
            self._windows[key] = self._windows.get(key, self._empty).fold(pending)
            pending.clear()

    def windows(self) -> dict[bytes, BehaviorWindow]:
        for key, pending in self._pending.items():
            self._windows[key] = self._windows.get(key, self._empty).fold(pending)
        self._pending.clear()
        return self._windows


def verify(settings: Settings, *, report: Callable[[str], None] = lambda _: None) -> Verdict:
    """Compare. Raises `KafkaUnavailable`, `DeliveryError`."""
    spec = WindowSpec(settings.window.per_platform, settings.window.horizon)
    expected = _Expected(spec)
    events = rejected = 0
    for event, message in read_behavior(settings):
        if isinstance(event, RejectedEvent):
            rejected += 1
            continue
        events += 1
        if event is not None:
            expected.add(message.key(), event.platform, row_of(event))
    windows = expected.windows()
    report(f"{events} events admitted, {rejected} rejected, {len(windows)} users")
    found, misplaced = _found_windows(settings, spec)
    digests = {
        message.key(): decode_profile(message.value()).data.window.digest if message.value() else None
        for message in _records(settings, [PROFILES])
    }
    missing, extra = 0, misplaced
    differing: dict[bytes, str] = {}
    empty = BehaviorWindow(spec)
    for key in windows.keys() | found.keys():
        want, have = windows.get(key, empty), found.get(key, empty)
        packed = bytes(want)
        if packed != bytes(have):
            wanted, held = set(want.rows()), set(have.rows())
            missing += len(wanted - held)
            extra += len(held - wanted)
            differing[key] = f"window lacks {len(wanted - held)} and has {len(held - wanted)} too many"
        elif digests.get(key) != window_digest(packed):
            differing[key] = "no profile" if key not in digests else "the last profile is of another window"
    erased = {key for key, digest in digests.items() if digest is None}
    for key in digests.keys() - erased - windows.keys() - found.keys():
        differing[key] = "a profile without events"
    return Verdict(
        events,
        rejected,
        len(windows),
        missing,
        extra,
        len(differing),
        len(digests),
        sum(window.conflicts for window in windows.values()),
        tuple(f"{key.decode()}: {why}" for key, why in sorted(differing.items())[:10]),
    )


def _found_windows(settings: Settings, spec: WindowSpec) -> tuple[dict[bytes, BehaviorWindow], int]:
    """Return the last window of every user in the changelog, and how many events lie in a wrong partition."""
    topic = changelog_topic(settings.worker.app)
    count = partition_counts(settings).get(topic, 1)
    last: dict[tuple[bytes, int], bytes | None] = {}
    for message in _records(settings, [topic]):
        key = message.key()
        if key.startswith(USER_PREFIX):
            last[key[len(USER_PREFIX) :], message.partition()] = message.value()
    found: dict[bytes, BehaviorWindow] = {}
    misplaced = 0
    for (key, partition), value in last.items():
        if value is None:
            continue
        window = UserState.unpack(spec, value).window
        if partition == partition_for(key, count):
            found[key] = window
        else:
            misplaced += len(window)
    return found, misplaced


def _records(settings: Settings, topics: list[str]) -> Iterator[Message]:
    for span in spans(settings, topics):
        for messages in read_span(settings, span):
            yield from messages


def wait_until_caught_up(settings: Settings, *, timeout_s: float) -> bool:
    """Wait until the worker group has committed everything the behavior topics hold. False when time runs out.

    Raises `KafkaUnavailable`.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        # Commits before ends: a worker forwards before it commits, so what it forwarded is in the ends read after.
        done = committed(settings)
        ends = {(span.topic, span.partition): span for span in spans(settings, sorted({one.topic for one in done}))}
        where = [(one, ends[one.topic, one.partition]) for one in done]
        if not any(span.end > max(one.offset, span.start) for one, span in where):
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
