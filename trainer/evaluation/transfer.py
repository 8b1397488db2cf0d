"""What one platform says about another: source by source, and the guard that mutes a source which does harm.

The guard measures what hiding a source platform's events does to the target, on users that the model at hand was not
fitted on. A source whose hiding helps, with a 99.9 % interval above zero, is **muted** for that target: the method is
fitted again without it and never sees it when scoring. The models of all folds are asked, for the fewer the users, the
less shows; but the users who are tested in a fold have no say in what is muted there: there they all count as tuning
users who belong to other folds.

What a model was fitted with it cannot forget by not seeing it: hiding tells less than learning without. So a regression
on words, which takes seconds, learns from a fold's training users with and without each source, and one that is
`trainer.fitting.linear.misleading` is muted too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from trainer.data.examples import last_of_each, thinned
from trainer.data.study import target_platforms
from trainer.fitting.linear import count_words, misleading
from trainer.measuring.measures import Interval, bootstrap_mean, ndcg
from trainer.measuring.methods import Split, Trial, prepare, scores_of, try_looks
from xplat_stream.event import Event, Millis

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    from trainer.data.histories import Log
    from trainer.data.sources import Source
    from trainer.data.study import Cuts, Study
    from trainer.measuring.methods import Fitted, Look, Method, Scores
    from xplat_stream.event import Object

PLANTED: Final = "planted"
"""The platform that `PlantedSource` adds."""

_CONFIDENCE: Final = 0.999
"""Every fold asks about every source: at 95 % one that does nothing was muted by chance in one fold of five."""


_LEARNED_FROM: Final = 10_000
"""Training users of a fold whom the regression is shown at the most."""


@dataclass(frozen=True, slots=True)
class Hiding:
    """A method that neither learns from nor sees some platforms. `hidden`: positions in Study.platforms."""

    method: Method
    hidden: frozenset[int]
    name: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or self.method.name)

    def prepare(self, study: Study) -> None:
        """See `trainer.measuring.methods.Prepares`."""
        prepare(self.method, study)

    def fit(self, study: Study, train: Cuts, tune: Cuts) -> Fitted:
        """See `Method`."""
        look = showing(set(range(len(study.platforms))) - self.hidden)
        return _Blinkered(self.method.fit(study, look(train), look(tune)), look)


@dataclass(frozen=True, slots=True)
class _Blinkered:
    """A fitted method that sees less."""

    fitted: Fitted
    look: Look

    def scores(self, cuts: Cuts) -> Scores:
        """See `Fitted`."""
        return self.fitted.scores(self.look(cuts))


def showing(platforms: Collection[int]) -> Look:
    """Return the look that hides all platforms but these, by position in Study.platforms."""
    return lambda cuts: cuts.seeing(platforms)


def sources(study: Study) -> list[int]:
    """Return the positions of the platforms that are no target: the ones that may be muted. None without a target."""
    return sorted(set(range(len(study.platforms))) - target_platforms(study.task, study.platforms))


class Harm(NamedTuple):
    """What hiding one source platform does to the target, measured on users that were held out."""

    platform: str
    hiding: Interval
    """NDCG@10 with the platform hidden minus NDCG@10 with it shown, 99.9 % interval; above zero: it does harm."""
    users: int

    @property
    def harmful(self) -> bool:
        """Whether the target is better off without it beyond what the choice of users explains."""
        return self.hiding.low > 0


class _Seen(NamedTuple):
    """What hiding each source does to the cuts of users held out in one fold, and which ones mislead."""

    fold: int
    user: NDArray[np.int64]  # (cuts,)
    gains: dict[int, NDArray[np.float64]]  # source → (cuts,)
    misleading: frozenset[int]
    """Sources without which a regression learns more from the fold's training users."""


@dataclass(slots=True)
class HarmWatch:
    """What hiding each source does to each user held out, as `try_looks` goes. A `trainer.measuring.methods.Watch`."""

    study: Study
    method: Method
    _sums: dict[int, NDArray[np.float64]] = field(default_factory=dict)  # platform → (histories, 2): gain, cuts
    _misleading: dict[int, frozenset[int]] = field(default_factory=dict)  # fold → sources

    def look(self, parts: Split, fitted: Fitted) -> _Seen:
        """Ask the model of one fold about all cuts of the users that it was not fitted on."""
        chosen = np.zeros(len(self.study.histories), np.bool_)
        chosen[parts.tune.user] = chosen[parts.test.user] = True
        cuts = self.study.train.of_users(chosen)
        everything = set(range(len(self.study.platforms)))
        shown = ndcg(scores_of(self.method.name, fitted, cuts), cuts.targets)
        gains = {
            source: ndcg(scores_of(self.method.name, fitted, cuts.seeing(everything - {source})), cuts.targets) - shown
            for source in sources(self.study)
        }
        last = parts.train.take(thinned(last_of_each(parts.train.user), _LEARNED_FROM))
        words, asked = count_words(self.study.texts), [source + 1 for source in gains]
        found = misleading(self.study.texts, words, last.inputs, last.targets, asked)
        fold = int(self.study.fold[parts.test.user[0]])
        return _Seen(fold, cuts.user, gains, frozenset(one - 1 for one in found))

    def note(self, seen: _Seen) -> None:
        """See `trainer.measuring.methods.Watch`."""
        for source, gain in seen.gains.items():
            sums = self._sums.setdefault(source, np.zeros((len(self.study.histories), 2)))
            np.add.at(sums, seen.user, np.stack([gain, np.ones_like(gain)], 1))
        self._misleading[seen.fold] = seen.misleading

    def muted(self, fold: int) -> frozenset[int]:
        """Return the sources to be muted in a fold; the users tested there had no say."""
        harmful = {source for source, harm in self.harms(outside=fold).items() if harm.harmful}
        return self._misleading[fold] | harmful

    def harms(self, outside: int = -1) -> dict[int, Harm]:
        """Return source position → harm, by the users who are not tested in the fold `outside`."""
        found = {}
        for source, sums in self._sums.items():
            asked = (sums[:, 1] > 0) & (self.study.fold != outside)
            gains = sums[asked, 0] / sums[asked, 1]  # one value a user, however many cuts and models
            hiding = bootstrap_mean(gains, confidence=_CONFIDENCE)
            found[source] = Harm(self.study.platforms[source], hiding, len(gains))
        return found


class Guarded(NamedTuple):
    """A method tried with the guard on."""

    trials: Mapping[str, Trial]
    """Look → trial of the guarded method."""
    unguarded: Mapping[str, Trial]
    """Look → trial of the method that hears every platform."""
    harms: dict[int, Harm]
    """Source position → harm, by all users."""
    muted: dict[int, frozenset[int]]
    """Fold → the sources muted in it."""

    def muted_folds(self, source: int) -> int:
        """Return in how many folds a source is muted."""
        return sum(source in found for found in self.muted.values())


def try_guarded(
    study: Study,
    method: Method,
    looks: Mapping[str, Look],
    *,
    folds: Collection[int],
    report: Callable[[int], None] | None = None,
) -> Guarded:
    """Try a method as `try_looks` does; in folds where a source does harm, fit and score it again without."""
    watch = HarmWatch(study, method)
    plain = try_looks(study, method, looks, folds=folds, report=report, watch=watch)
    muted = {fold: watch.muted(fold) for fold in folds}
    trials = plain
    for hidden in sorted(set(muted.values()) - {frozenset()}, key=sorted):
        again = [fold for fold in folds if muted[fold] == hidden]
        without = try_looks(study, Hiding(method, hidden), looks, folds=again)
        trials = {look: _replaced(study, trials[look], without[look], again) for look in looks}
    return Guarded(trials, plain, watch.harms(), muted)


def _replaced(study: Study, trial: Trial, other: Trial, folds: Collection[int]) -> Trial:
    """Return a trial with the users of some folds taken from another one."""
    fold = study.fold[study.test.user]  # (users,)
    rows = np.isin(fold, list(folds))
    kept = tuple(told for told in trial.tuned if not np.isin(fold[told.rows[:1]], list(folds)).any())
    return Trial(
        np.where(rows[:, None], other.scores, trial.scores),
        np.where(rows, other.threshold, trial.threshold),
        (*kept, *other.tuned),
    )


class PlantedSource:
    """A source with the platform `PLANTED` added: the same users, touching items of others at random. A `Source`.

    Every user gets as many planted events as there are own ones, at the times of own ones. Each is about an item drawn
    from all items of the log, its title and labels included: noise that looks like behavior.
    """

    def __init__(self, source: Source, log: Log, *, seed: int = 0) -> None:
        """`log`: of that source. Its users and their times are read from there."""
        self.name, self.taxonomy, self.by_content = source.name, source.taxonomy, source.by_content
        self.expected = 2 * source.expected
        self._source, self._log, self._seed = source, log, seed

    @property
    def excluded(self) -> Mapping[str, int]:
        """See `Source`."""
        return self._source.excluded

    def identity(self) -> Any:
        """See `Source`."""
        return {PLANTED: self._source.identity(), "seed": self._seed}

    def events(self) -> Iterator[Event]:
        """See `Source`. Holds the items, and no event."""
        items: dict[tuple[str, str], Object] = {}
        for event in self._source.events():
            items[event.platform, event.object.id] = event.object
            yield event
        random, objects = np.random.default_rng(self._seed), list(items.values())
        for history in self._log.histories:
            count = len(history.time)
            moments, drawn = random.choice(history.time, count), random.integers(0, len(objects), count)
            for number, (moment, item) in enumerate(zip(moments.tolist(), drawn.tolist(), strict=True)):
                event_id = f"//{PLANTED}/{history.user_id}#{number}"
                yield Event(event_id, history.user_id, PLANTED, "rate", objects[item], Millis(moment))


class MatrixCell(NamedTuple):
    """What a source platform says about a target platform, both seen by the same model."""

    source: str
    target: str
    users: int
    """Evaluated users with events of the source in the window."""
    alone: Interval
    """NDCG@10 of the source alone minus popularity's."""
    added: Interval
    """NDCG@10 of source and target together minus the target alone."""


def pair(source: str, target: str) -> str:
    """Return the name of the look that shows two platforms."""
    return f"{source} + {target}"


def only(platform: str) -> str:
    """Return the name of the look that shows one platform."""
    return f"only {platform}"


def without(platform: str) -> str:
    """Return the name of the look that hides one platform."""
    return f"without {platform}"


def pair_looks(study: Study, target: Iterable[int]) -> dict[str, Look]:
    """Return the looks that `matrix_column` needs of a study with these target platforms."""
    names = study.platforms
    looks = {only(name): showing({position}) for position, name in enumerate(names)}
    for one in sorted(target):
        for other in range(len(names)):
            if other != one:
                looks[pair(names[other], names[one])] = showing({other, one})
    return looks


def matrix_column(
    study: Study, target: int, trials: Mapping[str, Trial], popularity: NDArray[np.floating[Any]]
) -> list[MatrixCell]:
    """Return the cells of one target platform, a source each; only users who have events of the source are counted.

    `trials`: of `pair_looks`. `popularity`: NDCG@10 of popularity of each evaluated user (users,).
    """
    cuts, names = study.test, study.platforms
    target_only = ndcg(trials[only(names[target])].scores, cuts.targets)
    cells = []
    for source, name in enumerate(names):
        if source == target:
            continue
        rows = users_with(study, source)
        alone = ndcg(trials[only(name)].scores, cuts.targets) - popularity
        both = ndcg(trials[pair(name, names[target])].scores, cuts.targets) - target_only
        cells.append(
            MatrixCell(name, names[target], len(rows), bootstrap_mean(alone[rows]), bootstrap_mean(both[rows]))
        )
    return cells


def users_with(study: Study, platform: int) -> NDArray[np.int64]:
    """Return the evaluated users, as positions in Study.test, whose window holds events of a platform."""
    inputs = study.test.inputs
    return np.flatnonzero(((inputs.platform == platform + 1) & (inputs.action > 0)).any(axis=1))
