"""How far events can have moved a user's scores since they were last scored, told without asking the head.

What a head says of a window depends on weighted sums over its events: of their vectors and of the labels that their
texts name, all of them, the recent ones, those of each platform, those of the last hours, days and weeks. Such sums are
brought up to date by one event in no time. A linear map from them to the logits, fitted to one release's own head
(`trainer.export.sensitivity`), says how the logits have moved since; where the labels on top stay on top by a margin
that is wide enough, scoring can wait. How wide, and how often that is wrong, was measured on people held out, and the
curve lies in the manifest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import numpy as np

from xplat_stream.event import ACTIONS, NEGATIVE_ACTIONS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from xplat_stream.serving.features import HeadInputs

    Floats = NDArray[np.float32]

TOP: Final = 3
"""Labels that must stay on top."""

_HALF_LIVES_H: Final = (6.0, 24.0, 96.0, 384.0)
_RECENT: Final = 0.85
"""An event counts for this much of the next newer one, as in the head's own counts of recent labels."""

_DISLIKED: Final = np.array([0.0, *(float(action in NEGATIVE_ACTIONS) for action in ACTIONS)], np.float32)
_SMOOTHED: Final = np.float32(0.3)


class CurvePoint(msgspec.Struct, frozen=True):
    """What a margin gave on people held out, replayed event by event."""

    margin: float
    """Logits by which the labels on top must lie above the others, times the root of the events not scored."""
    saved: float
    """Share of the updates that went without the head."""
    disagreement: float
    """Share of all updates after which the labels on top are others than scoring gives, in any order."""
    highest: float
    """Upper end of its 95 % interval (Wilson)."""


class Sensitivity(msgspec.Struct, frozen=True):
    """The map of one release, and what it is worth. Numbers are little-endian."""

    names: bytes
    """float32 (width + 1, labels): the vector of a text → logits of the labels it names; the last row is the bias."""
    weights: bytes
    """float16 (features, labels)."""
    most_events: int
    """Events without scoring in a row that the curve was measured with."""
    curve: tuple[CurvePoint, ...]

    def margin(self, tolerance: float) -> float | None:
        """Return the narrowest margin that is surely wrong in at most this share of the updates, if there is one."""
        good = [point.margin for point in self.curve if point.highest <= tolerance]
        return min(good, default=None)


class Additions(NamedTuple):
    """One new event each of some users."""

    vectors: Floats  # (users, width)
    platform: NDArray[np.int32]  # (users,)
    action: NDArray[np.int32]  # (users,)
    hours: Floats  # (users,), since the newest event before; 0 for one that is older than that
    ago: Floats  # (users,), hours by which it is older than that; 0 for a newer one
    newer: Floats  # (users,), events of the window that are newer


class Estimator:
    """Sums over a window, kept up to date event by event, and what they say of its logits."""

    def __init__(self, sensitivity: Sensitivity, *, platforms: int, width: int, labels: int) -> None:
        self._platforms = platforms
        self._names = np.frombuffer(sensitivity.names, np.float32).reshape(width + 1, labels)
        self._weights = np.frombuffer(sensitivity.weights, np.float16).astype(np.float32).reshape(-1, labels)

    @property
    def shape(self) -> tuple[int, int]:
        """How many kinds of sums there are, and columns of each: what `sums` returns of one user."""
        width, labels = len(self._names) - 1, self._names.shape[1]
        return 4 + self._platforms + len(_HALF_LIVES_H), width + labels + 1

    @property
    def weights(self) -> Floats:
        """The map (features, labels)."""
        return self._weights

    def sums(self, inputs: HeadInputs) -> Floats:
        """Return the sums over windows: (users, kinds, width + labels + 1), the last column being the weights'."""
        action, platform = inputs.action, inputs.platform
        present = (action > 0).astype(np.float32)
        hours = np.expm1(inputs.age)
        newer = np.maximum(present.sum(1, keepdims=True) - 1 - np.arange(action.shape[1], dtype=np.float32), 0)
        weights = self._kinds(platform, action, present, hours, newer)  # (kinds, users, events)
        said: Floats = weights.transpose(1, 0, 2) @ self._said(inputs.vectors.astype(np.float32), present)
        return said

    def advance(self, sums: Floats, added: Additions) -> Floats:
        """Return the sums after one more event each.

        Exact where it is the newest. Where others are newer, events older than it count for less among the recent ones,
        and how many of those there are is known only on the average.
        """
        users = len(sums)
        faded: Floats = np.ones((sums.shape[1], users), np.float32)
        faded[[0, -1]] = 1 - (1 - _RECENT) * _RECENT**added.newer
        for number, half_life_h in enumerate(_HALF_LIVES_H, -1 - len(_HALF_LIVES_H)):
            faded[number] = np.exp2(-added.hours / half_life_h)
        now = np.ones(users, np.float32)
        weights = self._kinds(added.platform, added.action, now, added.ago, added.newer)  # (kinds, users)
        said = self._said(added.vectors, now)
        return np.asarray(sums * faded.T[:, :, None] + weights.T[:, :, None] * said[:, None, :], np.float32)

    def shrink(self, sums: Floats, kept: Floats) -> Floats:
        """Return the sums after windows lost their oldest events, (users,) `kept` of them: as if the mean one went."""
        shrunk = sums.copy()
        shrunk[:, 1 : 3 + self._platforms] *= kept[:, None, None]
        return shrunk

    def features(self, sums: Floats) -> Floats:
        """Return what the map reads (users, features)."""
        width = len(self._names) - 1
        vectors, named, weight = sums[..., :width], sums[..., width:-1], sums[..., -1:]
        means = vectors / (weight + 1)
        roots = vectors[:, 2 : 2 + self._platforms] / np.sqrt(weight[:, 2 : 2 + self._platforms] + 1)
        parts = [
            np.log1p(named[:, [0, 1, -1]]),
            np.log((named[:, 3 + self._platforms : -1] + _SMOOTHED) / (weight[:, 3 + self._platforms : -1] + 1)),
            means[:, 1:],
            roots,
            np.log1p(weight[:, 1:]),
        ]
        return np.asarray(np.concatenate([part.reshape(len(sums), -1) for part in parts], axis=1), np.float32)

    def logits(self, sums: Floats) -> Floats:
        """Return the map's answer (users, labels); only its differences mean anything."""
        answer: Floats = self.features(sums) @ self._weights
        return answer

    def _kinds(
        self, platform: NDArray[np.int32], action: NDArray[np.int32], present: Floats, hours: Floats, newer: Floats
    ) -> Floats:
        """Return how much each event counts in each kind of sum (kinds, ...)."""
        disliked = _DISLIKED[action] * present
        liked = present - disliked
        recent = _RECENT**newer
        kinds = [
            liked * recent,
            liked,
            *(present * (platform == number) for number in range(1, self._platforms + 1)),
            present,
            *(liked * np.exp2(-hours / half_life_h) for half_life_h in _HALF_LIVES_H),
            disliked * recent,
        ]
        return np.asarray(np.stack(kinds), np.float32)

    def _said(self, vectors: Floats, present: Floats) -> Floats:
        """Return (..., width + labels + 1): a text's vector, the labels it names, and 1."""
        has_text = (vectors != 0).any(-1, keepdims=True).astype(np.float32)
        named = has_text / (1 + np.exp(-(vectors @ self._names[:-1] + self._names[-1])))
        return np.asarray(np.concatenate([vectors, named, present[..., None]], axis=-1), np.float32)


def tops(logits: Floats, published: Sequence[int]) -> NDArray[np.bool_]:
    """Return which labels are on top (users, labels), of those that may be published."""
    shown = np.full(logits.shape, -np.inf, np.float32)
    shown[:, published] = logits[:, published]
    order = np.argsort(-shown, axis=1, kind="stable")[:, :TOP]
    found = np.zeros(logits.shape, np.bool_)
    np.put_along_axis(found, order, values=True, axis=1)
    return found


def leads(logits: Floats, top: NDArray[np.bool_], published: Sequence[int]) -> Floats:
    """Return by how much the lowest label of `top` lies above the highest other one (users,)."""
    inside = np.where(top, logits, np.inf).min(axis=1)
    others = np.full(logits.shape, -np.inf, np.float32)
    others[:, published] = np.where(top[:, published], -np.inf, logits[:, published])
    return np.asarray(inside - others.max(axis=1), np.float32)


def logits_of(scores: NDArray[Any]) -> Floats:
    """Return scores in [0, 1] as logits, those at an end just inside it."""
    inside = np.clip(scores.astype(np.float32), 1e-5, 1 - 1e-5)
    return np.asarray(np.log(inside) - np.log1p(-inside), np.float32)
