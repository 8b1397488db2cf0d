"""The peer: Pathway's engine with a stateful reducer and persistence on disk, a commit a second.

What its free edition persists is the input: state is folded again from it after a restart. State cannot be read from
outside, so its output holds the windows too.
"""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
import pathway as pw

from benchmarks.programs.law import Kept, fold

BACKLOG = 200_000
"""Left alone, its reader parses the whole topic into memory far ahead of the folding, and start-up looks like it."""


class Events(pw.Schema):
    """What the engine's own JSON parser takes out of an event."""

    user: str
    name: str
    time: str
    action: str
    item: str


@pw.reducers.stateful_many
def window(state: pw.PyObjectWrapper | None, rows: list[tuple[list[Any], int]]) -> pw.PyObjectWrapper:
    """Fold the events of one commit into one user's window."""
    events: list[Kept] = [] if state is None else list(state.value)
    for (time, name, action, item), _ in rows:
        fold(events, [round(datetime.fromisoformat(time).timestamp() * 1000), name, action, item])
    return pw.PyObjectWrapper(events)


@pw.udf
def published(events: pw.PyObjectWrapper) -> str:
    """Return the output record."""
    return str(orjson.dumps(events.value), "utf-8")


def main() -> None:
    """Run until told to stop."""
    settings = {"bootstrap.servers": os.environ["BENCH_BOOTSTRAP"]}
    events = pw.io.kafka.read(
        {**settings, "group.id": "pathway", "auto.offset.reset": "earliest"},
        os.environ["BENCH_SOURCE"],
        schema=Events,
        format="json",
        json_field_paths={"user": "/data/user_id", "name": "/id", "action": "/data/action", "item": "/data/object/id"},
        autocommit_duration_ms=1000,
        max_backlog_size=BACKLOG,
        name="source",
    )
    windows = events.groupby(events.user).reduce(
        events.user, window=window(events.time, events.name, events.action, events.item)
    )
    changes = windows.to_stream().filter(pw.this.is_upsert)
    pw.io.kafka.write(
        changes.select(pw.this.user, value=published(pw.this.window)),
        {**settings, "partitioner": "murmur2_random", "linger.ms": "5"},
        os.environ["BENCH_OUTPUT"],
        format="plaintext",
        key=pw.this.user,
        value=pw.this.value,
    )
    backend = pw.persistence.Backend.filesystem(Path(os.environ["BENCH_FOLDER"]) / "persistence")
    pw.run(
        monitoring_level=pw.MonitoringLevel.NONE,
        persistence_config=pw.persistence.Config(backend, snapshot_interval_ms=1000),
    )


if __name__ == "__main__":
    main()
