"""`xplat train`: options and printing; the run itself is `trainer.train`."""

from __future__ import annotations

import sys
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from xplat_stream.settings import load_settings


def train(  # one option each
    base: Annotated[str, typer.Option(help="Pretrained encoder: Hugging Face id or folder; empty for MiniLM-L6.")] = "",
    head_only: Annotated[
        bool, typer.Option("--head-only", help="Keep the active encoder; seconds, not minutes.")
    ] = False,
    threads: Annotated[int, typer.Option(min=0, help="Cores to use; 0 = all.")] = 0,
    effort: Annotated[float, typer.Option(min=0.01, max=10, help="Times the usual amount of training.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Same log, same seed, same release.")] = 7,
    from_topic: Annotated[bool, typer.Option("--from-topic/--no-from-topic", help="Train on the log in Kafka.")] = True,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Fine-tune on the log, evaluate, export, load into Triton, verify, and announce the new release."""
    from trainer.evaluate import render
    from trainer.progress import RichProgress
    from trainer.train import TrainOptions
    from trainer.train import train as train_release

    if not from_topic:
        raise typer.BadParameter("only --from-topic is there so far; recorded folders go through `xplat replay`")
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
        result = train_release(load_settings(), options, report)
    console.print(render(result.evaluation))
    console.print(f"release {result.release} is active (before: {result.previous or 'none'})", highlight=False)
    if json:
        summary = {
            "release": result.release,
            "previous": result.previous,
            "metrics": result.metrics,
            "seconds": result.seconds_by_stage,
        }
        sys.stdout.write(msgspec.json.encode(summary).decode() + "\n")
