"""`xplat compress`: one encoder, made smaller in each way, all measured on the same texts, windows and server."""

from __future__ import annotations

import asyncio
from copy import deepcopy
from typing import TYPE_CHECKING, NamedTuple

import msgspec
from rich.table import Table
from tokenizers import Tokenizer
from torch import nn

from trainer.data.examples import last_of_each
from trainer.export.compress import (
    Windows,
    compressed,
    cosine,
    narrow,
    ndcg_lost,
    probe_ndcg,
    prune_heads,
    quantized,
    vectors_of,
)
from trainer.export.export import export_encoder
from trainer.measuring.methods import split
from trainer.networks.models import load_pretrained
from trainer.run.progress import Report, silent
from xplat_stream.serving.features import TextFeatures
from xplat_stream.serving.probe import texts_per_s

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from trainer.data.study import Cuts, Study
    from xplat_stream.settings import Settings

_FOLD = 0
_MAX_TOKENS = 64
_SPEED_TEXTS = 128


class Asked(NamedTuple):
    """What is compared."""

    base: str
    heads: tuple[int, ...]
    widths: tuple[int, ...]
    texts: int
    """Texts that quality is measured on, the most used ones; all others count as empty in every variant."""
    threads: int


class Variant(msgspec.Struct, frozen=True):
    """One encoder: what it costs, and what it lost against the first."""

    name: str
    width: int
    bytes: int
    texts_per_s: float
    """On the model server, one call after the other; see `xplat_stream.serving.probe`."""
    cosine: float
    """Mean cosine to the first encoder's vectors; of narrower ones, carried back into the first one's space."""
    ndcg_lost: float
    """NDCG@10 of a logistic regression on mean vectors, the first encoder's minus this one's, one fold's users."""
    low: float
    high: float
    """95 % paired interval of it, resampled over users."""


class _Draft(NamedTuple):
    name: str
    graph: bytes
    directions: NDArray[np.float32] | None = None


def compression_report(study: Study, settings: Settings, asked: Asked, report: Report = silent) -> list[Variant]:
    """Measure a pretrained encoder as it is, in int8, with fewer heads, and narrower.

    Quality is of users whom the model on top never saw: fold 0 of the study. Raises `DataError` for an encoder that
    cannot be read or pruned, `ReleaseError`, `TritonUnavailable`.
    """
    texts = study.texts.texts[: asked.texts]
    whole, raw_tokenizer = load_pretrained(asked.base, width=1, lora_rank=1)
    whole.merge()  # LoRA starts as no change; and its words are one zero each, no part of what is measured
    hidden = whole.project.in_features
    whole.project = nn.Linear(hidden, hidden, bias=False)
    nn.init.eye_(whole.project.weight)
    tokenizer = Tokenizer.from_str(raw_tokenizer.decode())
    features = TextFeatures(tokenizer, max_tokens=_MAX_TOKENS)
    vocabulary = tokenizer.get_vocab_size()
    graph = export_encoder(whole, vocabulary=vocabulary)
    original = vectors_of(graph, features, texts, threads=asked.threads)
    drafts = [_Draft("as it is", graph), _Draft("int8", quantized(graph, features, texts))]
    for heads in asked.heads:
        pruned = deepcopy(whole)
        prune_heads(pruned, features, texts, heads)
        drafts.append(_Draft(f"{heads} heads fewer", export_encoder(pruned, vocabulary=vocabulary)))
    for width in asked.widths:
        slim = deepcopy(whole)
        directions = narrow(slim, original, width)
        drafts.append(_Draft(f"width {width}", export_encoder(slim, vocabulary=vocabulary), directions))
    if asked.heads and asked.widths:
        directions = narrow(whole, original, asked.widths[-1])
        smallest = compressed(whole, features, texts, vocabulary=vocabulary, heads=asked.heads[0], int8=True)
        name = f"width {asked.widths[-1]}, {asked.heads[0]} heads fewer, int8"
        drafts.append(_Draft(name, smallest, directions))
    parts = split(study, _FOLD)
    windows = _windows(parts.train.take(last_of_each(parts.train.user))), _windows(parts.test)
    quality = probe_ndcg(original, *windows)
    found = []
    for done, draft in enumerate(drafts, 1):
        vectors = original if done == 1 else vectors_of(draft.graph, features, texts, threads=asked.threads)
        back = vectors if draft.directions is None else vectors @ draft.directions
        lost = ndcg_lost(quality, probe_ndcg(vectors, *windows), windows[1])
        speed = asyncio.run(texts_per_s(settings, draft.graph, features, texts[:_SPEED_TEXTS]))
        near = cosine(original, back)
        size = len(draft.graph)
        found.append(Variant(draft.name, vectors.shape[1], size, speed, near, lost.value, lost.low, lost.high))
        report("compress", done, len(drafts), {"mb": size / 1e6, "texts_per_s": speed, "cosine": near})
    return found


def _windows(cuts: Cuts) -> Windows:
    return Windows(cuts.inputs, cuts.targets, cuts.user.tolist())


def render(found: Sequence[Variant]) -> Table:
    """Lay the variants out for a terminal."""
    table = Table("encoder", "width", "MB", "texts/s", "cosine", "NDCG@10 lost", "95 %")
    for one in found:
        interval = f"[{one.low:+.4f}, {one.high:+.4f}]"
        figures = f"{one.bytes / 1e6:.1f}", f"{one.texts_per_s:.0f}", f"{one.cosine:.4f}", f"{one.ndcg_lost:+.4f}"
        table.add_row(one.name, str(one.width), *figures, interval)
    return table
