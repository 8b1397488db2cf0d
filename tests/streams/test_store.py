"""What one partition keeps: it comes back after a close, merges whatever it is given, and belongs to one worker."""

from __future__ import annotations

import os
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rocksdict import WriteBatch

from streams.store import PartitionStore, claim, set_aside
from tests.strategies import event_streams, publications, text_entries, windows
from xplat_stream.errors import DamagedState, LostLease, StateError
from xplat_stream.event import TextHash, UserId
from xplat_stream.state import BARRIER_KEY, Publication, TextEntry, UserState, text_key, user_key
from xplat_stream.testing import make_event
from xplat_stream.window import BehaviorWindow, WindowSpec, row_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SPEC = WindowSpec(per_platform=5, horizon=timedelta(days=2))
USER = UserId("u")
TEXT = TextHash(b"12345678")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[PartitionStore]:
    """Yield an empty store."""
    opened = PartitionStore(tmp_path / "state" / "partition-0", SPEC, cached_users=10)
    yield opened
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


def test_another_writer_in_the_changelog_is_found_out(store: PartitionStore) -> None:
    """A position that passed over somebody else's records would make the next recovery pass over them too."""
    store.restore([(user_key(USER), state(1).pack())], position=5)
    store.put_user(USER, state(2))
    store.write()
    store.reached(6)
    store.put_user(USER, state(3))
    store.write()
    with pytest.raises(LostLease, match=r"another worker writes to the changelog of .*: it is at 9, not at 7"):
        store.reached(9)
    store.write()
    assert store.changelog_position() == 6


def test_a_text_that_may_not_be_in_the_changelog_is_sent_again(store: PartitionStore) -> None:
    """The process died between RocksDB and the changelog: the replayed chunk has to send the text once more."""
    first, second = TextHash(b"00000001"), TextHash(b"00000002")
    store.put_text(first, TextEntry("confirmed"))
    store.write()
    store.reached(1)
    store.put_text(second, TextEntry("not confirmed"))
    store.write()
    again = reopened(store)
    assert again.has_text(first)
    assert not again.has_text(second)
    again.put_text(second, TextEntry("not confirmed"))
    assert again.has_text(second)
    again.write()
    again.reached(2)
    again.put_user(USER, state(1))
    again.write()
    last = reopened(again)
    assert last.has_text(second)
    last.close()


def test_what_the_changelogs_last_record_lacks_is_written_again(store: PartitionStore) -> None:
    """A paused worker's stale record came last: the union is held, and goes back into the changelog."""
    newer, stale = state(2), state(1)
    store.restore([(user_key(USER), newer.pack()), (user_key(USER), stale.pack())], position=2)
    assert store.is_dirty
    assert store.write() == [(user_key(USER), newer.merge(stale).pack())]
    assert not store.is_dirty
    store.restore([(user_key(USER), newer.merge(stale).pack())], position=3)
    assert not store.is_dirty


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


def test_a_barrier_is_passed_over(store: PartitionStore) -> None:
    """It is no state: it is not counted and not kept, and the position goes past it."""
    assert store.restore([(BARRIER_KEY, None), (user_key(USER), state(1).pack())], position=2) == 1
    assert store.restore([(BARRIER_KEY, None)], position=3) == 0
    assert store.changelog_position() == 3
    assert store.user(USER) == state(1)
    assert BARRIER_KEY not in dict(store._iterate(b""))


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        pytest.param(user_key(USER), b"\x09" + state(1).pack()[1:], "format 09; expected 01", id="state"),
        pytest.param(user_key(USER), state(1).pack()[:16] + b"\x09", "window format is 09; expected 02", id="window"),
        pytest.param(user_key(USER), b"\x01", "user state of 1 bytes", id="cut"),
        pytest.param(text_key(TEXT), b"\xc1", "MessagePack", id="text"),
        pytest.param(b"z", b"", "unknown kind b'z'", id="kind"),
        pytest.param(b"", b"", "unknown kind b''", id="empty key"),
    ],
)
@pytest.mark.parametrize("held", [False, True], ids=["new", "held"])
def test_an_unknown_changelog_record_changes_nothing(
    store: PartitionStore, key: bytes, value: bytes, complaint: str, *, held: bool
) -> None:
    """A batch with a record of another format is refused whole, and the folder stays where it is."""
    if held:
        store.put_user(USER, state(1))
        store.put_text(TEXT, TextEntry("a text"))
        store.write()
    with pytest.raises(ValueError, match=complaint):
        store.restore([(user_key(UserId("v")), state(2).pack()), (key, value)], position=2)
    assert store.changelog_position() == 0
    assert not store.user(UserId("v")).window
    assert store.path.exists()


def test_a_store_says_whose_it_is_and_when_it_was_written(
    store: PartitionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both survive a restart; a new store is nobody's and empty."""
    assert (store.identity(), store.last_written_ms(), store.is_empty()) == (None, 0, True)
    monkeypatch.setattr("time.time_ns", lambda: 5_000_000)
    store.mark(b"mine")
    monkeypatch.setattr("time.time_ns", lambda: 7_000_000)
    store.put_user(USER, state(1))
    store.write()
    again = reopened(store)
    assert (again.identity(), again.last_written_ms(), again.is_empty()) == (b"mine", 7, False)
    again.close()


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


def many(store: PartitionStore) -> None:
    """Fill a store so that its users lie in one SST file, and close it."""
    for number in range(200):
        store.put_user(UserId(f"u{number}"), UserState(state(number).window, Publication(number, 1, (7,) * 500)))
    store.write()
    store._db.flush()
    store.close()


def sst(store: PartitionStore) -> Path:
    """Return the largest SST file."""
    return max(store.path.glob("*.sst"), key=lambda file: file.stat().st_size)


def flip(file: Path) -> None:
    """Turn one bit in a file's middle, where users lie: opening reads the first block of it only."""
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda store: os.truncate(sst(store), 1000), id="SST cut"),
        pytest.param(lambda store: sst(store).unlink(), id="SST gone"),
        pytest.param(lambda store: next(store.path.glob("MANIFEST*")).write_bytes(b""), id="MANIFEST empty"),
        pytest.param(lambda store: next(store.path.glob("MANIFEST*")).unlink(), id="MANIFEST gone"),
        pytest.param(lambda store: (store.path / "CURRENT").unlink(), id="CURRENT gone"),
        pytest.param(lambda store: (store.path / "CURRENT").write_bytes(b"nonsense\n"), id="CURRENT nonsense"),
    ],
)
def test_damage_found_at_the_start_is_set_aside(
    store: PartitionStore, spoil: Callable[[PartitionStore], object]
) -> None:
    """The folder is renamed, not deleted, one line says so, and what is opened next is new: position 0, no users."""
    store.reached(7)
    many(store)
    spoil(store)
    with pytest.raises(
        DamagedState, match=r"state is damaged: .*partition-0\).*set aside as partition-0.corrupt-\d{8}T"
    ):
        PartitionStore(store.path, SPEC, cached_users=10)
    assert not store.path.exists()
    assert len(list(store.path.parent.glob("partition-0.corrupt-*"))) == 1
    again = PartitionStore(store.path, SPEC, cached_users=10)
    assert again.is_empty()
    assert again.changelog_position() == 0
    again.close()


READS: dict[str, Callable[[PartitionStore], object]] = {
    "user": lambda store: [store.user(UserId(f"u{number}")) for number in range(200)],
    "restore": lambda store: store.restore(
        [(user_key(UserId(f"u{number}")), state(1).pack()) for number in range(200)], position=1
    ),
    "iterate": lambda store: list(store._iterate(b"w")),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_damage_found_while_reading_is_set_aside(
    store: PartitionStore, read: Callable[[PartitionStore], object]
) -> None:
    """One flipped bit is found by whatever reads it; nothing that it changed is ever returned, nor an end too early."""
    many(store)
    flip(sst(store))
    damaged = PartitionStore(store.path, SPEC, cached_users=1)
    with pytest.raises(DamagedState, match=r"block checksum mismatch.*set aside as partition-0\.corrupt-"):
        read(damaged)
    assert not store.path.exists()
    damaged.close()
    PartitionStore(store.path, SPEC, cached_users=1).close()


@pytest.mark.parametrize("key", [user_key(USER), text_key(TEXT)], ids=["user", "text"])
def test_a_value_that_cannot_be_read_is_damage(store: PartitionStore, key: bytes) -> None:
    """RocksDB gives it back faithfully, but nothing this version writes looks like that."""
    batch = WriteBatch(raw_mode=True)
    batch.put(key, b"\xc1")
    store._db.write(batch)
    with pytest.raises(DamagedState, match=r"set aside as partition-0\.corrupt-"):
        (store.user(USER), store.texts([TEXT]))
    assert not store.path.exists()


def test_a_full_disk_is_not_damage(store: PartitionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line names folder, cause and what to do; the folder stays, and what was put is still there to be written."""

    class Full:
        def write(self, _: WriteBatch) -> None:
            message = f"IO error: No space left on device: While appending to file: {store.path}/000008.log: No space"
            raise Exception(message)  # noqa: TRY002 - as rocksdict does

    store.put_user(USER, state(1))
    with monkeypatch.context() as patch:
        patch.setattr(store, "_db", Full())
        with pytest.raises(DamagedState, match=r"No space left on device \(.*partition-0\).* Free space") as caught:
            store.write()
    assert "000008.log" not in str(caught.value)
    assert caught.value.exit_code == 74
    assert store.path.exists()
    assert dict(store.write()) == {user_key(USER): state(1).pack()}


def test_only_the_newest_folders_set_aside_are_kept(tmp_path: Path) -> None:
    """Three of each partition, whatever they were set aside for; other partitions' are left alone."""
    other = tmp_path / "partition-10"
    other.mkdir()
    kept = [set_aside(other, "corrupt")]
    for why in ("corrupt", "stale", "foreign", "ahead", "corrupt"):
        (tmp_path / "partition-1").mkdir()
        kept.append(set_aside(tmp_path / "partition-1", why))
    assert sorted(tmp_path.iterdir()) == sorted([kept[0], *kept[-3:]])


def test_a_store_that_another_process_has_open_is_refused(store: PartitionStore) -> None:
    """The line names the folder and the variable to set."""
    with pytest.raises(StateError, match=r"another worker .*partition-0.*XPLAT_WORKER__DATADIR"):
        PartitionStore(store.path, SPEC, cached_users=10)


def test_a_folder_that_may_not_be_written_is_refused(store: PartitionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no damage and no other worker: a person has to act, and nothing is renamed."""

    def refuse(*_: object) -> None:
        message = f"IO error: While lock file: {store.path}/LOCK: Permission denied"
        raise Exception(message)  # noqa: TRY002 - as rocksdict does

    store.close()
    monkeypatch.setattr("streams.store.Rdict", refuse)
    with pytest.raises(StateError, match=r"Permission denied .*partition-0.*XPLAT_WORKER__DATADIR"):
        PartitionStore(store.path, SPEC, cached_users=10)
    assert store.path.exists()


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
