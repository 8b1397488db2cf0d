"""A small training with everything on that draws at random; run as a program, it is there to be killed."""

from __future__ import annotations

import sys
from datetime import timedelta

from tests.trainer.corpus import make_log
from trainer.run.options import TrainOptions
from trainer.run.progress import Report, silent
from trainer.train import TrainResult, train_on
from xplat_stream.settings import Settings


def options(base: str, folder: str, *, resume: bool) -> TrainOptions:
    """Return its options. It saves where it stands after every step."""
    return TrainOptions(
        base=base,
        publish=False,
        adapter="adalora",  # keeps more than weights
        augment="words",
        fgm=0.05,
        contrast=0.3,
        encoder_texts_shown=1200,
        encoder_epochs=20,
        encoder_patience=20,
        encoder_batch=8,
        head_epochs=2,
        max_events=24,
        threads=1,
        checkpoint=folder,
        checkpoint_every=timedelta(0),
        resume=resume,
    )


def run(base: str, folder: str, *, resume: bool, report: Report = silent) -> TrainResult:
    """Train."""
    events = make_log(users=60, events_each=20, items=2)
    return train_on(events, Settings(), options(base, folder, resume=resume), report)


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2], resume=False)
