"""What notices that this process stands still: a thread of its own, since an event loop that hangs cannot.

Two things are watched. **The lease**: a process that was stopped, swapped out or suspended for longer than most of
the session time-out may have lost its partitions without knowing; it must not write one more record. **Progress**: a
worker that has work and gets none of it done holds its partitions for ever, because the heartbeats that Kafka sees
come from another thread.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

from xplat_stream.errors import LostLease, StalledWorker

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

_TICK_S: Final = 0.2
LEASE_SHARE: Final = 0.6
"""Share of the session time-out after which a process that stood still gives up: the rest is for it to be fenced."""


def boot_time() -> float:
    """Return seconds since boot, a suspended machine's sleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Watchdog:
    """Calls `on_failure` with `LostLease` or `StalledWorker`.

    `done` is any value that changes when work gets done, `working` says whether there is any; both are called from the
    thread. `session_s`: the group's session time-out. `stall_s`: how long work may stand still.
    """

    def __init__(
        self,
        *,
        session_s: float,
        stall_s: float,
        working: Callable[[], bool],
        done: Callable[[], Hashable],
        on_failure: Callable[[BaseException], None],
        clock: Callable[[], float] = boot_time,
    ) -> None:
        self._lease_s = session_s * LEASE_SHARE
        self._stall_s = stall_s
        self._working = working
        self._done = done
        self._on_failure = on_failure
        self._clock = clock
        self._ticked_at = clock()
        self._seen: Hashable = None
        self._moved_at = clock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin watching."""
        self._ticked_at = self._moved_at = self._clock()
        self._thread.start()

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()

    def check_lease(self) -> None:
        """Raise `LostLease` when the process has just stood still for too long: asked before anything is written."""
        stood_s = self._clock() - self._ticked_at
        if stood_s > self._lease_s:
            message = f"the process stood still for {stood_s:.1f} s; at most {self._lease_s:.1f} s keep its partitions"
            raise LostLease(message)

    def tick(self) -> None:
        """Look once. Raises `LostLease`, `StalledWorker`."""
        self.check_lease()
        now = self._ticked_at = self._clock()
        done = self._done()
        if done != self._seen or not self._working():
            self._seen, self._moved_at = done, now
        elif now - self._moved_at > self._stall_s:
            message = f"there is work and none of it got done for {now - self._moved_at:.0f} s"
            raise StalledWorker(message)

    def _run(self) -> None:
        while not self._closed.wait(_TICK_S):
            try:
                self.tick()
            except (LostLease, StalledWorker) as error:
                self._on_failure(error)
                return
