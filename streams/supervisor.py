"""Starts a worker process again when it stopped to keep its promise.

Stopping is the worker's answer to everything it does not understand, so something has to start it again: this, or
systemd, or Kubernetes with ``xplat worker --no-supervise``.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Final

from streams.suspects import blame_in_hand
from xplat_stream.errors import EXIT_OPERATOR

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from types import FrameType

RESTARTS: Final = "WORKER_RESTARTS"
"""Environment variable that tells a worker how often it has been started again."""

_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 30.0
_HEALTHY_S: Final = 15.0
"""A worker that ran this long was healthy: its next restart is the first one again."""
_PATIENCE_S: Final = 30.0
_CRASHES: Final = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE}
_PR_SET_PDEATHSIG: Final = 1


class Supervisor:
    """Runs one worker process after another until one ends as it should, or a person has to act."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], folder: Path) -> None:
        self._command = list(command)
        self._environment = dict(environment)
        self._folder = folder
        self._child: subprocess.Popen[bytes] | None = None
        self._ending = False

    def run(self) -> int:
        """Return the exit code of the last worker. SIGTERM and SIGINT end it, and then this."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)
        restarts, pause_s = 0, _FIRST_PAUSE_S
        while True:
            began = time.monotonic()
            code = self._run_once(restarts)
            if self._ending or code in (0, EXIT_OPERATOR):
                return max(code, 0) if self._ending else code
            if time.monotonic() - began > _HEALTHY_S:
                pause_s = _FIRST_PAUSE_S
            how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            with contextlib.suppress(OSError):  # the log may lie on the disk that is full
                sys.stderr.write(f"xplat worker {how}; starting it again in {pause_s:.1f} s\n")
                sys.stderr.flush()
            if -code in _CRASHES:
                blame_in_hand(self._folder)
            if self._paused(pause_s):
                return 0
            restarts += 1
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _run_once(self, restarts: int) -> int:
        environment = {**self._environment, RESTARTS: str(restarts)}
        parent = os.getpid()
        self._child = subprocess.Popen(self._command, env=environment, preexec_fn=lambda: _die_with(parent))  # noqa: PLW1509
        if self._ending:  # the signal came before there was anyone to pass it to
            self._child.terminate()
        while True:
            try:
                return self._child.wait(_PATIENCE_S if self._ending else None)
            except subprocess.TimeoutExpired:
                self._child.kill()

    def _end(self, _number: int, _frame: FrameType | None) -> None:
        self._ending = True
        if self._child is not None and self._child.poll() is None:
            self._child.terminate()

    def _paused(self, seconds: float) -> bool:
        """Wait; tell whether we were asked to end meanwhile."""
        until = time.monotonic() + seconds
        while not self._ending and time.monotonic() < until:
            time.sleep(0.05)
        return self._ending


def _die_with(parent: int) -> None:
    """Let the kernel kill this process when its supervisor dies: nobody else would, and it holds the state folder."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
