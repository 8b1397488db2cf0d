"""Looking for better learning rates and sizes than the recipe's, within a budget of minutes.

Optuna's TPE sampler (Bergstra et al. 2011) proposes, a training on the log answers, NDCG@10 on the tuning users
decides; the test users are not looked at. The encoder comes first, with the usual head, then the head on the vectors of
the best encoder, where a trial takes seconds. Both begin with the recipe itself, so nothing worse on those users is
ever chosen.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec
import numpy as np
import optuna

from trainer.fitting.checkpoint import Checkpoint
from trainer.fitting.fit_head import fit_head, score_windows
from trainer.measuring.measures import ndcg
from trainer.run.progress import silent

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from trainer.fitting.fit_head import Fitting
    from trainer.release.encoding import ReadyEncoder
    from trainer.run.options import TrainOptions
    from trainer.run.progress import Report

_ENCODER_SHARE: Final = 0.7
"""Of the budget: an encoder's trial takes minutes, a head's takes seconds."""

_PART: Final = "search"

_Made = TypeVar("_Made")

_Distribution = optuna.distributions.FloatDistribution | optuna.distributions.IntDistribution

_ENCODER_SPACE: Final[Mapping[str, _Distribution]] = {
    "encoder_lr": optuna.distributions.FloatDistribution(1e-4, 2e-3, log=True),
    "lora_rank": optuna.distributions.IntDistribution(4, 32, log=True),
    "encoder_dropout": optuna.distributions.FloatDistribution(0.0, 0.3),
}
_HEAD_SPACE: Final[Mapping[str, _Distribution]] = {
    "head_lr": optuna.distributions.FloatDistribution(3e-4, 5e-3, log=True),
    "head_batch": optuna.distributions.IntDistribution(64, 512, log=True),
    "dropout": optuna.distributions.FloatDistribution(0.0, 0.6),
    "event_dropout": optuna.distributions.FloatDistribution(0.0, 0.4),
    "weight_decay": optuna.distributions.FloatDistribution(1e-3, 0.3, log=True),
}


class Tried(msgspec.Struct, frozen=True):
    """One training of a search."""

    options: dict[str, float]
    ndcg: float
    """NDCG@10 on the tuning users."""
    seconds: float


class Searched(msgspec.Struct, frozen=True):
    """What a search found. `chosen`: the options that differ from those it began with."""

    chosen: dict[str, float]
    ndcg: float
    usual_ndcg: float
    """Of the options it began with."""
    trials: list[Tried]
    seconds: float


def search(
    fitting: Fitting,
    *,
    encoder_of: Callable[[TrainOptions, Report, Checkpoint], ReadyEncoder],
    checkpoint: Checkpoint,
) -> tuple[TrainOptions, Searched]:
    """Return the options of a fitting with what was found put in, and what was tried.

    The budget is `search_minutes`; a trial that has begun is finished, and the recipe itself is always tried.
    `encoder_of` makes the encoder that a trial's options ask for.
    """
    options = fitting.options
    kept = checkpoint.load(_PART)
    if kept is not None:
        found = msgspec.convert(kept, Searched)
        return msgspec.structs.replace(options, **found.chosen), found
    started = perf_counter()
    budget_s = options.search_minutes * 60
    judge = _Judge(fitting, budget_s)

    def vectors(tried: TrainOptions) -> NDArray[np.float16]:
        return encoder_of(tried, silent, Checkpoint.off()).vector_table(fitting.texts.texts, tried, silent)

    def encoder_trial(tried: TrainOptions) -> tuple[float, NDArray[np.float16]]:
        table = vectors(tried)
        return judge.head(tried, table), table

    if options.head_only:
        table = vectors(options)
    else:
        options, table = judge.best(_ENCODER_SPACE, options, encoder_trial, until_s=budget_s * _ENCODER_SHARE)
    options, _ = judge.best(_HEAD_SPACE, options, lambda tried: (judge.head(tried, table), tried), until_s=budget_s)
    found = judge.searched(perf_counter() - started)
    checkpoint.save(_PART, msgspec.to_builtins(found))
    return options, found


class _Judge:
    """Tries options until the time is over, and keeps what it saw."""

    def __init__(self, fitting: Fitting, budget_s: float) -> None:
        self._fitting = fitting
        self._report = fitting.report
        self._budget_s = budget_s
        self._started = perf_counter()
        self._trials: list[Tried] = []
        self._chosen: dict[str, float] = {}

    def head(self, options: TrainOptions, table: NDArray[np.float16]) -> float:
        """Return the NDCG@10 on the tuning users of a head trained on these vectors."""
        head = fit_head(self._fitting._replace(options=options, report=silent), table)
        tune = self._fitting.tune
        return float(np.mean(ndcg(score_windows(head, tune.inputs, table), tune.targets)))

    def best(
        self,
        space: Mapping[str, _Distribution],
        options: TrainOptions,
        trial: Callable[[TrainOptions], tuple[float, _Made]],
        *,
        until_s: float,
    ) -> tuple[TrainOptions, _Made]:
        """Return the best options within a space, and what their trial made."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=options.seed))
        usual = {name: getattr(options, name) for name in space}
        best, (value, made) = options, self._try(usual, options, trial)
        first = optuna.trial.create_trial(params=_inside(usual, space), distributions=dict(space), value=value)
        study.add_trial(first)
        while perf_counter() - self._started < until_s:
            asked = study.ask(dict(space))
            tried = msgspec.structs.replace(options, **asked.params)
            found, product = self._try(asked.params, tried, trial)
            study.tell(asked, found)
            if found > value:
                best, value, made = tried, found, product
        self._chosen |= {name: getattr(best, name) for name in space if getattr(best, name) != usual[name]}
        return best, made

    def _try(
        self, named: Mapping[str, Any], options: TrainOptions, trial: Callable[[TrainOptions], tuple[float, _Made]]
    ) -> tuple[float, _Made]:
        started = perf_counter()
        value, made = trial(options)
        self._trials.append(Tried(dict(named), value, round(perf_counter() - started, 2)))
        best = max(one.ndcg for one in self._trials)
        passed = min(round(perf_counter() - self._started), round(self._budget_s))
        figures = {"trials": len(self._trials), "ndcg": value, "best": best}
        self._report("search", passed, round(self._budget_s), figures)
        return value, made

    def searched(self, seconds: float) -> Searched:
        """Return everything that was seen."""
        best = max(one.ndcg for one in self._trials)
        return Searched(self._chosen, best, self._trials[0].ndcg, self._trials, round(seconds, 1))


def _inside(values: Mapping[str, float], space: Mapping[str, _Distribution]) -> dict[str, float]:
    """Return what of a space lies nearest to these values: what was asked for may lie outside."""
    return {name: min(max(values[name], one.low), one.high) for name, one in space.items()}
