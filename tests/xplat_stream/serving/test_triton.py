"""Calls are spread over the model servers there are; one that dies, hangs or lacks a version costs nobody an answer."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import ExitStack
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from xplat_stream.errors import ReleaseError, TritonUnavailable
from xplat_stream.serving import TritonScorer
from xplat_stream.serving.releases import ENCODER, HEAD
from xplat_stream.settings import TritonSettings
from xplat_stream.testing import FakeTriton, ManualClock, broken_promises, make_release

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RELEASE = make_release()
LABELS = len(RELEASE.manifest.labels)


@pytest.fixture
def three(tmp_path: Path) -> Iterator[list[FakeTriton]]:
    """Yield three model servers on one repository, which have release 1."""
    for model in (ENCODER, HEAD):
        (tmp_path / model / "1").mkdir(parents=True)
    with ExitStack() as running:
        yield [running.enter_context(FakeTriton(tmp_path, labels=LABELS)) for _ in range(3)]


def settings_of(servers: list[FakeTriton]) -> TritonSettings:
    """Return settings that name them all."""
    return TritonSettings(url=",".join(one.url for one in servers), deadline_s=30.0)


def shares(servers: list[FakeTriton]) -> list[int]:
    """Return how many inferences each has answered, and begin to count anew."""
    found = [len(one.asked) for one in servers]
    for one in servers:
        one.asked.clear()
    return found


async def encode(scorer: TritonScorer, calls: int) -> None:
    """Have texts encoded, one call after the other."""
    for _ in range(calls):
        assert len(await scorer.encode(RELEASE, ["running shoes"])) == 1


async def test_calls_take_turns(three: list[FakeTriton]) -> None:
    """Each server answers as many; the parts of one batch of users too."""
    async with TritonScorer(settings_of(three)) as scorer:
        await encode(scorer, 6)
        assert shares(three) == [2, 2, 2]
        assert {"different texts give different vectors"} >= set(await broken_promises(scorer, RELEASE))


async def test_a_dead_server_costs_no_answer(three: list[FakeTriton]) -> None:
    """What it does not answer is asked of another; it is left alone for a while, longer each time, and comes back."""
    clock = ManualClock()
    async with TritonScorer(settings_of(three), clock=lambda: clock().timestamp()) as scorer:
        three[1].stop()
        await encode(scorer, 9)
        assert shares(three)[1] == 0
        assert await scorer.is_ready(RELEASE)
        three[1].start()
        await encode(scorer, 9)
        assert shares(three)[1] == 0  # it rests still

        async with asyncio.timeout(60):
            while not three[1].asked:  # gRPC makes a connection that failed again in its own time
                clock.advance(timedelta(minutes=2))
                await encode(scorer, 3)
                await asyncio.sleep(0.05)


async def test_a_server_without_the_version_is_passed_over(three: list[FakeTriton]) -> None:
    """It is there, so it does not rest: other versions are asked of it in its turn."""
    async with TritonScorer(settings_of(three)) as scorer:
        three[0].loaded[ENCODER].clear()
        await encode(scorer, 6)
        found = shares(three)
        assert (found[0], sum(found)) == (0, 6)
        three[0].loaded[ENCODER].add(1)
        await encode(scorer, 6)
        assert shares(three) == [2, 2, 2]


async def test_without_any_server_the_error_names_one(three: list[FakeTriton]) -> None:
    """All were asked, and none answered."""
    async with TritonScorer(settings_of(three)) as scorer:
        for one in three:
            one.stop()
        with pytest.raises(TritonUnavailable) as told:
            await encode(scorer, 1)
        assert told.value.where in {one.url for one in three}
        assert not await scorer.is_ready()
        with pytest.raises(TritonUnavailable, match="no model server answers"):
            await scorer.require_ready()


async def test_what_is_loaded_is_loaded_on_all(three: list[FakeTriton], tmp_path: Path) -> None:
    """One that refuses, or is away, is named; nothing is asked to load where one is away."""
    (tmp_path / HEAD / "2").mkdir()
    async with TritonScorer(settings_of(three)) as scorer:
        three[2].refused.add(HEAD)
        with pytest.raises(ReleaseError, match=rf"does not load version 2 of {HEAD}.*told to") as refused:
            await scorer.load(HEAD, 2)
        assert refused.value.where == three[2].url
        three[2].refused.clear()
        await scorer.load(HEAD, 2)
        assert Counter(2 in one.loaded[HEAD] for one in three) == {True: 3}
        (tmp_path / HEAD / "3").mkdir()
        three[1].stop()
        with pytest.raises(TritonUnavailable) as away:
            await scorer.load(HEAD, 3)
        assert away.value.where == three[1].url
        assert not any(3 in one.loaded[HEAD] for one in three)
