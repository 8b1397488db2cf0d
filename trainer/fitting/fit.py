"""Fine-tuning of the encoder: an adapter, AdamW, warm-up and cosine, early stopping, checkpoints.

Each distinct text is one example, shown at most once a pass however often it was clicked: that is what makes minutes of
hours. Its targets are two: the labels its item names itself, where it does, and what the people who touched it did
next, before the split. The second is all there is for a platform without categories, and is what carries one
platform's labels over to another's texts.

The loop runs under `accelerate`: on one device or, started by ``accelerate launch -m xplat_stream.cli train``, on
several, each of which reads its share of the batches. Two processes on a CPU are tested; GPUs and their number formats
are not.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from trainer.fitting.checkpoint import Checkpoint
from trainer.fitting.mlm import pretrain
from trainer.networks.adapters import LEARNING_RATES, Adapter, adapt
from trainer.networks.adversarial import Adversary
from trainer.networks.augment import augmented
from trainer.networks.losses import info_nce, label_loss, prior_logits
from trainer.networks.models import Base, Encoder, Pretrained, mean_vectors, read_base
from trainer.networks.weak import WeakLabels, weak_labels
from trainer.run.devices import accelerator_for
from trainer.run.progress import silent
from trainer.run.schedule import Patience, schedule, seeded, step_generator
from xplat_stream.errors import DataError
from xplat_stream.serving.features import TextFeatures

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from accelerate import Accelerator
    from numpy.typing import NDArray

    from trainer.data.texts import TextTable
    from trainer.fitting.fit_head import LabelledWindows
    from trainer.run.options import TrainOptions
    from trainer.run.progress import Report
    from xplat_stream.serving.features import TokenBatch

_HELD_OUT: Final = 10
"""Every tenth text is not trained on and says when to stop."""

_NEW_LAYERS_LR: Final = 4.0
_HELD_OUT_BATCH: Final = 64
_CONTRAST_TEMPERATURE: Final = 0.1
_PART: Final = "encoder"


class Hints(NamedTuple):
    """What the encoder may learn from beside the text table, where an option asks for it."""

    following: NDArray[np.int32] = np.zeros((0, 2), np.int32)
    """(pairs, 2), text index and the index of a text its reader touched next; for `contrast`."""
    label_texts: Sequence[str] = ()
    """What each label is called, in taxonomy order; for `weak_labels`."""


def following_pairs(train: LabelledWindows) -> NDArray[np.int32]:
    """Return (pairs, 2): the text of a window's newest event, and the first text touched after the window."""
    pairs: NDArray[np.int32] = np.stack([train.inputs.newest_texts(), train.next_texts[:, 0]], axis=1)
    known: NDArray[np.int32] = pairs[(pairs > 0).all(axis=1)]
    return known


def fit_encoder(
    texts: TextTable,
    options: TrainOptions,
    base: str,
    report: Report,
    *,
    hints: Hints = Hints(),  # noqa: B008 - a value
    checkpoint: Checkpoint | None = None,
) -> Pretrained:
    """Fine-tune a pretrained encoder on the texts of the log and return it merged, on the CPU, in evaluation mode.

    Raises `DataError` when `base` cannot be read or take the adapter, or the device lacks the precision asked for.
    """
    checkpoint = checkpoint or Checkpoint.off()
    with seeded(options.seed, options.threads) as random:
        accelerator = accelerator_for(options)
        if not accelerator.is_main_process:
            report = silent
        read = read_base(base)
        read.model.to(accelerator.device)
        tokenizer = read.tokenizer_json()
        features = TextFeatures(Tokenizer.from_str(tokenizer.decode()), max_tokens=options.max_tokens)
        weak = _weak_labels(read, features, texts, hints.label_texts) if options.weak_labels else None
        usable = random.permutation(np.flatnonzero(texts.next_count > 0))
        # By what was trained on alone: the table's own order knows what everybody used.
        shuffled = usable[np.sort(np.argsort(-texts.next_count[usable], kind="stable")[: options.max_texts])]
        held_out = shuffled[: len(shuffled) // _HELD_OUT]
        rows = shuffled[len(held_out) :]
        if options.mlm_steps:
            readable = [texts.texts[row] for row in rows]
            pretrain(read, features, readable, options, checkpoint=checkpoint, report=report)
        course = _Course(read, texts, rows, weak, options, accelerator, where=base)
        course.resume(checkpoint)
        course.run(features, texts, held_out if len(held_out) else rows, hints.following, checkpoint, report)
        return Pretrained(course.finished(), tokenizer)


def _weak_labels(read: Base, features: TextFeatures, texts: TextTable, label_texts: Sequence[str]) -> WeakLabels:
    if not label_texts:
        raise DataError(
            "weak labels were asked for, and nobody said what the labels are called",
            where="weak_labels",
            expected="`Hints.label_texts`, see `trainer.networks.weak.label_texts`",
            fix="Give them, or leave `weak_labels` off.",
        )
    # Only what is trained on, or says how near is near enough.
    rows = np.flatnonzero(texts.own_known | (texts.next_count > 0))
    vectors = np.zeros((len(texts.texts), read.hidden), np.float32)
    vectors[rows] = mean_vectors(read, features, [texts.texts[row] for row in rows])
    return weak_labels(texts, vectors, mean_vectors(read, features, list(label_texts)))


class _TextObjective(nn.Module):
    """The encoder under its two label layers; the layers are thrown away after the training."""

    own_labels: Tensor  # (texts, labels)
    own_trust: Tensor  # (texts,), 1 = the item names its labels, 0 = they are not known
    next_labels: Tensor  # (texts, labels)
    next_trust: Tensor  # (texts,)

    def __init__(
        self,
        encoder: Encoder,
        adapter: Adapter,
        texts: TextTable,
        rows: NDArray[np.int64],
        weak: WeakLabels | None,
        options: TrainOptions,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.own = nn.Linear(options.width, texts.own.shape[1])
        self.next = nn.Linear(options.width, texts.own.shape[1])
        self._adapter = adapter
        self._options = options
        self._scale = options.width**0.5  # unit vectors have components near width^-1/2; layers start best near 1
        known, seen = texts.own_known[rows], texts.next_count[rows] > 0
        for layer, targets in ((self.own, texts.own[rows][known]), (self.next, texts.next_labels[rows][seen])):
            if len(targets):
                layer.bias.data.copy_(prior_logits(targets.mean(axis=0)))
        own, own_trust = texts.own, texts.own_known.astype(np.float32)
        if weak is not None:
            own, own_trust = own + weak.own, own_trust + weak.trust
        trust = np.sqrt(texts.next_count)  # the share of 100 readers is worth ten times one reader's, not a hundred
        trust = (trust / max(trust.mean(), 1e-6)).clip(max=3.0).astype(np.float32)
        for name, array in (
            ("own_labels", own),
            ("own_trust", own_trust),
            ("next_labels", texts.next_labels),
            ("next_trust", trust),
        ):
            self.register_buffer(name, torch.from_numpy(array), persistent=False)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, rows: Tensor, partner: tuple[Tensor, Tensor, Tensor] | None
    ) -> Tensor:
        """Return the mean loss of a batch of texts, `rows` of the text table.

        `partner`: ids and mask of the texts touched next, and their indices, 0 where there is none.
        """
        unit = self.encoder(input_ids, attention_mask)  # (texts, width)
        vectors = unit * self._scale
        own = label_loss(self.own(vectors), self.own_labels[rows], self._options.loss)
        following = label_loss(self.next(vectors), self.next_labels[rows], self._options.loss)
        loss: Tensor = (own * self.own_trust[rows] + following * self.next_trust[rows]).mean()
        if self.training:
            loss = loss + self._adapter.penalty()
        if partner is not None:
            ids, mask, index = partner
            paired = index > 0
            contrast = info_nce(unit[paired], self.encoder(ids, mask)[paired], index[paired], _CONTRAST_TEMPERATURE)
            loss = loss + self._options.contrast * contrast
        return loss


class _Course:
    """One training of an encoder: what moves, how far it has come, and how to go on from there."""

    def __init__(  # noqa: PLR0913 - all of it
        self,
        read: Base,
        texts: TextTable,
        rows: NDArray[np.int64],
        weak: WeakLabels | None,
        options: TrainOptions,
        accelerator: Accelerator,
        *,
        where: str,
    ) -> None:
        self._options, self._accelerator, self._rows = options, accelerator, rows
        self._epochs = max(1, min(options.encoder_epochs, round(options.encoder_texts_shown / max(1, len(rows)))))
        batches = math.ceil(math.ceil(len(rows) / options.encoder_batch) / accelerator.num_processes)
        self._steps_an_epoch = math.ceil(batches / options.accumulate)
        self._steps = self._epochs * self._steps_an_epoch
        self._done = 0
        self._over = False
        self._adapter = adapt(read.model, options, steps=self._steps, where=where)
        self._encoder = Encoder(
            self._adapter.backbone, hidden=read.hidden, width=options.width, vocabulary=read.vocabulary
        )
        self._bare = _TextObjective(self._encoder, self._adapter, texts, rows, weak, options).to(accelerator.device)
        self._adversary = Adversary(read.model.get_input_embeddings(), options.fgm) if options.fgm else None
        self._patience = Patience(self._bare, options.encoder_patience)
        optimizer = _optimizer(self._bare, options)
        self._pace = schedule(optimizer, self._steps, warm_up=options.warm_up)
        self._objective, self._optimizer = accelerator.prepare(self._bare, optimizer)

    def run(
        self,
        features: TextFeatures,
        texts: TextTable,
        held_out: NDArray[np.int64],
        following: NDArray[np.int32],
        checkpoint: Checkpoint,
        report: Report,
    ) -> None:
        """Train to the end, from wherever it stands."""
        metrics: dict[str, float] = {}
        while not self._over:
            epoch, begun = divmod(self._done, self._steps_an_epoch)
            self._objective.train()
            for group in list(self._groups(features, texts, following, epoch))[begun:]:
                metrics["loss"] = self._step(group)
                report(_PART, self._done, self._steps, metrics)
                if checkpoint.due() and self._done % self._steps_an_epoch:
                    self._save(checkpoint)
            metrics["held_out"] = self._held_out_loss(features, texts, held_out)
            self._over = self._patience.enough(metrics["held_out"]) or self._done >= self._steps
            if self._over or checkpoint.due():
                self._save(checkpoint)
        report(_PART, self._steps, self._steps, {"held_out": self._patience.best_loss})

    def finished(self) -> Encoder:
        """Return the best epoch's encoder, merged."""
        self._patience.restore()
        self._encoder.merge()
        return self._encoder.cpu().eval()

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint, where there is one."""
        state = checkpoint.load(_PART)
        if state is not None:
            self._patience.load(state["patience"])
            self._optimizer.load_state_dict(state["optimizer"])
            self._pace.load_state_dict(state["pace"])
            self._adapter.load(state["adapter"])
            if self._accelerator.scaler is not None:
                self._accelerator.scaler.load_state_dict(state["scaler"])
            self._done, self._over = state["done"], state["over"]

    def _save(self, checkpoint: Checkpoint) -> None:
        scaler = self._accelerator.scaler
        state = {
            "patience": self._patience.state(),
            "optimizer": self._optimizer.state_dict(),
            "pace": self._pace.state_dict(),
            "adapter": self._adapter.state(),
            "scaler": {} if scaler is None else scaler.state_dict(),
            "done": self._done,
            "over": self._over,
        }
        checkpoint.save(_PART, state)

    def _step(self, group: Sequence[_Shown]) -> float:
        """Take one step over the batches of a group; return their mean loss."""
        step_generator(self._options.seed, "dropout", self._done, self._accelerator.process_index)
        total = 0.0
        for number, shown in enumerate(group, 1):
            last = number == len(group)
            share = len(group)
            if self._adversary is None:
                total += self._backward(shown, share, sync=last)
            else:
                with self._adversary.watching():
                    total += self._backward(shown, share, sync=False)
                with self._adversary.disturbing():
                    self._backward(shown, share, sync=last)
        self._accelerator.clip_grad_norm_(self._objective.parameters(), 1.0)
        self._optimizer.step()
        if not self._accelerator.optimizer_step_was_skipped:
            self._adapter.after_step(self._done)
            self._pace.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._done += 1
        return total

    def _backward(self, shown: _Shown, share: int, *, sync: bool) -> float:
        with nullcontext() if sync else self._accelerator.no_sync(self._objective):
            loss = self._objective(*shown.on(self._accelerator.device)) / share
            self._accelerator.backward(loss)
        return float(loss.item())

    def _groups(
        self, features: TextFeatures, texts: TextTable, following: NDArray[np.int32], epoch: int
    ) -> Iterator[list[_Shown]]:
        """Yield this process's share of an epoch's batches, those of one step together.

        Batches hold texts of similar length and come in random order; every process has equally many.
        """
        options, accelerator = self._options, self._accelerator
        random = step_generator(options.seed, "epoch", epoch)
        rows = random.permutation(self._rows)
        partner = _drawn_partners(following, len(texts.texts), random) if options.contrast else None
        read = augmented([texts.texts[row] for row in rows], options.augment, random)
        batches = list(features.batches(read, size=options.encoder_batch))
        order = random.permutation(len(batches))
        order = np.resize(order, math.ceil(len(order) / accelerator.num_processes) * accelerator.num_processes)
        mine = [batches[position] for position in order[accelerator.process_index :: accelerator.num_processes]]
        for start in range(0, len(mine), options.accumulate):
            group = mine[start : start + options.accumulate]
            yield [_shown(batch, rows[batch.where], features, texts, partner) for batch in group]

    @torch.no_grad()
    def _held_out_loss(self, features: TextFeatures, texts: TextTable, rows: NDArray[np.int64]) -> float:
        """Return the mean loss of texts that are not trained on; every process computes all of it, and the same."""
        self._bare.eval()
        total = 0.0
        for batch in features.batches([texts.texts[row] for row in rows], size=_HELD_OUT_BATCH):
            shown = _shown(batch, rows[batch.where], features, texts, None)
            total += self._bare(*shown.on(self._accelerator.device)).item() * len(batch.where)
        return total / len(rows)


class _Shown(NamedTuple):
    """A batch of texts as the objective takes it."""

    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]
    rows: NDArray[np.int64]
    partner: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]] | None

    def on(self, device: torch.device) -> tuple[Any, ...]:
        """Return it as tensors on a device."""
        ids, mask, rows = (torch.from_numpy(array).to(device) for array in self[:3])
        partner = self.partner and tuple(torch.from_numpy(array).to(device) for array in self.partner)
        return ids, mask, rows, partner


def _shown(
    batch: TokenBatch,
    rows: NDArray[np.int64],
    features: TextFeatures,
    texts: TextTable,
    partner: NDArray[np.int32] | None,
) -> _Shown:
    if partner is None:
        return _Shown(batch.input_ids, batch.attention_mask, rows, None)
    index = partner[rows + 1].astype(np.int64)  # (texts,)
    read = [texts.texts[one - 1] if one else "" for one in index]
    (other,) = features.batches(read, size=len(read))
    back = np.argsort(other.where)  # their own order is by length
    return _Shown(
        batch.input_ids, batch.attention_mask, rows, (other.input_ids[back], other.attention_mask[back], index)
    )


def _drawn_partners(following: NDArray[np.int32], texts: int, random: np.random.Generator) -> NDArray[np.int32]:
    """Return text index → index of one of the texts touched next (texts + 1,), drawn by how often; 0 = none."""
    partner = np.zeros(texts + 1, np.int32)
    drawn = random.permutation(following)
    partner[drawn[:, 0]] = drawn[:, 1]  # of several the last one stays
    return partner


def _optimizer(objective: _TextObjective, options: TrainOptions) -> torch.optim.AdamW:
    adapted = [p for p in objective.encoder.backbone.parameters() if p.requires_grad]
    new = [*objective.encoder.project.parameters(), *objective.own.parameters(), *objective.next.parameters()]
    groups: list[dict[str, Any]] = [{"params": new, "lr": options.encoder_lr * _NEW_LAYERS_LR}]
    if adapted:
        groups.append({"params": adapted, "lr": options.encoder_lr * LEARNING_RATES.get(options.adapter, 1.0)})
    return torch.optim.AdamW(groups, weight_decay=options.weight_decay)
