"""A causal transformer over the items a person touched, on all platforms in one sequence: which item comes next?

SASRec (Kang & McAuley, ICDM 2018) with what the platforms and the clock add: an item's vector is an embedding of its
id plus, where texts are given, a projection of its text's vector; each event says also its platform, how long after the
last one it came, and in which month; each platform asks for its next item through a head of its own. The loss is a
softmax over the items of the target's platform, against a sample that a whole batch shares: one small matrix product
where a full softmax would read every item of the platform for every event.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.run.schedule import schedule, seeded
from xplat_stream.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from trainer.run.progress import Report

_DAY_MS: Final = 86_400_000
_MONTH_DAYS: Final = 30
_GAPS: Final = 14
"""Of log2(1 + days since the last event): the same day, a day, three, a week … 11 years and more."""

_SCORED_AT_ONCE: Final = 256
_CLIP: Final = 1.0


class Sequences(NamedTuple):
    """Users' events in the order they happened, padded on the right; `item` is an item's position + 1, 0 = padding."""

    item: NDArray[np.int64]  # (users, events)
    time: NDArray[np.int64]  # (users, events), milliseconds
    length: NDArray[np.int64]  # (users,), events before the padding

    @classmethod
    def of(cls, items: Sequence[NDArray[Any]], times: Sequence[NDArray[Any]], longest: int) -> Self:
        """Put users' (events,) item positions and milliseconds side by side, the newest `longest` of each.

        Raises `DataError` where a user's items and times are not as many.
        """
        length = np.array([min(len(one), longest) for one in items], np.int64)
        item = np.zeros((len(items), max(1, int(length.max(initial=1)))), np.int64)
        time = np.zeros_like(item)
        for row, (touched, when) in enumerate(zip(items, times, strict=True)):
            if len(touched) != len(when):
                raise DataError(
                    f"{len(touched)} items with {len(when)} times",
                    where=f"sequence {row}",
                    expected="a time for each item",
                    fix="Build both from the same events.",
                )
            if length[row]:
                item[row, : length[row]] = touched[-length[row] :] + 1
                time[row, : length[row]] = when[-length[row] :]
        return cls(item, time, length)

    def __len__(self) -> int:
        return len(self.length)

    def take(self, rows: NDArray[np.int64]) -> Sequences:
        """Return some of the users, cut to the longest of them."""
        longest = max(1, int(self.length[rows].max(initial=1)))
        return Sequences(self.item[rows, :longest], self.time[rows, :longest], self.length[rows])


@dataclass(frozen=True, slots=True)
class SequenceOptions:
    """How a sequence model is shaped and trained. Chosen on validation items of DESIGN's reference recording."""

    width: int = 64
    layers: int = 2
    heads: int = 2
    dropout: float = 0.3
    clock: bool = True
    """Whether events say how long after the last one they came, and in which month."""
    max_events: int = 50
    """Newest events that a sequence is cut to."""
    negatives: int = 1024
    """Items of a platform that each batch is told apart from; as many as there are: a full softmax."""
    batch: int = 64
    """Users a step."""
    epochs: int = 14
    patience: int = 4
    """Epochs without a better validation until training ends."""
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    seed: int = 0
    threads: int = 1
    """Of torch; 1: the operators are small, and results do not hang on the machine's cores."""


class SequenceModel(nn.Module):
    """Events → for each, a query vector a platform, which lies near the items that come next there."""

    platform_of: Tensor
    text: Tensor
    origin: Tensor

    def __init__(
        self,
        platform: NDArray[np.integer[Any]],
        text: NDArray[np.floating[Any]] | None,
        span_ms: tuple[int, int],
        options: SequenceOptions,
    ) -> None:
        """Shape a model.

        Args:
            platform: (items,), 0 … platforms - 1.
            text: (items, any width), zeros where an item has none; None: ids only.
            span_ms: times between which months have an embedding each; others share the outermost.
            options: shape and dropout.
        """
        super().__init__()
        width, items = options.width, len(platform)
        self.clock = options.clock
        self.platforms = int(platform.max(initial=0)) + 1
        self.months = (span_ms[1] - span_ms[0]) // (_DAY_MS * _MONTH_DAYS) + 1
        self.register_buffer("origin", torch.tensor(span_ms[0]))
        padded = np.concatenate([[0], np.asarray(platform, np.int64)])
        self.register_buffer("platform_of", torch.from_numpy(padded))  # (items + 1,)
        self.item = nn.Embedding(items + 1, width, padding_idx=0)
        self.bias = nn.Embedding(items + 1, 1)
        self.project: nn.Linear | None = None
        if text is not None:
            spread = float(np.sqrt((text**2).sum() / max(1, np.count_nonzero(text.any(axis=1))) / text.shape[1]))
            rows = np.concatenate([np.zeros((1, text.shape[1]), np.float32), text / max(spread, 1e-9)])
            self.register_buffer("text", torch.from_numpy(rows.astype(np.float32)), persistent=False)
            self.project = nn.Linear(text.shape[1], width, bias=False)
            nn.init.normal_(self.project.weight, std=text.shape[1] ** -0.5 * _ITEM_STD)
        self.platform = nn.Embedding(self.platforms, width)
        self.gap = nn.Embedding(_GAPS, width)
        self.month = nn.Embedding(self.months, width)
        self.place = nn.Embedding(options.max_events, width)
        self.norm_in = nn.LayerNorm(width)
        self.drop = nn.Dropout(options.dropout)
        self.blocks = nn.ModuleList(_Block(width, options.heads, options.dropout) for _ in range(options.layers))
        self.norm_out = nn.LayerNorm(width)
        self.heads = nn.ModuleList(nn.Linear(width, width) for _ in range(self.platforms))
        for embedding in (self.item, self.platform, self.gap, self.month, self.place):
            nn.init.normal_(embedding.weight, std=_ITEM_STD)
        nn.init.zeros_(self.item.weight[0])
        nn.init.zeros_(self.bias.weight)

    def items(self, index: Tensor) -> Tensor:
        """Return the vectors (..., width) of items, by index from 1."""
        vectors: Tensor = self.item(index)
        return vectors if self.project is None else vectors + self.project(self.text[index])

    def forward(self, item: Tensor, time: Tensor) -> Tensor:
        """Return the states (users, events, width) of (users, events) items and milliseconds.

        A state knows its own event and those before it, never one after: padding on the right changes nothing.
        """
        events = self.items(item) + self.platform(self.platform_of[item]) + self.place(torch.arange(item.shape[1]))
        if self.clock:
            days = torch.diff(time, dim=1, prepend=time[:, :1]).clamp(min=0) / _DAY_MS
            gap = torch.log2(1 + days).ceil().long().clamp(max=_GAPS - 1)
            month = ((time - self.origin) // (_DAY_MS * _MONTH_DAYS)).clamp(0, self.months - 1)
            events = events + self.gap(gap) + self.month(month)
        states = self.drop(self.norm_in(events))
        for block in self.blocks:
            states = block(states)
        found: Tensor = self.norm_out(states)
        return found

    def logits(self, states: Tensor, platform: int, index: Tensor) -> Tensor:
        """Return (states, items) logits of a platform's items as the next one there. `index`: (items,), from 1."""
        query: Tensor = self.heads[platform](states)
        found: Tensor = query @ self.items(index).T + self.bias(index).squeeze(-1)
        return found


_ITEM_STD: Final = 0.1


class _Block(nn.Module):
    """Causal self-attention and a layer of its own for each event, both on normed input."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.split = heads
        self.dropout = dropout
        self.norm = nn.LayerNorm(width)
        self.mixed = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.feed = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 2 * width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(2 * width, width),
        )
        self.drop = nn.Dropout(dropout)

    def forward(self, states: Tensor) -> Tensor:
        """Return (users, events, width) of the same."""
        users, events, width = states.shape
        parts = self.mixed(self.norm(states)).view(users, events, 3, self.split, width // self.split)
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # each (users, heads, events, width / heads)
        seen = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        states = states + self.drop(self.out(seen.transpose(1, 2).reshape(users, events, width)))
        mixed: Tensor = states + self.drop(self.feed(states))
        return mixed


def fit_sequences(
    sequences: Sequences,
    platform: NDArray[np.integer[Any]],
    *,
    text: NDArray[np.floating[Any]] | None,
    options: SequenceOptions,
    quality: Callable[[SequenceModel], float],
    report: Report,
) -> SequenceModel:
    """Train a model to foretell each event's successor; stop where `quality` (more is better) no longer rises.

    Args:
        sequences: what is learned from, whole: whatever is tested or validated on must not be in it.
        platform: (items,), the platform of each item from 0.
        text: (items, any width) text vectors; None: ids only.
        options: shape, steps and seed. The same seed gives the same weights on the same machine.
        quality: asked of the model in evaluation mode after each epoch.
        report: told as stage "sequence".

    Raises `DataError` when no sequence holds two events.
    """
    usable = np.flatnonzero(sequences.length > 1)
    if not len(usable):
        raise DataError(
            f"none of {len(sequences)} sequences holds two events",
            where="training sequences",
            expected="a user with an event and one after it",
            fix="Name more data.",
        )
    times = sequences.time[sequences.item > 0]
    seen = np.unique(sequences.item[sequences.item > 0])
    # Items nobody touched are never told apart from: their id says nothing yet, and need not learn to be unlikely.
    pools = [torch.from_numpy(seen[platform[seen - 1] == one]) for one in range(int(platform.max()) + 1)]
    with seeded(options.seed, options.threads) as random:
        model = SequenceModel(platform, text, (int(times.min()), int(times.max())), options)
        untouched = np.setdiff1d(np.arange(len(platform) + 1), seen)
        model.item.weight.data[untouched] = 0  # and stays so: the id of what nobody touched says nothing
        optimizer = torch.optim.AdamW(
            model.parameters(), options.learning_rate, weight_decay=options.weight_decay, fused=True
        )
        steps = options.epochs * -(-len(usable) // options.batch)
        pace = schedule(optimizer, steps)
        best, since, done = -np.inf, 0, 0
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        for _ in range(options.epochs):
            model.train()
            losses = []
            for rows in _batches(sequences.length, usable, options.batch, random):
                loss = _loss(model, sequences.take(rows), pools, options.negatives)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]  # torch ships no annotation
                nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
                optimizer.step()
                pace.step()
                losses.append(loss.item())
                done += 1
            model.eval()
            with torch.no_grad():
                found = quality(model)
            report("sequence", done, steps, {"loss": float(np.mean(losses)), "validation": found})
            if found > best:
                best, since = found, 0
                weights = {name: value.clone() for name, value in model.state_dict().items()}
            else:
                since += 1
            if since >= options.patience:
                break
        model.load_state_dict(weights)
        report("sequence", steps, steps, {"validation": best})
        return model.eval()


def _loss(model: SequenceModel, part: Sequences, pools: Sequence[Tensor], negatives: int) -> Tensor:
    """Return the mean cross-entropy of each event's successor among its platform's sample."""
    item, time = torch.from_numpy(part.item), torch.from_numpy(part.time)
    states = model(item[:, :-1], time[:, :-1])
    following = item[:, 1:]
    real = following > 0
    states, following = states[real], following[real]  # (transitions, width), (transitions,)
    asked = model.platform_of[following]
    losses = []
    for platform, pool in enumerate(pools):
        mine = (asked == platform).nonzero().squeeze(-1)
        if not len(mine):
            continue
        targets = following[mine]
        drawn = pool if negatives >= len(pool) else pool[torch.randint(len(pool), (negatives,))]
        query = model.heads[platform](states[mine])
        right = (query * model.items(targets)).sum(1, keepdim=True) + model.bias(targets)
        # The target itself may be drawn; the batch's other targets are no sample: the often touched would stand in it
        # more often than drawn.
        others = query @ model.items(drawn).T + model.bias(drawn).squeeze(-1)
        others = others.masked_fill(drawn[None, :] == targets[:, None], -1e4)
        losses.append((torch.logsumexp(torch.cat([right, others], dim=1), dim=1) - right.squeeze(1)).sum())
    return torch.stack(losses).sum() / len(following)


def _batches(
    length: NDArray[np.int64], usable: NDArray[np.int64], size: int, random: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """Yield batches of users with sequences of similar length, in random order and composition."""
    shuffled = random.permutation(usable)
    coarse = np.ceil(np.log2(length[shuffled]) * 2)  # half an octave
    ordered = shuffled[np.argsort(coarse, kind="stable")]
    for start in random.permutation(np.arange(0, len(ordered), size)):
        yield ordered[start : start + size]


@torch.no_grad()
def last_states(model: SequenceModel, sequences: Sequences) -> Tensor:
    """Return the state (users, width) after the last event of each sequence; zeros where there is none."""
    found = torch.zeros(len(sequences), model.norm_out.normalized_shape[0])
    for start in range(0, len(sequences), _SCORED_AT_ONCE):
        rows = np.arange(start, min(start + _SCORED_AT_ONCE, len(sequences)))
        part = sequences.take(rows)
        states = model(torch.from_numpy(part.item), torch.from_numpy(part.time))
        last = torch.from_numpy(np.maximum(part.length - 1, 0))
        present = torch.from_numpy((part.length > 0).astype(np.float32))
        found[start : start + len(rows)] = states[torch.arange(len(rows)), last] * present[:, None]
    return found
