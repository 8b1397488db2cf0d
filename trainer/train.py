"""Train a release from the log and make it the active one.

Read it from top to bottom, it runs in that order. How to call it::

    from trainer.train import TrainOptions, train
    train(load_settings(), TrainOptions())                   # encoder and head: minutes
    train(load_settings(), TrainOptions(head_only=True))     # a head on the active release's encoder: seconds
    train_on(events, settings, TrainOptions(publish=False))  # no Kafka, no Triton: returns the files

Every function below `train_on` serves one of its steps.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from trainer.compact import Compact, compact, vector_table
from trainer.compress import QUALITY_TEXTS, Windows, compressed, cosine, ndcg_lost, probe_ndcg, vectors_of
from trainer.dataset import Dataset, build_examples, read_log
from trainer.evaluate import Evaluation, baselines, evaluate
from trainer.export import encode_texts, export_encoder, export_head, score_inputs
from trainer.fit import fit_encoder
from trainer.fit_head import fit_head, score_windows
from trainer.models import DEFAULT_PACKAGE, default_base
from trainer.options import TrainOptions
from trainer.progress import STAGES, Report, silent
from trainer.release import Candidate, EncoderFiles, EncoderKept, active_announcement, kept_encoder, publish
from xplat_stream.errors import ReleaseError
from xplat_stream.profile import TaxonomyRef
from xplat_stream.serving.features import TextFeatures
from xplat_stream.serving.probe import texts_per_s
from xplat_stream.serving.releases import ENCODER, MODEL_FILE, TOKENIZER_FILE, Golden, ModelRepository
from xplat_stream.serving.triton import TritonScorer
from xplat_stream.taxonomy import load_taxonomy
from xplat_stream.window import WindowSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from xplat_stream.event import Event
    from xplat_stream.settings import Settings

__all__ = ["Candidate", "Evaluation", "TrainOptions", "TrainResult", "train", "train_on"]

_GOLDEN = 4
"""Texts, and windows, of the golden requests."""

_GOLDEN_EVENTS = 16

_SPEED_TEXTS = 128
"""Texts, the most used ones, that the speed of an encoder is measured with."""


class TrainResult(NamedTuple):
    """What a run gave. `release` and `previous` are 0 when it was not published."""

    release: int
    previous: int
    metrics: dict[str, float]
    evaluation: Evaluation
    seconds_by_stage: dict[str, float]
    candidate: Candidate


def train(settings: Settings, options: TrainOptions, report: Report = silent) -> TrainResult:
    """Train on what the broker holds.

    Raises `DataError` when that is too little, `KafkaUnavailable`, `ReleaseError`, `TritonUnavailable`.
    """
    started = perf_counter()
    if options.publish:
        asyncio.run(_can_publish(settings))
    log = read_log(settings, report)
    report("read", 1, 1, {"events": len(log.events), "rejected": log.rejected})
    result = train_on(log.events, settings, options, report)
    seconds = {"read": round(perf_counter() - started - sum(result.seconds_by_stage.values()), 2)}
    return result._replace(seconds_by_stage=seconds | result.seconds_by_stage)


def train_on(
    events: Sequence[Event], settings: Settings, options: TrainOptions, report: Report = silent
) -> TrainResult:
    """Train on these events. Raises as `train`."""
    clock = _Clock()
    taxonomy = load_taxonomy(settings.model.taxonomy)
    spec = WindowSpec(settings.window.per_platform, settings.window.horizon)

    # Examples: windows up to a cut, and what came after it
    data = build_examples(events, taxonomy, spec, options)
    train_inputs, tune_inputs, test_inputs = (
        compact(part.windows, data.texts, platforms=data.platforms, max_events=options.max_events)
        for part in (data.train, data.tune, data.test)
    )
    counted = {"users": len(set(data.train.users)), "texts": len(data.texts.texts)}
    report("examples", len(data.train), len(data.train), counted)
    clock.stage("examples")

    # Encoder: fine-tuned on every distinct text, or the one in use
    encoder = _active_encoder(settings, options) if options.head_only else _fine_tuned(data, options, report)
    clock.stage("encoder")

    # Vectors: by the graph that will serve, once per distinct text
    vectors = np.zeros((len(data.texts.texts), encoder.width), np.float16)
    for done, vectors in encode_texts(
        encoder.graph, encoder.features, data.texts.texts, width=encoder.width, threads=options.threads
    ):
        report("vectors", done, len(vectors), {})
    table = vector_table(vectors)  # (texts + 1, width)
    windows = (
        Windows(train_inputs, data.train.targets, data.train.users),
        Windows(test_inputs, data.test.targets, data.test.users),
    )
    costs = _encoder_costs(encoder, data.texts.texts, windows, settings, options)
    report("vectors", len(vectors), len(vectors), costs)
    clock.stage("vectors")

    # Head: windows of vectors → labels, early stopping and calibration on one half of the validation users
    head = fit_head(
        (data.train, train_inputs),
        (data.tune, tune_inputs),
        table=table,
        texts=data.texts,
        platforms=len(data.platforms),
        options=options,
        report=report,
    )
    clock.stage("head")

    # Evaluation: on the other half
    scores = score_windows(head, test_inputs, table)  # (windows, labels)
    evaluation = evaluate(
        taxonomy,
        (score_windows(head, train_inputs, table), data.train.targets),
        (scores, data.test.targets),
        baselines=baselines(data.texts, (train_inputs, data.train.targets), test_inputs, data.train.weights),
        users=len(set(data.test.users)),
    )
    metrics = evaluation.metrics() | costs
    report("evaluate", len(scores), len(scores), {"ndcg": metrics["ndcg_at_10"], "micro_f1": metrics["micro_f1"]})
    clock.stage("evaluate")

    # Export, with golden requests answered by the exported graphs
    graph = export_head(head)
    candidate = Candidate(
        encoder=encoder.files,
        head=graph,
        taxonomy=TaxonomyRef(taxonomy.name, taxonomy.version, taxonomy.cattax),
        labels=data.labels,
        platforms=data.platforms,
        width=encoder.width,
        max_tokens=encoder.max_tokens,
        max_events=options.max_events,
        base=encoder.base,
        golden=_golden(data, test_inputs, table, graph),
        metrics=metrics,
    )
    report("export", 1, 1, {"head_kb": len(graph) / 1024})
    clock.stage("export")
    if not options.publish:
        return TrainResult(0, 0, metrics, evaluation, clock.seconds, candidate)

    # Publication: placed, loaded, verified, announced
    published = publish(settings, candidate)
    report("publish", 1, 1, {"release": published.release})
    clock.stage("publish")
    return TrainResult(published.release, published.previous, metrics, evaluation, clock.seconds, candidate)


async def _can_publish(settings: Settings) -> None:
    """Find out before the minutes of training, not after, that there is nowhere to publish."""
    ModelRepository(settings.model.repository).require_layout()
    async with TritonScorer(settings.triton) as scorer:
        await scorer.require_ready()


class _Clock:
    """Seconds of each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = perf_counter()

    def stage(self, name: str) -> None:
        """Book the time since the stage before under `name`, one of `trainer.progress.STAGES`."""
        if name not in STAGES:
            raise KeyError(name)
        now = perf_counter()
        self.seconds[name] = round(now - self._last, 2)
        self._last = now


class _ReadyEncoder(NamedTuple):
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


def _fine_tuned(data: Dataset, options: TrainOptions, report: Report) -> _ReadyEncoder:
    base = options.base or default_base()
    encoder, raw_tokenizer = fit_encoder(data.texts, options, base, report)
    tokenizer = Tokenizer.from_str(raw_tokenizer.decode())
    features = TextFeatures(tokenizer, max_tokens=options.max_tokens)
    vocabulary = tokenizer.get_vocab_size()
    graph, original = export_encoder(encoder, vocabulary=vocabulary), b""
    if options.prune_heads or options.int8:
        original, graph = (
            graph,
            compressed(
                encoder,
                features,
                data.texts.texts,
                vocabulary=vocabulary,
                heads=options.prune_heads,
                int8=options.int8,
            ),
        )
    return _ReadyEncoder(
        graph,
        features,
        EncoderFiles(graph, raw_tokenizer),
        options.width,
        options.max_tokens,
        options.base or DEFAULT_PACKAGE,
        original,
    )


def _encoder_costs(
    encoder: _ReadyEncoder,
    texts: Sequence[str],
    windows: tuple[Windows, Windows],
    settings: Settings,
    options: TrainOptions,
) -> dict[str, float]:
    """Return the encoder's size, its speed on the model server, and what compression took from its vectors."""
    if isinstance(encoder.graph, Path):
        return dict(encoder.costs)
    costs = {"encoder_bytes": float(len(encoder.graph))}
    if options.publish:
        speed = texts_per_s(settings, encoder.graph, encoder.features, texts[:_SPEED_TEXTS])
        costs["encoder_texts_per_s"] = asyncio.run(speed)
    if encoder.original:
        before, after = (
            vectors_of(graph, encoder.features, texts[:QUALITY_TEXTS], threads=options.threads)
            for graph in (encoder.original, encoder.graph)
        )
        lost = ndcg_lost(probe_ndcg(before, *windows), probe_ndcg(after, *windows), windows[1])
        costs |= {
            "encoder_bytes_before": float(len(encoder.original)),
            "encoder_cosine": cosine(before, after),
            "encoder_ndcg_lost": lost.value,
            "encoder_ndcg_lost_low": lost.low,
            "encoder_ndcg_lost_high": lost.high,
        }
    return costs


def _active_encoder(settings: Settings, options: TrainOptions) -> _ReadyEncoder:
    """Return the active release's encoder. Raises `ReleaseError` when there is none, or one of another width."""
    active = active_announcement(settings)
    if active is None:
        raise ReleaseError(
            "no release is active whose encoder could be kept",
            where=settings.kafka.bootstrap,
            expected="a release announced on interest.models.v1",
            fix="Train encoder and head together first: `xplat train`.",
        )
    repository = ModelRepository(settings.model.repository)
    release = repository.load(active.release)
    manifest = release.manifest
    if manifest.width != options.width:
        raise ReleaseError(
            f"the active encoder's vectors are {manifest.width} wide",
            where=f"release {active.release}",
            expected=f"{options.width}, as asked for",
            fix="Train encoder and head together, or leave the width alone.",
        )
    folder = repository.root / ENCODER / str(manifest.encoder)
    features = TextFeatures.from_file(folder / TOKENIZER_FILE, max_tokens=manifest.max_tokens)
    return _ReadyEncoder(
        folder / MODEL_FILE,
        features,
        kept_encoder(manifest),
        manifest.width,
        manifest.max_tokens,
        manifest.base,
        costs={name: value for name, value in manifest.metrics.items() if name.startswith("encoder_")},
    )


def _golden(data: Dataset, inputs: Compact, table: NDArray[np.float16], head: bytes) -> Golden:
    """Choose requests that any server loading the release must answer as it is answered here."""
    texts = data.texts.texts[:_GOLDEN]
    rows = np.argsort(np.abs(inputs.length - _GOLDEN_EVENTS), kind="stable")[:_GOLDEN]  # short enough for a manifest
    windows = inputs.with_vectors(table, rows)
    return Golden(
        texts,
        table[1 : len(texts) + 1].tolist(),
        windows.vectors.tolist(),
        windows.platform.tolist(),
        windows.action.tolist(),
        windows.age.tolist(),
        score_inputs(head, windows).tolist(),
    )
