"""A live system to measure in: people with windows, trained releases, a worker, a steady stream and a reader along.

Everything is real and small: the encoder and the heads are trained on simulated people in the stack that they then
serve in. What a benchmark asks of it is what a consumer of the profiles topic sees.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Self

import msgspec

from trainer.run.options import TrainOptions
from trainer.train import train
from xplat_stream.demo.children import Child
from xplat_stream.errors import StackError
from xplat_stream.event import UserId
from xplat_stream.kafka import EventProducer
from xplat_stream.kafka.consumer import ProfileConsumer, active_announcement
from xplat_stream.metrics import Metrics, read_metrics
from xplat_stream.population import Population
from xplat_stream.simulate import simulate
from xplat_stream.taxonomy import load_taxonomy
from xplat_stream.verify import wait_until_caught_up

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from trainer.release.release import Candidate
    from xplat_stream.kafka.codec import Announcement
    from xplat_stream.settings import Settings

PLATFORMS: Final = ("shop", "video", "social")
SEED: Final = 5
PATIENCE_S: Final = 60.0

_TAUGHT: Final = 300
_HISTORY: Final = 15_000
_HISTORY_DAYS: Final = 20
_POLL_S: Final = 0.05
_CATCHING_UP_S: Final = 300.0
_DAY_MS: Final = 86_400_000


class Published(NamedTuple):
    """A profile as a consumer got it. Times are seconds since 1970."""

    user_id: UserId
    release: int
    cause: str
    latency_ms: int
    """Kafka's time of the newest event until the profile was published, as the worker says."""
    published_at: float
    read_at: float
    awaited: bool = True
    """Whether an event of the stream waited for it. Scoring that could wait publishes a window a second time."""

    @property
    def fresh_ms(self) -> float:
        """Milliseconds from Kafka's time of the newest event until the profile was readable."""
        return self.latency_ms + 1000 * (self.read_at - self.published_at)


def people(users: int) -> Population:
    """Return so many simulated people; all who are made here act on the same items."""
    return Population(load_taxonomy(), users=users, seed=SEED)


def two_heads(settings: Settings, report: Callable[[str], None]) -> list[Candidate]:
    """Train on simulated people and promote a first release; return two heads on its encoder, the first one's last."""
    simulate(settings, people(_TAUGHT), history_events=_HISTORY, history_days=_HISTORY_DAYS, rate_per_s=0)
    few = TrainOptions(encoder_texts_shown=1_000, head_windows_shown=20_000, force=True)
    report("training two heads")
    first = train(settings, few)
    again = msgspec.structs.replace(few, head_only=True, seed=few.seed + 1, publish=False)
    second = train(settings, again).candidate
    return [second, first.candidate._replace(encoder=second.encoder)]


def environment_of(settings: Settings, home: Path) -> dict[str, str]:
    """Return what makes an `xplat` command run with these settings."""
    return {
        "XPLAT_LOCAL__HOME": str(home),
        "XPLAT_MODEL__REPOSITORY": settings.model.repository,
        "XPLAT_WORKER__DATADIR": settings.worker.datadir,
        "XPLAT_WORKER__ROCKSDB_MB": str(settings.worker.rocksdb_mb),
        "XPLAT_RELEASE__REPORT_INTERVAL_S": str(settings.release.report_interval_s),
    }


@contextmanager
def serving(settings: Settings, home: Path) -> Iterator[Child]:
    """Yield a worker that has read the log there is."""
    worker = Child(["worker", "--no-supervise"], environment_of(settings, home), home / "logs" / "worker.log")
    try:
        caught_up(settings, worker)
        yield worker
    finally:
        worker.stop()


def give_windows(settings: Settings, worker: Child, *, users: int, each: int) -> None:
    """Publish `each` events of the last five days for every one of so many users, and wait until they are served."""
    now_ms = time.time_ns() // 1_000_000
    with EventProducer(settings) as producer:
        for number, event in enumerate(people(_TAUGHT).events(now_ms - 5 * _DAY_MS, now_ms, users * each)):
            producer.send(msgspec.structs.replace(event, user_id=UserId(f"user-{number % users:05d}")))
    caught_up(settings, worker)


def announced_now(settings: Settings) -> Announcement:
    """Return which release is active; one is, once `two_heads` has trained."""
    found = active_announcement(settings)
    if found is None:
        raise StackError(
            "no release is active",
            where=settings.kafka.bootstrap,
            expected="the release that was trained and promoted here",
            fix="Run the benchmark again.",
        )
    return found


def caught_up(settings: Settings, worker: Child) -> None:
    """Wait until the worker has handled all of the log. Raises `StackError`."""
    until(lambda: wait_until_caught_up(settings, timeout_s=1.0), worker, "the log is read", within_s=_CATCHING_UP_S)


def metrics_of(settings: Settings) -> Metrics:
    """Return what the worker counts."""
    return read_metrics(Path(settings.worker.datadir))


def until(true: Callable[[], bool], worker: Child, what: str, *, within_s: float = PATIENCE_S) -> None:
    """Wait for a condition. Raises `StackError` when the worker ends or time runs out."""
    deadline = time.monotonic() + within_s
    while not true():
        worker.check()
        if time.monotonic() > deadline:
            raise StackError(
                f"{what}: not within {within_s:.0f} s",
                where=str(worker.log),
                expected="a worker that serves",
                fix="The whole story is in the log.",
            )
        time.sleep(_POLL_S)


class Traffic:
    """A steady stream of events of so many users, and everything that is published from its begin on."""

    def __init__(self, settings: Settings, population: Population, rate: float) -> None:
        self.found: list[Published] = []
        self._stop = threading.Event()
        self._begun = datetime.now(UTC)
        consumer = ProfileConsumer(settings)  # from here on, before the first event
        stream = {"rate_per_s": rate, "stop": self._stop}
        self._threads = [
            threading.Thread(target=self._read, args=(consumer,), daemon=True),
            threading.Thread(target=simulate, args=(settings, population), kwargs=stream, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Publish no more; read what is on its way."""
        self._stop.set()
        for thread in reversed(self._threads):
            thread.join(PATIENCE_S)

    def updates(self, begun: float, ended: float) -> list[Published]:
        """Return the profiles that events waited for, published between two moments."""
        return [
            one for one in self.found if one.cause == "behavior" and one.awaited and begun <= one.published_at <= ended
        ]

    def _read(self, consumer: ProfileConsumer) -> None:
        digests: dict[UserId, str] = {}
        with consumer:
            while not self._stop.is_set():
                for change in consumer.changes(idle_s=1.0):
                    if (record := change.record) is not None:
                        about = (change.user_id, record.data.model.release, record.data.cause, record.latency_ms)
                        digest = record.data.window.digest
                        awaited = record.data.window.end >= self._begun and digests.get(change.user_id) != digest
                        digests[change.user_id] = digest
                        self.found.append(Published(*about, record.time.timestamp(), time.time(), awaited))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
