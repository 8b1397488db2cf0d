"""A model server that is slow, away or not there yet: windows go on, and what was degraded is scored later."""

from __future__ import annotations

import contextlib
import os
import signal
from collections import defaultdict
from typing import TYPE_CHECKING

import msgspec
import pytest

from tests.integration.conftest import announce_release, assert_exact, last_profiles, made_events, profiles, publish
from xplat_stream import local

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.integration.conftest import Published, Worker
    from xplat_stream.settings import Settings

pytestmark = pytest.mark.integration


@contextlib.contextmanager
def silenced_triton(stack: Settings) -> Iterator[None]:
    """Let the real server accept connections and answer nothing."""
    pid = local.status(stack).triton.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def impatient(settings: Settings) -> Settings:
    """Return settings whose calls to Triton may take a second."""
    return msgspec.structs.replace(settings, triton=msgspec.structs.replace(settings.triton, deadline_s=1.0))


def test_while_triton_answers_nothing_windows_go_on(
    group: Settings, start_worker: Callable[..., Worker], publish_release: Callable[..., Published]
) -> None:
    """Profiles are degraded and exact; when it answers again every one is scored, and revisions only grow."""
    release = publish_release()
    worker = start_worker(impatient(group)).ready()
    publish(group, made_events(30, 3, seed=320))
    assert_exact(group)
    worker.until(lambda: {one.status for one in last_profiles(group, "320-").values()} == {"fresh"}, "read all texts")
    with silenced_triton(group):
        publish(group, made_events(60, 3, seed=321, name="320"))
        verdict = assert_exact(group)
        assert verdict.users >= 60
        during = last_profiles(group, "320-")
        found = {profile.status for profile in during.values()}
        assert "degraded" in found
        assert "fresh" not in found  # one who waited for the encoder when it fell silent goes on to
        assert all(bool(during[user].interests) == (int(user.split("-")[1]) < 30) for user in during)
    worker.until(lambda: {one.status for one in last_profiles(group, "320-").values()} == {"fresh"}, "score again")
    after = last_profiles(group, "320-")
    assert {(one.status, one.model.release, len(one.interests)) for one in after.values()} == {
        ("fresh", release.number, group.model.max_interests)
    }
    assert_exact(group)
    revisions = defaultdict(list)
    for record in profiles(group):
        if not record.data.user_id.startswith("320-"):
            continue  # other groups published other people's
        revisions[record.data.user_id].append(record.data.revision)
    assert all(found == sorted(found) for found in revisions.values())
    assert worker.running


def test_a_worker_starts_without_triton_and_scores_when_it_is_there(
    group: Settings, start_worker: Callable[..., Worker], publish_release: Callable[..., Published]
) -> None:
    """It says so in a line, publishes degraded profiles, and needs no restart."""
    publish_release()
    with silenced_triton(group):
        worker = start_worker(impatient(group)).ready()
        assert worker.said("Profiles are degraded until then")
        publish(group, made_events(20, 2, seed=310))
        assert_exact(group)
        assert {one.status for one in last_profiles(group, "310-").values()} == {"degraded"}
    worker.until(lambda: {one.status for one in last_profiles(group, "310-").values()} == {"fresh"}, "score them")
    assert worker.running


def test_a_release_announced_while_triton_is_away_is_taken_up_later(
    group: Settings, start_worker: Callable[..., Worker], publish_release: Callable[..., Published]
) -> None:
    """The announcement is not forgotten."""
    first = publish_release()
    worker = start_worker(impatient(group)).ready()
    worker.until(lambda: worker.metrics.release == first.number, "score")
    second = publish_release(encoder=first.encoder, announce=False)
    with silenced_triton(group):
        announce_release(group, second.number, second.encoder)
        worker.until(lambda: worker.said(f"release {second.number} is not taken up yet"), "say so")
    worker.until(lambda: worker.metrics.release == second.number, "take it up")
