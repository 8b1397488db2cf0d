"""`xplat train`: options and printing; the run is `trainer.train`."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.console import Console

from trainer.run.options import (
    TEACHERS,
    USUAL_TEACHERS,
    AdapterName,
    Augmentation,
    Precision,
    TextLoss,
    TrainOptions,
    checked,
)
from trainer.run.tracking import TrackerName, tracked
from xplat_stream.settings import load_settings

if TYPE_CHECKING:
    from trainer.search import Searched
    from trainer.train import TrainResult

DEFAULT_LABELS = "categories:2-3"


class SplitWord(StrEnum):
    """See `trainer.data.dataset.SplitBy`."""

    user = "user"
    time = "time"


def train(  # one option each
    base: Annotated[str, typer.Option(help="Pretrained encoder: Hugging Face id or folder; empty for MiniLM-L6.")] = "",
    adapter: Annotated[AdapterName, typer.Option(help="What of the encoder is trained.")] = "lora",
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
    loss: Annotated[TextLoss, typer.Option(help="Of the encoder: labels apart, or competing.")] = "bce",
    augment: Annotated[Augmentation, typer.Option(help="Drop words of the texts, or keep a span of them.")] = "none",
    fgm: Annotated[float, typer.Option(min=0, help="Adversarial step, as a share of the embeddings; 0.1 is much.")] = 0,
    weak_labels: Annotated[
        bool, typer.Option("--weak-labels", help="Label texts without categories by their nearest label name.")
    ] = False,
    mlm_steps: Annotated[int, typer.Option(min=0, help="Steps of masked-word pretraining on the log's texts.")] = 0,
    contrast: Annotated[float, typer.Option(min=0, help="Weight of InfoNCE between a text and the next.")] = 0,
    self_training: Annotated[
        bool, typer.Option("--self-training", help="Fit twice, the second time with labels read by the first.")
    ] = False,
    parents: Annotated[float, typer.Option(min=0, help="Weight of the loss of parent labels beside labels'.")] = 0,
    words_teacher: Annotated[
        bool, typer.Option(help="Learn also from a regression on words that never saw the person.")
    ] = True,
    teachers: Annotated[int, typer.Option(min=0, max=9, help=TEACHERS)] = USUAL_TEACHERS,
    accumulate: Annotated[int, typer.Option(min=1, help="Batches of the encoder that make one step.")] = 1,
    precision: Annotated[Precision, typer.Option(help="Number format; auto takes what the device has.")] = "auto",
    search: Annotated[
        float, typer.Option(min=0, metavar="MINUTES", help="First look for better learning rates and sizes.")
    ] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted training stands.")] = False,
    tracker: Annotated[TrackerName, typer.Option(help="Who keeps the curves.")] = "tensorboard",
    from_topic: Annotated[bool, typer.Option("--from-topic", help="Train on the log in Kafka: the default.")] = False,
    dataset: Annotated[Path | None, typer.Option(help="Train on a recorded folder instead.")] = None,
    labels: Annotated[str, typer.Option(help="Its labels: tags, categories:N or categories:N-M.")] = DEFAULT_LABELS,
    target: Annotated[str, typer.Option(help="Platforms foretold, separated by commas; none: all.")] = "",
    source: Annotated[str, typer.Option(help="Platforms they are foretold from; none: the others.")] = "",
    min_label_users: Annotated[int, typer.Option(min=1, help="A label of fewer users is left out.")] = 30,
    split: Annotated[SplitWord, typer.Option(help="Validate on other users, or on later times.")] = SplitWord.user,
    force: Annotated[bool, typer.Option("--force", help="Promote it in spite of the gate; journaled.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Fine-tune on the log, evaluate, export, judge the release beside the active one, and promote it if it passes."""
    from trainer.data.study import Task
    from trainer.run.progress import RichProgress
    from trainer.train import Recorded
    from trainer.train import train as train_release

    _refuse_both(
        ("--from-topic and --dataset", from_topic and dataset is not None),
        ("--fused and --dataset", fused and dataset is not None),
        ("--head-only and --int8", head_only and int8),
        ("--head-only and --prune-heads", head_only and bool(prune_heads)),
    )
    recorded = None
    if dataset is not None:
        task = Task(names(target), names(source), min_label_users=min_label_users)
        recorded = Recorded(dataset, labels, task, split.value)
    console = Console(stderr=True)
    if fused:
        _train_fused(console, base=base, threads=threads, seed=seed, json=json)
        return
    settings = load_settings()
    home = Path(settings.local.home)
    run = f"{datetime.now(UTC):%Y%m%d-%H%M%S}"
    usual = TrainOptions()
    options = checked(
        TrainOptions(
            base=base,
            adapter=adapter,
            head_only=head_only,
            int8=int8,
            prune_heads=prune_heads,
            width=width,
            threads=threads,
            seed=seed,
            loss=loss,
            augment=augment,
            fgm=fgm,
            weak_labels=weak_labels,
            mlm_steps=mlm_steps,
            contrast=contrast,
            self_training=self_training,
            parents=parents,
            words_teacher=words_teacher,
            teachers=teachers,
            accumulate=accumulate,
            precision=precision,
            search_minutes=search,
            force=force,
            checkpoint=str(home / "training"),
            resume=resume,
            encoder_texts_shown=max(1, round(usual.encoder_texts_shown * effort)),
            head_windows_shown=max(1, round(usual.head_windows_shown * effort)),
        )
    )
    with (
        RichProgress(console) as bars,
        tracked(bars, tracker, folder=home / "tensorboard", run=run, options=options) as report,
    ):
        result = train_release(settings, options, report, recorded=recorded)
    if result.searched is not None:
        _show_search(result.searched, home / "search" / f"{run}.json", console)
    _show(result, console)
    if json:
        summary = {
            "release": result.release,
            "previous": result.previous,
            "promoted": result.promoted,
            "verdict": result.verdict and result.verdict.in_full(),
            "metrics": result.metrics,
            "seconds": result.seconds_by_stage,
            "excluded": result.excluded,
            "serve_with": result.serve_with,
        }
        sys.stdout.write(msgspec.json.encode(summary).decode() + "\n")
    if result.verdict is not None and not result.promoted and not result.verdict.passed:
        raise typer.Exit(1)


def _show(result: TrainResult, console: Console) -> None:
    """Print what was left out, how good the release is, what the gate says, and what became of it."""
    from trainer.evaluation.evaluate import render
    from trainer.release import gate

    for what, count in result.excluded.items():
        if count:
            console.print(f"{what}: {count}", highlight=False)
    console.print(render(result.evaluation))
    if result.verdict is not None:  # of several processes the first publishes, and says so
        console.print(gate.render(result.verdict))
        for note in result.verdict.notes:
            console.print(note, highlight=False)
        console.print(_outcome(result), highlight=False)
    if result.serve_with:
        words = " ".join(f"{name}={value}" for name, value in result.serve_with.items())
        console.print(f"serve it with {words}", highlight=False, soft_wrap=True)


def _outcome(result: TrainResult) -> str:
    """Say what became of a release, and what a person can do about it."""
    number, verdict = result.release, result.verdict
    if result.promoted:
        return f"release {number} is active (before: {result.previous or 'none'})"
    if verdict is not None and verdict.passed:
        return f"release {number} passed and waits for approval: xplat model promote {number}"
    return f"release {number} stays a candidate; xplat model show {number} says why"


def _refuse_both(*pairs: tuple[str, bool]) -> None:
    for options, given in pairs:
        if given:
            raise typer.BadParameter(f"{options} exclude each other")


def _train_fused(console: Console, *, base: str, threads: int, seed: int, json: bool) -> None:
    from trainer.export.fused import FusedOptions
    from trainer.export.fused_release import train_fused
    from trainer.run.progress import RichProgress

    with RichProgress(console) as report:
        manifest = train_fused(load_settings(), FusedOptions(base=base, threads=threads, seed=seed), report)
    console.print(f"version {manifest.number} of the fused baseline is loaded", highlight=False)
    if json:
        summary = {"number": manifest.number, "metrics": manifest.metrics}
        sys.stdout.write(msgspec.json.encode(summary).decode() + "\n")


def _show_search(searched: Searched, path: Path, console: Console) -> None:
    """Print what a search tried and chose, and keep it as JSON."""
    for trial in searched.trials:
        chosen = "  ".join(f"{name} {value:.4g}" for name, value in trial.options.items())
        console.print(f"search: NDCG@10 {trial.ndcg:.4f} in {trial.seconds:.0f} s  {chosen}", highlight=False)
    chosen = ", ".join(f"{name} {value:.4g}" for name, value in searched.chosen.items()) or "the usual options"
    console.print(
        f"search: chosen {chosen}: NDCG@10 {searched.ndcg:.4f} on the tuning users, usually {searched.usual_ndcg:.4f};"
        f" all trials in {path}",
        highlight=False,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(searched)) + b"\n")


def names(words: str) -> tuple[str, ...]:
    """Return the platforms that a user named, separated by commas."""
    return tuple(word.strip() for word in words.split(",") if word.strip())
