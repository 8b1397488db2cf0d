"""What an event and a profile cost in the worker's own code, as multiples of a loop that never changes.

Admission, a fold into a full window, and a scored profile with its evidence run in this process, in turn with the loop,
which does only what the standard library does: parse the same events and hash them. The machine's speed and whatever
else runs on it change both, so their ratio says what a change of the code did. Of each the fastest round counts.
"""

from __future__ import annotations

import json
import time
from collections import deque
from datetime import UTC, datetime
from hashlib import blake2b
from statistics import mean
from timeit import Timer
from typing import TYPE_CHECKING, Final

import msgspec

from benchmarks.events import PLATFORM, SPEC, Workload
from xplat_stream.adapters import admit, encode_event
from xplat_stream.event import hash_text, item_text
from xplat_stream.kafka.codec import encode_profile
from xplat_stream.profile import KnownText, ModelRef, scored_profile
from xplat_stream.state import Publication
from xplat_stream.taxonomy import load_taxonomy
from xplat_stream.window import BehaviorWindow, row_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from xplat_stream.event import Event

_USERS: Final = 200
_WINDOW: Final = 60
"""Events of a user on the average: most windows are full."""

_SAMPLE: Final = 50
"""Few, so that a round is over before the kernel gives the core to somebody else."""

_ROUNDS: Final = 600


class UnitCosts(msgspec.Struct, frozen=True):
    """CPU time of one, over the CPU time in which the loop parses and hashes one event."""

    admit: float
    fold: float
    profile: float
    loop_us: float
    """Microseconds the loop takes for an event: of this machine, now."""
    profile_bytes: float
    """Of the record that is published, on the average."""

    def figures(self) -> dict[str, float | bool | None]:
        """Return the ratios, and the bytes of a profile."""
        return {
            "admit_cost": self.admit,
            "fold_cost": self.fold,
            "profile_cost": self.profile,
            "profile_bytes": self.profile_bytes,
        }


def bench_units(*, report: Callable[[str], None]) -> UnitCosts:
    """Time each unit and the loop in turn."""
    events = list(Workload(_USERS * _WINDOW, _USERS, 1).all_events())
    windows: dict[str, BehaviorWindow] = {}
    for event in events[:-_SAMPLE]:
        windows[event.user_id] = _folded(windows, event)
    sample = events[-_SAMPLE:]
    records = [(event.user_id.encode(), encode_event(event)) for event in sample]
    profile = _profiles(events)
    units = {
        "loop": lambda: _loop([value for _, value in records]),
        "admit": lambda: [admit(*one, platform=PLATFORM, received_at_ms=_END_MS) for one in records],
        "fold": lambda: [_folded(windows, event) for event in sample],
        "profile": lambda: [profile(windows[event.user_id]) for event in sample],
    }
    timers = {name: Timer(unit, timer=time.process_time) for name, unit in units.items()}
    best = dict.fromkeys(timers, float("inf"))
    for _ in range(_ROUNDS):
        for name, timer in timers.items():
            best[name] = min(best[name], timer.timeit(1))
    ratios = {name: round(best[name] / best["loop"], 3) for name in ("admit", "fold", "profile")}
    made = mean(len(profile(windows[event.user_id])) for event in sample)
    found = UnitCosts(**ratios, loop_us=round(best["loop"] / _SAMPLE * 1e6, 2), profile_bytes=round(made))
    report(f"of {found.loop_us} us: " + ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items()))
    return found


_END_MS: Final = 4_102_444_800_000
"""The year 2100: no event is dated after its own record."""


def _loop(values: list[bytes]) -> int:
    seen: deque[bytes] = deque(maxlen=SPEC.per_platform)
    for value in values:
        parsed = json.loads(value)
        seen.append(blake2b(parsed["id"].encode(), digest_size=16).digest() + parsed["time"].encode())
    return len(seen)


def _folded(windows: dict[str, BehaviorWindow], event: Event) -> BehaviorWindow:
    window = windows.get(event.user_id) or BehaviorWindow(SPEC)
    return window.fold([(event.platform, row_of(event))])


def _profiles(events: list[Event]) -> Callable[[BehaviorWindow], bytes]:
    """Return what makes the record of a profile of a window of these events, as after a call of the head."""
    taxonomy = load_taxonomy()
    count = len(taxonomy.labels)
    scores = [number / count for number in range(count)]
    known = {
        hash_text(text): KnownText((taxonomy.labels[number % count].id,), text)
        for number, text in enumerate(sorted({item_text(event.object) for event in events}))
    }
    publication = Publication(revision=2, release=1, scores=tuple(range(count)))
    user, at = events[0].user_id, datetime(2026, 1, 1, tzinfo=UTC)

    def made(window: BehaviorWindow) -> bytes:
        profile = scored_profile(
            user,
            window,
            publication,
            scores,
            taxonomy=taxonomy,
            model=ModelRef(1, 1, 1),
            known=known,
            max_interests=10,
        )
        return encode_profile(profile, source="//bench", published_at=at, latency_ms=1)

    return made
