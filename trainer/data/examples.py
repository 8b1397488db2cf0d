"""One user's history, cut into examples."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from trainer.data.compact import Compact, compact
from trainer.data.texts import bit_positions
from xplat_stream.window import BehaviorWindow, Row, WindowSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from trainer.data.histories import History
    from trainer.data.texts import TextTable
    from xplat_stream.event import UserId

NEXT_TEXTS = 4
_WINDOWS_AT_ONCE = 2048


@dataclass(frozen=True, slots=True)
class Examples:
    """Windows with their targets, in order of user and cut."""

    users: list[UserId]
    cuts: NDArray[np.int64]  # (examples,), milliseconds; the window holds nothing after it
    inputs: Compact  # the windows
    targets: NDArray[np.float32]  # (examples, labels), 1 = touched in the period after the cut
    next_texts: NDArray[np.int32]  # (examples, 4), text indices of the first texts touched then; 0 = none
    weights: NDArray[np.float32]  # (examples,), cuts^-1/2 of the user: many cuts of one user are not many users
    ends: NDArray[np.int64]  # (examples,), milliseconds; the last event the target was made of

    def __len__(self) -> int:
        return len(self.users)

    def take(self, rows: NDArray[np.int64]) -> Self:
        """Return some of the examples."""
        return replace(
            self,
            users=[self.users[row] for row in rows.tolist()],
            cuts=self.cuts[rows],
            inputs=self.inputs.take(rows).trimmed(),
            targets=self.targets[rows],
            next_texts=self.next_texts[rows],
            weights=self.weights[rows],
            ends=self.ends[rows],
        )


class Windows:
    """Windows on their way to head inputs: a few thousand are held, the rest is compact already."""

    def __init__(self, texts: TextTable, platforms: Sequence[str], max_events: int) -> None:
        self._texts, self._platforms, self._max_events = texts, platforms, max_events
        self._waiting: list[BehaviorWindow] = []
        self._parts: list[Compact] = []

    def add(self, window: BehaviorWindow) -> None:
        """Take one more."""
        self._waiting.append(window)
        if len(self._waiting) == _WINDOWS_AT_ONCE:
            self._compact()

    def _compact(self) -> None:
        self._parts.append(compact(self._waiting, self._texts, platforms=self._platforms, max_events=self._max_events))
        self._waiting = []

    def inputs(self) -> Compact:
        """Return all that were added, in order, padded to the longest."""
        self._compact()
        return Compact.join(self._parts)


class Trail(NamedTuple):
    """One user's distinct events in order of time, as lists: a loop over them reads single ones."""

    user_id: UserId
    platforms: list[str]
    rows: list[Row]
    times: list[int]
    masks: list[int]
    """Labels the item names, as bits in taxonomy order; 0 for a negative action."""
    texts: list[int]
    """Index in the `TextTable`, 0 for the empty text."""

    @classmethod
    def of(cls, history: History, platforms: Sequence[str]) -> Self:
        """Return a history with its platforms by name."""
        return cls(
            history.user_id,
            [platforms[one] for one in history.platform.tolist()],
            history.rows,
            history.time.tolist(),
            history.mask,
            history.text.tolist(),
        )

    def next_masks(
        self, positions: Iterable[int], most: int, period_ms: int, *, limit: int
    ) -> dict[int, tuple[int, int]]:
        """Return position → (label bits of the period after it, position after the period's last event).

        The period is the next `most` events within `period_ms`. Positions whose period may reach beyond `limit`
        (the last millisecond that may be looked at), or touches no label at all, are left out: the first would count
        unseen events as absent, the second say nothing about interests.
        """
        found = {}
        for position in positions:
            time = self.times[position]
            start = bisect_right(self.times, time)
            stop = min(start + most, bisect_right(self.times, time + period_ms, lo=start))
            full = stop - start == most and self.times[stop - 1] <= limit
            if not full and time + period_ms > limit:
                continue
            mask = 0
            for later in range(start, stop):
                mask |= self.masks[later]
            if mask:
                found[position] = (mask, stop)
        return found


class Cut(NamedTuple):
    """Where a trail is cut: after the event at `position`; its target ends before the one at `stop`."""

    position: int
    mask: int
    stop: int


def cuts_of(trail: Trail, label_events: int, period_ms: int, *, range_ms: tuple[int, int], most: int) -> list[Cut]:
    """Choose up to `most` events of one user inside `range_ms` (both ends included) to cut at, evenly spread.

    Neither a cut nor a period reaches outside the range; the window reaches back before it.
    """
    start, limit = range_ms
    # A cut takes in every event of its millisecond, so only the last of them can be one.
    inside = [
        position
        for position in range(bisect_left(trail.times, start), bisect_right(trail.times, limit))
        if position + 1 < len(trail.times) and trail.times[position + 1] > trail.times[position]
    ]
    targets = trail.next_masks(inside, label_events, period_ms, limit=limit)
    return [Cut(position, *targets[position]) for position in spread(sorted(targets), most)]


class ExampleWriter:
    """Collects the examples of one user after the other; windows become head inputs on the way."""

    def __init__(self, spec: WindowSpec, windows: Windows, *, labels: int) -> None:
        self._spec, self._windows, self._labels = spec, windows, labels
        self._users: list[UserId] = []
        self._cuts: list[int] = []
        self._masks: list[int] = []
        self._next: list[list[int]] = []
        self._weights: list[float] = []
        self._ends: list[int] = []

    def add(self, trail: Trail, cuts: Sequence[Cut]) -> None:
        """Take in the examples of one user, cut in order of time."""
        window, done = BehaviorWindow(self._spec), 0
        for cut in cuts:
            through = cut.position + 1
            window = window.fold(zip(trail.platforms[done:through], trail.rows[done:through], strict=True))
            done = through
            self._windows.add(window)
            self._users.append(trail.user_id)
            self._cuts.append(trail.times[cut.position])
            self._masks.append(cut.mask)
            self._next.append(
                [trail.texts[later] for later in range(done, cut.stop) if trail.texts[later]][:NEXT_TEXTS]
            )
            self._weights.append(len(cuts) ** -0.5)
            self._ends.append(trail.times[cut.stop - 1])

    def examples(self) -> Examples:
        """Return everything added."""
        targets = np.zeros((len(self._users), self._labels), np.float32)
        following = np.zeros((len(self._users), NEXT_TEXTS), np.int32)
        for row, (mask, texts) in enumerate(zip(self._masks, self._next, strict=True)):
            targets[row, bit_positions(mask)] = 1
            following[row, : len(texts)] = texts
        return Examples(
            self._users,
            np.array(self._cuts, np.int64),
            self._windows.inputs(),
            targets,
            following,
            np.array(self._weights, np.float32),
            np.array(self._ends, np.int64),
        )


def spread(positions: Sequence[int], most: int) -> list[int]:
    """Return `most` of the positions, the first and the last among them."""
    if len(positions) <= most:
        return list(positions)
    steps = np.linspace(0, len(positions) - 1, most).round().astype(int)
    return [positions[step] for step in sorted(set(steps.tolist()))]


def last_of_each(users: NDArray[Any]) -> NDArray[np.int64]:
    """Return the row of each user's last example (users,). `users` (examples,): a user's examples lie together."""
    return np.flatnonzero(np.append(users[1:] != users[:-1], True)) if len(users) else np.zeros(0, np.int64)


def thinned(rows: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Return every n-th of the rows, so that there are at most `most`."""
    return rows[:: max(1, -(-len(rows) // most))]
