"""The worker, a real Kafka and a real Triton: whatever happens, state and profiles are what the log says."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
from confluent_kafka import Producer

from tests.integration.conftest import (
    Published,
    Worker,
    announce_release,
    assert_exact,
    last_profiles,
    made_events,
    profiles,
    publish,
    records,
    with_worker,
)
from tests.tiny_release import load_release
from xplat_stream.adapters import encode_event
from xplat_stream.errors import ReleaseError
from xplat_stream.event import Millis
from xplat_stream.kafka import EventProducer
from xplat_stream.kafka.consumer import partition_for
from xplat_stream.kafka.topics import QUIET, REKEYED, behavior_topic, create_topics
from xplat_stream.serving import ModelRepository, TritonScorer
from xplat_stream.serving.releases import ENCODER, HEAD, MODEL_FILE
from xplat_stream.testing import make_event

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from xplat_stream.settings import Settings

pytestmark = pytest.mark.integration

DAY_MS = 86_400_000
BACKLOG = (200, 20)
"""People and events each; `small` chunks make several of it."""


def test_windows_and_profiles_are_what_the_log_says(group: Settings, start_worker: Callable[..., Worker]) -> None:
    """Events sent three times, shuffled, out of order and late beyond the horizon end in exactly the log's windows."""
    events = made_events(60, 10, seed=1)
    newest = {event.user_id: event for event in sorted(events, key=lambda event: event.occurred_at)}
    late = [
        make_event(user_id=user, occurred_at=Millis(event.occurred_at - 91 * DAY_MS)) for user, event in newest.items()
    ]
    everything = [*events, *late] * 3
    random.Random(1).shuffle(everything)
    worker = start_worker(group).ready()
    publish(group, everything)
    verdict = assert_exact(group)
    assert verdict.users >= 60
    worker.until(lambda: worker.metrics.late > 0, "count late events")
    assert worker.running


def test_profiles_carry_window_and_revision(group: Settings, start_worker: Callable[..., Worker]) -> None:
    """A profile names its window; a user's revisions only grow, and the last one is of all that user did."""
    start_worker(group).ready()
    events = made_events(5, 12, seed=2)
    for start in range(0, len(events), 10):
        publish(group, events[start : start + 10])
    assert_exact(group)
    mine = [one for one in profiles(group) if str(one.data.user_id).startswith("2-")]
    for user in {one.data.user_id for one in mine}:
        revisions = [one.data.revision for one in mine if one.data.user_id == user]
        assert revisions == sorted(set(revisions))
        assert [one.data.window.events for one in mine if one.data.user_id == user][-1] == 12


@pytest.mark.parametrize("lost", [False, True], ids=["same disk", "state folder gone"])
def test_killed_in_the_middle_of_a_backlog(group: Settings, start_worker: Callable[..., Worker], *, lost: bool) -> None:
    """`kill -9` while a backlog is worked off: the next worker makes it exact, with or without the old disk."""
    group = with_worker(group, chunk_events=200)
    publish(group, made_events(*BACKLOG, seed=3 + lost))
    first = start_worker(group).ready()
    first.until(lambda: first.metrics.chunks > 0, "handle a chunk")
    publish(group, made_events(50, 10, seed=5 + lost))
    first.end(signal.SIGKILL)
    if lost:
        shutil.rmtree(group.worker.datadir)
    worker = start_worker(group).ready()
    assert_exact(group)
    if lost:
        assert worker.metrics.restored > 0


def test_stopped_by_sigterm_while_busy(group: Settings, start_worker: Callable[..., Worker]) -> None:
    """SIGTERM under load ends a worker with exit code 0 within ten seconds, and the next one makes it exact."""
    group = with_worker(group, chunk_events=200)
    publish(group, made_events(*BACKLOG, seed=7))
    for _ in range(2):
        worker = start_worker(group)
        worker.until(lambda worker=worker: worker.said("owns partitions"), "own partitions")
        publish(group, made_events(50, 10, seed=8))
        began = time.monotonic()
        assert worker.end(within_s=30) == 0, worker.words()
        assert time.monotonic() - began < 10
        assert not worker.said("Traceback")
    start_worker(group).ready()
    assert_exact(group)


def test_a_changelog_longer_than_the_store_is_caught_up(
    group: Settings, start_worker: Callable[..., Worker], tmp_path: Path
) -> None:
    """A worker that comes back to an old state folder merges what others wrote meanwhile before it goes on."""
    publish(group, made_events(40, 5, seed=9))
    first = start_worker(group).ready()
    assert_exact(group)
    assert first.end() == 0
    other = start_worker(with_worker(group, datadir=tmp_path / "other")).ready()
    publish(group, made_events(40, 5, seed=10, name="9"))
    assert_exact(group)
    assert other.end() == 0
    back = start_worker(group).ready()
    publish(group, made_events(40, 5, seed=11, name="9"))
    assert_exact(group)
    back.until(lambda: back.metrics.restored > 0, "restore the other's records")


def owned_by(*workers: Worker) -> list[int]:
    """Return the partitions that workers have, sorted; one that two have is there twice."""
    return sorted(partition for worker in workers for partition in worker.metrics.partitions)


def test_two_workers_come_and_go(group: Settings, start_worker: Callable[..., Worker], tmp_path: Path) -> None:
    """While events stream, a second worker joins and the first leaves: exact, and partition p has one owner."""
    publish(group, made_events(*BACKLOG, seed=12))
    first = start_worker(group).ready()
    second_settings = with_worker(group, datadir=tmp_path / "second")
    second = start_worker(second_settings)
    publish(group, made_events(100, 20, seed=13))
    second.ready()
    first.until(lambda: len(first.metrics.partitions) == 2, "share its partitions")
    second.until(lambda: len(second.metrics.partitions) == 2, "take partitions over")
    first.until(lambda: owned_by(first, second) == [0, 1, 2, 3], "have what the second one has not")
    publish(group, made_events(100, 20, seed=14))
    assert first.end() == 0, first.words()
    publish(group, made_events(100, 20, seed=15))
    second.until(lambda: second.metrics.partitions == [0, 1, 2, 3], "take over all partitions")
    assert_exact(group)


@pytest.mark.parametrize("round_number", [1, 2])
def test_a_fresh_group_with_a_backlog_and_two_workers_joining(
    group: Settings, start_worker: Callable[..., Worker], tmp_path: Path, round_number: int
) -> None:
    """A group that never committed, a backlog, a producer, two workers joining moments apart: nothing is skipped."""
    publish(group, made_events(100, 20, seed=20 + round_number))
    first = start_worker(group)
    second_settings = with_worker(group, datadir=tmp_path / "second")
    if round_number > 1:
        first.until(lambda: first.said("owns partitions"), "own partitions")
    second = start_worker(second_settings)
    for part in range(10):
        publish(group, made_events(20, 5, seed=100 * round_number + part))
    first.ready()
    second.ready()
    assert_exact(group)
    assert first.running
    assert second.running


def test_a_rebalance_while_lanes_wait(group: Settings, start_worker: Callable[..., Worker], tmp_path: Path) -> None:
    """With tiny chunks the queues are full; workers join and leave in the middle, and nothing stalls or is lost."""
    busy = with_worker(group, chunk_events=50)
    publish(busy, made_events(*BACKLOG, seed=40))
    start_worker(busy).ready()
    for number in range(2):
        passing = start_worker(with_worker(busy, datadir=tmp_path / f"passing-{number}")).ready()
        publish(busy, made_events(100, 10, seed=41 + number))
        passing.end(signal.SIGKILL if number else signal.SIGTERM)
    assert_exact(busy)


def test_records_of_another_partitioner_are_forwarded(group: Settings, start_worker: Callable[..., Worker]) -> None:
    """What a plain librdkafka client puts into CRC32's partition reaches its own through `behavior.rekeyed.v1`."""
    worker = start_worker(group).ready()
    before = len(records(group, REKEYED))
    events = made_events(40, 5, seed=50)
    producer = Producer({"bootstrap.servers": group.kafka.bootstrap, **QUIET})  # its default partitioner
    for event in events:
        producer.produce(behavior_topic(event.platform), encode_event(event), event.user_id.encode())
    assert producer.flush(30) == 0
    assert_exact(group)
    strays = records(group, REKEYED)[before:]
    worker.until(lambda: worker.metrics.rekeyed > 0, "count what it forwarded")
    forwarded = [one for one in records(group, REKEYED) if one.key().startswith(b"50-")]
    assert forwarded
    assert strays
    assert all(one.partition() == partition_for(one.key(), 4) for one in forwarded)
    assert all({"topic", "received-at-ms"} <= dict(one.headers()).keys() for one in forwarded)


def test_a_platform_that_appears_while_the_worker_runs(
    group: Settings, start_worker: Callable[..., Worker], tmp_path: Path
) -> None:
    """A new `behavior.<platform>.v1` is read without a restart, by both workers, its partitions with their owners."""
    first = start_worker(group).ready()
    second = start_worker(with_worker(group, datadir=tmp_path / "second")).ready()
    publish(group, made_events(40, 5, seed=60))
    create_topics(group, [*group.platforms, "podcast"])
    publish(group, made_events(40, 5, seed=61, platforms=("podcast",), name="60"))
    assert_exact(group)
    assert first.running
    assert second.running
    first.until(lambda: owned_by(first, second) == [0, 1, 2, 3], "have what the second one has not")


def test_a_second_worker_in_the_same_folder_refuses(group: Settings, start_worker: Callable[..., Worker]) -> None:
    """It says so in one line and leaves with exit code 2; the first goes on undisturbed."""
    first = start_worker(group).ready()
    for command in (None, _PLAIN):
        second = start_worker(group, **({"command": command} if command else {}))
        assert second.process.wait(30) == 2
        last = second.words().strip().splitlines()[-1]
        assert "another worker has it" in last
        assert group.worker.datadir in last
        assert not second.said("Traceback")
    publish(group, made_events(10, 2, seed=70))
    assert_exact(group)
    first.until(lambda: owned_by(first) == [0, 1, 2, 3], "own them all")


_PLAIN: Sequence[str] = (
    sys.executable,
    "-m",
    "faust",
    "-A",
    "streams.app",
    "worker",
    "--without-web",
    "--loglevel",
    "info",
)


def test_the_plain_faust_command_works_too(group: Settings, start_worker: Callable[..., Worker]) -> None:
    """`faust -A streams.app worker` is a worker like `xplat worker`, and stops like one."""
    worker = start_worker(group, command=_PLAIN).ready()
    publish(group, made_events(20, 3, seed=80))
    assert_exact(group)
    assert worker.end() == 0


def test_a_release_scores_every_profile(
    group: Settings, start_worker: Callable[..., Worker], publish_release: Callable[..., Published]
) -> None:
    """With a release announced, every profile published from then on is fresh, ranked, and names that release."""
    release = publish_release()
    worker = start_worker(group).ready()
    publish(group, made_events(40, 5, seed=90))
    assert_exact(group)
    scored = last_profiles(group, "90-")
    assert len(scored) == 40
    for profile in scored.values():
        assert (profile.status, profile.model.release, profile.model.encoder) == (
            "fresh",
            release.number,
            release.encoder,
        )
        ranks = [(one.rank, -one.score) for one in profile.interests]
        assert ranks == sorted(ranks)
        assert len(profile.interests) == group.model.max_interests
        assert all(0 <= one.score <= 1 for one in profile.interests)
    worker.until(lambda: worker.metrics.release == release.number, "say which release scores")
    assert worker.metrics.texts_encoded > 0


def test_releases_are_switched_under_load(
    group: Settings, start_worker: Callable[..., Worker], publish_release: Callable[..., Published]
) -> None:
    """While events stream, another head and then another encoder take over: no update fails or is lost."""
    first = publish_release()
    worker = start_worker(group).ready()
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool, contextlib.ExitStack() as ending:
        ending.callback(stop.set)
        stream = pool.submit(_stream, group, "91", stop)
        second = publish_release(encoder=first.encoder)
        worker.until(lambda: worker.metrics.release == second.number, "take up another head")
        third = publish_release()
        worker.until(lambda: worker.metrics.release == third.number, "take up another encoder")
        before = worker.metrics.updates
        worker.until(lambda: worker.metrics.updates > before + 50, "score with it")
        stop.set()
        sent = stream.result(30)
    assert_exact(group)
    mine = [one.data for one in profiles(group) if str(one.data.user_id).startswith("91-")]
    assert {profile.status for profile in mine} == {"fresh"}
    assert {profile.model.release for profile in mine} <= {first.number, second.number, third.number}
    assert all(
        profile.model.encoder == (third if profile.model.release == third.number else first).encoder for profile in mine
    )
    for user in {profile.user_id for profile in mine}:
        of_user = [profile for profile in mine if profile.user_id == user]
        assert [one.model.release for one in of_user] == sorted(one.model.release for one in of_user)
        assert of_user[-1].window.events == min(sent[user], 50)
    assert worker.running
    assert not worker.said("ERROR")


def _stream(settings: Settings, name: str, stop: threading.Event) -> Counter[str]:
    """Publish an event of each of ten users at a time, just done, until told to stop; return how many each user has."""
    sent: Counter[str] = Counter()
    with EventProducer(settings) as producer:
        while not stop.wait(0.05):
            for event in made_events(10, 1, seed=sent.total(), name=name, platforms=("shop",)):
                # Not of the past: what comes late is a repair, and no ordinary update.
                producer.send(msgspec.structs.replace(event, occurred_at=Millis(int(time.time() * 1000))))
                sent[event.user_id] += 1
    return sent


def test_a_release_that_is_loaded_late_is_taken_up_then(
    group: Settings, start_worker: Callable[..., Worker], publish_release: Callable[..., Published]
) -> None:
    """One that is announced while Triton does not have it waits; a Triton that was started again gets it soon."""
    good = publish_release()
    worker = start_worker(group).ready()
    late = publish_release(load=False, announce=False)
    announce_release(group, late.number, late.encoder)
    worker.until(lambda: worker.said(f"release {late.number} is not taken up yet, {good.number} stays"), "say so")
    assert worker.said(f"Triton has not loaded release {late.number}")
    publish(group, made_events(10, 3, seed=93))
    assert_exact(group)
    assert {one.model.release for one in last_profiles(group, "93-").values()} == {good.number}
    asyncio.run(load_release(group, late.number, late.encoder))
    worker.until(lambda: worker.metrics.release == late.number, "take it up")
    assert worker.log.read_text("utf-8", "replace").count("is not taken up yet") == 1


async def test_a_release_that_answers_differently_is_refused(
    stack: Settings, publish_release: Callable[..., Published]
) -> None:
    """Golden requests whose answers are off by more than a rounding are refused, with the difference."""
    release = await asyncio.to_thread(publish_release, golden_off=0.05, announce=False)
    async with TritonScorer(stack.triton) as scorer:
        with pytest.raises(
            ReleaseError, match=rf"release {release.number} answers differently: golden scores .* 0\.05"
        ):
            await scorer.check_golden(ModelRepository(stack.model.repository).load(release.number))


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        pytest.param(lambda head: head.write_bytes(head.read_bytes() + b"x"), "is altered", id="altered file"),
        pytest.param(lambda head: head.unlink(), "no file", id="missing file"),
    ],
)
def test_a_release_that_cannot_be_used_changes_nothing(
    group: Settings, start_worker: Callable[..., Worker], publish_release: Callable[..., Published], spoil, complaint
) -> None:
    """A release whose files differ is named in the log; the old one stays."""
    good = publish_release()
    worker = start_worker(group).ready()
    bad = publish_release(load=False, announce=False)
    try:
        head = Path(group.model.repository) / HEAD / str(bad.number) / MODEL_FILE
        spoil(head)
        announce_release(group, bad.number, bad.encoder)
        worker.until(lambda: worker.said(f"release {bad.number} is not taken up, {good.number} stays"), "refuse it")
        assert worker.said(complaint)
        publish(group, made_events(10, 3, seed=92, name=f"92-{bad.number}"))
        assert_exact(group)
        assert {one.model.release for one in last_profiles(group, f"92-{bad.number}").values()} == {good.number}
    finally:
        announce_release(group, good.number, good.encoder)
        ModelRepository(group.model.repository).remove(HEAD, bad.number)
        ModelRepository(group.model.repository).remove(ENCODER, bad.encoder)
