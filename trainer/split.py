"""The model that is served, as a method: encoder and head, fitted on the cuts of some users, scoring others'."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
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


@dataclass(frozen=True, slots=True)
class FittedSplit:
    """A fitted head and the vectors of all texts."""

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
    _prepared: dict[int, tuple[TextTable, Pretrained, TextStates]] = field(default_factory=dict, repr=False)

    def fit(self, study: Study, train: Cuts, tune: Cuts) -> FittedSplit:
        """See `Method`."""
        encoder, states = self._states(study.texts)
        views = [{platform + 1 for platform in view} for view in study.views().values()]
        everything = set(range(1, len(study.platforms) + 1))
        fitted = fit_together(
            encoder,
            states,
            Fitting(
                LabelledWindows.of_cuts(train),
                LabelledWindows.of_cuts(tune),
                study.texts,
                len(study.platforms),
                self.options,
                self.report,
                [view for view in views if view != everything] or None,
            ),
        )
        return FittedSplit(fitted.head, fitted.table)

    def _states(self, texts: TextTable) -> tuple[Encoder, TextStates]:
        held = self._prepared.get(id(texts.texts))
        if held is None:
            if self.pretrained is not None:
                pretrained = self.pretrained(texts)
            else:
                pretrained = load_pretrained(default_base(), width=self.options.width, lora_rank=1)
                pretrained.encoder.merge()
            tokenizer = Tokenizer.from_str(pretrained.tokenizer.decode())
            features = TextFeatures(tokenizer, max_tokens=self.options.max_tokens)
            states = text_states(pretrained.encoder, features, texts.texts, self.report)
            held = self._prepared[id(texts.texts)] = (texts, pretrained, states)
        encoder = copy.copy(held[1].encoder)
        # Its own projection and words each time; the transformer is shared.
        encoder._modules = dict(encoder._modules)  # noqa: SLF001 - copy.copy of a module shares its layers
        encoder._buffers = dict(encoder._buffers)  # noqa: SLF001
        for name in ("project", "words"):
            encoder._modules[name] = copy.deepcopy(held[1].encoder._modules[name])  # noqa: SLF001
        encoder._buffers["rarity"] = torch.zeros_like(held[1].encoder.rarity)  # noqa: SLF001
        return encoder, held[2]
