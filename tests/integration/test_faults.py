"""Single faults of the outside world, each with its promise; sequences of them are in tests/chaos."""

from __future__ import annotations

import os
import resource
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from tests.integration.conftest import (
    assert_exact,
    behind,
    configure,
    made_events,
    publish,
    records,
    settled,
    with_worker,
)
from xplat_stream.errors import EXIT_SOFTWARE, EXIT_STALLED, EXIT_STATE
from xplat_stream.kafka import EventProducer
from xplat_stream.kafka.topics import PROFILES, admin, behavior_topic, changelog_topic, create_topics
from xplat_stream.local.process import wait_for
from xplat_stream.testing import make_event

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.integration.conftest import Worker
    from xplat_stream.settings import Settings

pytestmark = pytest.mark.integration


def delete(settings: Settings, topic: str) -> None:
    """Delete a topic and wait until it is gone."""
    client = admin(settings)
    client.delete_topics([topic])[topic].result()
    assert wait_for(lambda: topic not in client.list_topics(timeout=10).topics, timeout_s=60)


@pytest.mark.parametrize("which", ["changelog", "profiles"])
def test_what_kafka_does_not_take_is_not_acknowledged(
    group: Settings, start_worker: Callable[..., Worker], which: str
) -> None:
    """A topic that refuses writes while all others work: nothing is committed past it, the worker stops, then exact."""
    group = with_worker(group, publish_timeout_s=10.0)
    topic = changelog_topic(group.worker.app) if which == "changelog" else PROFILES
    worker = start_worker(group).ready()
    publish(group, made_events(10, 2, seed=500))
    assert_exact(group)
    configure(group, topic, max_message_bytes="1")
    try:
        before = behind(group)
        publish(group, made_events(20, 3, seed=501))
        assert worker.process.wait(60) == EXIT_SOFTWARE, worker.words()
        assert worker.said("MessageSizeTooLarge")
        assert before == []
        assert behind(group)
    finally:
        configure(group, topic, max_message_bytes=None)
    start_worker(group).ready()
    assert_exact(group)


def test_a_full_disk_stops_the_worker_before_anything_is_acknowledged(
    group: Settings, start_worker: Callable[..., Worker]
) -> None:
    """It says which folder and why, leaves with a code of its own, and goes on once there is room."""
    worker = start_worker(group).ready()
    publish(group, made_events(10, 2, seed=510))
    assert_exact(group)
    # No file of this process may grow beyond this: RocksDB sees what a full disk shows it, without needing a mount.
    resource.prlimit(worker.process.pid, resource.RLIMIT_FSIZE, (65_536, resource.RLIM_INFINITY))
    publish(group, made_events(800, 20, seed=511))
    assert worker.process.wait(30) == EXIT_STATE, worker.words()
    assert worker.said(group.worker.datadir)
    assert worker.said("File too large")
    assert behind(group)
    start_worker(group).ready()
    assert_exact(group)


@pytest.mark.parametrize("poison", ["POISON-BLOCK", "POISON-WAIT"])
def test_a_worker_that_hangs_is_found_out(
    group: Settings, start_worker: Callable[..., Worker], poison: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event loop that is blocked, and a chunk that never gets done: the watchdog ends the worker, then exact."""
    monkeypatch.setenv("PYTHONPATH", os.getcwd())  # noqa: PTH109 - a variable, not a path
    monkeypatch.setenv("POISON", poison)
    group = with_worker(group, stall_timeout_s=5.0)
    faust = "-m faust -A tests.integration.crashing -L uvloop worker --without-web --loglevel info"
    worker = start_worker(group, command=(sys.executable, *faust.split())).ready()
    publish(group, [make_event(user_id=f"culprit-{poison}", object_title=poison), *made_events(10, 2, seed=520)])
    assert worker.process.wait(40) == EXIT_STALLED, worker.words()
    assert worker.said("there is work and none of it got done for")
    start_worker(group).ready()
    assert_exact(group)


def test_a_platform_topic_made_anew_is_read_from_its_start(
    group: Settings, start_worker: Callable[..., Worker]
) -> None:
    """Its offsets begin again below what was committed; every new event counts all the same."""
    topic = behavior_topic("radio")
    create_topics(group, [*group.platforms, "radio"])
    worker = start_worker(group).ready()
    publish(group, made_events(30, 4, seed=530, platforms=("radio",)))
    assert_exact(group)
    assert worker.end() == 0
    delete(group, topic)
    try:
        create_topics(group, [*group.platforms, "radio"])
        new = made_events(5, 2, seed=531, platforms=("radio",))
        publish(group, new)
        worker = start_worker(group).ready()
        worker.until(lambda: worker.metrics.events >= len(new), "read them")
        verdict = settled(group)
        assert verdict.missing == 0, verdict
    finally:
        with EventProducer(group) as producer:  # the log that made these profiles is gone, so they have to go too
            for number in range(30):
                for seed in (530, 531):
                    producer.send_raw(PROFILES, f"{seed}-{number}".encode(), None)
        delete(group, topic)


def test_logs_name_no_person_and_no_content(group: Settings, start_worker: Callable[..., Worker]) -> None:
    """Neither good nor bad records leave user ids, titles or keys in the worker's log."""
    worker = start_worker(group).ready()
    with EventProducer(group) as producer:
        for number in range(20):
            producer.send(make_event(user_id=f"canary-{number}", object_title="canary-title"))
            producer.send_raw(behavior_topic("shop"), b"canary-key", b'{"canary-value":')
    assert_exact(group)
    assert any(one.key() == b"canary-1" for one in records(group, PROFILES))
    assert worker.end(signal.SIGTERM) == 0
    assert b"canary" not in worker.log.read_bytes()
