"""Kill trainer, command, worker or Triton at the named steps of a release, all on real parts.

After each kill, and a restart of Triton, the release that is announced answers; done again, the release is through:
Triton's sight, journals and topic agree, every active user is scored by it, and the oracle finds nothing amiss.

Run as a program itself, `python -m tests.chaos.releases N`, it is the trainer without the training: a successor of
release N is placed, judged on the real Triton and promoted.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import msgspec

from tests.tiny_release import make_published, successor
from tests.worker_process import ALONE, XPLAT, Worker, environment
from xplat_stream.errors import EXIT_OPERATOR, OperatorError
from xplat_stream.failpoints import VARIABLE
from xplat_stream.kafka.consumer import active_announcement
from xplat_stream.kafka.log import read_behavior
from xplat_stream.kafka.reports import read_release_report
from xplat_stream.kafka.topics import create_topics
from xplat_stream.local.process import wait_for
from xplat_stream.population import Population
from xplat_stream.serving import ModelRepository, TritonScorer
from xplat_stream.serving.promote import known_store, promote
from xplat_stream.serving.releases import ENCODER, HEAD
from xplat_stream.settings import ReleaseSettings, Settings, load_settings
from xplat_stream.simulate import simulate
from xplat_stream.taxonomy import load_taxonomy
from xplat_stream.verify import verify, wait_until_caught_up

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.chaos.stack import Stack
    from xplat_stream.kafka.codec import Announcement

PATIENCE_S: Final = 120.0
_COMMAND_S: Final = 300.0
_DONE_BEFORE: Final = ("is active already", "no previous release")


class Death(NamedTuple):
    """Who dies, at which step of what."""

    act: Literal["train", "promote", "shadow", "rollback"]
    point: str
    victim: Literal["itself", "triton", "worker"]


DEATHS: Final[dict[str, Death]] = {
    "gate-loading": Death("train", "triton.loading", "triton"),
    "gate-loaded": Death("train", "triton.loaded", "itself"),
    "judged": Death("train", "release.judged", "itself"),
    "in-sight": Death("promote", "sight.renamed:2", "itself"),
    "loading": Death("promote", "triton.loading:2", "triton"),
    "loaded": Death("promote", "triton.loaded:2", "itself"),
    "answered": Death("promote", "release.answered", "triton"),
    "announced": Death("promote", "release.announced", "itself"),
    "journaled": Death("promote", "release.journaled", "itself"),
    "shadow-announced": Death("shadow", "release.announced", "itself"),
    "warm-kept": Death("shadow", "warm.kept", "worker"),
    "shadow-compared": Death("shadow", "shadow.compared", "worker"),
    "switch-read": Death("promote", "switch.read", "worker"),
    "switch-warmed": Death("promote", "switch.warmed", "worker"),
    "switch-taken": Death("promote", "switch.taken", "worker"),
    "rescore-taken": Death("promote", "rescore.taken", "worker"),
    "rescore-done": Death("promote", "rescore.done:2", "worker"),
    "told": Death("promote", "report.told:3", "worker"),
    "back-loading": Death("rollback", "triton.loading", "triton"),
    "back-announced": Death("rollback", "release.announced", "itself"),
}
"""Every kind, by the name `--deaths` takes."""


def run(folder: Path, *, names: Sequence[str] = tuple(DEATHS)) -> dict[str, Any]:
    """Let all of them die, one after another, and return the figures. `ok` says whether every promise was held."""
    from tests.chaos.stack import Stack

    print(f"releases: {', '.join(names)}; logs in {folder}", flush=True)
    taken_s: dict[str, float] = {}
    failed = ""
    with Stack(folder, app="releases") as stack:
        suite = _Suite(stack, folder)
        try:
            for name in names:
                began = time.monotonic()
                suite.die(DEATHS[name])
                taken_s[name] = round(time.monotonic() - began, 1)
                print(f"{name:18} {taken_s[name]:5.1f} s", flush=True)
        except AssertionError as error:
            failed = f"{names[len(taken_s)]}: {error}"
        finally:
            suite.worker.kill_line()
    return {"ok": not failed, "failed": failed, "deaths": len(taken_s), "took_s": taken_s}


class _Suite:
    def __init__(self, stack: Stack, folder: Path) -> None:
        self._stack = stack
        self._folder = folder
        often = ReleaseSettings(
            active_days=4000.0, rescore_per_s=5000.0, shadow_share=1.0, report_interval_s=0.5, watch_minutes=0.0
        )
        worker = msgspec.structs.replace(stack.settings.worker, datadir=str(folder / "state"))
        self._settings: Settings = msgspec.structs.replace(stack.settings, release=often, worker=worker)
        create_topics(self._settings)
        people = Population(load_taxonomy(), users=120, seed=5)
        simulate(self._settings, people, history_events=5000, history_days=20, rate_per_s=0)
        make_published(self._settings)
        self._turn = 0
        self.worker = self._started()

    def _started(self, failpoint: str = "") -> Worker:
        self._turn += 1
        log = self._folder / f"worker-{self._turn}.log"
        return Worker(self._settings, log, ALONE, **{VARIABLE: failpoint}).ready()

    @property
    def _announced(self) -> Announcement:
        found = active_announcement(self._settings)
        assert found is not None
        return found

    def die(self, death: Death) -> None:
        """Have somebody die, and hold the promises."""
        number = self._prepared(death)
        command = {
            "train": [sys.executable, "-m", "tests.chaos.releases", str(number)],
            "rollback": [str(XPLAT), "model", "rollback"],
            "promote": [str(XPLAT), "model", "promote", str(number), "--force"],
            "shadow": [str(XPLAT), "model", "shadow", str(number)],
        }[death.act]
        if death.victim == "worker":
            self.worker.kill_line()
            self.worker = self._started(death.point)
        pid = f"={self._stack.triton.pid}" if death.victim == "triton" else ""
        code, words = self._run(command, "" if death.victim == "worker" else death.point + pid)
        if death.victim == "itself":
            assert code == -signal.SIGKILL, f"it ended with {code}: {words}"
        elif death.victim == "worker":
            assert code == 0, words
            self._touch()
            died = wait_for(lambda: not self.worker.running, timeout_s=PATIENCE_S)
            assert died, "the worker did not come to that step"
            assert self.worker.process.returncode == -signal.SIGKILL, self.worker.words()
            self.worker = self._started()
        else:
            assert code in {0, 2}, f"it ended with {code}: {words}"
            assert not self._stack.triton.running, "Triton did not die"
        self._triton_again()
        self._answers()
        code, words = self._run(command)
        assert code == 0 or any(one in words for one in _DONE_BEFORE), words
        self._answers()
        self._through()

    def _prepared(self, death: Death) -> int:
        """Return the number that the command is given: of a new candidate, or of the release to train after."""
        from trainer.release.release import place_candidate

        active = self._announced
        if death.act == "train":
            return active.release
        manifest = ModelRepository.of(self._settings).manifest(active.release)
        if death.act == "rollback" and active.previous:
            return 0
        number = place_candidate(self._settings, successor(self._settings, manifest, new_encoder=True)).release
        if death.act == "rollback":
            promote(self._settings, number, force=True)
        return number

    def _run(self, command: Sequence[str], failpoint: str = "") -> tuple[int, str]:
        done = subprocess.run(
            command,
            env=environment(self._settings, **{VARIABLE: failpoint}),
            capture_output=True,
            text=True,
            timeout=_COMMAND_S,
            check=False,
        )
        return done.returncode, done.stderr[-1000:]

    def _touch(self) -> None:
        """Let people do something, so that there is something to score."""
        people = Population(load_taxonomy(), users=120, seed=5)
        simulate(self._settings, people, history_events=300, history_days=1, rate_per_s=0)

    def _triton_again(self) -> None:
        with suppress(ProcessLookupError):  # else its children may have outlived it
            self._stack.triton.end()
        self._stack.start_triton()

    def _answers(self) -> None:
        """See that the release that is announced is whole and answers its golden requests."""
        release = ModelRepository.of(self._settings).load(self._announced.release)

        async def ask() -> None:
            async with TritonScorer(self._settings.triton) as scorer:
                await scorer.check_golden(release)

        try:
            asyncio.run(ask())
        except OperatorError as error:
            raise AssertionError(str(error)) from error

    def _through(self) -> None:
        """See that all agree, and that everybody is scored by what is announced."""
        said = self._announced
        store = known_store(self._settings)[0]
        kept = {said.release, said.previous, said.shadow} - {0}
        sight = store.repository.versions(HEAD), store.repository.versions(ENCODER)
        assert set(sight[0]) == kept, f"in sight are {sight}, announced is {said}"
        assert set(sight[1]) == {store.repository.manifest(number).encoder for number in kept}, sight
        assert store.state(said.release) == "active", store.journal(said.release)
        self.worker.until(
            lambda: read_release_report(self._settings, said.release).complete, "move everybody", within_s=PATIENCE_S
        )
        assert wait_until_caught_up(self._settings, timeout_s=PATIENCE_S), "the worker does not catch up"
        verdict = verify(self._settings)
        assert verdict.exact, verdict


def _train(number: int) -> None:
    """Place a successor of a release, judge it and promote it."""
    from trainer.data.dataset import build_examples
    from trainer.release.release import release
    from trainer.run.options import TrainOptions
    from trainer.run.progress import silent
    from xplat_stream.window import WindowSpec

    settings = load_settings()
    events = [event for event, _ in read_behavior(settings) if event is not None]
    spec = WindowSpec(settings.window.per_platform, settings.window.horizon)
    data = build_examples(events, load_taxonomy(), spec, TrainOptions())
    manifest = ModelRepository.of(settings).manifest(number)
    release(settings, successor(settings, manifest, new_encoder=True), data, silent, force=True)


if __name__ == "__main__":
    try:
        _train(int(sys.argv[1]))
    except OperatorError as told:
        sys.stderr.write(f"xplat: {told}\n")
        sys.exit(EXIT_OPERATOR)
