"""How fast an empty state folder is rebuilt from the changelog: a worker of this project beside stock Faust tables.

Both read from one broker, one process each, one after the other: this project a changelog of packed windows, stock
Faust the changelog its own table would have written, the same rows as JSON. What counts is what each worker says in its
log: from taking the partitions over (with us, marking the end of the changelog included) to state that can be used.
"""

from __future__ import annotations

import random
import re
import time
from datetime import datetime
from typing import TYPE_CHECKING, Final

import msgspec
from confluent_kafka import Producer

from benchmarks.events import PLATFORM
from benchmarks.peers import Place
from benchmarks.peers.faust import CHANGELOG, STOCK_APP
from benchmarks.stack import environment, make_topics, private_stack, run_until
from benchmarks.trace import cpu_at
from xplat_stream.errors import DeliveryError, StackError
from xplat_stream.event import UserId
from xplat_stream.kafka.consumer import partition_for
from xplat_stream.kafka.topics import QUIET, behavior_topic, changelog_topic, create_topics
from xplat_stream.state import USER_PREFIX, Publication, UserState, user_key
from xplat_stream.window import ROW_BYTES, TIME_BYTES, BehaviorWindow, WindowSpec, occurred_at

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from benchmarks.trace import Sample
    from xplat_stream.settings import Settings

_SCORES: Final = (0,) * 90
_POOL: Final = 5000
_STAMP: Final = r"\[([\d-]+ [\d:,]+)\].*"
_RESTORED: Final = re.compile(_STAMP + r"owns partitions .* (\d+) changelog records restored in ([\d.]+) s")
_STOCK_BEGAN: Final = re.compile(_STAMP + "Restoring state from changelog topics")
_STOCK_DONE: Final = re.compile(_STAMP + "Done reading from changelog topics")

Record = tuple[bytes, bytes]


class RecoveryResult(msgspec.Struct, frozen=True):
    """One run. Rates are users per second of one process, each with one record in the changelog."""

    users: int
    rows: int
    """Events in each user's window."""
    value_bytes: int
    restore_s: float
    users_per_s: float
    cpu_us_per_user: float
    """User and system time of the whole worker process meanwhile."""
    peak_mb: int
    """Memory of the worker process, at the most."""
    stock_users: int
    stock_value_bytes: int
    stock_restore_s: float
    stock_users_per_s: float
    stock_cpu_us_per_user: float
    ratio: float
    """`users_per_s` over `stock_users_per_s`."""
    cpu_ratio: float
    """The same by CPU time."""

    def figures(self) -> dict[str, float | bool | None]:
        """Return the headline figures."""
        return {
            "recovery_users_per_s": self.users_per_s,
            "recovery_vs_faust": self.ratio,
            "recovery_cpu_vs_faust": self.cpu_ratio,
        }


def bench_recovery(*, users: int, stock_users: int, rows: int, report: Callable[[str], None]) -> RecoveryResult:
    """Run both in a stack of their own. Raises `StackError`, `DeliveryError`."""
    with private_stack(report) as (settings, home):
        create_topics(settings)
        make_topics(settings, [CHANGELOG], {"cleanup.policy": "compact"})
        windows = _windows(rows)
        value_bytes = _fill(settings, changelog_topic(settings.worker.app), _states(windows, users))
        stock_bytes = _fill(settings, CHANGELOG, _lists(windows, stock_users))
        report(f"{users} users of {value_bytes} bytes written")
        variables = environment(settings, home)
        log = home / "worker.log"
        ran = run_until(lambda: bool(_RESTORED.search(_text(log))), "streams.app", variables, log, loglevel="info")
        _, restored, took = _found(_RESTORED, log)
        restore_s = float(took)
        if int(restored) != users:
            raise StackError(
                f"{restored} users were restored",
                where=str(log),
                expected=f"{users}",
                fix="Read the log: another worker may have used this stack.",
            )
        cpu_us = _cpu_us(ran.samples, _time(_RESTORED, log), restore_s) / users
        report(f"worker: {users / restore_s:,.0f} users/s, {cpu_us:.1f} us of processor time a user")
        log = home / "stock.log"
        variables = Place(settings, home / "stock", behavior_topic(PLATFORM), "bench.stock").environment()
        stock = run_until(lambda: bool(_STOCK_DONE.search(_text(log))), STOCK_APP, variables, log, loglevel="info")
        stock_s = (_time(_STOCK_DONE, log) - _time(_STOCK_BEGAN, log)).total_seconds()
        stock_us = _cpu_us(stock.samples, _time(_STOCK_DONE, log), stock_s) / stock_users
        report(f"stock Faust tables: {stock_users / stock_s:,.0f} users/s, {stock_us:.1f} us of processor time a user")
        return RecoveryResult(
            users=users,
            rows=rows,
            value_bytes=value_bytes,
            restore_s=restore_s,
            users_per_s=round(users / restore_s),
            cpu_us_per_user=round(cpu_us, 2),
            peak_mb=round(ran.peak_bytes / 2**20),
            stock_users=stock_users,
            stock_value_bytes=stock_bytes,
            stock_restore_s=round(stock_s, 2),
            stock_users_per_s=round(stock_users / stock_s),
            stock_cpu_us_per_user=round(stock_us, 2),
            ratio=round(users / restore_s / (stock_users / stock_s), 1),
            cpu_ratio=round(stock_us / cpu_us, 1),
        )


def _windows(rows: int, *, seed: int = 17) -> Callable[[], BehaviorWindow]:
    """Return a maker of windows of `rows` events: runs of a pool, so that neighbors share little."""
    chance = random.Random(seed)
    now_ms = int(time.time() * 1000)
    pool = sorted(
        (now_ms - chance.randrange(30 * 86_400_000)).to_bytes(TIME_BYTES, "big")
        + chance.randbytes(ROW_BYTES - TIME_BYTES - 1)
        + b"\x01"
        for _ in range(_POOL)
    )

    def make() -> BehaviorWindow:
        start = chance.randrange(_POOL - rows)
        return BehaviorWindow(WindowSpec()).fold((PLATFORM, row) for row in pool[start : start + rows])

    return make


def _states(window: Callable[[], BehaviorWindow], users: int) -> Iterable[Record]:
    for number in range(users):
        state = UserState(window(), Publication(revision=1, release=1, scores=_SCORES))
        yield user_key(UserId(f"user-{number:08d}")), state.pack()


def _lists(window: Callable[[], BehaviorWindow], users: int) -> Iterable[Record]:
    """Yield what the stock table keeps: time, id, action and object of each event."""
    for number in range(users):
        kept = [
            [datetime.fromtimestamp(occurred_at(row) / 1000).astimezone(), row[6:18].hex(), "view", row[18:22].hex()]
            for _, row in window().rows()
        ]
        yield f"user-{number:08d}".encode(), msgspec.json.encode(kept)


def _fill(settings: Settings, topic: str, records: Iterable[Record]) -> int:
    """Write records to the partition of their user. Returns the mean size of a value. Raises `DeliveryError`."""
    producer = Producer(
        {"bootstrap.servers": settings.kafka.bootstrap, "linger.ms": 50, "enable.idempotence": True, **QUIET}
    )
    total = count = 0
    for key, value in records:
        while True:
            try:
                producer.produce(
                    topic, value, key, partition=partition_for(key.removeprefix(USER_PREFIX), settings.kafka.partitions)
                )
                break
            except BufferError:
                producer.poll(0.1)
        total += len(value)
        count += 1
    if left := producer.flush(60):
        message = f"{topic} did not take {left} of {count} records"
        raise DeliveryError(message, left=left)
    return round(total / count)


def _text(log: Path) -> str:
    return log.read_text(errors="replace")


def _found(pattern: re.Pattern[str], log: Path) -> tuple[str, ...]:
    match = pattern.search(_text(log))
    if match is None:
        raise StackError(
            "a worker did not say how long it took",
            where=str(log),
            expected=f"a line like {pattern.pattern}",
            fix="Read the log.",
        )
    return match.groups()


def _time(pattern: re.Pattern[str], log: Path) -> datetime:
    return datetime.strptime(_found(pattern, log)[0], "%Y-%m-%d %H:%M:%S,%f").astimezone()


def _cpu_us(samples: Sequence[Sample], done: datetime, took_s: float) -> float:
    """Return the CPU microseconds that a process took in the seconds before a moment."""
    end_ms = done.timestamp() * 1000
    before, after = cpu_at(samples, [end_ms - took_s * 1000, end_ms])
    return (after - before) * 1e6
