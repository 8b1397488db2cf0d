"""`xplat train`: options and printing; the run itself is `trainer.train`."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from xplat_stream.settings import load_settings


class SplitWord(StrEnum):
    """See `trainer.dataset.SplitBy`."""

    user = "user"
    time = "time"


def train(  # one option each
    base: Annotated[str, typer.Option(help="Pretrained encoder: Hugging Face id or folder; empty for MiniLM-L6.")] = "",
    head_only: Annotated[
        bool, typer.Option("--head-only", help="Keep the active encoder; seconds, not minutes.")
    ] = False,
    threads: Annotated[int, typer.Option(min=0, help="Cores to use; 0 = all.")] = 0,
    effort: Annotated[float, typer.Option(min=0.01, max=10, help="Times the usual amount of training.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Same log, same seed, same release.")] = 7,
    from_topic: Annotated[bool, typer.Option("--from-topic", help="Train on the log in Kafka: the default.")] = False,
    dataset: Annotated[Path | None, typer.Option(help="Train on a recorded folder instead.")] = None,
    labels: Annotated[str, typer.Option(help="Its labels: tags, categories:N or categories:N-M.")] = "categories:2-3",
    target: Annotated[str, typer.Option(help="Platforms foretold, separated by commas; none: all.")] = "",
    source: Annotated[str, typer.Option(help="Platforms they are foretold from; none: the others.")] = "",
    min_label_users: Annotated[int, typer.Option(min=1, help="A label of fewer users is left out.")] = 30,
    split: Annotated[SplitWord, typer.Option(help="Validate on other users, or on later times.")] = SplitWord.user,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Fine-tune on the log, evaluate, export, load into Triton, verify, and announce the new release."""
    from trainer.evaluate import render
    from trainer.progress import RichProgress
    from trainer.study import Task
    from trainer.train import Recorded, TrainOptions
    from trainer.train import train as train_release

    if from_topic and dataset is not None:
        raise typer.BadParameter("--from-topic and --dataset exclude each other")
    recorded = None
    if dataset is not None:
        task = Task(_names(target), _names(source), min_label_users=min_label_users)
        recorded = Recorded(dataset, labels, task, split.value)
    console = Console(stderr=True)
    usual = TrainOptions()
    options = TrainOptions(
        base=base,
        head_only=head_only,
        threads=threads,
        seed=seed,
        encoder_texts_shown=max(1, round(usual.encoder_texts_shown * effort)),
        head_windows_shown=max(1, round(usual.head_windows_shown * effort)),
    )
    with RichProgress(console) as report:
        result = train_release(load_settings(), options, report, recorded=recorded)
    for what, count in result.excluded.items():
        if count:
            console.print(f"{what}: {count}", highlight=False)
    console.print(render(result.evaluation))
    console.print(f"release {result.release} is active (before: {result.previous or 'none'})", highlight=False)
    if result.serve_with:
        words = " ".join(f"{name}={value}" for name, value in result.serve_with.items())
        console.print(f"serve it with {words}", highlight=False, soft_wrap=True)
    if json:
        summary = {
            "release": result.release,
            "previous": result.previous,
            "metrics": result.metrics,
            "seconds": result.seconds_by_stage,
            "excluded": result.excluded,
            "serve_with": result.serve_with,
        }
        sys.stdout.write(msgspec.json.encode(summary).decode() + "\n")


def _names(words: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in words.split(",") if name.strip())
