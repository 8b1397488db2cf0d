"""The worker's app, except that an event with the word $POISON crashes it: `faust -A tests.integration.crashing`."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Any

from streams.app import app
from streams.pipeline import Pipeline

__all__ = ["app"]

_admit, _handle = Pipeline.admit, Pipeline.handle


def _crashing(self: Pipeline, store: Any, partition: int, records: Any) -> Any:
    values = b"".join(record.value or b"" for record in records)
    if os.environ["POISON"].encode() in values:
        match os.environ["POISON"]:
            case "POISON-SIGNAL":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "POISON-BLOCK":
                time.sleep(1000)
            case "POISON-EXCEPTION":
                raise ZeroDivisionError(values[:100])
    return _admit(self, store, partition, records)


async def _waiting(self: Pipeline, store: Any, partition: int, records: Any, **options: Any) -> int:
    if os.environ["POISON"] == "POISON-WAIT" and any(b"POISON-WAIT" in (record.value or b"") for record in records):
        await asyncio.Event().wait()
    return await _handle(self, store, partition, records, **options)


Pipeline.admit = _crashing  # type: ignore[method-assign]
Pipeline.handle = _waiting  # type: ignore[method-assign]
