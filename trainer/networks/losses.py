"""What a text's vector is trained for, and how wrong scores are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trainer.run.options import TextLoss

_PRIOR_FLOOR = 1e-3
_LEAST = 1e-6
"""Probability below which an outcome is not told from an impossible one."""


def label_loss(logits: Tensor, targets: Tensor, kind: TextLoss) -> Tensor:
    """Return the loss of each row (rows,), summed over labels. `targets`: (rows, labels), in [0, 1].

    `bce`: every label is a question of its own. `softmax`: cross-entropy between the labels' shares of the target and
    the softmax of the logits, which makes labels compete; a row without a label costs nothing.
    """
    if kind == "bce":
        return functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(1)
    shares = targets / targets.sum(1, keepdim=True).clamp(min=1e-6)
    return -(shares * functional.log_softmax(logits, dim=1)).sum(1)


def parent_loss(logits: Tensor, targets: Tensor, families: Tensor) -> Tensor:
    """Return the mean BCE of each row's parents (rows,), which are touched where a label of their family is.

    `families`: (parents, labels), 1 = the label is the parent or below it. Labels are taken for independent, so that
    none of a family is touched with probability ∏ (1 - p).
    """
    none = functional.softplus(logits) @ families.T  # (rows, parents), -log of that
    touched = (targets.unsqueeze(1) * families).amax(-1)
    some = torch.log(-torch.expm1(-none.clamp(min=_LEAST)))
    return ((1 - touched) * none - touched * some).mean(1)


def info_nce(vectors: Tensor, others: Tensor, identity: Tensor, temperature: float) -> Tensor:
    """Return the mean loss of telling each vector's partner from the partners of the rest (van den Oord et al. 2018).

    `vectors`, `others`: (pairs, width), of unit length, partners in the same row. `identity`: (pairs,), rows with equal
    numbers have the same partner and are no contrast to each other. 0 for fewer than two pairs.
    """
    if len(vectors) < 2:  # noqa: PLR2004 - a contrast needs another one
        return vectors.sum() * 0
    similar = vectors @ others.T / temperature  # (pairs, pairs)
    same = (identity[:, None] == identity[None, :]) & ~torch.eye(
        len(identity), dtype=torch.bool, device=identity.device
    )
    return functional.cross_entropy(similar.masked_fill(same, -1e4), torch.arange(len(vectors), device=vectors.device))


def prior_logits(frequencies: NDArray[np.floating[Any]]) -> Tensor:
    """Return the logits of label frequencies, kept off zero and one: a label never seen is rare, not impossible."""
    clipped = np.clip(frequencies.astype(np.float32), _PRIOR_FLOOR, 1 - _PRIOR_FLOOR)
    return torch.logit(torch.from_numpy(clipped))


def log_losses(scores: NDArray[np.float32], targets: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the mean cross-entropy over the labels of each row (rows,), natural logarithm."""
    sure = np.clip(scores.astype(np.float64), _LEAST, 1 - _LEAST)
    return np.asarray(-(targets * np.log(sure) + (1 - targets) * np.log1p(-sure)).mean(axis=1), np.float64)
