"""The fused baseline and compressed encoders on the real Triton."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest
from tokenizers import Tokenizer

from benchmarks.fused import bench_fused
from tests.trainer.corpus import PLATFORMS, make_log, taxonomy
from tests.trainer.tiny_base import save_base
from trainer.data.study import Task, build_study
from trainer.export.compress import quantized, vectors_of
from trainer.export.export import export_encoder
from trainer.export.fused import FusedMethod, FusedOptions, fused_texts
from trainer.export.fused_release import FusedCandidate, fused_candidate, publish_fused
from trainer.measuring.methods import split
from trainer.networks.models import load_pretrained
from xplat_stream.errors import ReleaseError, TritonUnavailable
from xplat_stream.serving import ModelRepository, TritonScorer
from xplat_stream.serving.features import TextFeatures
from xplat_stream.serving.fused import FUSED, FusedScorer, load_fused
from xplat_stream.serving.probe import PROBES, texts_per_s
from xplat_stream.serving.releases import ENCODER
from xplat_stream.window import WindowSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.integration.conftest import Published
    from xplat_stream.settings import Settings

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def study():
    return build_study("corpus", make_log(60, 20), taxonomy(), WindowSpec(10), Task(min_label_users=3))


@pytest.fixture(scope="module")
def base(study, tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_base(tmp_path_factory.mktemp("base"), [*study.texts.texts, *PLATFORMS])


@pytest.fixture(scope="module")
def candidate(study, base: str) -> FusedCandidate:
    parts = split(study, 0)
    options = FusedOptions(base=base, max_tokens=32, epochs=1, threads=1)
    fitted = FusedMethod(options).fit(study, parts.train, parts.tune)
    return fused_candidate(study, fitted, parts.test, {}, base="tiny")


def test_fused_versions_answer_side_by_side(stack: Settings, study, candidate: FusedCandidate) -> None:
    """A fused model is loaded, answers as trained, and so does the one before it, each by its pinned version.

    One whose record is wrong is taken away again, and the others go on.
    """
    repository = ModelRepository(stack.model.repository)
    altered = candidate._replace(
        golden=msgspec.structs.replace(candidate.golden, scores=[[0.0] * len(candidate.labels)] * 4)
    )

    first, second = publish_fused(stack, candidate), publish_fused(stack, candidate)
    with pytest.raises(ReleaseError, match="golden scores are off"):
        publish_fused(stack, altered)

    assert second.number > first.number
    assert repository.versions(FUSED) == [first.number, second.number]
    cuts = split(study, 0).test
    texts = fused_texts(study, cuts, np.arange(len(cuts)), max_tokens=candidate.max_tokens)
    scores = asyncio.run(_scores(stack, [first.number, second.number], texts))
    assert scores[0].shape == (len(cuts), len(candidate.labels))
    assert np.array_equal(scores[0], scores[1])
    with pytest.raises(TritonUnavailable, match="version 999 of interest_fused"):
        asyncio.run(_scores(stack, [first.number], texts, pinned=999))


async def _scores(settings: Settings, numbers: list[int], texts: list[str], pinned: int = 0):
    repository = ModelRepository(settings.model.repository)
    found = []
    async with TritonScorer(settings.triton) as scorer:
        for number in numbers:
            release = load_fused(repository, number)
            if pinned:
                release.manifest = msgspec.structs.replace(release.manifest, number=pinned)
            reader = FusedScorer(scorer)
            if not pinned:
                await reader.check_golden(release)
            found.append(await reader.score(release, texts))
    return found


def test_both_models_are_measured_on_one_server(
    stack: Settings, candidate: FusedCandidate, publish_release: Callable[..., Published]
) -> None:
    """The benchmark scores the same windows by the fused and by the split model, and says how many a second."""
    publish_release(announce=False)
    publish_fused(stack, candidate)

    found = bench_fused(stack, users=16, events=12, report=lambda _: None)

    assert found.users == 16
    assert found.events_per_window > 1
    assert found.ratio == pytest.approx(found.split_updates_per_s / found.fused_updates_per_s)
    assert found.fused_updates_per_s > 0


def test_compressed_encoders_are_probed_beside_the_serving_ones(stack: Settings, study, base: str) -> None:
    """An int8 graph loads and answers on the server, under a name of its own that is gone afterwards."""
    encoder, tokenizer = load_pretrained(base, width=32, lora_rank=1)
    encoder.merge()
    features = TextFeatures(Tokenizer.from_str(tokenizer.decode()), max_tokens=16)
    texts = study.texts.texts[:32]
    graph = quantized(export_encoder(encoder, vocabulary=50), features, texts)
    repository = ModelRepository(stack.model.repository)
    before = repository.versions(ENCODER)

    speed = asyncio.run(texts_per_s(stack, graph, features, texts))

    assert speed > 0
    assert vectors_of(graph, features, texts).shape == (32, 32)
    assert not (repository.root / PROBES[ENCODER]).exists()
    assert repository.versions(ENCODER) == before
    with pytest.raises(ReleaseError, match="does not load"):
        asyncio.run(texts_per_s(stack, b"not a graph", features, texts))
    assert not (repository.root / PROBES[ENCODER]).exists()
