"""What the demo sees of the profiles topic, and how it shows it."""

from __future__ import annotations

import threading
import time
from collections import deque
from statistics import quantiles
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table

from xplat_stream.kafka.consumer import ProfileConsumer

if TYPE_CHECKING:
    from xplat_stream.event import UserId
    from xplat_stream.metrics import Metrics
    from xplat_stream.profile import Profile
    from xplat_stream.settings import Settings

_SHOWN_USERS = 6
_SHOWN_INTERESTS = 3
_RECENT_S = 5.0
_ARROWS = {"rising": "[green]↑[/]", "falling": "[red]↓[/]", "steady": " ", "new": "[cyan]+[/]", "unknown": "?"}


class ProfileWatch(threading.Thread):
    """Follows the profiles in a thread of its own and measures when they can be read.

    Latency: from the Kafka time of the user's newest event to the moment a consumer holds the profile, milliseconds.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(name="profile-watch", daemon=True)
        self._settings = settings
        self._ending = threading.Event()
        self._recent: deque[float] = deque(maxlen=20_000)
        self.ready = threading.Event()
        self.latencies_ms: list[float] = []
        self.last: dict[UserId, Profile] = {}
        self.busiest: dict[UserId, int] = {}
        self.releases: dict[int, int] = {}
        self.error: Exception | None = None

    def run(self) -> None:
        """Consume until `finish`."""
        try:
            with ProfileConsumer(self._settings) as consumer:
                self.ready.set()
                while not self._ending.is_set():
                    for change in consumer.changes(idle_s=0.4):
                        if change.record is not None:
                            self.take(
                                change.user_id,
                                change.record.data,
                                change.record.time.timestamp(),
                                change.record.latency_ms,
                            )
        except Exception as error:  # noqa: BLE001 - told by the main thread
            self.error = error

    def take(self, user_id: UserId, profile: Profile, published_at: float, latency_ms: int) -> None:
        """Count a profile. One that was only scored again has nothing new in it to be late with."""
        now, before = time.time(), self.last.get(user_id)
        if profile.cause != "model" and (before is None or before.window != profile.window):
            self.latencies_ms.append((now - published_at) * 1000 + latency_ms)
        self._recent.append(now)
        self.last[user_id] = profile
        self.busiest[user_id] = self.busiest.get(user_id, 0) + 1
        self.releases[profile.model.release] = self.releases.get(profile.model.release, 0) + 1

    def finish(self) -> None:
        """Stop consuming and wait for the thread."""
        self._ending.set()
        self.join(10)

    def updates_per_s(self) -> float:
        """Return the rate of the last five seconds."""
        since = time.time() - _RECENT_S
        return sum(moment > since for moment in list(self._recent)) / _RECENT_S

    def percentiles_ms(self, *, newest: int = 0) -> tuple[float, float]:
        """Return p50 and p99, of all profiles or of the newest so many."""
        values = self.latencies_ms[-newest:] if newest else self.latencies_ms
        if len(values) < 2:  # noqa: PLR2004 - quantiles need two
            return 0.0, 0.0
        cuts = quantiles(values, n=100)
        return cuts[49], cuts[98]


def picture(watch: ProfileWatch, metrics: Metrics, *, headline: str, events_per_s: float) -> Group:
    """Return the live view: figures above, the interests of the busiest users below."""
    p50, p99 = watch.percentiles_ms(newest=2000)
    seen, encoded = metrics.texts_seen, metrics.texts_encoded
    figures = Table(box=None, expand=False, padding=(0, 2))
    for name in ("events/s", "updates/s", "p50", "p99", "text cache", "rejected", "users", "release"):
        figures.add_column(name, justify="right")
    figures.add_row(
        f"{events_per_s:.0f}",
        f"{watch.updates_per_s():.0f}",
        f"{p50:.0f} ms",
        f"{p99:.0f} ms",
        f"{1 - encoded / seen:.2%}" if seen else "–",
        str(sum(metrics.rejected.values())),
        str(len(watch.last)),
        str(metrics.release),
    )
    people = Table(box=None, expand=False, padding=(0, 2))
    for name in ("user", "events by platform", *(f"interest {rank}" for rank in range(1, _SHOWN_INTERESTS + 1))):
        people.add_column(name)
    for user_id in sorted(watch.busiest, key=lambda one: (-watch.busiest[one], one))[:_SHOWN_USERS]:
        profile = watch.last[user_id]
        platforms = " ".join(f"{name} {count}" for name, count in profile.window.platforms.items())
        top = [f"{one.label} {one.score:.2f} {_ARROWS[one.trend]}" for one in profile.interests[:_SHOWN_INTERESTS]]
        people.add_row(user_id, platforms, *top)
    return Group(headline, figures, people)


def line(watch: ProfileWatch, metrics: Metrics, *, headline: str, events_per_s: float) -> str:
    """Return the figures of the live view in one line, for output that is no terminal."""
    p50, p99 = watch.percentiles_ms(newest=2000)
    return (
        f"{headline}  {events_per_s:.0f} events/s  {watch.updates_per_s():.0f} updates/s  p50 {p50:.0f} ms  "
        f"p99 {p99:.0f} ms  release {metrics.release}"
    )
