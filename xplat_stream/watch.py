"""A promoted release is watched: what the workers report is held to the limits, and a breach rolls it back."""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from xplat_stream.comparison import Breach, breaches
from xplat_stream.errors import DeliveryError, KafkaUnavailable
from xplat_stream.failpoints import reached
from xplat_stream.kafka.reports import read_release_report
from xplat_stream.serving.promote import PATIENCE_S, rollback
from xplat_stream.taxonomy import load_taxonomy

if TYPE_CHECKING:
    from collections.abc import Callable

    from xplat_stream.kafka.codec import Announcement
    from xplat_stream.kafka.reports import ReleaseReport
    from xplat_stream.settings import Settings

log = logging.getLogger("xplat.watch")


class Watched(NamedTuple):
    """How a watch ended."""

    report: ReleaseReport
    """The last one."""
    breaches: tuple[Breach, ...]
    """The limits it broke; none where it was kept."""
    rolled_back: bool
    """Whether it was, for that; not where another release had taken over already."""

    @property
    def kept(self) -> bool:
        """Whether the release stays."""
        return not self.breaches


def roll_back(settings: Settings, release: int, broken: tuple[Breach, ...]) -> bool:
    """Roll a release back for what it broke. Tell whether it was still there to be. Raises as `rollback`."""
    reason = f"release {release} broke {'; '.join(map(str, broken))}"
    return rollback(settings, only=release, reason=reason, patience_s=PATIENCE_S) is not None


def watch(
    settings: Settings,
    announced: Announcement,
    *,
    roll_back: Callable[[Settings, int, tuple[Breach, ...]], bool] = roll_back,
    read: Callable[[Settings, Announcement], ReleaseReport] = lambda settings, announced: read_release_report(
        settings, announced.release, shadow=announced.previous, since=announced.announced_at
    ),
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    sleep: Callable[[float], None] = time.sleep,
) -> Watched:
    """Watch a release that was promoted, against the one before it, until its time is over or a limit is broken.

    Then `roll_back` is called, with the release and what it broke. The time counts from the announcement, so a watch
    that was cut off is simply begun again. While Kafka is away it goes on waiting: what cannot be read is no breach.
    Raises `KafkaUnavailable` or `DeliveryError` only where not a single report could be read, and what `roll_back`
    raises.
    """
    slugs = [label.slug for label in load_taxonomy(settings.model.taxonomy).labels]
    end = announced.announced_at + timedelta(minutes=settings.release.watch_minutes)
    report: ReleaseReport | None = None
    while True:
        left_s = (end - now()).total_seconds()
        try:
            report = read(settings, announced)
        except (KafkaUnavailable, DeliveryError) as error:
            if left_s <= 0 and report is None:
                raise
            log.warning("release %d is watched blindly for now: %s", announced.release, error)
        else:
            found = tuple(breaches(report.comparison, settings.release, slugs))
            if found:
                log.error("release %d is to be rolled back: %s", announced.release, "; ".join(map(str, found)))
                reached("watch.broken")
                return Watched(report, found, roll_back(settings, announced.release, found))
        if left_s <= 0 and report is not None:
            return Watched(report, (), rolled_back=False)
        sleep(min(settings.release.report_interval_s, max(0.0, left_s)))
