"""`xplat model check`: options and printing; the judging is `trainer.release.gate`."""

from __future__ import annotations

import sys
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from trainer.command import DEFAULT_LABELS, SplitWord, names
from xplat_stream.settings import load_settings


def check(
    number: Annotated[int, typer.Argument(min=1, help="Number of the release.")],
    against: Annotated[int, typer.Option(min=0, help="Compare with this release; 0: with the active one.")] = 0,
    dataset: Annotated[Path | None, typer.Option(help="Judge on a recorded folder, as it was trained on.")] = None,
    labels: Annotated[str, typer.Option(help="Its labels: tags, categories:N or categories:N-M.")] = DEFAULT_LABELS,
    target: Annotated[str, typer.Option(help="Platforms foretold, separated by commas; none: all.")] = "",
    source: Annotated[str, typer.Option(help="Platforms they are foretold from; none: the others.")] = "",
    min_label_users: Annotated[int, typer.Option(min=1, help="A label of fewer users is left out.")] = 30,
    split: Annotated[SplitWord, typer.Option(help="Judge on other users, or on later times.")] = SplitWord.user,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Judge a release beside the active one on held-out people and on the real Triton. Exit code 1 when refused."""
    from trainer.data.prepare import Recorded, prepare
    from trainer.data.study import Task
    from trainer.release.gate import check as judge
    from trainer.release.gate import render
    from trainer.run.options import TrainOptions
    from trainer.run.progress import RichProgress
    from xplat_stream.serving.promote import known_store

    settings = load_settings()
    known_store(settings)[0].journal(number)  # before a log is read for a number that nobody has
    recorded = None
    if dataset is not None:
        task = Task(names(target), names(source), min_label_users=min_label_users)
        recorded = Recorded(dataset, labels, task, split.value)
    console = Console(stderr=True)
    with RichProgress(console) as report:
        data = prepare(settings, TrainOptions(), report, recorded).data
    verdict = judge(settings, number, data, against=against)
    if json:
        sys.stdout.write(msgspec.json.encode(verdict.in_full()).decode() + "\n")
    else:
        console.print(render(verdict))
        for note in verdict.notes:
            console.print(note, highlight=False)
    if not verdict.passed:
        raise typer.Exit(1)
