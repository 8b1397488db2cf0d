"""From unit costs, as `make bench` measured them, to cores, machines, disks and bandwidth for a load. Pure."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from xplat_stream.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

UNITS: Final = (
    "fold_cpu_us",
    "update_cpu_us",
    "score_cpu_us",
    "text_cpu_us",
    "calls_saved",
    "event_bytes",
    "profile_bytes",
    "bytes_per_user",
    "changelog_bytes_per_user",
    "recovery_users_per_s",
)
"""The figures it follows from."""

_DAY_S: Final = 86_400


class Demand(msgspec.Struct, frozen=True):
    """A load, and what is assumed of it and of the machines."""

    events_per_s: float = 1e6
    """At the peak."""
    users: float = 1e8
    new_texts: float = 0.01
    """Share of events whose text no worker has encoded before."""
    events_per_update: float = 1.0
    """Events of one user that one profile answers; 1: nothing coalesces, the dearest case."""
    replication: int = 3
    busy: float = 0.5
    """Share of a core, or of a network card, that the peak may take: the rest is for the loss of a host."""
    cores: int = 32
    """Of a machine."""
    network_gb_s: float = 3.1
    """GB a second each way of a broker's network card: 25 Gbit/s."""
    mean_to_peak: float = 0.33
    retention_days: float = 7.0
    """Of behavior topics."""

    @property
    def updates_per_s(self) -> float:
        """Profiles published a second."""
        return self.events_per_s / self.events_per_update


class Line(NamedTuple):
    """One figure of the plan and how it comes about."""

    what: str
    arithmetic: str
    result: str


def plan(figures: Mapping[str, float | bool | None], demand: Demand) -> list[Line]:
    """Return the plan, line by line. Raises `DataError` where a figure was not measured."""
    if missing := [name for name in UNITS if not figures.get(name)]:
        raise DataError(
            f"not measured: {', '.join(missing)}",
            where="the figures",
            expected="those of a whole run",
            fix="make bench",
        )
    unit = {name: float(figures[name] or 0) for name in UNITS}
    compute, workers = _compute(unit, demand)
    return [*compute, *_state(unit, demand, workers), *_brokers(unit, demand)]


def _compute(unit: Mapping[str, float], demand: Demand) -> tuple[list[Line], int]:
    """Return what takes processor time, and how many workers that is."""
    rate, updates, busy, cores = demand.events_per_s, demand.updates_per_s, demand.busy, demand.cores
    scored, texts = updates * (1 - unit["calls_saved"]), rate * demand.new_texts
    a_day = rate * demand.mean_to_peak * _DAY_S / demand.users
    load = {
        "folding": (rate, "fold_cpu_us"),
        "profiles made by workers": (updates, "update_cpu_us"),
        "head": (scored, "score_cpu_us"),
        "encoder": (texts, "text_cpu_us"),
    }
    taken = {name: times * unit[cost] / 1e6 for name, (times, cost) in load.items()}
    sums = {
        name: Line(name, f"{times:,.0f}/s x {unit[cost]:g} us", f"{taken[name]:,.1f} cores")
        for name, (times, cost) in load.items()
    }
    fold, publish, head, encoder = taken.values()
    workers, tritons = ceil((fold + publish) / busy), ceil((head + encoder) / busy)
    machines = ceil((workers + tritons) / cores)
    mean = f"{rate:,.0f}/s x {demand.mean_to_peak:g} x {_DAY_S:,} s"
    return [
        Line("events a user a day", f"{mean} / {demand.users:,.0f}", f"{a_day:,.0f}"),
        Line("updates a second", f"{rate:,.0f}/s / {demand.events_per_update:g}", f"{updates:,.0f}"),
        sums["folding"],
        sums["profiles made by workers"],
        Line("**worker processes**, a core each", f"({fold:,.1f} + {publish:,.1f}) / {busy:g}", f"{workers:,}"),
        Line("partitions", "one a worker process at the least", f"{workers:,}"),
        Line("users scored a second", f"{updates:,.0f}/s x (1 - {unit['calls_saved']:g} saved)", f"{scored:,.0f}"),
        sums["head"],
        Line("texts encoded a second", f"{rate:,.0f}/s x {demand.new_texts:g}", f"{texts:,.0f}"),
        sums["encoder"],
        Line("**Tritons on CPU**, a core each", f"({head:,.1f} + {encoder:,.1f}) / {busy:g}", f"{tritons:,}"),
        Line(f"**machines** of {cores} cores", f"({workers:,} + {tritons:,}) / {cores}", f"{machines:,}"),
    ], workers


def _state(unit: Mapping[str, float], demand: Demand, workers: int) -> list[Line]:
    """Return what lies on the disks of workers, and how soon it is somewhere else."""
    users, each, per_s = demand.users, unit["bytes_per_user"], unit["recovery_users_per_s"]
    whole = users * each
    alone_s = users / workers / per_s
    return [
        Line("state on workers' disks", f"{users:,.0f} x {each:,.0f} B", f"{whole / 1e12:.2f} TB"),
        Line("… of a worker", f"{whole / 1e12:.2f} TB / {workers:,}", f"{whole / workers / 1e6:,.0f} MB"),
        Line("its users restored by one other", f"{users:,.0f} / {workers:,} / {per_s:,.0f}/s", f"{alone_s:,.1f} s"),
    ]


def _brokers(unit: Mapping[str, float], demand: Demand) -> list[Line]:
    """Return what goes over the network and lies on the disks of brokers."""
    card, busy, copies, share = demand.network_gb_s, demand.busy, demand.replication, demand.mean_to_peak
    flows = {
        "events": (demand.events_per_s, unit["event_bytes"]),
        "changelog": (demand.updates_per_s, unit["changelog_bytes_per_user"]),
        "profiles": (demand.updates_per_s, unit["profile_bytes"]),
    }
    gb_s = {name: times * size / 1e9 for name, (times, size) in flows.items()}
    total = sum(gb_s.values())
    brokers = ceil(total * copies / (card * busy))
    kept_tb = gb_s["events"] * share * _DAY_S * demand.retention_days * copies / 1e3
    changelog_tb = demand.users * unit["changelog_bytes_per_user"] * copies / 1e12
    kept = f"{gb_s['events']:.2f} GB/s x {share:g} x {demand.retention_days:g} days x {copies}"
    compacted = f"{demand.users:,.0f} x {unit['changelog_bytes_per_user']:,.0f} B x {copies}"
    return [
        *(
            Line(f"{name} written", f"{times:,.0f}/s x {size:,.0f} B", f"{gb_s[name]:.2f} GB/s")
            for name, (times, size) in flows.items()
        ),
        Line(
            "**brokers**, by their network", f"{total:.2f} GB/s x {copies} / ({card:g} GB/s x {busy:g})", f"{brokers:,}"
        ),
        Line("brokers' disks: events", kept, f"{kept_tb:,.0f} TB"),
        Line("brokers' disks: changelog, compacted", compacted, f"{changelog_tb:.2f} TB"),
    ]


def read_figures(path: Path) -> dict[str, float | bool | None]:
    """Read the figures that a run of `make bench` left. Raises `DataError`."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, float | bool | None])
    except (OSError, msgspec.DecodeError) as error:
        raise DataError(
            f"no figures: {error}", where=str(path), expected="one JSON object", fix="make bench"
        ) from error


def table(lines: list[Line]) -> str:
    """Return it as Markdown."""
    return "\n".join(
        ["| what | arithmetic | result |", "|---|---|---:|", *(f"| {' | '.join(line)} |" for line in lines)]
    )
