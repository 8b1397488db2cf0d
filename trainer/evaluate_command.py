"""`xplat evaluate`: options and printing; the run is `trainer.evaluation.evaluation`."""

from __future__ import annotations

import sys
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.console import Console

from trainer.command import DEFAULT_LABELS, names
from trainer.run.options import TEACHERS, USUAL_TEACHERS, AdapterName, TrainOptions
from xplat_stream.errors import XplatError
from xplat_stream.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trainer.data.sources import Source
    from trainer.data.study import Study
    from trainer.evaluation.ablation import Ablation, AblationLine
    from trainer.evaluation.findings import Findings
    from trainer.evaluation.ranking import Ranking
    from trainer.evaluation.simulated import AgainstOracle
    from trainer.evaluation.split import SplitMethod
    from trainer.evaluation.subject import Subject
    from trainer.measuring.methods import Method
    from trainer.run.progress import Report


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
    adapter: Annotated[
        AdapterName, typer.Option(help="What of the encoder is fine-tuned; minutes more a fit, so none.")
    ] = "none",
    teachers: Annotated[int, typer.Option(min=0, max=9, help=TEACHERS)] = USUAL_TEACHERS,
    fused: Annotated[bool, typer.Option("--fused", help="The fused baseline too: minutes more a fold.")] = False,
    plant_harmful: Annotated[
        bool, typer.Option("--plant-harmful", help="Add a platform of random items; does the guard mute it?")
    ] = False,
    rank: Annotated[str, typer.Option(help="Platforms to measure item ranking on, joined by commas.")] = "",
    ablate: Annotated[
        str,
        typer.Option(metavar="all|NAME,NAME", help="Only what each option of the training brings; fits a line."),
    ] = "",
    ablate_folds: Annotated[int, typer.Option(min=1, help="Folds whose users that is measured on.")] = 2,
    simulated: Annotated[
        int, typer.Option(min=0, metavar="USERS", help="So many simulated people, beside an oracle.")
    ] = 0,
    events_each: Annotated[int, typer.Option(min=1, help="Events of a simulated person on average.")] = 200,
    jobs: Annotated[int, typer.Option(min=0, help="Folds fitted side by side; 0 = one a core.")] = 0,
    report: Annotated[Path | None, typer.Option(help="Folder for report.md, report.json and plots.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")] = False,
) -> None:
    """Measure the model beside baselines on users it never saw; exit code 1 where a leak check fails."""
    from joblib import parallel_config

    from trainer.data.study import Task
    from trainer.evaluation.evaluation import evaluate as evaluate_log
    from trainer.evaluation.report import write_report
    from trainer.evaluation.simulated import against_oracle, simulated_study
    from trainer.evaluation.variants import ablation_of
    from trainer.run.progress import RichProgress

    for wrong, words in (
        (
            (dataset is not None) + from_topic + bool(simulated) != 1,
            "name one of --dataset DIR, --from-topic and --simulated USERS",
        ),
        (labels and dataset is None, "--labels is for folders; topics have the taxonomy of the settings"),
        (
            simulated and (plant_harmful or rank or ablate or report or horizon_days),
            "--simulated sets methods beside an oracle, and nothing else is measured",
        ),
        (
            ablate and (plant_harmful or rank or fused),
            "--ablate sets options of the training beside a base, and nothing else is measured",
        ),
        (ablate_folds > folds, f"--ablate-folds {ablate_folds} is more than there are --folds"),
    ):
        if wrong:
            raise typer.BadParameter(words)
    console = Console(stderr=True)
    task = Task(names(target), names(source), min_label_users=min_label_users)
    # Copy on write: torch warns of arrays that cannot be written.
    with RichProgress(console) as progress, parallel_config(n_jobs=jobs or -1, mmap_mode="c"):
        main, others = _main(TrainOptions(adapter=adapter, teachers=teachers), progress), _others(fused, progress)
        if simulated:
            people = simulated_study(simulated, events_each=events_each, task=task, folds=folds)
            against = against_oracle(people, [main, *others], folds=folds, report=progress)
            _print_oracle(against, console, json=json)
            return
        ablation = ablation_of(main, names(ablate), folds=ablate_folds) if ablate else None
        subject, planted = _read(dataset, labels or DEFAULT_LABELS, min_label_users, horizon_days, progress)
        if ablation:
            _ablate(subject.study(task, folds), ablation, progress, console, folder=report, json=json)
            return
        findings = evaluate_log(
            subject,
            task,
            main,
            others,
            folds=folds,
            planted=planted if plant_harmful else None,
            rank=_ranking(dataset, names(rank), progress),
            report=progress,
        )
    if report is not None:
        _print_written(write_report(findings, report), console)
    _print_methods(findings, console)
    if json:
        _print_json(findings.summary(names(rank)))
    if findings.failures():
        raise XplatError("; ".join(findings.failures()))


def _ablate(
    study: Study, ablation: Ablation, progress: Report, console: Console, *, folder: Path | None, json: bool
) -> None:
    from trainer.evaluation.ablation import ablate
    from trainer.evaluation.report import write_ablation

    table = ablate(study, ablation, report=progress, measured=partial(_print_line, console))
    if folder is not None:
        _print_written(write_ablation(table, folder), console)
    if json:
        _print_json(table)


def _main(options: TrainOptions, report: Report) -> SplitMethod:
    """Return the method that an evaluation is about."""
    from trainer.evaluation.split import SplitMethod
    from trainer.fitting.frozen import CACHE

    return SplitMethod(options, report=report, cache=CACHE)


def _others(fused: bool, report: Report) -> Sequence[Method]:
    """Return what it is set beside."""
    from trainer.evaluation.sasrec import SASRec
    from trainer.export.fused import FusedMethod
    from trainer.measuring.baselines import all_baselines

    return [*all_baselines(), SASRec(), *([FusedMethod(report=report)] if fused else [])]


def _ranking(dataset: Path | None, platforms: tuple[str, ...], report: Report) -> Callable[[], Ranking] | None:
    """Return what measures item ranking on these platforms; None where none is named."""
    from trainer.evaluation.ranking import rank_items
    from xplat_stream.replay import read_recording

    if not platforms:
        return None
    if dataset is None:
        raise typer.BadParameter("--rank needs --dataset: topics keep no more of an item than the model reads")
    return lambda: rank_items(read_recording(dataset, platforms=platforms), platforms, report=report)


def _read(
    folder: Path | None, labels: str, min_users: int, horizon_days: float, progress: Report
) -> tuple[Subject, Callable[[], Subject]]:
    """Return a folder, or the topics, as `xplat train` reads them, and what plants a harmful platform there."""
    from trainer.data.prepare import CACHE_FOLDER
    from trainer.data.sources import FolderSource, TopicSource
    from trainer.evaluation.subject import read_planted, read_subject

    settings = load_settings()
    cache, per_platform = Path(settings.local.home) / CACHE_FOLDER, settings.window.per_platform
    horizon = timedelta(days=horizon_days) if horizon_days else None
    source: Source
    if folder is None:
        source = TopicSource(settings, progress)
        subject = read_subject(source, cache, per_platform, horizon or settings.window.horizon)
    else:
        source = FolderSource(folder, labels, min_users=min_users, report=progress)
        subject = read_subject(source, cache, per_platform, horizon)
        subject = subject._replace(log=subject.log._replace(name=folder.resolve().name))
    return subject, partial(read_planted, subject, source, cache)


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


def _print_oracle(found: AgainstOracle, console: Console, *, json: bool) -> None:
    from rich.table import Table

    table = Table(title=f"{found.users} simulated users, {found.labels} labels", title_justify="left")
    for name in ("", "NDCG@10", "of the oracle's"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    table.add_row("oracle", f"{found.oracle_ndcg10:.4f}", "", end_section=True)
    for number, (name, value) in enumerate(found.ndcg10.items()):
        table.add_row(name, f"{value:.4f}", f"{found.share(name):.1%}", style="" if number else "bold")
    console.print(table)
    if json:
        _print_json(found.summary())


def _print_line(console: Console, line: AblationLine) -> None:
    gains = "  ".join(
        f"{name} {gain.value:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]"
        for name, gain in (("NDCG@10", line.difference), ("micro-F1", line.micro_f1_difference))
    )
    console.print(f"{line.name}: {gains}  {line.verdict}", highlight=False, soft_wrap=True, markup=False)


def _print_written(page: Path, console: Console) -> None:
    console.print(f"written: {page}", highlight=False, soft_wrap=True)


def _print_json(found: object) -> None:
    sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
    sys.stdout.flush()
