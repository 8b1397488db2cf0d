"""A fine-tuning of the tiny encoder that writes what it gave; run as a program, by each of several processes."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import torch

from tests.trainer.conftest import OPTIONS, SPEC
from tests.trainer.corpus import make_log, taxonomy
from trainer.data.dataset import build_examples
from trainer.fitting.fit import fit_encoder
from trainer.run.devices import is_first_process


def main(base: str, folder: Path) -> None:
    """Write ``<rank>.pt``: the weights, how many steps they took, and whether this process would publish."""
    data = build_examples(make_log(users=60, events_each=20, items=2), taxonomy(), SPEC, OPTIONS)
    options = msgspec.structs.replace(OPTIONS, encoder_texts_shown=200, encoder_batch=8, encoder_lr=1e-3, threads=1)
    told = []
    encoder, _ = fit_encoder(data.texts, options, base, lambda _stage, _done, total, _metrics: told.append(total))
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    found = {"weights": encoder.state_dict(), "steps": told[-1] if told else 0, "first": is_first_process()}
    torch.save(found, folder / f"{rank}.pt")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
