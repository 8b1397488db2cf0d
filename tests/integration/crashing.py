"""The worker's app, except that an event with the word $POISON crashes it: `faust -A tests.integration.crashing`."""

from __future__ import annotations

import os
import signal
from typing import Any

from streams.app import app
from streams.pipeline import Pipeline

__all__ = ["app"]

_admit = Pipeline.admit


def _crashing(self: Pipeline, store: Any, partition: int, records: Any) -> Any:
    values = b"".join(record.value or b"" for record in records)
    if os.environ["POISON"].encode() in values:
        if os.environ["POISON"] == "POISON-SIGNAL":
            os.kill(os.getpid(), signal.SIGSEGV)
        raise ZeroDivisionError(values[:100])
    return _admit(self, store, partition, records)


Pipeline.admit = _crashing  # type: ignore[method-assign]
