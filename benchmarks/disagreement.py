"""Of how many people is the published top 3 not the one that scoring gives?

Asked of everybody's last profile at one moment of a run, those that wait for scoring included: the whole log is folded
again, and every window scored on the running Triton, with the vectors that the workers themselves keep where they do.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from xplat_stream.event import Event, TextHash
from xplat_stream.kafka.codec import decode_profile
from xplat_stream.kafka.log import read_behavior, read_span, spans
from xplat_stream.kafka.topics import PROFILES, changelog_topic
from xplat_stream.serving.features import head_inputs
from xplat_stream.serving.sensitivity import TOP, tops
from xplat_stream.serving.triton import TritonScorer
from xplat_stream.state import TEXT_PREFIX, TextEntry
from xplat_stream.window import BehaviorWindow, Row, WindowSpec, row_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from confluent_kafka import Message
    from numpy.typing import NDArray

    from xplat_stream.profile import Profile
    from xplat_stream.serving.releases import Release
    from xplat_stream.settings import Settings


class Disagreement(NamedTuple):
    """`people`: with a profile by the release; `stale`: the share of them who wait; `wrong`: with another top 3."""

    people: int
    stale: float
    wrong: float


def disagreement(settings: Settings, release: Release) -> Disagreement:
    """Compare. The log must be read to its end. Raises `KafkaUnavailable`, `TritonUnavailable`."""
    profiles: dict[bytes, Profile] = {}
    for message in _records(settings, PROFILES):
        profiles[message.key()] = decode_profile(message.value()).data
    rows: dict[bytes, list[tuple[str, Row]]] = {}
    for event, message in read_behavior(settings):
        if isinstance(event, Event):
            rows.setdefault(message.key(), []).append((event.platform, row_of(event)))
    spec = WindowSpec(settings.window.per_platform, settings.window.horizon)
    asked = [key for key, profile in profiles.items() if key in rows and profile.model.release == release.number]
    windows = [BehaviorWindow(spec).fold(rows[key]) for key in asked]
    scores = asyncio.run(_scores(settings, release, windows, _texts(settings)))
    labels = release.manifest.labels
    true = tops(scores, range(len(labels)))
    wrong = stale = 0
    for key, row in zip(asked, true, strict=True):
        stale += profiles[key].status == "stale"
        published = {interest.id for interest in profiles[key].interests[:TOP]}
        wrong += published != {labels[place] for place in np.flatnonzero(row)}
    count = max(1, len(asked))
    return Disagreement(len(asked), round(stale / count, 4), round(wrong / count, 4))


def _texts(settings: Settings) -> dict[TextHash, TextEntry]:
    """Return the texts in the workers' changelog."""
    return {
        TextHash(message.key()[len(TEXT_PREFIX) :]): TextEntry.unpack(message.value())
        for message in _records(settings, changelog_topic(settings.worker.app))
        if message.key().startswith(TEXT_PREFIX) and message.value() is not None
    }


async def _scores(
    settings: Settings, release: Release, windows: Sequence[BehaviorWindow], texts: dict[TextHash, TextEntry]
) -> NDArray[np.float32]:
    manifest = release.manifest
    parts = []
    async with TritonScorer(settings.triton) as scorer:
        vectors = {one: entry.vector for one, entry in texts.items() if entry.encoder == release.encoder}
        absent = {one: entry.text for one, entry in texts.items() if one not in vectors}
        vectors |= dict(zip(absent, await scorer.encode(release, list(absent.values())), strict=True))
        for start in range(0, len(windows), settings.triton.head_batch):
            inputs = head_inputs(
                windows[start : start + settings.triton.head_batch],
                vectors,
                platforms=manifest.platforms,
                width=manifest.width,
                max_events=manifest.max_events,
            )
            parts.append(await scorer.score(release, inputs))
    return np.concatenate(parts) if parts else np.zeros((0, len(manifest.labels)), np.float32)


def _records(settings: Settings, topic: str) -> Iterator[Message]:
    for span in spans(settings, [topic]):
        for messages in read_span(settings, span):
            yield from messages
