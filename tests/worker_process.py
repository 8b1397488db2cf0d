"""A worker as the tests run it: a real process with its own settings and log."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from xplat_stream.local.process import _stat, wait_for
from xplat_stream.metrics import Metrics, read_metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from xplat_stream.settings import Settings

XPLAT = Path(sys.executable).with_name("xplat")
READY_WITHIN_S = 120.0
"""Patience, not expectation: suites run side by side on few cores."""

ALONE = (str(XPLAT), "worker", "--no-supervise")
"""A worker that is not started again: one that stops fails its test."""

SUPERVISED = (str(XPLAT), "worker")


def environment(settings: Settings, **variables: str) -> dict[str, str]:
    """Return the environment under which a command sees exactly these settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("XPLAT_")}
    named = {
        f"XPLAT_{group}__{field}".upper(): str(getattr(getattr(settings, group), field))
        for group in settings.__struct_fields__
        if isinstance(getattr(settings, group), msgspec.Struct)
        for field in getattr(settings, group).__struct_fields__
    }
    return {**kept, "XPLAT_PLATFORMS": ",".join(settings.platforms), **named, **variables}


class Worker:
    """One `xplat worker` process and its log."""

    def __init__(self, settings: Settings, log: Path, command: Sequence[str] = ALONE, **variables: str) -> None:
        self.settings = settings
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command,
                env=environment(settings, **variables),
                cwd=log.parent,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that a signal can reach the supervisor and its worker together
            )

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self.process.poll() is None

    @property
    def children(self) -> list[int]:
        """The processes it started."""
        return _children(self.process.pid)

    @property
    def line(self) -> list[int]:
        """The supervisor, where there is one, and the process that does the work, which is the last."""
        found = [self.process.pid]
        while children := _children(found[-1]):
            found.append(children[-1])
        return found

    @property
    def metrics(self) -> Metrics:
        """What it counted, at most a second ago."""
        return read_metrics(Path(self.settings.worker.datadir))

    def said(self, words: str) -> bool:
        """Tell whether the log holds these words."""
        return words.encode() in self.log.read_bytes()

    def ready(self) -> Worker:
        """Wait until it owns partitions."""
        self.until(lambda: self.said("Worker ready"), "be ready")
        return self

    def until(self, condition: Callable[[], bool], what: str, *, within_s: float = READY_WITHIN_S) -> None:
        """Wait for a condition; a worker that ends meanwhile fails at once, with its log."""
        wait_for(lambda: not self.running or condition(), timeout_s=within_s)
        assert self.running, f"worker ended with {self.process.returncode} instead of: {what}\n{self.words()}"
        assert condition(), f"worker did not {what} within {within_s:.0f} s\n{self.words()}"

    def end(self, number: int = signal.SIGTERM, *, within_s: float = 60.0) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(within_s)

    def signal_line(self, number: int) -> None:
        """Send a signal to the supervisor, where there is one, and to the worker; none where they are gone."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def kill_line(self) -> None:
        """Kill all of them and wait until nothing holds the state folder any more."""
        line = self.line
        self.signal_line(signal.SIGKILL)
        self.process.wait()
        assert wait_for(lambda: all(_stat(pid).gone for pid in line), timeout_s=READY_WITHIN_S)

    def words(self) -> str:
        """Return the end of its log."""
        return self.log.read_text("utf-8", "replace")[-6000:]


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:  # it just ended
        return []


def with_worker(settings: Settings, **fields: Any) -> Settings:
    """Return settings whose worker differs: another folder for a second one of the group, smaller chunks."""
    fields = {name: str(value) if isinstance(value, Path) else value for name, value in fields.items()}
    return msgspec.structs.replace(settings, worker=msgspec.structs.replace(settings.worker, **fields))
