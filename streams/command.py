"""`xplat worker`: check everything a worker needs, then run one and start it again when it stops."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from streams.store import claim
from streams.supervisor import Supervisor
from xplat_stream.errors import TritonUnavailable
from xplat_stream.kafka.topics import check_topics, platforms_on
from xplat_stream.serving import TritonScorer
from xplat_stream.settings import Settings, load_settings
from xplat_stream.taxonomy import load_taxonomy


def worker(
    loglevel: Annotated[str, typer.Option(help="debug, info, warning, error")] = "info",
    supervise: Annotated[
        bool, typer.Option(help="Start the worker again when it stops; else become it, for a supervisor of your own.")
    ] = True,
) -> None:
    """Run one worker process until it is stopped (SIGTERM; what is under way is read again)."""
    settings = load_settings()
    check(settings)
    # The worker starts on every platform that has a topic, not only on the configured ones.
    platforms = sorted({*settings.platforms, *platforms_on(settings)})
    # Faust reads sys.argv when it is imported, so it gets a process image with arguments of its own.
    arguments = [
        sys.executable,
        "-m",
        "faust",
        "-A",
        "streams.app",
        "-L",
        "uvloop",
        "--datadir",
        settings.worker.datadir,
        "worker",
        "--without-web",
        "--loglevel",
        loglevel,
    ]
    sys.stdout.flush()
    # A second thread for numpy's small products spins while it waits, which took a quarter of a worker's time.
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "XPLAT_PLATFORMS": ",".join(platforms)}
    if supervise:
        raise typer.Exit(Supervisor(arguments, environment, Path(settings.worker.datadir)).run())
    os.execve(sys.executable, arguments, environment)  # noqa: S606 - no shell is wanted


def check(settings: Settings) -> None:
    """See that Kafka, topics, taxonomy and state folder are usable. Raises `OperatorError`.

    A model server that is away is told and no obstacle: profiles are degraded until it is there.
    """
    load_taxonomy(settings.model.taxonomy)
    check_topics(settings)
    try:
        asyncio.run(_check_triton(settings))
    except TritonUnavailable as error:
        sys.stderr.write(f"xplat worker: {error} Profiles are degraded until then.\n")
    os.close(claim(Path(settings.worker.datadir)))  # the worker claims it again once it is one


async def _check_triton(settings: Settings) -> None:
    async with TritonScorer(settings.triton) as scorer:
        await scorer.require_ready()
