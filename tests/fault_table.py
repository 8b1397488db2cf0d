"""The tables of faults and bad input in the reference: which test shows a row, and how it ended last.

`make faults` runs the whole suite with ``--record-faults`` and writes the outcome of every row whose tests all ran.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import date

PAGE: Final = Path(__file__).resolve().parent.parent / "docs" / "reference" / "faults.md"
_TEST: Final = re.compile(r"`(tests/[\w/]+\.py::\w+)`")


class Row(NamedTuple):
    """One row of the page: its line number and the tests it names, without parameters."""

    line: int
    tests: tuple[str, ...]


def rows(page: Path = PAGE) -> list[Row]:
    """Return the rows that name tests."""
    found = enumerate(page.read_text("utf-8").splitlines())
    return [Row(number, tests) for number, line in found if (tests := tuple(_TEST.findall(line)))]


def record(outcomes: Mapping[str, bool], day: date, page: Path = PAGE) -> int:
    """Write the result of every row whose tests all ran into its last cell. Returns how many rows that were.

    `outcomes`: test → whether all its cases passed.
    """
    lines = page.read_text("utf-8").splitlines()
    written = 0
    for row in rows(page):
        if all(test in outcomes for test in row.tests):
            word = "passed" if all(outcomes[test] for test in row.tests) else "FAILED"
            cells = lines[row.line].rstrip().rstrip("|").split(" | ")
            lines[row.line] = " | ".join([*cells[:-1], f"{word} {day.isoformat()} |"])
            written += 1
    page.write_text("\n".join(lines) + "\n", "utf-8")
    return written
