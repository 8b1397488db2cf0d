"""Taking over: up to a barrier, on folders that are one's own, with one's own thread cleaned up after."""

from __future__ import annotations

import logging
import shutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from aiokafka.errors import TopicAuthorizationFailedError
from confluent_kafka import TopicPartition

from streams.recovery import Recovery
from streams.store import PartitionStore
from tests.streams.test_store import SPEC, TEXT, USER, flip, many, sst, state
from xplat_stream.errors import DamagedState, DeliveryError, StateError
from xplat_stream.event import UserId
from xplat_stream.metrics import Metrics
from xplat_stream.settings import Settings, WindowSettings, WorkerSettings
from xplat_stream.state import BARRIER_KEY, TextEntry, text_key, user_key

if TYPE_CHECKING:
    from tests.streams.conftest import FakeChangelog

DAY_MS = 86_400_000


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Return settings with a folder of their own and the windows of the store's tests."""
    return Settings(
        worker=WorkerSettings(datadir=str(tmp_path)), window=WindowSettings(SPEC.per_platform, SPEC.horizon.days)
    )


@pytest.fixture
def folder(settings: Settings) -> Path:
    """Return the folder of partition 0."""
    return Path(settings.worker.datadir) / "partition-0"


async def restored(settings: Settings, changelog: FakeChangelog, partition: int = 0) -> PartitionStore:
    """Take one partition over, as a worker that just started."""
    recovery = Recovery(settings, changelog, Metrics())
    ((number, store),) = [pair async for pair in recovery.restore([partition], threading.Event())]
    assert number == partition
    return store


def aside(folder: Path) -> list[str]:
    """Return why folders of this partition were set aside, oldest first."""
    found = sorted(folder.parent.glob(f"{folder.name}.*-*"), key=lambda one: one.name.rpartition("-")[2])
    return [one.suffix.partition("-")[0].removeprefix(".") for one in found]


async def test_the_barrier_is_the_end(settings: Settings, changelog: FakeChangelog) -> None:
    """Where the broker says the changelog ends does not count: all that lies before the barrier is restored."""
    changelog.records[0] = [(user_key(UserId("v")), state(2).pack()), (user_key(USER), state(1).pack())]
    store = await restored(settings, changelog)
    assert changelog.records[0][-1] == (BARRIER_KEY, None)
    assert [(span.start, span.end) for span in changelog.reads] == [(0, 3)]
    assert store.user(USER) == state(1)
    assert store.changelog_position() == 3
    store.close()


async def test_only_what_is_new_is_read_again(settings: Settings, changelog: FakeChangelog) -> None:
    """Taken over once more, the store goes on where it was."""
    changelog.records[0] = [(text_key(TEXT), TextEntry("a").pack())]
    (await restored(settings, changelog)).close()
    changelog.records[0].append((text_key(TEXT), TextEntry("a", (), 1, b"\x00\x3c").pack()))
    store = await restored(settings, changelog)
    assert [(span.start, span.end) for span in changelog.reads] == [(0, 2), (2, 4)]
    assert store.texts([TEXT])[TEXT].encoder == 1
    store.close()


@pytest.mark.parametrize("fault", [TopicAuthorizationFailedError(), DeliveryError("not in time", left=1)])
async def test_without_a_barrier_nothing_is_taken_over(
    settings: Settings, changelog: FakeChangelog, folder: Path, fault: Exception
) -> None:
    """A changelog that cannot be written is found before anything is fetched: the worker stops."""
    changelog.fault = fault
    with pytest.raises(DeliveryError):
        await restored(settings, changelog)
    assert not list(folder.parent.iterdir())
    assert changelog.reads == []


async def test_an_empty_changelog_behind_committed_offsets_stops_the_worker(
    settings: Settings, changelog: FakeChangelog
) -> None:
    """What was committed would never be read again. Not even a barrier is written, so the next start sees it too."""
    changelog.committed = [TopicPartition("behavior.shop.v1", 0, 7)]
    for _ in range(2):
        with pytest.raises(StateError, match=r"behavior.shop.v1 is committed up to 7 .*changelog\[0\].*group xplat"):
            await restored(settings, changelog)
    changelog.records[0] = [(BARRIER_KEY, None)]
    (await restored(settings, changelog)).close()


async def test_a_log_that_ends_before_the_barrier_stops_the_worker(
    settings: Settings, changelog: FakeChangelog, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that lost what it acknowledged is no ground to stand on; the store is closed."""
    monkeypatch.setattr("streams.recovery.read_span", lambda *_, **__: iter(()))
    with pytest.raises(DeliveryError, match=r"changelog\[0\] ends at 0, before its barrier 0"):
        await restored(settings, changelog)
    PartitionStore(folder, SPEC, cached_users=1).close()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        pytest.param({"topic_id": "another"}, "foreign", id="topic made again"),
        pytest.param({"partitions": 8}, "foreign", id="other partition count"),
    ],
)
async def test_state_of_another_changelog_is_set_aside(
    settings: Settings, changelog: FakeChangelog, folder: Path, changes: dict[str, object], why: str
) -> None:
    """Its events are of another log, or its users belong elsewhere: they are never merged in."""
    changelog.records[0] = [(user_key(USER), state(1).pack())]
    (await restored(settings, changelog)).close()
    changelog.facts = changelog.facts._replace(**changes)
    changelog.records[0] = [(user_key(UserId("v")), state(2).pack())]
    store = await restored(settings, changelog)
    assert aside(folder) == [why]
    assert not store.user(USER).window
    assert store.user(UserId("v")) == state(2)
    store.close()
    (await restored(settings, changelog)).close()
    assert aside(folder) == [why]


async def test_state_of_another_partition_app_or_format_is_set_aside(
    settings: Settings, changelog: FakeChangelog, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder copied to another partition, used by another app, or left by another version is not built upon."""
    (await restored(settings, changelog)).close()
    shutil.move(folder, folder.with_name("partition-1"))
    (await restored(settings, changelog, 1)).close()
    assert aside(folder.with_name("partition-1")) == ["foreign"]
    (await restored(settings, changelog)).close()
    monkeypatch.setattr("streams.recovery.STORE_FORMAT", 2)
    (await restored(settings, changelog)).close()
    assert aside(folder) == ["foreign"]


async def test_state_that_nobody_marked_is_set_aside(
    settings: Settings, changelog: FakeChangelog, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder of a version that did not mark its own, with users in it, is rebuilt; one warning says why."""
    store = PartitionStore(folder, SPEC, cached_users=1)
    store.put_user(USER, state(1))
    store.write()
    store.close()
    with caplog.at_level(logging.WARNING):
        (await restored(settings, changelog)).close()
    assert aside(folder) == ["foreign"]
    (line,) = caplog.messages
    assert "is of nobody" in line
    assert "partition-0.foreign-" in line


async def test_another_window_spec_keeps_the_state(settings: Settings, changelog: FakeChangelog, folder: Path) -> None:
    """The spec takes effect on reading: changing it costs no rebuild."""
    (await restored(settings, changelog)).close()
    other = Settings(worker=settings.worker, window=WindowSettings(per_platform=2))
    (await restored(other, changelog)).close()
    assert aside(folder) == []


async def test_state_ahead_of_its_changelog_is_set_aside(
    settings: Settings, changelog: FakeChangelog, folder: Path
) -> None:
    """The changelog lost its end: what is held beyond it is not what others will restore."""
    changelog.records[0] = [(user_key(USER), state(1).pack())] * 3
    (await restored(settings, changelog)).close()
    changelog.records[0] = []
    store = await restored(settings, changelog)
    assert aside(folder) == ["ahead"]
    assert not store.user(USER).window
    assert store.changelog_position() == 1
    store.close()


@pytest.mark.parametrize(("days", "found"), [(3.4, []), (3.6, ["stale"])])
async def test_state_left_too_long_is_set_aside(
    settings: Settings,
    changelog: FakeChangelog,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    days: float,
    found: list[str],
) -> None:
    """Past half the time that the changelog keeps tombstones, an erased user could come back to life."""
    changelog.records[0] = [(user_key(USER), state(1).pack())]
    now_ms = 100 * DAY_MS
    monkeypatch.setattr("time.time_ns", lambda: now_ms * 1_000_000)
    (await restored(settings, changelog)).close()
    del changelog.records[0][0]  # erased, and the tombstone is gone too
    changelog.records[0] += [(BARRIER_KEY, None)] * 3
    now_ms += int(days * DAY_MS)
    store = await restored(settings, changelog)
    assert aside(folder) == found
    assert bool(store.user(USER).window) == (not found)
    store.close()


@pytest.mark.parametrize("spoil", [lambda file: file.unlink(), flip], ids=["found at the start", "found while merging"])
async def test_a_damaged_folder_is_rebuilt_at_once(
    settings: Settings, changelog: FakeChangelog, folder: Path, spoil, caplog: pytest.LogCaptureFixture
) -> None:
    """Found while taking over, damage costs no restart: set aside, one warning, rebuilt from the changelog's start."""
    changelog.records[0] = [(user_key(UserId(f"u{number}")), state(number).pack()) for number in range(200)]
    store = await restored(settings, changelog)
    many(store)
    spoil(sst(store))
    changelog.records[0] += changelog.records[0]
    with caplog.at_level(logging.WARNING):
        store = await restored(settings, changelog)
    assert aside(folder) == ["corrupt"]
    assert len(caplog.messages) == 1
    assert changelog.reads[-1].start == 0
    assert all(store.user(UserId(f"u{number}")) == state(number) for number in range(200))
    store.close()


async def test_a_failing_disk_is_not_tried_again(
    settings: Settings, changelog: FakeChangelog, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was set aside, so a second attempt would fail the same way: the worker stops."""
    opened: list[Path] = []

    def refuse(path: str, _: object) -> None:
        opened.append(Path(path))
        raise Exception("IO error: No space left on device")  # noqa: TRY002 - as rocksdict does

    monkeypatch.setattr("streams.store.Rdict", refuse)
    with pytest.raises(DamagedState, match="No space left on device"):
        await restored(settings, changelog)
    assert opened == [folder]


async def test_a_changelog_of_another_format_stops_the_worker(
    settings: Settings, changelog: FakeChangelog, folder: Path
) -> None:
    """It is neither skipped nor destroyed: the line names topic, partition and offsets; the folder stays as it was."""
    changelog.records[0] = [(user_key(USER), state(1).pack())]
    (await restored(settings, changelog)).close()
    changelog.records[0].append((user_key(USER), b"\x02from a newer version"))
    with pytest.raises(StateError, match=r"format 02; expected 01 \(xplat-state-changelog\[0\], offsets 2 to 3\)"):
        await restored(settings, changelog)
    assert aside(folder) == []
    store = PartitionStore(folder, SPEC, cached_users=1)
    assert store.user(USER) == state(1)
    store.close()


async def test_progress_is_told_now_and_then(
    settings: Settings, changelog: FakeChangelog, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At most every five seconds a line says how far a partition is and how fast it goes."""
    changelog.batch = 1
    changelog.records[0] = [(user_key(UserId(f"u{number}")), state(number).pack()) for number in range(9)]
    ticks = iter(range(100))
    monkeypatch.setattr("streams.recovery.time.monotonic", lambda: 2.0 * next(ticks))
    with caplog.at_level(logging.INFO):
        (await restored(settings, changelog)).close()
    assert caplog.messages == [
        "partition 0: 30 % restored, 0 records/s",
        "partition 0: 60 % restored, 0 records/s",
        "partition 0: 90 % restored, 0 records/s",
    ]


async def test_a_restore_that_is_over_keeps_what_it_did(
    settings: Settings, changelog: FakeChangelog, folder: Path
) -> None:
    """Interrupted between two batches, it yields nothing and closes; the next one goes on from there."""
    changelog.batch = 1
    changelog.records[0] = [(user_key(UserId(f"u{number}")), state(number).pack()) for number in range(5)]
    over = threading.Event()
    batches = iter(range(100))
    changelog.before_batch = lambda: over.set() if next(batches) == 1 else None
    recovery = Recovery(settings, changelog, Metrics())
    assert [pair async for pair in recovery.restore([0, 1], over)] == []
    store = await restored(settings, changelog)
    assert [span.start for span in changelog.reads] == [0, 2]
    assert all(store.user(UserId(f"u{number}")) == state(number) for number in range(5))
    store.close()
