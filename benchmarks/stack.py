"""What the benchmarks run in: a stack of their own, and worker processes that live until something is true."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
from confluent_kafka.admin import NewTopic

from benchmarks.events import PLATFORM
from benchmarks.trace import Sample
from xplat_stream import local
from xplat_stream.errors import StackError
from xplat_stream.kafka.topics import admin
from xplat_stream.serving.releases import ModelRepository
from xplat_stream.settings import KafkaSettings, LocalSettings, ModelSettings, Settings, WorkerSettings, load_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

_PATIENCE_S: Final = 300.0
_POLL_S: Final = 0.05
_TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM unwind what is inside, as Ctrl-C does: servers and workers that were started are stopped then."""
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def private_stack(
    report: Callable[[str], None],
    *,
    platforms: tuple[str, ...] = (PLATFORM,),
    partitions: int = KafkaSettings().partitions,
    models: Path | None = None,
) -> Iterator[tuple[Settings, Path]]:
    """Yield the settings of a running stack, for one worker and these platforms, and its folder.

    `partitions`: of topics that are made with these settings. `models`: a repository that the model server starts with
    a copy of. Raises `StackError`.
    """
    with ended_by_sigterm(), tempfile.TemporaryDirectory(prefix="xplat-bench-") as folder:
        home = Path(folder)
        worker = WorkerSettings(datadir=str(home / "worker"))
        settings = Settings(
            platforms=platforms,
            local=LocalSettings(home=str(home)),
            worker=worker,
            model=ModelSettings(repository=str(home / "models")),
        )
        if models is not None:
            shutil.copytree(models, home / "models")
        for config in ModelRepository.of(load_settings()).root.glob("*/config.pbtxt"):
            (home / "models" / config.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(config, home / "models" / config.parent.name)
        state = local.up(settings, report=report)
        try:
            variables = {"XPLAT_LOCAL__HOME": str(home), "XPLAT_KAFKA__PARTITIONS": str(partitions)}
            running = load_settings(variables, folder=home)
            yield msgspec.structs.replace(running, platforms=platforms, worker=worker, model=settings.model), home
        finally:
            del state
            local.down(settings, report=report)


def environment(settings: Settings, home: Path) -> dict[str, str]:
    """Return the environment of a worker of this project."""
    return {
        **os.environ,
        "XPLAT_KAFKA__BOOTSTRAP": settings.kafka.bootstrap,
        "XPLAT_TRITON__URL": settings.triton.url,
        "XPLAT_PLATFORMS": PLATFORM,
        "XPLAT_WORKER__DATADIR": settings.worker.datadir,
        "XPLAT_LOCAL__HOME": str(home),
    }


def faust_worker(module: str, *, loglevel: str = "warn") -> list[str]:
    """Return the command line of a Faust worker."""
    return [sys.executable, "-m", "faust", "-A", module, "-L", "uvloop", "worker", "--without-web", "-l", loglevel]


def make_topics(settings: Settings, names: Sequence[str], config: Mapping[str, str]) -> None:
    """Make topics with the partition count of the settings."""
    client = admin(settings)
    topics = [NewTopic(name, settings.kafka.partitions, 1, config=dict(config)) for name in names]
    for made in (client.create_topics(topics) if topics else {}).values():
        made.result()


class Ran(NamedTuple):
    """What a process took: CPU time all along, and memory at the most."""

    samples: list[Sample]
    peak_bytes: int


def run_until(
    until: Callable[[], bool], module: str, environment: dict[str, str], output: Path, *, loglevel: str = "warn"
) -> Ran:
    """Run a Faust worker until a condition holds, stop it, and return what it took. Raises `StackError`."""
    with output.open("wb") as written:
        samples = [Sample(time.time() * 1000, 0.0)]
        process = subprocess.Popen(
            faust_worker(module, loglevel=loglevel), env=environment, stdout=written, stderr=subprocess.STDOUT
        )
    deadline = time.monotonic() + _PATIENCE_S
    try:
        while not (done := until()) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(_POLL_S)
            samples.append(Sample(time.time() * 1000, cpu_s(process.pid)))
        peak = peak_bytes(process.pid)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if not done:
        raise StackError(
            f"{module} did not finish",
            where=str(output),
            expected=f"an end within {_PATIENCE_S:.0f} s",
            fix=output.read_text(errors="replace").strip().rpartition("\n")[2][:300],
        )
    return Ran(samples, peak)


def peak_bytes(pid: int) -> int:
    """Return the most memory that a process had resident, as the kernel saw it; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text("ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def cpu_s(pid: int) -> float:
    """Return user and system seconds of all threads of a process, and of children that it waited for."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) * _TICK_S
