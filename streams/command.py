"""`xplat worker`: check everything a worker needs, then become one."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from streams.store import claim
from xplat_stream.kafka.topics import check_topics, platforms_on
from xplat_stream.serving import TritonScorer
from xplat_stream.settings import Settings, load_settings
from xplat_stream.taxonomy import load_taxonomy


def worker(
    loglevel: Annotated[str, typer.Option(help="debug, info, warning, error")] = "info",
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
    environment = {**os.environ, "XPLAT_PLATFORMS": ",".join(platforms)}
    os.execve(sys.executable, arguments, environment)  # noqa: S606 - no shell is wanted


def check(settings: Settings) -> None:
    """See that Kafka, topics, Triton, taxonomy and state folder are usable. Raises `OperatorError`."""
    load_taxonomy(settings.model.taxonomy)
    check_topics(settings)
    asyncio.run(_check_triton(settings))
    os.close(claim(Path(settings.worker.datadir)))  # the worker claims it again once it is one


async def _check_triton(settings: Settings) -> None:
    async with TritonScorer(settings.triton) as scorer:
        await scorer.require_ready()
