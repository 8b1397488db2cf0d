"""What a training runs on: one process or several, and the number format of their devices.

Under ``accelerate launch`` or ``torchrun`` every process runs the whole of `trainer.train`. They share the steps of the
encoder; everything else each computes for itself, alike, and the first one alone writes and publishes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from xplat_stream.errors import DataError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from trainer.run.options import TrainOptions


def accelerator_for(options: TrainOptions) -> Accelerator:
    """Return what places networks on devices. Raises `DataError` when they lack the precision asked for."""
    from accelerate import Accelerator

    precision: str = options.precision
    if precision == "auto":
        precision = "no" if not torch.cuda.is_available() else "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    try:
        return Accelerator(mixed_precision=precision)
    except ValueError as error:
        raise DataError(
            f"the encoder cannot be trained in {precision}: {str(error).splitlines()[0]}",
            where="precision",
            expected="a number format of this device, and one for the whole process",
            fix="Leave `precision` at `auto`.",
        ) from error


def is_first_process() -> bool:
    """Tell whether this process is the one that writes and publishes: the first of several, or the only one."""
    from accelerate import PartialState

    return bool(PartialState().is_main_process)
