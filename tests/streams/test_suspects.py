"""Suspects: a record that crashes the worker again and again is found and put aside, an innocent one never."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from hypothesis import given, settings
from hypothesis import strategies as st

from streams.suspects import InHand, Suspects, blame_in_hand, forget_in_hand

if TYPE_CHECKING:
    from pathlib import Path


def records(first: int, last: int, *, topic: str = "behavior.shop.v1", partition: int = 0) -> list[Any]:
    """Return records as the consumer hands them over."""
    return [SimpleNamespace(topic=topic, partition=partition, offset=offset) for offset in range(first, last + 1)]


def test_the_third_crash_in_a_row_condemns_one_record(tmp_path: Path) -> None:
    """First the chunk is tried again, then its records one by one, then the one is put aside, across restarts."""
    Suspects(tmp_path).blame(records(0, 99))
    assert not Suspects(tmp_path).careful(records(0, 99))
    Suspects(tmp_path).blame(records(0, 120))
    again = Suspects(tmp_path)
    assert again.careful(records(50, 60))
    assert not again.careful(records(121, 130))
    assert not any(map(again.condemned, records(0, 120)))
    again.blame(records(37, 37))
    last = Suspects(tmp_path)
    assert [record.offset for record in records(0, 120) if last.condemned(record)] == [37]
    last.acquit(records(37, 37))
    assert not Suspects(tmp_path)


def test_other_partitions_and_topics_are_not_suspected(tmp_path: Path) -> None:
    """Blame stays with the stretch of the log it was laid on."""
    suspects = Suspects(tmp_path)
    for _ in range(3):
        suspects.blame(records(5, 5))
    assert suspects.condemned(records(5, 5)[0])
    assert not suspects.condemned(records(5, 5, partition=1)[0])
    assert not suspects.condemned(records(5, 5, topic="behavior.video.v1")[0])
    suspects.acquit(records(5, 9, partition=1))
    assert suspects.condemned(records(5, 5)[0])


def test_a_sudden_death_is_blamed_on_what_was_in_hand(tmp_path: Path) -> None:
    """Two partitions were at work; both are suspected, each for its own records, and what was done is not."""
    InHand(tmp_path, 0).note(records(0, 9))
    InHand(tmp_path, 1).note(records(3, 3, partition=1))
    done = InHand(tmp_path, 2)
    done.note(records(7, 8, partition=2))
    done.note(())
    blame_in_hand(tmp_path)
    InHand(tmp_path, 0).note(records(0, 9))
    blame_in_hand(tmp_path)
    assert Suspects(tmp_path).careful(records(0, 0))
    assert not Suspects(tmp_path).careful(records(3, 3, partition=1))
    InHand(tmp_path, 1).note(records(3, 3, partition=1))
    forget_in_hand(tmp_path)
    blame_in_hand(tmp_path)
    assert not Suspects(tmp_path).careful(records(3, 3, partition=1))


@settings(deadline=None, max_examples=50)
@given(poison=st.sets(st.integers(0, 59), max_size=4), sizes=st.lists(st.integers(1, 30), min_size=1, max_size=8))
def test_exactly_the_poisonous_records_are_put_aside(tmp_path_factory: Any, poison: set[int], sizes: list[int]) -> None:
    """However the log is cut into chunks: every record is handled or put aside, and only poison is put aside."""
    folder = tmp_path_factory.mktemp("suspects")
    log = records(0, 59)
    handled: set[int] = set()
    aside: set[int] = set()
    committed = turn = crashes = 0
    while committed < len(log):
        suspects = Suspects(folder)
        chunk = log[committed : committed + sizes[turn % len(sizes)]]
        turn += 1
        parts = [[record] for record in chunk] if suspects.careful(chunk) else [chunk]
        for part in parts:
            if len(part) == 1 and suspects.condemned(part[0]):
                aside.add(part[0].offset)
            elif any(record.offset in poison for record in part):
                suspects.blame(part)
                crashes += 1
                break
            else:
                handled.update(record.offset for record in part)
        else:
            suspects.acquit(chunk)
            committed += len(chunk)
        assert crashes <= 4 * len(poison)
    assert aside == poison
    assert handled == set(range(60)) - poison
