"""Both networks → ONNX, held to what the trained ones answer; and running such a graph on this machine.

Triton's official images carry an onnxruntime a few releases old: opset 18 and IR version 10 load from 23.x on.
"""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import nn

from trainer.export.served_head import ServedHead
from xplat_stream.errors import ReleaseError
from xplat_stream.event import ACTIONS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from trainer.export.fused import Fused
    from trainer.networks.head import Head
    from trainer.networks.models import Encoder
    from xplat_stream.serving.features import HeadInputs, TextFeatures

OPSET: Final = 18
IR_VERSION: Final = 10
TOLERANCE: Final = 1e-3
"""Largest difference between a graph's answer and the network's; both compute in float32, so 1e-5 is usual."""

_ENCODER_SHAPES: Final = ((1, 8), (3, 16), (2, 64))  # (texts, tokens)
_HEAD_SHAPES: Final = ((1, 8), (5, 32), (2, 128))  # (users, events)
_VECTOR_BATCH: Final = 16

Arrays = dict[str, "NDArray[Any]"]


def export_encoder(encoder: Encoder, *, vocabulary: int) -> bytes:
    """Return the graph `input_ids, attention_mask` → `vector`. Raises `ReleaseError` when it answers differently.

    `vocabulary`: token ids below it are tried.
    """
    return _export_reader(encoder, ["vector"], vocabulary)


def export_fused(network: Fused, *, vocabulary: int) -> bytes:
    """Return the graph `input_ids, attention_mask` → `scores`. Raises as `export_encoder`."""
    return _export_reader(network, ["scores"], vocabulary)


def _export_reader(network: nn.Module, outputs: Sequence[str], vocabulary: int) -> bytes:
    random = np.random.default_rng(0)

    def example(texts: int, tokens: int) -> Arrays:
        mask = (np.arange(tokens) < random.integers(2, tokens + 1, (texts, 1))).astype(np.int64)
        return {"input_ids": random.integers(0, vocabulary, (texts, tokens)) * mask, "attention_mask": mask}

    graph = _export(network, example(3, 16), outputs, "tokens")
    _check(network, graph, [example(*shape) for shape in _ENCODER_SHAPES])
    return graph


def export_head(head: Head) -> bytes:
    """Return the graph `vectors, platform, action, age` → `scores, user_vector`. Raises as `export_encoder`."""
    random = np.random.default_rng(0)
    width, platforms = head.shape.width, head.shape.platforms + 1

    def example(users: int, events: int) -> Arrays:
        lengths = random.integers(0, events + 1, (users, 1))
        lengths[0] = events
        present = np.arange(events) < lengths
        vectors = random.normal(size=(users, events, width)) / width**0.5 * present[..., None]
        return {
            "vectors": vectors.astype(np.float16),
            "platform": (random.integers(0, platforms, (users, events)) * present).astype(np.int32),
            "action": (random.integers(1, len(ACTIONS) + 1, (users, events)) * present).astype(np.int32),
            "age": (random.uniform(0, 7, (users, events)) * present).astype(np.float32),
        }

    graph = _export(ServedHead(head), example(3, 16), ["scores", "user_vector"], "events")
    _check(head, graph, [example(*shape) for shape in _HEAD_SHAPES])
    return graph


def _export(network: nn.Module, example: Mapping[str, NDArray[Any]], outputs: Sequence[str], second: str) -> bytes:
    network.eval()
    axes = {0: torch.export.Dim("batch", max=4096), 1: torch.export.Dim(second, max=512)}
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            network,
            tuple(map(torch.from_numpy, example.values())),
            dynamo=True,
            opset_version=OPSET,
            verbose=False,
            input_names=list(example),
            output_names=list(outputs),
            dynamic_shapes=dict.fromkeys(example, axes),
        )
        if program is None:  # only TorchScript modules give none
            message = "torch.onnx.export gave no program"
            raise TypeError(message)
        graph = program.model_proto
    graph.ir_version = min(graph.ir_version, IR_VERSION)
    _keep_sums(graph.graph)
    _open_widths(graph.graph)
    return bytes(graph.SerializeToString())


def _keep_sums(graph: onnx.GraphProto) -> None:
    """Add before a layer norm by `Sum`, which is the same and which onnxruntime leaves alone.

    It joins `Add` and `LayerNormalization` to one operator whose CPU kernel takes more than six times as long as both,
    and that was a tenth of the time of an encoder, a quarter in int8.
    """
    normed = {node.input[0] for node in graph.node if node.op_type == "LayerNormalization"}
    for node in graph.node:
        if node.op_type == "Add" and node.output[0] in normed:
            node.op_type = "Sum"


def _open_widths(graph: onnx.GraphProto) -> None:
    """Let every dimension of a graph's inputs and outputs be one that is only known when it runs.

    The number of labels and the width of vectors belong to a release, `config.pbtxt` to all releases of a model, so it
    says -1, and NVIDIA's onnxruntime backend refuses a graph whose outputs are not exactly as its configuration says
    (`CompareDimsSupported` with `compare_exact`, triton-inference-server/onnxruntime_backend, src/onnxruntime.cc).
    A name alone would not do, because onnxruntime works the number out; so an output is cut off at its end, where the
    end is the batch size and very much: nothing is cut, and nobody can know that before.
    """
    for tensor in (*graph.input, *graph.output):
        for axis, size in enumerate(tensor.type.tensor_type.shape.dim):
            if size.HasField("dim_value"):
                size.dim_param = f"{tensor.name}_{axis}"
    graph.initializer.extend(
        onnx.numpy_helper.from_array(np.array([value]), f"open_{name}")
        for name, value in (("first", 0), ("last_axis", -1), ("far", 2**40))
    )
    graph.node.append(onnx.helper.make_node("Shape", [graph.input[0].name], ["open_batch"], start=0, end=1))
    graph.node.append(onnx.helper.make_node("Add", ["open_batch", "open_far"], ["open_end"]))
    for output in graph.output:
        (maker,) = [node for node in graph.node if output.name in node.output]
        whole = f"{output.name}_whole"
        maker.output[list(maker.output).index(output.name)] = whole
        ends = [whole, "open_first", "open_end", "open_last_axis"]
        graph.node.append(onnx.helper.make_node("Slice", ends, [output.name]))


@contextmanager
def quiet() -> Iterator[None]:
    """Keep an exporter's remarks on its own workings from the user; a graph that differs is caught by a check."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def session(graph: bytes | Path, threads: int = 0) -> ort.InferenceSession:
    """Open a graph on the CPU; 0 threads: all cores."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    source = graph if isinstance(graph, bytes) else str(graph)
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def _check(network: nn.Module, graph: bytes, examples: Sequence[Arrays]) -> None:
    opened = session(graph, 1)
    names = [output.name for output in opened.get_outputs()]
    for example in examples:
        with torch.no_grad():
            answer = network(*map(torch.from_numpy, example.values()))
        expected = answer if isinstance(answer, tuple) else (answer,)
        for name, found, wanted in zip(names, opened.run(names, example), expected, strict=True):
            worst = float(np.abs(found - wanted.numpy()).max())
            if not worst < TOLERANCE:  # NaN too
                raise ReleaseError(
                    f"the exported graph answers differently: {name} is off by {worst:.2g}",
                    where=type(network).__name__,
                    expected=f"less than {TOLERANCE}",
                    fix="This encoder or this torch cannot be exported: choose another `base`, or a newer torch.",
                )


def encode_texts(
    graph: bytes | Path, features: TextFeatures, texts: Sequence[str], *, width: int, threads: int = 0
) -> Iterator[tuple[int, NDArray[np.float16]]]:
    """Run an encoder's graph over the texts. Yields how many are done, and all vectors (texts, width) so far."""
    opened = session(graph, threads)
    vectors = np.zeros((len(texts), width), np.float16)
    done = 0
    for batch in features.batches(texts, size=_VECTOR_BATCH):
        feed = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        vectors[batch.where] = opened.run(["vector"], feed)[0]
        done += len(batch.where)
        yield done, vectors


def run_reader(
    graph: bytes | Path, features: TextFeatures, texts: Sequence[str], output: str, *, threads: int = 1
) -> NDArray[np.float32]:
    """Run a graph that reads texts. Returns (texts, numbers of the output)."""
    opened = session(graph, threads)
    found: dict[int, NDArray[np.float32]] = {}
    for batch in features.batches(texts, size=_VECTOR_BATCH):
        feed = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        found.update(zip(batch.where, opened.run([output], feed)[0], strict=True))
    return np.stack([found[position] for position in range(len(texts))])


def score_inputs(graph: bytes, inputs: HeadInputs) -> NDArray[np.float32]:
    """Run a head's graph. Returns scores (users, labels)."""
    found: NDArray[np.float32] = session(graph, 1).run(["scores"], inputs._asdict())[0]
    return found
