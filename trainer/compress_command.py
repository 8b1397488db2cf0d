"""`xplat compress`: options and printing; the measuring is `trainer.export.compression_report`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from trainer.command import DEFAULT_LABELS, names
from xplat_stream.settings import load_settings


def compress(
    folder: Annotated[Path, typer.Argument(help="A recorded log, as `xplat replay` reads it.")],
    labels: Annotated[str, typer.Option(help="Its labels: tags, categories:N or categories:N-M.")] = DEFAULT_LABELS,
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
    from trainer.data.prepare import CACHE_FOLDER, spec_holding
    from trainer.data.sources import FolderSource, cached_log
    from trainer.data.study import Task, cut_study
    from trainer.export.compression_report import Asked, compression_report, render
    from trainer.networks.models import default_base
    from trainer.run.progress import RichProgress

    console = Console(stderr=True)
    settings = load_settings()
    asked = Asked(base or default_base(), _numbers(heads), _numbers(widths), texts, threads)
    task = Task(names(target), names(source), min_label_users=min_label_users)
    with RichProgress(console) as report:
        recorded = FolderSource(folder, labels, min_users=min_label_users, report=report)
        log = cached_log(recorded, Path(settings.local.home) / CACHE_FOLDER).log
        report("read", 1, 1, {"events": log.events})
        study = cut_study(log, spec_holding(log, settings.window.per_platform), task)
        found = compression_report(study, settings, asked, report)
    console.print(render(found))
    if json:
        sys.stdout.write(msgspec.json.encode({"variants": found}).decode() + "\n")


def _numbers(joined: str) -> tuple[int, ...]:
    try:
        found = tuple(int(word) for word in names(joined))
    except ValueError as error:
        raise typer.BadParameter(f"{joined!r}: expected whole numbers joined by commas") from error
    if min(found, default=1) < 1:
        raise typer.BadParameter(f"{joined!r}: expected numbers above zero")
    return found
