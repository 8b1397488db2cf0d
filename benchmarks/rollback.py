"""A bad release forced past the gate: how soon is it found out, taken back, and everything it said replaced?

Its head gives every label the score of another one, the most popular ones those of the rarest. The gate refuses it, it
is promoted by force while a steady stream comes in, and `xplat model watch` runs beside it as it would in production:
every setting of `[release]` as it comes. Nothing it said is left when no user's last profile names it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
import onnx

from benchmarks.live import (
    PLATFORMS,
    Traffic,
    announced_now,
    caught_up,
    environment_of,
    give_windows,
    people,
    serving,
    two_heads,
    until,
)
from benchmarks.stack import private_stack
from trainer.data.prepare import prepare
from trainer.release.gate import check
from trainer.release.release import place_candidate
from trainer.run.options import TrainOptions
from trainer.run.progress import silent
from xplat_stream.comparison import breaches
from xplat_stream.demo.children import Child
from xplat_stream.kafka.codec import decode_profile
from xplat_stream.kafka.log import read_span, spans
from xplat_stream.kafka.reports import read_release_report
from xplat_stream.kafka.topics import PROFILES
from xplat_stream.serving.promote import promote
from xplat_stream.verify import verify

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trainer.release.release import Candidate
    from xplat_stream.settings import Settings

_EVENTS_EACH: Final = 5
_STEADY_S: Final = 10.0
_FOUND_OUT_S: Final = 300.0


class RollbackBench(msgspec.Struct, frozen=True):
    """One run."""

    users: int
    """Active users, as the worker counts them."""
    events_per_s: float
    refused_by: tuple[str, ...]
    """The gate's checks that it failed, and was promoted in spite of."""
    breaches: tuple[str, ...]
    """The limits it broke, as the workers' reports show."""
    breach_s: float
    """From its announcement until the reports show a breach."""
    rolled_back_s: float
    """From the breach until the release before was announced again."""
    restored_s: float
    """From then until the reports say that every active user, and everyone it scored, is on that release."""
    scored_by_bad: int
    """Users of whom it published a profile."""
    left_on_bad: int
    """Users whose last profile is one of these."""
    missing: int
    extra: int
    differing: int


def bench_rollback(*, users: int, rate: float, report: Callable[[str], None]) -> RollbackBench:
    """Force a bad release on `users` with windows under `rate` events a second, and watch it being taken back.

    Raises `StackError`, and what training and promotion raise.
    """
    with private_stack(report, platforms=PLATFORMS) as (settings, home):
        second, _ = two_heads(settings, report)
        bad = place_candidate(settings, spoiled(second)).release
        refused = check(settings, bad, prepare(settings, TrainOptions(), silent).data).refused_by
        report(f"the gate refuses release {bad}: {', '.join(refused)}")
        with serving(settings, home) as worker:
            report(f"giving {users} users windows")
            give_windows(settings, worker, users=users, each=_EVENTS_EACH)
            with Traffic(settings, people(users), rate) as traffic:
                time.sleep(_STEADY_S)
                good = promote(settings, bad, force=True, reason="benchmark").previous
                figures = _taken_back(settings, home, worker, (good, bad), report)
            caught_up(settings, worker)
            active = read_release_report(settings, good).active_users
            verdict = verify(settings)
            last = last_releases(settings)
        return RollbackBench(
            users=active,
            events_per_s=rate,
            refused_by=refused,
            scored_by_bad=len({one.user_id for one in traffic.found if one.release == bad}),
            left_on_bad=sum(release == bad for release in last.values()),
            missing=verdict.missing,
            extra=verdict.extra,
            differing=verdict.differing,
            **figures,
        )


def _taken_back(
    settings: Settings, home: Path, worker: Child, releases: tuple[int, int], report: Callable[[str], None]
) -> dict[str, Any]:
    """Watch the bad release being taken back, and return how long each part took."""
    good, bad = releases
    began = announced_now(settings)
    watch = Child(["model", "watch", "--json"], environment_of(settings, home), home / "logs" / "watch.log")
    found: list[str] = []

    def broken() -> bool:
        said = read_release_report(settings, bad, shadow=good, since=began.announced_at)
        found[:] = [str(breach) for breach in breaches(said.comparison, settings.release)]
        return bool(found)

    try:
        until(broken, worker, "a breach is reported", within_s=_FOUND_OUT_S)
        breach_at = time.time()
        report(f"breach: {'; '.join(found[:3])}")
        until(lambda: announced_now(settings).rolled_back == bad, worker, "it is rolled back", within_s=_FOUND_OUT_S)
        rolled_back_at = announced_now(settings).announced_at.timestamp()
        until(
            lambda: read_release_report(settings, good).complete, worker, "all are on it again", within_s=_FOUND_OUT_S
        )
        restored_at = time.time()
    finally:
        watch.stop()
    return {
        "breaches": tuple(found[:3]),
        "breach_s": round(breach_at - began.announced_at.timestamp(), 1),
        "rolled_back_s": round(rolled_back_at - breach_at, 1),
        "restored_s": round(restored_at - rolled_back_at, 1),
    }


def spoiled(candidate: Candidate) -> Candidate:
    """Return a candidate that gives each label another one's score, the highest the lowest; golden answers and all."""
    order = opposite(np.array(candidate.golden.scores).mean(axis=0))
    model = onnx.load_from_string(candidate.head)
    for node in model.graph.node:
        node.output[:] = ["own_scores" if name == "scores" else name for name in node.output]
        node.input[:] = ["own_scores" if name == "scores" else name for name in node.input]
    model.graph.initializer.append(onnx.numpy_helper.from_array(order, "opposite"))
    model.graph.node.append(onnx.helper.make_node("Gather", ["own_scores", "opposite"], ["scores"], axis=1))
    scores = [[row[one] for one in order.tolist()] for row in candidate.golden.scores]
    golden = msgspec.structs.replace(candidate.golden, scores=scores)
    return candidate._replace(head=bytes(model.SerializeToString()), golden=golden)


def opposite(means: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return, for each label, the one at the other end of the ranking by these scores (labels,)."""
    ranked = np.argsort(-means, kind="stable")
    order = np.empty(len(means), np.int64)
    order[ranked] = ranked[::-1]
    return order


def last_releases(settings: Settings) -> dict[bytes, int]:
    """Return the release that every user's last profile is of, as the topic has it."""
    found: dict[bytes, int] = {}
    for span in spans(settings, [PROFILES]):
        for messages in read_span(settings, span):
            found |= {one.key(): decode_profile(value).data.model.release for one in messages if (value := one.value())}
    return found
