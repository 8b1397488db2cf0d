"""What the integration tests share: workers as real processes, a log that grows, and tiny releases without training.

All tests use one broker and one log. Every test has a worker group of its own, which reads that log from its start, so
`verify` compares the whole of it: what earlier tests wrote is backlog for the later ones.
"""

from __future__ import annotations

import random
import signal
import sys
import time
from itertools import count
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from tests.tiny_release import WORDS, Published, announce_release, make_published
from tests.worker_process import ALONE, READY_WITHIN_S, SUPERVISED, XPLAT, Worker, environment, with_worker
from xplat_stream.event import ACTIONS, Event, Millis, UserId
from xplat_stream.kafka import EventProducer
from xplat_stream.kafka.codec import decode_profile
from xplat_stream.kafka.log import read_span, spans
from xplat_stream.kafka.topics import PROFILES, QUIET, REKEYED, admin, behavior_topic, create_topics, platforms_on
from xplat_stream.testing import make_event
from xplat_stream.verify import Verdict, verify, wait_until_caught_up

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from confluent_kafka import Message

    from xplat_stream.kafka.codec import ProfileRecord
    from xplat_stream.profile import Profile
    from xplat_stream.settings import Settings

# What the tests here take from this module and others share.
__all__ = ["ALONE", "READY_WITHIN_S", "SUPERVISED", "XPLAT", "Published", "Worker"]
__all__ += ["announce_release", "environment", "make_published", "with_worker"]

CAUGHT_UP_WITHIN_S = 120.0
_serial = count(1)


@pytest.fixture
def group(stack: Settings, tmp_path: Path) -> Settings:
    """Return settings of a worker group that nobody used before, its topics made."""
    settings = msgspec.structs.replace(
        stack,
        worker=msgspec.structs.replace(
            stack.worker,
            app=f"group-{next(_serial)}",
            datadir=str(tmp_path / "state"),
            metadata_interval_s=1.0,
            session_timeout_s=6.0,
        ),
    )
    create_topics(settings)
    return settings


@pytest.fixture
def start_worker(tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    """Return a starter of workers. They are killed at the end, and their logs shown where the test failed."""
    workers: list[Worker] = []

    def start(settings: Settings, **options: Any) -> Worker:
        workers.append(Worker(settings, tmp_path / f"worker-{len(workers)}.log", **options))
        return workers[-1]

    yield start
    for worker in workers:
        if worker.running:
            worker.end(signal.SIGKILL)
        sys.stdout.write(f"--- {worker.log.name}, exit code {worker.process.returncode}\n{worker.words()}\n")


def made_events(
    users: int, each: int, *, seed: int, platforms: Sequence[str] = ("shop", "video", "social"), name: str = ""
) -> list[Event]:
    """Return events of several people in random order of time, up to now."""
    chance = random.Random(seed)
    now_ms = int(time.time() * 1000)
    return [
        make_event(
            user_id=UserId(f"{name or seed}-{user}"),
            platform=chance.choice(platforms),
            action=chance.choice(ACTIONS),
            occurred_at=Millis(now_ms - chance.randrange(30 * 86_400_000)),
            object_title=f"{chance.choice(WORDS)} {chance.choice(WORDS)}",
        )
        for _ in range(each)
        for user in range(users)
    ]


def publish(settings: Settings, events: Sequence[Event], **overrides: Any) -> None:
    """Publish events and wait until Kafka has them all."""
    with EventProducer(settings, **overrides) as producer:
        for event in events:
            producer.send(event)


def configure(settings: Settings, topic: str, **values: str | None) -> None:
    """Set, or with None take back, configuration of a topic."""
    entries = [
        ConfigEntry(
            name.replace("_", "."),
            value or "",
            incremental_operation=AlterConfigOpType.DELETE if value is None else AlterConfigOpType.SET,
        )
        for name, value in values.items()
    ]
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
    client = admin(settings)  # held until the future is done: librdkafka drops requests with their handle
    client.incremental_alter_configs([resource])[resource].result()


def settled(settings: Settings) -> Verdict:
    """Wait until the group has committed the whole log, and compare it with state and profiles."""
    if not wait_until_caught_up(settings, timeout_s=CAUGHT_UP_WITHIN_S):
        pytest.fail(f"the group did not catch up: {behind(settings)}")
    return verify(settings)


def behind(settings: Settings) -> list[str]:
    """Return where the group has not committed all there is."""
    consumer = Consumer({"bootstrap.servers": settings.kafka.bootstrap, "group.id": settings.worker.app, **QUIET})
    try:
        topics = [*map(behavior_topic, platforms_on(settings)), REKEYED]
        return [
            f"{span.topic}[{span.partition}] at {one.offset} of {span.start}..{span.end}"
            for span in spans(settings, topics)
            for one in consumer.committed([TopicPartition(span.topic, span.partition)], timeout=10)
            if span.end > max(one.offset, span.start)
        ]
    finally:
        consumer.close()


def assert_exact(settings: Settings) -> Verdict:
    """Hold the promise: nothing missing, nothing extra, nothing differing."""
    verdict = settled(settings)
    assert (verdict.missing, verdict.extra, verdict.differing) == (0, 0, 0), verdict
    return verdict


def records(settings: Settings, topic: str) -> list[Message]:
    """Return everything a topic holds, partition by partition."""
    return [message for span in spans(settings, [topic]) for batch in read_span(settings, span) for message in batch]


def profiles(settings: Settings) -> list[ProfileRecord]:
    """Return every profile ever published, by partition in order."""
    return [decode_profile(value) for one in records(settings, PROFILES) if (value := one.value()) is not None]


def last_profiles(settings: Settings, prefix: str) -> dict[str, Profile]:
    """Return the last profile of every user whose name begins so."""
    return {one.data.user_id: one.data for one in profiles(settings) if str(one.data.user_id).startswith(prefix)}


@pytest.fixture
def publish_release(stack: Settings) -> Callable[..., Published]:
    """Return a maker of releases: graphs by `onnx.helper`, files by `ModelRepository`, loaded, checked, announced."""
    return lambda **options: make_published(stack, **options)
