"""Compression makes encoders smaller by what it says, and measures what it took from their vectors."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import onnx
import pytest
import torch
from tokenizers import Tokenizer

from tests.trainer.tiny_base import save_base
from trainer.export.compress import (
    Windows,
    compressed,
    cosine,
    head_importance,
    narrow,
    ndcg_lost,
    probe_ndcg,
    prune_heads,
    quantized,
    vectors_of,
)
from trainer.export.export import IR_VERSION, export_encoder, session
from trainer.networks.models import load_pretrained
from trainer.train import TrainOptions, train_on
from xplat_stream.errors import DataError
from xplat_stream.event import item_text
from xplat_stream.serving.features import TextFeatures
from xplat_stream.settings import Settings


@pytest.fixture(scope="module")
def texts(dataset):
    return dataset.texts.texts[:60]


@pytest.fixture(scope="module")
def pretrained(dataset, tmp_path_factory):
    base = save_base(tmp_path_factory.mktemp("base"), dataset.texts.texts)
    found = load_pretrained(base, width=64, lora_rank=1)
    found.encoder.merge()
    return found


@pytest.fixture(scope="module")
def features(pretrained):
    return TextFeatures(Tokenizer.from_str(pretrained.tokenizer.decode()), max_tokens=16)


@pytest.fixture
def encoder(pretrained):
    """A copy of its own: pruning and narrowing change an encoder."""
    return deepcopy(pretrained.encoder).eval()


@pytest.fixture(scope="module")
def graph(pretrained):
    return export_encoder(pretrained.encoder, vocabulary=100)


@pytest.fixture(scope="module")
def original(graph, features, texts):
    return vectors_of(graph, features, texts, threads=1)


@torch.no_grad()
def _vectors(encoder, features, texts):
    found = np.zeros((len(texts), encoder.project.out_features), np.float32)
    for batch in features.batches(texts, size=16):
        found[batch.where] = encoder(torch.from_numpy(batch.input_ids), torch.from_numpy(batch.attention_mask)).numpy()
    return found


def test_int8_is_smaller_and_says_nearly_the_same(graph, original, features, texts) -> None:
    """The int8 graph has the same interface, needs no operator of a vendor, and its vectors stay near."""
    small = quantized(graph, features, texts)
    loaded = onnx.load_from_string(small)
    before, after = session(graph, 1), session(small, 1)

    assert len(small) < 0.8 * len(graph)
    assert loaded.ir_version <= IR_VERSION
    assert {entry.domain for entry in loaded.opset_import} == {""}
    for opened in (before, after):
        assert [(one.name, one.type) for one in opened.get_outputs()] == [("vector", "tensor(float)")]
        assert not any(isinstance(size, int) for size in opened.get_outputs()[0].shape)
    assert cosine(original, vectors_of(small, features, texts, threads=1)) > 0.99


def test_an_int8_vector_is_its_texts_alone(graph, features, texts) -> None:
    """Read alone, or beside any other texts, a text has the same vector, but for what float32 rounds."""
    small = quantized(graph, features, texts[:30])  # the others were not seen when the scales were fixed
    together = vectors_of(small, features, texts, threads=1)
    alone = np.concatenate([vectors_of(small, features, [text], threads=1) for text in texts])

    assert np.abs(together - alone).max() < 1e-5


def test_a_head_that_does_nothing_matters_least(encoder, features, texts) -> None:
    """Importance finds the head whose output is thrown away, and cutting it changes no vector."""
    attention = encoder.backbone.encoder.layer[1].attention
    attention.output.dense.weight.data[:, 8:16] = 0  # what head 1 of four says, 8 numbers wide
    before = _vectors(encoder, features, texts)

    importance = head_importance(encoder, features, texts)
    prune_heads(encoder, features, texts, 1)

    assert [values.shape for values in importance] == [(4,), (4,)]
    assert importance[1][1] == 0
    assert min(values.min() for values in importance if values is not importance[1]) > 0
    assert attention.self.query.weight.shape == (24, 32)
    assert attention.output.dense.weight.shape == (32, 24)
    assert np.abs(_vectors(encoder, features, texts) - before).max() < 1e-5


def test_importance_is_the_slope_of_removal(encoder, features, texts) -> None:
    """To first order: heads that importance calls small move the vectors less when cut than those it calls large."""
    importance = head_importance(encoder, features, texts)
    before = _vectors(encoder, features, texts)
    moved = {}
    for layer in range(2):
        for head in range(4):
            cut = deepcopy(encoder)
            cut.backbone.encoder.layer[layer].attention.output.dense.weight.data[:, head * 8 : head * 8 + 8] = 0
            moved[layer, head] = float(np.linalg.norm(_vectors(cut, features, texts) - before, axis=1).mean())
    ranks = sorted(moved, key=lambda place: importance[place[0]][place[1]])

    assert sum(moved[place] for place in ranks[:3]) < sum(moved[place] for place in ranks[-3:])


def test_pruned_encoder_is_exported_smaller(encoder, graph, features, texts) -> None:
    """Cut heads are gone from the graph; every layer keeps one, and more cannot be cut."""
    with pytest.raises(DataError, match="at most 6"):
        prune_heads(encoder, features, texts, 7)
    small = compressed(encoder, features, texts, vocabulary=100, heads=6, int8=False)

    assert len(graph) - len(small) > 0.9 * 6 * 8 * 32 * 4 * 4  # heads, rows, columns, matrices, bytes; and a few names
    assert np.abs(vectors_of(small, features, texts, threads=1) - _vectors(encoder, features, texts)).max() < 1e-4


def test_an_encoder_of_another_build_is_refused(encoder, features, texts) -> None:
    """Where no attention is found nothing is cut, and the user is told which encoders can be."""
    encoder.backbone = torch.nn.Linear(2, 2)

    with pytest.raises(DataError, match="BERT family"):
        prune_heads(encoder, features, texts, 1)


def test_narrow_vectors_keep_the_most(encoder, features, texts) -> None:
    """Narrower vectors are of unit length and lie along the principal directions; as many as there are lose nothing."""
    before = _vectors(encoder, features, texts)
    slim, slimmer = deepcopy(encoder), deepcopy(encoder)

    kept, fewer = narrow(slim, before, 32), narrow(slimmer, before, 4)
    wide, thin = _vectors(slim, features, texts), _vectors(slimmer, features, texts)

    assert (wide.shape[1], thin.shape[1]) == (32, 4)
    assert np.abs(np.linalg.norm(thin, axis=1) - 1).max() < 1e-5
    assert np.abs(fewer @ fewer.T - np.eye(4)).max() < 1e-5
    assert cosine(before, wide @ kept) > 0.9999  # 32 is what the encoder had before its projection to 64
    assert 0.5 < cosine(before, thin @ fewer) < cosine(before, wide @ kept)


def test_loss_is_nothing_for_the_same_vectors_and_something_for_noise(dataset, inputs, table) -> None:
    """The paired loss is exactly zero against itself, and clearly above it against vectors without meaning."""
    vectors = table[1:].astype(np.float32)
    noise = np.random.default_rng(0).normal(size=vectors.shape).astype(np.float32) / 8
    train = Windows(inputs["train"], dataset.train.targets, dataset.train.users)
    test = Windows(inputs["test"], dataset.test.targets, dataset.test.users)

    quality = probe_ndcg(vectors, train, test)

    assert ndcg_lost(quality, quality, test) == (0, 0, 0)
    assert ndcg_lost(quality, probe_ndcg(noise, train, test), test).low > 0


def test_a_release_says_what_its_encoder_costs(log, tmp_path) -> None:
    """A run in int8, with a head fewer and half the width, serves that encoder and says what it lost."""
    base = save_base(tmp_path, sorted({item_text(event.object) for event in log}))
    options = TrainOptions(
        publish=False,
        base=base,
        int8=True,
        prune_heads=1,
        width=32,
        max_tokens=16,
        encoder_epochs=1,
        head_epochs=1,
        threads=1,
    )

    result = train_on(log, Settings(), options)

    assert result.candidate.width == 32
    assert np.array(result.candidate.golden.vectors).shape[1] == 32
    assert result.metrics["encoder_bytes"] == len(result.candidate.encoder.graph)
    assert result.metrics["encoder_bytes"] < result.metrics["encoder_bytes_before"]
    assert 0.9 < result.metrics["encoder_cosine"] < 1
    lost = [result.metrics[f"encoder_ndcg_lost{end}"] for end in ("_low", "", "_high")]
    assert lost == sorted(lost)
    assert result.candidate.metrics == result.metrics
