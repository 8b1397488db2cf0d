"""Who waits for the encoder: in which order texts are read, and what one text does to the others."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from streams import reading as reading_module
from streams.reading import Reading
from streams.store import PartitionStore
from tests.streams.conftest import PARTITIONS, Clock, user_on
from xplat_stream.errors import InvalidScores
from xplat_stream.testing import make_event, make_release

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.streams.conftest import Bench
    from xplat_stream.event import UserId
    from xplat_stream.serving import Release

RELEASE = make_release(2)


@pytest.fixture
def clock(bench: Bench) -> Clock:
    """Return the clock of who waits; a release scores."""
    made = Clock()
    bench.pipeline.reading = Reading(bench.vectors, clock=made)
    bench.pipeline.release = RELEASE
    return made


def refuse(bench: Bench, monkeypatch: pytest.MonkeyPatch, word: str) -> list[list[str]]:
    """Have the encoder answer nonsense where a text has this word. Returns what it is asked, call by call."""
    asked: list[list[str]] = []
    encode = bench.scorer.encode

    async def picky(release: Release, texts: Sequence[str]) -> list[bytes]:
        asked.append(list(texts))
        if any(word in text for text in texts):
            raise InvalidScores("NaN")
        return await encode(release, texts)

    monkeypatch.setattr(bench.scorer, "encode", picky)
    return asked


async def touch(bench: Bench, titles: Sequence[str], first: int = 0) -> list[UserId]:
    """Let people touch titles that the encoder has not read, one each, and return who it was."""
    users = [user_on(bench.partition, first + number) for number in range(len(titles))]
    events = [make_event(user_id=user, object_title=title) for user, title in zip(users, titles, strict=True)]
    await bench.handle(*map(bench.record, events), unread=True)
    return users


def fresh(bench: Bench) -> set[str]:
    """Return whose last profile is scored."""
    last = {one.data.user_id: one.data.status for one in bench.profiles()}
    return {user_id for user_id, status in last.items() if status == "fresh"}


async def test_one_text_of_many_that_cannot_be_read_is_found_in_few_calls(
    bench: Bench, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The texts asked for are halved until it is alone; it is not asked for again before a while is over."""
    asked = refuse(bench, monkeypatch, "poison")
    users = await touch(bench, [f"title {number}" if number != 40 else "poison" for number in range(64)])
    await bench.read()
    assert fresh(bench) == set(users) - {users[40]}
    assert len(asked) < 20
    assert bench.store.pending(limit=9) == [users[40]]
    calls = len(asked)
    await touch(bench, ["poison"], first=40)
    await bench.read()
    assert len(asked) == calls
    clock.now = 61
    await bench.pipeline.rescore(bench.store, bench.partition, bench.store.pending(limit=9))
    await bench.read()
    assert asked[calls:] == [["poison"]]


async def test_a_text_is_not_blamed_for_what_another_partition_asked_with_it(
    bench: Bench, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two partitions wait for one call, which fails for the other's text: both ask again, and this one is read."""
    assert clock.now == 0
    gate = asyncio.Event()
    encode = bench.scorer.encode

    async def gated(release: Release, texts: Sequence[str]) -> list[bytes]:
        await gate.wait()
        if "poison" in texts:
            raise InvalidScores("NaN")
        return await encode(release, texts)

    monkeypatch.setattr(bench.scorer, "encode", gated)
    reading, elsewhere = bench.pipeline.reading, (bench.partition + 1) % PARTITIONS
    await touch(bench, ["poison", "film"])
    reading.step(bench.store, bench.partition, RELEASE, lambda: None, most=64)
    await asyncio.sleep(0)
    first, bench.partition = (bench.store, bench.partition), elsewhere
    bench.store = PartitionStore(bench.folder / "elsewhere", bench.spec, cached_users=10)
    (user,) = await touch(bench, ["film"])
    reading.step(bench.store, elsewhere, RELEASE, lambda: None, most=64)
    gate.set()
    await bench.read()
    assert user in fresh(bench)
    bench.store.close()
    bench.store, bench.partition = first
    await bench.read()
    assert len(fresh(bench)) == 2


async def test_whose_texts_are_read_is_scored_while_others_are_read(
    bench: Bench, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In parts, and no part waits for the next answer of the encoder."""
    assert clock.now == 0
    monkeypatch.setattr(reading_module, "_TOGETHER", 4)
    users = await touch(bench, [f"title {number}" for number in range(8)])
    reading = bench.pipeline.reading

    def step() -> list[UserId]:
        return reading.step(bench.store, bench.partition, RELEASE, lambda: None, most=3)

    assert step() == []
    await asyncio.wait([reading._queues[bench.partition].task])
    assert step() == users[:3]
    assert not reading._queues[bench.partition].task.done()
    assert reading.wait_s(bench.partition) == 0
    assert step() == users[3:4]
    assert reading.wait_s(bench.partition) > 0


async def test_who_was_touched_comes_first_and_the_others_come_too(
    bench: Bench, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many wait who were touched, some are read of those who are scored again."""
    assert clock.now == 0
    monkeypatch.setattr(reading_module, "_TOGETHER", 4)
    monkeypatch.setattr(reading_module, "_OTHERS_TOGETHER", 1)
    users = await touch(bench, [f"title {number}" for number in range(12)])
    reading = bench.pipeline.reading = Reading(bench.vectors)
    reading.add(bench.partition, users[:2], touched=False)
    reading.add(bench.partition, users[2:], touched=True)
    sizes = []
    while not sizes or sizes[-1]:
        read = reading.step(bench.store, bench.partition, RELEASE, lambda: None, most=64)
        if task := reading._queues[bench.partition].task:
            await asyncio.wait([task])
        sizes.append(reading.count())
        if users[0] in read:
            break
    assert sizes[-1] >= 4
    assert reading.waits(bench.partition, users[-1])


async def test_who_is_moved_to_a_release_that_cannot_read_a_text_is_pending(
    bench: Bench, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the migration does not take them again and again, and they are scored when it can be read."""
    assert clock.now == 0
    (user,) = await touch(bench, ["poison"])
    await bench.read()
    assert fresh(bench) == {user}
    refuse(bench, monkeypatch, "poison")
    bench.pipeline.release = make_release(3, encoder=3)
    assert await bench.pipeline.rescore(bench.store, bench.partition, [user]) == 0
    await bench.read()
    assert bench.store.user(user).pending
    assert not bench.pipeline.reading.waits(bench.partition, user)
