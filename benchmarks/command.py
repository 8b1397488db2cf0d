"""`xplat bench`: the benchmarks, each with `--json`."""

from __future__ import annotations

import sys
from collections.abc import Callable
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

REPORT: Final = Path(".xplat/bench")

FIGURES: Final = "figures.json"
"""The last line of `make bench`, kept in its report."""

BASELINE: Final = Path(__file__).with_name("baseline.json")

Figures = dict[str, float | bool | None]
"""Headline figures by name, as the last line of `make bench` has them; None: not measured."""


class Run(NamedTuple):
    """What a stage is told."""

    events: int
    peers: str
    report: Path | None
    users: int = USERS
    restored: tuple[int, int] = (400_000, 40_000)
    """Users in the changelog that a worker restores, and in that of stock Faust."""
    models: str = ""
    """Folder that keeps the models of the inference stage."""


class Outcome(NamedTuple):
    """What a stage adds to the last line, and what it found wrong."""

    figures: Figures
    differences: Sequence[str] = ()


Stage = Callable[[Run], Outcome]

app = typer.Typer(help="Measure this machine; every figure in the README comes from here.", no_args_is_help=True)
_console = Console(stderr=True)


@app.callback()
def _root() -> None:
    """Measure this machine; every figure in the README comes from here."""


@app.command(name="all")
def everything(
    events: Annotated[int, typer.Option(min=1000, help="Events measured of each peer.")] = MEASURED,
    peers: Annotated[str, typer.Option(help="all, or names separated by commas.")] = "all",
    report: Annotated[Path, typer.Option(help="Folder for tables, plots and figures.")] = REPORT,
    models: Annotated[str, typer.Option(help="Folder that keeps the models trained for inference.")] = "",
    json: Annotated[bool, typer.Option("--json", help="End with one JSON object of all figures.")] = False,
) -> None:
    """Run every stage of `make bench`, one after the other."""
    figures: Figures = {}
    differences: list[str] = []
    for stage in _STAGES:
        outcome = stage(Run(events, peers, report, models=models))
        figures |= outcome.figures
        differences += outcome.differences
    (report / FIGURES).write_bytes(msgspec.json.format(msgspec.json.encode(figures)))
    _finish(figures, differences, json=json)


@app.command()
def quick(
    accept: Annotated[bool, typer.Option("--accept", help="Write what is found as the new baseline.")] = False,
    runs: Annotated[int, typer.Option(min=1, help="How often --accept measures, to know the noise.")] = 3,
    baseline: Annotated[Path, typer.Option(help="The baseline.")] = BASELINE,
    json: Annotated[bool, typer.Option("--json", help="End with one JSON object.")] = False,
) -> None:
    """Measure ratios in three minutes and say which stage became slower than the baseline, beyond its noise."""
    from benchmarks.quick import Verdict, compared, learned, read_baseline, write_baseline

    if accept:
        write_baseline(baseline, learned(_quickly(stage) for _ in range(runs) for stage in _QUICK_STAGES))
        _say(f"{baseline} written")
        return
    known = read_baseline(baseline)
    verdicts: dict[str, Verdict] = {}
    for stage in _QUICK_STAGES:
        told = compared(known, _quickly(stage))
        if any(one.is_slower for one in told.values()):
            _say("slower than the baseline: once more, and the better of the two counts")
            again = compared(known, _quickly(stage))
            told = {name: min(one, again[name], key=lambda it: it.slower) for name, one in told.items()}
        verdicts |= told
    for name, one in verdicts.items():
        _say(f"{name:26} {one}")
    slower = [name for name, one in verdicts.items() if one.is_slower]
    if json:
        sys.stdout.write(msgspec.json.encode({"ok": not slower, "slower": slower, "figures": verdicts}).decode() + "\n")
    if slower:
        raise typer.Exit(1)


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
    outcome = _fold(Run(events, peers, report, users))
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


def _fold(run: Run) -> Outcome:
    from benchmarks.fold import bench_fold
    from benchmarks.peers import chosen
    from benchmarks.report import table, write_report

    traces: dict[str, Trace] = {}
    result = bench_fold(
        peers=chosen(run.peers),
        events=run.events,
        users=run.users,
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


def _recovery(run: Run) -> Outcome:
    from benchmarks.recovery import bench_recovery

    users, stock_users = run.restored
    return Outcome(bench_recovery(users=users, stock_users=stock_users, rows=20, report=_say).figures())


def _units(_: Run) -> Outcome:
    from benchmarks.units import bench_units

    return Outcome(bench_units(report=_say).figures())


def _inference(run: Run) -> Outcome:
    from benchmarks.inference import Choices, bench_inference
    from benchmarks.inference_report import write_report

    parts = ("rates", "reencoding", "freshness")
    result = bench_inference(Choices(parts, hit_rates=(1.0, 0.99), models=run.models), _say)
    if run.report:
        write_report(result, run.report)
    wrong = () if result.exact else ("inference: windows or profiles are not what the log gives",)
    return Outcome(result.figures(), wrong)


_STAGES: Final = (_units, _fold, _state, _recovery, _inference)
"""What `make bench` runs, in this order."""

_QUICK_STAGES: Final = (_units, _state, _fold, _recovery)
"""What `make bench-quick` runs, the cheapest first."""

_QUICK: Final = Run(300_000, "floor", None, users=20_000, restored=(200_000, 10_000))
"""As little as tells a slowdown from noise."""


def _quickly(stage: Stage) -> Figures:
    """Run a stage small. Raises `StackError` where windows are not what they should be: no figure counts then."""
    outcome = stage(_QUICK)
    _refuse(outcome.differences)
    return outcome.figures


def _say(line: str) -> None:
    _console.print(line, highlight=False, soft_wrap=True)


def _finish(figures: Figures, differences: Sequence[str], *, json: bool) -> None:
    """Print the figures, and end with an error where windows were not equal."""
    for name, value in {} if json else figures.items():
        _say(f"{name:24} {value}")
    if json:
        sys.stdout.write(msgspec.json.encode(figures).decode() + "\n")
    _refuse(differences)


def _refuse(differences: Sequence[str]) -> None:
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
    steady: Annotated[float, typer.Option(min=5, help="Seconds before the announcement.")] = 45.0,
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
def scale(
    workers: Annotated[list[int] | None, typer.Option(help="Worker processes, several times: default 1 to 4.")] = None,
    partitions: Annotated[list[int] | None, typer.Option(help="Of each topic, several times: default 4, 12.")] = None,
    events: Annotated[int, typer.Option(min=1000, help="Events that wait for the workers.")] = 200_000,
    rate: Annotated[float, typer.Option(min=10, help="Events a second while one is killed and one joins.")] = 500.0,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """CPU an event, fairness, and how long a partition stands still when a worker is killed and when one joins."""
    from benchmarks.scale import bench_scale, table

    result = bench_scale(
        workers=workers or (1, 2, 3, 4), partitions=partitions or (4, 12), events=events, rate=rate, report=_say
    )
    if json:
        _show(result, json=True)
    else:
        sys.stdout.write(table(result.rows) + "\n")


@app.command()
def capacity(
    events_per_s: Annotated[float, typer.Option(min=1, help="Events a second at the peak.")] = 1e6,
    users: Annotated[float, typer.Option(min=1, help="Users with a window.")] = 1e8,
    new_texts: Annotated[float, typer.Option(min=0, max=1, help="Share of events with a new text.")] = 0.01,
    events_per_update: Annotated[float, typer.Option(min=1, help="Events that one profile answers.")] = 1.0,
    figures: Annotated[Path, typer.Option(help="Figures of `make bench`.")] = REPORT / FIGURES,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON array.")] = False,
) -> None:
    """Cores, machines, disks and bandwidth for a load, from the unit costs that `make bench` measured here."""
    from benchmarks.capacity import Demand, plan, read_figures, table

    demand = Demand(events_per_s, users, new_texts=new_texts, events_per_update=events_per_update)
    lines = plan(read_figures(figures), demand)
    sys.stdout.write((msgspec.json.encode(lines).decode() if json else table(lines)) + "\n")


@app.command()
def inference(
    part: Annotated[list[str] | None, typer.Option(help="One part, several times: default all.")] = None,
    hits: Annotated[list[float] | None, typer.Option(help="A share of known titles, several times.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 2,
    users: Annotated[int, typer.Option(min=2, help="People.")] = 10_000,
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
    result = bench_inference(choices, _say)
    if folder:
        write_report(result, folder)
    _show(result, json=json)


def _show(result: msgspec.Struct, *, json: bool) -> None:
    if json:
        sys.stdout.write(msgspec.json.encode(result).decode() + "\n")
    else:
        for name, value in msgspec.to_builtins(result).items():
            _say(f"{name:24} {value}")
