"""Domain-adaptive pretraining: the encoder reads the log's own texts, guessing words that were hidden.

Masked-language modelling (Devlin et al. 2019, arXiv:1810.04805) on the texts of a domain before the fine-tuning proper
(Gururangan et al. 2020, *Don't Stop Pretraining*). It needs no label, so it reads every text of the log, and it changes
all weights of the encoder; the layer that guesses is thrown away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.run.schedule import schedule, step_generator
from xplat_stream.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from trainer.fitting.checkpoint import Checkpoint
    from trainer.networks.models import Base
    from trainer.run.options import TrainOptions
    from trainer.run.progress import Report
    from xplat_stream.serving.features import TextFeatures, TokenBatch

_GUESSED: Final = 0.15
_HIDDEN: Final = 0.8
_REPLACED: Final = 0.1
"""Of the tokens to guess: hidden, replaced by any other, and the rest left as they are, so that every token counts."""

_LEARNING_RATE: Final = 5e-5
_PART: Final = "mlm"


class Masked(NamedTuple):
    """A batch with words to guess."""

    input_ids: NDArray[np.int64]  # (texts, tokens)
    guessed: NDArray[np.bool_]  # (texts, tokens)


def mask_words(
    batch: TokenBatch, *, mask_id: int, special: Sequence[int], vocabulary: int, random: np.random.Generator
) -> Masked:
    """Choose 15 % of the tokens of a batch to be guessed, and hide most of them. Special tokens and padding stay."""
    ids = batch.input_ids
    drawn, fate = random.random(ids.shape), random.random(ids.shape)
    guessed = (drawn < _GUESSED) & (batch.attention_mask > 0) & ~np.isin(ids, list(special))
    other = random.integers(0, vocabulary, ids.shape)
    replaced = np.where(fate < _HIDDEN, mask_id, np.where(fate < _HIDDEN + _REPLACED, other, ids))
    return Masked(np.where(guessed, replaced, ids), guessed)


class _Guess(nn.Module):
    """Token vectors → logits over the vocabulary, through the encoder's own word embeddings."""

    def __init__(self, words: nn.Embedding) -> None:
        super().__init__()
        self.words = words
        self.dense = nn.Linear(words.embedding_dim, words.embedding_dim)
        self.norm = nn.LayerNorm(words.embedding_dim)
        self.bias = nn.Parameter(torch.zeros(words.num_embeddings))

    def forward(self, hidden: Tensor) -> Tensor:
        """Return (guesses, vocabulary) of (guesses, hidden)."""
        return functional.linear(self.norm(functional.gelu(self.dense(hidden))), self.words.weight, self.bias)


def pretrain(
    base: Base,
    features: TextFeatures,
    texts: Sequence[str],
    options: TrainOptions,
    *,
    checkpoint: Checkpoint,
    report: Report,
) -> None:
    """Train all weights of an encoder for `mlm_steps` steps. Raises `DataError` for a tokenizer without a mask."""
    done = checkpoint.load(_PART)
    if done is not None:
        base.model.load_state_dict(done)
        return
    mask_id = base.tokenizer.mask_token_id
    if mask_id is None:
        raise DataError(
            "the tokenizer has no mask, so no word can be hidden",
            where=options.base or "base",
            expected="an encoder that was pretrained on masked words",
            fix="Leave `mlm_steps` at 0, or choose another `base`.",
        )
    special = base.tokenizer.all_special_ids
    model: Any = base.model.requires_grad_(requires_grad=True).train()
    guess = _Guess(model.get_input_embeddings()).to(model.device)
    weights = [*model.parameters(), guess.dense.weight, guess.dense.bias, *guess.norm.parameters(), guess.bias]
    optimizer = torch.optim.AdamW(weights, lr=_LEARNING_RATE, weight_decay=options.weight_decay)
    pace = schedule(optimizer, options.mlm_steps, warm_up=options.warm_up)
    for step in range(options.mlm_steps):
        random = step_generator(options.seed, "mlm", step)
        chosen = random.integers(0, len(texts), options.encoder_batch)
        (batch,) = features.batches([texts[row] for row in chosen], size=options.encoder_batch)
        masked = mask_words(batch, mask_id=mask_id, special=special, vocabulary=len(guess.bias), random=random)
        if not masked.guessed.any():
            continue
        read, wanted, mask, guessed = (
            torch.from_numpy(array).to(model.device)
            for array in (masked.input_ids, batch.input_ids, batch.attention_mask, masked.guessed)
        )
        hidden = model(input_ids=read, attention_mask=mask).last_hidden_state  # (texts, tokens, hidden)
        loss = functional.cross_entropy(guess(hidden[guessed]), wanted[guessed])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch ships no annotation
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        pace.step()
        report("mlm", step + 1, options.mlm_steps, {"loss": loss.item()})
    checkpoint.save(_PART, model.state_dict())
