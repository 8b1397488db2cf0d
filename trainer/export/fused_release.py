"""A fused model from the log to the model server: trained, evaluated, exported, placed, loaded, asked.

It goes the way of a release (`trainer.train`, `trainer.release.release`) without its last step: nothing announces it,
because no worker scores with it. See docs/adr/0006.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
import numpy as np
from tokenizers import Tokenizer

from trainer.data.prepare import CACHE_FOLDER
from trainer.data.sources import TopicSource, cached_log
from trainer.data.study import Task, cut_study
from trainer.export.export import export_fused, run_reader
from trainer.export.fused import FusedFitted, FusedMethod, FusedOptions, fused_texts
from trainer.measuring.baselines import Popularity
from trainer.measuring.measures import Counts, best_threshold, calibration_error, ndcg
from trainer.measuring.methods import split
from trainer.networks.models import DEFAULT_PACKAGE
from trainer.run.progress import Report, silent
from xplat_stream.errors import XplatError
from xplat_stream.profile import TaxonomyRef
from xplat_stream.serving.fused import FUSED, FusedGolden, FusedManifest, FusedScorer, load_fused
from xplat_stream.serving.promote import PATIENCE_S
from xplat_stream.serving.releases import MANIFEST_FILE, MODEL_FILE, TOKENIZER_FILE, ModelRepository
from xplat_stream.serving.triton import TritonScorer
from xplat_stream.window import WindowSpec

if TYPE_CHECKING:
    from trainer.data.study import Cuts, Study
    from xplat_stream.settings import Settings

_GOLDEN: Final = 4
_HELD_OUT_FOLD: Final = 0


class FusedCandidate(NamedTuple):
    """Everything of a fused model but its number."""

    graph: bytes
    tokenizer: bytes
    taxonomy: TaxonomyRef
    labels: tuple[str, ...]
    max_tokens: int
    base: str
    golden: FusedGolden
    metrics: dict[str, float]


def train_fused(settings: Settings, options: FusedOptions, report: Report = silent) -> FusedManifest:
    """Train a fused model on what the broker holds, evaluate it on a fifth of the users, and load it into Triton.

    Raises `DataError` when that is too little, `KafkaUnavailable`, `ReleaseError`, `TritonUnavailable`.
    """
    ModelRepository.of(settings).require_layout(FUSED)
    log = cached_log(TopicSource(settings, report), Path(settings.local.home) / CACHE_FOLDER).log
    report("read", 1, 1, {"events": log.events})
    spec = WindowSpec(settings.window.per_platform, settings.window.horizon)
    study = cut_study(log, spec, Task())
    parts = split(study, _HELD_OUT_FOLD)
    fitted = FusedMethod(options, report).fit(study, parts.train, parts.tune)
    metrics = measured(study, fitted, parts.tune, parts.test)
    report("evaluate", 1, 1, metrics)
    candidate = fused_candidate(study, fitted, parts.test, metrics, base=options.base or DEFAULT_PACKAGE)
    manifest = publish_fused(settings, candidate)
    report("publish", 1, 1, {"number": manifest.number})
    return manifest


def measured(study: Study, fitted: FusedFitted, tune: Cuts, test: Cuts) -> dict[str, float]:
    """Return quality on users that were not trained on, beside popularity."""
    scores = fitted.scores(test)
    popularity = Popularity().fit(study, study.train.of_users(study.fold != _HELD_OUT_FOLD), tune).scores(test)
    chosen = scores >= best_threshold(fitted.scores(tune), tune.targets)
    return {
        "ndcg_at_10": float(ndcg(scores, test.targets).mean()),
        "micro_f1": Counts.of(chosen, test.targets).micro_f1(),
        "ece": calibration_error(scores, test.targets),
        "popularity_ndcg_at_10": float(ndcg(popularity, test.targets).mean()),
        "test_users": float(len(test)),
    }


def fused_candidate(
    study: Study, fitted: FusedFitted, sample: Cuts, metrics: dict[str, float], *, base: str
) -> FusedCandidate:
    """Export a fitted model, with golden requests of `sample` answered by the exported graph. Raises `ReleaseError`."""
    tokenizer = Tokenizer.from_str(fitted.tokenizer.decode())
    graph = export_fused(fitted.network, vocabulary=tokenizer.get_vocab_size())
    rows = np.arange(min(_GOLDEN, len(sample)))
    texts = fused_texts(study, sample, rows, max_tokens=fitted.max_tokens)
    scores = run_reader(graph, fitted.features, texts, "scores")
    taxonomy = study.taxonomy
    return FusedCandidate(
        graph,
        fitted.tokenizer,
        TaxonomyRef(taxonomy.name, taxonomy.version, taxonomy.cattax),
        taxonomy.ids(),
        fitted.max_tokens,
        base,
        FusedGolden(texts, scores.tolist()),
        metrics,
    )


def publish_fused(settings: Settings, candidate: FusedCandidate) -> FusedManifest:
    """Place a fused model in the repository, load it, and ask its golden requests of the version just placed.

    Raises `ReleaseError` and `TritonUnavailable`; nothing is left behind then.
    """
    repository = ModelRepository.of(settings)
    with repository.held("a fused model is being placed", patience_s=PATIENCE_S):
        manifest = place_fused(repository, repository.next_number(), candidate)
    try:
        asyncio.run(_load(settings, repository, manifest.number))
    except BaseException:
        repository.remove(FUSED, manifest.number)
        with suppress(XplatError):  # best effort: the failure that brought us here is the one to tell
            asyncio.run(_reload(settings, repository))
        raise
    return manifest


def place_fused(repository: ModelRepository, number: int, candidate: FusedCandidate) -> FusedManifest:
    """Write a fused model into the repository, manifest and all in one rename. Raises `ReleaseError`."""
    content = {MODEL_FILE: candidate.graph, TOKENIZER_FILE: candidate.tokenizer}
    manifest = FusedManifest(
        number=number,
        created_at=datetime.now(UTC),
        taxonomy=candidate.taxonomy,
        labels=candidate.labels,
        max_tokens=candidate.max_tokens,
        base=candidate.base,
        files={f"{FUSED}/{number}/{name}": sha256(raw).hexdigest() for name, raw in content.items()},
        golden=candidate.golden,
        metrics=candidate.metrics,
    )
    repository.place(FUSED, number, {**content, MANIFEST_FILE: msgspec.json.encode(manifest)})
    return manifest


async def _load(settings: Settings, repository: ModelRepository, number: int) -> None:
    async with TritonScorer(settings.triton) as scorer:
        await scorer.load(FUSED, number)
        await FusedScorer(scorer, batch=settings.triton.encoder_batch).check_golden(load_fused(repository, number))


async def _reload(settings: Settings, repository: ModelRepository) -> None:
    async with TritonScorer(settings.triton) as scorer:
        versions = repository.versions(FUSED)
        if versions:
            await scorer.load(FUSED, versions[-1])
