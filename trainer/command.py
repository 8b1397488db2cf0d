"""`xplat train` and `xplat evaluate`: options and printing; the runs are `trainer.train` and `trainer.evaluation`."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.console import Console

from trainer.options import AdapterName, Augmentation, Precision, TextLoss, TrainOptions, checked
from trainer.tracking import TrackerName, tracked
from xplat_stream.errors import XplatError
from xplat_stream.event import Millis
from xplat_stream.settings import load_settings
from xplat_stream.window import WindowSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trainer.findings import Findings
    from trainer.methods import Method
    from trainer.progress import Report
    from trainer.ranking import Ranking
    from trainer.subject import Subject

DEFAULT_LABELS = "categories:2-3"
USUAL_TEACHERS = 3
"""Measured on real events: NDCG@10 +.003, foretold from other platforms +.003; half a head's time each."""

_TEACHERS = "Models of other seeds that the served one learns from; each is half a head's time more."

if TYPE_CHECKING:
    from trainer.search import Searched


def train(  # one option each
    base: Annotated[str, typer.Option(help="Pretrained encoder: Hugging Face id or folder; empty for MiniLM-L6.")] = "",
    adapter: Annotated[AdapterName, typer.Option(help="What of the encoder is trained.")] = "lora",
    head_only: Annotated[
        bool, typer.Option("--head-only", help="Keep the active encoder; seconds, not minutes.")
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
    teachers: Annotated[int, typer.Option(min=0, max=9, help=_TEACHERS)] = USUAL_TEACHERS,
    accumulate: Annotated[int, typer.Option(min=1, help="Batches of the encoder that make one step.")] = 1,
    precision: Annotated[Precision, typer.Option(help="Number format; auto takes what the device has.")] = "auto",
    search: Annotated[
        float, typer.Option(min=0, metavar="MINUTES", help="First look for better learning rates and sizes.")
    ] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted training stands.")] = False,
    tracker: Annotated[TrackerName, typer.Option(help="Who keeps the curves.")] = "tensorboard",
    from_topic: Annotated[bool, typer.Option("--from-topic/--no-from-topic", help="Train on the log in Kafka.")] = True,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Fine-tune on the log, evaluate, export, load into Triton, verify, and announce the new release."""
    from trainer.evaluate import render
    from trainer.progress import RichProgress
    from trainer.train import train as train_release

    if not from_topic:
        raise typer.BadParameter("only --from-topic is there so far; recorded folders go through `xplat replay`")
    console = Console(stderr=True)
    settings = load_settings()
    home = Path(settings.local.home)
    run = f"{datetime.now(UTC):%Y%m%d-%H%M%S}"
    usual = TrainOptions()
    options = checked(
        TrainOptions(
            base=base,
            adapter=adapter,
            head_only=head_only,
            threads=threads,
            seed=seed,
            loss=loss,
            augment=augment,
            fgm=fgm,
            weak_labels=weak_labels,
            mlm_steps=mlm_steps,
            contrast=contrast,
            teachers=teachers,
            accumulate=accumulate,
            precision=precision,
            search_minutes=search,
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
        result = train_release(settings, options, report)
    if result.searched is not None:
        _show_search(result.searched, home / "search" / f"{run}.json", console)
    console.print(render(result.evaluation))
    if result.release:  # 0: the first of several processes publishes, and says so
        console.print(f"release {result.release} is active (before: {result.previous or 'none'})", highlight=False)
    if json:
        summary = {
            "release": result.release,
            "previous": result.previous,
            "metrics": result.metrics,
            "seconds": result.seconds_by_stage,
        }
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


def evaluate(
    dataset: Annotated[Path | None, typer.Option(help="Folder of a recorded log.")] = None,
    from_topic: Annotated[bool, typer.Option("--from-topic", help="Evaluate on the log in Kafka.")] = False,
    labels: Annotated[
        str, typer.Option(help=f"Labels of a folder's items: tags, categories:N, categories:N-M. {DEFAULT_LABELS}.")
    ] = "",
    target: Annotated[str, typer.Option(help="Platforms to foretell, joined by commas; all.")] = "",
    source: Annotated[str, typer.Option(help="Platforms of view A; all that are not the target's.")] = "",
    min_label_users: Annotated[int, typer.Option(min=1, help="Labels of fewer users are left out.")] = 30,
    folds: Annotated[int, typer.Option(min=2, max=20, help="Folds by user; each is a fit of every method.")] = 5,
    horizon_days: Annotated[
        float, typer.Option(min=0, help="Window's horizon; 0 = a folder's whole span, the settings' for topics.")
    ] = 0,
    teachers: Annotated[int, typer.Option(min=0, max=9, help=_TEACHERS)] = USUAL_TEACHERS,
    plant_harmful: Annotated[
        bool, typer.Option("--plant-harmful", help="Add a platform of random items; does the guard mute it?")
    ] = False,
    rank: Annotated[str, typer.Option(help="Platforms to measure item ranking on, joined by commas.")] = "",
    report: Annotated[Path | None, typer.Option(help="Folder for report.md, report.json and plots.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")] = False,
) -> None:
    """Measure the model beside baselines on users it never saw; exit code 1 where a leak check fails."""
    from trainer.evaluation import EvaluateOptions
    from trainer.evaluation import evaluate as evaluate_log
    from trainer.progress import RichProgress
    from trainer.report import write_report
    from trainer.study import Task

    if (dataset is None) != from_topic:
        raise typer.BadParameter("name either --dataset DIR or --from-topic")
    if labels and from_topic:
        raise typer.BadParameter("--labels is for folders; topics have the taxonomy of the settings")
    console = Console(stderr=True)
    task = Task(_names(target), _names(source), min_label_users=min_label_users)
    with RichProgress(console) as progress:
        if dataset is None:
            subject = _from_topic(horizon_days, progress)
        else:
            subject = _from_folder(dataset, labels or DEFAULT_LABELS, min_label_users, horizon_days)
        main, others = _methods(teachers, progress)
        findings = evaluate_log(
            subject,
            task,
            main,
            others,
            options=EvaluateOptions(folds, plant_harmful),
            rank=_ranking(dataset, _names(rank), progress),
            report=progress,
        )
    if report is not None:
        console.print(f"written: {write_report(findings, report)}", highlight=False, soft_wrap=True)
    _print_methods(findings, console)
    if json:
        sys.stdout.write(msgspec.json.encode(findings.summary(_names(rank))).decode() + "\n")
        sys.stdout.flush()
    if findings.failures():
        raise XplatError("; ".join(findings.failures()))


def _methods(teachers: int, report: Report) -> tuple[Method, Sequence[Method]]:
    """Return the main method and what it is set beside."""
    from trainer.baselines import all_baselines
    from trainer.sasrec import SASRec
    from trainer.split import SplitMethod

    return SplitMethod(TrainOptions(teachers=teachers), report=report), [*all_baselines(), SASRec()]


def _ranking(dataset: Path | None, platforms: tuple[str, ...], report: Report) -> Callable[[], Ranking] | None:
    """Return what measures item ranking on these platforms; None where none is named."""
    from trainer.ranking import rank_items
    from xplat_stream.replay import read_recording

    if not platforms:
        return None
    if dataset is None:
        raise typer.BadParameter("--rank needs --dataset: topics keep no more of an item than the model reads")
    return lambda: rank_items(read_recording(dataset, platforms=platforms), platforms, report=report)


def _from_folder(folder: Path, labels: str, min_users: int, horizon_days: float) -> Subject:
    from trainer.exclusions import usable
    from trainer.recorded import LabelRule, read_labelled
    from trainer.subject import Subject

    labelled = read_labelled(folder, LabelRule.parse(labels), min_users=min_users)
    events, excluded = usable(labelled.events(), _now(), by_content=True)
    span = max((event.occurred_at for event in events), default=0) - min(
        (event.occurred_at for event in events), default=0
    )
    horizon = timedelta(days=horizon_days) if horizon_days else timedelta(milliseconds=span + 1)
    spec = WindowSpec(load_settings().window.per_platform, horizon)
    return Subject(labelled.recording.name, events, labelled.taxonomy, spec, excluded)


def _from_topic(horizon_days: float, progress: Report) -> Subject:
    from trainer.dataset import read_log
    from trainer.exclusions import usable
    from trainer.subject import Subject
    from xplat_stream.taxonomy import load_taxonomy

    settings = load_settings()
    log = read_log(settings, progress)
    events, excluded = usable(log.events, _now(), by_content=False)
    for reason, count in (("records rejected", log.rejected), ("events withheld: no consent", log.withheld)):
        if count:
            excluded[reason] = count
    horizon = timedelta(days=horizon_days) if horizon_days else settings.window.horizon
    spec = WindowSpec(settings.window.per_platform, horizon)
    return Subject("behavior.*.v1", events, load_taxonomy(settings.model.taxonomy), spec, excluded)


def _print_methods(findings: Findings, console: Console) -> None:
    from rich.table import Table

    table = Table(title=f"{findings.users} users, {len(findings.labels)} labels", title_justify="left")
    for name in ("", "NDCG@10", "gain to best linear", "micro-F1", "ECE"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for line in findings.methods:
        gain = f"{line.ndcg10_gain.value:+.4f} [{line.ndcg10_gain.low:+.3f}, {line.ndcg10_gain.high:+.3f}]"
        figures = (f"{line.ndcg10.value:.4f}", gain, f"{line.micro_f1.value:.4f}", f"{line.ece.value:.4f}")
        table.add_row(line.name, *figures, style="bold" if line.name == findings.main else "")
    console.print(table)
    for one in findings.platforms:
        if one.harm is not None and one.muted_folds:
            words = f"muted {one.platform} in {one.muted_folds} of {findings.folds} folds: hidden, NDCG@10 changes by "
            console.print(f"{words}{one.harm.hiding.value:+.4f}", highlight=False, soft_wrap=True)
    for check in findings.leaks:
        words = f"{'pass' if check.passed else 'FAIL'}  {check.name}: {check.words}"
        console.print(words, highlight=False, soft_wrap=True)


def _names(words: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in words.split(",") if word.strip())


def _now() -> Millis:
    return Millis(round(time.time() * 1000))
