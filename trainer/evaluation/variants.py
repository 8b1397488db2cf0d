"""The lines of the ablation table by name: what each option of the training brings, or takes away.

Each is one change to the served model's options. All that concerns the encoder's fine-tuning changes that too, for
there is none of it in the base: such a line is to be read beside "LoRA fine-tuning".
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import msgspec

from trainer.evaluation.ablation import Ablation
from xplat_stream.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trainer.evaluation.split import SplitMethod

ALL: Final = "all"

_LORA: Final = {"adapter": "lora"}

CHANGES: Final[Mapping[str, Mapping[str, Any]]] = {
    "LoRA fine-tuning": _LORA,
    "LoRA + dropped words": {**_LORA, "augment": "words"},
    "LoRA + spans": {**_LORA, "augment": "span"},
    "LoRA + FGM": {**_LORA, "fgm": 0.1},
    "LoRA + softmax loss": {**_LORA, "loss": "softmax"},
    "LoRA + InfoNCE": {**_LORA, "contrast": 0.1},
    "LoRA + weak labels": {**_LORA, "weak_labels": True},
    "masked-LM pretraining + LoRA": {**_LORA, "mlm_steps": 300},
    "self-training": {"self_training": True},
    "taxonomy parents": {"parents": 0.3},
    "words teacher": {"words_teacher": True},
    "three teachers": {"teachers": 3},
    "words and three teachers": {"words_teacher": True, "teachers": 3},
    "one member": {"members": 1},
    "no event dropout": {"event_dropout": 0.0},
    "no platform dropout": {"platform_dropout": 0.0},
}
"""Line → changes of `TrainOptions`."""


def ablation_of(main: SplitMethod, names: Sequence[str], *, folds: int) -> Ablation:
    """Return the lines of these names, or of `ALL`, on the users of the first `folds` folds.

    The base is the main method without teachers, which would make each line three times as dear. Raises `DataError`
    for a name that is none.
    """
    unknown = [name for name in names if name not in CHANGES and name != ALL]
    if unknown or not names:
        raise DataError(
            f"no line of the ablation is called {', '.join(unknown) or 'nothing'}",
            where="--ablate",
            expected=f"{ALL}, or some of: {', '.join(CHANGES)}",
            fix="Correct --ablate; names are joined by commas.",
        )
    options = msgspec.structs.replace(main.options, teachers=0, words_teacher=False)
    variants = [
        replace(main, name=name, options=msgspec.structs.replace(options, **changes))
        for name, changes in CHANGES.items()
        if ALL in names or name in names
    ]
    return Ablation(replace(main, name=f"{main.name} without teachers", options=options), variants, range(folds))
