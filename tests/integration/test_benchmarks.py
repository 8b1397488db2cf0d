"""The benchmark of the fold path, small: it is about the windows, not the figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from benchmarks.fold import bench_fold
from benchmarks.peers import chosen
from benchmarks.report import write_report

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.trace import Trace

pytestmark = pytest.mark.integration


def test_worker_and_floor_come_to_equal_windows(tmp_path: Path) -> None:
    """Both fold the same topic to the windows that its events give, and the report has a row and a curve of each."""
    traces: dict[str, Trace] = {}
    result = bench_fold(
        peers=chosen("floor"),
        events=4000,
        users=200,
        report=lambda _: None,
        traced=lambda peer, trace: traces.update({peer.name: trace}),
    )
    assert result.differences == []
    assert {run.hash for run in result.peers} == {result.hash}
    assert all(trace.steps[-1].folded == 5000 for trace in traces.values())
    figures = result.figures()
    assert figures["hashes_equal"] is True
    assert figures["fold_vs_floor"]
    for path in write_report(tmp_path, result, traces):
        assert path.stat().st_size > 100
