"""One chunk from the log to the profiles.

The order of the steps *is* the delivery promise:

    decode and admit ▸ texts ▸ fold ▸ one RocksDB batch ▸ changelog ▸ head ▸ await ▸ profiles ▸ await ▸ ack

A crash anywhere in between leaves the chunk unacknowledged; it is read again and, a window being a set, changes
nothing that it changed already. A record is never skipped: what cannot be admitted becomes a dead letter that is
awaited like everything else, and any other exception leaves this page and stops the worker. Only the model server may
fail without stopping anything: windows go on, profiles say ``degraded``, and the users are scored again later, by the
same steps as those whom another release scored last, as those whose scoring can wait (`streams.postponed`), and as
those with a text that the encoder has to read first (`streams.reading`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache, partial
from math import ceil
from typing import TYPE_CHECKING, Final

from streams.postponed import Postponed
from streams.reading import Reading
from xplat_stream.adapters import admit
from xplat_stream.errors import InvalidScores, RejectedEvent, TritonUnavailable
from xplat_stream.event import TextHash, UserId, hash_text, item_text
from xplat_stream.kafka.codec import Origin, dead_letter, encode_profile, first_read, rekeyed_headers, seal
from xplat_stream.kafka.consumer import partition_for
from xplat_stream.kafka.topics import PROFILES, REJECTED, REKEYED, changelog_topic, platform_of
from xplat_stream.profile import Cause, ModelRef, degraded_profile, scored_profile, unscored_profile
from xplat_stream.serving.features import head_inputs
from xplat_stream.state import Publication, TextEntry, UserState
from xplat_stream.window import Row, row_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from streams.batches import Record
    from streams.outbox import Delivery, Outbox
    from streams.shadow import Shadow
    from streams.silence import Silence
    from streams.store import PartitionStore
    from xplat_stream.kafka.codec import Headers, SealedProfile
    from xplat_stream.metrics import Metrics
    from xplat_stream.profile import Status
    from xplat_stream.serving.releases import Release
    from xplat_stream.serving.scorer import Scorer
    from xplat_stream.serving.texts import TextVectors
    from xplat_stream.settings import Settings
    from xplat_stream.taxonomy import Taxonomy

log = logging.getLogger("xplat.worker")

_NAMED_TEXTS: Final = 20_000
"""Texts kept with their hash and labels: popular ones come again and again. A text is 8 kB at the very most."""

_TURN_USERS: Final = 2000
"""Scored and published together at the most: what scores and profiles take of memory is bounded by this."""

States = dict[UserId, UserState]
Causes = Mapping[UserId, Cause]
"""Why a profile is published where it is not for behavior."""


@dataclass
class Admitted:
    """Records sorted by what becomes of each. More can be added until they are taken through the other steps."""

    records: int = 0
    """How many there were."""
    additions: dict[UserId, list[tuple[str, Row]]] = field(default_factory=dict)
    """Rows to fold, with their platform."""
    users: dict[UserId, int] = field(default_factory=dict)
    """The users touched, with the Kafka time of the last record of each, in milliseconds."""
    texts: dict[TextHash, TextEntry] = field(default_factory=dict)
    letters: list[tuple[bytes | None, bytes, Headers]] = field(default_factory=list)
    strays: dict[int, list[tuple[bytes | None, bytes | None, Headers]]] = field(default_factory=dict)


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
        shadow: Shadow,
        silence: Silence,
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._taxonomy = taxonomy
        self._partitions = partitions
        self._outbox = outbox
        self._scorer = scorer
        self._vectors = vectors
        self._shadow = shadow
        self._silence = silence
        self._metrics = metrics
        self._changelog = changelog_topic(settings.worker.app)
        self._source = f"//{settings.worker.app}/worker"
        self._named = lru_cache(maxsize=_NAMED_TEXTS)(self._name)
        self.postponed = Postponed(settings.score, taxonomy)
        """Who is scored later, and what is known of everybody to tell that."""
        self.reading = Reading(vectors)
        """Who is scored when the encoder has read their texts."""
        self.release: Release | None = None
        """The release that scores; None until the first one is announced."""
        self.withdrawn = 0
        """The release it was rolled back from: nothing that one said is to stay. 0: it was not."""

    async def handle(
        self, store: PartitionStore, partition: int, records: Sequence[Record], *, condemned: bool = False
    ) -> None:
        """Take records of one partition through every step.

        `condemned` records are not looked at: they crashed the worker before, and become dead letters.
        """
        admitted = self._condemn(records) if condemned else self.admit(store, partition, records)
        await self.finish(store, partition, admitted)

    async def finish(self, store: PartitionStore, partition: int, admitted: Admitted) -> None:
        """Take what was admitted of one partition through the other steps.

        When this returns, everything the records led to is acknowledged by Kafka.
        """
        release = self.release
        self._keep_texts(store, admitted.texts, release)
        repaired, later = self.fold(store, partition, admitted, release)
        causes: Causes = dict.fromkeys(repaired, "late")
        sent = [await self._log(store, partition)]
        aside = await self._send_aside(admitted)
        touched = list(admitted.users)
        for at in range(0, len(touched) or 1, _TURN_USERS):
            states = {user_id: store.user(user_id) for user_id in touched[at : at + _TURN_USERS]}
            now = {user_id: state for user_id, state in states.items() if user_id not in later}
            profiles = await self._profiles(store, partition, now, causes, release)
            if release is not None and len(now) < len(states):
                waiting = {user_id: state for user_id, state in states.items() if user_id in later}
                profiles += self._with_last_scores(store, waiting, causes, release, status="stale")
            sent.append(await self._log(store, partition))
            # The changelog first: a revision that consumers have seen is one that a lost host gets back.
            ends = await self._outbox.confirm([*sent, *aside])
            if end := max(ends[: len(sent)]):
                store.reached(end)
            await self._publish(partition, profiles, admitted.users)
            sent, aside = [], []
        waits = partial(self.reading.waits, partition)
        scored = {user_id: rows for user_id, rows in admitted.additions.items() if not waits(user_id)}
        self._shadow.follow(store, partition, scored, admitted.texts)
        self._vectors.forget_oldest()
        self._metrics.chunks += 1

    async def flush(self, store: PartitionStore, partition: int) -> None:
        """Bring what recovery merged into the changelog, where the last record of a key was not all there is."""
        (end,) = await self._outbox.confirm([await self._log(store, partition)])
        store.reached(end)

    async def rescore(self, store: PartitionStore, partition: int, users: Sequence[UserId]) -> int:
        """Score users whose profiles are degraded or another release's, publish them, and return how many there were.

        A model server that is away leaves them as they are, and so does a text that is not read yet. One that answers
        nonsense for them leaves them pending, and only those: the others are scored in smaller parts.
        """
        release = self.release
        if release is None:
            return 0
        held = {user_id: store.user(user_id) for user_id in users}
        states = {
            user_id: _next_revision(state)
            for user_id, state in held.items()
            if state.pending or state.publication.release != release.number
        }
        unread = self._unread(store, states, release)
        self.reading.add(partition, unread, touched=False)
        states = {user_id: state for user_id, state in states.items() if user_id not in unread}
        if not states:
            return 0
        try:
            scores = await self._scores(states, release)
        except TritonUnavailable:
            return 0
        except InvalidScores as error:
            if len(users) == 1:
                log.warning("a window cannot be scored, its profile stays as it is: %s", error)
                self.postponed.discard(partition, users)
                if not held[users[0]].pending:
                    store.put_user(users[0], held[users[0]].left_pending())
                    await self.flush(store, partition)
                return 0
            half = len(users) // 2
            return sum([await self.rescore(store, partition, part) for part in (users[:half], users[half:])])
        self.postponed.discard(partition, states)
        causes: Causes = {user_id: "model" for user_id, state in states.items() if not state.pending}
        profiles = self._scored(store, states, scores, causes, release)
        scored = {user_id: store.user(user_id) for user_id in states}  # as it was remembered
        # No chunk is read again where this breaks off: until the profile is out, the user is pending.
        for user_id, state in states.items():
            store.put_user(user_id, state.left_pending())
        await self.flush(store, partition)
        await self._publish(partition, profiles, {user_id: state.window.end for user_id, state in states.items()})
        for user_id, state in scored.items():
            store.put_user(user_id, _next_revision(state))  # of equal revisions the one that is pending counts
        await self.flush(store, partition)
        self._metrics.rescored += len(profiles) - len(causes)
        self._shadow.follow(store, partition, dict.fromkeys(states, ()), {})
        self._metrics.migrated += len(causes)
        return len(profiles)

    def admit(
        self, store: PartitionStore, partition: int, records: Sequence[Record], *, into: Admitted | None = None
    ) -> Admitted:
        """Sort records into admitted events by user, dead letters, and strays for other partitions.

        `into`: what was found in the records before them; it is added to and returned.
        """
        found = into or Admitted()
        rejected_before = len(found.letters)
        additions, users, texts = found.additions, found.users, found.texts
        platforms = {topic: platform_of(topic) or "" for topic in {record.topic for record in records}}
        self._silence.hear(filter(None, platforms.values()))
        for record in records:
            topic, received_at_ms = record.topic, record.timestamp
            try:
                platform = platforms[topic]
                if topic == REKEYED:
                    topic, received_at_ms = _first_read(record)
                    platform = platform_of(topic) or ""
                event = admit(record.key, record.value, platform=platform, received_at_ms=received_at_ms)
            except RejectedEvent as rejection:
                self._reject(found, record, rejection)
                continue
            if event is None:
                self._metrics.withheld += 1
                continue
            user_id, item = event.user_id, event.object
            rows = additions.get(user_id)
            if rows is None:
                home = partition if store.knows(user_id) else partition_for(user_id.encode(), self._partitions)
                if home != partition:
                    stray = (record.key, record.value, rekeyed_headers(topic, received_at_ms))
                    found.strays.setdefault(home, []).append(stray)
                    self._metrics.rekeyed += 1
                    continue
                rows = additions[user_id] = []
            text_hash, entry = self._named(item_text(item), item.iab, item.categories)
            if text_hash not in texts and entry.text:
                texts[text_hash] = entry
            rows.append((platform, row_of(event, text_hash)))
            users[user_id] = received_at_ms
        found.records += len(records)
        self._metrics.events += len(records) - (len(found.letters) - rejected_before)
        return found

    def _name(self, text: str, iab: tuple[str, ...], categories: tuple[str, ...]) -> tuple[TextHash, TextEntry]:
        """Return the hash of an item's text, and the text with the labels that the item's platform gives it."""
        return hash_text(text), TextEntry(text, self._taxonomy.label_ids(iab=iab, categories=categories))

    def _condemn(self, records: Iterable[Record]) -> Admitted:
        found = Admitted()
        for record in records:
            self._reject(found, record, RejectedEvent("crash", "handling it crashed the worker three times in a row"))
        return found

    def _reject(self, found: Admitted, record: Record, rejection: RejectedEvent) -> None:
        origin = Origin(record.topic, record.partition, record.offset, record.timestamp)
        found.letters.append((record.key, *dead_letter(record.value, rejection, origin)))
        self._metrics.rejected[rejection.reason] = self._metrics.rejected.get(rejection.reason, 0) + 1

    def fold(
        self, store: PartitionStore, partition: int, admitted: Admitted, release: Release | None
    ) -> tuple[set[UserId], set[UserId]]:
        """Fold every user's events into the window and take the next revision, for `release` to score.

        Every touched user is written, also when nothing changed: after a crash the store may hold this chunk already
        while the changelog does not. Returns the users whose past was repaired (the window changed, and only behind
        its newest event), and those whose scoring can wait: they are written as pending.
        """
        repaired = set()
        folded: dict[UserId, tuple[UserState, UserState, list[tuple[str, Row]]]] = {}
        for user_id, additions in admitted.additions.items():
            before = store.user(user_id)
            state = _next_revision(UserState(before.window.fold(additions), before.publication))
            folded[user_id] = before, state, additions
            self._metrics.late += state.window.count_late(additions)
            if before.window.is_repaired_by(additions) and state.window != before.window:
                repaired.add(user_id)
        vectors = self._vectors.of(release.encoder) if release is not None else {}
        later = self.postponed.choose(release, partition, vectors, folded)
        for user_id, (_, state, _) in folded.items():
            if release is None:
                store.put_user(user_id, state)
            elif user_id in later:
                store.put_user(user_id, state.left_pending())
            else:  # what is written is not written again once it is scored, and has to say by which release it was
                expected = state.publication.expecting(release.number)
                store.put_user(user_id, UserState(state.window, expected))
                store.remember(user_id, state)
        self._metrics.repaired += len(repaired)
        return repaired, later

    async def _send_aside(self, admitted: Admitted) -> list[Delivery]:
        deliveries = []
        if admitted.letters:
            deliveries.append(await self._outbox.send_with_headers(REJECTED, 0, admitted.letters))
        for home, strays in admitted.strays.items():
            deliveries.append(await self._outbox.send_with_headers(REKEYED, home, strays))
        return deliveries

    async def _log(self, store: PartitionStore, partition: int) -> Delivery:
        """Make the store's changes durable here and hand them to the changelog."""
        return await self._outbox.send(self._changelog, partition, store.write())

    async def _publish(self, partition: int, profiles: Iterable[SealedProfile], since_ms: Mapping[UserId, int]) -> None:
        """Publish profiles and wait until Kafka has them. `since_ms`: from when each user's latency counts."""
        now = datetime.now(UTC)
        now_ms = now.timestamp() * 1000
        records = [
            (
                profile.user_id.encode(),
                encode_profile(
                    profile, source=self._source, published_at=now, latency_ms=round(now_ms - since_ms[profile.user_id])
                ),
            )
            for profile in profiles
        ]
        await self._outbox.confirm([await self._outbox.send(PROFILES, partition, records)])
        self._metrics.updates += len(records)

    def _keep_texts(self, store: PartitionStore, texts: Mapping[TextHash, TextEntry], release: Release | None) -> None:
        """Put texts the store lacks into it, with the vectors that other partitions' texts have in memory."""
        vectors = {} if release is None else self._vectors.of(release.encoder)
        for text_hash, entry in texts.items():
            if not store.has_text(text_hash):
                vector = vectors.get(text_hash)
                known = entry if release is None or vector is None else entry.with_vector(release.encoder, vector)
                store.put_text(text_hash, known)

    async def _profiles(
        self, store: PartitionStore, partition: int, states: States, causes: Causes, release: Release | None
    ) -> list[SealedProfile]:
        """Return the profiles of touched users: scored, or with their last scores while scoring is not to be had."""
        if not states:
            return []
        if release is None:
            self._metrics.unscored += len(states)
            return [
                seal(unscored_profile(user_id, state.window, state.publication.revision, self._taxonomy))
                for user_id, state in states.items()
            ]
        unread = self._unread(store, states, release)
        self.reading.add(partition, unread, touched=True)
        now, later = {user_id: state for user_id, state in states.items() if user_id not in unread}, unread
        status: Status = "degraded" if self.reading.failing(partition) else "stale"
        try:
            scores = await self._scores(now, release)
        except (TritonUnavailable, InvalidScores) as error:
            log.debug("%d profiles are degraded: %s", len(states), error)
            scores, now, later, status = [], {}, states, "degraded"
        for user_id, state in later.items():
            store.put_user(user_id, state.left_pending())
        profiles = self._scored(store, now, scores, causes, release)
        return profiles + self._with_last_scores(store, later, causes, release, status=status)

    def _unread(self, store: PartitionStore, states: States, release: Release) -> States:
        """Return those who have a text in the window that the release's encoder has yet to read."""
        needed = {one for state in states.values() for one in state.window.text_hashes()}
        self._metrics.texts_seen += len(needed)
        lacking = self.reading.lacking(store, needed, release)
        self._metrics.texts_encoded = self._vectors.encoded
        if not lacking:
            return {}
        return {
            user_id: state
            for user_id, state in states.items()
            if not lacking.keys().isdisjoint(state.window.text_hashes())
        }

    async def _scores(self, states: States, release: Release) -> list[list[float]]:
        """Return one list of label scores a user, in order. Raises `TritonUnavailable`, `InvalidScores`."""
        if not states:
            return []
        # Windows are padded to the longest of a call, and padding costs the head as much as events do: those of like
        # length go together, and no call is full while another is nearly empty.
        by_length = sorted(states, key=lambda user_id: len(states[user_id].window))
        size = ceil(len(by_length) / ceil(len(by_length) / self._settings.triton.head_batch))
        calls = [by_length[start : start + size] for start in range(0, len(by_length), size)]
        *others, longest = [self._ask(states, users, release) for users in calls]
        answers = [await longest] if not others else await asyncio.gather(*others, longest)
        found = {user_id: scores for answer in answers for user_id, scores in answer.items()}
        return [found[user_id] for user_id in states]

    async def _ask(self, states: States, users: Sequence[UserId], release: Release) -> dict[UserId, list[float]]:
        inputs = head_inputs(
            [states[user_id].window for user_id in users],
            self._vectors.of(release.encoder),
            platforms=release.manifest.platforms,
            width=release.manifest.width,
            max_events=release.manifest.max_events,
        )
        scores = await self._scorer.score(release, inputs)
        self._metrics.scored += len(users)
        self.postponed.scored(release, [(user_id, states[user_id]) for user_id in users], inputs, scores)
        return dict(zip(users, scores.tolist(), strict=True))

    def _scored(
        self,
        store: PartitionStore,
        states: States,
        scores: list[list[float]],
        causes: Causes,
        release: Release,
    ) -> list[SealedProfile]:
        """Return profiles with these scores, and keep the scores for the next comparison."""
        silent = self._silence.silent()
        profiles = []
        for (user_id, state), user_scores in zip(states.items(), scores, strict=True):
            profile = scored_profile(
                user_id,
                state.window,
                state.publication,
                user_scores,
                taxonomy=self._taxonomy,
                model=release.ref,
                known=self._vectors.known,
                max_interests=self._settings.model.max_interests,
                cause=causes.get(user_id, "behavior"),
                silent=silent,
            )
            profiles.append(seal(profile))
            published = UserState(state.window, state.publication.published(release.number, user_scores))
            store.remember(user_id, published)
        return profiles

    def _with_last_scores(
        self, store: PartitionStore, states: States, causes: Causes, release: Release, *, status: Status
    ) -> list[SealedProfile]:
        """Return profiles with the last scores, of users who are noted as still to be scored."""
        if status == "stale":
            self._metrics.stale += len(states)
        else:
            self._metrics.degraded += len(states)
        silent = self._silence.silent()
        quoted = {one for state in states.values() for one in state.window.text_hashes()}
        self._vectors.learn(store.texts(quoted - self._vectors.known.keys()))
        profiles = []
        for user_id, state in states.items():
            publication = state.publication
            profile = degraded_profile(
                user_id,
                state.window,
                publication,
                taxonomy=self._taxonomy,
                model=release.ref if publication.release == release.number else ModelRef(publication.release),
                known=self._vectors.known,
                max_interests=self._settings.model.max_interests,
                status=status,
                cause=causes.get(user_id, "behavior"),
                silent=silent,
            )
            profiles.append(seal(profile))
        return profiles


def _next_revision(state: UserState) -> UserState:
    revision, release, scores, pending, scored_revision = state.publication
    return UserState(state.window, Publication(revision + 1, release, scores, pending, scored_revision))


def _first_read(record: Record) -> tuple[str, int]:
    """Return topic and Kafka time under which a rekeyed record was first read. Raises `RejectedEvent`."""
    try:
        return first_read(record.headers)
    except (KeyError, ValueError) as error:
        raise RejectedEvent("value", f"a rekeyed record without its origin in the headers: {error}") from error
