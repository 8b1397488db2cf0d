"""Reports of several partitions, added up to what is known of a release."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec
import pytest

from xplat_stream.comparison import Comparison
from xplat_stream.kafka.codec import Report, decode_report, encode_report, report_key
from xplat_stream.kafka.reports import combined
from xplat_stream.testing import START


def comparison(windows: int = 1) -> Comparison:
    """Return a comparison of so many windows."""
    made = Comparison()
    for _ in range(windows):
        made.add([0.75, 0.25], [0.25, 0.25])
    return made


def report(partition: int, **fields: Any) -> Report:
    """Return a report of a partition that is through with release 2, compared with 1."""
    made = Report(partition, START, 2, 10, 10, True, (2, 1), comparison())
    return msgspec.structs.replace(made, **fields)


def test_a_report_comes_back_as_it_was() -> None:
    """Under a key of its group and partition."""
    assert decode_report(encode_report(report(3))) == report(3)
    assert report_key("xplat", 3) == b"report/xplat/3"
    assert report_key("xplat", 3).startswith(report_key("xplat"))
    assert not report_key("xplat-2", 3).startswith(report_key("xplat"))


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(encode_report(report(1, version=2)), id="another version"),
        pytest.param(b'{"version":2,"new":[]}', id="another version with other fields"),
        pytest.param(b'{"version":1}', id="fields missing"),
        pytest.param(b"no JSON", id="no JSON"),
    ],
)
def test_what_cannot_be_read_counts_as_none(value: bytes) -> None:
    """A newer worker's report, or somebody else's record, stops nobody."""
    assert decode_report(value) is None


def test_reports_add_up() -> None:
    """Users and comparisons of all partitions; complete when every one is settled."""
    found = combined([report(0), report(1)], release=2, partitions=2)
    assert (found.release, found.shadow, found.active_users, found.scored_users) == (2, 1, 20, 20)
    assert found.comparison == comparison(2)
    assert found.complete


@pytest.mark.parametrize(
    "reports",
    [
        pytest.param([report(0)], id="one is missing"),
        pytest.param([report(0), report(1, release=1)], id="one is on the release before"),
        pytest.param([report(0), report(1, settled=False)], id="one has users left"),
        pytest.param([], id="nobody reports"),
    ],
)
def test_complete_is_said_of_all_partitions_only(reports: list[Report]) -> None:
    """Consumers may rely on it: not one active user is left on another release."""
    assert not combined(reports, release=2, partitions=2).complete
    assert not combined((), release=2, partitions=0).complete


def test_comparisons_of_other_pairs_do_not_count() -> None:
    """Of the pair asked for, or of the one announced last."""
    reports = [report(0), report(1, compared=(2, 3), since=START), report(2, compared=(1, 2))]
    assert combined(reports, release=2, partitions=3).shadow == 3
    assert combined(reports, release=2, partitions=3).comparison == comparison()
    asked = combined(reports, release=2, shadow=1, partitions=3)
    assert (asked.shadow, asked.comparison.compared) == (1, 1)
    assert combined(reports, release=2, shadow=9, partitions=3).comparison == Comparison()
    assert combined(reports, release=7, partitions=3).shadow == 0


def test_a_release_promoted_again_begins_anew() -> None:
    """What was counted of the same pair before it was announced this time does not count."""
    later = START + timedelta(days=1)
    reports = [report(0, since=START), report(1, since=later), report(2, since=later)]
    assert combined(reports, release=2, partitions=3).comparison == comparison(2)
    assert combined(reports[:1], release=2, shadow=1, since=later, partitions=3).comparison == Comparison()
