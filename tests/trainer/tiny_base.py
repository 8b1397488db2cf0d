"""A pretrained encoder that nobody trained: a BERT of two small layers and its tokenizer, as a folder on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def save_base(folder: Path, texts: Iterable[str]) -> str:
    """Write the encoder into `folder`; its tokenizer knows the words of `texts`. Returns what `base` may be set to."""
    words = sorted({word for text in texts for word in text.replace(",", " ").replace(".", " ").split()})
    vocabulary = {word: index for index, word in enumerate(["[UNK]", "[PAD]", ".", ",", *words])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    BertModel(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(folder)
    return str(folder)
