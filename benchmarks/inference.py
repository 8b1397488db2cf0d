"""User updates a second and how soon they are readable: real model, real Triton, real Kafka, real workers.

Each part of a run can be asked for alone:

    rates        updates a second while the share of titles that the encoder has seen goes from 0 to 100 %
    reencoding   the same windows by the fused model, which encodes every one of them anew
    freshness    event written → profile readable, at half of that load
    swap, loss, backlog, hot, zipf     the same while a release takes over, a worker is killed, 100,000 events wait,
                 one user makes 30 % of the events, users follow Zipf's law

Both topics keep the broker's own time of every record, so written and readable are told by one clock. A profile counts
for an event when its window holds it. CPU time is that of whole processes, the servers' children included; on a machine
that does other things meanwhile it says more than the clock does, so the rates are given by both.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from benchmarks.disagreement import disagreement
from benchmarks.fleet import Fleet, ModelCalls, calls_between, caught_up
from benchmarks.freshness import ends, keep_the_brokers_time, profiles_between, seen_between
from benchmarks.releases import train_models
from benchmarks.stack import private_stack
from benchmarks.traffic import Traffic, load, write
from xplat_stream.catalogue import PLATFORMS
from xplat_stream.event import Event, TextHash, hash_text, item_text
from xplat_stream.kafka.log import read_behavior
from xplat_stream.kafka.topics import create_topics
from xplat_stream.serving.features import fused_text
from xplat_stream.serving.fused import FUSED, FusedScorer, load_fused
from xplat_stream.serving.promote import promote
from xplat_stream.serving.releases import ModelRepository
from xplat_stream.serving.sensitivity import CurvePoint
from xplat_stream.serving.triton import TritonScorer
from xplat_stream.settings import Settings, load_settings
from xplat_stream.verify import verify
from xplat_stream.window import BehaviorWindow, Row, WindowSpec, row_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping
    from contextlib import AbstractContextManager

PARTS: Final = ("rates", "reencoding", "freshness", "swap", "loss", "backlog", "hot", "zipf")
HIT_RATES: Final = (1.0, 0.999, 0.99, 0.98, 0.95, 0.9, 0.5, 0.0)
CORES: Final = 2
_HEADLINE: Final = 0.99
_OTHER: Final = 2
"""The release that takes over from release 1."""

_HOT: Final = 0.3
_ZIPF: Final = 1.2
_CHUNKS: Final = 32
"""So many chunks have as many events as there are users."""

_MISS_US: Final = 6000
_HIT_US: Final = 250
_WINDOW_MS: Final = 20 * 86_400_000
_FUSED_WINDOWS: Final = 48
_LONGEST_S: Final = 60.0


class Rate(msgspec.Struct, frozen=True):
    """One burst, from the first event written to the last profile readable."""

    hit_rate: float
    """Met, by the workers' own counters: events whose text the encoder did not have to read."""
    events: int
    updates: int
    """Profiles published for them; a user touched twice in a chunk is published once."""
    events_per_update: float
    """How many events one profile answers, on the average."""
    calls_saved: float
    """Share of them that went without the head."""
    updates_per_s: float
    """By the clock."""
    updates_per_2_cores: float
    """By CPU time of workers and Triton: what two cores give that do nothing else."""
    cpu_us: dict[str, float]
    """Microseconds an update, process by process."""
    calls: dict[str, ModelCalls]
    """Triton's own figures, model by model."""


class Freshness(msgspec.Struct, frozen=True):
    """Event written → profile readable, in milliseconds, over `events` events."""

    events: int
    events_per_s: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    worst_ms: float
    calls_saved: float
    """Share of the updates that went without a call of the head."""


class InferenceBench(msgspec.Struct, frozen=True):
    """One run. What no part was asked for stays 0."""

    updates_per_s: float = 0.0
    updates_per_2_cores: float = 0.0
    hit_rate: float = 0.0
    events_per_update: float = 0.0
    vs_reencoding: float = 0.0
    """`updates_per_2_cores` over what the fused model gives, by CPU time of the same processes."""
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    p999_ms: float = 0.0
    swap_p99_ms: float = 0.0
    loss_p99_ms: float = 0.0
    calls_saved: float = 0.0
    """By all workers, over everything after the history."""
    disagreement: float = 0.0
    """Share of people whose last published top 3 is not the one that scoring gives, at the end of the last part."""
    stale: float = 0.0
    """Share of people who waited for scoring then."""
    curve: tuple[CurvePoint, ...] = ()
    """Of the release: calls saved over disagreement, on people held out, as its manifest has it."""
    margin: float = 0.0
    """The one of it that the tolerance chose; 0 where every update is scored."""
    client_cpu_share: float = 0.0
    """Of the CPU of workers and Triton at the headline rate, the workers'."""
    events_per_window: float = 0.0
    exact: bool = False
    """Whether windows and profiles are what the log gives, after everything."""
    fused_updates_per_2_cores: float = 0.0
    rates: dict[str, Rate] = {}
    """By the share of known titles that was asked for."""
    freshness: dict[str, Freshness] = {}
    """By part."""

    def figures(self) -> dict[str, float | bool | None]:
        """Return the headline figures."""
        text_us, score_us, update_us = unit_costs(self.rates.values())
        return {
            "updates_per_s": self.updates_per_s,
            "updates_per_2_cores": self.updates_per_2_cores,
            "hit_rate": self.hit_rate,
            "events_per_update": self.events_per_update,
            "vs_reencoding": self.vs_reencoding,
            "p50_ms": self.p50_ms,
            "p99_ms": self.p99_ms,
            "calls_saved": self.calls_saved,
            "disagreement": self.disagreement,
            "update_cpu_us": update_us,
            "score_cpu_us": score_us,
            "text_cpu_us": text_us,
        }


class Choices(msgspec.Struct, frozen=True):
    """What to run, how large."""

    parts: tuple[str, ...] = PARTS
    hit_rates: tuple[float, ...] = HIT_RATES
    workers: int = 2
    users: int = 10_000
    window: int = 20
    """Events in a user's window before anything is measured, on the average."""
    seconds: float = 10.0
    """About how long a burst takes on two idle cores; how long each other part takes."""
    rate: float = 0.0
    """Events a second of the other parts; 0: half of what the headline burst gave."""
    backlog: int = 100_000
    models: str = ""


def bench_inference(choices: Choices, report: Callable[[str], None]) -> InferenceBench:
    """Run the parts in a stack of their own. Raises `StackError`, and what training and promotion raise."""
    with (
        _models(choices, report) as models,
        private_stack(report, platforms=PLATFORMS, models=models) as (settings, home),
    ):
        create_topics(settings)
        keep_the_brokers_time(settings)
        promote(settings, 1, force=True, reason="benchmark")
        traffic = Traffic(choices.users)
        until_ms = time.time_ns() // 1_000_000 - 3_600_000
        history = traffic.history(choices.window * choices.users, until_ms=until_ms, span_ms=_WINDOW_MS)
        write(settings, history)
        # In the bursts a lane gathers until four times so many users are touched: few of its own, so that most updates
        # are one event's.
        together = max(1, choices.users // (_CHUNKS * settings.kafka.partitions))
        fleet = Fleet(settings, home, choices.workers, chunk_events=together)
        try:
            fleet.until(lambda: fleet.total("events") >= len(history), "the history is read")
            caught_up(settings)
            return _Run(choices, settings, fleet, traffic, report).all()
        finally:
            fleet.stop()


class _Run:
    """One run's parts, in order."""

    def __init__(
        self, choices: Choices, settings: Settings, fleet: Fleet, traffic: Traffic, report: Callable[[str], None]
    ) -> None:
        self._choices, self._settings, self._fleet, self._traffic = choices, settings, fleet, traffic
        self._report = report
        self._rate = choices.rate

    def all(self) -> InferenceBench:
        choices, before = self._choices, self._fleet.counts()
        rates: dict[str, Rate] = {}
        for share in choices.hit_rates if "rates" in choices.parts else ():
            rates[f"{share:g}"] = self._burst(share)
        headline = rates.get(f"{_HEADLINE:g}")
        fused = self._reencoding() if "reencoding" in choices.parts else 0.0
        self._rate = choices.rate or (headline.updates_per_s / 2 if headline else 200.0)
        self._traffic.new_share = 1 - _HEADLINE
        parts = {
            "freshness": self._steady,
            "swap": self._swap,
            "loss": self._loss,
            "backlog": self._backlog,
            "hot": lambda: self._spread(hot=_HOT),
            "zipf": lambda: self._spread(zipf=_ZIPF),
        }
        chosen = {part: run for part, run in parts.items() if part in choices.parts}
        if chosen:
            self._fleet.restart()
        freshness = {part: self._measured(part, run) for part, run in chosen.items()}
        counted = self._fleet.counts().since(before).metrics
        release = ModelRepository.of(self._settings).load(self._fleet.metrics()[0].release)
        sensitivity = release.manifest.sensitivity
        agreed = disagreement(self._settings, release)
        self._report(
            f"{agreed.wrong:.2%} of {agreed.people} people with another top 3, {agreed.stale:.1%} of them wait"
        )
        verdict = verify(self._settings)
        steady, swap, loss = (freshness.get(part) for part in ("freshness", "swap", "loss"))
        return InferenceBench(
            updates_per_s=headline.updates_per_s if headline else 0.0,
            updates_per_2_cores=headline.updates_per_2_cores if headline else 0.0,
            hit_rate=headline.hit_rate if headline else 0.0,
            events_per_update=headline.events_per_update if headline else 0.0,
            vs_reencoding=round(headline.updates_per_2_cores / fused, 1) if headline and fused else 0.0,
            p50_ms=steady.p50_ms if steady else 0.0,
            p99_ms=steady.p99_ms if steady else 0.0,
            p999_ms=steady.p999_ms if steady else 0.0,
            swap_p99_ms=swap.p99_ms if swap else 0.0,
            loss_p99_ms=loss.p99_ms if loss else 0.0,
            calls_saved=_saved(counted),
            disagreement=agreed.wrong,
            stale=agreed.stale,
            curve=sensitivity.curve if sensitivity else (),
            margin=(sensitivity and sensitivity.margin(load_settings().score.tolerance)) or 0.0,
            client_cpu_share=_share_of_worker(headline) if headline else 0.0,
            events_per_window=round(verdict.events / max(1, verdict.users), 1),
            exact=verdict.exact,
            fused_updates_per_2_cores=round(fused, 1),
            rates=rates,
            freshness=freshness,
        )

    def _burst(self, share: float) -> Rate:
        """Write events faster than they can be taken, and wait for the last profile."""
        fleet, traffic, settings = self._fleet, self._traffic, self._settings
        traffic.new_share = 1 - share
        us = _HIT_US + (1 - share) * _MISS_US
        records = traffic.burst(max(200, round(self._choices.seconds * CORES * 1e6 / us)))
        before, began, calls = fleet.counts(), ends(settings), fleet.calls()
        write(settings, records)
        self._applied(before.metrics["events"] + len(records))
        scored_ms = self._all_read()
        counted, ended = fleet.counts().since(before), ends(settings)
        seen = seen_between(settings, began, ended, profiles_between(settings, began, ended))
        readable_ms = max(one.written_ms + one.took_ms for one in seen)
        took_s = (max(readable_ms, scored_ms) - min(one.written_ms for one in seen)) / 1000
        metrics, cpu = counted.metrics, counted.cpu_s
        updates = metrics["updates"] - metrics["rescored"]
        found = Rate(
            hit_rate=round(1 - metrics["texts_encoded"] / len(records), 5),
            events=len(records),
            updates=updates,
            events_per_update=round(len(records) / updates, 2),
            calls_saved=_saved(metrics),
            updates_per_s=round(updates / took_s, 1),
            updates_per_2_cores=round(CORES * updates / (cpu["worker"] + cpu["triton"]), 1),
            cpu_us={name: round(used / updates * 1e6, 1) for name, used in cpu.items()},
            calls=calls_between(calls, fleet.calls()),
        )
        self._report(
            f"{found.hit_rate:.2%} hits: {found.updates_per_s:,.0f} updates/s by the clock, "
            f"{found.updates_per_2_cores:,.0f} by CPU time; {found.events_per_update} events an update; "
            f"us an update: {found.cpu_us}; {found.calls_saved:.1%} saved"
        )
        return found

    def _applied(self, events: int) -> None:
        self._fleet.until(lambda: self._fleet.total("events") >= events, "the events are read")
        caught_up(self._settings)

    def _all_read(self) -> int:
        """Wait until no scoring waits for the encoder; return when, in milliseconds since 1970; 0: none did.

        Workers show that once a second, so it is told late by as much.
        """
        if not self._fleet.unread:
            return 0
        self._fleet.until(lambda: not self._fleet.unread, "the encoder has read all texts")
        return _now_ms()

    def _reencoding(self) -> float:
        """Return the updates two cores give where every window is encoded anew, by CPU time of client and Triton."""
        windows, texts = _windows(self._settings, _FUSED_WINDOWS)
        before, client = self._fleet.counts(), time.process_time()
        asyncio.run(_score_fused(self._settings, windows, texts))
        used = self._fleet.counts().since(before).cpu_s["triton"] + time.process_time() - client
        self._report(f"every window encoded anew: {CORES * len(windows) / used:,.1f} updates/s by CPU time")
        return CORES * len(windows) / used

    def _measured(self, part: str, run: Callable[[], int]) -> Freshness:
        """Return how soon profiles were readable of the events written since `run` said, in milliseconds since 1970."""
        before, counted = ends(self._settings), self._fleet.counts()
        started = time.monotonic()
        since_ms = run()
        caught_up(self._settings)
        ended, metrics = ends(self._settings), self._fleet.counts().since(counted).metrics
        took_s = time.monotonic() - started
        seen = seen_between(self._settings, before, ended, profiles_between(self._settings, before, ended))
        took = np.array([one.took_ms for one in seen if one.written_ms >= since_ms])
        p50, p99, p999 = (round(float(one), 1) for one in np.percentile(took, (50, 99, 99.9)))
        found = Freshness(len(took), round(len(seen) / took_s, 1), p50, p99, p999, float(took.max()), _saved(metrics))
        self._report(f"{part}: {found.events_per_s:,.0f} events/s, p50 {p50} p99 {p99} p99.9 {p999} ms")
        return found

    def _load(self) -> AbstractContextManager[None]:
        """Write at the rate that was settled on inside the block."""
        return load(self._settings, self._traffic, self._rate)

    def _steady(self) -> int:
        with self._load():
            time.sleep(self._choices.seconds)
        return 0

    def _spread(self, *, hot: float = 0.0, zipf: float = 0.0) -> int:
        self._traffic.spread(hot=hot, zipf=zipf)
        try:
            return self._steady()
        finally:
            self._traffic.spread()

    def _swap(self) -> int:
        """Let another release take over, and go on until every worker has taken it up."""
        with self._load():
            time.sleep(self._choices.seconds / 4)
            since_ms = _now_ms()
            promote(self._settings, _OTHER, force=True, reason="benchmark")
            self._fleet.until(lambda: all(one.release == _OTHER for one in self._fleet.metrics()), "release 2 is used")
        return since_ms

    def _loss(self) -> int:
        """Kill a worker, and go on until the others have read what it had not."""
        with self._load():
            time.sleep(self._choices.seconds / 4)
            since_ms = _now_ms()
            self._fleet.kill(0)
            partitions = set(range(self._settings.kafka.partitions))
            self._fleet.until(
                lambda: {number for one in self._fleet.metrics() for number in one.partitions} == partitions,
                "the partitions of the worker that was killed are taken over",
            )
            time.sleep(self._choices.seconds / 2)
        self._fleet.start(0)
        self._fleet.until(lambda: all(one.partitions for one in self._fleet.metrics()), "the worker is back")
        return since_ms

    def _backlog(self) -> int:
        """Write a backlog at once; measured are the events that come after it, while it is read."""
        applied = self._fleet.total("events")
        write(self._settings, self._traffic.burst(self._choices.backlog))
        since_ms = _now_ms()
        with self._load():
            wanted = applied + self._choices.backlog
            self._fleet.until(lambda: self._fleet.total("events") >= wanted, "the backlog is read")
        return since_ms


@contextmanager
def _models(choices: Choices, report: Callable[[str], None]) -> Iterator[Path]:
    """Yield the repository of the models measured: the folder named, or one of this run alone."""
    with TemporaryDirectory(prefix="xplat-bench-models-") as folder:
        root = Path(choices.models or folder) / "models"
        train_models(root, Settings(platforms=PLATFORMS), report)
        yield root


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _saved(counted: Mapping[str, int]) -> float:
    """Return the share of scorings that would have been one an update and did not come about, now or later."""
    updates = counted["scored"] - counted["rescored"] + counted["stale"]
    return round(1 - counted["scored"] / updates, 4) if updates else 0.0


def unit_costs(rates: Collection[Rate]) -> tuple[float, float, float]:
    """Return the CPU microseconds of a text encoded, of a user scored by Triton, and of an update by the worker.

    Of these the measured CPU times are sums, one equation a rate: texts cost both, so two rates at the least tell them
    apart. All 0 for fewer.
    """
    if len(rates) < 2:  # noqa: PLR2004 - two unknowns of each
        return 0.0, 0.0, 0.0
    texts = np.array([one.events * (1 - one.hit_rate) / one.updates for one in rates])
    found = []
    for name, others in (("triton", [1 - one.calls_saved for one in rates]), ("worker", [1.0] * len(rates))):
        taken = np.array([one.cpu_us[name] for one in rates])
        found.append(np.linalg.lstsq(np.column_stack([texts, others]), taken, rcond=None)[0])
    (triton_text, score), (worker_text, update) = found
    return round(float(triton_text + worker_text), 1), round(float(score), 1), round(float(update), 1)


def _share_of_worker(rate: Rate) -> float:
    worker, triton = rate.cpu_us["worker"], rate.cpu_us["triton"]
    return round(worker / (worker + triton), 3)


def _windows(settings: Settings, count: int) -> tuple[list[BehaviorWindow], dict[TextHash, str]]:
    """Return the windows of some of the users that the log is of, and the texts in them."""
    rows: dict[str, list[tuple[str, Row]]] = {}
    texts: dict[TextHash, str] = {}
    for event, _ in read_behavior(settings):
        if isinstance(event, Event) and (event.user_id in rows or len(rows) < count):
            text = item_text(event.object)
            texts[hash_text(text)] = text
            rows.setdefault(event.user_id, []).append((event.platform, row_of(event, hash_text(text))))
    spec = WindowSpec(settings.window.per_platform, settings.window.horizon)
    return [BehaviorWindow(spec).fold(additions) for additions in rows.values()], texts


async def _score_fused(settings: Settings, windows: list[BehaviorWindow], texts: Mapping[TextHash, str]) -> None:
    repository = ModelRepository.of(settings)
    release = load_fused(repository, repository.versions(FUSED)[-1])
    async with TritonScorer(settings.triton) as scorer:
        reader = FusedScorer(scorer, batch=settings.triton.encoder_batch)
        await reader.score(
            release, [fused_text(window, texts, max_tokens=release.manifest.max_tokens) for window in windows]
        )
