"""How far people have moved since a release was trained: the population stability index of what they act on.

PSI = sum of (now - then) * ln(now / then) over the shares of labels, or of platforms (Siddiqi 2006, Credit Risk
Scorecards): below .1 nothing moved, above .25 the population is another one.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from xplat_stream.event import Event
    from xplat_stream.taxonomy import Taxonomy

_LEAST_SHARE: Final = 1e-4
"""Of a label nobody touched: the logarithm of nothing says nothing."""


class Shares(msgspec.Struct, frozen=True):
    """What part of some events fell on each label and on each platform; each sums to 1, or is empty."""

    labels: dict[str, float] = {}
    platforms: dict[str, float] = {}


def shares(events: Iterable[Event], taxonomy: Taxonomy) -> Shares:
    """Count events by label, where their items name any, and by platform."""
    labels: Counter[str] = Counter()
    platforms: Counter[str] = Counter()
    for event in events:
        platforms[event.platform] += 1
        labels.update(taxonomy.label_ids(iab=event.object.iab, categories=event.object.categories))
    return Shares(_normal(labels), _normal(platforms))


def _normal(counts: Counter[str]) -> dict[str, float]:
    whole = counts.total()
    return {name: count / whole for name, count in sorted(counts.items())}


def psi(then: Mapping[str, float], now: Mapping[str, float]) -> float:
    """Return the population stability index of two distributions, 0 or more; 0 where one of them is of nothing."""
    if not then or not now:
        return 0.0
    total = 0.0
    for name in {*then, *now}:
        before, after = max(then.get(name, 0.0), _LEAST_SHARE), max(now.get(name, 0.0), _LEAST_SHARE)
        total += (after - before) * math.log(after / before)
    return total


def drift(then: Shares, now: Shares) -> float:
    """Return the larger index of the two: of labels, or of platforms."""
    return max(psi(then.labels, now.labels), psi(then.platforms, now.platforms))
