"""Reading a stretch of the log from a start to its present end, in bulk.

Used wherever the log is the truth: state recovery, `xplat verify`, training, looking up one profile.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Message, TopicPartition

from xplat_stream.adapters import admit
from xplat_stream.errors import DeliveryError, RejectedEvent
from xplat_stream.event import Event
from xplat_stream.kafka.topics import (
    ANSWER_S,
    QUIET,
    REKEYED,
    behavior_topic,
    kafka_unavailable,
    partition_counts,
    platform_of,
    platforms_on,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from xplat_stream.settings import Settings

_Answer = TypeVar("_Answer")

_BATCH = 2000
_POLL_S = 0.05
"""librdkafka waits this long for a batch to become full, also when the end of the log is reached already."""

_LEADERLESS: Final = frozenset(
    {
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError._UNKNOWN_PARTITION,  # noqa: SLF001 - its public name
    }
)
_COORDINATOR_MOVES: Final = frozenset(
    {KafkaError.NOT_COORDINATOR, KafkaError.COORDINATOR_LOAD_IN_PROGRESS, KafkaError.COORDINATOR_NOT_AVAILABLE}
)


class Span(NamedTuple):
    """The records of one partition from `start` up to, not including, `end`."""

    topic: str
    partition: int
    start: int
    end: int


def log_consumer(settings: Settings, *, committed: bool = True) -> Consumer:
    """Return a consumer without a group, for reading by offset."""
    return Consumer(
        {
            "bootstrap.servers": settings.kafka.bootstrap,
            "group.id": "xplat-log-reader",  # librdkafka wants a name; nothing is ever committed under it
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "enable.partition.eof": True,
            "isolation.level": "read_committed" if committed else "read_uncommitted",
            "fetch.wait.max.ms": 50,
            "queued.max.messages.kbytes": 65_536,
            **QUIET,
        }
    )


def spans(settings: Settings, topics: Sequence[str]) -> list[Span]:
    """Return what the topics hold now, partition by partition. Raises `KafkaUnavailable`."""
    counts = partition_counts(settings)
    consumer = log_consumer(settings)
    try:
        return [
            Span(topic, number, *_watermarks(consumer, TopicPartition(topic, number)))
            for topic in topics
            for number in range(counts.get(topic, 0))
        ]
    except KafkaException as error:
        raise kafka_unavailable(settings, error) from error
    finally:
        consumer.close()


def _watermarks(consumer: Consumer, partition: TopicPartition) -> tuple[int, int]:
    """Return where a partition begins and ends; a topic just made may have no leader for a moment."""
    found = _patiently(lambda: consumer.get_watermark_offsets(partition, timeout=ANSWER_S), _LEADERLESS)
    if found is None:  # what the client says when its time is up
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT))  # noqa: SLF001 - its public name
    start, end = found
    return start, end


def _patiently(ask: Callable[[], _Answer], passing: Collection[int]) -> _Answer:
    """Return what the broker answers, asking again while its error is one that passes by itself."""
    deadline = time.monotonic() + 3 * ANSWER_S  # one answer may take that long already
    while True:
        try:
            return ask()
        except KafkaException as error:
            if error.args[0].code() not in passing or time.monotonic() > deadline:
                raise
        time.sleep(_POLL_S)


def read_span(
    settings: Settings, span: Span, *, stopped: Callable[[], bool] = lambda: False
) -> Iterator[list[Message]]:
    """Yield the records of a span in batches, in offset order.

    Ends when the position reaches `span.end`, however many offsets compaction or transactions have taken out, or soon
    after `stopped` says so.
    Raises `DeliveryError` when the broker stops answering before that, `KafkaUnavailable` for a lasting error.
    """
    if span.start >= span.end:
        return
    consumer = log_consumer(settings)
    try:
        consumer.assign([TopicPartition(span.topic, span.partition, span.start)])
        silent = 0.0
        position = span.start
        while not stopped():
            # Never ask for more than is left: `consume` waits its whole timeout for what cannot come.
            messages = consumer.consume(max(1, min(_BATCH, span.end - position)), _POLL_S)
            records = [message for message in messages if message.error() is None]
            good = [record for record in records if record.offset() < span.end]
            failures = [message.error() for message in messages if message.error() is not None]
            if good:
                yield good
                position = good[-1].offset() + 1
            for error in failures:
                if error.code() != KafkaError._PARTITION_EOF and not error.retriable():  # noqa: SLF001 - its public name
                    raise kafka_unavailable(settings, KafkaException(error))
            at_end = any(error.code() == KafkaError._PARTITION_EOF for error in failures)  # noqa: SLF001
            if position >= span.end or len(good) < len(records) or at_end:
                return
            silent = 0.0 if messages else silent + _POLL_S
            if silent > 6 * ANSWER_S:
                message = f"{span.topic}[{span.partition}] stopped at {position} of {span.end}"
                raise DeliveryError(message, left=span.end - position)
    finally:
        consumer.close()


def behavior_spans(settings: Settings) -> list[Span]:
    """Return what the platforms' topics hold now, partition by partition. Raises `KafkaUnavailable`."""
    return spans(settings, [behavior_topic(platform) for platform in platforms_on(settings)])


def recent_events(settings: Settings, most: int, held: Sequence[Span] | None = None) -> Iterator[Event]:
    """Yield about the newest `most` admitted events, the same number of each partition. `held`: see `read_behavior`.

    Raises as `read_span` does.
    """
    whole = behavior_spans(settings) if held is None else held
    newest = -(-most // max(1, len(whole)))
    recent = [span._replace(start=max(span.start, span.end - newest)) for span in whole]
    for event, _ in read_behavior(settings, recent):
        if isinstance(event, Event):
            yield event


def read_behavior(
    settings: Settings, held: Sequence[Span] | None = None, *, key: bytes | None = None
) -> Iterator[tuple[Event | RejectedEvent | None, Message]]:
    """Yield every record of every platform's topic with what admission makes of it, exactly as a worker does.

    None stands for an event whose user has not consented to personalization. `held`: `behavior_spans`, where they were
    asked for before; `key`: only the records with this key. Raises as `read_span` does.
    """
    for span in behavior_spans(settings) if held is None else held:
        platform = platform_of(span.topic) or ""
        for messages in read_span(settings, span):
            for message in messages:
                if key is not None and message.key() != key:
                    continue
                received_at_ms = message.timestamp()[1]
                try:
                    yield (
                        admit(message.key(), message.value(), platform=platform, received_at_ms=received_at_ms),
                        message,
                    )
                except RejectedEvent as rejection:
                    yield rejection, message


def positions(consumer: Consumer, partitions: Sequence[TopicPartition], *, at_end: bool) -> list[TopicPartition]:
    """Return the partitions with their end, or their beginning, resolved now rather than at the first poll.

    Raises `KafkaException`.
    """
    return [
        TopicPartition(one.topic, one.partition, _watermarks(consumer, one)[1] if at_end else OFFSET_BEGINNING)
        for one in partitions
    ]


def committed(settings: Settings) -> list[TopicPartition]:
    """Return what the worker group has committed in every partition it reads; the offset is negative where nothing.

    Waits while the group's coordinator is being found or moved. Raises `KafkaUnavailable`.
    """
    counts = partition_counts(settings)
    topics = [topic for topic in counts if platform_of(topic) or topic == REKEYED]
    wanted = [TopicPartition(topic, number) for topic in topics for number in range(counts[topic])]
    consumer = Consumer({"bootstrap.servers": settings.kafka.bootstrap, "group.id": settings.worker.app, **QUIET})
    try:
        return list(_patiently(lambda: consumer.committed(wanted, timeout=ANSWER_S), _COORDINATOR_MOVES))
    except KafkaException as error:
        raise kafka_unavailable(settings, error) from error
    finally:
        consumer.close()


def latest_value(settings: Settings, topic: str, partition: int, key: bytes) -> bytes | None:
    """Return the last value of a key in a compacted partition, None where there is none or it was erased."""
    found: bytes | None = None
    for span in spans(settings, [topic]):
        if span.partition == partition:
            for messages in read_span(settings, span):
                for message in messages:
                    if message.key() == key:
                        found = message.value()
    return found
