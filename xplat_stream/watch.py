"""A promoted release is watched: what the workers report is held to the limits, and a breach rolls it back."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from xplat_stream.comparison import Breach, breaches
from xplat_stream.errors import DeliveryError, KafkaUnavailable
from xplat_stream.kafka.reports import read_release_report
from xplat_stream.taxonomy import load_taxonomy

if TYPE_CHECKING:
    from collections.abc import Callable

    from xplat_stream.kafka.reports import ReleaseReport
    from xplat_stream.settings import Settings

log = logging.getLogger("xplat.watch")

_MINUTE_S: Final = 60


class Watched(NamedTuple):
    """How a watch ended."""

    report: ReleaseReport
    """The last one."""
    breaches: tuple[Breach, ...]
    """Why the release was rolled back; empty where it was kept."""

    @property
    def kept(self) -> bool:
        """Whether the release stays."""
        return not self.breaches


def watch(  # noqa: PLR0913 - what is watched, what is done, and the doubles of three things outside
    settings: Settings,
    release: int,
    previous: int,
    *,
    roll_back: Callable[[int, tuple[Breach, ...]], None],
    watched_s: float | None = None,
    read: Callable[[Settings, int, int], ReleaseReport] = lambda settings, release, other: read_release_report(
        settings, release, shadow=other
    ),
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Watched:
    """Watch a release that was just promoted, against the one before it, until its time is over or a limit is broken.

    Then `roll_back` is called, with the release and what it broke. `watched_s`: what is left of the time, where a
    watch goes on after a crash; `release.watch_minutes` by default. While Kafka is away it goes on waiting: what cannot
    be read is no breach. Raises `KafkaUnavailable` or `DeliveryError` only where not a single report could be read, and
    what `roll_back` raises.
    """
    labels = load_taxonomy(settings.model.taxonomy)
    slugs = [label.slug for label in labels.labels]
    end = clock() + (settings.release.watch_minutes * _MINUTE_S if watched_s is None else watched_s)
    report: ReleaseReport | None = None
    while True:
        last = clock() >= end
        try:
            report = read(settings, release, previous)
        except (KafkaUnavailable, DeliveryError) as error:
            if last and report is None:
                raise
            log.warning("release %d is watched blindly for now: %s", release, error)
        else:
            found = tuple(breaches(report.comparison, settings.release, slugs))
            if found:
                log.error("release %d is rolled back: %s", release, "; ".join(map(str, found)))
                roll_back(release, found)
                return Watched(report, found)
        if last and report is not None:
            return Watched(report, ())
        sleep(min(settings.release.report_interval_s, max(0.0, end - clock())))
