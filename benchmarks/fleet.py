"""Worker processes under load: what they count, what they and the servers take of the CPU, what Triton says of it."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tritonclient.grpc import aio as triton

from xplat_stream.demo.children import Child
from xplat_stream.errors import StackError
from xplat_stream.local.record import read_stack
from xplat_stream.metrics import METRICS_FILE, Metrics, read_metrics
from xplat_stream.serving.releases import ENCODER, HEAD
from xplat_stream.verify import wait_until_caught_up

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from xplat_stream.settings import Settings

_PATIENCE_S: Final = 240.0
_POLL_S: Final = 0.1
_TWO_SNAPSHOTS_S: Final = 2.2
"""Workers show what they count once a second."""

_TICK: Final = os.sysconf("SC_CLK_TCK")
COUNTED: Final = ("events", "updates", "scored", "rescored", "stale", "degraded", "texts_encoded")


class Counts(NamedTuple):
    """What all workers have counted, and the CPU seconds of each kind of process, up to one moment."""

    metrics: dict[str, int]
    cpu_s: dict[str, float]

    def since(self, before: Counts) -> Counts:
        """Return the difference."""
        return Counts(
            {name: value - before.metrics[name] for name, value in self.metrics.items()},
            {name: value - before.cpu_s[name] for name, value in self.cpu_s.items()},
        )


class ModelCalls(NamedTuple):
    """What Triton counted of one model: calls and the users or texts in them, and microseconds a call."""

    calls: int
    rows: int
    queue_us: float
    compute_us: float

    @property
    def rows_a_call(self) -> float:
        """Users, or texts, of one call."""
        return self.rows / max(1, self.calls)


class Fleet:
    """Some workers of one group, each with a state folder of its own."""

    def __init__(self, settings: Settings, home: Path, workers: int, *, chunk_events: int) -> None:
        self._settings, self._home = settings, home
        self._environment = {
            "XPLAT_LOCAL__HOME": str(home),
            "XPLAT_PLATFORMS": ",".join(settings.platforms),
            "XPLAT_KAFKA__PARTITIONS": str(settings.kafka.partitions),
            "XPLAT_MODEL__REPOSITORY": settings.model.repository,
            "XPLAT_WORKER__CHUNK_EVENTS": str(chunk_events),
        }
        self._workers: dict[int, Child] = {}
        self._gone = dict.fromkeys(COUNTED, 0)
        """What workers counted that have ended; the others' metrics begin with zeros."""
        self._gone_cpu_s = 0.0
        for number in range(workers):
            self.start(number)

    def start(self, number: int) -> None:
        """Start a worker, or start it again."""
        own = {"XPLAT_WORKER__DATADIR": str(self._folder(number))}
        log = self._home / "logs" / f"worker-{number}-{time.time():.0f}.log"
        (self._folder(number) / METRICS_FILE).unlink(missing_ok=True)  # another's
        self._workers[number] = Child(["worker", "--no-supervise"], self._environment | own, log)

    def restart(self) -> None:
        """Start all workers again with a chunk as large as it is in service, and wait until nothing is left to do.

        Whoever waited for scoring is scored when a worker starts.
        """
        del self._environment["XPLAT_WORKER__CHUNK_EVENTS"]
        numbers = list(self._workers)
        for worker in [self._taken_out(number) for number in numbers]:
            worker.stop()
        for number in numbers:
            self.start(number)
        self.until(lambda: self.owns_all, "every worker owns partitions")
        self.until(self._rescores_nobody, "those who waited for scoring are scored")

    def _rescores_nobody(self) -> bool:
        before = self.total("rescored")
        time.sleep(_TWO_SNAPSHOTS_S)
        return self.total("rescored") == before

    def kill(self, number: int) -> None:
        """Kill a worker, as a host that is lost does."""
        worker = self._taken_out(number)
        os.kill(worker.pid, 9)
        with suppress(StackError):
            worker.stop()

    def _taken_out(self, number: int) -> Child:
        """Return a worker that is about to end; what it has counted goes on to count."""
        worker = self._workers.pop(number)
        counted = read_metrics(self._folder(number))
        for name in COUNTED:
            self._gone[name] += getattr(counted, name)
        self._gone_cpu_s += cpu_of([worker.pid])
        return worker

    def stop(self) -> None:
        """End all workers."""
        for worker in self._workers.values():
            worker.stop()

    def _folder(self, number: int) -> Path:
        return self._home / f"worker-{number}"

    def metrics(self) -> list[Metrics]:
        """Return what each running worker has counted."""
        return [read_metrics(self._folder(number)) for number in self._workers]

    def owners(self) -> dict[int, int]:
        """Return partition → number of the worker that has it."""
        return {
            partition: number for number in self._workers for partition in read_metrics(self._folder(number)).partitions
        }

    @property
    def owns_all(self) -> bool:
        """Whether every worker has partitions, and all together have each of them once."""
        owned = [one.partitions for one in self.metrics()]
        return all(owned) and sorted(chain(*owned)) == list(range(self._settings.kafka.partitions))

    def total(self, name: str) -> int:
        """Return a counter, all workers together, those that have ended included."""
        running: int = sum(getattr(one, name) for one in self.metrics())
        return self._gone[name] + running

    @property
    def unread(self) -> int:
        """How many users' scoring waits for the encoder, as workers last said."""
        return sum(one.unread for one in self.metrics())

    def counts(self) -> Counts:
        """Return counters and CPU seconds of now."""
        stack = read_stack(self._home)
        servers = {"triton": stack.triton, "kafka": stack.kafka}
        return Counts(
            {name: self.total(name) for name in COUNTED},
            {
                "worker": cpu_of([worker.pid for worker in self._workers.values()]) + self._gone_cpu_s,
                **{name: cpu_of([one.child.pid] if one and one.child else []) for name, one in servers.items()},
            },
        )

    def until(self, true: Callable[[], bool], what: str) -> None:
        """Wait. Raises `StackError` when it takes too long or a worker ends."""
        deadline = time.monotonic() + _PATIENCE_S
        while not true():
            for worker in self._workers.values():
                worker.check()
            if time.monotonic() > deadline:
                raise StackError(
                    f"{what}: not within {_PATIENCE_S:.0f} s",
                    where=str(self._home / "logs"),
                    expected="workers that keep up",
                    fix="The whole story is in the logs there.",
                )
            time.sleep(_POLL_S)

    def calls(self) -> Totals:
        """Return Triton's own totals of the models: calls, rows, nanoseconds in the queue and of computing."""
        return asyncio.run(self._calls())

    async def _calls(self) -> Totals:
        client = triton.InferenceServerClient(self._settings.triton.url)
        try:
            found: Totals = {}
            for model in (ENCODER, HEAD):
                answer: Any = await client.get_inference_statistics(model, as_json=True)
                stats = [one["inference_stats"] | one for one in answer.get("model_stats", ())]
                found[model] = (
                    sum(int(one["success"].get("count", 0)) for one in stats),
                    sum(int(one.get("inference_count", 0)) for one in stats),
                    sum(int(one["queue"].get("ns", 0)) for one in stats),
                    sum(int(one["compute_infer"].get("ns", 0)) for one in stats),
                )
            return found
        finally:
            await client.close()


Totals = dict[str, tuple[float, ...]]


def calls_between(before: Totals, after: Totals) -> dict[str, ModelCalls]:
    """Return what Triton did in between, model by model."""
    found = {}
    for model, totals in after.items():
        calls, rows, queue_ns, compute_ns = (now - then for now, then in zip(totals, before[model], strict=True))
        each = 1000 * max(1.0, calls)
        found[model] = ModelCalls(int(calls), int(rows), queue_ns / each, compute_ns / each)
    return found


def caught_up(settings: Settings) -> None:
    """Wait until the whole log is read. Raises `StackError`."""
    if not wait_until_caught_up(settings, timeout_s=_PATIENCE_S):
        raise StackError(
            f"the workers did not catch up within {_PATIENCE_S:.0f} s",
            where=settings.kafka.bootstrap,
            expected="every event read",
            fix="Measure with a lower --rate.",
        )


def cpu_of(pids: Iterable[int]) -> float:
    """Return the CPU seconds that processes and all their children have taken."""
    children: dict[int, list[int]] = {}
    used: dict[int, float] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError):  # a process may end while it is looked at
            fields = (folder / "stat").read_text("ascii", "replace").rpartition(")")[2].split()
            children.setdefault(int(fields[1]), []).append(int(folder.name))
            used[int(folder.name)] = (int(fields[11]) + int(fields[12])) / _TICK
    total, waiting = 0.0, list(pids)
    while waiting:
        one = waiting.pop()
        waiting += children.get(one, [])
        total += used.get(one, 0.0)
    return total
