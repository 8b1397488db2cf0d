"""Train a release from the log, or from a recorded folder; where it passes the gate it becomes the active one.

Read it from top to bottom, it runs in that order. How to call it::

    from trainer.train import TrainOptions, train
    train(load_settings(), TrainOptions())                   # encoder and head: minutes
    train(load_settings(), TrainOptions(head_only=True))     # a head on the active release's encoder: seconds
    train(load_settings(), TrainOptions(checkpoint="kept", resume=True))     # go on after a kill -9
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

from trainer.data.dataset import Dataset, build_examples
from trainer.data.prepare import Prepared, Recorded, prepare
from trainer.evaluation.evaluate import Evaluation, baselines, evaluate
from trainer.export.compress import vectors_of
from trainer.export.export import export_head, score_inputs
from trainer.export.sensitivity import sensitivity_of
from trainer.fitting.checkpoint import Checkpoint, fingerprint
from trainer.fitting.fit_head import Fitting, LabelledWindows, fit_head, score_windows
from trainer.fitting.joint import fit_together, text_states
from trainer.release.encoding import ReadyEncoder, active_encoder, encoder_costs, fine_tuned
from trainer.release.release import Candidate, release
from trainer.run.devices import is_first_process
from trainer.run.options import TrainOptions, checked
from trainer.run.progress import STAGES, Report, silent
from trainer.search import Searched, search
from xplat_stream.errors import DataError
from xplat_stream.kafka.log import Span, behavior_spans
from xplat_stream.profile import TaxonomyRef
from xplat_stream.serving.releases import Golden, ModelRepository
from xplat_stream.serving.triton import TritonScorer
from xplat_stream.taxonomy import load_taxonomy
from xplat_stream.window import WindowSpec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from xplat_stream.event import Event
    from xplat_stream.serving.store import Verdict
    from xplat_stream.settings import Settings

__all__ = ["Candidate", "Evaluation", "Recorded", "TrainOptions", "TrainResult", "train", "train_data", "train_on"]

_GOLDEN = 4
"""Texts, and windows, of the golden requests."""

_GOLDEN_EVENTS = 16


class TrainResult(NamedTuple):
    """What a run gave. `release` is 0 when it was not placed, `previous` when it was not promoted over another."""

    release: int
    previous: int
    metrics: dict[str, float]
    evaluation: Evaluation
    seconds_by_stage: dict[str, float]
    candidate: Candidate
    searched: Searched | None
    """What the search found, where one was asked for."""
    scores: NDArray[np.float32]  # (test windows, labels)
    verdict: Verdict | None = None
    """What the gate said of it."""
    promoted: bool = False
    """Whether it is the active release now."""
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
    options = checked(options)
    checkpoint = Checkpoint.of(options)
    if options.publish:
        asyncio.run(_can_publish(settings))
    within = None if recorded else _within(settings, checkpoint)
    prepared = prepare(settings, options, report, recorded, within=within)
    read_s = round(perf_counter() - started, 2)
    result = train_data(prepared.data, settings, options, report, checkpoint=checkpoint)
    return result._replace(
        seconds_by_stage={"read": read_s, **result.seconds_by_stage},
        excluded=prepared.excluded,
        serve_with=_serve_with(settings, prepared, result.release) if recorded and is_first_process() else {},
    )


def train_on(
    events: Iterable[Event],
    settings: Settings,
    options: TrainOptions,
    report: Report = silent,
    *,
    checkpoint: Checkpoint | None = None,
) -> TrainResult:
    """Train on these events, held in memory. Raises as `train`.

    `checkpoint`: by default the one that the options ask for.
    """
    started = perf_counter()
    spec = WindowSpec(settings.window.per_platform, settings.window.horizon)
    data = build_examples(events, load_taxonomy(settings.model.taxonomy), spec, checked(options))
    examples_s = round(perf_counter() - started, 2)
    result = train_data(data, settings, options, report, checkpoint=checkpoint)
    return result._replace(seconds_by_stage={"examples": examples_s, **result.seconds_by_stage})


def train_data(
    data: Dataset,
    settings: Settings,
    options: TrainOptions,
    report: Report = silent,
    *,
    checkpoint: Checkpoint | None = None,
) -> TrainResult:
    """Train on these examples. Raises as `train`. `checkpoint`: by default the one that the options ask for."""
    options = checked(options)
    checkpoint = checkpoint or Checkpoint.of(options)
    clock = _Clock()
    checkpoint.belongs_to(fingerprint(options, data))
    counted = {"users": len(set(data.train.users)), "texts": len(data.texts.texts)}
    report("examples", len(data.train), len(data.train), counted)

    fitting = Fitting(
        LabelledWindows.of_examples(data.train),
        LabelledWindows.of_examples(data.tune),
        data.texts,
        len(data.platforms),
        options,
        report,
        target=data.target,
        families=data.taxonomy.families(),
    )

    # Search: learning rates and sizes that foretell the tuning users best, within a budget of minutes
    searched = None
    if options.search_minutes:

        def encoder_of(options: TrainOptions, report: Report, checkpoint: Checkpoint) -> ReadyEncoder:
            if options.head_only:
                return active_encoder(settings, options)
            asked = fitting._replace(options=options, report=report)
            return fine_tuned(asked, data.taxonomy, checkpoint=checkpoint).exported(options, data.texts.texts)

        options, searched = search(fitting, encoder_of=encoder_of, checkpoint=checkpoint)
        fitting = fitting._replace(options=options)
        clock.stage("search")

    if options.head_only:
        # Vectors by the encoder in use; a head is all that is new
        encoder = active_encoder(settings, options)
        clock.stage("encoder")
        table = encoder.vector_table(data.texts.texts, options, report)  # (texts + 1, width)
        clock.stage("vectors")
        head = fit_head(fitting, table)
    else:
        # Encoder: fine-tuned on every distinct text, run once over all; its last layer is trained with the head
        fresh = fine_tuned(fitting, data.taxonomy, checkpoint=checkpoint)
        clock.stage("encoder")
        states = text_states(fresh.encoder, fresh.features, data.texts.texts, report)
        clock.stage("vectors")
        head, table = fit_together(fresh.encoder, states, fitting)
        encoder = fresh.exported(options, data.texts.texts)
        if options.int8:
            # What is measured from here on is what will serve
            table = encoder.vector_table(data.texts.texts, options, report)
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
    metrics = evaluation.metrics() | encoder_costs(encoder, data, settings, options)
    report("evaluate", len(scores), len(scores), {"ndcg": metrics["ndcg_at_10"], "micro_f1": metrics["micro_f1"]})
    clock.stage("evaluate")

    # Export, with golden requests answered by the exported graphs, and what moves its scores how far
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
        golden=_golden(data, table, encoder, graph),
        metrics=metrics,
        calibration={"temperature": head.temperature.item(), "linear": head.share.item()},
        data=data.span,
        sensitivity=sensitivity_of(head, graph, data, table),
    )
    report("export", 1, 1, {"head_kb": len(graph) / 1024})
    clock.stage("export")
    if not options.publish or not is_first_process():
        checkpoint.clear()
        return TrainResult(0, 0, metrics, evaluation, clock.seconds, candidate, searched, scores)

    # Release: placed as a candidate, judged beside the active one, promoted where it passes
    released = release(settings, candidate, data, report, force=options.force)
    checkpoint.clear()
    clock.stage("publish" if released.promoted else "check")
    return TrainResult(
        released.number,
        released.previous,
        metrics,
        evaluation,
        clock.seconds,
        candidate,
        searched,
        scores,
        released.verdict,
        released.promoted,
    )


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
    ModelRepository.of(settings).require_layout()
    async with TritonScorer(settings.triton) as scorer:
        await scorer.require_ready()


def _within(settings: Settings, checkpoint: Checkpoint) -> list[Span]:
    """Return the stretch of the log to train on: all there is, or what an interrupted training read.

    Raises `DataError` when the log no longer holds that.
    """
    now = behavior_spans(settings)
    kept = checkpoint.load("log")
    if kept is None:
        checkpoint.save("log", {"spans": [list(span) for span in now]})
        return now
    begins = {(span.topic, span.partition): span.start for span in now}
    within = [Span(*span) for span in kept["spans"]]
    if any(begins.get((span.topic, span.partition), span.end) > span.start for span in within):
        raise DataError(
            "the log has lost records that the interrupted training read",
            where=settings.kafka.bootstrap,
            expected="the topics as they were, or longer",
            fix="Train without `--resume` to begin again.",
        )
    return within


class _Clock:
    """Seconds of each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = perf_counter()

    def stage(self, name: str) -> None:
        """Book the time since the stage before under `name`, one of `trainer.run.progress.STAGES`."""
        if name not in STAGES:
            raise KeyError(name)
        now = perf_counter()
        self.seconds[name] = round(now - self._last, 2)
        self._last = now


def _golden(data: Dataset, table: NDArray[np.float16], encoder: ReadyEncoder, head: bytes) -> Golden:
    """Choose requests that any server loading the release must answer as its graphs answer here."""
    texts = data.texts.texts[:_GOLDEN]
    inputs = data.test.inputs
    rows = np.argsort(np.abs(inputs.length - _GOLDEN_EVENTS), kind="stable")[:_GOLDEN]  # short enough for a manifest
    windows = inputs.with_vectors(table, rows)
    return Golden(
        texts,
        vectors_of(encoder.graph, encoder.features, texts, threads=1).astype(np.float16).tolist(),
        windows.vectors.tolist(),
        windows.platform.tolist(),
        windows.action.tolist(),
        windows.age.tolist(),
        score_inputs(head, windows).tolist(),
    )
