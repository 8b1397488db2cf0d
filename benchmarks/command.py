"""`xplat bench`: the benchmarks, each with `--json`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import msgspec
import typer
from rich.console import Console

from xplat_stream.errors import StackError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.trace import Trace

MEASURED: Final = 2_000_000
"""Enough for a JVM to have compiled what matters."""

USERS: Final = 50_000

Figures = dict[str, float | bool | None]
"""Headline figures by name, as the last line of `make bench` has them; None: not measured."""


class Run(NamedTuple):
    """What a stage is told."""

    events: int
    peers: str
    report: Path | None


class Outcome(NamedTuple):
    """What a stage adds to the last line, and what it found wrong."""

    figures: Figures
    differences: Sequence[str] = ()


app = typer.Typer(help="Measure this machine; every figure in the README comes from here.", no_args_is_help=True)
_console = Console(stderr=True)


@app.callback()
def _root() -> None:
    """Measure this machine; every figure in the README comes from here."""


@app.command(name="all")
def everything(
    events: Annotated[int, typer.Option(min=1000, help="Events measured of each peer.")] = MEASURED,
    peers: Annotated[str, typer.Option(help="all, or names separated by commas.")] = "all",
    report: Annotated[Path, typer.Option(help="Folder for tables and plots.")] = Path(".xplat/bench"),
    json: Annotated[bool, typer.Option("--json", help="End with one JSON object of all figures.")] = False,
) -> None:
    """Run every stage of `make bench`, one after the other."""
    figures: Figures = {}
    differences: list[str] = []
    for stage in _STAGES:
        outcome = stage(Run(events, peers, report))
        figures |= outcome.figures
        differences += outcome.differences
    _finish(figures, differences, json=json)


@app.command()
def fold(
    peers: Annotated[str, typer.Option(help="all, or names separated by commas.")] = "all",
    events: Annotated[
        int, typer.Option(min=1000, help="Events measured of each, behind a quarter as warm-up.")
    ] = MEASURED,
    users: Annotated[int, typer.Option(min=10, help="Users, chosen by Zipf's law.")] = USERS,
    report: Annotated[Path | None, typer.Option(help="Folder for the table and plots.")] = None,
    json: Annotated[bool, typer.Option("--json", help="End with one JSON object.")] = False,
) -> None:
    """JSON events → last-50 windows, durable → one output a touched user; beside its peers, windows compared."""
    outcome = _fold(Run(events, peers, report), users=users)
    _finish(outcome.figures, outcome.differences, json=json)


@app.command()
def state(
    users: Annotated[int, typer.Option(min=100, help="Users, all with full windows.")] = 5000,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Bytes a user in RocksDB and in the changelog, at 10, 50 and 200 events in a window."""
    from benchmarks.state import bench_state

    _show(bench_state(users=users, report=_say), json=json)


@app.command()
def recovery(
    users: Annotated[int, typer.Option(min=1000, help="Users in the worker's changelog.")] = 400_000,
    stock_users: Annotated[int, typer.Option(min=1000, help="Users for stock Faust, which is slow.")] = 40_000,
    rows: Annotated[int, typer.Option(min=1, max=50, help="Events in each window.")] = 20,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Changelog → an empty state folder rebuilt; beside stock Faust tables."""
    from benchmarks.recovery import bench_recovery

    result = bench_recovery(users=users, stock_users=stock_users, rows=rows, report=_say)
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
        report=_say,
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

    result = bench_fused(load_settings(), users=users, events=events, report=_say)
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

    result = bench_swaps(swaps=swaps, rate=rate, pause_s=pause, report=_say)
    _show(result, json=json)


def _fold(run: Run, *, users: int = USERS) -> Outcome:
    from benchmarks.fold import bench_fold
    from benchmarks.peers import chosen
    from benchmarks.report import table, write_report

    traces: dict[str, Trace] = {}
    result = bench_fold(
        peers=chosen(run.peers),
        events=run.events,
        users=users,
        report=_say,
        traced=lambda peer, trace: traces.update({peer.name: trace}),
    )
    sys.stdout.write(table(result))
    for path in write_report(run.report, result, traces) if run.report else ():
        _say(f"{path} written")
    return Outcome(result.figures(), result.differences)


def _state(_: Run) -> Outcome:
    from benchmarks.state import bench_state

    return Outcome(bench_state(users=5000, report=_say).figures())


def _recovery(_: Run) -> Outcome:
    from benchmarks.recovery import bench_recovery

    return Outcome(bench_recovery(users=400_000, stock_users=40_000, rows=20, report=_say).figures())


_STAGES: Final = (_fold, _state, _recovery)
"""What `make bench` runs, in this order."""


def _say(line: str) -> None:
    _console.print(line, highlight=False, soft_wrap=True)


def _finish(figures: Figures, differences: Sequence[str], *, json: bool) -> None:
    """Print the figures, and end with an error where windows were not equal."""
    for name, value in {} if json else figures.items():
        _say(f"{name:24} {value}")
    if json:
        sys.stdout.write(msgspec.json.encode(figures).decode() + "\n")
    if differences:
        raise StackError(
            f"{len(differences)} windows are not what the events give: {'; '.join(differences[:5])}",
            where="the final windows",
            expected="equal ones from every system",
            fix="No figure of a system named here counts; find out what it lost or kept too long.",
        )


@app.command()
def promotion(
    users: Annotated[int, typer.Option(min=100, help="Active users with windows.")] = 20_000,
    rate: Annotated[float, typer.Option(min=1, help="Ordinary events a second.")] = 50.0,
    steady: Annotated[float, typer.Option(min=5, help="Seconds before the announcement.")] = 30.0,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """A release promoted under load: active users moved within their budget, and how fresh ordinary updates stay."""
    from benchmarks.promotion import bench_promotion

    result = bench_promotion(users=users, rate=rate, steady_s=steady, report=_say)
    _show(result, json=json)


@app.command()
def rollback(
    users: Annotated[int, typer.Option(min=500, help="Active users with windows.")] = 5000,
    rate: Annotated[float, typer.Option(min=1, help="Ordinary events a second.")] = 50.0,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """A bad release forced past the gate: found out, rolled back, and everyone it scored scored again."""
    from benchmarks.rollback import bench_rollback

    result = bench_rollback(users=users, rate=rate, report=_say)
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
            _say(f"{name:24} {value}")
