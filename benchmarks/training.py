"""How fast a release is trained: encoder and head apart, beside Hugging Face's `Trainer` on the fused text of windows.

Both learn from the same windows of the same log with the same pretrained encoder, in one run, one after the other. Ours
reads every distinct text a few times with the encoder and every window as vectors; its figure counts all of that:
fine-tuning, vectors and head. The peer's is the speed of `Trainer.train()` alone. A head-only refresh is everything
that is done when vectors are cached: windows of the log, head, evaluation, export.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from trainer.data.dataset import build_examples
from trainer.networks.models import default_base
from trainer.run.options import TrainOptions
from trainer.train import train_on
from xplat_stream.errors import StackError
from xplat_stream.population import Population
from xplat_stream.settings import Settings
from xplat_stream.taxonomy import load_taxonomy
from xplat_stream.window import WindowSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from trainer.data.dataset import Dataset
    from xplat_stream.event import Event

_SEED: Final = 11
_START_MS: Final = 1_780_000_000_000
_DAYS: Final = 60
_DAY_MS: Final = 86_400_000
_TEXTS_OF_A_WINDOW: Final = 24
"""The newest ones, which fill the tokens the peer reads."""

_MAX_TOKENS: Final = 128
_BATCH: Final = 32


class TrainingResult(msgspec.Struct, frozen=True):
    """One run. An example is a window with its target, shown once to the optimizer."""

    events: int
    users: int
    texts: int
    windows: int
    """Distinct training windows."""
    windows_shown: int
    encoder_s: float
    vectors_s: float
    head_s: float
    examples_per_s: float
    """Windows shown over encoder, vectors and head together."""
    head_examples_per_s: float
    """Windows shown over the head's seconds alone."""
    trainer_examples: int
    trainer_s: float
    trainer_examples_per_s: float
    ratio: float
    """`examples_per_s` over `trainer_examples_per_s`."""
    head_refresh_events: int
    head_refresh_s: float
    """Windows of all events, head, evaluation and export; the vectors are there already."""
    seconds_by_stage: dict[str, float]
    threads: int
    ndcg_at_10: float
    """Of the release trained here: speed that forgets to learn would be none."""


def bench_training(
    *, events: int, users: int, trainer_examples: int, threads: int, report: Callable[[str], None]
) -> TrainingResult:
    """Train both. Raises `DataError` where there are too few events to train on, `StackError` where the peer fails."""
    population = Population(load_taxonomy(), users=users, seed=_SEED)
    log = list(population.events(_START_MS, _START_MS + _DAYS * _DAY_MS, events))
    report(f"{len(log)} events of {users} users")
    options = TrainOptions(publish=False, threads=threads, max_texts=events)
    shown = _Shown()
    result = train_on(log, Settings(), options, shown)
    seconds = result.seconds_by_stage
    spent_s = seconds["encoder"] + seconds["vectors"] + seconds["head"]
    windows_shown = shown.windows(options)
    report(f"encoder and head apart: {windows_shown / spent_s:,.0f} examples/s; {seconds}")
    data, texts, targets = _fused(log, options, trainer_examples)
    trainer_s = _stock_trainer(texts, targets, threads)
    report(f"Hugging Face Trainer: {len(texts) / trainer_s:,.1f} examples/s")
    return TrainingResult(
        events=len(log),
        users=users,
        texts=len(data.texts.texts),
        windows=shown.examples,
        windows_shown=windows_shown,
        encoder_s=seconds["encoder"],
        vectors_s=seconds["vectors"],
        head_s=seconds["head"],
        examples_per_s=round(windows_shown / spent_s, 1),
        head_examples_per_s=round(windows_shown / seconds["head"], 1),
        trainer_examples=len(texts),
        trainer_s=round(trainer_s, 2),
        trainer_examples_per_s=round(len(texts) / trainer_s, 2),
        ratio=round(windows_shown / spent_s / (len(texts) / trainer_s), 1),
        head_refresh_events=len(log),
        head_refresh_s=round(sum(seconds[stage] for stage in ("examples", "head", "evaluate", "export")), 2),
        seconds_by_stage=seconds,
        threads=threads,
        ndcg_at_10=round(result.metrics["ndcg_at_10"], 4),
    )


class _Shown:
    """Counts what the head is shown. A `Report`."""

    def __init__(self) -> None:
        self.examples = 0
        self._share = 0.0

    def __call__(self, stage: str, done: int, total: int, metrics: Mapping[str, float]) -> None:
        """See `Report`."""
        if stage == "examples":
            self.examples = total
        elif stage == "head" and "loss" in metrics:
            self._share = done / total

    def windows(self, options: TrainOptions) -> int:
        """Return how many windows that was: all of them once an epoch, until it stopped."""
        epochs = max(1, min(options.head_epochs, round(options.head_windows_shown / self.examples)))
        return ceil(self._share * epochs * self.examples)


def _fused(log: Sequence[Event], options: TrainOptions, count: int) -> tuple[Dataset, list[str], list[list[int]]]:
    """Return the data of the training, and some of its windows as one text each, the newest event first."""
    window = Settings().window
    data = build_examples(log, load_taxonomy(), WindowSpec(window.per_platform, window.horizon), options)
    chosen = np.random.default_rng(_SEED).choice(len(data.train), min(count, len(data.train)), replace=False)
    texts = []
    for row in chosen:
        length = int(data.train.inputs.length[row])
        known = data.train.inputs.text[row, max(0, length - _TEXTS_OF_A_WINDOW) : length][::-1].tolist()
        texts.append(" ; ".join(data.texts.texts[position - 1] for position in known if position))
    return data, texts, data.train.targets[chosen].astype(int).tolist()


def _stock_trainer(texts: list[str], targets: list[list[int]], threads: int) -> float:
    """Return the seconds that the peer trains on these examples."""
    with tempfile.TemporaryDirectory(prefix="xplat-bench-") as folder:
        given = Path(folder) / "examples.json"
        content = {
            "base": default_base(),
            "texts": texts,
            "targets": targets,
            "batch": _BATCH,
            "max_tokens": _MAX_TOKENS,
            "threads": threads,
        }
        given.write_text(json.dumps(content), "utf-8")
        ran = subprocess.run(
            [sys.executable, "-m", "benchmarks.stock_trainer", str(given)], capture_output=True, text=True, check=False
        )
    if ran.returncode:
        raise StackError(
            "the Hugging Face Trainer failed",
            where="benchmarks.stock_trainer",
            expected="exit code 0",
            fix=ran.stderr.strip().rpartition("\n")[2][:300],
        )
    return float(json.loads(ran.stdout.strip().rpartition("\n")[2])["seconds"])
