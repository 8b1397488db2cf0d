"""How fast events become durable windows: a worker of this project beside stock Faust tables, on one broker.

Both read the same pre-filled topic with one process each, one after the other. Time runs from the first to the last
record the process wrote (Kafka's time stamps), so start-up and joining the group are not in it. The worker publishes
one profile a touched user a chunk; no release is active, so no model is in the figure.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
from confluent_kafka import TIMESTAMP_NOT_AVAILABLE
from confluent_kafka.admin import NewTopic

from benchmarks.events import PLATFORM, fill
from xplat_stream import local
from xplat_stream.errors import StackError
from xplat_stream.kafka.log import read_span, spans
from xplat_stream.kafka.topics import admin, changelog_topic, create_topics
from xplat_stream.settings import LocalSettings, ModelSettings, Settings, WorkerSettings, load_settings
from xplat_stream.verify import verify, wait_until_caught_up

if TYPE_CHECKING:
    from collections.abc import Callable

_STOCK_CHANGELOG: Final = "stock-windows-changelog"
_PATIENCE_S: Final = 300.0


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
    with tempfile.TemporaryDirectory(prefix="xplat-bench-") as folder:
        home = Path(folder)
        settings = Settings(
            platforms=(PLATFORM,),
            local=LocalSettings(home=str(home)),
            worker=WorkerSettings(datadir=str(home / "worker")),
            model=ModelSettings(repository=str(home / "models")),
        )
        state = local.up(settings, report=report)
        try:
            settings = load_settings({"XPLAT_LOCAL__HOME": str(home)}, folder=home)
            settings = msgspec.structs.replace(
                settings, platforms=(PLATFORM,), worker=WorkerSettings(datadir=str(home / "worker"))
            )
            return _measure(settings, home, events=events, stock_events=stock_events, users=users, report=report)
        finally:
            del state
            local.down(settings, report=report)


def _measure(
    settings: Settings, home: Path, *, events: int, stock_events: int, users: int, report: Callable[[str], None]
) -> FoldResult:
    create_topics(settings)
    stock_topic = NewTopic(_STOCK_CHANGELOG, settings.kafka.partitions, 1, config={"cleanup.policy": "compact"})
    client = admin(settings)
    client.create_topics([stock_topic])[_STOCK_CHANGELOG].result()
    value_bytes = fill(settings, events=events, users=users)
    report(f"{events} events of {value_bytes:.0f} bytes written")
    environment = {
        **os.environ,
        "XPLAT_KAFKA__BOOTSTRAP": settings.kafka.bootstrap,
        "XPLAT_TRITON__URL": settings.triton.url,
        "XPLAT_PLATFORMS": PLATFORM,
        "XPLAT_WORKER__DATADIR": settings.worker.datadir,
        "XPLAT_LOCAL__HOME": str(home),
        "BENCH_BOOTSTRAP": settings.kafka.bootstrap,
        "BENCH_DATADIR": str(home / "stock"),
        "BENCH_PARTITIONS": str(settings.kafka.partitions),
    }
    cpu = _run(
        "streams.app",
        environment,
        home / "worker.log",
        lambda: wait_until_caught_up(settings, timeout_s=0),
    )
    ours_s, _ = _written_within(settings, changelog_topic(settings.worker.app))
    verdict = verify(settings)
    report(f"worker: {events / ours_s:,.0f} events/s")
    stock_cpu = _run(
        "benchmarks.stock_faust",
        environment,
        home / "stock.log",
        lambda: _records_in(settings, _STOCK_CHANGELOG) >= stock_events,
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


def _run(module: str, environment: dict[str, str], log: Path, until: Callable[[], bool]) -> float:
    """Run a Faust worker until a condition holds, stop it, and return its CPU seconds. Raises `StackError`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    arguments = [sys.executable, "-m", "faust", "-A", module, "-L", "uvloop", "worker", "--without-web", "-l", "warn"]
    with log.open("wb") as output:
        process = subprocess.Popen(arguments, env=environment, stdout=output, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + _PATIENCE_S
    try:
        while not (done := until()) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if not done:
        raise StackError(
            f"{module} did not finish",
            where=str(log),
            expected=f"all events read within {_PATIENCE_S:.0f} s",
            fix=log.read_text(errors="replace").strip().rpartition("\n")[2][:300],
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _records_in(settings: Settings, topic: str) -> int:
    return sum(span.end - span.start for span in spans(settings, [topic]))


def _written_within(settings: Settings, topic: str) -> tuple[float, int]:
    """Return the seconds between the first and the last record of a topic, and how many records it holds."""
    times = []
    for span in spans(settings, [topic]):
        for messages in read_span(settings, span):
            times += [stamp for kind, stamp in (one.timestamp() for one in messages) if kind != TIMESTAMP_NOT_AVAILABLE]
    return max(1e-3, (max(times) - min(times)) / 1000), len(times)
