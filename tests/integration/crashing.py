"""The worker's app, except that an event with the word $POISON crashes it: `faust -A tests.integration.crashing`."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Any

from streams.app import app
from streams.pipeline import Admitted, Pipeline

__all__ = ["app"]

_admit, _finish = Pipeline.admit, Pipeline.finish


def _crashing(self: Pipeline, store: Any, partition: int, records: Any, **options: Any) -> Any:
    values = b"".join(record.value or b"" for record in records)
    if os.environ["POISON"].encode() in values:
        match os.environ["POISON"]:
            case "POISON-SIGNAL":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "POISON-BLOCK":
                time.sleep(1000)
            case "POISON-EXCEPTION":
                raise ZeroDivisionError(values[:100])
    return _admit(self, store, partition, records, **options)


async def _waiting(self: Pipeline, store: Any, partition: int, admitted: Admitted) -> None:
    if os.environ["POISON"] == "POISON-WAIT" and any("POISON-WAIT" in user_id for user_id in admitted.users):
        await asyncio.Event().wait()
    await _finish(self, store, partition, admitted)


Pipeline.admit = _crashing  # type: ignore[method-assign]
Pipeline.finish = _waiting  # type: ignore[method-assign]
