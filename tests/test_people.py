"""The people in the integration tests: files share a broker, so each needs people of its own."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

_FOLDER = Path(__file__).parent / "integration"


def test_no_two_files_publish_the_same_people() -> None:
    """A group reads what every test before it published: somebody else's events would be part of the answer."""
    files = defaultdict(set)
    for path in _FOLDER.glob("test_*.py"):
        for name in re.findall(r'(?:seed=|name=")(\d{3,})', path.read_text("utf-8")):
            files[name].add(path.name)
    assert files
    assert {name: sorted(paths) for name, paths in files.items() if len(paths) > 1} == {}
