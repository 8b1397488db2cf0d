"""`xplat bench`: the benchmarks, each with `--json`."""

from __future__ import annotations

import sys
from typing import Annotated

import msgspec
import typer
from rich.console import Console

app = typer.Typer(help="Measure this machine; every figure in the README comes from here.", no_args_is_help=True)
_console = Console(stderr=True)


@app.callback()
def _root() -> None:
    """Measure this machine; every figure in the README comes from here."""


@app.command()
def fold(
    events: Annotated[int, typer.Option(min=1000, help="Events for the worker.")] = 400_000,
    stock_events: Annotated[int, typer.Option(min=1000, help="Events for stock Faust, which is slow.")] = 20_000,
    users: Annotated[int, typer.Option(min=1, help="Uniformly chosen users.")] = 5000,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """JSON events → last-50 windows, durable → one profile a touched user; beside stock Faust tables."""
    from benchmarks.fold import bench_fold

    result = bench_fold(
        events=events, stock_events=stock_events, users=users, report=lambda line: _console.print(line, highlight=False)
    )
    _show(result, json=json)


@app.command()
def recovery(
    users: Annotated[int, typer.Option(min=1000, help="Users in the worker's changelog.")] = 400_000,
    stock_users: Annotated[int, typer.Option(min=1000, help="Users for stock Faust, which is slow.")] = 40_000,
    rows: Annotated[int, typer.Option(min=1, max=50, help="Events in each window.")] = 20,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Changelog → an empty state folder rebuilt; beside stock Faust tables."""
    from benchmarks.recovery import bench_recovery

    result = bench_recovery(
        users=users, stock_users=stock_users, rows=rows, report=lambda line: _console.print(line, highlight=False)
    )
    _show(result, json=json)


@app.command()
def training(
    events: Annotated[int, typer.Option(min=5000, help="Events of the log that is trained on.")] = 200_000,
    users: Annotated[int, typer.Option(min=100, help="Simulated users.")] = 4000,
    trainer_examples: Annotated[int, typer.Option(min=32, help="Windows for the Hugging Face Trainer, slow.")] = 512,
    threads: Annotated[int, typer.Option(min=1, help="Cores for both.")] = 2,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """A log → a release, encoder and head apart; beside the Hugging Face Trainer on the same windows as text."""
    from benchmarks.training import bench_training

    result = bench_training(
        events=events,
        users=users,
        trainer_examples=trainer_examples,
        threads=threads,
        report=lambda line: _console.print(line, highlight=False),
    )
    _show(result, json=json)


@app.command()
def fused(
    users: Annotated[int, typer.Option(min=1, help="Windows scored by each model.")] = 512,
    events: Annotated[int, typer.Option(min=1, help="Events in a window, on the average.")] = 50,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Updates a second on the running Triton: the fused model re-encoding every window, beside the split one."""
    from benchmarks.fused import bench_fused
    from xplat_stream.settings import load_settings

    result = bench_fused(
        load_settings(), users=users, events=events, report=lambda line: _console.print(line, highlight=False)
    )
    _show(result, json=json)


@app.command()
def swaps(
    swaps: Annotated[int, typer.Option(min=11, help="Releases promoted in a row.")] = 100,
    rate: Annotated[float, typer.Option(min=1, help="Events a second meanwhile.")] = 100.0,
    pause: Annotated[float, typer.Option(min=0, help="Seconds between two.")] = 1.5,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Releases promoted in a row under load: failed, lost and late updates, and memory."""
    from benchmarks.swaps import bench_swaps

    result = bench_swaps(
        swaps=swaps, rate=rate, pause_s=pause, report=lambda line: _console.print(line, highlight=False)
    )
    _show(result, json=json)


@app.command()
def inference(
    part: Annotated[list[str] | None, typer.Option(help="One part, several times: default all.")] = None,
    hits: Annotated[list[float] | None, typer.Option(help="A share of known titles, several times.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 2,
    users: Annotated[int, typer.Option(min=2, help="People.")] = 2000,
    window: Annotated[int, typer.Option(min=1, help="Events in each window beforehand.")] = 20,
    seconds: Annotated[float, typer.Option(min=1, help="Length of each part, about.")] = 10.0,
    rate: Annotated[float, typer.Option(min=0, help="Events a second meanwhile; 0: half of what was reached.")] = 0.0,
    backlog: Annotated[int, typer.Option(min=1000, help="Events that wait, in that part.")] = 100_000,
    models: Annotated[str, typer.Option(help="Folder that keeps the models trained for this.")] = "",
    folder: Annotated[str, typer.Option("--report", help="Folder for a report with curves.")] = "",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """User updates a second, and event written → profile readable, with a real model; beside re-encoding."""
    from benchmarks.inference import HIT_RATES, PARTS, Choices, bench_inference
    from benchmarks.inference_report import write_report

    choices = Choices(
        tuple(part or PARTS), tuple(hits or HIT_RATES), workers, users, window, seconds, rate, backlog, models
    )
    result = bench_inference(choices, lambda line: _console.print(line, highlight=False))
    if folder:
        write_report(result, folder)
    _show(result, json=json)


def _show(result: msgspec.Struct, *, json: bool) -> None:
    if json:
        sys.stdout.write(msgspec.json.encode(result).decode() + "\n")
    else:
        for name, value in msgspec.to_builtins(result).items():
            _console.print(f"{name:24} {value}", highlight=False)
