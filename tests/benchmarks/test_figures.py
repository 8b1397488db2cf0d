"""From what is seen of processes to rates, ratios and the table."""

from __future__ import annotations

import msgspec
import pytest

from benchmarks.fold import FoldResult, PeerRun
from benchmarks.peers import PEERS, chosen
from benchmarks.report import table
from benchmarks.trace import Sample, Step, Trace, rates, steps_of
from xplat_stream.errors import SettingsError


def run(name: str, cpu_us: float, *, differences: tuple[str, ...] = ()) -> PeerRun:
    """Return a measured system."""
    return PeerRun(
        name=name,
        title=PEERS[name].title,
        promise="some",
        keeps_promise=PEERS[name].keeps_promise,
        events=1000,
        events_per_s=5000,
        cpu_us=cpu_us,
        events_per_cpu_s=round(1e6 / cpu_us),
        peak_mb=100,
        outputs=900,
        startup_s=1.0,
        startup_cpu_s=0.5,
        from_start=False,
        hash="00" * 16,
        differences=differences,
    )


def result(*runs: PeerRun) -> FoldResult:
    """Return a measured run."""
    return FoldResult(
        events=1000, warm_up=250, users=10, value_bytes=400.0, cores=2, load=1.0, hash="00" * 16, peers=runs
    )


def test_ratios_are_of_events_a_processor_second() -> None:
    """A peer at twice the cost makes a ratio of two; one that was left out makes none."""
    figures = result(run("ours", 10.0), run("quix", 20.0), run("floor", 5.0)).figures()
    assert figures["fold_vs_quix"] == 2.0
    assert figures["fold_vs_floor"] == 0.5
    assert figures["fold_vs_pathway"] is None
    assert figures["fold_per_s"] == 5000
    assert figures["fold_cpu_us"] == 10.0
    assert figures["hashes_equal"] is True


def test_kafka_streams_counts_with_its_best_variant() -> None:
    """Of the variants that promise the same the cheapest is the rival."""
    variants = [run(f"kafka-streams{suffix}", cpu) for suffix, cpu in (("", 30.0), ("-no-cache", 40.0), ("-eos", 25.0))]
    assert result(run("ours", 10.0), *variants).figures()["fold_vs_kafka_streams"] == 2.5


def test_a_variant_that_promises_less_does_not_count() -> None:
    """However cheap it is."""
    cheap = msgspec.structs.replace(run("kafka-streams-no-cache", 1.0), keeps_promise=False)
    figures = result(run("ours", 10.0), run("kafka-streams", 30.0), cheap).figures()
    assert figures["fold_vs_kafka_streams"] == 3.0


def test_one_window_that_differs_is_told() -> None:
    """`hashes_equal` is false, and the line says which system and which user."""
    wrong = result(run("ours", 10.0), run("quix", 20.0, differences=("user-7 lacks 1 of 3 events",)))
    assert wrong.figures()["hashes_equal"] is False
    assert wrong.differences == ["quix: user-7 lacks 1 of 3 events"]
    assert "**1 differ**" in table(wrong)


def test_the_table_is_in_the_order_of_cost() -> None:
    """The cheapest system first, each with how many times the work ours does in the same time."""
    rows = [line.split(" | ") for line in table(result(run("ours", 10.0), run("quix", 25.0))).splitlines()[2:4]]
    assert [row[0] for row in rows] == ["| **xplat-stream worker**", f"| {PEERS['quix'].title}"]
    assert rows[1][1:4] == ["25.00", "40,000", "2.50 x"]


def test_start_up_and_warm_up_are_not_in_the_rates() -> None:
    """Between two outputs lie 800 events, 4 s and 2 CPU seconds, whatever was spent before the first."""
    samples = [Sample(0, 0.0), Sample(10_000, 9.0), Sample(14_000, 11.0), Sample(20_000, 11.1)]
    steps = [Step(5000, 100), Step(10_000, 200), Step(12_000, 700), Step(14_000, 1000)]
    found = rates(Trace(samples, steps, 4, 0), warm_up=200)
    assert (found.events, found.wall_s, found.cpu_s, found.startup_s) == (800, 4.0, 2.0, 5.0)
    assert found.events_per_s == 200
    assert found.cpu_us == 2500
    assert found.startup_cpu_s == 4.5


def test_nothing_is_cut_inside_a_commit() -> None:
    """Outputs that follow closely are of one commit, whose events are all folded: the last of them is the mark."""
    samples = [Sample(0, 0.0), Sample(20_000, 20.0)]
    commit = [Step(10_000, 250), Step(10_010, 300), Step(10_020, 400)]
    found = rates(Trace(samples, [Step(1000, 10), *commit, Step(20_000, 1000)], 5, 0), warm_up=250)
    assert (found.events, found.wall_s) == (600, 9.98)


def test_a_short_run_counts_from_the_start() -> None:
    """Where there is no second output far enough from the first, start-up is in the figures."""
    found = rates(Trace([Sample(0, 0.0), Sample(4000, 2.0)], [Step(3500, 500), Step(4000, 1000)], 2, 0), warm_up=200)
    assert (found.events, found.wall_s, found.cpu_s, found.from_start) == (1000, 4.0, 2.0, True)


def test_steps_add_up_the_partitions() -> None:
    """Each partition is as far as its newest output, and never goes back."""
    newest = {(30, 0): 9, (10, 0): 5, (20, 1): 7, (40, 0): 6}
    found = steps_of(newest, lambda _, time: time)
    assert found == [Step(10, 5), Step(20, 12), Step(30, 16), Step(40, 16)]


def test_an_unknown_peer_is_named() -> None:
    """And the known ones are told; ours is always in."""
    with pytest.raises(SettingsError, match=r"unknown peers: flink.*pathway"):
        chosen("quix,flink")
    assert [peer.name for peer in chosen("floor")] == ["ours", "floor"]
    assert [peer.name for peer in chosen("all")] == list(PEERS)
