"""What two releases said of the same users, summed up, and when that is reason to go back. Pure.

The active release is set beside another one: the candidate that is to follow it, or the one it followed. Sums are of
whole millionths, because sums of floats depend on their order: so sums of several workers, and of a worker before and
after a restart, add up to exactly what one would have counted.
"""

from __future__ import annotations

from itertools import zip_longest
from math import log2, sqrt
from typing import TYPE_CHECKING, Final, NamedTuple, Self

import msgspec

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from xplat_stream.settings import ReleaseSettings

TOP: Final = 5
"""Labels at the head of a profile that are compared as a set."""

NDCG_TOP: Final = 10
FLIP_AT: Final = 0.5
"""A label is flipped when one release's score reaches this and the other's does not."""

_MILLION: Final = 1_000_000
_BUCKETS_AN_OCTAVE: Final = 8
_CALLS_FOR_P99: Final = 100
_Z_99: Final = 2.326
"""One-sided, 99 %."""


class Side(msgspec.Struct):
    """What one of the two releases did."""

    asked: int = 0
    """Users it was asked for."""
    failed: int = 0
    """Of those, users it gave no valid scores for."""
    scores: list[int] = []
    """Sum of the scores of each label, in millionths."""
    ndcg: int = 0
    """Sum of the NDCG@10 against what users did next, in millionths."""
    calls: dict[int, int] = {}
    """Head calls by duration: bucket n holds those of about 2^(n/8) ms."""

    def add_call(self, duration_s: float) -> None:
        """Count a head call."""
        bucket = round(_BUCKETS_AN_OCTAVE * log2(max(duration_s * 1000, 2**-10)))
        self.calls[bucket] = self.calls.get(bucket, 0) + 1

    @property
    def error_rate(self) -> float:
        """The share of users it failed for."""
        return self.failed / self.asked if self.asked else 0.0

    def latency_ms(self, share: float) -> float:
        """Return the duration that this share of the head calls did not exceed, to a tenth; 0 without any call."""
        left = share * sum(self.calls.values())
        for bucket, count in sorted(self.calls.items()):
            left -= count
            if left <= 0:
                return float(2 ** (bucket / _BUCKETS_AN_OCTAVE))
        return 0.0

    def merge(self, other: Self) -> Self:
        """Return both together."""
        calls = {
            bucket: self.calls.get(bucket, 0) + other.calls.get(bucket, 0)
            for bucket in sorted({*self.calls, *other.calls})
        }
        scores = [mine + theirs for mine, theirs in zip_longest(self.scores, other.scores, fillvalue=0)]
        return type(self)(self.asked + other.asked, self.failed + other.failed, scores, self.ndcg + other.ndcg, calls)


class Comparison(msgspec.Struct):
    """Two releases beside each other, on a sample of users."""

    active: Side = msgspec.field(default_factory=Side)
    other: Side = msgspec.field(default_factory=Side)
    compared: int = 0
    """Windows both have scored."""
    skipped: int = 0
    """Windows of the sample that were not compared, because too many waited."""
    shared: int = 0
    """Labels in both top fives, summed over windows."""
    flips: int = 0
    """Labels that only one of them gives at least 0.5, summed over windows."""
    difference: int = 0
    """Sum of the mean absolute difference of a window's scores, in millionths."""
    judged: int = 0
    """Times that a user's next labelled events were there to measure both against."""
    gap: int = 0
    """Sum of the active release's NDCG less the other's, in millionths."""
    gap_squares: int = 0
    """Sum of its squares, in millionths of millionths."""

    def add(self, active: Sequence[float], other: Sequence[float]) -> None:
        """Count what both say of one window, one score in [0, 1] a label."""
        self.compared += 1
        self.shared += len(set(_best(active, TOP)) & set(_best(other, TOP)))
        self.flips += sum([(one >= FLIP_AT) != (two >= FLIP_AT) for one, two in zip(active, other, strict=True)])
        apart = sum([abs(one - two) for one, two in zip(active, other, strict=True)])
        self.difference += round(_MILLION * apart / len(active))
        for side, scores in ((self.active, active), (self.other, other)):
            found = [round(_MILLION * score) for score in scores]
            side.scores = [mine + theirs for mine, theirs in zip_longest(side.scores, found, fillvalue=0)]

    def judge(self, active: Sequence[float], other: Sequence[float], labels: Collection[int]) -> None:
        """Measure both scores of one window against the labels of what the user did next."""
        quality, beside = (round(_MILLION * ndcg(scores, labels)) for scores in (active, other))
        self.judged += 1
        self.active.ndcg += quality
        self.other.ndcg += beside
        self.gap += quality - beside
        self.gap_squares += (quality - beside) ** 2

    @property
    def agreement(self) -> float:
        """The share of the top five that both name, on average."""
        return self.shared / (TOP * self.compared) if self.compared else 1.0

    @property
    def flips_a_user(self) -> float:
        """Labels flipped in a window, on average."""
        return self.flips / self.compared if self.compared else 0.0

    @property
    def mean_difference(self) -> float:
        """The mean absolute difference of two scores."""
        return self.difference / (_MILLION * self.compared) if self.compared else 0.0

    @property
    def drift(self) -> list[float]:
        """The active release's mean score less the other's, label by label."""
        pairs = zip_longest(self.active.scores, self.other.scores, fillvalue=0)
        return [(one - two) / (_MILLION * self.compared) for one, two in pairs] if self.compared else []

    @property
    def ndcg(self) -> tuple[float, float]:
        """Online NDCG of the active release and of the other."""
        count = max(self.judged, 1) * _MILLION
        return self.active.ndcg / count, self.other.ndcg / count

    @property
    def certain_loss(self) -> float:
        """How much online NDCG the active release has lost against the other, at least, at 99 %; below 0 when none."""
        if self.judged < 2:  # noqa: PLR2004 - one has no spread
            return 0.0
        mean = self.gap / self.judged
        variance = max(0.0, (self.gap_squares - self.judged * mean**2) / (self.judged - 1))
        return (-mean - _Z_99 * sqrt(variance / self.judged)) / _MILLION

    def turned(self) -> Self:
        """Return it seen from the other release, as if that were the active one."""
        return msgspec.structs.replace(self, active=self.other, other=self.active, gap=-self.gap)

    def merge(self, other: Self) -> Self:
        """Return the sums of both, which are of different windows."""
        sums = {
            name: getattr(self, name) + getattr(other, name)
            for name in self.__struct_fields__
            if name not in ("active", "other")
        }
        return type(self)(active=self.active.merge(other.active), other=self.other.merge(other.other), **sums)


class Breach(NamedTuple):
    """A limit that the active release does not keep."""

    figure: str
    """Which figure: `errors`, `latency`, `drift` or `ndcg`."""
    found: float
    limit: float
    where: str = ""
    """Of which label, where it is one label's."""

    def __str__(self) -> str:
        of_label = f" of {self.where}" if self.where else ""
        return f"{self.figure}{of_label} is {self.found:.4g}; the limit is {self.limit:g}"


def breaches(comparison: Comparison, limits: ReleaseSettings, labels: Sequence[str] = ()) -> list[Breach]:
    """Return the limits that the active release breaks against the other one; none before enough is known.

    `labels`: their ids, for the words of what is found.
    """
    active, other = comparison.active, comparison.other
    found: list[Breach] = []
    if active.asked >= limits.min_compared:
        errors = active.error_rate - other.error_rate  # beyond what a server that is away does to both
        if errors > limits.max_error_rate:
            found.append(Breach("errors", errors, limits.max_error_rate))
    if min(sum(active.calls.values()), sum(other.calls.values())) >= _CALLS_FOR_P99:
        ratio = active.latency_ms(0.99) / other.latency_ms(0.99)
        if ratio > limits.max_latency_ratio:
            found.append(Breach("latency", ratio, limits.max_latency_ratio))
    if comparison.compared >= limits.min_compared:
        names: Mapping[int, str] = dict(enumerate(labels))
        found += [
            Breach("drift", shift, limits.max_score_drift, names.get(index, f"label {index}"))
            for index, shift in enumerate(comparison.drift)
            if abs(shift) > limits.max_score_drift
        ]
    if comparison.judged >= limits.min_compared and comparison.certain_loss > limits.max_ndcg_loss:
        found.append(Breach("ndcg", comparison.certain_loss, limits.max_ndcg_loss))
    return found


def ndcg(scores: Sequence[float], labels: Collection[int]) -> float:
    """Return the NDCG@10 of a ranking by these scores, where the labels given are the true ones; ties by label order.

    Raises `ValueError` without a true label.
    """
    if not labels:
        message = "labels is empty; NDCG is of what was done"
        raise ValueError(message)
    gains = [1 / log2(rank + 2) for rank in range(NDCG_TOP)]
    best = _best(scores, NDCG_TOP)
    reached = sum([gain for index, gain in zip(best, gains, strict=False) if index in labels])
    return reached / sum(gains[: min(len(labels), len(best))])


def _best(scores: Sequence[float], count: int) -> list[int]:
    return sorted(range(len(scores)), key=lambda index: (-scores[index], index))[:count]
