"""The switch, without Kafka: what a worker does with a release that is announced."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from streams import switch as switch_module
from streams.switch import ReleaseSwitch
from streams.warming import Warmer
from xplat_stream.errors import ReleaseError, TritonUnavailable
from xplat_stream.kafka.codec import Announcement, decode_announcement, encode_announcement
from xplat_stream.serving import CircuitBreaker
from xplat_stream.testing import make_event, make_release

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.streams.conftest import Bench
    from xplat_stream.serving.releases import Release


class FakeRepository:
    """Holds releases by number."""

    def __init__(self, *releases: Release) -> None:
        self._releases = {release.number: release for release in releases}

    def load(self, number: int) -> Release:
        """Return a release, as `ModelRepository.load`."""
        if number not in self._releases:
            raise ReleaseError("altered", where="here", expected="another", fix="Restore it.")
        return self._releases[number]


def announced(release: int, encoder: int = 1) -> Announcement:
    """Return the announcement of a release."""
    return Announcement(release=release, previous=0, encoder=encoder, announced_at=datetime.now(UTC))


def beside(bench: Bench) -> int:
    """Return which release is compared with the active one."""
    return bench.shadow.pair.other.number if bench.shadow.pair else 0


@pytest.fixture
def make_switch(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ReleaseSwitch]:
    """Return a maker of switches for the bench's pipeline; `ready`: what Triton says of every release."""

    async def is_ready(_: Release | None = None) -> bool:
        return bool(ready)

    async def require_ready() -> None:
        if not away:
            return
        raise TritonUnavailable("away", where="here", expected="one", fix="Start it.")

    ready: list[bool] = []
    away = bench.away

    def make(*releases: Release, active: Announcement | None = None, loaded: bool = True) -> ReleaseSwitch:
        ready[:] = [True] * loaded
        value = None if active is None else encode_announcement(active)
        monkeypatch.setattr(switch_module, "latest_value", lambda *_: value)
        monkeypatch.setattr(bench.scorer, "is_ready", is_ready, raising=False)
        monkeypatch.setattr(bench.scorer, "require_ready", require_ready, raising=False)
        scorer: Any = bench.scorer
        breaker = bench.breaker = CircuitBreaker(scorer)
        return ReleaseSwitch(
            bench.settings,
            repository=FakeRepository(*releases),
            scorer=scorer,
            breaker=breaker,
            vectors=bench.vectors,
            pipeline=bench.pipeline,
            shadow=bench.shadow,
            warmer=Warmer(bench.scorer, bench.vectors),
            stores=lambda: [bench.store],
            metrics=bench.metrics,
        )

    return make


async def test_without_an_announcement_nothing_scores(bench: Bench, make_switch: Callable[..., ReleaseSwitch]) -> None:
    """A worker starts before the first release is trained."""
    await make_switch().start()
    assert bench.pipeline.release is None


async def test_the_active_release_is_taken_up_at_the_start(
    bench: Bench, make_switch: Callable[..., ReleaseSwitch]
) -> None:
    """Its number is what the metrics say."""
    await make_switch(make_release(4), active=announced(4)).start()
    assert bench.pipeline.release is not None
    assert bench.pipeline.release.number == bench.metrics.release == 4


async def test_a_worker_does_not_start_on_an_altered_release(make_switch: Callable[..., ReleaseSwitch]) -> None:
    """At the start there is none to stay with, so the operator is told."""
    with pytest.raises(ReleaseError):
        await make_switch(active=announced(4)).start()


async def test_a_release_of_another_taxonomy_is_never_taken_up(
    bench: Bench, make_switch: Callable[..., ReleaseSwitch], caplog: pytest.LogCaptureFixture
) -> None:
    """Its scores would go out under other labels' names: at the start it stops the worker, later it is refused."""
    switch = make_switch(make_release(1), make_release(2, labels=("tea", "bread")), active=announced(1))
    await switch.start()
    await switch._follow_one(encode_announcement(announced(2)))
    assert bench.pipeline.release is not None
    assert bench.pipeline.release.number == 1
    assert "release 2 is not taken up, 1 stays: release 2 scores 2 labels" in caplog.text
    with pytest.raises(ReleaseError, match="XPLAT_MODEL__TAXONOMY"):
        await make_switch(make_release(2, labels=("tea", "bread")), active=announced(2)).start()


async def test_a_worker_starts_while_the_model_server_is_away(
    bench: Bench, make_switch: Callable[..., ReleaseSwitch]
) -> None:
    """It is on the active release, and profiles are degraded until the server has it."""
    await make_switch(make_release(4), active=announced(4), loaded=False).start()
    assert bench.pipeline.release is not None
    assert not bench.breaker.closed


async def test_a_release_announced_while_the_server_is_away_is_taken_up_later(
    bench: Bench, make_switch: Callable[..., ReleaseSwitch]
) -> None:
    """The announcement is not settled until the server could be asked."""
    switch = make_switch(make_release(1), make_release(2), active=announced(1))
    await switch.start()
    bench.away.append(True)
    assert not await switch._follow_one(encode_announcement(announced(2)))
    bench.away.clear()
    assert await switch._follow_one(encode_announcement(announced(2)))
    assert bench.metrics.release == 2


async def test_a_release_that_cannot_be_used_leaves_the_one_in_use(
    bench: Bench, make_switch: Callable[..., ReleaseSwitch], caplog: pytest.LogCaptureFixture
) -> None:
    """It is named in the log with what is wrong, and the worker goes on."""
    switch = make_switch(make_release(1), active=announced(1))
    await switch.start()
    await switch._follow_one(encode_announcement(announced(2)))
    assert bench.pipeline.release is not None
    assert bench.pipeline.release.number == 1
    assert "release 2 is not taken up, 1 stays: altered" in caplog.text
    await switch._follow_one(b'{"release": "two"}')
    assert bench.pipeline.release.number == 1
    assert "the announced release is not taken up, 1 stays: the announced release cannot be read" in caplog.text


async def test_texts_in_use_are_encoded_before_the_change(
    bench: Bench, make_switch: Callable[..., ReleaseSwitch]
) -> None:
    """A new encoder is warmed with every text of the partition; the old release scores until that is done."""
    old, new = make_release(1, 1), make_release(2, 2)
    switch = make_switch(old, new, active=announced(1))
    await switch.start()
    titles = [f"film {number}" for number in range(40)]
    await bench.handle(*(bench.record(make_event(object_title=title)) for title in titles))
    seen: list[int] = []
    encode = bench.scorer.encode

    async def noted(release: Release, texts: list[str]) -> list[bytes]:
        assert bench.pipeline.release is not None
        seen.append(bench.pipeline.release.number)
        await asyncio.sleep(0)
        return await encode(release, texts)

    bench.scorer.encode = noted  # type: ignore[method-assign]
    await switch._follow_one(encode_announcement(announced(2, 2)))
    assert set(seen) == {1}
    assert len(seen) > 1
    calls = len(seen)
    await bench.handle(bench.record(make_event(object_title=titles[0])))
    assert len(seen) == calls
    assert bench.profiles()[-1].data.model.release == 2


async def test_the_same_head_again_is_nothing_new(bench: Bench, make_switch: Callable[..., ReleaseSwitch]) -> None:
    """An announcement of the release in use loads and encodes nothing."""
    switch = make_switch(make_release(1), active=announced(1))
    await switch.start()
    held = bench.pipeline.release
    await switch._follow_one(encode_announcement(announced(1)))
    assert bench.pipeline.release is held


async def test_another_head_on_the_same_encoder_encodes_nothing(
    bench: Bench, make_switch: Callable[..., ReleaseSwitch]
) -> None:
    """Vectors belong to the encoder, so they stay."""
    switch = make_switch(make_release(1, 1), make_release(2, 1), active=announced(1))
    await switch.start()
    await bench.handle(bench.record(make_event(object_title="coffee")))
    before = [call for call in bench.scorer.calls if call.kind == "encode"]
    await switch._follow_one(encode_announcement(announced(2)))
    await bench.handle(bench.record(make_event(object_title="coffee")))
    assert [call for call in bench.scorer.calls if call.kind == "encode"] == before
    assert [one.data.model.release for one in bench.profiles()] == [1, 2]


async def test_a_candidate_is_compared_as_long_as_it_is_announced(
    bench: Bench, make_switch: Callable[..., ReleaseSwitch]
) -> None:
    """The active release stays in use, and no clock ends the comparison."""
    switch = make_switch(make_release(1), make_release(2), active=announced(1))
    await switch.start()
    said = msgspec.structs.replace(announced(1), shadow=2, announced_at=bench.now - timedelta(days=9))
    await switch._follow_one(encode_announcement(said))
    assert (bench.metrics.release, beside(bench)) == (1, 2)
    await switch._follow_one(encode_announcement(announced(1)))
    assert beside(bench) == 0


async def test_a_release_just_promoted_is_compared_with_the_one_before(
    bench: Bench, make_switch: Callable[..., ReleaseSwitch]
) -> None:
    """For as long as it is watched, counted from its announcement, on workers that start later too."""
    switch = make_switch(make_release(1), make_release(2), active=announced(1))
    await switch.start()
    said = msgspec.structs.replace(announced(2), previous=1)
    await switch._follow_one(encode_announcement(said))
    assert bench.shadow.pair is not None
    assert (bench.metrics.release, beside(bench)) == (2, 1)
    assert bench.shadow.pair.until == said.announced_at + timedelta(hours=1)
    bench.now = said.announced_at + timedelta(hours=2)
    assert beside(bench) == 0
    old = msgspec.structs.replace(said, announced_at=said.announced_at - timedelta(hours=2))
    await switch._follow_one(encode_announcement(old))
    assert beside(bench) == 0


async def test_a_shadow_that_cannot_be_loaded_harms_nothing(
    bench: Bench, make_switch: Callable[..., ReleaseSwitch], caplog: pytest.LogCaptureFixture
) -> None:
    """The release that was announced is taken up all the same."""
    switch = make_switch(make_release(1), active=announced(1))
    await switch.start()
    assert await switch._follow_one(encode_announcement(msgspec.structs.replace(announced(1), shadow=7)))
    assert (bench.metrics.release, beside(bench)) == (1, 0)
    assert "release 7 is not compared with 1: altered" in caplog.text


async def test_a_release_that_is_refused_has_no_shadow(bench: Bench, make_switch: Callable[..., ReleaseSwitch]) -> None:
    """What is compared is compared with the release that scores."""
    switch = make_switch(make_release(1), active=announced(1))
    await switch.start()
    await switch._follow_one(encode_announcement(msgspec.structs.replace(announced(2), previous=1)))
    assert (bench.metrics.release, beside(bench)) == (1, 0)


def test_announcements_of_before_are_read() -> None:
    """One without a shadow says that there is none."""
    old = b'{"release":2,"previous":1,"encoder":1,"announced_at":"2026-01-01T00:00:00Z"}'
    said = decode_announcement(old)
    assert (said.release, said.shadow) == (2, 0)
    assert said.beside(timedelta(hours=1)) == (1, datetime(2026, 1, 1, 1, tzinfo=UTC))
    assert said.beside(timedelta(0)) == (0, None)
