"""How fast events become durable windows: a worker of this project beside stock Faust tables, on one broker.

Both read the same pre-filled topic with one process each, one after the other. Time runs from the first to the last
record the process wrote (Kafka's time stamps), so start-up and joining the group are not in it. The worker publishes
one profile a touched user a chunk; no release is active, so no model is in the figure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from confluent_kafka import TIMESTAMP_NOT_AVAILABLE
from confluent_kafka.admin import NewTopic

from benchmarks.events import fill
from benchmarks.stack import environment, private_stack, run_until
from xplat_stream.kafka.log import read_span, spans
from xplat_stream.kafka.topics import admin, changelog_topic, create_topics
from xplat_stream.state import BARRIER_KEY
from xplat_stream.verify import verify, wait_until_caught_up

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from xplat_stream.settings import Settings

_STOCK_CHANGELOG: Final = "stock-windows-changelog"


class FoldResult(msgspec.Struct, frozen=True):
    """One run. Rates are events per second of one process."""

    events: int
    users: int
    value_bytes: float
    events_per_s: float
    cpu_us_per_event: float
    """User and system time of the whole worker process, start-up included."""
    profiles: int
    missing: int
    extra: int
    differing: int
    stock_events: int
    stock_events_per_s: float
    stock_cpu_us_per_event: float
    ratio: float
    """`events_per_s` over `stock_events_per_s`."""


def bench_fold(*, events: int, stock_events: int, users: int, report: Callable[[str], None]) -> FoldResult:
    """Run both in a stack of their own. Raises `StackError`."""
    with private_stack(report) as (settings, home):
        return _measure(settings, home, events=events, stock_events=stock_events, users=users, report=report)


def _measure(
    settings: Settings, home: Path, *, events: int, stock_events: int, users: int, report: Callable[[str], None]
) -> FoldResult:
    create_topics(settings)
    stock_topic = NewTopic(_STOCK_CHANGELOG, settings.kafka.partitions, 1, config={"cleanup.policy": "compact"})
    client = admin(settings)
    client.create_topics([stock_topic])[_STOCK_CHANGELOG].result()
    value_bytes = fill(settings, events=events, users=users)
    report(f"{events} events of {value_bytes:.0f} bytes written")
    variables = environment(settings, home)
    cpu = run_until(lambda: wait_until_caught_up(settings, timeout_s=0), "streams.app", variables, home / "worker.log")
    ours_s, _ = _written_within(settings, changelog_topic(settings.worker.app))
    verdict = verify(settings)
    report(f"worker: {events / ours_s:,.0f} events/s")
    stock_cpu = run_until(
        lambda: _records_in(settings, _STOCK_CHANGELOG) >= stock_events,
        "benchmarks.stock_faust",
        variables,
        home / "stock.log",
    )
    stock_s, stock_records = _written_within(settings, _STOCK_CHANGELOG)
    report(f"stock Faust tables: {stock_records / stock_s:,.0f} events/s")
    return FoldResult(
        events=events,
        users=users,
        value_bytes=round(value_bytes, 1),
        events_per_s=round(events / ours_s),
        cpu_us_per_event=round(cpu / events * 1e6, 2),
        profiles=verdict.profiles,
        missing=verdict.missing,
        extra=verdict.extra,
        differing=verdict.differing,
        stock_events=stock_records,
        stock_events_per_s=round(stock_records / stock_s),
        stock_cpu_us_per_event=round(stock_cpu / stock_records * 1e6, 2),
        ratio=round(events / ours_s / (stock_records / stock_s), 1),
    )


def _records_in(settings: Settings, topic: str) -> int:
    return sum(span.end - span.start for span in spans(settings, [topic]))


def _written_within(settings: Settings, topic: str) -> tuple[float, int]:
    """Return the seconds between the first and the last record of a topic, and how many it holds; barriers left out."""
    times = []
    for span in spans(settings, [topic]):
        for messages in read_span(settings, span):
            stamps = (one.timestamp() for one in messages if one.key() != BARRIER_KEY)
            times += [stamp for kind, stamp in stamps if kind != TIMESTAMP_NOT_AVAILABLE]
    return max(1e-3, (max(times) - min(times)) / 1000), len(times)
