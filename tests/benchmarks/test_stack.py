"""The stack that a benchmark has for itself does not outlive it."""

from __future__ import annotations

import os
import signal

import pytest

from benchmarks.stack import ended_by_sigterm


def test_sigterm_ends_what_was_started() -> None:
    """It unwinds, so that what `finally` stops is stopped; the exit code says why, and the handler before is back."""
    stopped = []
    before = signal.getsignal(signal.SIGTERM)

    def measure() -> None:
        with ended_by_sigterm():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                stopped.append("servers")

    with pytest.raises(SystemExit) as ended:
        measure()
    assert (ended.value.code, stopped) == (143, ["servers"])
    assert signal.getsignal(signal.SIGTERM) == before
