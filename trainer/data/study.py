"""A log as an experiment sees it: every user's history, and cuts of it whose outcome is known.

A **task** says what is to be foretold: the labels of a user's next few labelled events, on some platforms or on all.
A **cut** is a moment of a user: the window holds what happened strictly before it, the target what came from it on.
The last cut of a user is the one that is evaluated; all earlier ones are for training, of *other* users' models only.
Windows are folded by the library's own `BehaviorWindow`, so an experiment reads what a worker would have read.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, NamedTuple, Self

import numpy as np

from trainer.data.compact import compact
from trainer.data.examples import NEXT_TEXTS, Windows, spread
from trainer.data.histories import Histories, History, Log, gather
from trainer.data.texts import bit_positions
from xplat_stream.errors import DataError
from xplat_stream.window import BehaviorWindow, WindowSpec

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from numpy.typing import NDArray

    from trainer.data.compact import Compact
    from trainer.data.texts import TextTable
    from xplat_stream.event import Event
    from xplat_stream.taxonomy import Taxonomy

__all__ = [
    "A_ONLY",
    "B_ONLY",
    "EVERYTHING",
    "FOLDS",
    "NEXT_TEXTS",
    "Cuts",
    "History",
    "Study",
    "Task",
    "build_study",
    "cut_study",
    "earlier",
    "fold_of",
    "target_platforms",
]

A_ONLY: Final = "A only"
B_ONLY: Final = "B only"
EVERYTHING: Final = "A+B"
"""The views of a window: the source platforms, the target platforms, all there are."""

_MAX_EVENTS: Final = 256
_LAST_CUT_WEIGHT: Final = 3.0
"""The last cut of a training user is the kind of moment that is evaluated."""


@dataclass(frozen=True, slots=True)
class Task:
    """What is foretold, of whom. The defaults on `target=("beauty",)` are the task of DESIGN's reference recording."""

    target: tuple[str, ...] = ()
    """Platforms whose labels are foretold; none: all."""
    source: tuple[str, ...] = ()
    """Platforms that the target is foretold from alone, in view A; none: all that are not the target's."""
    label_events: int = 5
    """How many labelled events ahead a target looks; a user evaluated has that many."""
    min_history: int = 3
    """Events before the cut on the source platforms; on any where no target is named."""
    min_label_users: int = 30
    """Evaluated users whose target names a label; a label of fewer is left out."""
    max_cuts: int = 64
    """Cuts of a user at the most."""
    max_examples: int = 200_000
    """Cuts of all users at the most, spread evenly; the last cut of a user is always kept."""


@dataclass(frozen=True, slots=True)
class Cuts:
    """Moments of users, with the window before each and the target after it."""

    user: NDArray[np.int64]  # (cuts,), position in Study.histories
    before: NDArray[np.int64]  # (cuts,), events of the history that lie before the cut
    at: NDArray[np.int64]  # (cuts,), milliseconds; every event of the window is older
    inputs: Compact
    targets: NDArray[np.float32]  # (cuts, labels), 1 = touched from the cut on
    next_texts: NDArray[np.int32]  # (cuts, NEXT_TEXTS), text index of what came first; 0 = none
    weights: NDArray[np.float32]  # (cuts,), many cuts of one user are not many users

    def __len__(self) -> int:
        return len(self.user)

    def take(self, rows: NDArray[np.int64]) -> Self:
        """Return some of the cuts."""
        return replace(
            self,
            user=self.user[rows],
            before=self.before[rows],
            at=self.at[rows],
            inputs=self.inputs.take(rows),
            targets=self.targets[rows],
            next_texts=self.next_texts[rows],
            weights=self.weights[rows],
        )

    def of_users(self, chosen: NDArray[np.bool_]) -> Self:
        """Return the cuts of the users for whom `chosen` (histories,) is true."""
        return self.take(np.flatnonzero(chosen[self.user]))

    def seeing(self, platforms: Collection[int]) -> Self:
        """Return the same cuts with the windows' other platforms hidden. `platforms`: positions in Study.platforms."""
        return replace(self, inputs=self.inputs.seeing(np.array(sorted(platforms), np.int32) + 1))


class Study(NamedTuple):
    """Everything an evaluation knows of a log."""

    name: str
    task: Task
    taxonomy: Taxonomy
    platforms: tuple[str, ...]
    items: list[tuple[str, str]]
    """(platform, item id), the most used first."""
    texts: TextTable
    histories: Histories
    train: Cuts
    """Of every user with a target, all cuts, the last included."""
    test: Cuts
    """The last cut of every user that is evaluated."""
    fold: NDArray[np.int64]  # (histories,), 0 to 4, by a hash of the user's id
    excluded: dict[str, int]
    """Why events or users were left out → how many."""
    spec: WindowSpec

    def target(self) -> frozenset[int]:
        """Return the platforms foretold, as windows number them, from 1; none where it is all of them."""
        return frozenset(self.platforms.index(name) + 1 for name in self.task.target)

    def readable(self) -> NDArray[np.int64]:
        """Return the rows of the texts that name a label, or that a person who is cut ever touched, ascending.

        No window of a cut holds any other, whenever it is looked at.
        """
        touched = self.texts.own_known.copy()
        for user in np.unique(self.train.user).tolist():
            texts = self.histories[user].text
            touched[texts[texts > 0] - 1] = True
        return np.flatnonzero(touched)

    def views(self) -> dict[str, set[int]]:
        """Return which platforms each view of a window shows: source only, target only, everything."""
        target, source = _sides(self.task, self.platforms)
        everything = set(range(len(self.platforms)))
        return (
            {A_ONLY: source, B_ONLY: target, EVERYTHING: everything} if self.task.target else {EVERYTHING: everything}
        )


def target_platforms(task: Task, platforms: tuple[str, ...]) -> set[int]:
    """Return the positions of the platforms that the task foretells."""
    return _sides(task, platforms)[0]


FOLDS: Final = 5


def fold_of(user_id: str, folds: int = FOLDS) -> int:
    """Return the fold of a user: the same one whatever else the log holds."""
    return int.from_bytes(blake2b(b"fold" + user_id.encode(), digest_size=4).digest(), "big") % folds


def build_study(name: str, events: Iterable[Event], taxonomy: Taxonomy, spec: WindowSpec, task: Task) -> Study:
    """Cut every user's history. `max_events` of the windows is the spec's own.

    Raises `DataError` when there is too little to evaluate on, saying what there is.
    """
    return cut_study(gather(name, events, taxonomy), spec, task)


def cut_study(log: Log, spec: WindowSpec, task: Task, *, max_events: int = _MAX_EVENTS) -> Study:
    """Cut every user's history, one after the other. Raises as `build_study`.

    `max_events`: newest events of a window that are kept. What is held grows with the cuts, of which there are
    `task.max_examples` at the most (a user's last one comes on top), and with the distinct texts; not with the events.
    """
    _check_platforms(log, task)
    sides = _sides(task, log.platforms)
    support = np.zeros(len(log.taxonomy), np.int64)
    evaluated = found = 0
    for user, history in enumerate(log.histories):
        drafts = _cuts_of(user, history, task, *sides)
        found += len(drafts)
        if drafts and drafts[-1].evaluated:
            evaluated += 1
            support[bit_positions(drafts[-1].mask)] += 1
    kept = np.flatnonzero(support >= task.min_label_users)
    if len(kept) < 2 or evaluated < FOLDS * 2:  # noqa: PLR2004 - of one label there is nothing to tell apart
        raise DataError(
            f"too little to evaluate: {evaluated} users and {len(kept)} labels of {task.min_label_users} users or more",
            where=log.name,
            expected=f"{FOLDS * 2} users with {task.label_events} labelled events after {task.min_history} others, "
            "and two labels",
            fix="Name more data, another --target, or lower --min-label-users.",
        )
    # Only labels that are evaluated are trained on, and a cut that names none of them says nothing.
    texts = log.texts._replace(
        own=log.texts.own[:, kept],
        own_known=log.texts.own[:, kept].any(axis=1),
        next_labels=log.texts.next_labels[:, kept],
    )
    writer = _CutWriter(spec, Windows(texts, log.platforms, max_events), log.platforms, kept)
    step, number = max(1, -(-found // task.max_examples)), 0
    for user, history in enumerate(log.histories):
        drafts = _cuts_of(user, history, task, *sides)
        # The last one is what is evaluated: every other is one of many.
        chosen = [cut for at, cut in enumerate(drafts, number) if at % step == 0 or cut is drafts[-1]]
        number += len(drafts)
        writer.add(history, chosen)
    every = writer.cuts()
    return Study(
        log.name,
        task,
        log.taxonomy.keeping(kept.tolist()),
        log.platforms,
        log.items,
        texts,
        log.histories.relabelled(kept),
        every,
        every.take(np.flatnonzero(writer.is_test)),
        np.array([fold_of(user_id) for user_id in log.histories.users], np.int64),
        {
            **log.excluded,
            "users not evaluated": len(log.histories) - evaluated,
            "labels of too few users": len(log.taxonomy) - len(kept),
        },
        spec,
    )


def _check_platforms(log: Log, task: Task) -> None:
    for option, named in (("--target", task.target), ("--source", task.source)):
        unknown = sorted(set(named) - set(log.platforms))
        if unknown:
            raise DataError(
                f"no event of the platform {', '.join(unknown)}",
                where=log.name,
                expected=f"one of {', '.join(log.platforms) or '(the log is empty)'}",
                fix=f"Correct {option}.",
            )


def earlier(study: Study, cuts: Cuts, before: NDArray[np.int64]) -> Cuts:
    """Return the same cuts with the windows that were known after only `before` events (cuts,) of each history."""
    windows = []
    for user, end in zip(cuts.user, before, strict=True):
        history = study.histories[user]
        names = [study.platforms[position] for position in history.platform[:end]]
        windows.append(BehaviorWindow(study.spec).fold(zip(names, history.rows[:end], strict=True)))
    return replace(cuts, inputs=compact(windows, study.texts, platforms=study.platforms, max_events=_MAX_EVENTS))


class _Draft(NamedTuple):
    """A cut before its window is made."""

    user: int
    before: int
    at: int
    mask: int
    next_texts: list[int]
    weight: float
    evaluated: bool


def _sides(task: Task, platforms: tuple[str, ...]) -> tuple[set[int], set[int]]:
    """Return the positions of the target's platforms and of the source's."""
    everything = set(range(len(platforms)))
    target = {platforms.index(platform) for platform in task.target} or everything
    source = {platforms.index(platform) for platform in task.source}
    return target, source or (everything - target) or everything


def _cuts_of(user: int, history: History, task: Task, target: set[int], source: set[int]) -> list[_Draft]:
    """Return a user's cuts in order of time; only the last may be evaluated."""
    named = [
        position for position, mask in enumerate(history.mask) if mask and int(history.platform[position]) in target
    ]
    times = history.time.tolist()
    drafts: dict[int, _Draft] = {}
    last = len(named) - task.label_events  # the first of the last few labelled events
    for index, position in enumerate(named):
        before = bisect_left(times, times[position])  # strictly before
        if not before or (last >= 0 and index > last):
            continue
        following = named[index : index + task.label_events]
        mask = 0
        for later in following:
            mask |= history.mask[later]
        texts = [int(history.text[later]) for later in following if history.text[later]][:NEXT_TEXTS]
        known = int(np.isin(history.platform[:before], sorted(source)).sum())
        evaluated = index == last and known >= task.min_history
        drafts[before] = _Draft(user, before, times[position], mask, texts, 1.0, evaluated)
    chosen = [drafts[before] for before in spread(sorted(drafts), task.max_cuts)]
    weight = len(chosen) ** -0.5 if chosen else 1.0
    return [cut._replace(weight=weight * (_LAST_CUT_WEIGHT if cut is chosen[-1] else 1.0)) for cut in chosen]


class _CutWriter:
    """Collects the cuts of one user after the other that name a kept label; windows become head inputs on the way."""

    def __init__(self, spec: WindowSpec, windows: Windows, platforms: tuple[str, ...], kept: NDArray[np.int64]) -> None:
        self._spec, self._windows, self._platforms = spec, windows, platforms
        self._place = {int(old): new for new, old in enumerate(kept)}
        self._kept = sum(1 << int(old) for old in kept)
        self._drafts: list[_Draft] = []

    def add(self, history: History, drafts: Sequence[_Draft]) -> None:
        """Take in the cuts of one user, in order of time."""
        window, done = BehaviorWindow(self._spec), 0
        for cut in drafts:
            if not cut.mask & self._kept:
                continue
            names = [self._platforms[position] for position in history.platform[done : cut.before]]
            window = window.fold(zip(names, history.rows[done : cut.before], strict=True))
            done = cut.before
            self._windows.add(window)
            self._drafts.append(cut)

    @property
    def is_test(self) -> NDArray[np.bool_]:  # (cuts,)
        """Which of them are evaluated."""
        return np.array([cut.evaluated for cut in self._drafts], bool)

    def cuts(self) -> Cuts:
        """Return everything added."""
        drafts = self._drafts
        targets = np.zeros((len(drafts), len(self._place)), np.float32)
        following = np.zeros((len(drafts), NEXT_TEXTS), np.int32)
        for row, cut in enumerate(drafts):
            targets[row, [self._place[one] for one in bit_positions(cut.mask) if one in self._place]] = 1
            following[row, : len(cut.next_texts)] = cut.next_texts
        return Cuts(
            np.array([cut.user for cut in drafts], np.int64),
            np.array([cut.before for cut in drafts], np.int64),
            np.array([cut.at for cut in drafts], np.int64),
            self._windows.inputs(),
            targets,
            following,
            np.array([cut.weight for cut in drafts], np.float32),
        )
