"""The consumer SDK: profiles as they change, or the last one of a user."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple, Self

from confluent_kafka import Consumer, KafkaException, TopicPartition, murmur2

from xplat_stream.errors import ReleaseError
from xplat_stream.kafka.codec import ACTIVE_KEY, Announcement, ProfileRecord, decode_announcement, decode_profile
from xplat_stream.kafka.log import latest_value, positions
from xplat_stream.kafka.topics import MODELS, PROFILES, QUIET, kafka_unavailable, partition_counts

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from xplat_stream.event import UserId
    from xplat_stream.settings import Settings

_POLL_S = 0.2
_NEVER = (0, datetime.min.replace(tzinfo=UTC))


class ProfileChange(NamedTuple):
    """A user's profile as just published; `record` is None when the user was erased."""

    user_id: UserId
    record: ProfileRecord | None


class ProfileConsumer:
    """Follows `interest.profiles.v1`.

    Profiles are delivered at least once: `changes` drops what is older than it has already yielded of a user.
    Without a `group` every consumer sees every profile; with one, Kafka shares the partitions out and remembers.
    """

    def __init__(self, settings: Settings, *, group: str | None = None, from_start: bool = False) -> None:
        self._settings = settings
        self._newest: dict[UserId, tuple[int, datetime]] = {}
        self._consumer = Consumer(
            {
                "bootstrap.servers": settings.kafka.bootstrap,
                "group.id": group or "xplat-profile-consumer",
                "enable.auto.commit": group is not None,
                "auto.offset.reset": "earliest" if from_start or group else "latest",
                **QUIET,
            }
        )
        if group:
            self._consumer.subscribe([PROFILES])
        else:
            counts = partition_counts(settings)
            partitions = [TopicPartition(PROFILES, number) for number in range(counts.get(PROFILES, 0))]
            try:
                self._consumer.assign(positions(self._consumer, partitions, at_end=not from_start))
            except KafkaException as error:
                self._consumer.close()
                raise kafka_unavailable(settings, error) from error

    def changes(self, *, idle_s: float | None = None) -> Iterator[ProfileChange]:
        """Yield profiles as they are published, for ever, or until none came for `idle_s` seconds.

        Raises `KafkaUnavailable` when the broker reports an error that does not pass.
        """
        quiet = 0.0
        while idle_s is None or quiet < idle_s:
            message = self._consumer.poll(_POLL_S)
            if message is None:
                quiet += _POLL_S
                continue
            error = message.error()
            if error is not None:
                if not error.retriable():
                    raise kafka_unavailable(self._settings, KafkaException(error))
                continue
            quiet = 0.0
            change = self._change(message.key(), message.value()) if message.key() else None
            if change is not None:
                yield change

    def _change(self, key: bytes, value: bytes | None) -> ProfileChange | None:
        user_id: UserId = key.decode()  # type: ignore[assignment]
        if value is None:
            self._newest.pop(user_id, None)
            return ProfileChange(user_id, None)
        record = decode_profile(value)
        # A worker that lost its host may publish a revision again, with newer content: time decides among equals.
        version = (record.data.revision, record.time)
        if version <= self._newest.get(user_id, _NEVER):
            return None
        self._newest[user_id] = version
        return ProfileChange(user_id, record)

    def close(self) -> None:
        """Leave the group and close the connection."""
        self._consumer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def current_profile(settings: Settings, user_id: UserId) -> ProfileRecord | None:
    """Return the last profile of one user, None where there is none. Reads the one partition it can be in."""
    count = partition_counts(settings).get(PROFILES, 0)
    if not count:
        return None
    key = user_id.encode()
    value = latest_value(settings, PROFILES, partition_for(key, count), key)
    return None if value is None else decode_profile(value)


def active_announcement(settings: Settings) -> Announcement | None:
    """Return which release is active, None before the first.

    Raises `KafkaUnavailable`, `ReleaseError` when the announcement cannot be read.
    """
    value = latest_value(settings, MODELS, 0, ACTIVE_KEY)
    try:
        return decode_announcement(value) if value else None
    except ValueError as error:
        raise ReleaseError(
            f"the announced release cannot be read: {error}",
            where=MODELS,
            expected="the JSON that `xplat train` writes under the key `active`",
            fix="Train again, which announces a new release.",
        ) from error


def partition_for(key: bytes, count: int) -> int:
    """Return the partition of a key under Java's murmur2 partitioner, which every topic keyed by user follows."""
    return int(murmur2(key, count))
