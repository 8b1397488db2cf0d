"""What one partition keeps: it comes back after a close, merges whatever it is given, and belongs to one worker."""

from __future__ import annotations

import contextlib
import os
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rocksdict import DbClosedError, Rdict

from streams.store import PartitionStore, claim
from tests.strategies import event_streams, publications, text_entries, windows
from xplat_stream.errors import StateError
from xplat_stream.event import TextHash, UserId
from xplat_stream.state import Publication, TextEntry, UserState, text_key, user_key
from xplat_stream.testing import make_event
from xplat_stream.window import BehaviorWindow, WindowSpec, row_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SPEC = WindowSpec(per_platform=5, horizon=timedelta(days=2))
USER = UserId("u")
TEXT = TextHash(b"12345678")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[PartitionStore]:
    """Yield an empty store."""
    opened = PartitionStore(tmp_path / "state" / "partition-0", SPEC, cached_users=10)
    yield opened
    with contextlib.suppress(DbClosedError):  # some tests close it themselves
        opened.close()


def reopened(store: PartitionStore) -> PartitionStore:
    """Close a store and open it again, as a restart does."""
    store.close()
    return PartitionStore(store.path, store.spec, cached_users=10)


@cache
def state(hour: int) -> UserState:
    """Return a user's state with one event."""
    event = make_event(event_id=f"//t#{hour}", occurred_at=1_750_000_000_000 + hour * 3_600_000)
    return UserState(BehaviorWindow(SPEC).fold([("shop", row_of(event))]), Publication(1))


def test_an_unknown_user_has_an_empty_window(store: PartitionStore) -> None:
    """Someone never seen is revision 0 with nothing in the window, and is not known."""
    assert store.user(USER) == UserState(BehaviorWindow(SPEC), Publication())
    assert not store.knows(USER)
    assert store.changelog_position() == 0


def test_what_was_written_survives_a_restart(store: PartitionStore) -> None:
    """One `write` makes users, texts and the changelog position durable together, and returns the records."""
    entry = TextEntry("a text", ("483",), 1, b"\x00\x3c")
    store.put_user(USER, state(1))
    store.put_text(TEXT, entry)
    store.reached(7)
    assert dict(store.write()) == {user_key(USER): state(1).pack(), text_key(TEXT): entry.pack()}
    assert store.write() == []
    again = reopened(store)
    assert again.user(USER) == state(1)
    assert again.has_text(TEXT)
    assert again.texts([TEXT, TextHash(b"00000000")]) == {TEXT: entry}
    assert list(again.all_texts()) == [(TEXT, entry)]
    assert again.changelog_position() == 7
    again.close()


def test_what_was_not_written_is_gone(store: PartitionStore) -> None:
    """A state that was only put, or only remembered, is not on disk: the chunk that made it is read again."""
    store.put_user(USER, state(1))
    store.remember(UserId("v"), state(2))
    assert store.knows(USER)
    again = reopened(store)
    assert not again.user(USER).window
    assert not again.user(UserId("v")).window
    again.close()


def test_the_position_never_goes_back(store: PartitionStore) -> None:
    """A smaller position reached later changes nothing before the next write."""
    store.reached(9)
    store.reached(4)
    store.write()
    assert store.changelog_position() == 9


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(data=st.data())
def test_restoring_is_merging(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Any order and any batches of changelog records end in the same bytes: the merge of all of them."""
    states = data.draw(st.lists(st.builds(UserState, windows(SPEC), publications()), min_size=1, max_size=5))
    entries = data.draw(st.lists(text_entries(), min_size=1, max_size=4))
    records = [(user_key(USER), one.pack()) for one in states] + [(text_key(TEXT), one.pack()) for one in entries]
    shuffled = data.draw(st.permutations(records))
    cut = data.draw(st.integers(0, len(records)))
    wanted, text = states[0], entries[0]
    for one in states[1:]:
        wanted = wanted.merge(one)
    for entry in entries[1:]:
        text = text.merge(entry)
    store = PartitionStore(tmp_path_factory.mktemp("s") / "p", SPEC, cached_users=10)
    assert store.restore(shuffled[:cut], position=cut) == cut
    store.restore(shuffled[cut:], position=len(records))
    assert store.user(USER).pack() == wanted.pack()
    assert store.texts([TEXT]) == {TEXT: text}
    assert store.changelog_position() == len(records)
    store.close()


def test_a_tombstone_takes_its_key_out(store: PartitionStore) -> None:
    """A record without a value erases; one written after it counts again."""
    key = user_key(USER)
    store.restore([(key, state(1).pack()), (key, None)], position=2)
    assert not store.user(USER).window
    store.restore([(key, state(2).pack())], position=3)
    assert store.user(USER) == state(2)


def test_memory_is_bounded(store: PartitionStore) -> None:
    """Past `cached_users` the longest-held windows leave memory; they are read from disk as before."""
    for number in range(25):
        store.put_user(UserId(f"u{number}"), state(number))
    store.write()
    held = [number for number in range(25) if store.knows(UserId(f"u{number}"))]
    assert held == list(range(16, 25))
    assert store.user(UserId("u0")) == state(0)


@given(stream=event_streams(20))
@settings(max_examples=20, deadline=None)
def test_a_folded_window_comes_back_byte_for_byte(tmp_path_factory: pytest.TempPathFactory, stream) -> None:
    """What RocksDB gives back is the very window that was put."""
    store = PartitionStore(tmp_path_factory.mktemp("s") / "p", SPEC, cached_users=1)
    window = BehaviorWindow(SPEC).fold(stream)
    store.put_user(USER, UserState(window, Publication(3)))
    store.write()
    store = reopened(store)
    assert bytes(store.user(USER).window) == bytes(window)
    store.close()


def test_a_corrupt_database_is_set_aside(store: PartitionStore) -> None:
    """A store RocksDB calls corrupt is renamed, not deleted, and an empty one takes its place, to be restored."""
    store.put_user(USER, state(1))
    store.write()
    store.close()
    (store.path / "CURRENT").write_bytes(b"nonsense\n")
    again = PartitionStore(store.path, SPEC, cached_users=10)
    assert again.changelog_position() == 0
    assert not again.user(USER).window
    assert len(list(store.path.parent.glob("partition-0.corrupt-*"))) == 1
    again.close()


def test_a_store_that_another_process_has_open_is_refused(store: PartitionStore) -> None:
    """The line names the folder and the variable to set."""
    with pytest.raises(StateError, match=r"another worker .*partition-0.*XPLAT_WORKER__DATADIR"):
        PartitionStore(store.path, SPEC, cached_users=10)


def test_a_destroyed_store_leaves_nothing(store: PartitionStore) -> None:
    """Its folder is gone; RocksDB can make a new one in the same place."""
    store.destroy()
    assert not store.path.exists()
    Rdict(str(store.path)).close()


def test_a_folder_is_claimed_once(tmp_path: Path) -> None:
    """A second claim of a state folder is refused while the first one lasts."""
    first = claim(tmp_path / "state")
    with pytest.raises(StateError, match="another worker has it"):
        claim(tmp_path / "state")
    os.close(first)
    os.close(claim(tmp_path / "state"))


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """Below a regular file no folder can be made; the line says so and what to set."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StateError, match=r"Not a directory.*file/state.*XPLAT_WORKER__DATADIR"):
        claim(tmp_path / "file" / "state")
