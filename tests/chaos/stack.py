"""A real Kafka and a real Triton, each behind a proxy, to be killed and started again in place.

Workers go through the proxies; producers, the oracle and the health checks go directly, so that what breaks the
workers' network never hides what they did.
"""

from __future__ import annotations

import os
import shutil
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Self

import msgspec

from tests.chaos.proxy import Proxy
from xplat_stream.local import health, kafka, triton
from xplat_stream.local.kafka import Listener
from xplat_stream.local.process import LOOPBACK, Child, alive, choose_port, last_words, spawn, stop, wait_for
from xplat_stream.settings import KafkaSettings, LocalSettings, ModelSettings, Settings, TritonSettings, WorkerSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

CONFIGURATIONS = Path(__file__).resolve().parents[2] / "model_repo"
HEALTHY_WITHIN_S = 90.0
GONE_WITHIN_S = 30.0


class Server:
    """A child process that is started, ended and started again with the same command, disk and address."""

    def __init__(
        self, command: Sequence[str], *, log: Path, env: Mapping[str, str], answers: Callable[[], bool]
    ) -> None:
        self._command = command
        self._log = log
        self._env = env
        self._answers = answers
        self._child: Child | None = None

    @property
    def running(self) -> bool:
        """Whether it lives."""
        return self._child is not None and alive(self._child)

    @property
    def pid(self) -> int:
        """The process that was started last."""
        assert self._child is not None
        return self._child.pid

    def start(self) -> None:
        """Start it and wait until it answers. Raises `RuntimeError` with its last words when it does not."""
        child = self._child = spawn(self._command, log=self._log, env=self._env)
        wait_for(lambda: not alive(child) or self._answers(), timeout_s=HEALTHY_WITHIN_S)
        if not alive(child) or not self._answers():
            message = f"{self._log.stem} does not answer: {last_words(self._log)}"
            raise RuntimeError(message)

    def end(self, number: int = signal.SIGKILL) -> None:
        """Send a signal, to its whole group where it cannot be handled, and wait until it is gone."""
        child = self._child
        assert child is not None
        (os.killpg if number == signal.SIGKILL else os.kill)(child.pid, number)
        if not wait_for(lambda: not alive(child), timeout_s=GONE_WITHIN_S):
            stop(child, patience_s=0)

    def close(self) -> None:
        """End it, whatever state it is in."""
        if self._child is not None:
            stop(self._child, patience_s=GONE_WITHIN_S)


class Stack:
    """Both servers and both proxies. Use it as a context manager."""

    def __init__(self, folder: Path, *, app: str = "chaos", partitions: int = 4) -> None:
        """Everything of the stack lies in `folder`."""
        self._home = folder / "stack"
        repository = folder / "model_repo"
        for config in CONFIGURATIONS.glob("*/config.pbtxt"):
            (repository / config.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(config, repository / config.parent.name)
        (self._home / "logs").mkdir(parents=True, exist_ok=True)
        broker, self._controller, self._behind, model, self._http, self._metrics = (_port() for _ in range(6))
        self.kafka_proxy = Proxy(self._behind, port=_port())
        self.triton_proxy = Proxy(model, port=_port())
        self.settings = Settings(
            kafka=KafkaSettings(bootstrap=f"{LOOPBACK}:{broker}", partitions=partitions),
            triton=TritonSettings(url=f"{LOOPBACK}:{model}", deadline_s=2.0),
            model=ModelSettings(repository=str(repository)),
            local=LocalSettings(home=str(self._home)),
            worker=WorkerSettings(app=app, session_timeout_s=6.0, chunk_events=200, metadata_interval_s=2.0),
        )
        self._broker, self._model = broker, model
        self._ending = ExitStack()
        self.kafka: Server
        self.triton: Server

    def behind_proxies(self, settings: Settings) -> Settings:
        """Return these settings with the addresses that workers are given."""
        return msgspec.structs.replace(
            settings,
            kafka=msgspec.structs.replace(settings.kafka, bootstrap=f"{LOOPBACK}:{self.kafka_proxy.port}"),
            triton=msgspec.structs.replace(settings.triton, url=f"{LOOPBACK}:{self.triton_proxy.port}"),
        )

    def __enter__(self) -> Self:
        with self._ending:
            self._ending.enter_context(self.kafka_proxy)
            self._ending.enter_context(self.triton_proxy)
            self.kafka = self._server(
                "kafka",
                kafka.command(
                    home=self._home,
                    port=self._broker,
                    controller_port=self._controller,
                    heap_mb=self.settings.local.kafka_heap_mb,
                    report=lambda _: None,
                    behind=Listener(self._behind, self.kafka_proxy.port),
                ),
                os.environ,
                self._kafka_answers,
            )
            self.kafka.start()
            self.start_triton()
            self._ending = self._ending.pop_all()
        return self

    def start_triton(self) -> None:
        """Start Triton with every model that can be loaded by now."""
        command = triton.command(
            home=self._home,
            repository=Path(self.settings.model.repository),
            port=self._model,
            http_port=self._http,
            metrics_port=self._metrics,
        )
        self.triton = self._server(
            "triton",
            command,
            triton.environment(),
            lambda: health.triton_answers(self.settings.triton.url, timeout_s=2),
        )
        self.triton.start()

    def _server(self, name: str, command: Sequence[str], env: Mapping[str, str], answers: Callable[[], bool]) -> Server:
        server = Server(command, log=self._home / "logs" / f"{name}.log", env=env, answers=answers)
        self._ending.callback(server.close)
        return server

    def _kafka_answers(self) -> bool:
        address = self.settings.kafka.bootstrap
        return health.kafka_answers(address, timeout_s=2) and health.kafka_accepts(address, timeout_s=5)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.close()


def _port() -> int:
    return choose_port(wanted=0, previous=0, variable="")
