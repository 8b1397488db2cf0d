"""Texts of active users have a coming encoder's vectors before it is promoted, on disk and in the changelog."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest

from streams.migration import Budget
from streams.store import PartitionStore
from streams.warming import Warmer, Warming, Warmth
from xplat_stream.event import UserId, hash_text
from xplat_stream.serving.texts import TextVectors
from xplat_stream.settings import ReleaseSettings
from xplat_stream.state import Publication, TextEntry, UserState
from xplat_stream.testing import START, FakeScorer, make_event, make_release
from xplat_stream.window import BehaviorWindow, WindowSpec, row_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from xplat_stream.event import TextHash

SPEC = WindowSpec(per_platform=5, horizon=timedelta(days=60))
START_MS = int(START.timestamp() * 1000)
DAY_MS = 86_400_000
ACTIVE, COMING, SAME_ENCODER = make_release(1, 1), make_release(2, 2), make_release(3, 1)


class Bench:
    """A partition with users and texts, and a clock that moves when told to."""

    def __init__(self, folder: Path) -> None:
        self.at_s = 0.0
        self.store = PartitionStore(folder / "partition-0", SPEC, cached_users=1000)
        self.scorer = FakeScorer()
        self.live = TextVectors(self.scorer)
        self.live.of(1)
        self.warmer = Warmer(self.scorer, self.live)
        self.budget = Budget(64.0, clock=lambda: self.at_s)
        self.at_s = 60.0
        self.warming = self.begin()

    def begin(self) -> Warming:
        """Return what a worker that took the partition over begins with."""
        return Warming(
            self.store,
            self.warmer,
            self.budget,
            ReleaseSettings(active_days=7.0),
            clock=lambda: self.at_s,
            now=lambda: START.timestamp() + 1e7,
        )

    def put(self, user: str, text: str, *, days_ago: int = 0, encoder: int = 1) -> TextHash:
        """Keep a user with one event, and its text with a vector of an encoder; 0: without any."""
        text_hash = hash_text(text)
        event = make_event(user_id=UserId(user), occurred_at=START_MS - days_ago * DAY_MS)
        window = BehaviorWindow(SPEC).fold([("shop", row_of(event, text_hash))])
        self.store.put_user(UserId(user), UserState(window, Publication(1, 1)))
        self.store.put_text(text_hash, TextEntry(text, (), encoder, b"\x00\x3c" if encoder else b""))
        self.store.write()
        return text_hash

    async def go(self, steps: int = 400, *, each_s: float = 1.0) -> int:
        """Go on for some steps, and return how many writes came of it."""
        writes = 0
        for _ in range(steps):
            if self.warming.step():
                self.store.write()
                writes += 1
            self.at_s += each_s
            for _ in range(4):
                await asyncio.sleep(0)
        return writes

    def encoders(self, text_hash: TextHash) -> set[int]:
        """Return of which encoders a text has a vector on disk."""
        return set(self.store.texts([text_hash])[text_hash].vectors)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """Yield a partition."""
    made = Bench(tmp_path)
    yield made
    made.warming.close()
    made.store.close()


async def test_active_users_texts_are_encoded_ahead(bench: Bench) -> None:
    """Beside the vectors they have; nobody else's; and whoever goes on finds them on disk and asks for none again."""
    hot = [bench.put(f"user-{number}", f"text {number}") for number in range(100)]
    cold = bench.put("gone", "an old text", days_ago=30)
    bench.warmer.aim(ACTIVE, COMING)
    assert await bench.go() == 7
    assert bench.warming.progress == Warmth(2, 100, 100, warm=True)
    assert all(bench.encoders(one) == {1, 2} for one in hot)
    assert bench.encoders(cold) == {1}
    assert bench.live.missing(2, hot) == []
    calls = len(bench.scorer.calls)
    bench.live.forget_encoder(2)
    bench.warming = bench.begin()
    assert await bench.go() == 0
    assert (bench.warming.progress, len(bench.scorer.calls)) == (Warmth(2, 100, 100, warm=True), calls)


async def test_a_text_that_comes_later_is_found(bench: Bench) -> None:
    """Warm says nothing of what comes after; a look every half minute does."""
    bench.put("user-1", "text 1")
    bench.warmer.aim(ACTIVE, COMING)
    await bench.go(20)
    late = bench.put("user-2", "text 2")
    await bench.go(60)
    assert bench.encoders(late) == {1, 2}
    assert bench.warming.progress == Warmth(2, 2, 2, warm=True)


async def test_the_budget_holds(bench: Bench) -> None:
    """In a second no more texts are encoded than that and a second's that was saved, all partitions together."""
    for number in range(200):
        bench.put(f"user-{number}", f"text {number}")
    bench.warmer.aim(ACTIVE, COMING)
    await bench.go(8, each_s=0.0)
    before = sum(call.size for call in bench.scorer.calls)
    await bench.go(100, each_s=0.01)
    assert 0 < sum(call.size for call in bench.scorer.calls) - before <= 64 + 64
    assert 0.0 <= bench.warming.wait_s() <= 1.0


async def test_a_model_server_that_is_away_costs_time_only(bench: Bench) -> None:
    """What it did not answer is asked again; nothing is raised, and the breaker hears nothing of it."""
    hot = bench.put("user-1", "text 1")
    bench.warmer.aim(ACTIVE, COMING)
    bench.scorer.fail_next(3)
    await bench.go(10)
    assert (bench.encoders(hot), bench.warming.progress.warm) == ({1}, False)
    await bench.go(60)
    assert bench.encoders(hot) == {1, 2}


async def test_an_encoder_that_is_broken_stops_nobody(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it raises: it is never warm, so it is not promoted."""

    async def broken(*_: object) -> list[bytes]:
        raise ZeroDivisionError

    monkeypatch.setattr(bench.scorer, "encode", broken)
    bench.put("user-1", "text 1")
    bench.warmer.aim(ACTIVE, COMING)
    assert await bench.go(60) == 0
    assert not bench.warming.progress.warm


async def test_another_head_keeps_every_vector(bench: Bench) -> None:
    """A candidate on the encoder in use is warm at once; vectors that were made in memory only are kept."""
    hot = bench.put("user-1", "text 1")
    unkept = bench.put("user-2", "text 2", encoder=0)
    bench.live.of(1)[unkept] = b"\x00\xbc"
    bench.warmer.aim(ACTIVE, SAME_ENCODER)
    assert bench.warmer.release is ACTIVE
    await bench.go(30)
    assert bench.warming.progress == Warmth(1, 2, 2, warm=True)
    assert (bench.encoders(hot), bench.encoders(unkept)) == ({1}, {1})
    assert [call for call in bench.scorer.calls if call.size] == []
    bench.put("user-3", "text 3", encoder=0)
    await bench.go(100)
    assert bench.warming.progress.texts == 2  # nobody looks again without a candidate


async def test_a_candidate_that_is_given_up_leaves_memory(bench: Bench) -> None:
    """One that is promoted stays."""
    hot = bench.put("user-1", "text 1")
    bench.warmer.aim(ACTIVE, COMING)
    await bench.go(30)
    bench.warmer.aim(COMING)
    assert bench.live.missing(2, [hot]) == []
    other = make_release(4, 4)
    bench.warmer.aim(COMING, other)
    await bench.go(30)
    bench.warmer.aim(COMING)
    assert (bench.live.missing(2, [hot]), bench.live.missing(4, [hot])) == ([], [hot])
