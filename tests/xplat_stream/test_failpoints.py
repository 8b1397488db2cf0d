"""Steps to die at: named once, reached somewhere, and harmless unless a test has armed one."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from xplat_stream.failpoints import POINTS, VARIABLE, arm, reached

ROOT = Path(__file__).resolve().parents[2]
PASS = "from xplat_stream.failpoints import reached; [reached('file.written') for _ in range(3)]; print('through')"


def passing(spec: str) -> subprocess.CompletedProcess[str]:
    """Run a process that comes to a step three times."""
    return subprocess.run(
        [sys.executable, "-c", PASS], env={VARIABLE: spec}, cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_every_step_is_reached_somewhere() -> None:
    """The list and the code name the same steps."""
    sources = [path for folder in ("xplat_stream", "streams", "trainer") for path in (ROOT / folder).rglob("*.py")]
    named = {one for path in sources for one in re.findall(r'\breached\("([^"]+)"\)', path.read_text("utf-8"))}
    assert named == set(POINTS)


def test_a_process_dies_at_its_step() -> None:
    """At the first time or the third; not at the fourth, which never comes, nor without the variable."""
    codes = [passing(spec).returncode for spec in ("file.written", "file.written:3", "file.written:4", "")]
    assert codes == [-9, -9, 0, 0]


def test_another_process_dies_in_its_place() -> None:
    """The one that comes to the step goes on."""
    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    assert passing(f"file.written={victim.pid}").stdout == "through\n"
    assert victim.wait(60) == -9


@pytest.mark.parametrize("spec", ["file.wirtten", "file.written:0", "file.written=x", "*"])
def test_a_step_that_is_none_is_told(spec: str) -> None:
    """A test whose step was renamed must not pass because nobody dies any more."""
    with pytest.raises(ValueError, match=r"names no step; expected one of file\.written"):
        arm(spec)
    reached("file.written")
