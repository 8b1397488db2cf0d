"""A trained release goes live: placed whole, loaded, asked its golden requests, and only then announced.

Workers act on the announcement alone, so a version that is in the repository and not announced harms nobody. One whose
load fails is taken away again: after a restart Triton would try the highest number first.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from xplat_stream.errors import XplatError
from xplat_stream.kafka.codec import ACTIVE_KEY, Announcement, encode_announcement
from xplat_stream.kafka.consumer import active_announcement
from xplat_stream.kafka.producer import EventProducer
from xplat_stream.kafka.topics import MODELS
from xplat_stream.serving.releases import (
    ENCODER,
    HEAD,
    MANIFEST_FILE,
    MODEL_FILE,
    TOKENIZER_FILE,
    Golden,
    Manifest,
    ModelRepository,
)
from xplat_stream.serving.triton import TritonScorer

if TYPE_CHECKING:
    from xplat_stream.profile import TaxonomyRef
    from xplat_stream.settings import Settings

_ANNOUNCE_S: Final = 30.0


class EncoderFiles(NamedTuple):
    """A new encoder: its graph and its tokenizer."""

    graph: bytes
    tokenizer: bytes


class EncoderKept(NamedTuple):
    """An encoder that lies in the repository already, with its files' checksums from the release that brought it."""

    version: int
    files: dict[str, str]


class Candidate(NamedTuple):
    """Everything of a release but its number."""

    encoder: EncoderFiles | EncoderKept
    head: bytes
    taxonomy: TaxonomyRef
    labels: tuple[str, ...]
    platforms: tuple[str, ...]
    width: int
    max_tokens: int
    max_events: int
    base: str
    golden: Golden
    metrics: dict[str, float]


class Published(NamedTuple):
    """The release that is active now, and the one before it; 0 where there was none."""

    release: int
    previous: int


def kept_encoder(manifest: Manifest) -> EncoderKept:
    """Return the encoder of an existing release, for another head on it."""
    prefix = f"{ENCODER}/{manifest.encoder}/"
    return EncoderKept(
        manifest.encoder, {name: checksum for name, checksum in manifest.files.items() if name.startswith(prefix)}
    )


def publish(settings: Settings, candidate: Candidate) -> Published:
    """Make a candidate the active release.

    Raises `ReleaseError` when it cannot be placed, loaded or does not answer as recorded, `TritonUnavailable`,
    `KafkaUnavailable`; nothing is left behind then. Raises `DeliveryError` when Kafka did not acknowledge the
    announcement: it may still be there, so the files stay.
    """
    active = active_announcement(settings)  # asked first: without Kafka nothing is placed
    repository = ModelRepository(settings.model.repository)
    number = repository.next_number()
    manifest = place(repository, number, candidate)
    try:
        asyncio.run(_load(settings, repository, manifest))
    except BaseException:
        _take_away(settings, repository, manifest)
        raise
    previous = active.release if active else 0
    announcement = Announcement(number, previous, manifest.encoder, datetime.now(UTC))
    producer = EventProducer(settings)
    producer.send_raw(MODELS, ACTIVE_KEY, encode_announcement(announcement))
    producer.flush(_ANNOUNCE_S)
    return Published(number, previous)


def place(repository: ModelRepository, number: int, candidate: Candidate) -> Manifest:
    """Write a candidate into the repository as release `number`. Raises `ReleaseError` and leaves nothing then."""
    if isinstance(candidate.encoder, EncoderKept):
        encoder, files = candidate.encoder.version, dict(candidate.encoder.files)
    else:
        encoder = number
        files = repository.place(
            ENCODER, number, {MODEL_FILE: candidate.encoder.graph, TOKENIZER_FILE: candidate.encoder.tokenizer}
        )
    # The manifest appears in the same rename as the head, so the head's checksum is worked out before.
    files[f"{HEAD}/{number}/{MODEL_FILE}"] = sha256(candidate.head).hexdigest()
    manifest = Manifest(
        release=number,
        encoder=encoder,
        created_at=datetime.now(UTC),
        taxonomy=candidate.taxonomy,
        labels=candidate.labels,
        platforms=candidate.platforms,
        width=candidate.width,
        max_tokens=candidate.max_tokens,
        max_events=candidate.max_events,
        base=candidate.base,
        files=files,
        golden=candidate.golden,
        metrics=candidate.metrics,
    )
    try:
        repository.place(HEAD, number, {MODEL_FILE: candidate.head, MANIFEST_FILE: msgspec.json.encode(manifest)})
    except BaseException:
        if encoder == number:
            repository.remove(ENCODER, encoder)
        raise
    return manifest


async def _load(settings: Settings, repository: ModelRepository, manifest: Manifest) -> None:
    async with TritonScorer(settings.triton) as scorer:
        await scorer.load(ENCODER, manifest.encoder)
        await scorer.load(HEAD, manifest.release)
        await scorer.check_golden(repository.load(manifest.release))


def _take_away(settings: Settings, repository: ModelRepository, manifest: Manifest) -> None:
    """Remove a release that failed, and let Triton return to the versions that are left."""
    repository.remove(HEAD, manifest.release)
    if manifest.encoder == manifest.release:
        repository.remove(ENCODER, manifest.encoder)
    with suppress(XplatError):  # best effort: the failure that brought us here is the one to tell
        asyncio.run(_reload(settings, repository))


async def _reload(settings: Settings, repository: ModelRepository) -> None:
    async with TritonScorer(settings.triton) as scorer:
        for model in (ENCODER, HEAD):
            versions = repository.versions(model)
            if versions:
                await scorer.load(model, versions[-1])
