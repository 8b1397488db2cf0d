"""One user's history, cut into examples."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np

from xplat_stream.window import BehaviorWindow, Row, WindowSpec, occurred_at

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from xplat_stream.event import UserId

_NEXT_TEXTS = 4


@dataclass(frozen=True, slots=True)
class Examples:
    """Windows with their targets, in order of user and cut."""

    users: list[UserId]
    cuts: NDArray[np.int64]  # (examples,), milliseconds; the window holds nothing after it
    windows: list[BehaviorWindow]
    targets: NDArray[np.float32]  # (examples, labels), 1 = touched in the period after the cut
    next_texts: NDArray[np.int32]  # (examples, 4), text indices of the first texts touched then; 0 = none
    weights: NDArray[np.float32]  # (examples,), cuts^-1/2 of the user: many cuts of one user are not many users
    ends: NDArray[np.int64]  # (examples,), milliseconds; the last event the target was made of

    def __len__(self) -> int:
        return len(self.users)

    @classmethod
    def join(cls, parts: Iterable[Examples], labels: int) -> Examples:
        """Put the examples of several users together."""
        filled = [part for part in parts if part.users]
        if not filled:
            return cls(
                [],
                np.zeros(0, np.int64),
                [],
                np.zeros((0, labels), np.float32),
                np.zeros((0, _NEXT_TEXTS), np.int32),
                np.zeros(0, np.float32),
                np.zeros(0, np.int64),
            )
        return cls(
            [user for part in filled for user in part.users],
            np.concatenate([part.cuts for part in filled]),
            [window for part in filled for window in part.windows],
            np.concatenate([part.targets for part in filled]),
            np.concatenate([part.next_texts for part in filled]),
            np.concatenate([part.weights for part in filled]),
            np.concatenate([part.ends for part in filled]),
        )


class Trail(NamedTuple):
    """One user's distinct events in order of time."""

    user_id: UserId
    platforms: list[str]
    rows: list[Row]
    times: list[int]
    masks: list[int]
    """Labels the item names, as bits in taxonomy order; 0 for a negative action."""
    texts: list[int]
    """Index in the `TextTable`, 0 for the empty text."""

    @classmethod
    def of(cls, user_id: UserId, found: Mapping[Row, tuple[str, int, int]]) -> Self:
        """Order `row → (platform, label bits, text index)`."""
        rows = sorted(found)
        return cls(
            user_id,
            [found[row][0] for row in rows],
            rows,
            [occurred_at(row) for row in rows],
            [found[row][1] for row in rows],
            [found[row][2] for row in rows],
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


def examples_of(  # noqa: PLR0913 - the window's law and the target's, spelled out
    trail: Trail,
    spec: WindowSpec,
    label_events: int,
    period_ms: int,
    *,
    range_ms: tuple[int, int],
    most: int,
    labels: int,
) -> Examples:
    """Cut one user's history at up to `most` events inside `range_ms` (both ends included), evenly spread.

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
    chosen = _spread(sorted(targets), most)
    if not chosen:
        return Examples.join([], labels)
    window, done, windows = BehaviorWindow(spec), 0, []
    texts = np.zeros((len(chosen), _NEXT_TEXTS), np.int32)
    hot = np.zeros((len(chosen), labels), np.float32)
    for row, position in enumerate(chosen):
        window = window.fold(zip(trail.platforms[done : position + 1], trail.rows[done : position + 1], strict=True))
        done = position + 1
        windows.append(window)
        mask, stop = targets[position]
        hot[row, bit_positions(mask)] = 1
        following = [trail.texts[later] for later in range(done, stop) if trail.texts[later]][:_NEXT_TEXTS]
        texts[row, : len(following)] = following
    return Examples(
        [trail.user_id] * len(chosen),
        np.array([trail.times[position] for position in chosen], np.int64),
        windows,
        hot,
        texts,
        np.full(len(chosen), len(chosen) ** -0.5, np.float32),
        np.array([trail.times[targets[position][1] - 1] for position in chosen], np.int64),
    )


def _spread(positions: Sequence[int], most: int) -> list[int]:
    """Return `most` of the positions, the first and the last among them."""
    if len(positions) <= most:
        return list(positions)
    steps = np.linspace(0, len(positions) - 1, most).round().astype(int)
    return [positions[step] for step in sorted(set(steps.tolist()))]


def bit_positions(mask: int) -> list[int]:
    """Return which bits are set, ascending."""
    found = []
    while mask:
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return found
