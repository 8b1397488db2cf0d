"""`xplat explain` on the real stack: the worker's window, Triton's scores, and mistakes told in one line."""

from __future__ import annotations

import json
import socket
import subprocess
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from tests.integration.conftest import XPLAT, environment, publish
from xplat_stream.event import Millis, UserId
from xplat_stream.testing import make_event

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from xplat_stream.settings import Settings

pytestmark = pytest.mark.integration

USER = "explained-1"
NOW_MS = 1_780_000_000_000
WORDS = ("running shoes", "coffee", "guitar", "garden game", "the film")


@pytest.fixture
def xplat(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a runner of `xplat explain`."""

    def run(settings: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(XPLAT), "explain", *arguments]
        kept = environment(settings)
        return subprocess.run(command, env=kept, cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False)

    return run


def told(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Hold what every mistake is told like: exit code 2 and one line."""
    (line,) = done.stderr.strip().splitlines()
    assert done.returncode == 2
    for word in words:
        assert word in line


def test_the_events_that_carry_an_interest(
    group: Settings, publish_release: Callable[..., Any], xplat: Callable[..., Any]
) -> None:
    """The window is the log's, strays and repeats included, and Triton's scores fall further without what is cited."""
    release = publish_release()
    events = [
        make_event(
            user_id=UserId(USER),
            platform=("shop", "video", "social")[number % 3],
            object_title=WORDS[number % len(WORDS)],
            occurred_at=Millis(NOW_MS + number * 3_600_000),
        )
        for number in range(20)
    ]
    publish(group, [*events, *events[:3]])
    publish(group, [make_event(user_id=UserId("explained-2"), object_title="running")])

    done = xplat(group, USER, "--json", "--interests", "4")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    shown = xplat(group, USER)

    assert (found["user_id"], found["release"], found["events"]) == (USER, release.number, 20)
    assert len(found["interests"]) == 4
    ids = {event.event_id: event for event in events}
    for one in found["interests"]:
        assert one["fidelity"]["holds"], one
        for cited in one["events"]:
            assert cited["text"] == ids[cited["event_id"]].object.title
            assert cited["change"] < 0
    assert found["fidelity"]["cited"] > found["fidelity"]["random"]
    assert "holds" in shown.stdout
    assert found["interests"][0]["events"]
    assert all(cited["text"] in shown.stdout for cited in found["interests"][0]["events"])

    told(xplat(group, "nobody-at-all"), "no admitted event of user 'nobody-at-all'", "xplat tail")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{probe.getsockname()[1]}"
    away = msgspec.structs.replace(group, triton=msgspec.structs.replace(group.triton, url=nobody))
    told(xplat(away, USER), "no model server answers", nobody, "xplat up")
