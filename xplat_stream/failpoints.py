"""Named steps at which a test kills a process: what is left must be what the next run can go on with.

``FAILPOINT=release.announced`` kills the process that sets out from that step, ``FAILPOINT=file.written:3`` when it
comes there for the third time, and ``FAILPOINT=triton.loaded=4711`` kills process 4711 in its place and goes on.
Without the variable a step costs one comparison. It is no setting: nobody but a test has a use for it.
"""

from __future__ import annotations

import os
import re
import signal
from typing import Final

VARIABLE: Final = "FAILPOINT"

POINTS: Final = (
    # A file or a version on its way to the disk: xplat_stream/disk.py, serving/releases.py
    "file.written",
    "file.replaced",
    "place.file",
    "place.written",
    "place.renamed",
    "sight.renamed",
    "remove.renamed",
    # A release on its way to being active, and back: serving/triton.py, serving/promote.py, trainer/release/release.py
    "release.judged",
    "triton.loading",
    "triton.loaded",
    "release.answered",
    "release.announced",
    "release.journaled",
    "watch.broken",
    # A worker on its way to it: streams/switch.py, lanes.py, shadow.py, reports.py
    "switch.read",
    "switch.warmed",
    "switch.taken",
    "rescore.taken",
    "rescore.done",
    "warm.kept",
    "shadow.compared",
    "report.told",
)
"""Every step there is."""

_SPEC: Final = re.compile(r"(?P<point>[a-z.]+)(:(?P<nth>[1-9][0-9]*))?(=(?P<victim>[1-9][0-9]*))?")


class _Armed:
    """The step that is armed, and how often it is still to be passed."""

    def __init__(self, point: str, nth: int, victim: int) -> None:
        self.point = point
        self.nth = nth
        self.victim = victim


_armed: _Armed | None = None


def reached(point: str) -> None:
    """Say that a step is reached: nothing happens, unless this is the one a test has armed."""
    if _armed is not None and _armed.point == point:
        _armed.nth -= 1
        if _armed.nth == 0:
            os.kill(_armed.victim or os.getpid(), signal.SIGKILL)


def arm(spec: str) -> None:
    """Arm a step, as `FAILPOINT` does; empty: none. Raises `ValueError` where there is no such step."""
    global _armed  # noqa: PLW0603 - one a process, as the variable is
    found = _SPEC.fullmatch(spec)
    if spec and (found is None or found["point"] not in POINTS):
        message = f"{VARIABLE}={spec} names no step; expected one of {', '.join(POINTS)}, with :n or =pid"
        raise ValueError(message)
    _armed = _Armed(found["point"], int(found["nth"] or 1), int(found["victim"] or 0)) if found else None


arm(os.environ.get(VARIABLE, ""))
