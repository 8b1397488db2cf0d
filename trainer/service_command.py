"""`xplat trainer`: the service on the command line; the work is `trainer.service`."""

from __future__ import annotations

import logging
import signal
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trainer.run.options import USUAL_TEACHERS, TrainOptions
from xplat_stream.errors import XplatError
from xplat_stream.settings import load_settings

if TYPE_CHECKING:
    from trainer.service import Plan
    from xplat_stream.settings import Settings

log = logging.getLogger("xplat.trainer")


def trainer(
    threads: Annotated[int, typer.Option(min=0, help="Cores to use; 0 = all.")] = 0,
    teachers: Annotated[int, typer.Option(min=0, max=9, help="As of `xplat train`.")] = USUAL_TEACHERS,
    once: Annotated[bool, typer.Option("--once", help="Look once, train if that is due, and end.")] = False,
) -> None:
    """Serve: train again when it is time, when enough has happened, or when people have changed."""
    from trainer.service import TrainerService, look

    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    settings = load_settings()
    training = _Training(settings, threads, teachers)
    service = TrainerService(settings, training, partial(look, settings))
    stop = threading.Event()
    if once:
        stop.set()

    def end(*_: Any) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    if not once:
        training.watch()  # what a service before this one promoted
    service.run(stop)


class _Training:
    """Trains on the log as `xplat train` does, and watches what is promoted. A `trainer.service.Train`."""

    def __init__(self, settings: Settings, threads: int, teachers: int) -> None:
        self._settings, self._threads, self._teachers = settings, threads, teachers

    def __call__(self, plan: Plan, *, resume: bool) -> int:
        from trainer.service import FOLDER
        from trainer.train import train

        options = TrainOptions(
            head_only=plan.head_only,
            teachers=self._teachers,
            threads=self._threads,
            checkpoint=str(Path(self._settings.local.home) / FOLDER / "training"),
            resume=resume,
        )
        result = train(self._settings, options)
        if result.promoted:
            self.watch()
        return result.release

    def watch(self) -> None:
        """Watch the active release from now on, beside whatever else is done."""
        threading.Thread(target=_watch, args=(self._settings,), daemon=True).start()


def _watch(settings: Settings) -> None:
    """Roll the active release back where it breaks a limit before its time is over."""
    from xplat_stream.kafka.consumer import active_announcement
    from xplat_stream.watch import watch

    try:
        announced = active_announcement(settings)
        if announced is not None and announced.previous:
            watch(settings, announced)
    except XplatError as error:
        log.warning("the active release is not watched any longer: %s", error)
