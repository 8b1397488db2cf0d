"""How many profile updates a second the model server gives, by the fused model and by the split one.

The fused model reads every window anew after each event; of the split one, whose texts are encoded once, the head alone
runs again. Both are asked over one connection in the worker's batches, in the newest versions the repository holds:
`xplat train` and `xplat train --fused` make them. An update is one user's window scored; folding is in neither figure.
"""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import TYPE_CHECKING, Final

import msgspec

from xplat_stream.errors import ReleaseError
from xplat_stream.event import TextHash, UserId, hash_text, item_text
from xplat_stream.population import Population
from xplat_stream.serving.features import fused_text, head_inputs
from xplat_stream.serving.fused import FUSED, FusedScorer, load_fused
from xplat_stream.serving.releases import ENCODER, HEAD, ModelRepository
from xplat_stream.serving.triton import TritonScorer
from xplat_stream.taxonomy import load_taxonomy
from xplat_stream.window import BehaviorWindow, Row, WindowSpec, row_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from xplat_stream.settings import Settings

_START_MS: Final = 1_780_000_000_000
_SPAN_MS: Final = 20 * 86_400_000
_SEED: Final = 11


class FusedBench(msgspec.Struct, frozen=True):
    """One run. Rates are updates a second on one connection."""

    users: int
    events_per_window: float
    """Mean, of all platforms together."""
    fused_tokens: int
    """Tokens of a window the fused model reads at the most."""
    fused_updates_per_s: float
    split_updates_per_s: float
    """Every text known already: what most updates are."""
    split_new_text_updates_per_s: float
    """Every update brings one text that nobody saw before."""
    ratio: float
    """`split_updates_per_s` over `fused_updates_per_s`."""
    new_text_ratio: float
    """`split_new_text_updates_per_s` over `fused_updates_per_s`."""


def bench_fused(settings: Settings, *, users: int, events: int, report: Callable[[str], None]) -> FusedBench:
    """Score `users` windows of `events` events each, by either model, on the running Triton.

    Raises `ReleaseError` when the repository lacks one of them or it does not load, `TritonUnavailable`.
    """
    return asyncio.run(_measure(settings, users=users, events=events, report=report))


async def _measure(settings: Settings, *, users: int, events: int, report: Callable[[str], None]) -> FusedBench:
    repository = ModelRepository.of(settings)
    fused = load_fused(repository, _newest(repository, FUSED, "xplat train --fused"))
    split = repository.load(_newest(repository, HEAD, "xplat train"))
    windows, texts = _windows(settings, users=users, events=events)
    batch = settings.triton.head_batch
    async with TritonScorer(settings.triton) as scorer:
        for model, version in ((FUSED, fused.number), (ENCODER, split.encoder), (HEAD, split.number)):
            await scorer.load(model, version)
        reader = FusedScorer(scorer, batch=settings.triton.encoder_batch)
        vectors = dict(zip(texts, await scorer.encode(split, list(texts.values())), strict=True))

        async def by_fused(some: list[BehaviorWindow], _: int) -> None:
            tokens = fused.manifest.max_tokens
            await reader.score(fused, [fused_text(window, texts, max_tokens=tokens) for window in some])

        async def by_split(some: list[BehaviorWindow], _: int) -> None:
            manifest = split.manifest
            inputs = head_inputs(
                some, vectors, platforms=manifest.platforms, width=manifest.width, max_events=manifest.max_events
            )
            await scorer.score(split, inputs)

        async def by_split_with_new_texts(some: list[BehaviorWindow], start: int) -> None:
            titles = list(texts.values())
            await scorer.encode(split, [titles[(start + one) % len(titles)] for one in range(len(some))])
            await by_split(some, start)

        async def rate(name: str, update: Callable[[list[BehaviorWindow], int], Awaitable[None]]) -> float:
            await update(windows[:batch], 0)  # not timed: the first call of a shape is slower
            started = perf_counter()
            for start in range(0, len(windows), batch):
                await update(windows[start : start + batch], start)
            found = len(windows) / (perf_counter() - started)
            report(f"{name}: {found:,.1f} updates/s")
            return found

        whole = await rate("fused, every window read anew", by_fused)
        known = await rate("split, texts known", by_split)
        new = await rate("split, one new text an update", by_split_with_new_texts)
    mean = sum(map(len, windows)) / len(windows)
    return FusedBench(
        len(windows), round(mean, 1), fused.manifest.max_tokens, whole, known, new, known / whole, new / whole
    )


def _newest(repository: ModelRepository, model: str, command: str) -> int:
    versions = repository.versions(model)
    if not versions:
        raise ReleaseError(
            f"the repository holds no version of {model}",
            where=str(repository.root),
            expected="one trained before",
            fix=f"Run `{command}`.",
        )
    return versions[-1]


def _windows(settings: Settings, *, users: int, events: int) -> tuple[list[BehaviorWindow], dict[TextHash, str]]:
    """Return windows of simulated people, and the texts in them."""
    population = Population(load_taxonomy(settings.model.taxonomy), users=users, seed=_SEED)
    texts: dict[TextHash, str] = {}
    rows: dict[UserId, list[tuple[str, Row]]] = {}
    for event in population.events(_START_MS, _START_MS + _SPAN_MS, users * events):
        text = item_text(event.object)
        text_hash = hash_text(text)
        if text:
            texts[text_hash] = text
        rows.setdefault(event.user_id, []).append((event.platform, row_of(event, text_hash)))
    spec = WindowSpec(settings.window.per_platform, settings.window.horizon)
    return [BehaviorWindow(spec).fold(additions) for additions in rows.values()], texts
