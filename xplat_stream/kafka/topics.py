"""The topics: their names, what they hold, how they are made, and whether a broker has them right."""

from __future__ import annotations

import re
import time
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic

from xplat_stream.errors import KafkaUnavailable, TopicMismatch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from xplat_stream.settings import Settings

PROFILES: Final = "interest.profiles.v1"
MODELS: Final = "interest.models.v1"
REJECTED: Final = "behavior.rejected.v1"
REKEYED: Final = "behavior.rekeyed.v1"

_BEHAVIOR = re.compile(r"^behavior\.([a-z0-9][a-z0-9_-]{0,63})\.v1$")
_NOT_PLATFORMS = frozenset({"rejected", "rekeyed"})
_DAY_MS = 86_400_000
_HOUR_MS = 3_600_000
"""Kafka compacts closed segments only; the models topic is read from its start by everyone who begins."""
CHANGELOG_DELETE_RETENTION_DAYS: Final = 7
"""How long the changelog keeps a tombstone that compaction could remove: a worker that was away for half of it starts
from an empty store, because what was erased meanwhile could live on in its old one."""

CHANGELOG_SEGMENT_BYTES: Final = 64 * 1024 * 1024
"""Kafka compacts closed segments only, and whoever takes a partition over reads the open one as it is: of 1 GiB, which
is Kafka's default, half a million records of full windows, however few users they are of."""

ANSWER_S: Final = 10.0
_POLL_S: Final = 0.05
BEHAVIOR_MAX_BYTES: Final = 2 * 1024 * 1024
"""An oversize record reaches the worker and becomes a dead letter that says so, instead of a riddle at the producer."""

REJECTED_MAX_BYTES: Final = 4 * 1024 * 1024
"""A dead letter holds the original record, which may itself be as large as the broker takes."""

QUIET: Final[dict[str, object]] = {
    "log_level": 0,
    "reconnect.backoff.max.ms": 2000,
    "error_cb": lambda _: None,  # a broker that is away is told by the call that needed it, once
}
"""librdkafka prints a line every 50 ms while a broker is away; these settings keep it quiet."""


def behavior_topic(platform: str) -> str:
    """Return the topic a platform's events arrive on."""
    return f"behavior.{platform}.v1"


@lru_cache(maxsize=1024)
def platform_of(topic: str) -> str | None:
    """Return the platform a topic belongs to, None when it is not a platform's topic."""
    match = _BEHAVIOR.match(topic)
    return match[1] if match and match[1] not in _NOT_PLATFORMS else None


def changelog_topic(app: str) -> str:
    """Return the changelog topic of a worker group."""
    return f"{app}-state-changelog"


class TopicSpec(NamedTuple):
    """How a topic is made."""

    name: str
    keyed_by_user: bool
    config: dict[str, str]


def topic_specs(settings: Settings, platforms: Iterable[str] | None = None) -> list[TopicSpec]:
    """Return every topic the system needs, for these platforms or the configured ones."""
    kept = {
        "cleanup.policy": "delete",
        "retention.ms": str(settings.kafka.retention_days * _DAY_MS),
        "max.message.bytes": str(BEHAVIOR_MAX_BYTES),
    }
    compacted = {"cleanup.policy": "compact"}
    changelog = {
        **compacted,
        "delete.retention.ms": str(CHANGELOG_DELETE_RETENTION_DAYS * _DAY_MS),
        "segment.bytes": str(CHANGELOG_SEGMENT_BYTES),
    }
    return [
        *(TopicSpec(behavior_topic(platform), True, kept) for platform in platforms or settings.platforms),
        TopicSpec(REKEYED, keyed_by_user=True, config=kept),
        TopicSpec(REJECTED, keyed_by_user=False, config={**kept, "max.message.bytes": str(REJECTED_MAX_BYTES)}),
        TopicSpec(changelog_topic(settings.worker.app), keyed_by_user=True, config=changelog),
        TopicSpec(PROFILES, keyed_by_user=True, config=compacted),
        TopicSpec(MODELS, keyed_by_user=False, config={**compacted, "segment.ms": str(_HOUR_MS)}),
    ]


def admin(settings: Settings) -> AdminClient:
    """Return an admin client that does not chatter."""
    return AdminClient({"bootstrap.servers": settings.kafka.bootstrap, **QUIET})


def partition_counts(settings: Settings) -> dict[str, int]:
    """Return the partition count of every topic on the broker. Raises `KafkaUnavailable`."""
    try:
        topics = admin(settings).list_topics(timeout=ANSWER_S).topics
    except KafkaException as error:
        raise kafka_unavailable(settings, error) from error
    return {name: len(metadata.partitions) for name, metadata in topics.items()}


class TopicFacts(NamedTuple):
    """What a broker says of one topic."""

    topic_id: str
    """Kafka's own id: a topic that is deleted and made again has another one."""
    partitions: int
    delete_retention_ms: int


def topic_facts(settings: Settings, topic: str) -> TopicFacts:
    """Return id, partition count and tombstone retention of a topic. Raises `KafkaUnavailable`."""
    client = admin(settings)
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
    try:
        described = client.describe_topics(TopicCollection([topic]), request_timeout=ANSWER_S)[topic].result()
        config = client.describe_configs([resource], request_timeout=ANSWER_S)[resource].result()
    except KafkaException as error:
        raise kafka_unavailable(settings, error) from error
    retention_ms = int(config["delete.retention.ms"].value)
    return TopicFacts(str(described.topic_id), len(described.partitions), retention_ms)


def platforms_on(settings: Settings) -> tuple[str, ...]:
    """Return the platforms that have a topic on the broker, sorted. Raises `KafkaUnavailable`."""
    return tuple(sorted(filter(None, map(platform_of, partition_counts(settings)))))


def create_topics(settings: Settings, platforms: Iterable[str] | None = None) -> list[str]:
    """Create what is missing and return its names. Raises `KafkaUnavailable`, `TopicMismatch`."""
    existing = partition_counts(settings)
    missing = [spec for spec in topic_specs(settings, platforms) if spec.name not in existing]
    if missing:
        client = admin(settings)  # held until the futures are done: librdkafka drops requests with their handle
        futures = client.create_topics(
            [
                NewTopic(
                    spec.name,
                    num_partitions=settings.kafka.partitions if spec.keyed_by_user else 1,
                    replication_factor=settings.kafka.replication,
                    config=spec.config,
                )
                for spec in missing
            ],
            operation_timeout=ANSWER_S,
        )
        for name, future in futures.items():
            try:
                future.result()
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise TopicMismatch(
                        f"topic {name} cannot be created: {error.args[0].str()}",
                        where=settings.kafka.bootstrap,
                        expected="a broker that takes these partition and replication counts",
                        fix="Correct XPLAT_KAFKA__PARTITIONS or XPLAT_KAFKA__REPLICATION.",
                    ) from error
        # The broker learns what its controller made a moment later.
        deadline = time.monotonic() + ANSWER_S
        while not futures.keys() <= partition_counts(settings).keys() and time.monotonic() < deadline:
            time.sleep(_POLL_S)
    check_topics(settings, platforms)
    return [spec.name for spec in missing]


def check_topics(settings: Settings, platforms: Iterable[str] | None = None) -> int:
    """Return the one partition count of all topics keyed by user. Raises `TopicMismatch` naming the odd ones."""
    existing = partition_counts(settings)
    specs = topic_specs(settings, platforms)
    missing = [spec.name for spec in specs if spec.name not in existing]
    if missing:
        raise TopicMismatch(
            f"missing topics: {', '.join(missing)}",
            where=settings.kafka.bootstrap,
            expected="all topics in place, since brokers must not create them with defaults of their own",
            fix="Run `xplat topics create`.",
        )
    counts = {spec.name: existing[spec.name] for spec in specs if spec.keyed_by_user}
    counts.update({name: count for name, count in existing.items() if platform_of(name)})
    wanted = counts[changelog_topic(settings.worker.app)]
    odd = [f"{name} has {count}" for name, count in sorted(counts.items()) if count != wanted]
    if odd:
        raise TopicMismatch(
            f"partition counts differ: {', '.join(odd)}",
            where=settings.kafka.bootstrap,
            expected=f"{wanted}, as {changelog_topic(settings.worker.app)} has",
            fix="Recreate these topics with that count: a user's events must meet in one partition.",
        )
    return wanted


def kafka_unavailable(settings: Settings, error: KafkaException) -> KafkaUnavailable:
    """Translate librdkafka's error into the operator's line."""
    return KafkaUnavailable(
        f"no Kafka broker answers: {error.args[0].str()}",
        where=settings.kafka.bootstrap,
        expected="a broker at this address",
        fix="Run `xplat up`, or set XPLAT_KAFKA__BOOTSTRAP.",
    )
