"""Fixtures that several test modules use: a real Kafka and a real Triton in a temporary folder."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from tests import fault_table
from xplat_stream import local
from xplat_stream.settings import KafkaSettings, LocalSettings, ModelSettings, Settings, TritonSettings, WorkerSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure(config: pytest.Config) -> None:
    """Make the mark known also where pytest runs without the project's configuration."""
    config.addinivalue_line("markers", "integration: needs a real Kafka and a real Triton, started by the test run")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option of `make faults`."""
    parser.addoption("--record-faults", action="store_true", help="write the results into docs/reference/faults.md")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Write the table of faults where it is asked for."""
    if not config.getoption("--record-faults"):
        return
    outcomes: dict[str, bool] = {}
    for kind in ("passed", "failed", "error"):
        for report in terminalreporter.stats.get(kind, []):
            test = report.nodeid.partition("[")[0]
            outcomes[test] = outcomes.get(test, True) and kind == "passed"
    written = fault_table.record(outcomes, datetime.now(UTC).date())
    terminalreporter.write_line(f"{written} rows written to {fault_table.PAGE.relative_to(ROOT)}")


@pytest.fixture(scope="session")
def stack_settings() -> Callable[..., Settings]:
    """Return a maker of settings for a stack that lives in one folder and shares nothing with any other."""

    def make(folder: Path, **ports: Any) -> Settings:
        repository = folder / "model_repo"
        for config in (ROOT / "model_repo").glob("*/config.pbtxt"):
            (repository / config.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(config, repository / config.parent.name)
        return Settings(
            local=LocalSettings(home=str(folder / "home"), **ports),
            model=ModelSettings(repository=str(repository)),
            worker=WorkerSettings(datadir=str(folder / "worker")),
        )

    return make


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory, stack_settings: Callable[..., Settings]) -> Iterator[Settings]:
    """Yield the settings of a running stack. Tests share it: use topics and users of your own, and stop nothing."""
    settings = stack_settings(tmp_path_factory.mktemp("stack"))
    lines: list[str] = []
    try:
        state = local.up(settings, report=lines.append)
        yield msgspec.structs.replace(
            settings,
            kafka=KafkaSettings(bootstrap=state.kafka.address),
            triton=TritonSettings(url=state.triton.address),
        )
    finally:
        local.down(settings, report=lines.append)
