"""The chaos suite: one fault after another under steady traffic, and the oracle's word on what is left."""

from __future__ import annotations

import random
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from tests.chaos.faults import FAULTS, Scene
from tests.chaos.fleet import Fleet, found_stops, found_tracebacks
from tests.chaos.stack import Stack
from tests.chaos.traffic import Traffic, drawn_events, probes, recorded
from tests.chaos.watch import ProfileWatch
from tests.tiny_release import make_published
from xplat_stream.errors import RejectedEvent
from xplat_stream.kafka import EventProducer
from xplat_stream.kafka.log import read_behavior, read_span, spans
from xplat_stream.kafka.topics import REJECTED, create_topics
from xplat_stream.local.process import wait_for
from xplat_stream.verify import verify, wait_until_caught_up

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from xplat_stream.settings import Settings
    from xplat_stream.verify import Verdict

EVENTS = 600
TRAFFIC_S = 7.0
PATIENCE_S = 90.0
"""A group that is not back after this long is not waited for any longer: the run has failed."""
MARGIN_S = 10.0
"""A group has to be back within the session time-out and this."""
RESCORED_WITHIN_S = 60.0
JUDGE_EVERY = 5
WORKERS = 2


def run(folder: Path, *, cycles: int, seed: int, kinds: Sequence[str] = tuple(FAULTS)) -> dict[str, Any]:
    """Run the cycles and return the figures. `ok` says whether every promise was held."""
    print(f"chaos: seed {seed}, {cycles} cycles of {', '.join(kinds)}; logs in {folder}", flush=True)
    with Stack(folder) as stack:
        settings = stack.settings
        create_topics(settings)
        good = make_published(settings)
        nan = make_published(settings, encoder=good.encoder, nan_beyond=4, announce=False)
        watch = ProfileWatch(settings)
        try:
            with Fleet(stack.behind_proxies(settings), folder) as fleet:
                suite = _Suite(Scene(stack, fleet, good, nan), watch, seed)
                suite.run(cycles, kinds)
        finally:
            watch.close()
    return suite.figures()


class _Suite:
    def __init__(self, scene: Scene, watch: ProfileWatch, seed: int) -> None:
        self._scene = scene
        self._settings = scene.stack.settings
        self._watch = watch
        self._seed = seed
        self._faults: Counter[str] = Counter()
        self._recoveries: dict[str, float] = {}
        self._worst_s = 0.0
        self._unacknowledged = 0
        self._unlettered: int | None = None
        self._prober = EventProducer(self._settings)
        self._verdict: Verdict | None = None
        self._failed = ""

    def run(self, cycles: int, kinds: Sequence[str]) -> None:
        for slot in self._scene.fleet.free[:WORKERS]:
            self._scene.fleet.join(slot)
        if self._recovered_after("start", time.monotonic()) is None:
            self._failed = "the workers did not start"
            return
        drawn = drawn_kinds(kinds, self._seed)
        for cycle in range(1, cycles + 1):
            began = time.monotonic()
            kind = next(drawn)
            recovery_s = self._cycle(cycle, kind)
            if recovery_s is None:
                self._failed = f"cycle {cycle}, {kind}: not back within {PATIENCE_S:.0f} s"
                return
            took_s = time.monotonic() - began
            print(f"{cycle:4} {kind:18} back in {recovery_s:5.1f} s, cycle {took_s:5.1f} s", flush=True)
            if (cycle % JUDGE_EVERY == 0 or cycle == cycles) and not self._judged(cycle):
                return
        self._unlettered = unlettered(self._settings)
        if self._unlettered:
            self._failed = f"{self._unlettered} rejected records have no dead letter"
        elif not self._rescored():
            self._failed = f"{len(self._watch.degraded)} users were not scored again"

    def _cycle(self, cycle: int, kind: str) -> float | None:
        """Break, heal and measure under traffic; return the seconds from the heal until all is as before."""
        chance = random.Random(f"{self._seed}/{cycle}")
        name = f"c{cycle}"
        fault = FAULTS[kind]
        records = recorded(drawn_events(name, EVENTS, seed=f"{self._seed}/{cycle}/events"))
        traffic = Traffic(self._settings, fault.sends(records, chance), seconds=TRAFFIC_S, **fault.producer)
        try:
            time.sleep(chance.uniform(0.5, 2.5))
            self._faults[kind] += 1
            healed_at = fault.breaks(self._scene, chance)
            recovery_s = self._recovered_after(name, healed_at)
        finally:
            traffic.finish()
        self._unacknowledged += traffic.unacknowledged
        if recovery_s is not None:
            self._worst_s = max(self._worst_s, recovery_s)
            self._recoveries[kind] = max(recovery_s, self._recoveries.get(kind, 0.0))
        return recovery_s

    def _recovered_after(self, name: str, healed_at: float) -> float | None:
        """Wait until every partition has an owner and every worker some, and an event sent to each is in a profile."""
        partitions = self._settings.kafka.partitions
        events = probes(name, partitions)
        for event in events:
            self._prober.send(event)
        self._prober.flush()
        seen = self._watch.sees([event.user_id for event in events], within_s=PATIENCE_S)
        if not seen or not wait_for(lambda: self._scene.fleet.owns(partitions), timeout_s=PATIENCE_S):
            return None
        return time.monotonic() - healed_at

    def _judged(self, cycle: int) -> bool:
        """Ask the oracle; tell whether everything is exact so far."""
        if not wait_until_caught_up(self._settings, timeout_s=PATIENCE_S):
            self._failed = f"cycle {cycle}: the group did not catch up within {PATIENCE_S:.0f} s"
            return False
        self._watch.catch_up()
        self._verdict = verdict = verify(self._settings)
        back = self._watch.revisions_back
        print(
            f"     {verdict.events} events: {verdict.missing} missing, {verdict.extra} extra, "
            f"{verdict.differing} differing, {len(back)} revisions back",
            flush=True,
        )
        if not verdict.exact or back:
            self._failed = f"cycle {cycle}: {'; '.join([*verdict.examples, *back[:10]])}"
        return not self._failed

    def _rescored(self) -> bool:
        """Wait until nobody's last profile is degraded; tell whether it came to that in time."""
        deadline = time.monotonic() + RESCORED_WITHIN_S
        while self._watch.degraded and time.monotonic() < deadline:
            self._watch.poll()
        return not self._watch.degraded

    def figures(self) -> dict[str, Any]:
        verdict, fleet = self._verdict, self._scene.fleet
        stops, tracebacks = found_stops(fleet.log()), found_tracebacks(fleet.log())
        allowed_s = self._settings.worker.session_timeout_s + MARGIN_S
        failed = self._failed
        if not failed and self._worst_s > allowed_s:
            failed = f"back only after {self._worst_s:.1f} s; at most {allowed_s:.0f} s are allowed"
        for what, found in (("stopped", stops), ("traceback", tracebacks)):
            for line, times in found.most_common(20):
                print(f"     {what} {times} times: {line[:300]}")
        return {
            "ok": not failed,
            "failed": failed,
            "cycles": sum(self._faults.values()),
            "seed": self._seed,
            "faults": dict(sorted(self._faults.items())),
            "events": verdict.events if verdict else 0,
            "rejected": verdict.rejected if verdict else 0,
            "unacknowledged": self._unacknowledged,
            "profiles": self._watch.profiles,
            "missing": verdict.missing if verdict else None,
            "extra": verdict.extra if verdict else None,
            "differing": verdict.differing if verdict else None,
            "unlettered": self._unlettered,
            "revisions_back": len(self._watch.revisions_back),
            "still_degraded": len(self._watch.degraded),
            "worst_recovery_s": round(self._worst_s, 1),
            "recovery_s": {kind: round(seconds, 1) for kind, seconds in sorted(self._recoveries.items())},
            "exits": fleet.exits(),
            "tracebacks": tracebacks.total(),
        }


def unlettered(settings: Settings) -> int:
    """Count the records of the platforms' topics that are no events and that no dead letter names."""
    rejected = {
        (message.topic(), message.partition(), message.offset())
        for event, message in read_behavior(settings)
        if isinstance(event, RejectedEvent)
    }
    letters = (
        message for span in spans(settings, [REJECTED]) for batch in read_span(settings, span) for message in batch
    )
    for letter in letters:
        headers = {name: value.decode() for name, value in letter.headers()}
        rejected.discard((headers["topic"], int(headers["partition"]), int(headers["offset"])))
    return len(rejected)


def drawn_kinds(kinds: Sequence[str], seed: int) -> Iterator[str]:
    """Yield kinds of faults for ever: each once before any comes again, so that few cycles show many."""
    chance = random.Random(f"{seed}/kinds")
    while True:
        yield from chance.sample(kinds, len(kinds))
