"""What the demo says of latency: how late a profile is for what is new in it."""

from __future__ import annotations

import time

import pytest

from xplat_stream.demo.watch import ProfileWatch
from xplat_stream.event import UserId
from xplat_stream.profile import Cause, unscored_profile
from xplat_stream.settings import Settings
from xplat_stream.taxonomy import load_taxonomy
from xplat_stream.testing import make_event
from xplat_stream.window import BehaviorWindow, WindowSpec, row_of

USER = UserId("u")
FIRST, SECOND = (
    BehaviorWindow(WindowSpec()).fold([("shop", row_of(make_event(event_id=f"e{one}"))) for one in range(count)])
    for count in (1, 2)
)


def counted(*profiles: tuple[BehaviorWindow, Cause]) -> int:
    """Return how many of these profiles of one user count for the latency."""
    watch = ProfileWatch(Settings())
    for revision, (window, cause) in enumerate(profiles, 1):
        profile = unscored_profile(USER, window, revision, load_taxonomy(), cause=cause)
        watch.take(USER, profile, time.time(), 10)
    return len(watch.latencies_ms)


@pytest.mark.parametrize("cause", ["behavior", "late"])
def test_what_is_new_counts(cause: Cause) -> None:
    """Every profile with another window than the one before."""
    assert counted((FIRST, "behavior"), (SECOND, cause)) == 2


@pytest.mark.parametrize("cause", ["behavior", "model"])
def test_what_is_only_scored_again_does_not(cause: Cause) -> None:
    """Scored when its limit came, or by another release: the same window, and nothing in it to be late with."""
    assert counted((FIRST, "behavior"), (FIRST, cause)) == 1
