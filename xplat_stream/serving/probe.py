"""How fast an encoder is on the model server itself, found out without touching the versions that serve.

The graph is loaded under a name of its own: as one more version of `interest_encoder` it would push the oldest
version that is loaded, which may be the active one, out of memory.
"""

from __future__ import annotations

import shutil
from contextlib import asynccontextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Final

from xplat_stream.serving.releases import CONFIG_FILE, ENCODER, MODEL_FILE, ModelRepository
from xplat_stream.serving.triton import TritonScorer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from xplat_stream.serving.features import TextFeatures
    from xplat_stream.settings import Settings

PROBE: Final = "encoder_probe"
_VERSION: Final = 1
_PASSES: Final = 2


async def texts_per_s(settings: Settings, graph: bytes | Path, features: TextFeatures, texts: Sequence[str]) -> float:
    """Return how many texts a second the server encodes, one call after the other, tokenizing included.

    The better of two passes in the worker's batches, after one that is not timed. Raises `ReleaseError` when the graph
    does not load, `TritonUnavailable`.
    """
    async with _loaded(settings, graph) as scorer:
        seconds = []
        for _ in range(1 + _PASSES):
            started = perf_counter()
            for batch in features.batches(texts, size=settings.triton.encoder_batch):
                inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
                await scorer.infer(PROBE, _VERSION, inputs, "vector")
            seconds.append(perf_counter() - started)
        return len(texts) / min(seconds[1:])


@asynccontextmanager
async def _loaded(settings: Settings, graph: bytes | Path) -> AsyncIterator[TritonScorer]:
    """Have the graph loaded as `PROBE` inside the block, configured as the encoder is."""
    repository = ModelRepository.of(settings)
    repository.require_layout()
    folder = repository.root / PROBE
    shutil.rmtree(folder, ignore_errors=True)  # what a killed run left
    config = (repository.root / ENCODER / CONFIG_FILE).read_text(encoding="utf-8")
    try:
        repository.place(PROBE, _VERSION, {MODEL_FILE: graph})
        (folder / CONFIG_FILE).write_text(config.replace(f'"{ENCODER}"', f'"{PROBE}"'), encoding="utf-8")
        async with TritonScorer(settings.triton) as scorer:
            await scorer.load(PROBE, _VERSION)
            try:
                yield scorer
            finally:
                await scorer.unload(PROBE)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
