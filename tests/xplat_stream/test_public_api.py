"""What can be imported is what is promised."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import xplat_stream

ROOT = Path(xplat_stream.__file__).parent
PACKAGES = ["xplat_stream", *(m.name for m in pkgutil.walk_packages([str(ROOT)], "xplat_stream.") if m.ispkg)]
BARE = ["xplat_stream", "xplat_stream.simulate", "xplat_stream.replay", "xplat_stream.kafka", "xplat_stream.adapters"]
HEAVY = ["numpy", "tokenizers", "torch", "faust", "tritonclient", "rocksdict", "aiokafka", "onnxruntime"]


@pytest.mark.parametrize("name", PACKAGES)
def test_exports_are_sorted_and_there(name: str) -> None:
    """`__all__` is sorted, without repeats, and every name in it can be imported."""
    package = importlib.import_module(name)
    exported = package.__all__
    assert list(exported) == sorted(set(exported), key=lambda word: (not word.isupper(), not word[0].isupper(), word))
    for word in exported:
        assert getattr(package, word) is not None


@pytest.mark.parametrize("name", PACKAGES)
def test_what_a_package_imports_it_exports(name: str) -> None:
    """A public name that a package's page imports from below is in `__all__`: nothing is public by accident."""
    package = importlib.import_module(name)
    tree = ast.parse(Path(str(package.__file__)).read_text(encoding="utf-8"))
    below = {
        alias.asname or alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("xplat_stream")
        for alias in node.names
    }
    assert below <= set(package.__all__)


@pytest.mark.parametrize("name", BARE)
def test_the_bare_install_is_enough(name: str) -> None:
    """Producers, consumers, simulator and replay work where nothing of the worker or the trainer is installed."""
    code = f"import sys; sys.modules.update(dict.fromkeys({HEAVY})); import {name}"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT.parent)
    assert ran.returncode == 0, ran.stderr
