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
    int8: Annotated[bool, typer.Option("--int8", help="Serve the encoder in int8.")] = False,
    prune_heads: Annotated[int, typer.Option(min=0, help="Attention heads cut out of the encoder.")] = 0,
    width: Annotated[int, typer.Option(min=1, max=1024, help="Numbers in a text's vector.")] = 64,
    fused: Annotated[
        bool, typer.Option("--fused", help="Train the fused baseline instead: loaded, measured, never announced.")
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
    if fused:
        _train_fused(console, base=base, threads=threads, seed=seed, json=json)
        return
    usual = TrainOptions()
    options = TrainOptions(
        base=base,
        head_only=head_only,
        int8=int8,
        prune_heads=prune_heads,
        width=width,
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


def _train_fused(console: Console, *, base: str, threads: int, seed: int, json: bool) -> None:
    from trainer.fused import FusedOptions
    from trainer.fused_release import train_fused
    from trainer.progress import RichProgress

    with RichProgress(console) as report:
        manifest = train_fused(load_settings(), FusedOptions(base=base, threads=threads, seed=seed), report)
    console.print(f"version {manifest.number} of the fused baseline is loaded", highlight=False)
    if json:
        summary = {"number": manifest.number, "metrics": manifest.metrics}
        sys.stdout.write(msgspec.json.encode(summary).decode() + "\n")


def compress(
    folder: Annotated[str, typer.Argument(help="A recorded log, as `xplat replay` reads it.")],
    labels: Annotated[str, typer.Option(help="tags, or categories:2-3.")] = "tags",
    target: Annotated[str, typer.Option(help="Platforms foretold, joined by commas; none: all.")] = "",
    source: Annotated[str, typer.Option(help="Platforms they are foretold from; none: the others.")] = "",
    min_label_users: Annotated[int, typer.Option(min=1, help="Users that a label needs.")] = 30,
    base: Annotated[str, typer.Option(help="Pretrained encoder; empty for MiniLM-L6.")] = "",
    heads: Annotated[str, typer.Option(help="Numbers of heads to cut, joined by commas.")] = "18,36",
    widths: Annotated[str, typer.Option(help="Vector widths, joined by commas.")] = "128,64,32",
    texts: Annotated[int, typer.Option(min=10, help="Texts that quality is measured on, the most used ones.")] = 2000,
    threads: Annotated[int, typer.Option(min=0, help="Cores to use; 0 = all.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure each way to make an encoder smaller: bytes, texts a second on the running Triton, quality lost."""
    from pathlib import Path

    from trainer.compression_report import Asked, compression_report, render
    from trainer.models import default_base
    from trainer.progress import RichProgress
    from trainer.recorded import LabelRule, read_labelled
    from trainer.study import Task, build_study
    from xplat_stream.window import WindowSpec

    console = Console(stderr=True)
    settings = load_settings()
    recorded = read_labelled(Path(folder), LabelRule.parse(labels), min_users=min_label_users)
    task = Task(_words(target), _words(source), min_label_users=min_label_users)
    spec = WindowSpec(settings.window.per_platform, settings.window.horizon)
    study = build_study(folder, recorded.events(), recorded.taxonomy, spec, task)
    asked = Asked(base or default_base(), _numbers(heads), _numbers(widths), texts, threads)
    with RichProgress(console) as report:
        found = compression_report(study, settings, asked, report)
    console.print(render(found))
    if json:
        sys.stdout.write(msgspec.json.encode({"variants": found}).decode() + "\n")


def _words(joined: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in joined.split(",") if word.strip())


def _numbers(joined: str) -> tuple[int, ...]:
    try:
        found = tuple(int(word) for word in _words(joined))
    except ValueError as error:
        raise typer.BadParameter(f"{joined!r}: expected whole numbers joined by commas") from error
    if min(found, default=1) < 1:
        raise typer.BadParameter(f"{joined!r}: expected numbers above zero")
    return found
