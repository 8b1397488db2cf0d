"""The programs the demo runs beside itself, as a person would in other terminals: the worker and the trainer.

They are started through the command line and watched through topics and the worker's metrics file, so the demo needs
nothing that a user of the system would not have.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import msgspec

from xplat_stream.errors import StackError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_STOP_S = 20.0


class Child:
    """A `xplat` command in a process of its own. What it tells goes to `log`, or is shown here with `shown`."""

    def __init__(
        self, arguments: list[str], environment: Mapping[str, str], log: Path, *, nice: int = 0, shown: bool = False
    ) -> None:
        self.log = log
        self._name = arguments[0]
        self._output = log.with_suffix(".json")
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "xplat_stream.cli", *arguments]
        if nice:
            command = ["nice", "-n", str(nice), *command]
        with log.open("wb") as errors, self._output.open("wb") as output:
            self._process = subprocess.Popen(
                command, env={**os.environ, **environment}, stdout=output, stderr=None if shown else errors
            )

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    @property
    def code(self) -> int | None:
        """The exit code, None while it runs."""
        return self._process.poll()

    @property
    def failed(self) -> bool:
        """Whether it ended badly."""
        return self.code not in (None, 0)

    @property
    def last_words(self) -> str:
        """The last line of its log."""
        said = self.log.read_text(errors="replace").strip() or "see above"
        return said.rpartition("\n")[2][:400]

    def check(self) -> None:
        """Raise `StackError` with the child's last words when it ended badly."""
        if self.failed:
            raise StackError(
                f"`xplat {self._name}` ended with exit code {self.code}: {self.last_words}",
                where=str(self.log),
                expected="exit code 0",
                fix="The whole story is in the log.",
            )

    def answer(self) -> dict[str, Any]:
        """Return the JSON object the command printed last. Raises `StackError` when it failed."""
        self._process.wait()
        self.check()
        return dict(msgspec.json.decode(self._output.read_bytes().strip().rpartition(b"\n")[2]))

    def stop(self) -> None:
        """End it with SIGTERM, and with SIGKILL when that is not enough."""
        if self.code is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
