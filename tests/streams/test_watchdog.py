"""The watchdog: a process that stood still, and work that does not get done."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from streams.watchdog import Watchdog
from xplat_stream.errors import LostLease, StalledWorker


class Watched:
    """What a watchdog looks at, and its clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.working = True
        self.done = 0
        self.failures: list[BaseException] = []
        self.failed = threading.Event()

    def fail(self, error: BaseException) -> None:
        """Note it."""
        self.failures.append(error)
        self.failed.set()

    def watchdog(self, **options: Any) -> Watchdog:
        """Return a watchdog of it."""
        return Watchdog(
            session_s=10,
            stall_s=30,
            working=lambda: self.working,
            done=lambda: self.done,
            on_failure=self.fail,
            **{"clock": lambda: self.now, **options},
        )


def test_a_process_that_stood_still_has_lost_its_lease() -> None:
    """Six tenths of the session time-out are the most; what it then wants to write is refused before it is."""
    watched = Watched()
    dog = watched.watchdog()
    watched.now += 5.9
    dog.check_lease()
    dog.tick()
    watched.now += 6.1
    with pytest.raises(LostLease, match=r"stood still for 6\.1 s; at most 6\.0 s"):
        dog.check_lease()
    with pytest.raises(LostLease):
        dog.tick()


def test_work_that_stands_still_is_found_out() -> None:
    """Work with no progress for longer than allowed is a stall; progress, or having nothing to do, is none."""
    watched = Watched()
    dog = watched.watchdog()

    def go_on(seconds: int) -> None:
        for _ in range(seconds):
            watched.now += 1
            dog.tick()

    go_on(30)
    watched.done += 1
    go_on(30)
    watched.working = False
    go_on(100)
    watched.working = True
    go_on(29)
    with pytest.raises(StalledWorker, match=r"none of it got done for 3[0-9] s"):
        go_on(5)


def test_the_thread_reports_once() -> None:
    """Whatever the event loop does, the report comes from the thread."""
    watched = Watched()
    dog = watched.watchdog()
    dog.start()
    watched.now += 60
    assert watched.failed.wait(5)
    dog.close()
    assert [type(error) for error in watched.failures] == [LostLease]
