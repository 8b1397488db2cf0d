"""A smaller and faster encoder, and what that costs: int8, fewer attention heads, narrower vectors.

- **int8**: weights and activations of all matrix products, and the word table.
- **Heads**: those whose removal moves the vectors least, to first order (Michel et al. 2019, "Are sixteen heads really
  better than one?"), are cut out of the weights, so that the matrices get smaller.
- **Width**: vectors are projected onto their principal directions.

Each is measured by size, by speed on the model server (`xplat_stream.serving.probe`), by how near the vectors stay to
the original ones, and by what a plain model on top of them loses on users it was not trained on.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import torch
from onnx import ModelProto, NodeProto, TensorProto, load, load_from_string
from onnx.helper import make_empty_tensor_value_info, make_node
from onnx.numpy_helper import from_array, to_array
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import Tensor, nn

from trainer.data.compact import vector_table
from trainer.export.export import export_encoder, quiet, run_reader, session
from trainer.fitting.linear import one_a_label
from trainer.measuring.measures import Interval, bootstrap_mean, ndcg
from xplat_stream.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from trainer.data.compact import Compact
    from trainer.networks.models import Encoder
    from xplat_stream.serving.features import TextFeatures

    Vectors = NDArray[np.float32]  # (texts, width)
    Targets = NDArray[np.float32]  # (windows, labels)

IMPORTANCE_TEXTS: Final = 256
QUALITY_TEXTS: Final = 2_000
"""Texts, the most used ones, whose vectors are compared; all others count as empty on both sides."""

_CALIBRATION_TEXTS: Final = 256
_SMOOTHING: Final = 0.7
"""Of an activation channel's reach, moved into its weights. Mean cosine to float32 by MiniLM: 0 .9955, .5 .9929, .7
.9981, .8 .9982, 1 .9947."""

_WEIGHT_STEPS: Final = 63
_TINY: Final = 1e-6
_PROBED_WINDOWS: Final = 4_000
_WINDOWS_AT_ONCE: Final = 512
_STRENGTH: Final = 1.0


def quantized(graph: bytes, features: TextFeatures, texts: Sequence[str]) -> bytes:
    """Return an encoder's graph in int8, its scales fixed by what it computes for some of the texts.

    Fixed, because a scale that is found anew in every call (onnxruntime's dynamic quantization) makes the vector of a
    text depend on the texts beside it; here it depends on that text alone.
    Some of an activation's channels reach far beyond the others, and one scale for all leaves those few steps: so part
    of each channel's reach is moved into the weights first (SmoothQuant: Xiao et al. 2023).
    The weights take 7 bits a channel: products of 8 bits overflow on processors without VNNI, and an answer should not
    depend on which one a server has.
    """
    with TemporaryDirectory(prefix="xplat-int8-") as folder:
        target = Path(folder) / "model.onnx"
        with quiet():
            quantize_dynamic(
                load_from_string(graph),
                target,
                op_types_to_quantize=["Gather"],  # the word table
                weight_type=QuantType.QInt8,
                reduce_range=True,
            )
        model = load(target)
    held = {one.name: one for one in model.graph.initializer}
    products = [
        node
        for node in model.graph.node
        if node.op_type == "MatMul" and node.input[1] in held and len(held[node.input[1]].dims) == 2  # noqa: PLR2004
    ]
    weights = {node.output[0]: to_array(held[node.input[1]]) for node in products}
    of_input: dict[str, list[str]] = {}
    for node in products:
        of_input.setdefault(node.input[0], []).append(node.output[0])
    ranges = _ranges(model, list(of_input), features, texts[:_CALIBRATION_TEXTS])
    steps: dict[str, list[NodeProto]] = {}
    made: list[TensorProto] = []

    def hold(name: str, value: NDArray[Any]) -> str:
        made.append(from_array(value, name))
        return name

    for read, outputs in of_input.items():
        low, high = ranges[read]
        reach = np.maximum(np.maximum(-low, high), _TINY)
        strongest = np.maximum(np.abs(np.concatenate([weights[one] for one in outputs], axis=1)).max(axis=1), _TINY)
        smooth = (reach**_SMOOTHING / strongest ** (1 - _SMOOTHING)).astype(np.float32)  # (channels,)
        lowest, highest = min(0.0, float((low / smooth).min())), max(0.0, float((high / smooth).max()))
        scale = np.float32(max(highest - lowest, _TINY) / 255)
        zero = np.uint8(np.clip(np.rint(-lowest / scale), 0, 255))
        small, zero_name = f"{read}_int8", hold(f"{read}_zero", np.asarray(zero))
        inputs = [f"{read}_smooth", hold(f"{read}_scale", np.asarray(scale)), zero_name]
        before = [
            make_node("Mul", [read, hold(f"{read}_reach", 1 / smooth)], [f"{read}_smooth"]),
            make_node("QuantizeLinear", inputs, [small]),
        ]
        for output in outputs:
            weight = weights[output] * smooth[:, None]
            step = (np.maximum(np.abs(weight).max(axis=0), _TINY) / _WEIGHT_STEPS).astype(np.float32)
            ready = [small, hold(f"{output}_weight", np.rint(weight / step).astype(np.int8)), zero_name]
            back = hold(f"{output}_scale", step * scale)
            steps[output] = [
                *before,
                make_node("MatMulInteger", ready, [f"{output}_int32"]),
                make_node("Cast", [f"{output}_int32"], [f"{output}_float"], to=TensorProto.FLOAT),
                make_node("Mul", [f"{output}_float", back], [output]),
            ]
            before = []
    nodes = [one for node in model.graph.node for one in steps.get(node.output[0], [node])]
    used = {name for node in nodes for name in node.input}
    kept = [one for one in model.graph.initializer if one.name in used]
    for field, values in ((model.graph.node, nodes), (model.graph.initializer, [*kept, *made])):
        del field[:]
        field.extend(values)
    return bytes(model.SerializeToString())


def _ranges(
    model: ModelProto, names: Sequence[str], features: TextFeatures, texts: Sequence[str]
) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Return the lowest and the highest number of each channel of some tensors in a graph, over all tokens."""
    watched = ModelProto()
    watched.CopyFrom(model)
    watched.graph.output.extend(make_empty_tensor_value_info(name) for name in names)
    opened = session(watched.SerializeToString(), 1)
    found: dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]] = {}
    for batch in features.batches(texts, size=16):
        feed = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        for name, values in zip(names, opened.run(list(names), feed), strict=True):
            rows = values.reshape(-1, values.shape[-1])
            low, high = rows.min(axis=0), rows.max(axis=0)
            if name in found:
                low, high = np.minimum(low, found[name][0]), np.maximum(high, found[name][1])
            found[name] = low, high
    return found


class _Attention(NamedTuple):
    """The four matrices of one layer's attention, each cut along its heads."""

    inputs: tuple[nn.Linear, ...]
    output: nn.Linear
    head_size: int

    @property
    def heads(self) -> int:
        return int(self.output.in_features // self.head_size)

    def keep(self, heads: NDArray[np.int64]) -> None:
        """Cut all other heads out of the weights."""
        size = self.head_size
        rows = torch.from_numpy((heads[:, None] * size + np.arange(size)).ravel())
        for layer in self.inputs:
            layer.weight = nn.Parameter(layer.weight.detach()[rows].clone(), layer.weight.requires_grad)
            if layer.bias is not None:
                layer.bias = nn.Parameter(layer.bias.detach()[rows].clone(), layer.bias.requires_grad)
            layer.out_features = len(rows)
        kept = self.output.weight.detach()[:, rows].clone()
        self.output.weight = nn.Parameter(kept, self.output.weight.requires_grad)
        self.output.in_features = len(rows)


def _attentions(encoder: Encoder) -> list[_Attention]:
    """Return the attention of each layer, lowest first. Raises `DataError` for an encoder not built as BERT is."""
    found = []
    for module in encoder.backbone.modules():
        part, behind = getattr(module, "self", None), getattr(module, "output", None)
        if part is not None and behind is not None and hasattr(part, "query"):
            output = getattr(behind.dense, "layer", behind.dense)  # `trainer.networks.adapters.Bottleneck` wraps it
            found.append(_Attention((part.query, part.key, part.value), output, int(part.attention_head_size)))
    if not found:
        raise DataError(
            f"the heads of {type(encoder.backbone).__name__} cannot be cut out",
            where="--prune-heads",
            expected="an encoder of the BERT family: BERT, RoBERTa, XLM-R, E5, MiniLM",
            fix="Leave --prune-heads out, or choose another --base.",
        )
    return found


def head_importance(
    encoder: Encoder, features: TextFeatures, texts: Sequence[str], *, seed: int = 0
) -> list[NDArray[np.float64]]:
    """Return for each layer how far the vectors move when a head goes, to first order (heads,).

    Michel et al. take the gradient of a task's loss by a mask over the heads. The vectors serve many tasks, so the
    loss is their product with a random direction here, another one for each text.
    """
    layers = _attentions(encoder)
    masks: dict[int, Tensor] = {}

    def masked(layer: int, heads: int, context: Tensor) -> Tensor:
        masks[layer] = torch.ones(len(context), 1, heads, 1, requires_grad=True)
        by_head = context.reshape(*context.shape[:2], heads, -1)  # (texts, tokens, heads, size)
        return (by_head * masks[layer]).flatten(2)

    hooks = [
        layer.output.register_forward_pre_hook(
            lambda _, inputs, position=position, heads=layer.heads: (masked(position, heads, inputs[0]),)
        )
        for position, layer in enumerate(layers)
    ]
    total = [np.zeros(layer.heads) for layer in layers]
    encoder.eval()
    draw = torch.Generator().manual_seed(seed)
    try:
        for batch in features.batches(texts, size=16):
            vectors = encoder(torch.from_numpy(batch.input_ids), torch.from_numpy(batch.attention_mask))
            along = (vectors * torch.randn(vectors.shape, generator=draw)).sum()
            slopes = torch.autograd.grad(along, [masks[position] for position in range(len(layers))])
            for position, slope in enumerate(slopes):
                total[position] += slope.abs().sum(dim=(0, 1, 3)).numpy() / len(texts)
    finally:
        for hook in hooks:
            hook.remove()
    return total


def prune_heads(encoder: Encoder, features: TextFeatures, texts: Sequence[str], heads: int) -> None:
    """Cut the `heads` least important attention heads out of the encoder, in place; each layer keeps one or more.

    Raises `DataError` when there are not so many.
    """
    layers = _attentions(encoder)
    spare = sum(layer.heads - 1 for layer in layers)
    if heads > spare:
        raise DataError(
            f"{heads} heads cannot be cut out of {spare + len(layers)} in {len(layers)} layers",
            where="--prune-heads",
            expected=f"at most {spare}: every layer keeps one",
            fix="Lower --prune-heads.",
        )
    importance = head_importance(encoder, features, texts[:IMPORTANCE_TEXTS])
    best = [int(values.argmax()) for values in importance]
    ranked = sorted(
        (float(value), layer, head)
        for layer, values in enumerate(importance)
        for head, value in enumerate(values)
        if head != best[layer]
    )
    gone = {(layer, head) for _, layer, head in ranked[:heads]}
    for position, layer in enumerate(layers):
        layer.keep(np.array([head for head in range(layer.heads) if (position, head) not in gone]))


def narrow(encoder: Encoder, vectors: NDArray[np.floating[Any]], width: int) -> Vectors:
    """Let the encoder give vectors only `width` wide, along the principal directions of `vectors`, in place.

    Returns the directions (width, old width): rows are orthogonal, so `narrow @ directions` lies in the old space.
    """
    _, _, directions = np.linalg.svd(vectors.astype(np.float64), full_matrices=False)
    kept = directions[:width].astype(np.float32)
    project = encoder.project
    project.weight = nn.Parameter(torch.from_numpy(kept) @ project.weight.detach(), project.weight.requires_grad)
    project.out_features = len(kept)
    words = encoder.words
    if words.embedding_dim == kept.shape[1]:  # narrower ones are the one zero that stands for no words at all
        words.weight = nn.Parameter(words.weight.detach() @ torch.from_numpy(kept.T), words.weight.requires_grad)
        words.embedding_dim = len(kept)
    return kept


def compressed(
    encoder: Encoder, features: TextFeatures, texts: Sequence[str], *, vocabulary: int, heads: int, int8: bool
) -> bytes:
    """Return the graph of an encoder with `heads` heads fewer, and in int8 where asked for. Changes the encoder."""
    if heads:
        prune_heads(encoder, features, texts, heads)
    graph = export_encoder(encoder, vocabulary=vocabulary)
    return quantized(graph, features, texts) if int8 else graph


class Windows(NamedTuple):
    """Windows with their outcomes, and whose they are."""

    inputs: Compact
    targets: Targets
    users: Sequence[Any]
    """(windows,), equal where the user is."""


def vectors_of(graph: bytes | Path, features: TextFeatures, texts: Sequence[str], *, threads: int = 0) -> Vectors:
    """Return (texts, width) vectors of an encoder's graph."""
    return run_reader(graph, features, texts, "vector", threads=threads)


def cosine(original: Vectors, other: Vectors) -> float:
    """Return the mean cosine of two encoders' vectors of the same texts, in one space."""
    sizes = np.linalg.norm(original, axis=1) * np.linalg.norm(other, axis=1)
    return float(((original * other).sum(axis=1) / np.maximum(sizes, 1e-12)).mean())


def probe_ndcg(vectors: Vectors, train: Windows, test: Windows) -> NDArray[np.float64]:
    """Return NDCG@10 of every window of `test` that has a label, by the plainest model that uses vectors (windows,).

    That is one logistic regression a label on the mean vector of a window. `vectors` are those of the first texts of
    the windows' `TextTable`; all other texts count as empty.
    """
    rows = np.unique(np.linspace(0, len(train.targets) - 1, _PROBED_WINDOWS).round().astype(int))
    scale = vectors.shape[1] ** 0.5  # the regularization is meant for components near 1
    table = vector_table((vectors * scale).astype(np.float16))
    predict = one_a_label(_mean_vectors(train.inputs.take(rows), table), train.targets[rows], _STRENGTH)
    return ndcg(predict(_mean_vectors(test.inputs, table)), test.targets)


def ndcg_lost(original: NDArray[np.float64], other: NDArray[np.float64], test: Windows) -> Interval:
    """Return how much the first of two `probe_ndcg` is above the second: paired, resampled over users."""
    users = np.array([str(one) for one in test.users])[test.targets.any(axis=1)]
    _, user = np.unique(users, return_inverse=True)
    return bootstrap_mean(np.bincount(user, original - other) / np.bincount(user))


def _mean_vectors(inputs: Compact, table: NDArray[np.float16]) -> Vectors:
    """Return the mean vector of each window's texts (windows, width), of those the table knows; zeros where none."""
    found = np.zeros((len(inputs.length), table.shape[1]), np.float32)
    for start in range(0, len(found), _WINDOWS_AT_ONCE):
        text = inputs.text[start : start + _WINDOWS_AT_ONCE]
        text = np.where(text < len(table), text, 0)
        total = table[text].astype(np.float32).sum(axis=1)
        found[start : start + _WINDOWS_AT_ONCE] = total / np.maximum((text > 0).sum(axis=1, keepdims=True), 1)
    return found
