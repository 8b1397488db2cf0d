"""The models that inference is measured with: two releases in int8 and the fused baseline beside them, in float32.

Trained on simulated people, briefly: how fast they are does not depend on how good they are. A folder keeps them, so
that a second run begins with them; what is measured then is the same release.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from trainer.data.histories import gather
from trainer.data.study import Task, cut_study
from trainer.export.fused import FusedMethod, FusedOptions
from trainer.export.fused_release import fused_candidate, measured, place_fused
from trainer.measuring.methods import split
from trainer.networks.models import DEFAULT_PACKAGE
from trainer.release.release import place
from trainer.run.options import TrainOptions
from trainer.train import train_on
from xplat_stream.population import Population
from xplat_stream.serving.fused import FUSED
from xplat_stream.serving.releases import ENCODER, HEAD, ModelRepository
from xplat_stream.settings import load_settings
from xplat_stream.taxonomy import load_taxonomy
from xplat_stream.window import WindowSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from xplat_stream.event import Event
    from xplat_stream.settings import Settings

PEOPLE: Final = 400
"""Users of the population that the models are trained on."""

SEED: Final = 5
"""Of people and catalogue: more people of the same seed speak of the same things."""

START_MS: Final = 1_780_000_000_000
SPAN_MS: Final = 20 * 86_400_000
_EVENTS: Final = 16_000


def history() -> list[Event]:
    """Return what the people did whom the models are trained on."""
    people = Population(load_taxonomy(), users=PEOPLE, seed=SEED)
    return list(people.events(START_MS, START_MS + SPAN_MS, _EVENTS))


def train_models(root: Path, settings: Settings, report: Callable[[str], None]) -> ModelRepository:
    """Return the repository in `root` with fused model 3 beside releases 1 and 2, of two encoders; trained if absent.

    Raises `DataError`, `ReleaseError`.
    """
    repository = ModelRepository(root)
    for config in Path(load_settings().model.repository).glob("*/config.pbtxt"):
        (root / config.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(config, root / config.parent.name)
    events = history()
    if not repository.releases():
        few = TrainOptions(encoder_texts_shown=1_000, head_windows_shown=40_000, int8=True, publish=False)
        report("training a release")
        first = train_on(events, settings, few).candidate
        _show(repository, place(repository, 1, first).release)
        report("training another head")
        again = train_on(events, settings, msgspec.structs.replace(few, seed=few.seed + 1)).candidate
        _show(repository, place(repository, 2, again).release)
    if not repository.versions(FUSED):
        report("training the fused model")
        study = cut_study(gather("benchmark", events, load_taxonomy()), _spec(settings), Task())
        parts = split(study, 0)
        fitted = FusedMethod(FusedOptions(epochs=1, users=200)).fit(study, parts.train, parts.tune)
        figures = measured(study, fitted, parts.tune, parts.test)
        place_fused(repository, 3, fused_candidate(study, fitted, parts.test, figures, base=DEFAULT_PACKAGE))
    return repository


def _show(repository: ModelRepository, number: int) -> None:
    manifest = repository.manifest(number)
    repository.show(ENCODER, manifest.encoder)
    repository.show(HEAD, number)


def _spec(settings: Settings) -> WindowSpec:
    return WindowSpec(settings.window.per_platform, settings.window.horizon)
