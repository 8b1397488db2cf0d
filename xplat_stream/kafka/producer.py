"""The producer SDK: hand it events, and it says honestly what became of them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final, Self

from confluent_kafka import KafkaError, Message, Producer

from xplat_stream.adapters import encode_event
from xplat_stream.adapters.cloudevents import CONTENT_TYPE
from xplat_stream.errors import DeliveryError, RejectedEvent
from xplat_stream.event import MAX_EVENT_BYTES
from xplat_stream.kafka.topics import QUIET, behavior_topic

if TYPE_CHECKING:
    from types import TracebackType

    from xplat_stream.event import Event
    from xplat_stream.kafka.codec import Headers
    from xplat_stream.settings import Settings

EVENT_HEADERS: Final[Headers] = [("content-type", CONTENT_TYPE.encode())]
_POLL_S: Final = 0.1


class EventProducer:
    """Publishes events to the topic of their platform, keyed by user.

    Idempotent, acks from all replicas, and Java's murmur2 partitioner, so that a user's events meet in one partition
    whichever client wrote them. A full queue holds the caller back; nothing is dropped in silence: `delivered`,
    `failed` and `pending` always add up to the number sent.

    Use it as a context manager, or call `flush` before the process ends. Create it after a fork, not before.
    """

    def __init__(self, settings: Settings, **overrides: Any) -> None:
        self._pid = os.getpid()
        self.delivered = 0
        self.failed = 0
        self.last_error: KafkaError | None = None
        self._producer = Producer(
            {
                "bootstrap.servers": settings.kafka.bootstrap,
                "enable.idempotence": True,
                "acks": "all",
                "partitioner": "murmur2_random",
                "linger.ms": 5,
                **QUIET,
                **overrides,
            }
        )

    def send(self, event: Event, *, patience_s: float = 60.0) -> None:
        """Queue one event; wait for room when the queue is full.

        Raises `DeliveryError` when there is still no room after `patience_s`, `RejectedEvent` for an event that is
        longer than a worker admits; it is then not queued.
        """
        value = encode_event(event)
        if len(value) > MAX_EVENT_BYTES:
            raise RejectedEvent("size", f"{len(value)} bytes; at most {MAX_EVENT_BYTES}")
        self.send_raw(behavior_topic(event.platform), event.user_id.encode(), value, patience_s=patience_s)

    def send_raw(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        *,
        headers: Headers = EVENT_HEADERS,
        created_at_ms: int = 0,
        patience_s: float = 60.0,
    ) -> None:
        """Queue a record that is already encoded, with Kafka's time `created_at_ms`, 0 for now. See `send`.

        Raises `DeliveryError` also in a process forked from the one that made the producer.
        """
        if os.getpid() != self._pid:
            message = "this producer is another process's, whose threads did not come along: make one after the fork"
            raise DeliveryError(message, left=0)
        waited = 0.0
        while True:
            try:
                self._producer.produce(
                    topic, value, key, headers=headers, timestamp=created_at_ms, on_delivery=self._on_delivery
                )
            except BufferError:
                if waited >= patience_s:
                    message = f"the producer queue stayed full for {patience_s:.0f} s; {self.pending} events wait"
                    raise DeliveryError(message, left=self.pending) from None
                self._producer.poll(_POLL_S)
                waited += _POLL_S
            else:
                self._producer.poll(0)
                return

    @property
    def pending(self) -> int:
        """Events queued and neither acknowledged nor failed yet."""
        return len(self._producer)

    def flush(self, timeout_s: float = 60.0) -> None:
        """Wait until every event is acknowledged.

        Raises `DeliveryError` with the number that is not: those still waiting and those that failed for good.
        """
        left = self._producer.flush(timeout_s) + self.failed
        if left:
            because = f": {self.last_error.str()}" if self.last_error else ""
            message = f"{left} events were not acknowledged by Kafka within {timeout_s:.0f} s{because}"
            raise DeliveryError(message, left=left)

    def _on_delivery(self, error: KafkaError | None, _: Message) -> None:
        if error is None:
            self.delivered += 1
        else:
            self.failed += 1
            self.last_error = error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()
