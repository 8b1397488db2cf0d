"""Exported graphs answer as the networks do, in every shape the client sends."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
import torch

from trainer.export.export import IR_VERSION, OPSET, export_encoder, export_head, session
from trainer.release.release import Candidate, EncoderFiles, kept_encoder, place
from xplat_stream.errors import ReleaseError
from xplat_stream.profile import TaxonomyRef
from xplat_stream.serving.features import EVENT_BUCKETS, TOKEN_BUCKETS
from xplat_stream.serving.releases import ENCODER, HEAD, DataSpan, Golden, ModelRepository
from xplat_stream.serving.signing import make_key
from xplat_stream.testing import START

TOKENIZER = (
    b'{"version":"1.0","added_tokens":[],"model":{"type":"WordLevel","vocab":{"[UNK]":0,"a":1},"unk_token":"[UNK]"}}'
)


@pytest.fixture(scope="session")
def encoder_graph(tiny_encoder):
    return export_encoder(tiny_encoder, vocabulary=200)


@pytest.fixture
def head_graph(head):
    return export_head(head)


@pytest.mark.parametrize("batch", [1, 5, 64])
@torch.no_grad()
def test_encoder_equals_torch_in_every_bucket(tiny_encoder, encoder_graph, batch):
    """The encoder's graph gives torch's vectors for any number of texts in any bucket."""
    opened = session(encoder_graph, 1)
    for tokens in TOKEN_BUCKETS:
        ids = torch.randint(0, 200, (batch, tokens))
        mask = torch.ones_like(ids)
        mask[0, tokens // 2 :] = 0
        (found,) = opened.run(["vector"], {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})

        assert found.dtype == np.float32
        assert np.abs(found - tiny_encoder(ids, mask).numpy()).max() < 1e-4


@torch.no_grad()
def test_head_equals_torch_in_every_bucket(head, head_graph):
    """The head's graph gives torch's scores and user vectors, and finite ones for an empty window."""
    opened = session(head_graph, 1)
    random = np.random.default_rng(1)
    for users, events in [(1, EVENT_BUCKETS[0]), (64, 16), *((3, bucket) for bucket in EVENT_BUCKETS)]:
        feed = {
            "vectors": (random.normal(size=(users, events, 64)) / 8).astype(np.float16),
            "platform": random.integers(0, 4, (users, events)).astype(np.int32),
            "action": random.integers(1, 26, (users, events)).astype(np.int32),
            "age": random.uniform(0, 7, (users, events)).astype(np.float32),
        }
        feed["action"][-1] = 0
        scores, user = opened.run(["scores", "user_vector"], feed)
        expected = head(*map(torch.from_numpy, feed.values()))

        assert np.abs(scores - expected[0].numpy()).max() < 1e-4
        assert np.abs(user - expected[1].numpy()).max() < 1e-4


def test_interface_is_the_configurations(encoder_graph, head_graph):
    """Names and types of the graphs are those in model_repo/*/config.pbtxt; NVIDIA's backend casts nothing."""
    encoder, head = session(encoder_graph, 1), session(head_graph, 1)

    assert [(one.name, one.type) for one in encoder.get_inputs()] == [
        ("input_ids", "tensor(int64)"),
        ("attention_mask", "tensor(int64)"),
    ]
    assert [(one.name, one.type) for one in encoder.get_outputs()] == [("vector", "tensor(float)")]
    assert [(one.name, one.type) for one in head.get_inputs()] == [
        ("vectors", "tensor(float16)"),
        ("platform", "tensor(int32)"),
        ("action", "tensor(int32)"),
        ("age", "tensor(float)"),
    ]
    assert [(one.name, one.type) for one in head.get_outputs()] == [
        ("scores", "tensor(float)"),
        ("user_vector", "tensor(float)"),
    ]


def test_graphs_load_in_older_runtimes(encoder_graph, head_graph):
    """Opset and IR version are ones that the onnxruntime of Triton's images knows."""
    for raw in (encoder_graph, head_graph):
        graph = onnx.load_from_string(raw)

        assert graph.ir_version <= IR_VERSION
        assert {entry.domain: entry.version for entry in graph.opset_import} == {"": OPSET}


def test_graph_that_differs_is_refused(head, monkeypatch):
    """An export whose answers are off never becomes a release."""
    monkeypatch.setattr("trainer.export.export.TOLERANCE", 0.0)

    with pytest.raises(ReleaseError, match="answers differently"):
        export_head(head)


@pytest.fixture
def candidate():
    return Candidate(
        EncoderFiles(b"graph", TOKENIZER),
        b"head",
        TaxonomyRef("t", "1", 500),
        ("1", "2"),
        ("shop",),
        64,
        64,
        128,
        "tiny",
        Golden([], [], [], [], [], [], []),
        {"ndcg_at_10": 0.5},
    )


def test_placed_release_is_whole(tmp_path, candidate):
    """A placed release passes the repository's own check of every file, manifest excepted."""
    repository = ModelRepository(tmp_path / "repository")

    manifest = place(repository, 1, candidate)

    assert repository.load(1).manifest == manifest
    assert sorted(manifest.files) == [f"{ENCODER}/1/model.onnx", f"{ENCODER}/1/tokenizer.json", f"{HEAD}/1/model.onnx"]


def test_head_on_a_kept_encoder_shares_its_files(tmp_path, candidate):
    """A head-only release names the encoder it keeps, checksums included, and writes no second copy."""
    repository = ModelRepository(tmp_path / "repository")
    first = place(repository, 1, candidate)

    second = place(repository, 2, candidate._replace(encoder=kept_encoder(first), head=b"another"))

    assert (second.release, second.encoder) == (2, 1)
    assert repository.load(2).manifest == second
    assert [path.parent.name for path in repository.hidden.glob(f"*/{ENCODER}")] == ["1"]


def test_release_that_cannot_be_placed_leaves_nothing(tmp_path, candidate):
    """When the head does not fit in, its encoder goes too."""
    repository = ModelRepository(tmp_path / "repository")
    repository.place(HEAD, 1, {"model.onnx": b"someone else's"})

    with pytest.raises(ReleaseError, match="exists already"):
        place(repository, 1, candidate)

    assert not repository.folder(ENCODER, 1).exists()


def test_a_placed_release_is_out_of_sight_and_signed(tmp_path, candidate):
    """Triton sees no candidate; with a key it is signed, and says what it is made of."""
    key = tmp_path / "key.pem"
    trusted = make_key(key)
    repository = ModelRepository(tmp_path / "repository", trusted=(trusted,))
    span = DataSpan("behavior.*.v1", START, START, 3, 2)
    made = candidate._replace(data=span, calibration={"temperature": 1.5})

    place(repository, 3, made, parent=2, key=str(key))
    manifest = repository.load(3).manifest

    assert (repository.versions(HEAD), repository.versions(ENCODER)) == ([], [])
    assert (manifest.parent, manifest.data, manifest.calibration) == (2, span, {"temperature": 1.5})
    assert re.fullmatch(r"([0-9a-f]{40}(-dirty)?)?", manifest.commit)
