"""A second release beside the active one: what is compared, when, and that nothing of it reaches a profile."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from streams import shadow as shadow_module
from streams.shadow import is_sampled
from xplat_stream.comparison import Comparison
from xplat_stream.errors import InvalidScores, TritonUnavailable
from xplat_stream.event import UserId
from xplat_stream.kafka.topics import PROFILES
from xplat_stream.testing import make_event, make_release

if TYPE_CHECKING:
    from tests.streams.conftest import Bench
    from xplat_stream.serving import HeadInputs, Release

USER = UserId("user-1")
OLD, NEW = make_release(1, 1), make_release(2, 2)


def watch(bench: Bench, *, active: Release = NEW, other: Release | None = OLD, **options: Any) -> None:
    """Let a release score, with another beside it."""
    bench.pipeline.release = active
    bench.shadow.use(active, other, **options)


def counted(bench: Bench) -> Comparison:
    """Return what was counted for the bench's partition."""
    return bench.shadow.comparison(bench.partition)


def test_the_sample_is_the_share_and_always_the_same() -> None:
    """By user id alone; a larger share holds the smaller one's users."""
    users = [UserId(f"user-{number}") for number in range(20_000)]
    fifth = {user for user in users if is_sampled(user, 0.2)}
    assert len(fifth) == pytest.approx(4000, rel=0.05)
    assert fifth <= {user for user in users if is_sampled(user, 0.3)}
    assert not any(is_sampled(user, 0.0) for user in users)
    assert all(is_sampled(user, 1.0) for user in users)


async def test_both_releases_score_what_was_published(bench: Bench) -> None:
    """After the profile is out the window is scored by both, each with its own encoder's vectors, and compared."""
    watch(bench)
    await bench.handle(bench.record(make_event(user_id=USER, object_title="film")))
    assert len(bench.outbox.on(PROFILES)) == 1
    assert {call.release for call in bench.scorer.calls} == {2}
    await bench.shadow.compare_next()
    comparison = counted(bench)
    assert (comparison.compared, comparison.active.asked, comparison.other.asked) == (1, 1, 1)
    assert (comparison.active.failed, comparison.other.failed) == (0, 0)
    assert sum(comparison.active.calls.values()) == sum(comparison.other.calls.values()) == 1
    assert comparison.agreement < 1
    assert [call.release for call in bench.scorer.calls if call.kind == "encode"] == [2, 1]
    assert bench.metrics.shadowed == 1


async def test_two_heads_of_one_encoder_share_its_vectors(bench: Bench) -> None:
    """Nothing is encoded twice; a release is never compared with itself."""
    watch(bench, other=NEW)
    assert bench.shadow.pair is None
    watch(bench, other=make_release(3, 2))
    await bench.handle(bench.record(make_event(user_id=USER, object_title="film")))
    await bench.shadow.compare_next()
    assert [call.kind for call in bench.scorer.calls].count("encode") == 1
    assert counted(bench).compared == 1


async def test_users_outside_the_sample_are_left_alone(bench: Bench) -> None:
    """Nothing is asked for them."""
    bench.shadow._share = 0.0000001
    watch(bench)
    await bench.handle(bench.record(make_event(user_id=USER)))
    await bench.shadow.compare_next()
    assert {call.release for call in bench.scorer.calls} == {2}
    assert counted(bench) == Comparison()


async def test_next_events_judge_what_both_said_before(bench: Bench) -> None:
    """The labels of what is done next, once; not of what had been done, nor of what speaks against a label."""
    watch(bench)
    first = make_event(user_id=USER, object_title="film")
    await bench.handle(bench.record(first))
    await bench.shadow.compare_next()
    early = make_event(user_id=USER, object_iab=("483",), occurred_at=first.occurred_at - 1)
    hidden = make_event(user_id=USER, object_iab=("483",), action="hide")
    nameless = make_event(user_id=USER, object_title="nothing known")
    await bench.handle(*map(bench.record, (early, hidden, nameless)))
    assert counted(bench).judged == 0
    await bench.handle(bench.record(make_event(user_id=USER, object_iab=("483",))))
    assert counted(bench).judged == 1
    assert 0 <= min(counted(bench).ndcg) <= max(counted(bench).ndcg) <= 1
    await bench.handle(bench.record(make_event(user_id=USER, object_iab=("483",))))
    assert counted(bench).judged == 1
    await bench.shadow.compare_next()
    await bench.handle(bench.record(make_event(user_id=USER, object_iab=("483",))))
    assert counted(bench).judged == 2


async def test_users_scored_again_are_compared_too(bench: Bench) -> None:
    """After a promotion that is where most of the sample comes from."""
    bench.pipeline.release = OLD
    await bench.handle(bench.record(make_event(user_id=USER)))
    watch(bench)
    await bench.pipeline.rescore(bench.store, bench.partition, [USER])
    await bench.read()
    await bench.shadow.compare_next()
    assert counted(bench).compared == 1


@pytest.mark.parametrize("error", [TritonUnavailable("no", where="", expected="", fix=""), InvalidScores("NaN")])
async def test_a_shadow_that_fails_is_counted(bench: Bench, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Its failures are figures of its own; profiles stay fresh, and the circuit breaker stays closed."""
    score = bench.scorer.score

    async def picky(release: Release, inputs: HeadInputs) -> Any:
        if release is OLD:
            raise error
        return await score(release, inputs)

    monkeypatch.setattr(bench.scorer, "score", picky)
    watch(bench)
    for _ in range(2):
        await bench.handle(bench.record(make_event(user_id=USER)))
        await bench.shadow.compare_next()
    comparison = counted(bench)
    assert (comparison.other.asked, comparison.other.failed, comparison.compared) == (2, 2, 0)
    assert (comparison.active.asked, comparison.active.failed) == (2, 0)
    assert {one.data.status for one in bench.profiles()} == {"fresh"}
    assert bench.breaker.closed


async def test_a_server_that_is_away_counts_for_both(bench: Bench) -> None:
    """Both are asked for the same windows at the same time."""
    watch(bench)
    await bench.handle(bench.record(make_event(user_id=USER)))
    bench.scorer.fail_next(9)
    await bench.shadow.compare_next()
    comparison = counted(bench)
    assert comparison.active.failed == comparison.other.failed == 1


async def test_whatever_a_shadow_raises_ends_it_alone(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """A release of another width, or anything else nobody foresaw: it is compared no more, and the worker goes on."""
    watch(bench, other=make_release(1, 2, width=5))
    await bench.handle(bench.record(make_event(user_id=USER)))
    await bench.shadow.compare_next()
    assert bench.shadow.pair is None
    assert "release 1 cannot be compared" in caplog.text
    await bench.handle(bench.record(make_event(user_id=USER)))
    assert [one.data.status for one in bench.profiles()] == ["fresh", "fresh"]


async def test_what_does_not_fit_is_counted(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue is bounded; publishing never waits for it."""
    monkeypatch.setattr(shadow_module, "_WAITING", 2)
    watch(bench)
    for _ in range(5):
        await bench.handle(bench.record(make_event(user_id=USER)))
    await bench.shadow.compare_next()
    assert (counted(bench).compared, counted(bench).skipped) == (2, 3)


async def test_memory_of_what_was_said_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the users compared longest ago nothing is kept."""
    monkeypatch.setattr(shadow_module, "_REMEMBERED", 3)
    watch(bench)
    for number in range(400):
        if len(bench.shadow._said) < 3 or number % 40 == 0:
            event = make_event(user_id=f"someone-{number}")
            await bench.handle(bench.record(event))
            await bench.shadow.compare_next()
    assert len(bench.shadow._said) == 3


async def test_watching_ends_with_its_time(bench: Bench) -> None:
    """What was counted stays to be reported."""
    watch(bench, until=bench.now + timedelta(minutes=5))
    await bench.handle(bench.record(make_event(user_id=USER)))
    await bench.shadow.compare_next()
    assert bench.metrics.shadow == 1
    bench.now += timedelta(minutes=5)
    await bench.handle(bench.record(make_event(user_id=USER)))
    await bench.shadow.compare_next()
    assert counted(bench).compared == 1
    assert bench.metrics.shadow == 0
    assert bench.shadow.counted == (2, 1)


async def test_another_pair_counts_from_zero(bench: Bench) -> None:
    """The same announcement read again goes on; so nothing is counted twice, and nothing of another one."""
    watch(bench)
    await bench.handle(bench.record(make_event(user_id=USER)))
    await bench.shadow.compare_next()
    generation = bench.shadow.generation
    watch(bench)
    assert (counted(bench).compared, bench.shadow.generation) == (1, generation)
    watch(bench, active=OLD, other=NEW)
    assert (counted(bench).compared, bench.shadow.generation) == (0, generation + 1)
    watch(bench, active=OLD, other=NEW, since=bench.now)
    assert (bench.shadow.since, bench.shadow.generation) == (bench.now, generation + 2)


async def test_partitions_taken_over_count_from_zero(bench: Bench) -> None:
    """What still waits counts for nobody."""
    watch(bench)
    await bench.handle(bench.record(make_event(user_id=USER)))
    bench.shadow.begin()
    await bench.shadow.compare_next()
    assert counted(bench) == Comparison()


async def test_the_task_compares_what_comes(bench: Bench) -> None:
    """It sleeps while nothing waits, and goes on after a shadow that ended."""
    running = asyncio.create_task(bench.shadow.run())
    for other in (make_release(1, 2, width=5), OLD):
        watch(bench, other=other)
        await bench.handle(bench.record(make_event(user_id=USER)))
        async with asyncio.timeout(60):
            while bench.shadow.pair is not None and not counted(bench).compared:  # noqa: ASYNC110 - two conditions
                await asyncio.sleep(0)
    assert counted(bench).compared == 1
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
