"""The circuit breaker: a server that failed is left alone until its golden requests are answered."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from xplat_stream.errors import InvalidScores, TritonUnavailable
from xplat_stream.serving import CircuitBreaker, breaker
from xplat_stream.testing import FakeScorer, broken_promises, make_release

if TYPE_CHECKING:
    from collections.abc import Callable

RELEASE = make_release()


async def until(condition: Callable[[], bool]) -> None:
    """Let other tasks run until the condition holds."""
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - conditions of several objects
            await asyncio.sleep(0)


async def test_it_is_a_scorer() -> None:
    """Closed, it answers as the scorer behind it."""
    assert await broken_promises(CircuitBreaker(FakeScorer()), RELEASE) == []


async def test_after_a_failure_nothing_is_asked_until_the_server_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """One failure opens it; calls then fail without waiting; golden requests, answered, close it."""
    monkeypatch.setattr(breaker, "_FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(breaker, "_LONGEST_PAUSE_S", 0.002)
    scorer = FakeScorer()
    guarded = CircuitBreaker(scorer)
    scorer.fail_next(4)
    with pytest.raises(TritonUnavailable):
        await guarded.encode(RELEASE, ["film"])
    assert not guarded.closed
    asked = len(scorer.calls)
    for _ in range(10):
        with pytest.raises(TritonUnavailable, match="not asked"):
            await guarded.encode(RELEASE, ["film"])
    assert len(scorer.calls) == asked
    watching = asyncio.create_task(guarded.watch())
    await until(lambda: guarded.closed)
    assert await guarded.encode(RELEASE, ["film"])
    scorer.fail_next()
    with pytest.raises(TritonUnavailable):
        await guarded.encode(RELEASE, ["film"])
    await until(lambda: guarded.closed)
    watching.cancel()


async def test_invalid_scores_open_nothing() -> None:
    """They come at once, and one user's window can be their cause."""
    scorer = FakeScorer()
    guarded = CircuitBreaker(scorer)
    scorer.reject_next()
    with pytest.raises(InvalidScores):
        await guarded.encode(RELEASE, ["film"])
    assert guarded.closed


async def test_it_watches_the_release_asked_for_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """A release that the server has let go of must not keep it open for ever."""
    monkeypatch.setattr(breaker, "_FIRST_PAUSE_S", 0.001)
    scorer = FakeScorer()
    guarded = CircuitBreaker(scorer)
    guarded.open(make_release(1))
    with pytest.raises(TritonUnavailable):
        await guarded.encode(make_release(2), ["film"])
    watching = asyncio.create_task(guarded.watch())
    await until(lambda: guarded.closed)
    assert {call.release for call in scorer.calls} == {2}
    watching.cancel()
