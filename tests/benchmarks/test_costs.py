"""What is worked out from counters and clocks of processes: unit costs, and how long a partition stood still."""

from __future__ import annotations

from benchmarks.inference import Rate, unit_costs
from benchmarks.scale import longest_gap


def rate(texts: int, saved: float) -> Rate:
    """Return a burst of 1000 updates by 2000 events: 6 ms a text, 100 us a user scored, 300 us an update."""
    cpu = {"triton": texts / 1000 * 5000 + (1 - saved) * 100, "worker": texts / 1000 * 1000 + 300, "kafka": 50.0}
    return Rate(1 - texts / 2000, 2000, 1000, 2.0, saved, 0.0, 0.0, cpu, {})


def test_unit_costs_come_out_of_two_rates() -> None:
    """Two equations for two unknowns, of Triton and of the worker; a text costs both."""
    assert unit_costs([rate(0, 0.6), rate(20, 0.5)]) == (6000.0, 100.0, 300.0)


def test_one_rate_tells_no_unit_costs() -> None:
    """A text, a user and an update cannot be told apart."""
    assert unit_costs([rate(20, 0.5)]) == (0.0, 0.0, 0.0)


def test_a_gap_is_within_one_partition() -> None:
    """Another partition that goes on does not hide one that stands still."""
    assert longest_gap([[0, 10, 20, 30], [5, 25, 28], []]) == 20
    assert longest_gap([[7], []]) == 0
