"""Projection and first member, trained together over what the transformer says of every text.

The transformer runs once a text; its means are kept, and what follows it, projection and word vectors, is small enough
to be trained through the whole head. So 64 numbers a text are chosen for what they tell of people, not of texts alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import numpy as np
import torch
from scipy.special import expit, logit
from torch import Tensor, nn
from torch.nn import functional

from trainer.data.compact import vector_table
from trainer.data.examples import thinned
from trainer.fitting.fit_head import Fitting, LabelledWindows, fit_head, fit_member, score_windows
from trainer.fitting.linear import count_words, fit_linear
from trainer.networks.losses import log_losses, prior_logits
from trainer.networks.self_training import with_read_labels
from trainer.networks.words import TokenTable, latent_words
from trainer.run.schedule import schedule, seeded

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from trainer.networks.head import Head
    from trainer.networks.models import Encoder
    from trainer.run.progress import Report
    from xplat_stream.serving.features import TextFeatures

_BATCH: Final = 32
_CHUNK: Final = 4096
_THREADS: Final = 1
_TAUGHT: Final = 0.7
"""Share of the teachers' word in a target; the rest is what happened."""

_SURE: Final = 1e-5
"""No teacher is taken for surer than this: its logit must stay finite."""
_PARTS: Final = 2
"""Of the people, each asked about by a regression that learned from the others."""
_FEWEST: Final = 20
"""People: fewer teach nothing."""
_WORDS_ROWS: Final = 10_000
"""People that a regression learns from at the most."""

_NAMED_LR: Final = 2e-3
_NAMED_STEPS: Final = 150
_NAMED_BATCH: Final = 256
_WORDS_LR: Final = 0.1
"""Times the learning rate, for the word vectors: at the full rate they learn the training users by heart."""


class TextStates(NamedTuple):
    """What the transformer says of every text, and the texts' tokens; row 0 is the empty text."""

    means: NDArray[np.float16]  # (texts + 1, hidden), of unit length
    tokens: TokenTable


@torch.no_grad()
def text_states(
    encoder: Encoder,
    features: TextFeatures,
    texts: Sequence[str],
    report: Report,
    rows: NDArray[np.int64] | None = None,
) -> TextStates:
    """Run the transformer once over every text, or over those in `rows`: of the others it says nothing, zeros."""
    encoder.eval()
    rows = np.arange(len(texts)) if rows is None else rows
    means = np.zeros((len(texts) + 1, encoder.project.in_features), np.float16)
    done = 0
    for batch in features.batches([texts[row] for row in rows], size=_BATCH):
        found = encoder.means(torch.from_numpy(batch.input_ids), torch.from_numpy(batch.attention_mask))
        # The projection does not look at the length: unit length keeps float16 exact enough.
        means[rows[batch.where] + 1] = functional.normalize(found, dim=-1).numpy()
        done += len(batch.where)
        report("vectors", done, len(rows), {})
    return TextStates(means, TokenTable.of(features, texts))


class TrainedVectors(nn.Module):
    """The encoder's last steps as the source of vectors. A `trainer.fitting.fit_head.Vectors`."""

    def __init__(self, encoder: Encoder, states: TextStates) -> None:
        super().__init__()
        self.project, self.words = encoder.project, encoder.words
        # In a list, so that the transformer is no part of what is trained and kept.
        self._encoder = [encoder]
        self._means = torch.from_numpy(states.means)
        self._ids = torch.from_numpy(states.tokens.ids)
        self._mask = torch.from_numpy(states.tokens.mask)

    def forward(self, texts: NDArray[np.int64]) -> Tensor:
        """See `trainer.fitting.fit_head.Vectors`."""
        rows = torch.from_numpy(texts)
        mask = self._mask[rows]
        longest = max(1, int(mask.sum(1).max()))  # padding is at the end
        ids, encoder = self._ids[rows, :longest], self._encoder[0]
        weight = encoder.weights(ids, mask[:, :longest])
        # The same mean as the encoder's own, in one operator that holds no vector a token: a tenth of the time.
        share = weight / weight.sum(1, keepdim=True).clamp(min=1e-6)
        words = functional.embedding_bag(ids, self.words.weight, per_sample_weights=share, mode="sum")
        return encoder.vectors(self._means[rows].to(torch.float32), words) * (rows > 0).unsqueeze(-1)

    def groups(self, rate: float) -> Iterator[dict[str, Any]]:
        """See `trainer.fitting.fit_head.Vectors`."""
        yield {"params": list(self.project.parameters()), "lr": rate}
        yield {"params": list(self.words.parameters()), "lr": rate * _WORDS_LR, "weight_decay": 0.0}

    @torch.no_grad()
    def table(self) -> NDArray[np.float16]:
        """Return the vectors of all texts, `trainer.data.compact.vector_table`."""
        rows = np.arange(1, len(self._means))
        parts = [self(rows[start : start + _CHUNK]).numpy() for start in range(0, len(rows), _CHUNK)]
        width = self.project.out_features
        return vector_table(np.concatenate([np.zeros((0, width), np.float32), *parts]).astype(np.float16))


def _fit_named(head: Head, vectors: TrainedVectors, fitting: Fitting, random: np.random.Generator) -> None:
    """Teach projection and label layer to tell the labels that texts name themselves: what counting rests on."""
    own = fitting.texts.own
    known = np.flatnonzero(fitting.texts.own_known)
    if not len(known):
        return
    head.evidence.bias.data.copy_(prior_logits(own[known].mean(axis=0)))
    groups = [{"params": list(head.evidence.parameters()), "lr": _NAMED_LR}, *vectors.groups(_NAMED_LR)]
    optimizer = torch.optim.AdamW(groups, weight_decay=fitting.options.weight_decay, fused=True)
    pace = schedule(optimizer, _NAMED_STEPS, warm_up=fitting.options.warm_up)
    for _ in range(_NAMED_STEPS):
        rows = random.choice(known, min(_NAMED_BATCH, len(known)), replace=False)
        guess = head.evidence(vectors(rows + 1) * fitting.options.width**0.5)
        loss = functional.binary_cross_entropy_with_logits(guess, torch.from_numpy(own[rows]))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch ships no annotation
        optimizer.step()
        pace.step()


class Joint(NamedTuple):
    """A head, and the vectors it was trained on: the encoder's own, from now on."""

    head: Head
    table: NDArray[np.float16]  # (texts + 1, width)


def _taught(encoder: Encoder, states: TextStates, fitting: Fitting) -> LabelledWindows:
    """Return the training windows with targets that the teachers agree on, for the most part; without any as they are.

    What they say is less a matter of chance than what happened (Hinton et al. 2015), and it speaks of the whole window
    also where the one that learns from it sees a part (Lopez-Paz et al. 2016).
    """
    train, options = fitting.train, fitting.options
    said = []
    if options.words_teacher and len(train.last) >= _FEWEST:
        said.append(words_said(fitting))
    if options.teachers:
        said.append(_seeds_said(encoder, states, fitting))
    if not said:
        return train
    agreed = expit(np.mean([logit(np.clip(one, _SURE, 1 - _SURE)) for one in said], axis=0))
    return replace(train, targets=(1 - _TAUGHT) * train.targets + _TAUGHT * agreed)


def words_said(fitting: Fitting) -> NDArray[np.float32]:
    """Return what regressions on words and label counts say of the training windows (windows, labels).

    Each learns from the last windows of some people and is asked about the others': of those it learned from it would
    say what happened, not what was to be expected (cross-fitting, Chernozhukov et al. 2018).
    """
    train, tune = fitting.train, fitting.tune
    person = np.searchsorted(train.last, np.arange(len(train)))  # (windows,), whose it is
    held_out, wanted = tune.inputs.take(tune.last), tune.targets[tune.last]
    said, words = np.zeros_like(train.targets), count_words(fitting.texts)
    for part in range(_PARTS):
        learned = thinned(np.delete(train.last, np.s_[part::_PARTS]), _WORDS_ROWS)
        says = fit_linear(
            fitting.texts,
            words,
            train.inputs.take(learned),
            train.targets[learned],
            held_out=held_out,
            quality=lambda scores: -float(log_losses(scores, wanted).mean()),
        )
        asked = np.flatnonzero(person % _PARTS == part)
        said[asked] = says(train.inputs.take(asked))
    return said


def _seeds_said(encoder: Encoder, states: TextStates, fitting: Fitting) -> NDArray[np.float32]:
    """Return the mean of what models of other seeds say of the training windows (windows, labels)."""
    train, options = fitting.train, fitting.options
    said = np.zeros_like(train.targets)
    for number in range(1, options.teachers + 1):
        own = msgspec.structs.replace(options, teachers=0, words_teacher=False, members=1, seed=options.seed + number)
        head, table = fit_together(encoder.beside(), states, fitting._replace(options=own))
        said += score_windows(head, train.inputs, table) / options.teachers
    return said


def fit_together(encoder: Encoder, states: TextStates, fitting: Fitting) -> Joint:
    """Train the encoder's projection and word vectors with the head's first member, then the rest of the head.

    Changes `encoder`, whose transformer made `states`.
    """
    options = fitting.options
    if options.self_training:
        first = _fit_first(encoder.beside(), states, fitting)
        texts = with_read_labels(fitting.texts, *first)
        fitting = fitting._replace(texts=texts, options=msgspec.structs.replace(options, self_training=False))
    fitting = fitting._replace(train=_taught(encoder, states, fitting))
    head, table = _fit_first(encoder, states, fitting)
    return Joint(fit_head(fitting, table, head), table)


def _fit_first(encoder: Encoder, states: TextStates, fitting: Fitting) -> Joint:
    """Train projection, word vectors and the head's first member."""
    options, train = fitting.options, fitting.train
    with seeded(options.seed, _THREADS) as random:
        latent = latent_words(
            states.tokens,
            train.inputs.take(train.last),
            vocabulary=encoder.words.num_embeddings,
            width=options.width,
            seed=options.seed,
        )
        encoder.words.weight.data.copy_(torch.from_numpy(latent.words))
        encoder.rarity.copy_(torch.from_numpy(latent.rarity).unsqueeze(-1))
        for layer in (encoder.project, encoder.words):
            layer.requires_grad_(True)
        head = fitting.new_head()
        vectors = TrainedVectors(encoder, states)
        _fit_named(head, vectors, fitting, random)
        fit_member(head, 0, fitting, vectors, random, named=True)
        return Joint(head, vectors.table())
