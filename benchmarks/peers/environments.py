"""Virtual environments for peers whose dependencies cannot live beside ours, made on demand from hashed lock files."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.peers.peer import ROOT_FOLDER
from xplat_stream.errors import StackError

if TYPE_CHECKING:
    from collections.abc import Callable

PROJECT: Final = Path(__file__).resolve().parents[2]


def python_of(name: str) -> Path:
    """Return the interpreter of a peer's environment."""
    return PROJECT / ROOT_FOLDER / name / "bin" / "python"


def version_of(name: str) -> str:
    """Return the version in the first line of `requirements/peers-<name>.in`."""
    return _requirements(name).with_suffix(".in").read_text("utf-8").partition("\n")[0].rpartition("=")[2]


def installer(name: str) -> Callable[[Callable[[str], None]], None]:
    """Return what makes the environment where it is missing or its lock file has changed."""
    return partial(_install, name)


def _requirements(name: str) -> Path:
    return PROJECT / "requirements" / f"peers-{name}.txt"


def _install(name: str, report: Callable[[str], None]) -> None:
    folder = PROJECT / ROOT_FOLDER / name
    mark = folder / "installed.sha256"
    wanted = hashlib.sha256(_requirements(name).read_bytes()).hexdigest()
    if mark.exists() and mark.read_text("ascii") == wanted:
        return
    report(f"{name}: installing {_requirements(name).name} into {folder.relative_to(PROJECT)}")
    shutil.rmtree(folder, ignore_errors=True)
    uv = Path(sys.executable).with_name("uv")
    install = ["pip", "install", "--quiet", "--require-hashes", "--python", str(python_of(name))]
    for arguments in (
        ["venv", "--quiet", "--python", sys.executable, str(folder)],
        [*install, "-r", str(_requirements(name))],
    ):
        try:
            subprocess.run([str(uv), *arguments], check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", "") or str(error)
            raise StackError(
                f"the environment of {name} cannot be made: {said.strip().rpartition(chr(10))[2]}",
                where=str(folder),
                expected=f"what {_requirements(name).name} lists",
                fix="Check the network, or leave this peer out: --peers.",
            ) from error
    mark.write_text(wanted, "ascii")
