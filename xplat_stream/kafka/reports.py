"""What workers say of a release's life on `interest.models.v1`, and all of it together.

Each partition has one report of each worker group, under ``report/<app>/<partition>``: how far its active users are,
and what comparing two releases has given. Its owner goes on from the last one, so sums survive restarts and moves.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import reduce
from typing import TYPE_CHECKING, Final, NamedTuple

from xplat_stream.comparison import Comparison
from xplat_stream.kafka.codec import Report, decode_report, encode_report, report_key
from xplat_stream.kafka.log import read_span, spans
from xplat_stream.kafka.producer import EventProducer
from xplat_stream.kafka.topics import MODELS, changelog_topic, partition_counts

if TYPE_CHECKING:
    from collections.abc import Iterable

    from xplat_stream.settings import Settings

_FLUSH_S = 10.0
_SPEAKS_WITHIN: Final = timedelta(minutes=3)
"""A worker reports once a minute at the least."""


class ReleaseReport(NamedTuple):
    """All partitions' reports together."""

    release: int
    """The release asked about."""
    shadow: int
    """What it is, or was, compared with; 0 for nothing."""
    partitions: int
    reported: int
    """Partitions whose owner has taken the release up."""
    settled: int
    """Of those, partitions none of whose active users is left on another release."""
    active_users: int
    scored_users: int
    """Active users whose last profile is of the release."""
    comparison: Comparison

    @property
    def complete(self) -> bool:
        """Whether every active user of every partition is on the release, as of the last reports."""
        return 0 < self.partitions == self.settled


class Warmth(NamedTuple):
    """How far the workers that are there are with the vectors of an encoder, all partitions together."""

    partitions: int
    warm: int
    """Partitions none of whose active users has a text without a vector."""
    texts: int
    """Texts of active users, partition by partition, as far as they have been looked at."""
    warmed: int

    @property
    def complete(self) -> bool:
        """Whether every partition is warm, as of the last reports."""
        return self.partitions == self.warm


def warmth(reports: Iterable[Report], encoder: int, *, partitions: int, now: datetime) -> Warmth | None:
    """Add up what is said of an encoder. None where nobody has said anything for a while: no worker is there."""
    held = [one for one in reports if now - one.at < _SPEAKS_WITHIN]
    here = [one for one in held if one.encoder == encoder]
    if not held:
        return None
    return Warmth(
        partitions, sum(one.warm for one in here), sum(one.texts for one in here), sum(one.warmed for one in here)
    )


def read_warmth(settings: Settings, encoder: int) -> Warmth | None:
    """Return what the worker group of these settings says of an encoder now. Raises as `read_release_report`."""
    partitions = partition_counts(settings).get(changelog_topic(settings.worker.app), 0)
    return warmth(read_reports(settings), encoder, partitions=partitions, now=datetime.now(UTC))


def combined(
    reports: Iterable[Report], *, release: int, partitions: int, shadow: int = 0, since: datetime | None = None
) -> ReleaseReport:
    """Add up the reports of one group.

    Of comparisons only those of one announcement count, the last one. `shadow`: of this pair; 0 for any. `since`: not
    announced before.
    """
    held = list(reports)
    here = [report for report in held if report.release == release]
    pairs = [one for one in held if one.compared[0] == release and shadow in (0, one.compared[1])]
    if since is not None:
        pairs = [one for one in pairs if one.since >= since]
    newest = max(pairs, key=lambda report: report.since, default=None)
    other = newest.compared[1] if newest else shadow
    counting = [one for one in pairs if newest and one.since == newest.since]
    return ReleaseReport(
        release,
        other,
        partitions,
        len(here),
        sum(report.settled for report in here),
        sum(report.active_users for report in here),
        sum(report.scored_users for report in here),
        reduce(Comparison.merge, [one.comparison for one in counting], Comparison()),
    )


def read_release_report(
    settings: Settings, release: int, *, shadow: int = 0, since: datetime | None = None
) -> ReleaseReport:
    """Return what the worker group of these settings says of a release now; `shadow`, `since`: see `combined`.

    Raises `KafkaUnavailable`, `DeliveryError`.
    """
    partitions = partition_counts(settings).get(changelog_topic(settings.worker.app), 0)
    return combined(read_reports(settings), release=release, partitions=partitions, shadow=shadow, since=since)


def read_reports(settings: Settings) -> list[Report]:
    """Return the last report of every partition, by partition; one of a format unknown here counts as none.

    Raises `KafkaUnavailable`, `DeliveryError`.
    """
    prefix = report_key(settings.worker.app)
    last: dict[bytes, bytes | None] = {}
    for span in spans(settings, [MODELS]):
        for messages in read_span(settings, span):
            last.update({key: one.value() for one in messages if (key := one.key()) and key.startswith(prefix)})
    reports = [report for value in last.values() if value and (report := decode_report(value))]
    return sorted(reports, key=lambda report: report.partition)


def write_reports(settings: Settings, reports: Iterable[Report]) -> None:
    """Publish reports and wait until Kafka has them. Raises `DeliveryError`."""
    producer = EventProducer(settings)
    for report in reports:
        producer.send_raw(MODELS, report_key(settings.worker.app, report.partition), encode_report(report))
    producer.flush(_FLUSH_S)
