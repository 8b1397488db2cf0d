"""Fine-tuning of the encoder: BCE with logits, LoRA, AdamW, warm-up and cosine, early stopping.

Each distinct text is one example, shown at most once a pass however often it was clicked: that is what makes minutes of
hours. Its targets are two: the labels its item names itself, where it does, and what the people who touched it did
next, before the split. The second is all there is for a platform without categories, and is what carries one
platform's labels over to another's texts.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from trainer.models import Encoder, Pretrained, load_pretrained
from xplat_stream.serving.features import TextFeatures

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from trainer.options import TrainOptions
    from trainer.progress import Report
    from trainer.texts import TextTable
    from xplat_stream.serving.features import TokenBatch

_HELD_OUT: Final = 10
"""Every tenth text is not trained on and says when to stop."""

_WARM_UP: Final = 0.1
_NEW_LAYERS_LR: Final = 4.0
_PRIOR_FLOOR: Final = 1e-3


@contextmanager
def seeded(seed: int, threads: int) -> Iterator[np.random.Generator]:
    """Fix torch's randomness and threads inside the block, and give a numpy generator; put both back afterwards."""
    before = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if threads:
            torch.set_num_threads(threads)
        try:
            yield np.random.default_rng(seed)
        finally:
            torch.set_num_threads(before)


def prior_logits(frequencies: NDArray[np.floating[Any]]) -> Tensor:
    """Return the logits of label frequencies, kept off zero and one: a label never seen is rare, not impossible."""
    clipped = np.clip(frequencies.astype(np.float32), _PRIOR_FLOOR, 1 - _PRIOR_FLOOR)
    return torch.logit(torch.from_numpy(clipped))


def schedule(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Rise linearly over the first tenth of the steps, then fall as a cosine to zero."""
    rise = max(1, round(steps * _WARM_UP))

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rise) / max(1, steps - rise))))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


class Patience:
    """Keeps the weights of the best epoch and says when enough epochs came without a better one."""

    def __init__(self, module: nn.Module, epochs: int) -> None:
        self._names = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
        self._module = module
        self._epochs = epochs
        self._best: Mapping[str, Tensor] = {}
        self._since = 0
        self.best_loss = math.inf

    def enough(self, loss: float) -> bool:
        """Take note of an epoch's loss; tell whether to stop."""
        if loss < self.best_loss:
            self.best_loss = loss
            self._since = 0
            state = self._module.state_dict()
            self._best = {name: state[name].detach().clone() for name in self._names}
        else:
            self._since += 1
        return self._since >= self._epochs

    def restore(self) -> None:
        """Put the best epoch's weights back."""
        self._module.load_state_dict(dict(self._best), strict=False)


class _TextObjective(nn.Module):
    """The encoder under its two label layers; the layers are thrown away after the training."""

    def __init__(self, encoder: Encoder, texts: TextTable, rows: NDArray[np.int64], width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.own = nn.Linear(width, texts.own.shape[1])
        self.next = nn.Linear(width, texts.own.shape[1])
        self._scale = width**0.5  # unit vectors have components near width^-1/2; layers start best near 1
        known, seen = texts.own_known[rows], texts.next_count[rows] > 0
        for layer, targets in ((self.own, texts.own[rows][known]), (self.next, texts.next_labels[rows][seen])):
            if len(targets):
                layer.bias.data.copy_(prior_logits(targets.mean(axis=0)))
        self._own, self._own_known = torch.from_numpy(texts.own), torch.from_numpy(texts.own_known.astype(np.float32))
        self._next = torch.from_numpy(texts.next_labels)
        trust = np.sqrt(texts.next_count)  # the share of 100 readers is worth ten times one reader's, not a hundred
        self._trust = torch.from_numpy((trust / max(trust.mean(), 1e-6)).clip(max=3.0).astype(np.float32))

    def loss(self, batch: TokenBatch, rows: NDArray[np.int64]) -> Tensor:
        """Return the mean loss a text of a batch. `rows`: its positions in the text table."""
        vectors = self.encoder(torch.from_numpy(batch.input_ids), torch.from_numpy(batch.attention_mask))
        vectors = vectors * self._scale  # (texts, width)
        index = torch.from_numpy(rows)
        own = functional.binary_cross_entropy_with_logits(self.own(vectors), self._own[index], reduction="none")
        following = functional.binary_cross_entropy_with_logits(self.next(vectors), self._next[index], reduction="none")
        weighted = own.sum(1) * self._own_known[index] + following.sum(1) * self._trust[index]  # (texts,)
        return weighted.mean()


def fit_encoder(texts: TextTable, options: TrainOptions, base: str, report: Report) -> Pretrained:
    """Fine-tune a pretrained encoder on the texts of the log and return it merged, in evaluation mode."""
    with seeded(options.seed, options.threads) as random:
        encoder, tokenizer = load_pretrained(base, width=options.width, lora_rank=options.lora_rank)
        features = TextFeatures(Tokenizer.from_str(tokenizer.decode()), max_tokens=options.max_tokens)
        usable = np.flatnonzero(texts.next_count > 0)[: options.max_texts]
        shuffled = random.permutation(usable)
        held_out = shuffled[: len(shuffled) // _HELD_OUT]
        rows = shuffled[len(held_out) :]
        objective = _TextObjective(encoder, texts, rows, options.width)
        epochs = max(1, min(options.encoder_epochs, round(options.encoder_texts_shown / max(1, len(rows)))))
        steps = epochs * math.ceil(len(rows) / options.encoder_batch)
        optimizer = _optimizer(objective, options)
        pace = schedule(optimizer, steps)
        patience = Patience(objective, options.encoder_patience)
        done = 0
        metrics: dict[str, float] = {}
        for _ in range(epochs):
            objective.train()
            for batch, where in _batches(features, texts, random.permutation(rows), options.encoder_batch, random):
                loss = objective.loss(batch, where)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]  # torch ships no annotation
                nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
                optimizer.step()
                pace.step()
                done += 1
                metrics["loss"] = loss.item()
                report("encoder", done, steps, metrics)
            metrics["held_out"] = _held_out_loss(objective, features, texts, held_out if len(held_out) else rows)
            if patience.enough(metrics["held_out"]):
                break
        patience.restore()
        report("encoder", steps, steps, {"held_out": patience.best_loss})
        encoder.merge()
        return Pretrained(encoder.eval(), tokenizer)


def _optimizer(objective: _TextObjective, options: TrainOptions) -> torch.optim.AdamW:
    adapted = [p for p in objective.encoder.backbone.parameters() if p.requires_grad]
    new = [*objective.encoder.project.parameters(), *objective.own.parameters(), *objective.next.parameters()]
    return torch.optim.AdamW(
        [
            {"params": adapted, "lr": options.encoder_lr},
            {"params": new, "lr": options.encoder_lr * _NEW_LAYERS_LR},
        ],
        weight_decay=options.weight_decay,
    )


def _batches(
    features: TextFeatures, texts: TextTable, rows: NDArray[np.int64], size: int, random: np.random.Generator
) -> Iterator[tuple[TokenBatch, NDArray[np.int64]]]:
    """Yield batches of texts of similar length in random order, with their rows in the table."""
    batches = list(features.batches(_texts(texts, rows), size=size))
    for position in random.permutation(len(batches)):
        yield batches[position], rows[batches[position].where]


@torch.no_grad()
def _held_out_loss(
    objective: _TextObjective, features: TextFeatures, texts: TextTable, rows: NDArray[np.int64]
) -> float:
    objective.eval()
    total = 0.0
    for batch in features.batches(_texts(texts, rows), size=64):
        total += objective.loss(batch, rows[batch.where]).item() * len(batch.where)
    return total / len(rows)


def _texts(texts: TextTable, rows: NDArray[np.int64]) -> Sequence[str]:
    return [texts.texts[row] for row in rows]
