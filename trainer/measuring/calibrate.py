"""Scores made to mean what they say: of all labels scored 0.3, three in ten come true.

Two steps are tried on the tuning users of a fold, temperature (Guo et al., ICML 2017) and isotonic regression
(Zadrozny and Elkan, KDD 2002), beside leaving the scores as they are. The one with the lowest log loss on tuning
users that it was not fitted on is taken. All three are monotone: the order of a user's labels stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import numpy as np

from trainer.networks.losses import log_losses

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from trainer.measuring.methods import Trial

    Scores = NDArray[np.float32]  # (cuts, labels)

AS_IS: Final = "as is"
TEMPERATURE: Final = "temperature"
ISOTONIC: Final = "isotonic"
STEPS: Final = (AS_IS, TEMPERATURE, ISOTONIC)

_TEMPERATURES: Final = np.geomspace(0.25, 4.0, 97)
_SURE: Final = 1e-6
"""No score is taken for surer than this: its logit must stay finite."""
_LEAST_USERS: Final = 8
"""Fewer tuning users than this decide nothing."""


class Calibration(Protocol):
    """A monotone map of scores."""

    @property
    def name(self) -> str:
        """One of `STEPS`."""

    def __call__(self, scores: Scores) -> Scores:
        """Return calibrated scores of any shape, in [0, 1]; a higher score never becomes the lower one."""


@dataclass(frozen=True, slots=True)
class AsIs:
    """The scores as they are."""

    name: str = AS_IS

    def __call__(self, scores: Scores) -> Scores:
        """See `Calibration`."""
        return scores


@dataclass(frozen=True, slots=True)
class Temperature:
    """Logits divided by one number: above 1 scores become less sure."""

    value: float
    name: str = TEMPERATURE

    @classmethod
    def fit(cls, scores: Scores, targets: Scores) -> Temperature:
        """Choose the temperature with the lowest log loss."""
        losses = [log_loss(cls(float(value))(scores), targets) for value in _TEMPERATURES]
        return cls(float(_TEMPERATURES[int(np.argmin(losses))]))

    def __call__(self, scores: Scores) -> Scores:
        """See `Calibration`."""
        sure = np.clip(scores.astype(np.float64), _SURE, 1 - _SURE)
        return np.asarray(1 / (1 + np.exp(-np.log(sure / (1 - sure)) / self.value)), np.float32)


@dataclass(frozen=True, slots=True)
class Isotonic:
    """Frequencies that never fall as the score grows, straight lines between the middles of the steps.

    Joining the middles instead of standing on the steps keeps scores of one step apart (Oron and Flournoy, 2017).
    """

    score: NDArray[np.float64]  # (steps,), ascending
    frequency: NDArray[np.float64]  # (steps,), ascending
    name: str = ISOTONIC

    @classmethod
    def fit(cls, scores: Scores, targets: Scores) -> Isotonic:
        """Fit on all labels at once."""
        from sklearn.isotonic import IsotonicRegression

        flat, true = scores.ravel().astype(np.float64), targets.ravel().astype(np.float64)
        level = IsotonicRegression(y_min=0.0, y_max=1.0).fit_transform(flat, true)
        steps, step_of, size = np.unique(level, return_inverse=True, return_counts=True)
        middle = np.bincount(step_of, flat) / size
        return cls(np.concatenate([[0.0], middle, [1.0]]), np.concatenate([[0.0], steps, [1.0]]))

    def __call__(self, scores: Scores) -> Scores:
        """See `Calibration`."""
        return np.interp(scores.astype(np.float64), self.score, self.frequency).astype(np.float32)


def log_loss(scores: Scores, targets: Scores) -> float:
    """Return the mean binary cross-entropy, natural logarithm."""
    return float(log_losses(scores, targets).mean())


def fit_step(step: str, scores: Scores, targets: Scores) -> Calibration:
    """Fit one of `STEPS` on scores and targets (cuts, labels)."""
    if step == TEMPERATURE:
        return Temperature.fit(scores, targets)
    return Isotonic.fit(scores, targets) if step == ISOTONIC else AsIs()


def choose(scores: Scores, targets: Scores) -> Calibration:
    """Return the step that serves users it was not fitted on best, fitted on all: either half judges the other's."""
    if len(scores) < _LEAST_USERS:
        return AsIs()
    halves = np.arange(len(scores)) % 2 == 0
    losses = dict.fromkeys(STEPS, 0.0)
    for half in (halves, ~halves):
        for step in STEPS:
            fitted = fit_step(step, scores[half], targets[half])
            losses[step] += log_loss(fitted(scores[~half]), targets[~half])
    return fit_step(min(STEPS, key=losses.__getitem__), scores, targets)


class Calibrated(NamedTuple):
    """A trial's scores after calibration, each user by the step of the own fold."""

    scores: Scores  # (users, labels)
    steps: list[str]
    """The name of the step taken, one a fold."""


def calibrated(trial: Trial, step: str = "") -> Calibrated:
    """Calibrate every fold on its own tuning users: by one of `STEPS`, or by the one that `choose` takes."""
    scores, steps = trial.scores.copy(), []
    for told in trial.tuned:
        fitted = fit_step(step, told.scores, told.targets) if step else choose(told.scores, told.targets)
        scores[told.rows] = fitted(trial.scores[told.rows])
        steps.append(fitted.name)
    return Calibrated(scores, steps)


class CurvePoint(NamedTuple):
    """One bin of a calibration curve."""

    score: float
    """Mean score in the bin."""
    frequency: float
    """Share that came true."""
    scores: int
    """Scores in the bin: a user and a label each."""


def curve(scores: Scores, targets: Scores, bins: int = 10) -> Sequence[CurvePoint]:
    """Return the bins of equal width that are not empty, lowest first."""
    place = np.minimum((scores * bins).astype(int), bins - 1).ravel()
    count = np.bincount(place, minlength=bins)
    score = np.bincount(place, scores.ravel().astype(np.float64), minlength=bins)
    true = np.bincount(place, targets.ravel().astype(np.float64), minlength=bins)
    return [
        CurvePoint(float(score[one] / count[one]), float(true[one] / count[one]), int(count[one]))
        for one in np.flatnonzero(count)
    ]
