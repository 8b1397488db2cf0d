"""Two of the deaths that `make release-faults` goes through: what only real parts can show."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.integration
def test_triton_and_worker_die_in_the_middle_of_a_release(tmp_path: Path) -> None:
    """Triton while it loads, a worker as it changes over: the announced release answers, and all reach it, exact."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos", "releases", "--deaths", "loading,switch-taken"],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "HOME": str(Path.home()), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["deaths"] == 2
