"""The workers: started, killed, stopped and continued, and started again when they leave of their own accord."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.worker_process import SUPERVISED, Worker, with_worker
from xplat_stream.metrics import METRICS_FILE, read_metrics

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from xplat_stream.settings import Settings

_LOOK_EVERY_S = 0.1
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 2.0
_METRICS_FRESH_S = 2.5
"""A worker writes its metrics once a second."""
_ENDS_WITHIN_S = 40.0
_DISK_MB = 512
_SUPERVISED_EXIT = re.compile(
    r"^xplat worker (?:ended with exit code (\d+)|was killed by (\w+)); starting", re.MULTILINE
)
_ENTRY = re.compile(r"^(?=\[\d{4}-|xplat worker )", re.MULTILINE)
"""Where an entry of a worker's log begins; what follows it up to the next belongs to it."""
_OURS = re.compile(r'File ".*/(?:streams|xplat_stream)/')


class Slot:
    """One place for a worker: its folder, and the process that is there now."""

    def __init__(self, number: int, settings: Settings, disk: Path) -> None:
        self.number = number
        self.settings = settings
        self.disk = disk
        """What the state folder lies on: a small file system of its own where this user may mount one."""
        self.worker: Worker | None = None
        self.wanted = False
        self.starts = 0
        self.pause_s = _FIRST_PAUSE_S
        self.due_at = 0.0

    @property
    def running(self) -> Worker:
        """The worker of a place that is wanted: it was started, though it may just have ended."""
        assert self.worker is not None
        return self.worker

    @property
    def owned(self) -> list[int]:
        """The partitions its worker says it owns; none where what it says is old."""
        folder = Path(self.settings.worker.datadir)
        try:
            age_s = time.time() - (folder / METRICS_FILE).stat().st_mtime
        except FileNotFoundError:
            return []
        return read_metrics(folder).partitions if age_s < _METRICS_FRESH_S else []


class Fleet:
    """Up to some number of workers of one group. Use it as a context manager."""

    def __init__(self, settings: Settings, folder: Path, *, size: int = 3) -> None:
        """`settings`: as workers get them, but for the state folder. `folder`: for disks and logs."""
        self._exits: Counter[str] = Counter()
        self._logs = folder / "logs"
        self._logs.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._slots = [self._slot(number, settings, folder) for number in range(size)]
        self._mounted = [slot.disk for slot in self._slots if _mounted(slot.disk)]
        self._thread = threading.Thread(target=self._look_after, name="fleet")

    def _slot(self, number: int, settings: Settings, folder: Path) -> Slot:
        disk = folder / f"disk-{number}"
        disk.mkdir(parents=True)
        return Slot(number, with_worker(settings, datadir=disk / "state"), disk)

    @property
    def wanted(self) -> list[Slot]:
        """The places that have, or are to have, a worker."""
        return [slot for slot in self._slots if slot.wanted]

    @property
    def free(self) -> list[Slot]:
        """The other places."""
        return [slot for slot in self._slots if not slot.wanted]

    @property
    def disks_are_small(self) -> bool:
        """Whether each worker has a file system of its own, which can be filled."""
        return len(self._mounted) == len(self._slots)

    def join(self, slot: Slot) -> None:
        """Let a worker take this place."""
        with self._lock:
            slot.wanted = True
            self._start(slot)

    def leave(self, slot: Slot) -> None:
        """End the worker of this place with SIGTERM, as a deployment does."""
        with self._lock:
            slot.wanted = False
        if slot.worker is not None and slot.worker.running:
            try:
                code = slot.worker.end(within_s=_ENDS_WITHIN_S)
            except subprocess.TimeoutExpired:
                slot.worker.kill_line()
                self._exits["SIGTERM ignored"] += 1
            else:
                if code not in {0, -signal.SIGTERM}:  # SIGTERM ends one that has no handler yet
                    self._exits[_name(code)] += 1

    @contextmanager
    def down(self, slot: Slot) -> Iterator[Path]:
        """Kill everything in this place at once, as a lost host, and start it again afterwards.

        Yields its state folder, for what shall have become of it meanwhile.
        """
        with self._lock:
            slot.wanted = False
            assert slot.worker is not None
            slot.worker.kill_line()
        yield slot.disk / "state"
        self.join(slot)

    def _start(self, slot: Slot) -> None:
        slot.starts += 1
        slot.worker = Worker(slot.settings, self._logs / f"worker-{slot.number}.{slot.starts:03}.log", SUPERVISED)

    def _look_after(self) -> None:
        """Start again what ended without being asked to; a supervisor of the worker's own leaves little to do."""
        while not self._ended.wait(_LOOK_EVERY_S):
            with self._lock:
                for slot in self.wanted:
                    self._look_at(slot)

    def _look_at(self, slot: Slot) -> None:
        worker = slot.worker
        if worker is None or worker.running:
            return
        if not slot.due_at:
            self._exits[_name(worker.process.returncode)] += 1
            if worker.said("Worker ready"):
                slot.pause_s = _FIRST_PAUSE_S
            slot.due_at = time.monotonic() + slot.pause_s
            slot.pause_s = min(2 * slot.pause_s, _LONGEST_PAUSE_S)
        elif time.monotonic() > slot.due_at:
            slot.due_at = 0.0
            self._start(slot)

    def owns(self, partitions: int) -> bool:
        """Tell whether every worker that is wanted owns some, and each partition has one owner."""
        owned = [slot.owned for slot in self.wanted]
        return all(owned) and sorted(number for some in owned for number in some) == list(range(partitions))

    def exits(self) -> dict[str, int]:
        """Count how workers ended, by exit code or signal: those their own supervisors started again too."""
        return dict(sorted((self._exits + found_exits(self.log())).items()))

    def log(self) -> str:
        """Return everything all workers said."""
        return "\n".join(log.read_text("utf-8", "replace") for log in sorted(self._logs.glob("worker-*.log")))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        for slot in self._slots:
            if slot.worker is not None:
                slot.worker.kill_line()
        for disk in self._mounted:
            subprocess.run(["umount", str(disk)], check=True)


def _name(code: int) -> str:
    return str(code) if code >= 0 else signal.Signals(-code).name


def _mounted(disk: Path) -> bool:
    """Mount a small file system there, where this user may."""
    mount = shutil.which("mount")
    command = [str(mount), "-t", "tmpfs", "-o", f"size={_DISK_MB}m", "tmpfs", str(disk)]
    return mount is not None and subprocess.run(command, check=False, capture_output=True).returncode == 0


def found_exits(log: str) -> Counter[str]:
    """Count the exits after which a worker's own supervisor started it again, by exit code or signal."""
    return Counter(code or number for code, number in _SUPERVISED_EXIT.findall(log))


def found_stops(log: str) -> Counter[str]:
    """Count the reasons workers gave for stopping on their own."""
    return Counter(re.findall(r"xplat worker stopped: (.*)", log))


def found_tracebacks(log: str) -> Counter[str]:
    """Count the exceptions of which a worker showed a traceback of ours and did not stop, by their last line."""
    entries = (entry.rstrip() for entry in _ENTRY.split(log))
    return Counter(
        entry.rpartition("\n")[2]
        for entry in entries
        if "Traceback (most recent call last)" in entry
        and _OURS.search(entry)
        and " stopped: " not in entry.partition("\n")[0]
    )
