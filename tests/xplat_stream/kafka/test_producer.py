"""The producer SDK without a broker: bounded memory, every event accounted for, no silent loss after a fork."""

from __future__ import annotations

import os
import socket

import pytest

from xplat_stream.errors import DeliveryError
from xplat_stream.kafka import EventProducer
from xplat_stream.settings import KafkaSettings, Settings
from xplat_stream.testing import make_event


@pytest.fixture
def nobody() -> Settings:
    """Return settings of a broker that is not there."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return Settings(kafka=KafkaSettings(bootstrap=f"127.0.0.1:{probe.getsockname()[1]}"))


def test_events_that_no_broker_takes_are_counted(nobody: Settings) -> None:
    """Delivered, failed and pending always add up to what was sent, and the end says how many were not acknowledged."""
    producer = EventProducer(nobody, **{"message.timeout.ms": 300})
    for _ in range(50):
        producer.send(make_event())
        assert producer.delivered + producer.failed + producer.pending <= 50
    with pytest.raises(DeliveryError, match="50 events were not acknowledged") as told:
        producer.flush()
    assert told.value.left == producer.failed == 50
    assert producer.delivered == 0


def test_memory_is_bounded_while_the_broker_is_away(nobody: Settings) -> None:
    """A full queue makes the sender wait, and then tells it; nothing is dropped unsaid."""
    producer = EventProducer(nobody, **{"message.timeout.ms": 60_000, "queue.buffering.max.messages": 100})
    with pytest.raises(DeliveryError, match="the producer queue stayed full for 0 s; 100 events wait"):
        for _ in range(101):
            producer.send(make_event(), patience_s=0.2)
    producer._producer.purge()


def test_a_producer_from_before_a_fork_refuses(nobody: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Librdkafka's threads stay in the parent: events queued in a child would never leave."""
    producer = EventProducer(nobody)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(DeliveryError, match="make one after the fork"):
        producer.send(make_event())
