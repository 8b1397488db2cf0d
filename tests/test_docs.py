"""The reference is complete: every command, option and setting is written down."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
import typer.main

from tests import fault_table
from tests.integration.bad_input import BAD, GOOD
from xplat_stream import cli
from xplat_stream.adapters import REASONS
from xplat_stream.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    import click

ROOT = Path(__file__).resolve().parent.parent


def written() -> str:
    """Return the reference pages and the README."""
    pages = [*sorted((ROOT / "docs" / "reference").glob("**/*.md")), ROOT / "README.md"]
    return "\n".join(page.read_text("utf-8") for page in pages)


def commands(group: click.Command, path: tuple[str, ...] = ("xplat",)) -> Iterator[str]:
    """Yield the full name of every command below a group."""
    for name, command in sorted(getattr(group, "commands", {}).items()):
        if getattr(command, "commands", None):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name))


def every_command() -> list[str]:
    """Return the full names of all commands, those of installed extras included."""
    if not {command.name for command in cli.app.registered_commands} & {"worker"}:
        cli._add_installed_commands()
    return list(commands(typer.main.get_command(cli.app)))


def every_setting() -> list[str]:
    """Return the environment variable of every setting."""
    found = []
    for name, value in ((name, getattr(Settings(), name)) for name in Settings.__struct_fields__):
        fields = value.__struct_fields__ if isinstance(value, msgspec.Struct) else ()
        found += [f"XPLAT_{name}__{field}".upper() for field in fields] or [f"XPLAT_{name}".upper()]
    return found


@pytest.mark.parametrize("command", every_command())
def test_every_command_is_in_the_reference(command: str) -> None:
    """`docs/reference` or the README names it in full."""
    assert command in written()


@pytest.mark.parametrize("variable", every_setting())
def test_every_setting_is_in_the_reference(variable: str) -> None:
    """`docs/reference` or the README names its variable, or its table and field as `xplat.toml` has them."""
    group, _, field = variable.removeprefix("XPLAT_").lower().partition("__")
    text = written()
    assert variable in text or (field and f"{group}.{field}" in text)


@pytest.mark.parametrize("test", sorted({test for row in fault_table.rows() for test in row.tests}))
def test_every_test_that_a_fault_names_is_there(test: str) -> None:
    """A row of the table of faults is shown by a test that exists."""
    path, _, name = test.partition("::")
    assert f"def {name}(" in (ROOT / path).read_text("utf-8")


def test_results_are_written_into_the_table(tmp_path: Path) -> None:
    """A row gets its date when all its tests ran, and says when one failed; other rows stay as they are."""
    page = tmp_path / "faults.md"
    page.write_text(
        "| # | fault | shown by | last result |\n"
        "| 1 | a | `tests/test_a.py::test_a`<br>`tests/test_b.py::test_b` | not run |\n"
        "| 2 | b | `tests/test_b.py::test_b` | passed 2026-01-01 |\n"
        "| 3 | c | `tests/test_c.py::test_c` | not run |\n"
    )
    outcomes = {"tests/test_a.py::test_a": True, "tests/test_b.py::test_b": False}
    assert fault_table.record(outcomes, date(2026, 2, 3), page) == 2
    results = [line.split(" | ")[-1] for line in page.read_text().splitlines()]
    assert results == ["last result |", "FAILED 2026-02-03 |", "FAILED 2026-02-03 |", "not run |"]


@pytest.mark.parametrize("reason", REASONS)
def test_every_reason_is_in_the_reference(reason: str) -> None:
    """The page on events explains what each dead letter means."""
    assert f"| `{reason}` |" in (ROOT / "docs" / "reference" / "events.md").read_text("utf-8")


@pytest.mark.parametrize("kind", [*BAD, *GOOD])
def test_every_kind_of_bad_input_has_a_row(kind: str) -> None:
    """The page on bad input has a row for each kind that is sent to a worker, with the reason that the test expects."""
    page = (ROOT / "docs" / "reference" / "bad-input.md").read_text("utf-8")
    (row,) = [line for line in page.splitlines() if line.startswith("| `") and f"`{kind}`" in line.split(" | ")[0]]
    assert kind in GOOD or f"| `{BAD[kind].reason}` |" in row
