"""A pretrained encoder small enough for tests: one layer over words of the corpus, weights at random."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

HIDDEN = 32


def make_tiny_base(folder: Path, read: Iterable[str] = ()) -> Path:
    """Write it as a Hugging Face folder and return the folder. `read`: texts its words are of; none: the corpus's."""
    import torch
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    from tests.trainer.corpus import taxonomy, words

    learned = BertWordPieceTokenizer()
    learnt_from = [*read] or [*words(), *(label.name for label in taxonomy().labels)]
    learned.train_from_iterator(learnt_from, show_progress=False)
    BertTokenizerFast(tokenizer_object=learned._tokenizer).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=learned.get_vocab_size(),
        hidden_size=HIDDEN,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    BertModel(config).save_pretrained(folder)
    return folder
