"""A smaller and faster encoder, and what that costs: int8, fewer attention heads, narrower vectors.

- **int8**: weights and activations of all matrix products and the word table, by onnxruntime's dynamic quantization.
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
from onnx import load_from_string
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import Tensor, nn

from trainer.baselines import one_a_label
from trainer.compact import vector_table
from trainer.export import export_encoder, quiet, run_reader
from trainer.measures import Interval, bootstrap_mean, ndcg
from xplat_stream.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from trainer.compact import Compact
    from trainer.models import Encoder
    from xplat_stream.serving.features import TextFeatures

    Vectors = NDArray[np.float32]  # (texts, width)
    Targets = NDArray[np.float32]  # (windows, labels)

IMPORTANCE_TEXTS: Final = 256
QUALITY_TEXTS: Final = 2_000
"""Texts, the most used ones, whose vectors are compared; all others count as empty on both sides."""

_PROBED_WINDOWS: Final = 4_000
_WINDOWS_AT_ONCE: Final = 512
_STRENGTH: Final = 1.0


def quantized(graph: bytes) -> bytes:
    """Return an encoder's graph in int8.

    The weights take 7 bits a channel: products of 8 bits overflow on processors without VNNI, and an answer should not
    depend on which one a server has.
    """
    with TemporaryDirectory(prefix="xplat-int8-") as folder:
        target = Path(folder) / "model.onnx"
        with quiet():
            quantize_dynamic(
                load_from_string(graph), target, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True
            )
        return target.read_bytes()


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
            output = getattr(behind.dense, "layer", behind.dense)  # `trainer.adapters.Bottleneck` wraps it
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
    return quantized(graph) if int8 else graph


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
