"""The model that is served, as a method: encoder and head, fitted on the cuts of some users, scoring others'."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from tokenizers import Tokenizer

from trainer.fit_head import Fitting, LabelledWindows, score_windows
from trainer.joint import TextStates, fit_together, text_states
from trainer.models import Pretrained, default_base, load_pretrained
from trainer.options import TrainOptions
from trainer.progress import silent
from xplat_stream.serving.features import TextFeatures

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from trainer.head import Head
    from trainer.models import Encoder
    from trainer.progress import Report
    from trainer.study import Cuts, Study
    from trainer.texts import TextTable

SPLIT = "split"


class Prepared(NamedTuple):
    """A transformer and what it says of a study's texts."""

    pretrained: Pretrained
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
    """Encoder and head. A `trainer.methods.Method`.

    The transformer is prepared and run once a study, over its texts alone: titles and categories, nobody's behavior.
    Everything that learns from behavior is fitted anew for every fold.
    """

    options: TrainOptions = field(default_factory=TrainOptions)
    name: str = SPLIT
    report: Report = silent
    pretrained: Callable[[TextTable], Pretrained] | None = None
    """Prepares the transformer; by default the pretrained one as it is."""
    _prepared: dict[tuple[str, ...], Prepared] = field(default_factory=dict, repr=False)

    def fit(self, study: Study, train: Cuts, tune: Cuts) -> FittedSplit:
        """See `Method`."""
        prepared = self.prepared(study.texts)
        encoder = prepared.pretrained.encoder.beside()
        views = [{platform + 1 for platform in view} for view in study.views().values()]
        fitting = Fitting(
            LabelledWindows.of_cuts(train),
            LabelledWindows.of_cuts(tune),
            study.texts,
            len(study.platforms),
            self.options,
            self.report,
            [view for view in views if len(view) < len(study.platforms)] or None,
            study.target(),
        )
        return FittedSplit(encoder, *fit_together(encoder, prepared.states, fitting))

    def prepare(self, study: Study) -> None:
        """See `trainer.methods.Prepares`."""
        self.prepared(study.texts)

    def prepared(self, texts: TextTable) -> Prepared:
        """Return the transformer, which runs over the texts once, however many folds there are."""
        key = tuple(texts.texts)
        if key not in self._prepared:
            pretrained = self.pretrained(texts) if self.pretrained else _as_it_is(self.options)
            features = TextFeatures(
                Tokenizer.from_str(pretrained.tokenizer.decode()), max_tokens=self.options.max_tokens
            )
            self._prepared.clear()  # one study at a time
            self._prepared[key] = Prepared(
                pretrained, text_states(pretrained.encoder, features, texts.texts, self.report)
            )
        return self._prepared[key]


def _as_it_is(options: TrainOptions) -> Pretrained:
    pretrained = load_pretrained(options.base or default_base(), width=options.width, lora_rank=options.lora_rank)
    pretrained.encoder.merge()
    return pretrained
