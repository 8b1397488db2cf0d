"""A simulated population as a study, beside an oracle that knows what every person is interested in.

Nobody can foretell which of a person's interests comes next, so a perfect NDCG is out of reach for everyone. The oracle
ranks labels by the shares that the simulation draws events from, as they are at the cut: what it reaches is what there
is to reach, and how near a model comes to it says how much of the interests it has found.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
import numpy as np

from trainer.baselines import DecayedCounts, Linear, Popularity
from trainer.dataset import split_study
from trainer.measures import ndcg
from trainer.methods import try_method
from trainer.study import EVERYTHING, Study, Task, build_study
from xplat_stream.population import Population
from xplat_stream.taxonomy import load_taxonomy
from xplat_stream.window import WindowSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from trainer.methods import Method
    from trainer.options import TrainOptions
    from trainer.progress import Report
    from xplat_stream.settings import Settings

_START_MS: Final = 1_780_000_000_000
_DAY_MS: Final = 86_400_000
ORACLE: Final = "oracle"
HEAD: Final = "encoder + head"


class SimulatedStudy(NamedTuple):
    """A study of simulated people, and what the oracle says of its test cuts."""

    study: Study
    oracle: NDArray[np.float32]  # (test cuts, labels), latent shares at the cut, summing to 1 over all labels


class AgainstOracle(msgspec.Struct, frozen=True):
    """NDCG@10 of each method on the same test users; `share` is it over the oracle's, 1 = as good as can be."""

    users: int
    ndcg: dict[str, float]
    share: dict[str, float]


def simulated_study(
    users: int, *, events_each: int = 60, days: float = 30.0, seed: int = 7, task: Task | None = None
) -> SimulatedStudy:
    """Simulate `users` people with `events_each` events on average over `days`, and cut their histories.

    The same arguments give the same study. Raises `DataError` where so few people have too little to foretell.
    """
    taxonomy = load_taxonomy()
    population = Population(taxonomy, users=users, seed=seed)
    end_ms = _START_MS + round(days * _DAY_MS)
    events = population.events(_START_MS, end_ms, users * events_each)
    study = build_study(f"simulated-{users}", events, taxonomy, WindowSpec(), task or Task())
    labels = study.taxonomy.ids()
    latent = [
        population.interests(study.histories.users[user], at)
        for user, at in zip(study.test.user.tolist(), study.test.at.tolist(), strict=True)
    ]
    return SimulatedStudy(study, np.array([[shares[label] for label in labels] for shares in latent], np.float32))


def against_oracle(
    simulated: SimulatedStudy, methods: Sequence[Method] = (Popularity(), DecayedCounts(), Linear())
) -> AgainstOracle:
    """Try methods on all five folds, beside the oracle on the same users."""
    study = simulated.study
    targets = study.test.targets
    scores = {method.name: try_method(study, method, views=[EVERYTHING])[EVERYTHING].scores for method in methods}
    return _compared(targets, {ORACLE: simulated.oracle, **scores})


def release_against_oracle(
    simulated: SimulatedStudy, settings: Settings, options: TrainOptions, report: Report
) -> AgainstOracle:
    """Train encoder and head as a release is trained, four users in five, and compare on the test users of the fifth.

    Minutes; nothing is published.
    """
    from trainer.train import train_data

    study = simulated.study
    options = msgspec.structs.replace(options, publish=False)
    data = split_study(study, options, "user")
    result = train_data(data, settings, options, report)
    row = {study.histories.users[user]: place for place, user in enumerate(study.test.user.tolist())}
    oracle = simulated.oracle[[row[user] for user in data.test.users]]
    return _compared(data.test.targets, {ORACLE: oracle, HEAD: result.scores})


def _compared(targets: NDArray[np.float32], scores: dict[str, NDArray[np.float32]]) -> AgainstOracle:
    found = {name: float(ndcg(one, targets).mean()) for name, one in scores.items()}
    best = found[ORACLE]
    return AgainstOracle(
        len(targets),
        {name: round(value, 4) for name, value in found.items()},
        {name: round(value / best, 4) for name, value in found.items()},
    )
