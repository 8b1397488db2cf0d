"""Training of the head on cached vectors: BCE, AdamW, warm-up and cosine, early stopping on the split in time.

Windows lose events and whole platforms at random while training, so that no score hangs on one event and a person
known on one platform only is scored as well as can be. Beside the labels the user vector learns to lie near the texts
the user touches next, in-batch, which keeps it in the space of the item vectors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.fit import prior_logits
from trainer.models import Head, HeadShape
from trainer.schedule import Patience, schedule, seeded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from trainer.compact import Compact
    from trainer.examples import Examples
    from trainer.options import TrainOptions
    from trainer.progress import Report
    from trainer.texts import TextTable
    from xplat_stream.serving.features import HeadInputs

_USER_WEIGHT: Final = 0.1
"""Of the user-vector loss: enough to place the vector, too little to cost the labels anything."""

_CONTRAST: Final = 0.1
"""Temperature of the contrast between the next text and the other users' next texts."""

_TEMPERATURES: Final = np.geomspace(0.25, 4.0, 49)
_PROBE_STEPS: Final = 150
_STEPS_AN_EPOCH: Final = 32
_SMALL_BATCH: Final = 16
"""A small log is read in smaller steps, down to this: a head needs some hundred steps, however few the examples."""

_COUNTING_LR: Final = 10.0
"""Times the learning rate, for the counting branch: few weights, each of which has to move far."""

_THREADS: Final = 1
"""The head's operators are too small to split: measured 5 s on one core and 8 s on two; 25 s on two busy ones."""

_EVALUATION_BATCH: Final = 512


def fit_head(  # noqa: PLR0913 - what it is fitted on, and how
    train: tuple[Examples, Compact],
    tune: tuple[Examples, Compact],
    *,
    table: NDArray[np.float16],
    texts: TextTable,
    platforms: int,
    options: TrainOptions,
    report: Report,
) -> Head:
    """Train a head and calibrate it. `table`: the vectors, `trainer.compact.vector_table`; `platforms`: known ones."""
    examples, inputs = train
    with seeded(options.seed, _THREADS) as random:
        labels = examples.targets.shape[1]
        prior = prior_logits(np.average(examples.targets, axis=0, weights=examples.weights))
        head = Head(HeadShape(labels, platforms, options.width, dropout=options.dropout), prior)
        _fit_evidence(head, table, texts)
        epochs = max(1, min(options.head_epochs, round(options.head_windows_shown / len(examples))))
        size = max(_SMALL_BATCH, min(options.head_batch, len(examples) // _STEPS_AN_EPOCH))
        steps = epochs * -(-len(examples) // size)
        optimizer = torch.optim.AdamW(_groups(head, options.head_lr), weight_decay=options.weight_decay)
        pace = schedule(optimizer, steps)
        patience = Patience(head, options.head_patience)
        done = 0
        metrics: dict[str, float] = {}
        for _ in range(epochs):
            head.train()
            for rows in _batches(inputs, size, random):
                windows = _thinned(inputs.with_vectors(table, rows), options, platforms, random)
                loss = _loss(head, windows, examples, rows, table)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]  # torch ships no annotation
                nn.utils.clip_grad_norm_(head.parameters(), 1.0)
                optimizer.step()
                pace.step()
                done += 1
                metrics["loss"] = loss.item()
                report("head", done, steps, metrics)
            metrics["validation"] = _bce(head, _residuals(head, tune[1], table), tune[0].targets, 1.0)
            if patience.enough(metrics["validation"]):
                break
        patience.restore()
        head.eval()
        residuals = _residuals(head, tune[1], table)
        losses = [_bce(head, residuals, tune[0].targets, float(value)) for value in _TEMPERATURES]
        head.temperature.fill_(float(_TEMPERATURES[int(np.argmin(losses))]))
        report("head", steps, steps, {"validation": min(losses), "temperature": head.temperature.item()})
        return head


@torch.no_grad()
def score_windows(head: Head, inputs: Compact, table: NDArray[np.float16]) -> NDArray[np.float32]:
    """Return calibrated scores (windows, labels)."""
    head.eval()
    parts = [head(*map(torch.from_numpy, inputs.with_vectors(table, rows)))[0].numpy() for rows in _chunks(inputs)]
    return np.concatenate(parts) if parts else np.zeros((0, len(head.prior)), np.float32)


def _loss(
    head: Head, windows: HeadInputs, examples: Examples, rows: NDArray[np.int64], table: NDArray[np.float16]
) -> Tensor:
    logits, user = head.residual(*map(torch.from_numpy, windows))
    targets = torch.from_numpy(examples.targets[rows])  # (windows, labels)
    weights = torch.from_numpy(examples.weights[rows])  # (windows,)
    weights = weights / weights.sum()
    labels = functional.binary_cross_entropy_with_logits(head.prior + logits, targets, reduction="none").mean(1)
    following = examples.next_texts[rows, 0]
    with_text = np.flatnonzero(following)
    if len(with_text) < 2:  # noqa: PLR2004 - a contrast needs another one
        return (labels * weights).sum()
    items = torch.from_numpy(table[following[with_text]].astype(np.float32))  # (windows with a next text, width)
    similar = user[torch.from_numpy(with_text)] @ items.T / _CONTRAST
    same = torch.from_numpy(following[with_text][:, None] == following[with_text][None, :])
    similar = similar.masked_fill(same & ~torch.eye(len(with_text), dtype=torch.bool), -1e4)  # the same text elsewhere
    contrast = functional.cross_entropy(similar, torch.arange(len(with_text)))
    return (labels * weights).sum() + _USER_WEIGHT * contrast / len(head.prior)


def _fit_evidence(head: Head, table: NDArray[np.float16], texts: TextTable) -> None:
    """Start the counting branch with what texts of known label look like: a logistic regression on their vectors."""
    known = np.flatnonzero(texts.own_known)
    vectors = torch.from_numpy(table[known + 1].astype(np.float32)) * head.scale  # (known texts, width)
    targets = torch.from_numpy(texts.own[known])
    head.evidence.bias.data.copy_(prior_logits(texts.own[known].mean(axis=0)))
    optimizer = torch.optim.AdamW(head.evidence.parameters(), lr=0.03, weight_decay=0.1)
    for _ in range(_PROBE_STEPS):
        loss = functional.binary_cross_entropy_with_logits(head.evidence(vectors), targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch ships no annotation
        optimizer.step()


def _groups(head: Head, rate: float) -> list[dict[str, Any]]:
    """Return the weights with their learning rates."""
    counting = [*head.action_gain.parameters(), head.fading, head.smoothing, head.belief]
    chosen = set(map(id, counting))
    others = [parameter for parameter in head.parameters() if id(parameter) not in chosen]
    return [{"params": others, "lr": rate}, {"params": counting, "lr": rate * _COUNTING_LR}]


def _thinned(windows: HeadInputs, options: TrainOptions, platforms: int, random: np.random.Generator) -> HeadInputs:
    """Hide events at random; for some windows hide one platform, or make it one the release does not know."""
    action, platform = windows.action, windows.platform
    action = np.where(random.random(action.shape) < options.event_dropout, 0, action)
    chosen = random.integers(1, platforms + 1, (len(action), 1))
    drawn = random.random((len(action), 1))
    alone = ((platform == chosen) | (action == 0)).all(axis=1, keepdims=True)  # hiding it would leave nothing
    hidden = (platform == chosen) & (drawn < options.platform_dropout) & ~alone
    unknown = (platform == chosen) & (drawn > 1 - options.platform_dropout / 3)
    return windows._replace(
        action=np.where(hidden, 0, action).astype(np.int32), platform=np.where(unknown, 0, platform).astype(np.int32)
    )


def _batches(inputs: Compact, size: int, random: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Yield batches of windows of similar length, in random order and composition."""
    shuffled = random.permutation(len(inputs.length))
    coarse = np.ceil(np.log2(np.maximum(inputs.length[shuffled], 1)) * 2)  # half an octave
    ordered = shuffled[np.argsort(coarse, kind="stable")]
    starts = np.arange(0, len(ordered), size)
    for start in random.permutation(starts):
        yield ordered[start : start + size]


def _chunks(inputs: Compact) -> Iterator[NDArray[np.int64]]:
    rows = np.arange(len(inputs.length))
    for start in range(0, len(rows), _EVALUATION_BATCH):
        yield rows[start : start + _EVALUATION_BATCH]


@torch.no_grad()
def _residuals(head: Head, inputs: Compact, table: NDArray[np.float16]) -> Tensor:
    head.eval()
    return torch.cat(
        [head.residual(*map(torch.from_numpy, inputs.with_vectors(table, rows)))[0] for rows in _chunks(inputs)]
    )


@torch.no_grad()
def _bce(head: Head, residuals: Tensor, targets: NDArray[np.float32], temperature: float) -> float:
    logits = head.prior + residuals / temperature
    return functional.binary_cross_entropy_with_logits(logits, torch.from_numpy(targets)).item()
