"""Which item comes next, and on which platform's shelf: people with two stores in one history, ranked among strangers.

The protocol is ABXI's (Bian et al., WWW 2025), as its code does it. Users with events on both platforms have one mixed
sequence by time (at one time: by item id, the first platform's before the second's). The last event is tested, the last
but one validates, the earlier ones are learned from. The tested item is ranked among 999 others of its platform that
its user never touched, drawn at random, and again among all of those. Figures are given by the platform of the tested
item.

Every model is a **blend** of features of a person and an item: a conditional logit (McFadden 1974), a platform each,
fitted on the validation items among their own 999. What is ranked may read the item counts of the past up to the last
event that is known of the user, never a time after it; and never when the tested event happened.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import msgspec
import numpy as np
import torch
from joblib import Parallel, delayed
from rich.table import Table
from scipy import sparse
from scipy.optimize import minimize
from scipy.special import logsumexp

from trainer.fitting.frozen import frozen_vectors
from trainer.fitting.sequence import SequenceOptions, Sequences, fit_sequences, last_states
from trainer.measuring.measures import TOP, Interval, bootstrap_mean
from trainer.run.progress import silent
from xplat_stream.errors import DataError
from xplat_stream.event import item_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from trainer.fitting.sequence import SequenceModel
    from trainer.run.progress import Report
    from xplat_stream.replay import Recording

    Floats = NDArray[np.float32]
    Integers = NDArray[np.int64]

OURS: Final = "ours"
OURS_TIMELESS: Final = "ours, no item counts in time"
IDS: Final = "SASRec, ids only"
TEXT: Final = "text + ids"
NEIGHBORS: Final = "item-kNN"
POPULARITY: Final = "popularity"
LATELY: Final = "popularity lately"

TEST: Final = 1
VALIDATION: Final = 2
"""How many events from the end the asked one is."""

_DAY_MS: Final = 86_400_000
_LATELY_DAYS: Final = (5.0, 60.0, 200.0)
"""Fading times of the item counts: what is read about this week, this season, this year."""

_AGE_FEATURES: Final = ("days since last touched", "days since first touched")
_LATELY_FEATURES: Final = (*(f"count, fading in {days:g} days" for days in _LATELY_DAYS), *_AGE_FEATURES)
_NEVER_DAYS: Final = 4000.0
_MODELS: Final[dict[str, tuple[str, ...]]] = {
    POPULARITY: ("count",),
    LATELY: ("count", "never touched", *_LATELY_FEATURES),
    NEIGHBORS: ("neighbors",),
    IDS: ("ids",),
    TEXT: ("text + ids",),
    OURS_TIMELESS: ("text + ids", "neighbors", "count", "never touched"),
    OURS: ("text + ids", "neighbors", "count", "never touched", *_LATELY_FEATURES),
}
_RECENCY: Final = 0.8
"""Of item-kNN: an event counts so many times the next newer one."""

_SHRINK: Final = 5.0
"""Users whom a pair of items is taken to be touched by beside those who touched one of them."""

_LEAST_NEAR: Final = 3e-3
_LEAST_LATELY: Final = 1e-2
"""What a logarithm of nothing is taken of."""

_RIDGE: Final = 1e-3
_LEAST_SPREAD: Final = 1e-6
_STEPS: Final = 60
_AT_ONCE: Final = 128
_STOPPED_BY: Final = 2000


@dataclass(frozen=True, slots=True)
class RankingOptions:
    """What is measured, and with how much training."""

    negatives: int = 999
    """Items the asked one is ranked among, of its own platform."""
    seed: int = 0
    """Of the negatives and of the first model."""
    models: int = 3
    """Models with text, of a seed each, whose logits are averaged."""
    text_width: int = 128
    """Principal components that text vectors are cut to."""
    sequence: SequenceOptions = field(default_factory=SequenceOptions)


class Figures(msgspec.Struct, frozen=True):
    """One model on one platform's tested items; each with its 95 % interval over users. All in [0, 1]."""

    hit_rate: Interval
    """HR@10: how often the tested item is among the first ten."""
    ndcg: Interval
    """NDCG@10: 1 / log2(rank + 1) where it is, else 0."""
    reciprocal_rank: Interval
    """MRR: mean of 1 / rank."""


class Ranking(msgspec.Struct, frozen=True):
    """A finished measurement; `msgspec.json.encode` writes it."""

    name: str
    negatives: int
    seed: int
    users: dict[str, int]
    """Platform → users whose tested item is of it."""
    items: dict[str, int]
    """Platform → items."""
    sampled: dict[str, dict[str, Figures]]
    """Model → platform → figures among `negatives` others."""
    full: dict[str, dict[str, Figures]]
    """Model → platform → figures among all items of the platform that the user never touched."""
    gain: dict[str, dict[str, Interval]]
    """Model → platform → NDCG@10, sampled, of the model less that of `SASRec, ids only`, paired by user."""
    weights: dict[str, dict[str, dict[str, float]]]
    """Model → platform → feature → weight of a blend, for features in units of their spread."""
    cpu_seconds: dict[str, float]
    """Part → CPU seconds of this process."""

    def rows(self) -> list[tuple[str, str, str, Figures]]:
        """Return (model, platform, "sampled" or "full", figures), in the order they were measured."""
        return [
            (model, platform, kind, figures)
            for kind, found in (("sampled", self.sampled), ("full", self.full))
            for model, platforms in found.items()
            for platform, figures in platforms.items()
        ]


class Asked(NamedTuple):
    """One item asked of every user, with what was known before it."""

    known: Sequences
    wanted: Integers  # (users,), position of the asked item
    now: Integers  # (users,), milliseconds, of the last known event
    candidates: Integers  # (users, 1 + negatives), the asked item first


class LeaveOneOut(NamedTuple):
    """The log as the protocol cuts it."""

    platforms: tuple[str, ...]
    items: list[tuple[str, str]]
    """(platform, item id), by platform, then by id."""
    platform: Integers  # (items,), position in `platforms`
    users: list[str]
    touched: list[Integers]
    """Item positions in order of time, by user."""
    times: list[Integers]  # milliseconds
    train: Sequences
    validation: Asked
    test: Asked


def leave_one_out(recording: Recording, platforms: Sequence[str], options: RankingOptions) -> LeaveOneOut:
    """Cut a recording as the protocol says.

    A user counts with events on each of the platforms and three or more. Raises `DataError` where a platform has no
    event, no user counts, or a platform has fewer untouched items than `negatives`.
    """
    where = recording.name
    unknown = [platform for platform in platforms if platform not in recording.platforms]
    if unknown or len(set(platforms)) < 2:  # noqa: PLR2004 - transfer is from one to another
        raise DataError(
            f"no event of the platform {', '.join(unknown)}" if unknown else "fewer than two platforms",
            where=where,
            expected=f"two or more of {', '.join(recording.platforms)}",
            fix="Correct the platforms.",
        )
    order = {platform: position for position, platform in enumerate(platforms)}
    by_user: dict[str, list[tuple[int, int, str]]] = {}
    for line in recording.lines:
        if line.platform in order:
            by_user.setdefault(line.user, []).append((line.occurred_at, order[line.platform], line.item))
    both = {
        user: sorted(events)
        for user, events in sorted(by_user.items())
        if len({platform for _, platform, _ in events}) == len(order) and len(events) > VALIDATION
    }
    if not both:
        raise DataError(
            f"none of {len(by_user)} users has an event on each of {', '.join(platforms)}, and three or more",
            where=where,
            expected="users who are known on every platform",
            fix="Name other platforms, or a log whose user ids are linked.",
        )
    keys = sorted({event[1:] for events in both.values() for event in events})
    position = {key: place for place, key in enumerate(keys)}
    touched = [np.array([position[event[1:]] for event in events], np.int64) for events in both.values()]
    times = [np.array([event[0] for event in events], np.int64) for events in both.values()]
    platform = np.array([key[0] for key in keys], np.int64)
    names = [(platforms[key[0]], key[1]) for key in keys]

    def asked(back: int) -> Asked:
        known = _up_to(touched, times, back, options.sequence.max_events)
        return Asked(
            known,
            np.array([items[-back] for items in touched]),
            np.array([when[-back - 1] for when in times]),
            _candidates(touched, back, platform, names, options),
        )

    train = _up_to(touched, times, VALIDATION, options.sequence.max_events)
    return LeaveOneOut(
        tuple(platforms), names, platform, list(both), touched, times, train, asked(VALIDATION), asked(TEST)
    )


def _up_to(touched: Sequence[Integers], times: Sequence[Integers], back: int, longest: int) -> Sequences:
    return Sequences.of([items[:-back] for items in touched], [when[:-back] for when in times], longest)


def _candidates(
    touched: Sequence[Integers],
    back: int,
    platform: Integers,
    names: Sequence[tuple[str, str]],
    options: RankingOptions,
) -> Integers:
    """Draw for every user the asked item and others of its platform that the user never touched, not even later."""
    random = np.random.default_rng((options.seed, back))
    shelves = [np.flatnonzero(platform == one) for one in range(int(platform.max()) + 1)]
    found = np.empty((len(touched), 1 + options.negatives), np.int64)
    for row, items in enumerate(touched):
        strange = np.setdiff1d(shelves[platform[items[-back]]], items, assume_unique=False)
        if len(strange) < options.negatives:
            raise DataError(
                f"a user leaves {len(strange)} items of {names[items[-back]][0]} untouched",
                where="negatives",
                expected=f"{options.negatives} to rank the asked item among",
                fix="Ask for fewer negatives, or name more data.",
            )
        found[row] = np.concatenate([items[-back:][:1], random.choice(strange, options.negatives, replace=False)])
    return found


class Counts:
    """How often an item was touched in the training events: ever, and lately as of a moment."""

    def __init__(self, data: LeaveOneOut) -> None:
        real = data.train.item > 0
        items, times = data.train.item[real] - 1, data.train.time[real]
        order = np.lexsort((times, items))
        self._items, self._times = items[order], times[order]
        self.ever = np.bincount(items, minlength=len(data.items))
        self._start = np.concatenate([[0], np.cumsum(self.ever)])  # (items + 1,), an item's first event
        # One number an event that sorts by item, then by time: where an item stood at a moment is one binary search.
        self._origin, self._span = int(times.min()), int(times.max() - times.min()) + 2
        self._keys = self._items * self._span + (self._times - self._origin)
        self._faded = np.stack([self._fade(days) for days in _LATELY_DAYS])  # (fading times, events)

    def _fade(self, days: float) -> NDArray[np.float64]:
        """Return each item's faded count right after each of its events (events,)."""
        same = self._items[1:] == self._items[:-1]
        kept = np.exp(-np.maximum(np.diff(self._times), 0) / (days * _DAY_MS))  # of one item, times only rise
        found = np.ones(len(self._items))
        for event in np.flatnonzero(same):
            found[event + 1] += found[event] * kept[event]
        return found

    def lately(self, now: Integers, items: Integers) -> Floats:
        """Return (rows, k, features in the order of `_LATELY_FEATURES`) of items (rows, k) at moments (rows,)."""
        moment = np.clip(now - self._origin, -1, self._span - 2)[:, None]
        # The last event at or before the moment, of this item or, where it has none yet, of one before it.
        last = np.searchsorted(self._keys, items * self._span + moment, side="right") - 1
        begun = last >= self._start[items]
        last = np.maximum(last, 0)
        since = np.where(begun, (now[:, None] - self._times[last]) / _DAY_MS, _NEVER_DAYS)
        age = np.where(
            begun,
            (now[:, None] - self._times[np.minimum(self._start[items], len(self._times) - 1)]) / _DAY_MS,
            _NEVER_DAYS,
        )
        found = np.empty((*items.shape, len(_LATELY_FEATURES)), np.float32)
        for place, days in enumerate(_LATELY_DAYS):
            faded = np.where(begun, self._faded[place][last] * np.exp(-since / days), 0)
            found[..., place] = np.log(faded + _LEAST_LATELY)
        found[..., -2] = np.log1p(np.minimum(since, _NEVER_DAYS))
        found[..., -1] = np.log1p(np.minimum(age, _NEVER_DAYS))
        return found


class Neighbors:
    """Item-kNN: how alike an item is to those of the history, by the users they share; the newest count most."""

    def __init__(self, data: LeaveOneOut) -> None:
        present = _matrix(data.train, len(data.items), np.ones)
        present.data[:] = 1
        count = np.asarray(present.sum(axis=0)).ravel()
        shared = (present.T @ present).tocoo()
        other = shared.row != shared.col
        row, column = shared.row[other], shared.col[other]
        near = shared.data[other] / (np.sqrt(count[row] * count[column]) + _SHRINK)
        self._near = sparse.csr_matrix((near.astype(np.float32), (row, column)), shared.shape)

    def scores(self, asked: Asked, rows: Integers, items: Integers) -> Floats:
        """Return (rows, k) of users and items (rows, k)."""
        known = _matrix(asked.known.take(rows), self._near.shape[0], lambda length: _RECENCY ** np.arange(length)[::-1])
        found: Floats = np.take_along_axis((known @ self._near).toarray(), items, axis=1)
        return found


def _matrix(known: Sequences, items: int, weigh: Callable[[int], NDArray[np.float64]]) -> sparse.csr_matrix:
    """Return (users, items): the weight of each event, `weigh(length)` (events,), on its item."""
    rows = np.repeat(np.arange(len(known)), known.length)
    weight = np.concatenate([weigh(int(length)) for length in known.length])
    return sparse.csr_matrix((weight.astype(np.float32), (rows, known.item[known.item > 0] - 1)), (len(known), items))


class NextItem:
    """The mean logit of several sequence models."""

    def __init__(self, data: LeaveOneOut, models: Sequence[SequenceModel]) -> None:
        self._platform = data.platform
        self._models = models
        shelves = [np.flatnonzero(data.platform == one) for one in range(len(data.platforms))]
        self._shelves = [torch.from_numpy(shelf + 1) for shelf in shelves]
        self._place = np.empty(len(data.items), np.int64)  # (items,), position on its shelf
        for shelf in shelves:
            self._place[shelf] = np.arange(len(shelf))

    @torch.no_grad()
    def scores(self, asked: Asked, rows: Integers, items: Integers) -> Floats:
        """Return (rows, k) of users and items (rows, k) of one platform."""
        platform = int(self._platform[items[0, 0]])
        known = asked.known.take(rows)
        found = np.zeros(items.shape, np.float32)
        for model in self._models:
            whole = model.logits(last_states(model, known), platform, self._shelves[platform]).numpy()
            found += np.take_along_axis(whole, self._place[items], axis=1)
        return found / len(self._models)


class Features:
    """Everything that is known of a person and an item, by name."""

    def __init__(self, data: LeaveOneOut, ids: NextItem, text: NextItem) -> None:
        self._counts, self._neighbors = Counts(data), Neighbors(data)
        self._nets = {"ids": ids, "text + ids": text}
        self.names = ("count", "never touched", "neighbors", *self._nets, *_LATELY_FEATURES)

    def of(self, asked: Asked, rows: Integers, items: Integers) -> Floats:
        """Return (rows, k, features in the order of `names`) of users (rows,) and items (rows, k) of one platform."""
        ever = self._counts.ever[items]
        near = self._neighbors.scores(asked, rows, items)
        parts = [np.log(ever + 0.5), ever == 0, np.log(near + _LEAST_NEAR)]
        parts += [net.scores(asked, rows, items) for net in self._nets.values()]
        lately = self._counts.lately(asked.now[rows], items)
        return np.concatenate([np.stack(parts, axis=-1).astype(np.float32), lately], axis=-1)


def fit_blend(features: Floats) -> Floats:
    """Return the weights of a conditional logit: of (users, choices, features), the first choice was taken.

    A little ridge, in units of each feature's spread, keeps features that say the same from growing against each other.
    """
    spread = np.maximum(features.std(axis=(0, 1)), _LEAST_SPREAD)
    scaled = (features - features.mean(axis=(0, 1))) / spread

    def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        utility = scaled @ weights.astype(np.float32)  # (users, choices)
        whole = logsumexp(utility, axis=1, keepdims=True)
        share = np.exp(utility - whole)
        share[:, 0] -= 1
        slope = np.tensordot(share, scaled, 2).astype(np.float64) / len(scaled)
        value = float((whole[:, 0] - utility[:, 0]).mean())
        return value + _RIDGE * float(weights @ weights), slope + 2 * _RIDGE * weights

    fitted = minimize(loss, np.zeros(len(spread)), jac=True, method="L-BFGS-B", options={"maxiter": _STEPS}).x
    return np.asarray(fitted / spread, np.float32)


def ranks_of(scores: Floats, wanted: Floats, counted: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
    """Return the rank, from 1, of each row's `wanted` score (rows,) among the others (rows, k), or those `counted`.

    A tie counts half: what a random order would give on average.
    """
    better = (scores > wanted[:, None]) + 0.5 * (scores == wanted[:, None])
    return np.asarray(1 + (better if counted is None else better * counted).sum(axis=1), np.float64)


def gains(ranks: NDArray[np.float64], top: int = TOP) -> NDArray[np.float64]:
    """Return NDCG@top of single items at these ranks from 1."""
    return np.where(ranks <= top, 1 / np.log2(ranks + 1), 0.0)


def figures(ranks: NDArray[np.float64], top: int = TOP) -> Figures:
    """Return the figures of tested items' ranks from 1, one a user."""
    hits = (ranks <= top).astype(np.float64)
    return Figures(bootstrap_mean(hits), bootstrap_mean(gains(ranks, top)), bootstrap_mean(1 / ranks))


def principal(vectors: Floats, width: int) -> Floats:
    """Return the first `width` principal components of the rows that are not zero; zero rows stay zero."""
    known = vectors.any(axis=1)
    centered = vectors[known] - vectors[known].mean(axis=0) if known.any() else vectors[known]
    _, axes = np.linalg.eigh(centered.T @ centered)  # by rising eigenvalue
    found = np.zeros((len(vectors), min(width, vectors.shape[1])), np.float32)
    found[known] = centered @ axes[:, ::-1][:, :width]
    return found


def rank_items(
    recording: Recording,
    platforms: Sequence[str] = ("food", "kitchen"),
    *,
    options: RankingOptions | None = None,
    vectors: Callable[[Sequence[str]], NDArray[np.floating[Any]]] = frozen_vectors,
    report: Report = silent,
) -> Ranking:
    """Train and measure every model on the same users, items and negatives.

    Args:
        recording: events of linked users, and what is known of the items.
        platforms: two or more; ties in time go by their order here.
        options: what is measured, and with how much training.
        vectors: texts → (texts, any width), zeros for no text; as it comes: the frozen encoder's, cached on disk.
        report: told as stages "sequence" and "ranking".

    Raises `DataError` as `leave_one_out` and the encoder do.
    """
    options = options or RankingOptions()
    data = leave_one_out(recording, platforms, options)
    laps = _Laps()
    texts = [item_text(recording.items[key]) if key in recording.items else "" for key in data.items]
    text = principal(np.asarray(vectors(texts), np.float32), options.text_width)
    laps.end("vectors")

    # Side by side inside `joblib.parallel_config(n_jobs=…)`; the first knows ids only.
    fit = partial(_fitted, data, options.sequence, report)
    found = Parallel()(
        delayed(fit)(seed, None if one < 0 else text)
        for one, seed in [(-1, options.seed), *((one, options.seed + one) for one in range(options.models))]
    )
    models, seconds = zip(*found, strict=True)
    ids, ours = NextItem(data, models[:1]), NextItem(data, models[1:])
    laps.found |= {IDS: seconds[0], TEXT: round(sum(seconds[1:]), 1)}
    laps.begin()
    features = Features(data, ids, ours)
    weights = [_weights(data, features, platform) for platform in range(len(platforms))]
    laps.end("blends")
    rows = [_asked_on(data, data.test, platform) for platform in range(len(platforms))]
    ranks = [_rank(data, features, weights[platform], rows[platform], report) for platform in range(len(platforms))]
    laps.end("ranking")
    return Ranking(
        name=recording.name,
        negatives=options.negatives,
        seed=options.seed,
        users={name: len(rows[platform]) for platform, name in enumerate(platforms)},
        items={name: int((data.platform == platform).sum()) for platform, name in enumerate(platforms)},
        sampled=_by_model(platforms, ranks, lambda found, model: figures(found[0, model])),
        full=_by_model(platforms, ranks, lambda found, model: figures(found[1, model])),
        gain=_by_model(
            platforms,
            ranks,
            lambda found, model: bootstrap_mean(gains(found[0, model]) - gains(found[0, list(_MODELS).index(IDS)])),
        ),
        weights={
            model: {
                name: {
                    feature: round(float(weight), 4)
                    for feature, weight in zip(features.names, weights[platform][:, place], strict=True)
                    if feature in chosen
                }
                for platform, name in enumerate(platforms)
            }
            for place, (model, chosen) in enumerate(_MODELS.items())
            if len(chosen) > 1
        },
        cpu_seconds=laps.found,
    )


def _fitted(
    data: LeaveOneOut, options: SequenceOptions, report: Report, seed: int, text: Floats | None
) -> tuple[SequenceModel, float]:
    """Return a model, which looks at the clock if it reads texts, and the CPU seconds it took."""
    begun = time.process_time()
    model = fit_sequences(
        data.train,
        data.platform,
        text=text,
        options=replace(options, seed=seed, clock=text is not None),
        quality=lambda model: validation_ndcg(data, model),
        report=report,
    )
    return model, round(time.process_time() - begun, 1)


def validation_ndcg(data: LeaveOneOut, model: SequenceModel) -> float:
    """Return a model's NDCG@10 on the validation items, mean over two thousand users: enough to stop by."""
    net = NextItem(data, [model])
    step = -(-len(data.users) // _STOPPED_BY)
    found = []
    for platform in range(len(data.platforms)):
        for rows in _chunks(_asked_on(data, data.validation, platform)[::step]):
            scores = net.scores(data.validation, rows, data.validation.candidates[rows])
            found.append(gains(ranks_of(scores[:, 1:], scores[:, 0])))
    return float(np.concatenate(found).mean())


def _asked_on(data: LeaveOneOut, asked: Asked, platform: int) -> Integers:
    """Return the users whose asked item is of a platform, by when they were asked: those near in time lie together."""
    mine = np.flatnonzero(data.platform[asked.wanted] == platform)
    return mine[np.argsort(asked.now[mine], kind="stable")]


def _chunks(rows: Integers) -> Iterator[Integers]:
    for start in range(0, len(rows), _AT_ONCE):
        yield rows[start : start + _AT_ONCE]


def _weights(data: LeaveOneOut, features: Features, platform: int) -> Floats:
    """Return (features, models): a single feature ranks as it is, several are blended on the validation items."""
    asked, rows = data.validation, _asked_on(data, data.validation, platform)
    found = np.zeros((len(features.names), len(_MODELS)), np.float32)
    known = [features.of(asked, part, asked.candidates[part]) for part in _chunks(rows)]
    for model, names in enumerate(_MODELS.values()):
        chosen = [features.names.index(name) for name in names]
        blended = len(chosen) > 1 and known
        found[chosen, model] = fit_blend(np.concatenate([part[..., chosen] for part in known])) if blended else 1
    return found


def _rank(
    data: LeaveOneOut, features: Features, weights: Floats, rows: Integers, report: Report
) -> NDArray[np.float64]:
    """Return the ranks of the tested items of users (rows,): (sampled and full, models, rows)."""
    asked = data.test
    found = np.zeros((2, len(_MODELS), len(rows)))
    shelf = np.flatnonzero(data.platform == data.platform[asked.wanted[rows[0]]]) if len(rows) else rows
    done = 0
    for part in _chunks(rows):
        here = slice(done, done + len(part))
        items = np.broadcast_to(shelf, (len(part), len(shelf)))
        scores = features.of(asked, part, items) @ weights  # (rows, shelf, models)
        places = np.searchsorted(shelf, asked.candidates[part])  # (rows, 1 + negatives)
        strange = np.ones((len(part), len(shelf)), bool)
        for row, user in enumerate(part):
            strange[row, np.searchsorted(shelf, np.intersect1d(data.touched[user], shelf))] = False
        for model in range(len(_MODELS)):
            mine = scores[..., model]
            sampled = np.take_along_axis(mine, places, axis=1)
            found[0, model, here] = ranks_of(sampled[:, 1:], sampled[:, 0])
            found[1, model, here] = ranks_of(mine, sampled[:, 0], strange)
        done += len(part)
        report("ranking", done, len(rows), {})
    return found


Found = TypeVar("Found")


def _by_model(
    platforms: Sequence[str],
    ranks: Sequence[NDArray[np.float64]],
    of: Callable[[NDArray[np.float64], int], Found],
) -> dict[str, dict[str, Found]]:
    """Return model → platform → what `of` says of the platform's (sampled and full, models, rows) and the model."""
    return {
        name: {platform: of(found, model) for platform, found in zip(platforms, ranks, strict=True)}
        for model, name in enumerate(_MODELS)
    }


class _Laps:
    """CPU seconds of this process, from the end of one part, or from `begin`, to that of the next."""

    def __init__(self) -> None:
        self.found: dict[str, float] = {}
        self.begin()

    def begin(self) -> None:
        self._at = time.process_time()

    def end(self, part: str) -> None:
        now = time.process_time()
        self.found[part], self._at = round(now - self._at, 1), now


def render(ranking: Ranking) -> Table:
    """Return a table of all figures: value and 95 % interval."""
    table = Table(
        title=f"{ranking.name}: 1 tested item among {ranking.negatives} others, and among all", title_justify="left"
    )
    for heading in ("model", "platform", "among"):
        table.add_column(heading)
    for heading in ("HR@10", "NDCG@10", "MRR"):
        table.add_column(heading, justify="right")
    for model, platform, among, found in ranking.rows():
        shown = [
            f"{one.value:.3f} [{one.low:.3f}, {one.high:.3f}]"
            for one in (found.hit_rate, found.ndcg, found.reciprocal_rank)
        ]
        table.add_row(model, platform, among, *shown)
    return table
