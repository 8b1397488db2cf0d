"""A release taken up by a real worker: its active users move, a second release is compared, a bad one goes back."""

from __future__ import annotations

import contextlib
import shutil
import signal
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import msgspec
import pytest

from tests.integration.conftest import announce_release, assert_exact, last_profiles, made_events, profiles, publish
from tests.integration.test_worker import _stream
from xplat_stream.event import Millis, UserId
from xplat_stream.kafka.reports import read_release_report, read_warmth
from xplat_stream.settings import ReleaseSettings
from xplat_stream.testing import make_event
from xplat_stream.watch import watch

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.integration.conftest import Published, Worker
    from xplat_stream.comparison import Breach
    from xplat_stream.event import Event
    from xplat_stream.settings import Settings

pytestmark = pytest.mark.integration

DAY_MS = 86_400_000


def moving(settings: Settings, **fields: float) -> Settings:
    """Return settings under which everybody of the last 40 days is active, and workers report twice a second."""
    chosen = {"active_days": 40.0, "rescore_per_s": 500.0, "report_interval_s": 0.5, "shadow_share": 1.0, **fields}
    return msgspec.structs.replace(settings, release=msgspec.convert(chosen, ReleaseSettings))


def labelled(users: int, *, name: str) -> list[Event]:
    """Return an event of each user, just now, on something whose own classification names a label."""
    return [
        make_event(
            user_id=UserId(f"{name}-{user}"),
            object_title="running shoes",
            object_iab=("483",),
            occurred_at=Millis(int(time.time() * 1000)),
        )
        for user in range(users)
    ]


def ordinary(group: Settings) -> set[int]:
    """Return the releases that the streamed users' ordinary updates were scored with."""
    found = [one.data for one in profiles(group) if one.data.user_id.startswith("701-")]
    return {one.model.release for one in found if one.cause == "behavior"}


def test_active_users_move_and_ordinary_updates_go_on(
    group: Settings, start_worker: Callable[..., Worker], publish_release: Callable[..., Published]
) -> None:
    """All of them reach the release, with cause `model`; the inactive stay; and back again after a roll-back."""
    group = moving(group, shadow_share=0.0)
    first = publish_release()
    worker = start_worker(group).ready()
    publish(group, made_events(300, 3, seed=700))
    long_ago = int(time.time() * 1000) - 60 * DAY_MS
    publish(group, [make_event(user_id=UserId(f"old-700-{n}"), occurred_at=Millis(long_ago)) for n in range(20)])
    assert_exact(group)
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool, contextlib.ExitStack() as ending:
        ending.callback(stop.set)
        stream = pool.submit(_stream, group, "701", stop)
        second = publish_release()
        worker.until(lambda: read_release_report(group, second.number).complete, "move everybody")
        worker.until(lambda: stream.done() or second.number in ordinary(group), "score ordinary updates meanwhile")
        stop.set()
        stream.result(30)
    assert_exact(group)
    moved = last_profiles(group, "700-")
    assert len(moved) == 300
    assert {(one.model.release, one.cause, one.status) for one in moved.values()} == {(second.number, "model", "fresh")}
    assert {one.model.release for one in last_profiles(group, "old-700-").values()} == {first.number}
    assert {first.number, second.number} <= ordinary(group)
    report = read_release_report(group, second.number)
    assert report.active_users == report.scored_users >= 300
    worker.until(lambda: worker.metrics.active_scored == report.active_users, "say so in its metrics")

    worker.end(signal.SIGKILL)
    announce_release(group, first.number, first.encoder)
    worker = start_worker(group).ready()
    worker.until(lambda: read_release_report(group, first.number).complete, "move everybody back")
    back = last_profiles(group, "700-") | last_profiles(group, "701-")
    assert {one.model.release for one in back.values()} == {first.number}
    assert {one.cause for one in last_profiles(group, "700-").values()} == {"model"}
    assert_exact(group)
    revisions = defaultdict(list)
    for record in profiles(group):
        if record.data.user_id.startswith("700-"):
            revisions[record.data.user_id].append(record.data.revision)
    assert {user_id: found for user_id, found in revisions.items() if found != sorted(found)} == {}
    assert worker.running


def test_a_candidate_is_compared_on_live_windows(
    group: Settings, start_worker: Callable[..., Worker], publish_release: Callable[..., Published]
) -> None:
    """With its own encoder, after profiles that it never touches; the sums of a killed worker are gone on with."""
    group = moving(group)
    active = publish_release()
    candidate = publish_release(announce=False)
    announce_release(group, active.number, active.encoder, shadow=candidate.number)
    worker = start_worker(group).ready()
    worker.until(lambda: worker.metrics.shadow == candidate.number, "compare")
    publish(group, labelled(100, name="710"))
    assert_exact(group)

    def report() -> tuple[int, int]:
        comparison = read_release_report(group, active.number, shadow=candidate.number).comparison
        return comparison.compared, comparison.judged

    worker.until(lambda: report()[0] >= 100, "compare them")
    worker.until(lambda: worker.metrics.shadowed >= 100, "say so in its metrics")

    def judged() -> bool:
        publish(group, labelled(100, name="710"))
        return report()[1] >= 50

    worker.until(judged, "judge both by what is done next")
    worker.end(signal.SIGKILL)
    before = report()
    worker = start_worker(group).ready()
    publish(group, labelled(100, name="710"))
    worker.until(lambda: report()[0] >= before[0] + 100, "go on counting")
    assert_exact(group)
    assert {one.model.release for one in last_profiles(group, "710-").values()} == {active.number}
    found = read_release_report(group, active.number).comparison
    assert found.active.failed == found.other.failed == 0
    assert 0 < found.agreement < 1
    assert found.mean_difference > 0
    assert max(found.ndcg) > 0  # of weights at random: one of them may never come near the label
    assert found.active.latency_ms(0.99) > 0
    assert not worker.said("Traceback")


def test_a_coming_encoder_is_warm_before_it_takes_over(
    group: Settings, start_worker: Callable[..., Worker], publish_release: Callable[..., Published]
) -> None:
    """Texts of active users are encoded while it is the shadow; a host that lost its disk then encodes none of them."""
    group = moving(group)
    active = publish_release()
    worker = start_worker(group).ready()
    publish(group, made_events(60, 3, seed=730))
    assert_exact(group)
    candidate = publish_release(announce=False)
    assert read_warmth(group, candidate.encoder) is None or not warm(group, candidate.encoder)
    announce_release(group, active.number, active.encoder, shadow=candidate.number)
    worker.until(lambda: warm(group, candidate.encoder), "be warm")
    found = read_warmth(group, candidate.encoder)
    assert found is not None
    assert found.warmed == found.texts > 0
    worker.end(signal.SIGKILL)
    shutil.rmtree(group.worker.datadir)
    announce_release(group, candidate.number, candidate.encoder)
    worker = start_worker(group).ready()
    worker.until(lambda: read_release_report(group, candidate.number).complete, "move everybody")
    assert {one.model.release for one in last_profiles(group, "730-").values()} == {candidate.number}
    assert worker.metrics.texts_seen > 0
    assert worker.metrics.texts_encoded == 0
    assert_exact(group)


def warm(settings: Settings, encoder: int) -> bool:
    """Tell whether every partition says that it is."""
    found = read_warmth(settings, encoder)
    return found is not None and found.complete


def test_a_bad_release_is_found_out_and_goes_back(
    group: Settings, start_worker: Callable[..., Worker], publish_release: Callable[..., Published]
) -> None:
    """Forced past the gate it drifts from the one before; every profile it scored is scored again by that one."""
    group = moving(group, max_score_drift=0.05, min_compared=100)
    good = publish_release()
    worker = start_worker(group).ready()
    publish(group, labelled(200, name="720"))
    assert_exact(group)
    bad = publish_release(encoder=good.encoder, tilt=-20.0, announce=False)
    announced = announce_release(group, bad.number, bad.encoder, previous=good.number)

    def roll_back(_: Settings, release: int, breaches: tuple[Breach, ...]) -> bool:
        assert release == bad.number
        assert breaches
        announce_release(group, good.number, good.encoder)
        return True

    watched = watch(group, announced, roll_back=roll_back)
    assert not watched.kept
    assert "drift" in {breach.figure for breach in watched.breaches}
    worker.until(lambda: read_release_report(group, good.number).complete, "go back")
    assert_exact(group)
    assert {one.model.release for one in last_profiles(group, "720-").values()} == {good.number}
    assert worker.running
