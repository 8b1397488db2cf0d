"""Training of the head, on cached vectors or together with the encoder's projection: seconds, not minutes.

Member by member: BCE, AdamW, warm-up and cosine, early stopping on users or times that were held out. The linear branch
is fitted by itself to convergence, and how far it is believed is chosen, like the temperature, on what was held out.

Windows lose events and whole platforms at random while training, so that no score hangs on one event and a person
known on one platform only is scored as well as can be. Beside the labels the user vector learns to lie near the texts
the user touches next, in-batch, which keeps it in the space of the item vectors.

While the first member is trained on a new encoder, the projection in front of the cached states of the transformer is
trained with it. Everything after that, and every later refresh, reads fixed vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.data.compact import since_newest
from trainer.data.examples import last_of_each, thinned
from trainer.networks.head import Head, HeadShape, Member, Window
from trainer.networks.losses import info_nce, parent_loss, prior_logits
from trainer.networks.self_training import with_read_labels
from trainer.run.schedule import Patience, schedule, seeded

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from trainer.data.compact import Compact
    from trainer.data.examples import Examples
    from trainer.data.study import Cuts
    from trainer.data.texts import TextTable
    from trainer.run.options import TrainOptions
    from trainer.run.progress import Report

_USER_WEIGHT: Final = 0.1
"""Of the user-vector loss: enough to place the vector, too little to cost the labels anything."""

_CONTRAST: Final = 0.1
"""Temperature of the contrast between the next text and the other users' next texts."""

_TEMPERATURES: Final = np.geomspace(0.25, 4.0, 49)
_SHARES: Final = (0.5, 0.3, 0.0)
"""Of the linear branch in the answer, the most believed first: half of it was best on real events, by a little."""

_PENALTIES: Final = (3.0, 10.0, 30.0, 100.0)
"""Half of it times the squared weights of the linear branch is added to its loss."""

_LINEAR_ROWS: Final = 20_000
_NEWTON_STEPS: Final = 60
_PROBE_STEPS: Final = 150
_NAMED_WEIGHT: Final = 0.3
"""Of the labels that texts name themselves, while the projection is trained: it must keep them apart."""

_STEPS_AN_EPOCH: Final = 32
_SMALL_BATCH: Final = 16
"""A small log is read in smaller steps, down to this: a head needs some hundred steps, however few the examples."""

_COUNTING_LR: Final = 10.0
"""Times the learning rate, for the counting branch: few weights, each of which has to move far."""

_THREADS: Final = 1
"""The head's operators are too small to split: measured 5 s on one core and 8 s on two; 25 s on two busy ones."""

_EVALUATION_BATCH: Final = 512


@dataclass(frozen=True, slots=True)
class LabelledWindows:
    """Windows and what came after them: what a head is fitted on."""

    inputs: Compact
    targets: NDArray[np.float32]  # (windows, labels)
    next_texts: NDArray[np.int32]  # (windows, texts), text indices, 0 = none
    weights: NDArray[np.float32]  # (windows,)
    last: NDArray[np.int64]  # (users,), the row of each user's last window

    @classmethod
    def of_cuts(cls, cuts: Cuts) -> LabelledWindows:
        """Take them from a study."""
        return cls(cuts.inputs, cuts.targets, cuts.next_texts, cuts.weights, last_of_each(cuts.user))

    @classmethod
    def of_examples(cls, examples: Examples) -> LabelledWindows:
        """Take them from a log, as a release is trained on it."""
        last = last_of_each(np.array(examples.users))
        return cls(examples.inputs, examples.targets, examples.next_texts, examples.weights, last)

    def __len__(self) -> int:
        return len(self.targets)


class Vectors(Protocol):
    """Where the vectors of texts come from while a member is trained."""

    def __call__(self, texts: NDArray[np.int64]) -> Tensor:
        """Return (texts, width) of distinct text indices; index 0 is the zero vector."""

    def groups(self, rate: float) -> Iterator[dict[str, Any]]:
        """Yield what is trained along, as the optimizer's groups. `rate`: the head's learning rate."""


class FixedVectors:
    """Vectors that stay as they are. `table`: `trainer.data.compact.vector_table`."""

    def __init__(self, table: NDArray[np.float16]) -> None:
        self._table = torch.from_numpy(table)

    def __call__(self, texts: NDArray[np.int64]) -> Tensor:
        """See `Vectors`."""
        return self._table[torch.from_numpy(texts)].to(torch.float32)

    def groups(self, rate: float) -> Iterator[dict[str, Any]]:  # noqa: ARG002 - of nothing
        """See `Vectors`."""
        return iter(())


def views_of_platforms(platforms: int) -> list[set[int]]:
    """Return the views of a window that are trained on beside the whole: each platform alone, and each one missing."""
    everything = set(range(1, platforms + 1))
    alone = [{platform} for platform in everything]
    return [] if platforms < 2 else alone + [everything - one for one in alone if platforms > 2]  # noqa: PLR2004


class Fitting(NamedTuple):
    """What a head is fitted on, and how."""

    train: LabelledWindows
    tune: LabelledWindows
    """Of other users, or later times: says when to stop, and calibrates."""
    texts: TextTable
    platforms: int
    """How many are known."""
    options: TrainOptions
    report: Report
    views: Sequence[set[int]] | None = None
    """The platforms, by index from 1, that windows are reduced to at times; by default `views_of_platforms`."""
    target: frozenset[int] = frozenset()
    """See `HeadShape`."""
    families: Sequence[tuple[int, ...]] = ()
    """See `Taxonomy.families`; read where `options.parents` asks for them."""

    def seen(self) -> Sequence[set[int]]:
        """Return the views of a window that are trained on beside the whole."""
        return views_of_platforms(self.platforms) if self.views is None else self.views

    def new_head(self) -> Head:
        """Return an untrained head whose prior is the frequency of the training labels."""
        targets, options = self.train.targets, self.options
        prior = prior_logits(np.average(targets, axis=0, weights=self.train.weights))
        shape = HeadShape(targets.shape[1], self.platforms, options.width, dropout=options.dropout, target=self.target)
        return Head(shape, prior, options.members)


def fit_head(fitting: Fitting, table: NDArray[np.float16], begun: Head | None = None) -> Head:
    """Train a head on fixed vectors and calibrate it.

    `table`: the vectors, `trainer.data.compact.vector_table`; `begun`: a head of which the first member and the
    labels are trained.
    """
    with seeded(fitting.options.seed, _THREADS) as random:
        head = begun or fitting.new_head()
        if begun is None:
            _fit_evidence(head, table, fitting.texts)
            if fitting.options.self_training:
                _fit_evidence(head, table, with_read_labels(fitting.texts, head, table))
        vectors = FixedVectors(table)
        for number in range(0 if begun is None else 1, len(head.members)):
            fit_member(head, number, fitting, vectors, random)
        _fit_linear(head, fitting, table)
        _calibrate(head, fitting.tune, table)
        fitting.report("head", 1, 1, {"temperature": head.temperature.item(), "linear": head.share.item()})
        return head.eval()


def fit_member(
    head: Head, number: int, fitting: Fitting, vectors: Vectors, random: np.random.Generator, *, named: bool = False
) -> None:
    """Train one member, and what `vectors` brings along; if `named`, also the layer that reads labels from texts."""
    member = cast("Member", head.members[number])
    train, options = fitting.train, fitting.options
    trained = nn.ModuleList([member, head.evidence] if named else [member])
    kept = nn.ModuleList([trained, vectors] if isinstance(vectors, nn.Module) else [trained])
    epochs = max(1, min(options.head_epochs, round(options.head_windows_shown / len(train))))
    size = max(_SMALL_BATCH, min(options.head_batch, len(train) // _STEPS_AN_EPOCH))
    steps = epochs * -(-len(train) // size)
    counting = member.counting()
    chosen = set(map(id, counting))
    others = [parameter for parameter in trained.parameters() if id(parameter) not in chosen]
    optimizer = torch.optim.AdamW(
        [
            {"params": others, "lr": options.head_lr},
            {"params": counting, "lr": options.head_lr * _COUNTING_LR},
            *vectors.groups(options.head_lr),
        ],
        weight_decay=options.weight_decay,
        fused=True,
    )
    pace = schedule(optimizer, steps, warm_up=options.warm_up)
    patience = Patience(kept, options.head_patience)
    metrics: dict[str, float] = {}
    done = 0
    for _ in range(epochs):
        head.train()
        for rows in _batches(train.inputs, size, random):
            step = _Step.of(fitting, rows, random)
            loss = step.loss(head, member, vectors, fitting.texts if named else None)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]  # torch ships no annotation
            nn.utils.clip_grad_norm_(kept.parameters(), 1.0)
            optimizer.step()
            pace.step()
            done += 1
            metrics["loss"] = loss.item()
            fitting.report("head", number * steps + done, len(head.members) * steps, metrics)
        metrics["validation"] = _validation(head, member, fitting.tune, vectors)
        if patience.enough(metrics["validation"]):
            break
    patience.restore()
    head.eval()


@torch.no_grad()
def score_windows(head: Head, inputs: Compact, table: NDArray[np.float16]) -> NDArray[np.float32]:
    """Return calibrated scores (windows, labels)."""
    head.eval()
    parts = [head(*map(torch.from_numpy, inputs.with_vectors(table, rows)))[0].numpy() for rows in _chunks(inputs)]
    return np.concatenate(parts) if parts else np.zeros((0, len(head.prior)), np.float32)


class _Step(NamedTuple):
    """Some windows as a training step sees them, and what came after them."""

    windows: _Thinned
    targets: Tensor  # (windows, labels)
    weights: Tensor  # (windows,), sum 1
    following: NDArray[np.int32]  # (windows,), text index of what came first, 0 = none
    families: Tensor  # (parents, labels), 1 = the label is the parent or below it
    parents: float

    @classmethod
    def of(cls, fitting: Fitting, rows: NDArray[np.int64], random: np.random.Generator) -> _Step:
        """Draw what is hidden of these windows."""
        train = fitting.train
        weights = torch.from_numpy(train.weights[rows])
        families = torch.zeros(len(fitting.families), train.targets.shape[1])
        for row, family in enumerate(fitting.families):
            families[row, list(family)] = 1
        return cls(
            _thinned(train.inputs, rows, fitting, random),
            torch.from_numpy(train.targets[rows]),
            weights / weights.sum(),
            train.next_texts[rows, 0],
            families,
            fitting.options.parents if len(families) else 0.0,
        )

    def loss(self, head: Head, member: Member, vectors: Vectors, named: TextTable | None) -> Tensor:
        """Return BCE of the labels, that of their parents, the contrast of user vectors, the labels that texts name."""
        windows, following = self.windows, self.following
        needed, place = np.unique(np.concatenate([windows.text.ravel(), following]), return_inverse=True)
        found = vectors(needed.astype(np.int64))
        inside = found[torch.from_numpy(place[: windows.text.size].reshape(windows.text.shape))]
        window = head.window(inside, *map(torch.from_numpy, (windows.platform, windows.action, windows.age)))
        logits, user = member(window)
        labels = functional.binary_cross_entropy_with_logits(head.prior + logits, self.targets, reduction="none")
        each = labels.mean(1)
        if self.parents:
            each = each + self.parents * parent_loss(head.prior + logits, self.targets, self.families)
        loss = (each * self.weights).sum()
        if named is not None:
            known = np.flatnonzero((needed > 0) & named.own_known[np.maximum(needed, 1) - 1])
            if len(known):
                guess = head.evidence(found[torch.from_numpy(known)] * head.shape.width**0.5)
                own = torch.from_numpy(named.own[needed[known] - 1])
                loss = loss + _NAMED_WEIGHT * functional.binary_cross_entropy_with_logits(guess, own)
        with_text = np.flatnonzero(following)
        if len(with_text) < 2:  # noqa: PLR2004 - a contrast needs another one
            return loss
        items = found[torch.from_numpy(place[windows.text.size :][with_text])]  # (windows with a next text, width)
        contrast = info_nce(user[torch.from_numpy(with_text)], items, torch.from_numpy(following[with_text]), _CONTRAST)
        return loss + _USER_WEIGHT * contrast / len(head.prior)


def _fit_evidence(head: Head, table: NDArray[np.float16], texts: TextTable) -> None:
    """Teach the label layer what texts of known label look like: a logistic regression on their vectors."""
    known = np.flatnonzero(texts.own_known)
    if not len(known):
        return
    vectors = torch.from_numpy(table[known + 1].astype(np.float32)) * head.shape.width**0.5  # (known texts, width)
    targets = torch.from_numpy(texts.own[known])
    head.evidence.bias.data.copy_(prior_logits(texts.own[known].mean(axis=0)))
    optimizer = torch.optim.AdamW(head.evidence.parameters(), lr=0.03, weight_decay=0.1)
    for _ in range(_PROBE_STEPS):
        loss = functional.binary_cross_entropy_with_logits(head.evidence(vectors), targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch ships no annotation
        optimizer.step()


def _fit_linear(head: Head, fitting: Fitting, table: NDArray[np.float16]) -> None:
    """Fit the linear branch on every user's last window, as a whole and under each view (L-BFGS, ridge penalty)."""
    train, tune, views = fitting.train, fitting.tune, fitting.seen()
    rows = thinned(train.last, _LINEAR_ROWS)
    whole = train.inputs.take(rows)
    shown = [whole, *(whole.seeing(np.array(sorted(view), np.int32)) for view in views)]
    inputs = torch.cat([_linear_features(head, part, table) for part in shown])
    targets = torch.from_numpy(np.concatenate([train.targets[rows]] * len(shown)))
    weights = torch.from_numpy(
        np.concatenate([np.full(len(rows), 1.0 if part is whole else 1.0 / len(views), np.float32) for part in shown])
    )
    held_out, wanted = _linear_features(head, tune.inputs, table), torch.from_numpy(tune.targets)
    layer = head.linear.out
    best = np.inf
    kept = {name: value.clone() for name, value in layer.state_dict().items()}
    layer.bias.data.copy_(head.prior)
    for penalty in reversed(_PENALTIES):  # from stiff to loose, each starting where the one before ended
        optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=_NEWTON_STEPS, line_search_fn="strong_wolfe")

        def closure(penalty: float = penalty, optimizer: torch.optim.Optimizer = optimizer) -> Tensor:
            optimizer.zero_grad()
            each = functional.binary_cross_entropy_with_logits(layer(inputs), targets, reduction="none").sum(1)
            loss = (each * weights).sum() + penalty / 2 * layer.weight.square().sum()
            loss.backward()  # type: ignore[no-untyped-call]  # torch ships no annotation
            return loss

        optimizer.step(closure)  # type: ignore[no-untyped-call]  # torch ships no annotation
        with torch.no_grad():
            loss = functional.binary_cross_entropy_with_logits(layer(held_out), wanted).item()
        if loss < best:
            best = loss
            kept = {name: value.clone() for name, value in layer.state_dict().items()}
    layer.load_state_dict(kept)


@torch.no_grad()
def _linear_features(head: Head, inputs: Compact, table: NDArray[np.float16]) -> Tensor:
    return torch.cat([head.linear.features(window) for window in _windows(head, inputs, table)])


def _windows(head: Head, inputs: Compact, table: NDArray[np.float16]) -> Iterator[Window]:
    """Yield windows as members and linear branch read them, some hundred at a time."""
    for rows in _chunks(inputs):
        yield head.window(*map(torch.from_numpy, inputs.with_vectors(table, rows)))


@torch.no_grad()
def _calibrate(head: Head, tune: LabelledWindows, table: NDArray[np.float16]) -> None:
    """Choose how far the linear branch is believed, and the temperature, on what was held out.

    It is believed as far as what was held out does not speak against by more than a standard error of the difference
    (Breiman et al. 1984): few windows decide, and the branch errs differently from the members.
    """
    head.eval()
    windows = list(_windows(head, tune.inputs, table))
    residuals, losses = {}, {}
    for share in _SHARES:
        head.share.fill_(share)
        residuals[share] = torch.cat([head.residual(window)[0] for window in windows])
        losses[share] = functional.binary_cross_entropy_with_logits(
            head.prior + residuals[share], torch.from_numpy(tune.targets), reduction="none"
        ).mean(1)  # (windows,)
    best = min(losses.values(), key=lambda loss: float(loss.mean()))
    share = next(
        share
        for share, loss in losses.items()
        if (loss - best).mean() <= (loss - best).std(correction=0) / max(1, len(best)) ** 0.5
    )
    head.share.fill_(share)
    at = [_bce(head.prior + residuals[share] / temperature, tune.targets) for temperature in _TEMPERATURES]
    head.temperature.fill_(float(_TEMPERATURES[int(np.argmin(at))]))


class _Thinned(NamedTuple):
    """Some windows as a training step sees them."""

    text: NDArray[np.int32]
    platform: NDArray[np.int32]
    action: NDArray[np.int32]
    age: NDArray[np.float32]


def _thinned(inputs: Compact, rows: NDArray[np.int64], fitting: Fitting, random: np.random.Generator) -> _Thinned:
    """Hide events at random; reduce some windows to a view, or make one platform one the release does not know."""
    views, options, platforms = fitting.seen(), fitting.options, fitting.platforms
    longest = max(1, int(inputs.length[rows].max(initial=1)))
    text, platform = inputs.text[rows, :longest], inputs.platform[rows, :longest]
    action, age = inputs.action[rows, :longest], inputs.age[rows, :longest]
    present = action > 0
    if views:
        shown = np.zeros((len(views), platforms + 1), np.bool_)
        for number, view in enumerate(views):
            shown[number, sorted(view)] = True
        seen = shown[random.integers(0, len(views), len(rows))]  # (windows, platforms + 1)
        reduced = present & np.take_along_axis(seen, platform, axis=1)
        chosen = (random.random(len(rows)) < options.platform_dropout) & reduced.any(axis=1)
        present = np.where(chosen[:, None], reduced, present)
        age = since_newest(age, present)
    drawn = random.integers(1, platforms + 1, (len(rows), 1))
    unknown = (platform == drawn) & (random.random((len(rows), 1)) < options.platform_dropout / 6)
    kept = present & (random.random(action.shape) >= options.event_dropout)
    return _Thinned(
        text, np.where(unknown, 0, platform).astype(np.int32), np.where(kept, action, 0).astype(np.int32), age
    )


def _batches(inputs: Compact, size: int, random: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Yield batches of windows of similar length, in random order and composition."""
    shuffled = random.permutation(len(inputs.length))
    coarse = np.ceil(np.log2(np.maximum(inputs.length[shuffled], 1)) * 2)  # half an octave
    ordered = shuffled[np.argsort(coarse, kind="stable")]
    starts = np.arange(0, len(ordered), size)
    for start in random.permutation(starts):
        yield ordered[start : start + size]


def _chunks(inputs: Compact) -> Iterator[NDArray[np.int64]]:
    rows = np.arange(len(inputs.length))
    for start in range(0, len(rows), _EVALUATION_BATCH):
        yield rows[start : start + _EVALUATION_BATCH]


@torch.no_grad()
def _validation(head: Head, member: Member, tune: LabelledWindows, vectors: Vectors) -> float:
    """Return the mean loss a label of the held-out windows."""
    head.eval()
    logits = []
    for rows in _chunks(tune.inputs):
        longest = max(1, int(tune.inputs.length[rows].max(initial=1)))
        text, platform, action, age = (array[rows, :longest] for array in tune.inputs[:4])
        needed, place = np.unique(text, return_inverse=True)
        inside = vectors(needed.astype(np.int64))[torch.from_numpy(place.reshape(text.shape))]
        window = head.window(inside, *map(torch.from_numpy, (platform, action, age)))
        logits.append(head.prior + member(window)[0])
    return _bce(torch.cat(logits), tune.targets)


def _bce(logits: Tensor, targets: NDArray[np.float32]) -> float:
    return functional.binary_cross_entropy_with_logits(logits, torch.from_numpy(targets)).item()
