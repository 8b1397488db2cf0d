"""How a worker process ends."""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("error", "code"),
    [("LostLease('x')", 72), ("DeliveryError('x', left=1)", 75), ("OSError(28, 'full')", 74), ("ValueError('x')", 70)],
)
def test_a_worker_stops_also_where_it_cannot_say_so(error: str, code: int) -> None:
    """Its log may lie on the disk that is full: the exit code is the cause's all the same."""
    program = f"from xplat_stream.errors import *; from streams.worker import stop_worker; stop_worker({error})"
    with open("/dev/full", "wb") as full:  # noqa: PTH123 - a device
        done = subprocess.run([sys.executable, "-c", program], stderr=full, check=False, timeout=60)
    assert done.returncode == code
    assert errno.ENOSPC == 28
