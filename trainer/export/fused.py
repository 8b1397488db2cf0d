"""The fused baseline: one pretrained transformer over the fused text of a window, with a multi-label head on top.

This is the classic recipe of transfer learning (Devlin et al. 2019; `AutoModelForSequenceClassification` with
`multi_label_classification`), fine-tuned with BCE. It reads a window newest event first, ``platform action title``
each, cut off at so many tokens, and reads it again as a whole after every event: that is what the split model beside
it is measured against, in quality and in speed.

What keeps it affordable without a GPU are the options: only the upper layers learn, and an epoch shows one cut a user.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import msgspec
import numpy as np
import torch
from msgspec import Meta
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from trainer.data.examples import last_of_each
from trainer.measuring.baselines import popular
from trainer.networks.losses import prior_logits
from trainer.networks.models import default_base, load_pretrained
from trainer.run.progress import silent
from trainer.run.schedule import Patience, schedule, seeded
from xplat_stream.errors import DataError
from xplat_stream.event import ACTIONS
from xplat_stream.serving.features import TextFeatures, fuse

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from trainer.data.study import Cuts, Study
    from trainer.run.progress import Report
    from xplat_stream.serving.features import TokenBatch

    Scores = NDArray[np.float32]  # (cuts, labels), in [0, 1]

NAME: Final = "fused"
_TEMPERATURES: Final = np.geomspace(0.25, 4.0, 49)
_SCORED_AT_ONCE: Final = 32

_Count = Annotated[int, Meta(ge=1)]
_Positive = Annotated[float, Meta(gt=0)]


class FusedOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a fused model is trained. The defaults took 160 s of one core for 2,300 users, two passes, 64 tokens."""

    base: str = ""
    """Pretrained encoder: a Hugging Face id or a folder; empty for MiniLM-L6."""
    max_tokens: Annotated[int, Meta(ge=8, le=512)] = 64
    """Tokens read of a window, the newest events' first. Time grows with them; a titled event has about 20."""
    trained_layers: _Count = 2
    """Upper layers that learn; those below, and the embeddings, stay as they were pretrained."""
    learning_rate: _Positive = 2e-4
    """Peak rate of the pretrained layers."""
    label_rate: _Positive = 2e-3
    """Peak rate of the label layer, which starts from nothing."""
    batch: _Count = 32
    """Windows a step."""
    epochs: _Count = 2
    """Passes over the users at the most: the first shows everybody's last cut, the other one of theirs at random."""
    users: _Count = 4_000
    """Users shown an epoch at the most."""
    patience: _Count = 1
    """Epochs without a better loss on the tuning users before it stops."""
    dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.1
    """Before the label layer; the pretrained layers keep theirs."""
    weight_decay: Annotated[float, Meta(ge=0)] = 0.01
    """AdamW's."""
    seed: int = 7
    """Of every random choice."""
    threads: Annotated[int, Meta(ge=0)] = 0
    """Cores to use; 0 takes what torch finds."""


class Fused(nn.Module):
    """Tokens of a fused window → calibrated label scores."""

    prior: Tensor
    temperature: Tensor

    def __init__(self, backbone: nn.Module, *, hidden: int, prior: Tensor, dropout: float = 0.1) -> None:
        super().__init__()
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        self.label = nn.Linear(hidden, len(prior))
        nn.init.zeros_(self.label.weight)
        nn.init.zeros_(self.label.bias)
        self.register_buffer("prior", prior.clone())  # (labels,), logits of the label frequencies
        self.register_buffer("temperature", torch.ones(()))

    def residual(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return what a window says beyond the prior, as logits (users, labels)."""
        tokens = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(tokens.dtype)  # (users, tokens, 1)
        mean = (tokens * mask).sum(1) / mask.sum(1).clamp(min=1.0)  # (users, hidden)
        logits: Tensor = self.label(self.dropout(mean))
        return logits

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return scores in [0, 1] (users, labels) of (users, tokens) ids and mask."""
        return torch.sigmoid(self.prior + self.residual(input_ids, attention_mask) / self.temperature)


class FusedFitted(NamedTuple):
    """A fused model after fitting. A `trainer.measuring.methods.Fitted`."""

    network: Fused
    tokenizer: bytes
    """A Hugging Face ``tokenizer.json``."""
    max_tokens: int
    study: Study

    @property
    def features(self) -> TextFeatures:
        """Return the tokenizer as trainer and server use it."""
        return TextFeatures(Tokenizer.from_str(self.tokenizer.decode()), max_tokens=self.max_tokens)

    def scores(self, cuts: Cuts) -> Scores:
        """See `Fitted`."""
        texts = fused_texts(self.study, cuts, np.arange(len(cuts)), max_tokens=self.max_tokens)
        network = self.network.eval()
        scores = np.zeros((len(cuts), len(network.prior)), np.float32)
        with torch.no_grad():
            for batch in self.features.batches(texts, size=_SCORED_AT_ONCE):
                scores[batch.where] = network(*_tensors(batch)).numpy()
        return scores


def fused_texts(study: Study, cuts: Cuts, rows: NDArray[np.int64], *, max_tokens: int) -> list[str]:
    """Return the fused texts of some cuts' windows, as `xplat_stream.serving.features.fused_text` makes them."""
    inputs = cuts.inputs
    texts = ["", *study.texts.texts]

    def newest_first(row: int) -> Iterator[tuple[str, str, str]]:
        for event in range(int(inputs.length[row]) - 1, -1, -1):
            platform = study.platforms[inputs.platform[row, event] - 1]
            yield platform, ACTIONS[inputs.action[row, event] - 1], texts[inputs.text[row, event]]

    return [fuse(newest_first(int(row)), max_tokens=max_tokens) for row in rows]


class FusedMethod:
    """The fused model as one of the methods a report sets side by side. A `trainer.measuring.methods.Method`."""

    name = NAME

    def __init__(self, options: FusedOptions | None = None, report: Report = silent) -> None:
        self._options = options or FusedOptions()
        self._report = report

    def fit(self, study: Study, train: Cuts, tune: Cuts) -> FusedFitted:
        """See `Method`. Raises `DataError` when the pretrained encoder cannot be loaded."""
        options = self._options
        with seeded(options.seed, options.threads) as random:
            network, tokenizer = _untrained(options, prior_logits(popular(train)))
            fitted = FusedFitted(network, tokenizer, options.max_tokens, study)
            tuning = fused_texts(study, tune, np.arange(len(tune)), max_tokens=options.max_tokens)
            steps = options.epochs * -(-min(options.users, len(last_of_each(train.user))) // options.batch)
            optimizer = _optimizer(network, options)
            pace = schedule(optimizer, steps)
            patience = Patience(network, options.patience)
            done = 0
            for epoch in range(options.epochs):
                network.train()
                rows = _cuts_shown(train, random, options.users, last=epoch == 0)
                texts = fused_texts(study, train, rows, max_tokens=options.max_tokens)
                batches = list(fitted.features.batches(texts, size=options.batch))
                for position in random.permutation(len(batches)):
                    batch = batches[position]
                    targets = torch.from_numpy(train.targets[rows[batch.where]])  # (users, labels)
                    logits = network.prior + network.residual(*_tensors(batch))
                    loss = functional.binary_cross_entropy_with_logits(logits, targets)
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()  # type: ignore[no-untyped-call]  # torch ships no annotation
                    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                    optimizer.step()
                    pace.step()
                    done += 1
                    self._report(NAME, done, steps, {"loss": loss.item()})
                held_out = _bce(network, _residuals(network, fitted.features, tuning), tune, 1.0)
                self._report(NAME, done, steps, {"held_out": held_out})
                if patience.enough(held_out):
                    break
            patience.restore()
            residuals = _residuals(network, fitted.features, tuning)
            losses = [_bce(network, residuals, tune, float(value)) for value in _TEMPERATURES]
            network.temperature.fill_(float(_TEMPERATURES[int(np.argmin(losses))]))
            self._report(NAME, steps, steps, {"held_out": min(losses)})
            return fitted


def _untrained(options: FusedOptions, prior: Tensor) -> tuple[Fused, bytes]:
    """Return a pretrained encoder under a label layer that says nothing yet, its lower layers frozen."""
    encoder, tokenizer = load_pretrained(options.base or default_base(), width=1, lora_rank=1)
    encoder.merge()  # LoRA starts as no change: what is left is the encoder as it was pretrained
    backbone = encoder.backbone
    stacks = [module for module in backbone.modules() if isinstance(module, nn.ModuleList)]
    layers = max(stacks, key=len, default=nn.ModuleList())
    if len(layers) < options.trained_layers:
        raise DataError(
            f"the encoder has {len(layers)} layers of which {options.trained_layers} should learn",
            where=options.base or default_base(),
            expected=f"{options.trained_layers} layers or more",
            fix="Choose another encoder as `base`, or fewer `trained_layers`.",
        )
    backbone.requires_grad_(False)
    for layer in layers[-options.trained_layers :]:
        layer.requires_grad_(True)
    return Fused(backbone, hidden=encoder.project.in_features, prior=prior, dropout=options.dropout), tokenizer


def _optimizer(network: Fused, options: FusedOptions) -> torch.optim.AdamW:
    groups = [
        {"params": [p for p in network.backbone.parameters() if p.requires_grad], "lr": options.learning_rate},
        {"params": list(network.label.parameters()), "lr": options.label_rate},
    ]
    return torch.optim.AdamW(groups, weight_decay=options.weight_decay)


def _cuts_shown(cuts: Cuts, random: np.random.Generator, most: int, *, last: bool) -> NDArray[np.int64]:
    """Return one cut of each user, the last or one at random, of `most` users at the most."""
    ends = last_of_each(cuts.user)
    starts = np.concatenate([[0], ends[:-1] + 1])
    rows = ends if last else random.integers(starts, ends + 1)
    return np.asarray(random.permutation(rows)[:most], np.int64)


def _tensors(batch: TokenBatch) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(batch.input_ids), torch.from_numpy(batch.attention_mask)


@torch.no_grad()
def _residuals(network: Fused, features: TextFeatures, texts: Sequence[str]) -> Tensor:
    network.eval()
    found = torch.zeros((len(texts), len(network.prior)))
    for batch in features.batches(texts, size=_SCORED_AT_ONCE):
        found[batch.where] = network.residual(*_tensors(batch))
    return found


@torch.no_grad()
def _bce(network: Fused, residuals: Tensor, cuts: Cuts, temperature: float) -> float:
    logits = network.prior + residuals / temperature
    return functional.binary_cross_entropy_with_logits(logits, torch.from_numpy(cuts.targets)).item()
