"""A promotion under load: are all active users on the new release in time, and do ordinary updates stay as fresh?

So many users with windows, a steady stream of ordinary updates, and one announcement. **Fresh** is what a consumer
sees: from the moment an event was written until a profile that holds it was readable. Steady is the state before the
promotion, once whoever waited for scoring since the windows were given has been scored; migrating what is published
from the announcement until the workers report that everybody active is on the new release; the loading in between is
what `xplat bench swaps` measures. The budget is the number of these users over the rate that `release.rescore_per_s`
allows one worker.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, NamedTuple, Self

import msgspec
import numpy as np

from benchmarks.live import (
    PLATFORMS,
    Traffic,
    announced_now,
    caught_up,
    give_windows,
    metrics_of,
    people,
    serving,
    two_heads,
    until,
)
from benchmarks.stack import private_stack
from trainer.release.release import place_candidate
from xplat_stream.kafka.reports import read_release_report
from xplat_stream.serving.promote import promote
from xplat_stream.verify import verify

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from benchmarks.live import Published

_EVENTS_EACH: Final = 5
_REPORT_S: Final = 1.0
"""Workers report this often here, so that the end is seen to the second."""

_PATIENCE: Final = 4.0
"""Times the budget, after which a migration is given up."""


class PromotionBench(msgspec.Struct, frozen=True):
    """One run. Milliseconds are of profiles that behavior caused, event written → profile readable."""

    users: int
    """Active users when the release was announced, as the worker counts them."""
    rescored: int
    """Of these, users scored again because of the announcement; the others did something themselves meanwhile."""
    events_per_s: float
    budget_s: float
    migrated_s: float
    """From the announcement until reports say that every active user is on the release."""
    within_budget: bool
    updates: int
    p50_steady_ms: float
    p99_steady_ms: float
    p50_migrating_ms: float
    p99_migrating_ms: float
    p50_ratio: float
    p99_ratio: float
    missing: int
    extra: int
    differing: int


class Freshness(NamedTuple):
    """Half of the profiles, and 99 of 100, were readable within so many milliseconds."""

    p50: float
    p99: float

    @classmethod
    def of(cls, found: Sequence[Published]) -> Self:
        """Measure some profiles. Raises `ValueError` where there are none."""
        if not found:
            message = "no profile was published; freshness is of profiles"
            raise ValueError(message)
        p50, p99 = np.percentile([one.fresh_ms for one in found], (50, 99))
        return cls(round(float(p50), 1), round(float(p99), 1))


def bench_promotion(*, users: int, rate: float, steady_s: float, report: Callable[[str], None]) -> PromotionBench:
    """Promote a release while `users` have windows and `rate` events a second come in.

    Raises `StackError`, and what training and promotion raise.
    """
    with private_stack(report, platforms=PLATFORMS) as (stack, home):
        often = msgspec.structs.replace(stack.release, report_interval_s=_REPORT_S)
        settings = msgspec.structs.replace(stack, release=often)
        second, _ = two_heads(settings, report)
        with serving(settings, home) as worker:
            report(f"giving {users} users windows")
            give_windows(settings, worker, users=users, each=_EVENTS_EACH)
            with Traffic(settings, people(users), rate) as traffic:
                # Until whoever waits for scoring since the windows were given has come due: that is a burst of its own.
                time.sleep(settings.score.stale_s)
                begun = time.time()
                time.sleep(steady_s)
                started = time.time()
                release = place_candidate(settings, second).release
                before = metrics_of(settings).migrated
                promote(settings, release, force=True, reason="benchmark")
                at = announced_now(settings).announced_at.timestamp()
                budget_s = users / settings.release.rescore_per_s
                report(f"release {release} is announced, {budget_s:.0f} s are its budget")
                until(
                    lambda: read_release_report(settings, release).complete,
                    worker,
                    "everybody is on the release",
                    within_s=_PATIENCE * budget_s,
                )
                ended = time.time()
            caught_up(settings, worker)
            time.sleep(2 * _REPORT_S)
            rescored = metrics_of(settings).migrated - before
            active = read_release_report(settings, release).active_users
            verdict = verify(settings)
        steady, migrating = traffic.updates(begun, started), traffic.updates(at, ended)
        fresh = Freshness.of(steady), Freshness.of(migrating)
        return PromotionBench(
            users=active,
            rescored=rescored,
            events_per_s=rate,
            budget_s=round(budget_s, 1),
            migrated_s=round(ended - at, 1),
            within_budget=ended - at <= budget_s,
            updates=len(steady) + len(migrating),
            p50_steady_ms=fresh[0].p50,
            p99_steady_ms=fresh[0].p99,
            p50_migrating_ms=fresh[1].p50,
            p99_migrating_ms=fresh[1].p99,
            p50_ratio=round(fresh[1].p50 / fresh[0].p50, 2),
            p99_ratio=round(fresh[1].p99 / fresh[0].p99, 2),
            missing=verdict.missing,
            extra=verdict.extra,
            differing=verdict.differing,
        )
