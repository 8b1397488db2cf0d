"""Which release scores, and how a running worker passes to the next one without a failed or lost update.

The announcement names a release that Triton has loaded beside the one in use. Its files are checked, the texts in use
that `streams.warming` has not had encoded ahead are, and only then does the pipeline change over, between two chunks.
Every request names its versions, so chunks under way finish with the release they began with. A release that cannot be
used is logged and the one in use stays. The announcement also says which release is compared with the active one
(`streams.shadow`) and whose encoder is warmed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from xplat_stream.errors import ReleaseError, TritonUnavailable, XplatError
from xplat_stream.failpoints import reached
from xplat_stream.kafka.codec import ACTIVE_KEY, decode_announcement
from xplat_stream.kafka.log import latest_value
from xplat_stream.kafka.topics import MODELS
from xplat_stream.taxonomy import load_taxonomy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from streams.pipeline import Pipeline
    from streams.shadow import Shadow
    from streams.store import PartitionStore
    from streams.warming import Warmer
    from xplat_stream.kafka.codec import Announcement
    from xplat_stream.metrics import Metrics
    from xplat_stream.serving.breaker import CircuitBreaker
    from xplat_stream.serving.releases import ModelRepository, Release
    from xplat_stream.serving.texts import TextVectors
    from xplat_stream.serving.triton import TritonScorer
    from xplat_stream.settings import Settings

log = logging.getLogger("xplat.worker")

_RETRY_S: Final = 2.0
_WARM_BATCH: Final = 16
"""Texts re-encoded between two chances for live traffic to be scored."""


class ReleaseSwitch:
    """Follows `interest.models.v1` and keeps the pipeline on the active release."""

    def __init__(  # noqa: PLR0913 - what it connects
        self,
        settings: Settings,
        *,
        repository: ModelRepository,
        scorer: TritonScorer,
        breaker: CircuitBreaker,
        vectors: TextVectors,
        pipeline: Pipeline,
        shadow: Shadow,
        warmer: Warmer,
        stores: Callable[[], Sequence[PartitionStore]],
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._repository = repository
        self._scorer = scorer
        self._breaker = breaker
        self._vectors = vectors
        self._pipeline = pipeline
        self._shadow = shadow
        self._warmer = warmer
        self._stores = stores
        self._metrics = metrics
        self._complaint = ""

    async def start(self) -> None:
        """Take up the release that is active now, if there is one.

        Where the model server does not have it, profiles are degraded until it does. Raises `ReleaseError` when the
        release's own files are not as its manifest says, or its labels are not this worker's.
        """
        value = await asyncio.to_thread(latest_value, self._settings, MODELS, 0, ACTIVE_KEY)
        if value is None:
            return
        announcement = _announced(value)
        release = await asyncio.to_thread(self._load, announcement.release)
        if not await self._scorer.is_ready(release):
            log.warning(
                "profiles are degraded until %s has loaded release %d", self._settings.triton.url, release.number
            )
            self._breaker.open(release)
        self._use(release)
        self._pipeline.withdrawn = announcement.rolled_back

    async def follow(self) -> None:
        """Change over whenever another release is announced, for ever."""
        while True:
            try:
                await self._follow_log()
            except KafkaError as error:
                log.warning("announcements cannot be read now: %s", error)
                await asyncio.sleep(_RETRY_S)

    async def _follow_log(self) -> None:
        partition = TopicPartition(MODELS, 0)
        consumer = AIOKafkaConsumer(bootstrap_servers=self._settings.kafka.bootstrap, enable_auto_commit=False)
        consumer.assign([partition])
        try:
            await consumer.start()
            # From the start of the log: what was announced since `start` looked must not be missed.
            await consumer.seek_to_beginning(partition)
            newest: bytes | None = None
            while True:
                records = await consumer.getmany(partition, timeout_ms=int(_RETRY_S * 1000))
                for record in records.get(partition, ()):
                    if record.key == ACTIVE_KEY and record.value is not None:
                        newest = record.value
                if newest is None:
                    continue
                # Only the newest counts: read on to the end, past older ones and past what workers report here.
                end = (await consumer.end_offsets([partition]))[partition]
                if await consumer.position(partition) >= end and await self._follow_one(newest):
                    newest = None
        finally:
            await consumer.stop()

    async def _follow_one(self, value: bytes) -> bool:
        """Take up a release; tell whether that is settled, one way or the other."""
        held = self._pipeline.release.number if self._pipeline.release else 0
        name = "the announced release"
        try:
            announcement = _announced(value)
            name = f"release {announcement.release}"
            if announcement.release != held:
                await self._take_up(announcement)
            self._pipeline.withdrawn = announcement.rolled_back
            await self._accompany(announcement)
        except TritonUnavailable as error:
            complaint = f"{name} is not taken up yet, {held} stays for now: {error}"
            if complaint != self._complaint:  # once, however often it is tried again
                log.warning("%s", complaint)
            self._complaint = complaint
            return False
        except XplatError as error:
            log.error("%s is not taken up, %d stays: %s", name, held, error)  # noqa: TRY400 - one line
        return True

    async def _take_up(self, announcement: Announcement) -> None:
        reached("switch.read")
        started = time.monotonic()
        release = await asyncio.to_thread(self._load, announcement.release)
        await self._scorer.require_ready()
        if not await self._scorer.is_ready(release):
            raise TritonUnavailable(  # one that was started again has not yet, but may soon
                f"Triton has not loaded release {release.number}",
                where=self._settings.triton.url,
                expected=f"encoder {release.encoder} and head {release.number} READY",
                fix="Run `xplat train`, or load both models (explicit mode).",
            )
        before = self._pipeline.release
        if before is not None and before.encoder != release.encoder:
            await self._warm(release)
        reached("switch.warmed")
        self._use(release)
        reached("switch.taken")
        if before is not None:
            self._vectors.forget_encoders({before.encoder, release.encoder})
        log.info("scoring with release %d after %.1f s", release.number, time.monotonic() - started)

    async def _accompany(self, announcement: Announcement) -> None:
        """Let the release that is to be compared with the active one score a sample. Whatever is wrong with it."""
        active = self._pipeline.release
        if active is None or active.number != announcement.release:
            return
        number, until = announcement.beside(timedelta(minutes=self._settings.release.watch_minutes))
        if number in (0, active.number) or (until is not None and datetime.now(UTC) >= until):
            self._shadow.use(active, None)
            self._warmer.aim(active)
            return
        try:
            other = await asyncio.to_thread(self._load, number)
            self._shadow.use(active, other, since=announcement.announced_at, until=until)
            self._warmer.aim(active, other if announcement.shadow else None)
        except Exception as error:  # noqa: BLE001 - its files may hold anything, and a shadow must not stop the worker
            log.warning("release %d is not compared with %d: %s", number, active.number, error)
            self._shadow.use(active, None)
            self._warmer.aim(active)

    def _load(self, number: int) -> Release:
        """Return a release whose scores this worker can name. Raises `ReleaseError`."""
        release = self._repository.load(number)
        taxonomy = load_taxonomy(self._settings.model.taxonomy)
        if release.manifest.labels != taxonomy.ids():
            theirs = release.manifest.taxonomy
            raise ReleaseError(
                f"release {number} scores {len(release.manifest.labels)} labels of {theirs.name} {theirs.version}",
                where=self._settings.model.taxonomy or "the shipped taxonomy",
                expected=f"the {len(taxonomy)} labels of {taxonomy.name} {taxonomy.version}, in its order",
                fix="Set XPLAT_MODEL__TAXONOMY to the file that the training run printed.",
            )
        return release

    def _use(self, release: Release) -> None:
        self._pipeline.release = release
        self._metrics.release = release.number

    async def _warm(self, release: Release) -> None:
        """Encode the texts in use with the new encoder while the old release goes on scoring."""
        texts = {text_hash: entry for store in self._stores() for text_hash, entry in store.all_texts()}
        self._vectors.of(release.encoder)
        self._vectors.learn(texts)  # most were made ahead, and lie there
        hashes = self._vectors.missing(release.encoder, texts)
        for start in range(0, len(hashes), _WARM_BATCH):
            await self._vectors.encode(release, {one: texts[one] for one in hashes[start : start + _WARM_BATCH]})
            await asyncio.sleep(0)


def _announced(value: bytes) -> Announcement:
    try:
        return decode_announcement(value)
    except ValueError as error:
        raise ReleaseError(
            f"the announced release cannot be read: {error}",
            where=MODELS,
            expected="the JSON that `xplat train` writes under the key `active`",
            fix="Train again, which announces a new release.",
        ) from error
