"""Unit costs to machines: the sums come out, and nothing is made up where a figure is missing."""

from __future__ import annotations

import msgspec
import pytest

from benchmarks.capacity import Demand, plan, table
from xplat_stream.errors import DataError

FIGURES = {
    "fold_cpu_us": 10.0,
    "update_cpu_us": 90.0,
    "score_cpu_us": 100.0,
    "text_cpu_us": 5000.0,
    "calls_saved": 0.5,
    "event_bytes": 400.0,
    "profile_bytes": 1600.0,
    "bytes_per_user": 2000.0,
    "changelog_bytes_per_user": 2000.0,
    "recovery_users_per_s": 50_000.0,
}
DEMAND = Demand(events_per_s=1e5, users=1e7, network_gb_s=1.0)


def results(demand: Demand) -> dict[str, str]:
    """Return the result of each line."""
    return {line.what: line.result for line in plan(FIGURES, demand)}


def test_the_sums_come_out() -> None:
    """100,000 events/s of 10 million people at half load: worked out by hand."""
    found = results(DEMAND)
    assert found["folding"] == "1.0 cores"
    assert found["profiles made by workers"] == "9.0 cores"
    assert found["**worker processes**, a core each"] == "20"
    assert found["head"] == "5.0 cores"
    assert found["encoder"] == "5.0 cores"
    assert found["**Tritons on CPU**, a core each"] == "20"
    assert found["**machines** of 32 cores"] == "2"
    assert found["its users restored by one other"] == "10.0 s"
    assert found["**brokers**, by their network"] == "3"


def test_events_that_are_answered_together_cost_one_profile() -> None:
    """Folding stays what it is, everything that is done for a profile halves."""
    found = results(msgspec.structs.replace(DEMAND, events_per_update=2.0))
    assert found["folding"] == "1.0 cores"
    assert found["profiles made by workers"] == "4.5 cores"
    assert found["head"] == "2.5 cores"
    assert found["encoder"] == "5.0 cores"


@pytest.mark.parametrize("absent", [None, 0.0])
def test_a_figure_that_was_not_measured_is_named(absent: float | None) -> None:
    """In place of a plan in which something costs nothing."""
    with pytest.raises(DataError, match="not measured: text_cpu_us"):
        plan({**FIGURES, "text_cpu_us": absent}, DEMAND)


def test_every_line_is_a_row() -> None:
    """The table shows the arithmetic beside each result."""
    lines = plan(FIGURES, DEMAND)
    assert len(table(lines).splitlines()) == len(lines) + 2
    assert "| head | 50,000/s x 100 us | 5.0 cores |" in table(lines)
