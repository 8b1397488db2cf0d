"""Groups that never committed anything: two or three workers join moments apart while producers run.

This is where stock Faust, and a prototype of this worker, lost events for good: with nothing committed there is no
offset to go back to after a rebalance.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec
from confluent_kafka import KafkaException

from tests.chaos.fleet import Fleet
from tests.chaos.stack import Stack
from tests.chaos.traffic import PLATFORMS, Traffic, drawn_events, recorded
from tests.tiny_release import make_published
from xplat_stream.kafka.topics import (
    MODELS,
    PROFILES,
    REJECTED,
    REKEYED,
    admin,
    behavior_topic,
    changelog_topic,
    create_topics,
    partition_counts,
)
from xplat_stream.local.process import wait_for
from xplat_stream.verify import Verdict, verify, wait_until_caught_up

if TYPE_CHECKING:
    from pathlib import Path

    from xplat_stream.settings import Settings

EVENTS = 3000
TRAFFIC_S = 6.0
CAUGHT_UP_WITHIN_S = 90.0
GONE_WITHIN_S = 30.0


def run(folder: Path, *, starts: int, seed: int) -> dict[str, Any]:
    """Start that many groups, one after the other, each with topics of its own, and return the figures."""
    print(f"fresh groups: seed {seed}, {starts} starts of {EVENTS} events; logs in {folder}", flush=True)
    found: Counter[str] = Counter(dict.fromkeys(("exact", "events", "missing", "extra", "differing"), 0))
    exits: Counter[str] = Counter()
    failed = ""
    with Stack(folder) as stack:
        create_topics(stack.settings)
        make_published(stack.settings)
        for number in range(1, starts + 1):
            settings = msgspec.structs.replace(
                stack.settings, worker=msgspec.structs.replace(stack.settings.worker, app=f"fresh-{number}")
            )
            forget_topics(settings)
            create_topics(settings)
            place = folder / f"start-{number:03}"
            with Fleet(stack.behind_proxies(settings), place, size=3) as fleet:
                verdict = _started(settings, fleet, random.Random(f"{seed}/{number}"), f"{seed}/{number}/events")
            exits.update(fleet.exits())
            if verdict is None or not verdict.exact:
                failed = failed or f"start {number}: {verdict or 'did not catch up'}"
            if verdict is not None:
                found["exact"] += verdict.exact
                found.update({name: getattr(verdict, name) for name in ("events", "missing", "extra", "differing")})
            print(f"{number:4} {verdict}", flush=True)
    exact = found["exact"] == starts
    return {"ok": exact, "failed": failed, "starts": starts, "seed": seed, **found, "exits": dict(exits)}


def _started(settings: Settings, fleet: Fleet, chance: random.Random, events_seed: str) -> Verdict | None:
    """Let two or three workers join a group within a few seconds, a part of the log being there already."""
    records = recorded(drawn_events(settings.worker.app, EVENTS, seed=events_seed, users=150))
    backlog = chance.randrange(len(records) // 2)
    Traffic(settings, records[:backlog], seconds=0).finish()
    traffic = Traffic(settings, records[backlog:], seconds=TRAFFIC_S)
    try:
        for slot in fleet.free[: chance.choice((2, 3))]:
            fleet.join(slot)
            time.sleep(chance.uniform(0, 4))
    finally:
        traffic.finish()
    caught_up = wait_until_caught_up(settings, timeout_s=CAUGHT_UP_WITHIN_S)
    return verify(settings) if caught_up else None


def forget_topics(settings: Settings) -> None:
    """Delete everything but the announced release, so that the next group's log is its own."""
    kept = {MODELS}
    client = admin(settings)
    ours = {*map(behavior_topic, PLATFORMS), REKEYED, REJECTED, PROFILES, changelog_topic(settings.worker.app)}
    there = [name for name in partition_counts(settings) if name in ours - kept or name.endswith(changelog_topic(""))]
    for name, future in client.delete_topics(there, operation_timeout=GONE_WITHIN_S).items():
        try:
            future.result()
        except KafkaException as error:
            message = f"topic {name} cannot be deleted: {error.args[0].str()}"
            raise RuntimeError(message) from error
    assert wait_for(lambda: not set(there) & partition_counts(settings).keys(), timeout_s=GONE_WITHIN_S)
