"""A simulated population as a study, beside an oracle that knows what every person is interested in.

Nobody can foretell which of a person's interests comes next, so a perfect NDCG is out of reach for everyone. The oracle
ranks labels by the shares that the simulation draws events from, as they are at the cut: what it reaches is what there
is to reach, and how near a model comes to it says how much of the interests it has found.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import numpy as np

from trainer.data.histories import gather
from trainer.data.study import EVERYTHING, FOLDS, Study, Task
from trainer.evaluation.subject import Subject
from trainer.measuring.measures import ndcg
from trainer.measuring.methods import try_method
from trainer.run.progress import silent
from xplat_stream.population import Population
from xplat_stream.taxonomy import load_taxonomy
from xplat_stream.window import WindowSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from trainer.measuring.methods import Method
    from trainer.run.progress import Report

_START_MS: Final = 1_780_000_000_000
_DAY_MS: Final = 86_400_000


class SimulatedStudy(NamedTuple):
    """A study of simulated people, and what the oracle says of its test cuts."""

    study: Study
    oracle: NDArray[np.float32]  # (test cuts, labels), latent shares at the cut, summing to 1 over all labels


class AgainstOracle(msgspec.Struct, frozen=True):
    """NDCG@10 of the oracle and of each method, on the same users."""

    users: int
    labels: int
    oracle_ndcg10: float
    ndcg10: dict[str, float]
    """Method → NDCG@10; the main one first."""

    def share(self, name: str) -> float:
        """Return what of the oracle's NDCG@10 a method reaches: 1 is as good as can be."""
        return self.ndcg10[name] / self.oracle_ndcg10

    def summary(self) -> dict[str, Any]:
        """Return the figures that a script asks for: the main method's, and under `baselines` the others'."""
        main, *others = (
            {"name": name, "ndcg10": round(value, 4), "oracle_share": round(self.share(name), 4)}
            for name, value in self.ndcg10.items()
        )
        oracle = {"users": self.users, "labels": self.labels, "oracle_ndcg10": round(self.oracle_ndcg10, 4)}
        return {"main": main.pop("name"), **main, **oracle, "baselines": {one.pop("name"): one for one in others}}


def simulated_study(
    users: int,
    *,
    events_each: int = 200,
    days: float = 30.0,
    seed: int = 7,
    task: Task | None = None,
    folds: int = FOLDS,
) -> SimulatedStudy:
    """Simulate `users` people with `events_each` events on average over `days`, and cut their histories.

    The same arguments give the same study. Raises `DataError` where so few people have too little to foretell.
    """
    taxonomy = load_taxonomy()
    population = Population(taxonomy, users=users, seed=seed)
    end_ms = _START_MS + round(days * _DAY_MS)
    events = population.events(_START_MS, end_ms, users * events_each)
    study = Subject(gather(f"simulated-{users}", events, taxonomy), WindowSpec()).study(task or Task(), folds)
    labels = study.taxonomy.ids()
    latent = [
        population.interests(study.histories.users[user], at)
        for user, at in zip(study.test.user.tolist(), study.test.at.tolist(), strict=True)
    ]
    return SimulatedStudy(study, np.array([[shares[label] for label in labels] for shares in latent], np.float32))


def against_oracle(
    simulated: SimulatedStudy, methods: Sequence[Method], *, folds: int = FOLDS, report: Report = silent
) -> AgainstOracle:
    """Try methods on every user, the main one first, beside the oracle on the same users. Raises as `try_method`."""
    study = simulated.study
    targets = study.test.targets

    def reached(method: Method) -> float:
        trials = try_method(
            study,
            method,
            views=(EVERYTHING,),
            folds=range(folds),
            report=lambda done: report(method.name, done, folds, {}),
        )
        return float(ndcg(trials[EVERYTHING].scores, targets).mean())

    return AgainstOracle(
        len(targets),
        targets.shape[1],
        float(ndcg(simulated.oracle, targets).mean()),
        {method.name: reached(method) for method in methods},
    )
