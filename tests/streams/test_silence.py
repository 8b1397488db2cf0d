"""Silence: a platform that says nothing is missing data."""

from __future__ import annotations

from streams.silence import Silence


def test_a_platform_is_silent_after_a_while_and_until_it_is_heard() -> None:
    """Counted from the worker's start for one never heard; one heard again is not silent any more."""
    now = [100.0]
    silence = Silence(["shop", "video"], after_s=60, clock=lambda: now[0])
    assert silence.silent() == frozenset()
    now[0] = 150.0
    silence.hear(["shop"])
    now[0] = 161.0
    assert silence.silent() == {"video"}
    silence.hear(["video", "podcast"])
    assert silence.silent() == frozenset()
    now[0] = 300.0
    assert silence.silent() == {"shop", "video", "podcast"}
