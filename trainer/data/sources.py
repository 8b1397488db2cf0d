"""Where a log comes from, and what of it is kept for the next run.

A **source** yields events and has an identity: whatever changes what it yields changes that. The **cache** holds logs
and examples under their identity, so that the next run on the same log begins with the examples: a head-only refresh
then costs the head alone.
"""

from __future__ import annotations

import os
import shutil
from functools import cached_property
from hashlib import blake2b, sha256
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import msgspec
import numpy as np

from trainer.data.histories import Log, gather, open_log
from trainer.data.recorded import LabelRule, read_labelled
from xplat_stream.errors import DataError, RejectedEvent
from xplat_stream.kafka.log import behavior_spans, read_behavior
from xplat_stream.kafka.topics import topic_facts
from xplat_stream.replay import recording_files
from xplat_stream.taxonomy import load_taxonomy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from trainer.data.recorded import LabelledRecording
    from trainer.run.progress import Report
    from xplat_stream.event import Event
    from xplat_stream.kafka.log import Span
    from xplat_stream.settings import Settings
    from xplat_stream.taxonomy import Taxonomy

FORMAT: Final = 3
"""Of what the cache holds; another number leaves older entries unread."""

_KEPT_LOGS: Final = 3
_REPORT_EVERY: Final = 2000


class Source(Protocol):
    """A log that can be read."""

    @property
    def name(self) -> str:
        """What errors and reports call it."""

    @property
    def taxonomy(self) -> Taxonomy:
        """The labels it is read for."""

    @property
    def expected(self) -> int:
        """About how many events there are."""

    @property
    def by_content(self) -> bool:
        """Whether an event has no id of its own: two of one content are then one event twice."""

    @property
    def excluded(self) -> Mapping[str, int]:
        """What was left out → how often; complete when all events were read."""

    def identity(self) -> Any:
        """Return what, as JSON, tells this log from every other."""

    def events(self) -> Iterator[Event]:
        """Yield the events, in any order."""


class TopicSource:
    """Every `behavior.<platform>.v1` topic up to its present end, admitted as the worker does."""

    name = "behavior.*.v1"
    by_content = False

    def __init__(self, settings: Settings, report: Report | None = None, within: Sequence[Span] | None = None) -> None:
        """`within`: the stretches to read; none given: all there is now.

        Raises `KafkaUnavailable`, `DataError` for the taxonomy.
        """
        self._settings, self._report = settings, report
        self._held = behavior_spans(settings) if within is None else list(within)
        self.taxonomy = load_taxonomy(settings.model.taxonomy)
        self.expected = sum(span.end - span.start for span in self._held)
        self.excluded = {"records rejected": 0, "events without consent": 0}

    def identity(self) -> Any:
        """See `Source`: Kafka's own topic ids, and which offsets are read. Raises `KafkaUnavailable`."""
        topics = sorted({span.topic for span in self._held})
        ids = {topic: topic_facts(self._settings, topic).topic_id for topic in topics}
        return {"topics": ids, "spans": self._held, "taxonomy": self.taxonomy}

    def events(self) -> Iterator[Event]:
        """See `Source`. Raises `KafkaUnavailable`, `DeliveryError`."""
        for seen, (event, _) in enumerate(read_behavior(self._settings, self._held), 1):
            if isinstance(event, RejectedEvent):
                self.excluded["records rejected"] += 1
            elif event is None:
                self.excluded["events without consent"] += 1
            else:
                yield event
            if self._report is not None and seen % _REPORT_EVERY == 0:
                self._report("read", seen, self.expected, {"rejected": self.excluded["records rejected"]})


class FolderSource:
    """A recorded folder, its taxonomy made of its own items."""

    by_content = True

    def __init__(self, folder: Path, rule: str, *, min_users: int, report: Report | None = None) -> None:
        """`rule`: see `LabelRule.parse`. Raises `DataError` where folder or rule is not one."""
        self.name = str(folder)
        self._folder, self._rule, self._min_users, self._report = folder, rule, min_users, report
        self._files = recording_files(folder)
        LabelRule.parse(rule)

    @cached_property
    def _labelled(self) -> LabelledRecording:
        return read_labelled(self._folder, LabelRule.parse(self._rule), min_users=self._min_users)

    @property
    def taxonomy(self) -> Taxonomy:
        """See `Source`. Raises `DataError`: the first time it is asked for, the recording is read once for it."""
        return self._labelled.taxonomy

    @property
    def expected(self) -> int:
        """See `Source`."""
        return self._labelled.lines

    @property
    def excluded(self) -> Mapping[str, int]:
        """See `Source`; what counts and should be known all the same is there too."""
        return {**self._labelled.excluded, **self._labelled.noted}

    def identity(self) -> Any:
        """See `Source`: name and checksums of the files, and how labels are made. The items are not read for it."""
        return {
            "folder": self._folder.resolve().name,
            "files": [_checksum(path) for path in self._files],
            "labels": self._rule,
            "min_users": self._min_users,
        }

    def events(self) -> Iterator[Event]:
        """See `Source`. Raises `DataError` naming the file and the line."""
        for seen, event in enumerate(self._labelled.events(), 1):
            yield event
            if self._report is not None and seen % _REPORT_EVERY == 0:
                self._report("read", seen, self.expected, {})


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        digest = sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class CachedLog(NamedTuple):
    """A log and the folder it lies in, where examples made of it can lie beside it."""

    log: Log
    folder: Path

    def arrays(self, key: Any, make: Callable[[], Mapping[str, NDArray[Any]]]) -> Mapping[str, NDArray[Any]]:
        """Return the arrays kept under `key` (anything JSON can hold), memory-mapped; made where they are not there.

        What is written to them afterwards stays in this process.
        """
        folder = self.folder / f"examples-{_digest(key)}"
        if not folder.is_dir():
            with _appearing(folder) as staged:
                for name, array in make().items():
                    np.save(staged / f"{name}.npy", array)
        return {path.stem: np.load(path, mmap_mode="c") for path in sorted(folder.glob("*.npy"))}


def cached_log(source: Source, root: Path) -> CachedLog:
    """Return a source's log from the cache in `root`, read into it where it is not there.

    The logs used last are kept, three of them. Raises what reading the source raises, `DataError` for a disk that
    refuses.
    """
    folder = root / f"log-{_digest(source.identity())}"
    try:
        if not folder.is_dir():
            with _appearing(folder) as staged:
                gather(
                    source.name,
                    source.events(),
                    source.taxonomy,
                    folder=staged,
                    expected=source.expected,
                    by_content=source.by_content,
                    excluded=lambda: source.excluded,
                )
        os.utime(folder)
        _forget_oldest(root)
        return CachedLog(open_log(folder), folder)
    except OSError as error:
        raise DataError(
            f"the cache cannot be used: {error.strerror or error}",
            where=str(error.filename or root),
            expected="a writable folder with room for 80 bytes an event",
            fix="Make room, delete the folder (it is made again), or set XPLAT_LOCAL__HOME to another disk.",
        ) from error


class _appearing:  # noqa: N801 - reads as a verb: `with _appearing(folder) as staged`
    """A folder that is there whole or not at all: a run that is killed leaves nothing that a later one could read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._staged = folder.with_name(f".{folder.name}.{os.getpid()}")

    def __enter__(self) -> Path:
        shutil.rmtree(self._staged, ignore_errors=True)
        self._staged.mkdir(parents=True)
        return self._staged

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and not self._folder.is_dir():  # another run may have been faster with the same
            self._staged.rename(self._folder)
        shutil.rmtree(self._staged, ignore_errors=True)


def _forget_oldest(root: Path) -> None:
    logs = sorted(root.glob("log-*"), key=lambda folder: folder.stat().st_mtime, reverse=True)
    for folder in logs[_KEPT_LOGS:]:
        shutil.rmtree(folder, ignore_errors=True)


def _digest(identity: Any) -> str:
    return blake2b(msgspec.json.encode([FORMAT, identity]), digest_size=12).hexdigest()
