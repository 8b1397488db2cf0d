"""How fast a model is on the server itself, and what it takes, found out without touching the versions that serve.

A graph is loaded under a name of its own: as one more version of `interest_encoder` it would push the oldest version
that is loaded, which may be the active one, out of memory.
"""

from __future__ import annotations

import shutil
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Final

from xplat_stream.local.process import alive, memory_of
from xplat_stream.local.record import read_stack
from xplat_stream.serving.releases import CONFIG_FILE, ENCODER, HEAD, MODEL_FILE, ModelRepository
from xplat_stream.serving.triton import TritonScorer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from xplat_stream.serving.features import HeadInputs, TextFeatures
    from xplat_stream.serving.releases import Release
    from xplat_stream.settings import Settings

PROBES: Final = {ENCODER: "encoder_probe", HEAD: "head_probe"}
_VERSION: Final = 1
_PASSES: Final = 2


class ProbeScorer(TritonScorer):
    """Scores with graphs that are loaded under the names of probes; an encoder that serves already is asked itself."""

    def __init__(self, settings: Settings, names: Mapping[str, str]) -> None:
        super().__init__(settings.triton)
        self._names = names

    def _encoder_of(self, release: Release) -> tuple[str, int]:
        return (self._names[ENCODER], _VERSION) if ENCODER in self._names else super()._encoder_of(release)

    def _head_of(self, release: Release) -> tuple[str, int]:
        return (self._names[HEAD], _VERSION) if HEAD in self._names else super()._head_of(release)


@asynccontextmanager
async def probed(settings: Settings, repository: ModelRepository, release: Release) -> AsyncIterator[ProbeScorer]:
    """Have a release that is out of Triton's sight answer inside the block.

    Raises `ReleaseError` when a graph does not load, `TritonUnavailable`.
    """
    versions = {HEAD: release.number, ENCODER: release.encoder}
    async with TritonScorer(settings.triton) as scorer:
        await scorer.require_ready()
        missing = [model for model, version in versions.items() if not await scorer.has(model, version)]
    async with AsyncExitStack() as stack:
        for model in missing:
            await stack.enter_async_context(
                _loaded(settings, model, repository.folder(model, versions[model]) / MODEL_FILE)
            )
        yield await stack.enter_async_context(ProbeScorer(settings, {model: PROBES[model] for model in missing}))


def server_memory(settings: Settings) -> int | None:
    """Return the bytes that the model server and its children hold, None where it is not this machine's own."""
    server = read_stack(Path(settings.local.home)).triton
    if server is None or server.child is None or not alive(server.child):
        return None
    return memory_of(server.child.pid) if server.address == settings.triton.url else None


async def encoder_times(scorer: TritonScorer, release: Release, texts: Sequence[str], calls: int) -> list[float]:
    """Return the seconds of encoder calls, one after the other, after one that is not timed."""
    seconds = []
    for _ in range(1 + calls):
        started = perf_counter()
        await scorer.encode(release, texts)
        seconds.append(perf_counter() - started)
    return seconds[1:]


async def head_times(scorer: TritonScorer, release: Release, inputs: HeadInputs, calls: int) -> list[float]:
    """Return the seconds of head calls, one after the other, after one that is not timed."""
    seconds = []
    for _ in range(1 + calls):
        started = perf_counter()
        await scorer.score(release, inputs)
        seconds.append(perf_counter() - started)
    return seconds[1:]


async def texts_per_s(settings: Settings, graph: bytes | Path, features: TextFeatures, texts: Sequence[str]) -> float:
    """Return how many texts a second the server encodes, one call after the other, tokenizing included.

    The better of two passes in the worker's batches, after one that is not timed. Raises `ReleaseError` when the graph
    does not load, `TritonUnavailable`.
    """
    async with _loaded(settings, ENCODER, graph), TritonScorer(settings.triton) as scorer:
        seconds = []
        for _ in range(1 + _PASSES):
            started = perf_counter()
            for batch in features.batches(texts, size=settings.triton.encoder_batch):
                inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
                await scorer.infer(PROBES[ENCODER], _VERSION, inputs, "vector")
            seconds.append(perf_counter() - started)
        return len(texts) / min(seconds[1:])


def _write(folder: Path, graph: bytes | Path, config: str) -> None:
    """Write a probe. Not `ModelRepository.place`: a probe takes no number."""
    version = folder / str(_VERSION)
    version.mkdir(parents=True)
    (version / MODEL_FILE).write_bytes(graph if isinstance(graph, bytes) else graph.read_bytes())
    (folder / CONFIG_FILE).write_text(config, encoding="utf-8")


@asynccontextmanager
async def _loaded(settings: Settings, model: str, graph: bytes | Path) -> AsyncIterator[None]:
    """Have a graph loaded inside the block as the probe of a model, configured as that is."""
    repository = ModelRepository.of(settings)
    repository.require_layout()
    probe = PROBES[model]
    folder = repository.root / probe
    shutil.rmtree(folder, ignore_errors=True)  # what a killed run left
    config = (repository.root / model / CONFIG_FILE).read_text(encoding="utf-8")
    try:
        _write(folder, graph, config.replace(f'"{model}"', f'"{probe}"'))
        async with TritonScorer(settings.triton) as scorer:
            await scorer.load(probe, _VERSION)
            try:
                yield
            finally:
                await scorer.unload(probe)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
