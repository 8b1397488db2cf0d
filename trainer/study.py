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

from trainer.compact import Compact, compact
from trainer.examples import bit_positions
from trainer.texts import TextTable
from xplat_stream.errors import DataError
from xplat_stream.event import NEGATIVE_ACTIONS, UserId, hash_text, item_text
from xplat_stream.taxonomy import Taxonomy
from xplat_stream.window import BehaviorWindow, Row, WindowSpec, row_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from numpy.typing import NDArray

    from xplat_stream.event import Event

A_ONLY: Final = "A only"
B_ONLY: Final = "B only"
EVERYTHING: Final = "A+B"
"""The views of a window: the source platforms, the target platforms, all there are."""

NEXT_TEXTS: Final = 4
_WINDOWS_AT_ONCE: Final = 2048
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


class History(NamedTuple):
    """One user's distinct events, in order of time."""

    user_id: UserId
    rows: list[Row]
    platform: NDArray[np.int32]  # (events,), index in Study.platforms
    item: NDArray[np.int32]  # (events,), index in Study.items
    text: NDArray[np.int32]  # (events,), index in the TextTable, 0 = no text
    time: NDArray[np.int64]  # (events,), milliseconds
    mask: list[int]
    """Labels the item names, as bits in taxonomy order; 0 for a negative action."""


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
    histories: list[History]
    train: Cuts
    """Of every user with a target, all cuts, the last included."""
    test: Cuts
    """The last cut of every user that is evaluated."""
    fold: NDArray[np.int64]  # (histories,), 0 to 4, by a hash of the user's id
    excluded: dict[str, int]
    """Why events or users were left out → how many."""
    spec: WindowSpec

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
    events = list(events)
    platforms = tuple(sorted({event.platform for event in events}))
    for option, named in (("--target", task.target), ("--source", task.source)):
        unknown = sorted(set(named) - set(platforms))
        if unknown:
            raise DataError(
                f"no event of the platform {', '.join(unknown)}",
                where=name,
                expected=f"one of {', '.join(platforms) or '(the log is empty)'}",
                fix=f"Correct {option}.",
            )
    texts = TextTable.of(events, taxonomy)
    items, histories = _histories(events, taxonomy, texts, platforms)
    excluded = {"repeated events": len(events) - sum(len(history.rows) for history in histories)}
    del events
    target, source = _sides(task, platforms)
    drafts = [_cuts_of(user, history, task, target, source) for user, history in enumerate(histories)]
    evaluated = [draft[-1] for draft in drafts if draft and draft[-1].evaluated]
    excluded["users not evaluated"] = len(histories) - len(evaluated)
    support = np.zeros(len(taxonomy), np.int64)
    for cut in evaluated:
        support[bit_positions(cut.mask)] += 1
    kept = np.flatnonzero(support >= task.min_label_users)
    excluded["labels of too few users"] = len(taxonomy) - len(kept)
    users = len({cut.user for cut in evaluated})
    if len(kept) < 2 or users < FOLDS * 2:  # noqa: PLR2004 - of one label there is nothing to tell apart
        raise DataError(
            f"too little to evaluate: {users} users and {len(kept)} labels of {task.min_label_users} users or more",
            where=name,
            expected=f"{FOLDS * 2} users with {task.label_events} labelled events after {task.min_history} others, "
            "and two labels",
            fix="Name more data, another --target, or lower --min-label-users.",
        )
    taxonomy = Taxonomy(taxonomy.name, taxonomy.version, taxonomy.cattax, tuple(taxonomy.labels[one] for one in kept))
    # Only labels that are evaluated are trained on, and a cut that names none of them says nothing.
    texts = texts._replace(
        own=texts.own[:, kept], own_known=texts.own[:, kept].any(axis=1), next_labels=texts.next_labels[:, kept]
    )
    chosen = [cut for draft in drafts for cut in draft]
    every = _fold_windows(chosen, histories, texts, platforms, spec, kept)
    named = every.targets.any(axis=1)
    is_test = np.array([cut.evaluated for cut in chosen])
    return Study(
        name,
        task,
        taxonomy,
        platforms,
        items,
        texts,
        [_relabelled(history, kept) for history in histories],
        every.take(np.flatnonzero(named)),
        every.take(np.flatnonzero(named & is_test)),
        np.array([fold_of(history.user_id) for history in histories], np.int64),
        excluded,
        spec,
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


def _histories(
    events: Sequence[Event], taxonomy: Taxonomy, texts: TextTable, platforms: tuple[str, ...]
) -> tuple[list[tuple[str, str]], list[History]]:
    bit = {label: 1 << index for index, label in enumerate(taxonomy.ids())}
    uses: dict[tuple[str, str], int] = {}
    for event in events:
        key = (event.platform, event.object.id)
        uses[key] = uses.get(key, 0) + 1
    items = sorted(uses, key=lambda key: (-uses[key], key))
    item_of = {key: position for position, key in enumerate(items)}
    platform_of = {platform: position for position, platform in enumerate(platforms)}
    by_user: dict[UserId, dict[Row, tuple[int, int, int, int]]] = {}
    for event in events:
        text_hash = hash_text(item_text(event.object))
        mask = 0
        if event.action not in NEGATIVE_ACTIONS:
            for label in taxonomy.label_ids(iab=event.object.iab, categories=event.object.categories):
                mask |= bit[label]
        by_user.setdefault(event.user_id, {})[row_of(event, text_hash)] = (
            platform_of[event.platform],
            item_of[event.platform, event.object.id],
            texts.row_of.get(text_hash, 0),
            mask,
        )
    histories = []
    for user_id in sorted(by_user):
        found = by_user[user_id]
        rows = sorted(found)
        columns = np.array([found[row][:3] for row in rows], np.int32).reshape(-1, 3)
        times = np.array([int.from_bytes(row[:8], "big") for row in rows], np.int64)
        histories.append(
            History(user_id, rows, columns[:, 0], columns[:, 1], columns[:, 2], times, [found[row][3] for row in rows])
        )
    return items, histories


def _relabelled(history: History, kept: NDArray[np.int64]) -> History:
    moved = {1 << int(old): 1 << new for new, old in enumerate(kept)}
    return history._replace(mask=[sum(new for old, new in moved.items() if mask & old) for mask in history.mask])


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
    chosen = [drafts[before] for before in sorted(drafts)]
    if len(chosen) > task.max_cuts:
        steps = np.linspace(0, len(chosen) - 1, task.max_cuts).round().astype(int)
        chosen = [chosen[step] for step in sorted(set(steps.tolist()))]
    weight = len(chosen) ** -0.5 if chosen else 1.0
    return [cut._replace(weight=weight * (_LAST_CUT_WEIGHT if cut is chosen[-1] else 1.0)) for cut in chosen]


def _fold_windows(
    drafts: Sequence[_Draft],
    histories: Sequence[History],
    texts: TextTable,
    platforms: tuple[str, ...],
    spec: WindowSpec,
    kept: NDArray[np.int64],
) -> Cuts:
    parts: list[Compact] = []
    windows: list[BehaviorWindow] = []
    window, user, done = BehaviorWindow(spec), -1, 0
    for cut in drafts:
        history = histories[cut.user]
        if cut.user != user:
            window, user, done = BehaviorWindow(spec), cut.user, 0
        names = [platforms[position] for position in history.platform[done : cut.before]]
        window = window.fold(zip(names, history.rows[done : cut.before], strict=True))
        done = cut.before
        windows.append(window)
        if len(windows) == _WINDOWS_AT_ONCE:
            parts.append(compact(windows, texts, platforms=platforms, max_events=_MAX_EVENTS))
            windows = []
    parts.append(compact(windows, texts, platforms=platforms, max_events=_MAX_EVENTS))
    targets = np.zeros((len(drafts), len(kept)), np.float32)
    place = {int(old): new for new, old in enumerate(kept)}
    following = np.zeros((len(drafts), NEXT_TEXTS), np.int32)
    for row, cut in enumerate(drafts):
        targets[row, [place[one] for one in bit_positions(cut.mask) if one in place]] = 1
        following[row, : len(cut.next_texts)] = cut.next_texts
    return Cuts(
        np.array([cut.user for cut in drafts], np.int64),
        np.array([cut.before for cut in drafts], np.int64),
        np.array([cut.at for cut in drafts], np.int64),
        Compact.join(parts),
        targets,
        following,
        np.array([cut.weight for cut in drafts], np.float32),
    )
