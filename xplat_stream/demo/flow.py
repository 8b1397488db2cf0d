"""The demo from top to bottom, in the order it runs."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
from rich.live import Live

from xplat_stream import local
from xplat_stream.demo.children import Child
from xplat_stream.demo.score import against_truth
from xplat_stream.demo.watch import ProfileWatch, line, picture
from xplat_stream.errors import StackError
from xplat_stream.kafka.topics import create_topics
from xplat_stream.metrics import read_metrics
from xplat_stream.population import Population
from xplat_stream.settings import load_settings
from xplat_stream.simulate import simulate
from xplat_stream.taxonomy import load_taxonomy
from xplat_stream.verify import verify, wait_until_caught_up

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

    from xplat_stream.metrics import Metrics
    from xplat_stream.settings import Settings

_USERS: Final = 800
_HISTORY_EVENTS: Final = 40_000
_HISTORY_DAYS: Final = 30.0
_LIVE: Final = {"rate_per_s": 150.0, "bad_share": 0.002, "duplicate_share": 0.01, "out_of_order_share": 0.01}
_REFRESH_AFTER: Final = 0.2
"""Share of the live part after which the refresh begins."""
_REFRESH: Final = ["train", "--head-only", "--effort", "0.3", "--threads", "1", "--json"]
_REFRESHES: Final = 2
"""A local Triton was seen to abort on a starved machine while a graph was loaded: it is started again, once."""
_AFTER_REFRESH_S: Final = 8.0
"""How long it streams on with the new release at the least."""
_LINE_EVERY_S: Final = 10.0
_LOOK_EVERY_S: Final = 0.25
_RATE_OVER_S: Final = 2.0
_PATIENCE_S: Final = 300.0


class DemoResult(msgspec.Struct, frozen=True):
    """The last line the demo prints.

    `profiles`, rates, latencies and the hit rate are of the live part; the other figures are of the whole log.
    """

    events: int
    rejected: int
    profiles: int
    users: int
    updates_per_s: float
    p50_ms: float
    p99_ms: float
    text_cache_hit_rate: float
    release_before: int
    release_after: int
    missing: int
    extra: int
    differing: int
    truth_ndcg: float
    popularity_ndcg: float

    @property
    def good(self) -> bool:
        """Whether everything the demo promises came true."""
        exact = self.missing == self.extra == self.differing == 0
        return exact and self.release_after > self.release_before and self.truth_ndcg > self.popularity_ndcg


class Demo:
    """One run. What it starts, `close` stops."""

    def __init__(self, console: Console, environ: Mapping[str, str], *, seconds: float, seed: int) -> None:
        self._console = console
        self._environ = environ
        self._seconds = seconds
        self._home = Path(load_settings(environ).local.home) / "demo"
        self._own = {"XPLAT_LOCAL__HOME": str(self._home), "XPLAT_WORKER__DATADIR": str(self._home / "worker")}
        self._taxonomy = load_taxonomy(load_settings(environ).model.taxonomy)
        self._population = Population(self._taxonomy, users=_USERS, seed=seed)
        self._children: list[Child] = []

    @property
    def _settings(self) -> Settings:
        return load_settings({**self._environ, **self._own})

    def run(self) -> DemoResult:
        """Go through all steps. Raises `OperatorError`."""
        self._start_stack()
        settings = self._settings
        self._say(
            f"[bold]2[/] {_USERS} people leave {_HISTORY_EVENTS} events of {_HISTORY_DAYS:.0f} "
            f"days on {len(settings.platforms)} platforms"
        )
        simulate(settings, self._population, history_events=_HISTORY_EVENTS, history_days=_HISTORY_DAYS, rate_per_s=0)
        self._say("[bold]3[/] The first release: a pretrained transformer fine-tuned on that log (minutes)")
        first = self._train()
        self._say("[bold]4[/] A worker catches up with the log")
        worker = self._child("worker", ["worker", "--loglevel", "warn"])
        self._wait_for_worker(worker, settings)
        self._say(
            f"[bold]5[/] Live: {_LIVE['rate_per_s']:.0f} events a second, duplicates and broken records among them"
        )
        watch, live_s, before = self._live(worker, settings)
        self._say("[bold]6[/] Is it exact? The log is folded again, offline, and compared")
        after = read_metrics(Path(settings.worker.datadir))
        worker.stop()
        return self._judge(settings, watch, live_s, first["release"], _gained(before, after))

    def close(self, *, keep_stack: bool) -> None:
        """Stop the programs that were started, and the stack unless it is to be kept."""
        for child in reversed(self._children):
            child.stop()
        if not keep_stack:
            local.down(self._settings, report=self._say)

    def _say(self, words: str) -> None:
        self._console.print(words, highlight=False, soft_wrap=True)

    def _child(self, name: str, arguments: list[str], *, nice: int = 0, shown: bool = False) -> Child:
        child = Child(arguments, self._own, self._home / "logs" / f"{name}.log", nice=nice, shown=shown)
        self._children.append(child)
        return child

    def _start_stack(self) -> None:
        self._say("[bold]1[/] A real Kafka and a real Triton")
        shutil.rmtree(self._home, ignore_errors=True)
        self._up()
        create_topics(self._settings)

    def _up(self) -> None:
        """Start of the stack what does not run."""
        local.up(
            self._settings,
            report=self._say,
            external_kafka=self._environ.get("XPLAT_KAFKA__BOOTSTRAP"),
            external_triton=self._environ.get("XPLAT_TRITON__URL"),
        )

    def _train(self) -> dict[str, Any]:
        """Train in a process of its own, which draws its progress here. Returns its summary."""
        summary = self._child("train", ["train", "--teachers", "0", "--json"], shown=True).answer()
        self._say(_release_line(summary))
        return summary

    def _live(self, worker: Child, settings: Settings) -> tuple[ProfileWatch, float, Metrics]:
        """Stream, watch and refresh. Returns the watch, how long it was live, and the counters before."""
        watch = ProfileWatch(settings)
        watch.start()
        watch.ready.wait(_LINE_EVERY_S)
        ending = threading.Event()
        truth = self._home / "truth.json"
        platforms = threading.Thread(
            target=simulate, args=(settings, self._population), daemon=True,
            kwargs={"truth_path": truth, "stop": ending, **_LIVE},
        )  # fmt: skip
        before = read_metrics(Path(settings.worker.datadir))
        started = time.monotonic()
        platforms.start()
        self._stream(watch, settings)
        live_s = time.monotonic() - started
        ending.set()
        platforms.join()
        self._wait_for_worker(worker, settings)
        watch.finish()
        return watch, live_s, before

    def _stream(self, watch: ProfileWatch, settings: Settings) -> None:
        """Show the live view and refresh the model on the way."""
        started = last_line = time.monotonic()
        refresh: Child | None = None
        refreshes = 0
        switched_at = 0.0
        rate = _Rate()
        with Live(console=self._console, refresh_per_second=4) as view:
            while True:
                now = time.monotonic()
                elapsed = now - started
                if refresh is not None and refresh.failed and refreshes < _REFRESHES:
                    self._say(f"  the refresh failed: {refresh.last_words}; once more")
                    self._children.remove(refresh)
                    self._up()
                    refresh = None
                for child in self._children:
                    child.check()
                if refresh is None and elapsed >= self._seconds * _REFRESH_AFTER:
                    refresh = self._child("refresh", _REFRESH, nice=10)
                    refreshes += 1
                if refresh is not None and refresh.code == 0 and not switched_at and len(watch.releases) > 1:
                    switched_at = now
                doing = "refreshed" if switched_at else "refreshing the model" if refresh else "streaming"
                metrics = read_metrics(Path(settings.worker.datadir))
                headline = f"{elapsed:5.0f} s  {doing}"
                rate.note(metrics.events, now)
                if self._console.is_terminal:
                    view.update(picture(watch, metrics, headline=headline, events_per_s=rate.per_s))
                elif now - last_line >= _LINE_EVERY_S:
                    last_line = now
                    self._say(line(watch, metrics, headline=headline, events_per_s=rate.per_s))
                if switched_at and elapsed >= self._seconds and now - switched_at >= _AFTER_REFRESH_S:
                    break
                if elapsed > self._seconds + _PATIENCE_S:
                    raise self._in_vain("profiles of the refreshed release", self._home / "logs")
                time.sleep(_LOOK_EVERY_S)
        self._say(_release_line(refresh.answer()) if refresh else "")

    def _wait_for_worker(self, worker: Child, settings: Settings) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while not wait_until_caught_up(settings, timeout_s=0):
            worker.check()
            if time.monotonic() > deadline:
                raise self._in_vain("the worker to commit the whole log", worker.log)
            time.sleep(_LOOK_EVERY_S)

    def _in_vain(self, what: str, where: Path) -> StackError:
        return StackError(
            f"waited {_PATIENCE_S:.0f} s in vain for {what}", where=str(where), expected="progress",
            fix="The logs there say what happened.",
        )  # fmt: skip

    def _judge(
        self, settings: Settings, watch: ProfileWatch, live_s: float, first: int, gained: Mapping[str, int]
    ) -> DemoResult:
        verdict = verify(settings)
        truth = msgspec.json.decode((self._home / "truth.json").read_bytes())["users"]
        truth_ndcg, popularity_ndcg = against_truth(settings, self._taxonomy, truth)
        p50, p99 = watch.percentiles_ms()
        seen = gained["texts_seen"]
        return DemoResult(
            events=verdict.events,
            rejected=verdict.rejected,
            profiles=len(watch.latencies_ms),
            users=verdict.users,
            updates_per_s=round(len(watch.latencies_ms) / live_s, 1),
            p50_ms=round(p50, 1),
            p99_ms=round(p99, 1),
            text_cache_hit_rate=round(1 - gained["texts_encoded"] / seen, 4) if seen else 0.0,
            release_before=first,
            release_after=max(watch.releases, default=0),
            missing=verdict.missing,
            extra=verdict.extra,
            differing=verdict.differing,
            truth_ndcg=round(truth_ndcg, 4),
            popularity_ndcg=round(popularity_ndcg, 4),
        )


class _Rate:
    """Events per second over the last two seconds; the worker writes its counters once a second."""

    def __init__(self) -> None:
        self.per_s = 0.0
        self._last: tuple[int, float] | None = None

    def note(self, count: int, now: float) -> None:
        if self._last is None:
            self._last = (count, now)
        elif now - self._last[1] >= _RATE_OVER_S:
            self.per_s = (count - self._last[0]) / (now - self._last[1])
            self._last = (count, now)


def run_demo(console: Console, environ: Mapping[str, str], *, seconds: float, seed: int, keep: bool) -> DemoResult:
    """Run it. `seconds`: length of the live part, longer when the refresh takes longer. Raises `OperatorError`."""
    demo = Demo(console, environ, seconds=seconds, seed=seed)
    try:
        return demo.run()
    finally:
        demo.close(keep_stack=keep)


def _gained(before: Metrics, after: Metrics) -> dict[str, int]:
    return {name: getattr(after, name) - getattr(before, name) for name in ("texts_seen", "texts_encoded")}


def _release_line(summary: Mapping[str, Any]) -> str:
    metrics = summary["metrics"]
    return (
        f"  release {summary['release']} on held-out time: NDCG@10 {metrics['ndcg_at_10']:.3f}, popularity "
        f"{metrics['popularity_ndcg_at_10']:.3f}, decayed counts {metrics['decayed_counts_ndcg_at_10']:.3f}"
    )
