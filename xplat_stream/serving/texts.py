"""The vectors of texts, encoded once each: a cache in memory that all partitions of a worker share."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from xplat_stream.profile import KnownText

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from xplat_stream.event import TextHash
    from xplat_stream.serving.releases import Release
    from xplat_stream.serving.scorer import Scorer
    from xplat_stream.state import TextEntry

MAX_TEXTS: Final = 500_000
"""Vectors held in memory: 64 float16 and their bookkeeping are about 400 bytes, so 200 MB at the most."""


class TextVectors:
    """Text hash → vector, per encoder version. A text asked for by several partitions at once is encoded once."""

    def __init__(self, scorer: Scorer, *, max_texts: int = MAX_TEXTS) -> None:
        self._scorer = scorer
        self._max_texts = max_texts
        self._vectors: dict[int, dict[TextHash, bytes]] = {}
        self._running: dict[tuple[int, TextHash], asyncio.Task[None]] = {}
        self.known: dict[TextHash, KnownText] = {}
        self.encoded = 0

    def of(self, encoder: int) -> dict[TextHash, bytes]:
        """Return the vectors of one encoder version."""
        return self._vectors.setdefault(encoder, {})

    def missing(self, encoder: int, hashes: Iterable[TextHash]) -> list[TextHash]:
        """Return the texts that have no vector of this encoder in memory."""
        held = self.of(encoder)
        return [text_hash for text_hash in hashes if text_hash not in held]

    def learn(self, entries: Mapping[TextHash, TextEntry]) -> None:
        """Take in texts read from a partition's state, with those of their vectors whose encoder is in use here."""
        for text_hash, entry in entries.items():
            self.known[text_hash] = KnownText(entry.labels, entry.text)
            for encoder, vector in entry.vectors.items():
                if encoder in self._vectors:
                    self._vectors[encoder][text_hash] = vector

    async def encode(self, release: Release, entries: Mapping[TextHash, TextEntry]) -> dict[TextHash, TextEntry]:
        """Return the entries with a vector of the release's encoder, encoding those that have none.

        Raises what the scorer raises.
        """
        self.of(release.encoder)
        self.learn(entries)
        while absent := self.missing(release.encoder, entries):  # again where they were forgotten while one waited
            mine = [text_hash for text_hash in absent if (release.encoder, text_hash) not in self._running]
            waiting = {self._running[key] for key in ((release.encoder, one) for one in absent) if key in self._running}
            if mine:
                task = asyncio.create_task(self._encode(release, {one: entries[one].text for one in mine}))
                for one in mine:
                    self._running[release.encoder, one] = task
                waiting.add(task)
            # Shielded: another partition may wait for the same texts when this one is taken away.
            await asyncio.shield(asyncio.gather(*waiting))
        held = self.of(release.encoder)
        return {text_hash: entry.with_vector(release.encoder, held[text_hash]) for text_hash, entry in entries.items()}

    def reads(self, encoder: int, hashes: Iterable[TextHash]) -> bool:
        """Tell whether the encoder is reading any of the texts now."""
        return any((encoder, text_hash) in self._running for text_hash in hashes)

    async def _encode(self, release: Release, texts: Mapping[TextHash, str]) -> None:
        try:
            vectors = await self._scorer.encode(release, list(texts.values()))
            self.of(release.encoder).update(zip(texts, vectors, strict=True))
            self.encoded += len(texts)
        finally:
            for text_hash in texts:
                self._running.pop((release.encoder, text_hash), None)

    def forget_encoders(self, keep: Iterable[int]) -> None:
        """Drop the vectors of encoders that no release in use has."""
        kept = set(keep)
        for encoder in [one for one in self._vectors if one not in kept]:
            del self._vectors[encoder]

    def forget_encoder(self, encoder: int) -> None:
        """Drop the vectors of one encoder."""
        self._vectors.pop(encoder, None)

    def forget_oldest(self) -> None:
        """Drop the longest-held tenth when there are too many texts; partitions hold them all on disk."""
        _forget_oldest(self.known, self._max_texts)
        for held in self._vectors.values():
            _forget_oldest(held, self._max_texts)


def _forget_oldest(held: dict[TextHash, Any], most: int) -> None:
    if len(held) > most:
        for text_hash in list(held)[: len(held) - most * 9 // 10]:
            del held[text_hash]
