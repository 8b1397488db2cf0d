"""How fast events become durable windows: a worker of this project beside its peers, on one broker, in one run.

One process at a time reads the same pre-filled topic, keeps the last 50 events of each user within 90 days, and
publishes who changed about once a second. No release is active, so no model is in the figure. What counts lies between
two outputs: the one that ends the warm-up and the last one; docs/reference/benchmarks.md has the whole protocol.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import msgspec

from benchmarks.events import PLATFORM, Workload, fill
from benchmarks.peers import PEERS, Place
from benchmarks.peers.ours import OURS
from benchmarks.process import follow
from benchmarks.stack import make_topics, private_stack
from benchmarks.trace import Rates, Trace, rates
from benchmarks.windows import differences, hash_of
from xplat_stream.kafka.topics import PROFILES, behavior_topic, create_topics

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from benchmarks.peers import Peer
    from benchmarks.windows import Windows
    from xplat_stream.settings import Settings

_SLOW_SOURCE: Final = "bench.tenth"
_SLOW_SHARE: Final = 10
_WARM_UP_SHARE: Final = 4
"""A quarter of the measured events comes before them."""

STREAMS: Final = "kafka-streams"


class PeerRun(msgspec.Struct, frozen=True):
    """One system measured. All figures but those of start-up are of the part behind the warm-up."""

    name: str
    title: str
    promise: str
    keeps_promise: bool
    events: int
    events_per_s: int
    """Of wall time, one process."""
    cpu_us: float
    """Processor microseconds of all threads an event."""
    events_per_cpu_s: int
    peak_mb: int
    outputs: int
    """Of the whole run, warm-up included."""
    startup_s: float
    startup_cpu_s: float
    from_start: bool
    """Whether the run was too short to be divided: start-up and warm-up are in the figures."""
    hash: str
    """Of the final windows of all users."""
    differences: tuple[str, ...]
    """Users whose windows are not what the events give, and how."""


class FoldResult(msgspec.Struct, frozen=True):
    """One run of all of them."""

    events: int
    """Measured of each; slow peers are given a tenth, of a tenth of the users."""
    warm_up: int
    users: int
    value_bytes: float
    cores: int
    load: float
    """Processes that ran or waited for a core over the last minute, at the end: what else the machine was doing."""
    hash: str
    """What the events give."""
    peers: tuple[PeerRun, ...]

    @property
    def differences(self) -> list[str]:
        """Every user whose window differs somewhere, with the peer."""
        return [f"{run.name}: {line}" for run in self.peers for line in run.differences]

    def figures(self) -> dict[str, float | bool | None]:
        """Return the headline figures; a ratio is of events a processor second, None where a peer was left out."""
        speed = {run.name: run.events_per_cpu_s for run in self.peers}
        alike = [run for run in self.peers if run.name.startswith(STREAMS) and run.keeps_promise]
        if alike:
            speed[STREAMS] = max(run.events_per_cpu_s for run in alike)
        (ours,) = [run for run in self.peers if run.name == OURS.name]
        rivals = [name for name in PEERS if name != OURS.name and not name.startswith(f"{STREAMS}-")]
        return {
            "fold_per_s": ours.events_per_s,
            "fold_cpu_us": ours.cpu_us,
            "event_bytes": self.value_bytes,
            **{
                f"fold_vs_{name.replace('-', '_')}": round(ours.events_per_cpu_s / speed[name], 2)
                if name in speed
                else None
                for name in rivals
            },
            "hashes_equal": not self.differences,
        }


def bench_fold(
    *,
    peers: Sequence[Peer],
    events: int,
    users: int,
    report: Callable[[str], None],
    traced: Callable[[Peer, Trace], None] = lambda *_: None,
) -> FoldResult:
    """Measure the peers one after the other in a stack of their own; `traced` is shown what was seen of each.

    Raises `StackError`, `DeliveryError`.
    """
    for peer in peers:
        peer.prepare(report)
    with private_stack(report) as (settings, home):
        whole = _workload(settings, events, users)
        tenth = _workload(settings, max(1, events // _SLOW_SHARE), max(1, users // _SLOW_SHARE))
        source = behavior_topic(PLATFORM)
        make_topics(settings, [_SLOW_SOURCE], {"cleanup.policy": "delete"})
        make_topics(settings, [PROFILES], {"cleanup.policy": "compact", **_STAMPED})
        create_topics(settings)
        value_bytes, expected = fill(settings, whole, source)
        slow_expected: Windows = {}
        if any(peer.slow for peer in peers):
            _, slow_expected = fill(settings, tenth, _SLOW_SOURCE)
        report(f"{whole.events} events of {value_bytes:.0f} bytes of {len(expected)} users written")
        runs = []
        for peer in peers:
            topic, workload, windows = (_SLOW_SOURCE, tenth, slow_expected) if peer.slow else (source, whole, expected)
            run, trace = _measure(peer, _place(settings, home, peer, topic), workload, windows)
            traced(peer, trace)
            report(
                f"{run.name}: {run.cpu_us} us of processor time an event, {run.events_per_s:,} events/s, "
                f"{len(run.differences) or 'no'} windows differ"
            )
            runs.append(run)
    return FoldResult(
        events=whole.events - _warm_up(whole),
        warm_up=_warm_up(whole),
        users=users,
        value_bytes=round(value_bytes, 1),
        cores=os.cpu_count() or 0,
        load=round(os.getloadavg()[0], 1),
        hash=hash_of(expected),
        peers=tuple(runs),
    )


_STAMPED: Final = {"message.timestamp.type": "LogAppendTime"}
"""The broker's clock stamps every output, whatever its writer says."""


def _workload(settings: Settings, measured: int, users: int) -> Workload:
    return Workload(measured + measured // _WARM_UP_SHARE, users, settings.kafka.partitions)


def _warm_up(workload: Workload) -> int:
    return workload.events // (_WARM_UP_SHARE + 1)


def _place(settings: Settings, home: Path, peer: Peer, source: str) -> Place:
    """Return where a peer works, made ready."""
    place = Place(settings, home / peer.name, source, peer.output or f"bench.{peer.name}")
    place.home.mkdir()
    if not peer.output:
        make_topics(settings, [place.output], {"cleanup.policy": "delete", **_STAMPED})
    make_topics(settings, peer.topics(place), {"cleanup.policy": "compact"})
    return place


def _measure(peer: Peer, place: Place, workload: Workload, expected: Windows) -> tuple[PeerRun, Trace]:
    trace = follow(peer, place, workload)
    found = peer.windows(place)
    measured: Rates = rates(trace, warm_up=_warm_up(workload))
    run = PeerRun(
        name=peer.name,
        title=peer.title,
        promise=peer.promise,
        keeps_promise=peer.keeps_promise,
        events=measured.events,
        events_per_s=round(measured.events_per_s),
        cpu_us=round(measured.cpu_us, 2),
        events_per_cpu_s=round(1e6 / measured.cpu_us),
        peak_mb=round(trace.peak_bytes / 2**20),
        outputs=trace.outputs,
        startup_s=round(measured.startup_s, 1),
        startup_cpu_s=round(measured.startup_cpu_s, 1),
        from_start=measured.from_start,
        hash=hash_of(found),
        differences=tuple(differences(expected, found)),
    )
    return run, trace
