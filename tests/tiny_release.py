"""Releases that need no training: graphs by `onnx.helper`, small and exact, placed, loaded and announced like any."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from xplat_stream.kafka import EventProducer
from xplat_stream.kafka.codec import ACTIVE_KEY, Announcement, encode_announcement
from xplat_stream.kafka.topics import MODELS
from xplat_stream.profile import TaxonomyRef
from xplat_stream.serving import Manifest, ModelRepository, TritonScorer
from xplat_stream.serving.features import HeadInputs, TextFeatures
from xplat_stream.serving.releases import ENCODER, HEAD, MANIFEST_FILE, MODEL_FILE, TOKENIZER_FILE, Golden
from xplat_stream.taxonomy import load_taxonomy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trainer.release.release import Candidate
    from xplat_stream.settings import Settings

WIDTH = 64
IR_VERSION, OPSET = 8, 17
WORDS = ("running", "shoes", "coffee", "film", "guitar", "garden", "game", "the", "of", "and")
"""All the tokenizer knows."""


class Published(NamedTuple):
    """A release as placed in the repository."""

    number: int
    encoder: int


def make_published(
    settings: Settings,
    *,
    encoder: int = 0,
    tilt: float = 1.0,
    golden_off: float = 0.0,
    nan_beyond: int = 0,
    load: bool = True,
    announce: bool = True,
) -> Published:
    """Publish a release.

    `encoder`: share one placed before; `tilt` and `golden_off`: another head, a wrong record; `nan_beyond`: see
    `head_graph`.
    """
    repository = ModelRepository(settings.model.repository)
    number = repository.next_number()
    files: dict[str, str] = {}
    tokenizer = _tokenizer()
    if not encoder:
        encoder = number
        content = {MODEL_FILE: encoder_graph(seed=encoder), TOKENIZER_FILE: tokenizer.to_str().encode()}
        files |= repository.place(ENCODER, encoder, content)
    else:
        files |= {
            name: digest
            for name, digest in repository.manifest(_first_with(repository, encoder)).files.items()
            if name.startswith(ENCODER)
        }
    taxonomy = load_taxonomy(settings.model.taxonomy)
    head = head_graph(seed=number, labels=len(taxonomy.ids()), tilt=tilt, nan_beyond=nan_beyond)
    manifest = Manifest(
        release=number,
        encoder=encoder,
        created_at=datetime.now(UTC),
        taxonomy=TaxonomyRef(taxonomy.name, taxonomy.version, taxonomy.cattax),
        labels=taxonomy.ids(),
        platforms=("shop", "video", "social"),
        width=WIDTH,
        max_tokens=16,
        max_events=64,
        base="test",
        files=files,
        golden=_golden(
            (repository.root / ENCODER / str(encoder) / MODEL_FILE).read_bytes(), head, tokenizer, golden_off
        ),
    )
    # The manifest is part of the folder it lists, so the head's checksum is worked out before it is placed.
    digest = repository_digest(head)
    manifest = msgspec.structs.replace(manifest, files={**files, f"{HEAD}/{number}/{MODEL_FILE}": digest})
    repository.place(HEAD, number, {MODEL_FILE: head, MANIFEST_FILE: msgspec.json.encode(manifest)})
    asyncio.run(load_release(settings, number, encoder, load=load, check=load and not golden_off))
    if announce:
        announce_release(settings, number, encoder)
    return Published(number, encoder)


def successor(settings: Settings, manifest: Manifest, *, tilt: float = 1.0, new_encoder: bool = False) -> Candidate:
    """Return a candidate like a release, whose scores are as far from one half as `tilt` says."""
    from trainer.release.release import (  # brings torch, which most tests do without
        Candidate,
        EncoderFiles,
        kept_encoder,
    )

    repository = ModelRepository(settings.model.repository)
    folder = repository.folder(ENCODER, manifest.encoder)
    head = head_graph(seed=manifest.release, labels=len(manifest.labels), tilt=tilt)
    files = EncoderFiles((folder / MODEL_FILE).read_bytes(), (folder / TOKENIZER_FILE).read_bytes())
    candidate = Candidate(
        encoder=files if new_encoder else kept_encoder(manifest),
        head=head,
        taxonomy=manifest.taxonomy,
        labels=manifest.labels,
        platforms=manifest.platforms,
        width=manifest.width,
        max_tokens=manifest.max_tokens,
        max_events=manifest.max_events,
        base=manifest.base,
        golden=manifest.golden,
        metrics={},
    )
    return _with_own_answers(candidate)


def _with_own_answers(candidate: Candidate) -> Candidate:
    """Return a candidate whose golden requests are answered by its own head."""
    golden = candidate.golden
    scores = _run(candidate.head, golden.head_inputs()._asdict(), "scores")
    return candidate._replace(golden=msgspec.structs.replace(golden, scores=scores.tolist()))


async def load_release(settings: Settings, number: int, encoder: int, *, load: bool = True, check: bool = True) -> None:
    """Have Triton load both models of a release, and ask its golden requests."""
    async with TritonScorer(settings.triton) as scorer:
        if load:
            await scorer.load(ENCODER, encoder)
            await scorer.load(HEAD, number)
        if check:
            await scorer.check_golden(ModelRepository(settings.model.repository).load(number))


def announce_release(
    settings: Settings, number: int, encoder: int, *, previous: int = 0, shadow: int = 0
) -> Announcement:
    """Say on the models topic that a release is active, and which one is compared with it. Returns what was said."""
    with EventProducer(settings) as producer:
        said = Announcement(number, previous, encoder, datetime.now(UTC), shadow)
        producer.send_raw(MODELS, ACTIVE_KEY, encode_announcement(said))
    return said


def _first_with(repository: ModelRepository, encoder: int) -> int:
    return next(number for number in repository.releases() if repository.manifest(number).encoder == encoder)


def repository_digest(content: bytes) -> str:
    """Return the checksum as a manifest has it."""
    return sha256(content).hexdigest()


def _tokenizer() -> Tokenizer:
    words = {word: index for index, word in enumerate(("[UNK]", *WORDS))}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    return tokenizer


def _model(graph: onnx.GraphProto) -> bytes:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _constant(name: str, values: np.ndarray[Any, Any], kind: int) -> onnx.TensorProto:
    return helper.make_tensor(name, kind, values.shape, values.flatten().tolist())


def encoder_graph(*, seed: int) -> bytes:
    """Return an encoder: the mean of one random vector a token."""
    table = np.random.default_rng(seed).normal(size=(32, WIDTH)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["token_vectors"]),
        helper.make_node("Cast", ["attention_mask"], ["mask_2d"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask_2d", "last"], ["mask"]),
        helper.make_node("Mul", ["token_vectors", "mask"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "one"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["mask", "one"], ["tokens"], keepdims=0),
        helper.make_node("Max", ["tokens", "least"], ["divisor"]),
        helper.make_node("Div", ["sum", "divisor"], ["vector"]),
    ]
    inputs = [helper.make_tensor_value_info(n, TensorProto.INT64, ["b", "n"]) for n in ("input_ids", "attention_mask")]
    outputs = [helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["b", WIDTH])]
    constants = [
        _constant("table", table, TensorProto.FLOAT),
        _constant("last", np.array([-1]), TensorProto.INT64),
        _constant("one", np.array([1]), TensorProto.INT64),
        _constant("least", np.array([1.0]), TensorProto.FLOAT),
    ]
    return _model(helper.make_graph(nodes, "encoder", inputs, outputs, constants))


def head_graph(*, seed: int, labels: int, tilt: float = 1.0, nan_beyond: int = 0) -> bytes:
    """Return a head: the mean of the events that are no padding, through a random matrix and a sigmoid.

    With `nan_beyond` it answers NaN for windows of more events than that: golden requests, which are short, pass.
    """
    matrix = tilt * np.random.default_rng(1000 + seed).normal(size=(WIDTH, labels)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["vectors"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Greater", ["action", "zero"], ["real"]),
        helper.make_node("Cast", ["real"], ["mask_2d"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask_2d", "last"], ["mask"]),
        helper.make_node("Mul", ["wide", "mask"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "one"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["mask", "one"], ["events"], keepdims=0),
        helper.make_node("Max", ["events", "least"], ["divisor"]),
        helper.make_node("Div", ["sum", "divisor"], ["pooled"]),
        # Platform and age are inputs of every head; here they count for nothing, and the graph says so.
        helper.make_node("Cast", ["platform"], ["platform_f"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["platform_f", "age"], ["aside"]),
        helper.make_node("ReduceSum", ["aside", "one"], ["aside_sum"], keepdims=1),
        helper.make_node("Mul", ["aside_sum", "nothing"], ["aside_nothing"]),
        helper.make_node("Add", ["pooled", "aside_nothing"], ["user_vector"]),
        helper.make_node("MatMul", ["user_vector", "matrix"], ["logits"]),
        helper.make_node("Sub", ["most", "events"], ["room"]),
        helper.make_node("Min", ["room", "nothing"], ["overrun"]),
        helper.make_node("Sqrt", ["overrun"], ["nan_or_nothing"]),
        helper.make_node("Add", ["logits", "nan_or_nothing"], ["answer"]),
        helper.make_node("Sigmoid", ["answer"], ["scores"]),
    ]
    kinds = {"platform": TensorProto.INT32, "action": TensorProto.INT32, "age": TensorProto.FLOAT}
    inputs = [helper.make_tensor_value_info("vectors", TensorProto.FLOAT16, ["b", "n", WIDTH])]
    inputs += [helper.make_tensor_value_info(name, kind, ["b", "n"]) for name, kind in kinds.items()]
    outputs = [
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["b", labels]),
        helper.make_tensor_value_info("user_vector", TensorProto.FLOAT, ["b", WIDTH]),
    ]
    constants = [
        _constant("matrix", matrix, TensorProto.FLOAT),
        _constant("last", np.array([-1]), TensorProto.INT64),
        _constant("one", np.array([1]), TensorProto.INT64),
        _constant("least", np.array([1.0]), TensorProto.FLOAT),
        _constant("zero", np.array([0]), TensorProto.INT32),
        _constant("nothing", np.array([0.0]), TensorProto.FLOAT),
        _constant("most", np.array([nan_beyond or np.finfo(np.float32).max]), TensorProto.FLOAT),
    ]
    return _model(helper.make_graph(nodes, "head", inputs, outputs, constants))


def _golden(encoder: bytes, head: bytes, tokenizer: Tokenizer, off: float) -> Golden:
    """Work out with onnxruntime what the server has to answer. `off` is added to the recorded scores."""
    texts = ["running shoes", "the film", "coffee and garden game"]
    vectors = np.zeros((len(texts), WIDTH), np.float32)
    for batch in TextFeatures(Tokenizer.from_str(tokenizer.to_str()), max_tokens=16).batches(texts, size=8):
        answer = _run(encoder, {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}, "vector")
        vectors[batch.where] = answer
    window = HeadInputs(
        np.repeat(vectors[None, :, :], 2, axis=0).astype(np.float16),
        np.ones((2, 3), np.int32),
        np.array([[1, 2, 3], [4, 5, 0]], np.int32),
        np.zeros((2, 3), np.float32),
    )
    scores = _run(head, window._asdict(), "scores") + off
    return Golden(
        texts=texts,
        vectors=vectors.tolist(),
        head_vectors=window.vectors.tolist(),
        head_platform=window.platform.tolist(),
        head_action=window.action.tolist(),
        head_age=window.age.tolist(),
        scores=scores.tolist(),
    )


def _run(graph: bytes, inputs: Mapping[str, np.ndarray[Any, Any]], output: str) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    (answer,) = session.run([output], dict(inputs))
    return np.asarray(answer)
