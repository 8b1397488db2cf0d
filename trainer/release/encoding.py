"""The encoder of a run, exported and ready to read texts: fine-tuned on the log, or the active release's."""

from __future__ import annotations

import asyncio
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Self

import numpy as np
from tokenizers import Tokenizer

from trainer.data.compact import vector_table
from trainer.export.compress import (
    QUALITY_TEXTS,
    Windows,
    cosine,
    ndcg_lost,
    probe_ndcg,
    prune_heads,
    quantized,
    vectors_of,
)
from trainer.export.export import encode_texts, export_encoder
from trainer.fitting.fit import Hints, fit_encoder, following_pairs
from trainer.networks.models import DEFAULT_PACKAGE, default_base, load_pretrained
from trainer.networks.weak import label_texts
from trainer.release.release import EncoderFiles, EncoderKept, kept_encoder
from trainer.run.devices import is_first_process
from trainer.run.schedule import seeded
from xplat_stream.errors import DataError, ReleaseError
from xplat_stream.kafka.consumer import active_announcement
from xplat_stream.serving.features import TextFeatures
from xplat_stream.serving.probe import texts_per_s
from xplat_stream.serving.releases import ENCODER, MODEL_FILE, TOKENIZER_FILE, ModelRepository

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from torch import nn

    from trainer.data.dataset import Dataset
    from trainer.fitting.checkpoint import Checkpoint
    from trainer.fitting.fit_head import Fitting
    from trainer.networks.models import Encoder, Pretrained
    from trainer.run.options import TrainOptions
    from trainer.run.progress import Report
    from xplat_stream.settings import Settings
    from xplat_stream.taxonomy import Taxonomy

_SPEED_TEXTS: Final = 128
"""Texts, the most used ones, that the speed of an encoder is measured with."""


class ReadyEncoder(NamedTuple):
    """An exported encoder and how its texts are prepared."""

    graph: bytes | Path
    features: TextFeatures
    files: EncoderFiles | EncoderKept
    width: int
    max_tokens: int
    base: str
    original: bytes = b""
    """The graph before it was compressed; empty where it was not."""
    costs: Mapping[str, float] = {}
    """What the release that brought the encoder says of it."""

    def vector_table(self, texts: Sequence[str], options: TrainOptions, report: Report) -> NDArray[np.float16]:
        """Return (texts + 1, width), `trainer.data.compact.vector_table`, made by the graph that will serve."""
        vectors = np.zeros((len(texts), self.width), np.float16)
        for done, vectors in encode_texts(self.graph, self.features, texts, width=self.width, threads=options.threads):
            report("vectors", done, len(vectors), {})
        return vector_table(vectors)


class FreshEncoder(NamedTuple):
    """A fine-tuned encoder that may still be trained with the head."""

    encoder: Encoder
    tokenizer: bytes
    features: TextFeatures
    unpruned: nn.Module | None = None
    """The transformer with all its heads, where some were cut out."""

    @classmethod
    def of(cls, pretrained: Pretrained, options: TrainOptions) -> Self:
        """Return it with its texts' preparation."""
        tokenizer = Tokenizer.from_str(pretrained.tokenizer.decode())
        return cls(*pretrained, TextFeatures(tokenizer, max_tokens=options.max_tokens))

    def exported(self, options: TrainOptions, texts: Sequence[str]) -> ReadyEncoder:
        """Return its graph, in int8 where asked for. Raises `ReleaseError` when that answers differently.

        `texts`: what its numbers in int8 are scaled by.
        """
        vocabulary = self.encoder.words.num_embeddings
        graph, original = export_encoder(self.encoder, vocabulary=vocabulary), b""
        if self.unpruned is not None:
            whole = self.encoder.beside()
            whole.backbone = self.unpruned
            original = export_encoder(whole, vocabulary=vocabulary)
        if options.int8:
            original, graph = original or graph, quantized(graph, self.features, texts)
        return ReadyEncoder(
            graph,
            self.features,
            EncoderFiles(graph, self.tokenizer),
            options.width,
            options.max_tokens,
            options.base or DEFAULT_PACKAGE,
            original,
        )


def as_it_is(options: TrainOptions) -> FreshEncoder:
    """Return the pretrained encoder untouched, under a projection that follows the seed. Raises `DataError`."""
    with seeded(options.seed, options.threads):
        pretrained = load_pretrained(options.base or default_base(), width=options.width, lora_rank=options.lora_rank)
    pretrained.encoder.merge()
    return FreshEncoder.of(pretrained, options)


def fine_tuned(fitting: Fitting, taxonomy: Taxonomy, *, checkpoint: Checkpoint) -> FreshEncoder:
    """Fine-tune an encoder on the texts of a log, and cut out the heads that matter least. Raises `DataError`.

    `fitting`: its texts know what those of its training windows touched next, and nobody else.
    """
    texts, options = fitting.texts, fitting.options
    if options.prune_heads and options.adapter == "prefix":
        raise DataError(
            "heads cannot be cut out of an encoder with a prefix: it speaks to each of them",
            where="--prune-heads",
            expected="another adapter",
            fix="Leave --prune-heads out, or choose --adapter lora.",
        )
    base = options.base or default_base()
    hints = Hints(
        following_pairs(fitting.train) if options.contrast else Hints().following,
        label_texts(taxonomy) if options.weak_labels else (),
    )
    pretrained = fit_encoder(texts, options, base, fitting.report, hints=hints, checkpoint=checkpoint)
    fresh = FreshEncoder.of(pretrained, options)
    if not options.prune_heads:
        return fresh
    unpruned = deepcopy(fresh.encoder.backbone)
    prune_heads(fresh.encoder, fresh.features, texts.texts, options.prune_heads)
    return fresh._replace(unpruned=unpruned)


def encoder_costs(encoder: ReadyEncoder, data: Dataset, settings: Settings, options: TrainOptions) -> dict[str, float]:
    """Return the encoder's size, its speed on the model server, and what compression took from its vectors.

    Of an encoder that is kept, what its own release says. The speed is asked of the server only by a run that
    publishes; raises `ReleaseError`, `TritonUnavailable` then.
    """
    if isinstance(encoder.graph, Path):
        return dict(encoder.costs)
    texts = data.texts.texts
    costs = {"encoder_bytes": float(len(encoder.graph))}
    if options.publish and is_first_process():
        speed = texts_per_s(settings, encoder.graph, encoder.features, texts[:_SPEED_TEXTS])
        costs["encoder_texts_per_s"] = asyncio.run(speed)
    if encoder.original:
        train, test = (Windows(part.inputs, part.targets, part.users) for part in (data.train, data.test))
        before, after = (
            vectors_of(graph, encoder.features, texts[:QUALITY_TEXTS], threads=options.threads)
            for graph in (encoder.original, encoder.graph)
        )
        lost = ndcg_lost(probe_ndcg(before, train, test), probe_ndcg(after, train, test), test)
        costs |= {
            "encoder_bytes_before": float(len(encoder.original)),
            "encoder_cosine": cosine(before, after),
            "encoder_ndcg_lost": lost.value,
            "encoder_ndcg_lost_low": lost.low,
            "encoder_ndcg_lost_high": lost.high,
        }
    return costs


def active_encoder(settings: Settings, options: TrainOptions) -> ReadyEncoder:
    """Return the active release's encoder. Raises `ReleaseError` when there is none, or one of another width."""
    active = active_announcement(settings)
    if active is None:
        raise ReleaseError(
            "no release is active whose encoder could be kept",
            where=settings.kafka.bootstrap,
            expected="a release announced on interest.models.v1",
            fix="Train encoder and head together first: `xplat train`.",
        )
    repository = ModelRepository.of(settings)
    release = repository.load(active.release)
    manifest = release.manifest
    if manifest.width != options.width:
        raise ReleaseError(
            f"the active encoder's vectors are {manifest.width} wide",
            where=f"release {active.release}",
            expected=f"{options.width}, as asked for",
            fix="Train encoder and head together, or leave the width alone.",
        )
    folder = repository.folder(ENCODER, manifest.encoder)
    features = TextFeatures.from_file(folder / TOKENIZER_FILE, max_tokens=manifest.max_tokens)
    return ReadyEncoder(
        folder / MODEL_FILE,
        features,
        kept_encoder(manifest),
        manifest.width,
        manifest.max_tokens,
        manifest.base,
        costs={name: value for name, value in manifest.metrics.items() if name.startswith("encoder_")},
    )
