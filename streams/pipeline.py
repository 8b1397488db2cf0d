"""One chunk from the log to the profiles.

The order of the steps *is* the delivery promise:

    decode and admit ▸ fold ▸ one RocksDB batch ▸ changelog ▸ texts ▸ encoder ▸ head ▸ profiles ▸ await all ▸ ack

A crash anywhere in between leaves the chunk unacknowledged; it is read again and, a window being a set, changes
nothing that it changed already. A record is never skipped: what cannot be admitted becomes a dead letter that is
awaited like everything else, and any other exception leaves this page and stops the worker.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from xplat_stream.adapters import admit
from xplat_stream.errors import RejectedEvent
from xplat_stream.event import TextHash, hash_text, item_text
from xplat_stream.kafka.codec import Origin, dead_letter, encode_profile, first_read, rekeyed_headers
from xplat_stream.kafka.consumer import partition_for
from xplat_stream.kafka.topics import PROFILES, REJECTED, REKEYED, changelog_topic, platform_of
from xplat_stream.profile import scored_profile, unscored_profile
from xplat_stream.serving.features import head_inputs
from xplat_stream.state import TextEntry, UserState
from xplat_stream.window import Row, row_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aiokafka import ConsumerRecord

    from streams.metrics import Metrics
    from streams.outbox import Delivery, Outbox
    from streams.store import PartitionStore
    from xplat_stream.event import Object, UserId
    from xplat_stream.kafka.codec import Headers
    from xplat_stream.serving.releases import Release
    from xplat_stream.serving.scorer import Scorer
    from xplat_stream.serving.texts import TextVectors
    from xplat_stream.settings import Settings
    from xplat_stream.taxonomy import Taxonomy

hash_of_text = lru_cache(maxsize=200_000)(hash_text)


class Admitted(NamedTuple):
    """A chunk sorted by what becomes of each record."""

    additions: dict[UserId, list[tuple[str, Row]]]
    """Rows to fold, with their platform."""
    users: dict[UserId, int]
    """The users touched, with the Kafka time of their last record in the chunk, in milliseconds."""
    texts: dict[TextHash, TextEntry]
    letters: list[tuple[bytes | None, bytes, Headers]]
    strays: dict[int, list[tuple[bytes | None, bytes | None, Headers]]]


class Pipeline:
    """The steps, with what they need. One instance serves all partitions of a worker."""

    def __init__(  # noqa: PLR0913 - the seams of the pipeline, each named once
        self,
        settings: Settings,
        *,
        taxonomy: Taxonomy,
        partitions: int,
        outbox: Outbox,
        scorer: Scorer,
        vectors: TextVectors,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._taxonomy = taxonomy
        self._partitions = partitions
        self._outbox = outbox
        self._scorer = scorer
        self._vectors = vectors
        self._metrics = metrics
        self._changelog = changelog_topic(settings.worker.app)
        self._source = f"//{settings.worker.app}/worker"
        self.release: Release | None = None
        """The release that scores; None until the first one is announced."""

    async def handle(self, store: PartitionStore, partition: int, records: Iterable[ConsumerRecord]) -> int:
        """Take records of one partition through every step. Returns the changelog position they reached.

        When this returns, everything the records led to is acknowledged by Kafka.
        """
        release = self.release
        admitted = self.admit(store, partition, records)
        self.fold(store, admitted)
        deliveries = [await self._outbox.send(self._changelog, partition, store.write())]
        deliveries += await self._send_aside(admitted)
        entries = {one: entry for one, entry in admitted.texts.items() if not store.has_text(one)}
        if release is not None and entries:
            entries = await self._vectors.encode(release, entries)
        if entries:
            for text_hash, entry in entries.items():
                store.put_text(text_hash, entry)
            deliveries.append(await self._outbox.send(self._changelog, partition, store.write()))
        profiles = await self._profiles(store, admitted.users, release)
        deliveries.append(await self._outbox.send(PROFILES, partition, profiles))
        ends = await self._outbox.confirm(deliveries)
        self._vectors.forget_oldest()
        self._metrics.chunks += 1
        self._metrics.updates += len(profiles)
        return max(ends[0], ends[-2] if entries else 0)

    def admit(self, store: PartitionStore, partition: int, records: Iterable[ConsumerRecord]) -> Admitted:
        """Sort records into admitted events by user, dead letters, and strays for other partitions."""
        found = Admitted({}, {}, {}, [], {})
        additions, users, texts = found.additions, found.users, found.texts
        for record in records:
            topic, received_at_ms = record.topic, record.timestamp
            try:
                if topic == REKEYED:
                    topic, received_at_ms = _first_read(record)
                event = admit(
                    record.key, record.value, platform=platform_of(topic) or "", received_at_ms=received_at_ms
                )
            except RejectedEvent as rejection:
                origin = Origin(record.topic, record.partition, record.offset, record.timestamp)
                found.letters.append((record.key, *dead_letter(record.value, rejection, origin)))
                self._metrics.rejected[rejection.reason] = self._metrics.rejected.get(rejection.reason, 0) + 1
                continue
            self._metrics.events += 1
            if event is None:
                self._metrics.withheld += 1
                continue
            user_id = event.user_id
            rows = additions.get(user_id)
            if rows is None:
                home = partition if store.knows(user_id) else partition_for(record.key, self._partitions)
                if home != partition:
                    stray = (record.key, record.value, rekeyed_headers(topic, received_at_ms))
                    found.strays.setdefault(home, []).append(stray)
                    self._metrics.rekeyed += 1
                    continue
                rows = additions[user_id] = []
            text = item_text(event.object)
            text_hash = hash_of_text(text)
            if text and text_hash not in texts:
                texts[text_hash] = TextEntry(text, self._labels(event.object))
            rows.append((event.platform, row_of(event, text_hash)))
            users[user_id] = received_at_ms
        return found

    def fold(self, store: PartitionStore, admitted: Admitted) -> None:
        """Fold every user's events into the window and take the next revision.

        Every touched user is written, also when nothing changed: after a crash the store may hold this chunk already
        while the changelog does not.
        """
        for user_id, additions in admitted.additions.items():
            state = store.user(user_id)
            window = state.window.fold(additions)
            self._metrics.late += window.count_late(additions)
            publication = state.publication._replace(revision=state.publication.revision + 1)
            store.put_user(user_id, UserState(window, publication))

    async def _send_aside(self, admitted: Admitted) -> list[Delivery]:
        deliveries = []
        if admitted.letters:
            deliveries.append(await self._outbox.send_with_headers(REJECTED, 0, admitted.letters))
        for home, strays in admitted.strays.items():
            deliveries.append(await self._outbox.send_with_headers(REKEYED, home, strays))
        return deliveries

    async def _profiles(
        self, store: PartitionStore, users: dict[UserId, int], release: Release | None
    ) -> list[tuple[bytes, bytes]]:
        """Score the touched users and return their profile records."""
        states = {user_id: store.user(user_id) for user_id in users}
        if release is None:
            self._metrics.unscored += len(users)
            profiles = {
                user_id: unscored_profile(user_id, state.window, state.publication.revision, self._taxonomy)
                for user_id, state in states.items()
            }
        else:
            await self._bring_vectors(store, states, release)
            inputs = head_inputs(
                [state.window for state in states.values()],
                self._vectors.of(release.encoder),
                platforms=release.manifest.platforms,
                width=release.manifest.width,
                max_events=release.manifest.max_events,
            )
            scores = (await self._scorer.score(release, inputs)).tolist()
            profiles = {}
            for (user_id, state), user_scores in zip(states.items(), scores, strict=True):
                profiles[user_id] = scored_profile(
                    user_id,
                    state.window,
                    state.publication,
                    user_scores,
                    taxonomy=self._taxonomy,
                    model=release.ref,
                    known=self._vectors.known,
                    max_interests=self._settings.model.max_interests,
                )
                published = state.publication.published(release.number, user_scores)
                store.remember(user_id, UserState(state.window, published))
        now = datetime.now(UTC)
        now_ms = now.timestamp() * 1000
        return [
            (
                user_id.encode(),
                encode_profile(
                    profile, source=self._source, published_at=now, latency_ms=round(now_ms - users[user_id])
                ),
            )
            for user_id, profile in profiles.items()
        ]

    async def _bring_vectors(self, store: PartitionStore, states: dict[UserId, UserState], release: Release) -> None:
        """See that every text of these windows has a vector of the release's encoder in memory."""
        needed = {one for state in states.values() for one in state.window.text_hashes()}
        self._metrics.texts_seen += len(needed)
        while missing := self._vectors.missing(release.encoder, needed):
            entries = store.texts(missing)
            if not entries:
                break
            # Looked at again afterwards: while this lane waited, another may have made room in memory.
            await self._vectors.encode(release, entries)
        self._metrics.texts_encoded = self._vectors.encoded

    @lru_cache(maxsize=200_000)  # noqa: B019 - one pipeline lives as long as the process
    def _labels(self, item: Object) -> tuple[str, ...]:
        return self._taxonomy.label_ids(iab=item.iab, categories=item.categories)


def _first_read(record: ConsumerRecord) -> tuple[str, int]:
    """Return topic and Kafka time under which a rekeyed record was first read. Raises `RejectedEvent`."""
    try:
        return first_read(record.headers)
    except (KeyError, ValueError) as error:
        raise RejectedEvent("value", f"a rekeyed record without its origin in the headers: {error}") from error
