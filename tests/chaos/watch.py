"""Reads `interest.profiles.v1` as a consumer would, and holds against it what profiles promise."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from confluent_kafka import Consumer, TopicPartition

from xplat_stream.kafka.codec import decode_profile
from xplat_stream.kafka.topics import PROFILES, QUIET

if TYPE_CHECKING:
    from collections.abc import Iterable

    from confluent_kafka import Message

    from xplat_stream.settings import Settings

_BATCH = 1000
_POLL_S = 0.1


class ProfileWatch:
    """Every profile since the start of the log, in offset order within its partition."""

    def __init__(self, settings: Settings) -> None:
        self.profiles = 0
        self.revisions_back: list[str] = []
        """Where a user's revision was lower than one before it."""
        self.degraded: set[bytes] = set()
        """Users whose last profile has scores from before."""
        self.last_at = time.monotonic()
        """When the last profile was read."""
        self._highest: dict[bytes, int] = {}
        self._where = [TopicPartition(PROFILES, number, 0) for number in range(settings.kafka.partitions)]
        self._consumer = Consumer(
            {
                "bootstrap.servers": settings.kafka.bootstrap,
                "group.id": "profile-watch",
                "enable.auto.commit": False,
                "auto.offset.reset": "error",
                **QUIET,
                "reconnect.backoff.max.ms": 250,
            }
        )
        self._consumer.assign(self._where)

    def poll(self) -> None:
        """Take in what has come, waiting a moment where nothing has."""
        for message in self._consumer.consume(_BATCH, _POLL_S):
            if message.error() is None and message.value() is not None:
                self._take_in(message)

    def _take_in(self, message: Message) -> None:
        key, profile = message.key(), decode_profile(message.value()).data
        revision = profile.revision
        (self.degraded.add if profile.status == "degraded" else self.degraded.discard)(key)
        self.profiles += 1
        self.last_at = time.monotonic()
        if revision < self._highest.get(key, 0):
            place = f"{PROFILES}[{message.partition()}] at {message.offset()}"
            self.revisions_back.append(f"{key.decode()}: {revision} after {self._highest[key]}, {place}")
        self._highest[key] = max(revision, self._highest.get(key, 0))

    def sees(self, users: Iterable[str], *, within_s: float) -> bool:
        """Read until each of these users has a profile; tell whether it came to that in time."""
        missing = {user.encode() for user in users}
        deadline = time.monotonic() + within_s
        while missing := missing - self._highest.keys():
            if time.monotonic() > deadline:
                return False
            self.poll()
        return True

    def catch_up(self) -> None:
        """Read to the present end of the log."""
        for one in self._where:
            end = self._consumer.get_watermark_offsets(one, timeout=30)[1]
            while self._consumer.position([one])[0].offset < end:
                self.poll()

    def close(self) -> None:
        """Disconnect."""
        self._consumer.close()
