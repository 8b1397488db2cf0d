"""Train a release from the log, or from a recorded folder, and make it the active one.

Read it from top to bottom, it runs in that order. How to call it::

    from trainer.train import TrainOptions, train
    train(load_settings(), TrainOptions())                   # encoder and head: minutes
    train(load_settings(), TrainOptions(head_only=True))     # a head on the active release's encoder: seconds
    train(load_settings(), TrainOptions(), recorded=Recorded(Path("recording"), "tags"))
    train_on(events, settings, TrainOptions(publish=False))  # no Kafka, no Triton: returns the files

Every function below `train_data` serves one of its steps.
"""

from __future__ import annotations

import asyncio
import math
from datetime import timedelta
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np
from tokenizers import Tokenizer

from trainer.compact import Compact, vector_table
from trainer.dataset import Dataset, build_examples
from trainer.evaluate import Evaluation, baselines, evaluate
from trainer.export import encode_texts, export_encoder, export_head, score_inputs
from trainer.fit import fit_encoder
from trainer.fit_head import fit_head, score_windows
from trainer.models import DEFAULT_PACKAGE, default_base
from trainer.options import TrainOptions
from trainer.prepare import Prepared, Recorded, prepare
from trainer.progress import STAGES, Report, silent
from trainer.release import Candidate, EncoderFiles, EncoderKept, kept_encoder, publish
from xplat_stream.errors import ReleaseError
from xplat_stream.kafka.consumer import active_announcement
from xplat_stream.profile import TaxonomyRef
from xplat_stream.serving.features import TextFeatures
from xplat_stream.serving.releases import ENCODER, MODEL_FILE, TOKENIZER_FILE, Golden, ModelRepository
from xplat_stream.serving.triton import TritonScorer
from xplat_stream.taxonomy import load_taxonomy
from xplat_stream.window import WindowSpec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from xplat_stream.event import Event
    from xplat_stream.settings import Settings

__all__ = ["Candidate", "Evaluation", "Recorded", "TrainOptions", "TrainResult", "train", "train_data", "train_on"]

_GOLDEN = 4
"""Texts, and windows, of the golden requests."""

_GOLDEN_EVENTS = 16


class TrainResult(NamedTuple):
    """What a run gave. `release` and `previous` are 0 when it was not published."""

    release: int
    previous: int
    metrics: dict[str, float]
    evaluation: Evaluation
    seconds_by_stage: dict[str, float]
    candidate: Candidate
    scores: NDArray[np.float32]  # (test windows, labels)
    excluded: dict[str, int] = {}  # noqa: RUF012 - never changed
    """What of the source was left out, or should be known → how often."""
    serve_with: dict[str, str] = {}  # noqa: RUF012 - never changed
    """Settings that a worker needs to serve a release of another taxonomy and horizon than its own → their values."""


def train(
    settings: Settings, options: TrainOptions, report: Report = silent, *, recorded: Recorded | None = None
) -> TrainResult:
    """Train on what the broker holds, or on a recorded folder.

    Raises `DataError` when that is too little, `KafkaUnavailable`, `ReleaseError`, `TritonUnavailable`.
    """
    started = perf_counter()
    if options.publish:
        asyncio.run(_can_publish(settings))
    prepared = prepare(settings, options, report, recorded)
    read_s = round(perf_counter() - started, 2)
    result = train_data(prepared.data, settings, options, report)
    return result._replace(
        seconds_by_stage={"read": read_s, **result.seconds_by_stage},
        excluded=prepared.excluded,
        serve_with=_serve_with(settings, prepared, result.release) if recorded else {},
    )


def train_on(
    events: Iterable[Event], settings: Settings, options: TrainOptions, report: Report = silent
) -> TrainResult:
    """Train on these events, held in memory. Raises as `train`."""
    started = perf_counter()
    spec = WindowSpec(settings.window.per_platform, settings.window.horizon)
    data = build_examples(events, load_taxonomy(settings.model.taxonomy), spec, options)
    examples_s = round(perf_counter() - started, 2)
    result = train_data(data, settings, options, report)
    return result._replace(seconds_by_stage={"examples": examples_s, **result.seconds_by_stage})


def train_data(data: Dataset, settings: Settings, options: TrainOptions, report: Report = silent) -> TrainResult:
    """Train on these examples. Raises as `train`."""
    clock = _Clock()
    counted = {"users": len(set(data.train.users)), "texts": len(data.texts.texts)}
    report("examples", len(data.train), len(data.train), counted)

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
    clock.stage("vectors")

    # Head: windows of vectors → labels, early stopping and calibration on one half of the validation users
    head = fit_head(
        (data.train, data.train.inputs),
        (data.tune, data.tune.inputs),
        table=table,
        texts=data.texts,
        platforms=len(data.platforms),
        options=options,
        report=report,
    )
    clock.stage("head")

    # Evaluation: on the other half
    scores = score_windows(head, data.test.inputs, table)  # (windows, labels)
    evaluation = evaluate(
        data.taxonomy,
        (score_windows(head, data.train.inputs, table), data.train.targets),
        (scores, data.test.targets),
        baselines=baselines(data.texts, (data.train.inputs, data.train.targets), data.test.inputs, data.train.weights),
        users=len(set(data.test.users)),
    )
    metrics = evaluation.metrics()
    report("evaluate", len(scores), len(scores), {"ndcg": metrics["ndcg_at_10"], "micro_f1": metrics["micro_f1"]})
    clock.stage("evaluate")

    # Export, with golden requests answered by the exported graphs
    graph = export_head(head)
    candidate = Candidate(
        encoder=encoder.files,
        head=graph,
        taxonomy=TaxonomyRef(data.taxonomy.name, data.taxonomy.version, data.taxonomy.cattax),
        labels=data.labels,
        platforms=data.platforms,
        width=encoder.width,
        max_tokens=encoder.max_tokens,
        max_events=options.max_events,
        base=encoder.base,
        golden=_golden(data, data.test.inputs, table, graph),
        metrics=metrics,
    )
    report("export", 1, 1, {"head_kb": len(graph) / 1024})
    clock.stage("export")
    if not options.publish:
        return TrainResult(0, 0, metrics, evaluation, clock.seconds, candidate, scores)

    # Publication: placed, loaded, verified, announced
    published = publish(settings, candidate)
    report("publish", 1, 1, {"release": published.release})
    clock.stage("publish")
    return TrainResult(published.release, published.previous, metrics, evaluation, clock.seconds, candidate, scores)


def _serve_with(settings: Settings, prepared: Prepared, release: int) -> dict[str, str]:
    """Write the recording's taxonomy down, and return the settings under which a worker reads as was trained."""
    taxonomy = prepared.data.taxonomy
    path = Path(settings.local.home) / "taxonomies" / f"{taxonomy.name}-{release}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(taxonomy)))
    days = math.ceil(prepared.spec.horizon / timedelta(days=1))
    return {"XPLAT_MODEL__TAXONOMY": str(path), "XPLAT_WINDOW__HORIZON_DAYS": str(days)}


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


def _fine_tuned(data: Dataset, options: TrainOptions, report: Report) -> _ReadyEncoder:
    base = options.base or default_base()
    encoder, raw_tokenizer = fit_encoder(data.texts, options, base, report)
    tokenizer = Tokenizer.from_str(raw_tokenizer.decode())
    graph = export_encoder(encoder, vocabulary=tokenizer.get_vocab_size())
    return _ReadyEncoder(
        graph,
        TextFeatures(tokenizer, max_tokens=options.max_tokens),
        EncoderFiles(graph, raw_tokenizer),
        options.width,
        options.max_tokens,
        options.base or DEFAULT_PACKAGE,
    )


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
        folder / MODEL_FILE, features, kept_encoder(manifest), manifest.width, manifest.max_tokens, manifest.base
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
