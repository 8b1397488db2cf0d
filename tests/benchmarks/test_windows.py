"""The comparison of windows can fail, and says of whom and how."""

from __future__ import annotations

import pytest

from benchmarks.events import SPEC, Workload
from benchmarks.programs.law import fold, kept
from benchmarks.windows import differences, hash_of, row_of_peer, row_of_worker
from xplat_stream.adapters import encode_event
from xplat_stream.window import BehaviorWindow, row_of

A, B, C = b"a" * 33, b"b" * 33, b"c" * 33


@pytest.mark.parametrize(
    ("found", "line"),
    [
        ({"ann": [A], "bob": [C]}, "ann lacks 1 of 2 events and has 0 too many"),
        ({"ann": [A, B, C], "bob": [C]}, "ann lacks 0 of 2 events and has 1 too many"),
        ({"ann": [A, C], "bob": [C]}, "ann lacks 1 of 2 events and has 1 too many"),
        ({"ann": [B, A], "bob": [C]}, "ann has its 2 events in another order or more than once"),
        ({"ann": [A, B, B], "bob": [C]}, "ann has its 2 events in another order or more than once"),
        ({"ann": [A, B]}, "bob lacks 1 of 1 events and has 0 too many"),
        ({"ann": [A, B], "bob": [C], "eve": [A]}, "eve lacks 0 of 0 events and has 1 too many"),
    ],
)
def test_a_difference_names_its_user(found: dict[str, list[bytes]], line: str) -> None:
    """Whatever is lost, too many, mixed or repeated gives one line for its user, and another hash."""
    expected = {"ann": [A, B], "bob": [C]}
    assert differences(expected, found) == [line]
    assert hash_of(found) != hash_of(expected)


def test_equal_windows_have_one_hash() -> None:
    """The order in which users are met does not matter."""
    windows = {"ann": [A, B], "bob": [C]}
    assert not differences(windows, dict(reversed(windows.items())))
    assert hash_of(windows) == hash_of(dict(reversed(windows.items())))


def test_a_row_moved_to_the_neighbor_changes_the_hash() -> None:
    """The hash tells whose row it is: no boundary between users can be shifted unseen."""
    assert hash_of({"ann": [A, B], "bob": [C]}) != hash_of({"ann": [A], "bob": [B, C]})


def test_peers_and_worker_come_to_the_same_windows() -> None:
    """The law as the peers' programs have it gives, event by event, what this project's window gives."""
    import json

    ours = BehaviorWindow(SPEC)
    theirs: list[list[int | str]] = []
    for event in Workload(400, 1, 4).all_events():
        ours = ours.fold([(event.platform, row_of(event))])
        fold(theirs, kept(json.loads(encode_event(event))))
        assert [row_of_peer(one) for one in theirs] == [row_of_worker(row) for _, row in ours.rows()]
    assert 1 < len(theirs) <= SPEC.per_platform


def test_the_law_of_the_peers_is_a_set() -> None:
    """Events that come again, late or out of order leave the window that one pass in order gives."""
    events = [[time, f"{time:03d}", "view", "item-1"] for time in range(80)]
    window: list[list[int | str]] = []
    for event in [*events[40:], *events[:40], *events[10:70]]:
        fold(window, list(event))
    assert window == events[-50:]


def test_the_workload_is_the_same_every_time() -> None:
    """Users, items, actions and times follow from the seed."""
    assert list(Workload(50, 9, 4).all_events()) == list(Workload(50, 9, 4).all_events())
    assert list(Workload(50, 9, 4).all_events()) != list(Workload(50, 9, 4, seed=12).all_events())
