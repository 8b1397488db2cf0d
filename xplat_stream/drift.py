"""How far people have moved: the population stability index of what they act on. Pure.

PSI = sum of (now - then) * ln(now / then) over the shares of labels, or of platforms: below .1 nothing has moved, from
.25 on the population is another one (Siddiqi 2006, Credit Risk Scorecards). By chance alone it comes to about
(categories - 1) * (1 / events then + 1 / events now) (Yurdakul 2018, Statistical Properties of Population Stability
Index).
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Final

import msgspec

from xplat_stream.event import NEGATIVE_ACTIONS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from xplat_stream.event import Event
    from xplat_stream.taxonomy import Taxonomy

MOVING: Final = 0.1
"""PSI from which a population has begun to move."""

ANOTHER: Final = 0.25
"""PSI from which it is another one."""

RECENT: Final = 20_000
"""Newest events that stand for people as they are now; a PSI of 40 labels is then off by .002 through chance."""

_LEAST_SHARE: Final = 1e-4
"""Of a label nobody touched: the logarithm of nothing says nothing."""

_NAMED: Final = 5


class Shares(msgspec.Struct, frozen=True):
    """What part of some events fell on each label and on each platform; each sums to 1, or is empty."""

    labels: dict[str, float] = {}
    """By label id; what somebody hid or disliked counts for its platform alone."""
    platforms: dict[str, float] = {}

    @classmethod
    def of(cls, labels: Mapping[str, int], platforms: Mapping[str, int]) -> Shares:
        """Return the shares that these counts make."""
        return cls(_normal(labels), _normal(platforms))


class Shift(msgspec.Struct, frozen=True):
    """A label, or a platform, whose share has changed."""

    name: str
    then: float
    now: float


class Drift(msgspec.Struct, frozen=True):
    """How far people have moved between two stretches of a log."""

    labels: float
    """PSI over the shares of labels, 0 or more."""
    platforms: float
    """PSI over the shares of platforms, 0 or more."""
    shifts: tuple[Shift, ...] = ()
    """The labels and platforms that make up most of it, the largest first."""

    @property
    def largest(self) -> float:
        """The larger index of the two."""
        return max(self.labels, self.platforms)

    @property
    def words(self) -> str:
        """What the larger index means."""
        if self.largest < MOVING:
            return "nothing moved"
        return "people have begun to move" if self.largest < ANOTHER else "another population"


def shares(events: Iterable[Event], taxonomy: Taxonomy) -> Shares:
    """Count events by label, where their items name any, and by platform."""
    labels: Counter[str] = Counter()
    platforms: Counter[str] = Counter()
    for event in events:
        platforms[event.platform] += 1
        if event.action not in NEGATIVE_ACTIONS:
            labels.update(taxonomy.label_ids(iab=event.object.iab, categories=event.object.categories))
    return Shares.of(labels, platforms)


def _normal(counts: Mapping[str, int]) -> dict[str, float]:
    whole = sum(counts.values())
    return {name: count / whole for name, count in sorted(counts.items()) if count}


def psi(then: Mapping[str, float], now: Mapping[str, float]) -> float:
    """Return the population stability index of two distributions, 0 or more; 0 where one of them is of nothing."""
    return sum(_parts(then, now).values())


def _parts(then: Mapping[str, float], now: Mapping[str, float]) -> dict[str, float]:
    """Return what each name adds to the index."""
    if not then or not now:
        return {}
    found = {}
    for name in sorted({*then, *now}):
        before, after = max(then.get(name, 0.0), _LEAST_SHARE), max(now.get(name, 0.0), _LEAST_SHARE)
        found[name] = (after - before) * math.log(after / before)
    return found


def drift(then: Shares, now: Shares, names: Mapping[str, str] | None = None) -> Drift:
    """Return how far shares have moved. `names`: label id → what a shift calls it."""
    called = names or {}
    labels, platforms = _parts(then.labels, now.labels), _parts(then.platforms, now.platforms)
    sides = ((labels, then.labels, now.labels), (platforms, then.platforms, now.platforms))
    moved = [
        (part, Shift(called.get(name, name), round(before.get(name, 0.0), 4), round(after.get(name, 0.0), 4)))
        for parts, before, after in sides
        for name, part in parts.items()
        if part > 0
    ]
    moved.sort(key=lambda pair: -pair[0])
    shifts = tuple(shift for _, shift in moved[:_NAMED])
    return Drift(round(sum(labels.values()), 4), round(sum(platforms.values()), 4), shifts)
