"""The model that is served, as a method: encoder and head, fitted on the cuts of some users, scoring others'."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from trainer.data.dataset import with_targets
from trainer.fitting.checkpoint import Checkpoint
from trainer.fitting.fit_head import Fitting, LabelledWindows, score_windows
from trainer.fitting.frozen import frozen_vectors
from trainer.fitting.joint import TextStates, fit_together, text_states
from trainer.networks.words import TokenTable
from trainer.release.encoding import FreshEncoder, as_it_is, fine_tuned
from trainer.run.options import TrainOptions
from trainer.run.progress import silent

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from trainer.data.study import Cuts, Study
    from trainer.data.texts import TextTable
    from trainer.networks.head import Head
    from trainer.networks.models import Encoder
    from trainer.run.progress import Report

SPLIT = "split"


class Prepared(NamedTuple):
    """An encoder and what its transformer says of a study's texts."""

    fresh: FreshEncoder
    states: TextStates


@dataclass(frozen=True, slots=True)
class FittedSplit:
    """A fitted encoder and head, and the vectors of all texts."""

    encoder: Encoder
    head: Head
    table: NDArray[np.float16]

    def scores(self, cuts: Cuts) -> NDArray[np.float32]:
        """Return (cuts, labels), as the served graphs do to within the export's tolerance."""
        return score_windows(self.head, cuts.inputs, self.table)


@dataclass
class SplitMethod:
    """Encoder and head. A `trainer.measuring.methods.Method`.

    Everything that learns from behavior is fitted anew for every fold. Without an adapter that leaves the transformer
    out: it is run once a study, over its texts alone, titles and categories. With one it is fine-tuned fold by fold, on
    what the fold's training users touched next, and reads the texts of the people who are cut.
    """

    options: TrainOptions = field(default_factory=lambda: TrainOptions(adapter="none"))
    name: str = SPLIT
    report: Report = silent
    cache: Path | None = None
    """Folder that keeps what the transformer as it is says of texts for the next run; none: nothing is kept."""
    _prepared: dict[tuple[object, ...], Prepared] = field(default_factory=dict, repr=False)

    def fit(self, study: Study, train: Cuts, tune: Cuts) -> FittedSplit:
        """See `Method`."""
        views = [{platform + 1 for platform in view} for view in study.views().values()]
        fitting = Fitting(
            LabelledWindows.of_cuts(train),
            LabelledWindows.of_cuts(tune),
            with_targets(study.texts, train.inputs.newest_texts(), train.targets),
            len(study.platforms),
            self.options,
            self.report,
            [view for view in views if len(view) < len(study.platforms)] or None,
            study.target(),
            study.taxonomy.families(),
        )
        if self.options.adapter == "none":
            fresh, states = self.prepared(study.texts)
        else:
            fresh = fine_tuned(fitting, study.taxonomy, checkpoint=Checkpoint.off())
            # Self-training asks for the labels of all texts.
            rows = None if self.options.self_training else study.readable()
            states = text_states(fresh.encoder, fresh.features, study.texts.texts, self.report, rows)
        encoder = fresh.encoder.beside()
        return FittedSplit(encoder, *fit_together(encoder, states, fitting))

    def prepare(self, study: Study) -> None:
        """See `trainer.measuring.methods.Prepares`."""
        if self.options.adapter == "none":
            self.prepared(study.texts)

    def prepared(self, texts: TextTable) -> Prepared:
        """Return the transformer as it is, which runs over the texts once, however many folds there are."""
        options = self.options
        key = (options.base, options.width, options.max_tokens, *texts.texts)
        if key not in self._prepared:
            self._prepared.clear()  # one study at a time
            fresh = as_it_is(options)
            self._prepared[key] = Prepared(fresh, self._states(fresh, texts.texts))
        return self._prepared[key]

    def _states(self, fresh: FreshEncoder, texts: Sequence[str]) -> TextStates:
        if self.cache is None:
            return text_states(fresh.encoder, fresh.features, texts, self.report)
        options = self.options
        found = frozen_vectors(
            texts,
            base=options.base,
            max_tokens=options.max_tokens,
            cache=self.cache,
            threads=torch.get_num_threads(),
            report=self.report,
        )
        return TextStates(np.concatenate([np.zeros_like(found[:1]), found]), TokenTable.of(fresh.features, texts))
