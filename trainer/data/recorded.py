"""Events and labels of a recorded folder: what `xplat train --dataset` and `xplat evaluate --dataset` read.

The format is `xplat_stream.replay`'s. Its labels are made from the items' own classification, as asked for:
``categories:2-3`` joins the second and third part of an item's category path, ``tags`` takes every tag as a label.
The events are the ones `xplat replay` would publish, each with its labels added as content ids, so that a folder and
a topic go through the same code from there on. They are read from the files whenever they are asked for: a recording
may be larger than memory, its items may not.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from trainer.data.exclusions import FUTURE, LONG_TEXTS
from xplat_stream.errors import DataError
from xplat_stream.event import CLOCK_TOLERANCE_MS, MAX_ID_CHARS, MAX_TEXT_CHARS
from xplat_stream.replay import open_recording
from xplat_stream.taxonomy import Label, Taxonomy

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from xplat_stream.event import Event, Object
    from xplat_stream.replay import RecordedFolder

_VENDOR_CATTAX: Final = 500
_RULE: Final = re.compile(r"tags|categories:([1-9])(?:-([1-9]))?")
_NOT_A_WORD: Final = re.compile(r"[^a-z0-9]+")


class LabelRule(NamedTuple):
    """Which part of an item's classification names its labels. `first` 0: its tags."""

    first: int
    last: int

    @classmethod
    def parse(cls, words: str) -> LabelRule:
        """Read ``tags``, ``categories:2`` or ``categories:2-3``. Raises `DataError`."""
        found = _RULE.fullmatch(words)
        first = int(found[1] or 0) if found else 0
        last = int(found[2] or first) if found else 0
        if found is None or last < first:
            raise DataError(
                f"labels {words!r} cannot be read",
                where="--labels",
                expected="tags, categories:N or categories:N-M with N up to M, counted from 1",
                fix="Correct --labels; categories:1 takes the coarsest part of every path.",
            )
        return cls(first, last)

    def names(self, item: Object) -> tuple[str, ...]:
        """Return the names of the labels of an item; none where its path is too short."""
        if not self.first:
            return item.tags
        found = []
        for path in item.categories:
            parts = [part.strip() for part in path.split(">")]
            if len(parts) >= self.last:
                found.append("/".join(parts[self.first - 1 : self.last]))
        return tuple(found)

    def parent(self, name: str) -> str:
        """Return the slug of the path above a label's own; empty where there is none. Tags have none."""
        above = slug(name.rpartition("/")[0]) if self.first else ""
        return above if above != slug(name) else ""


class LabelledRecording(NamedTuple):
    """A recording, and the taxonomy its own items make. Its events stay on disk."""

    recording: RecordedFolder
    taxonomy: Taxonomy
    platforms: tuple[str, ...]
    lines: int
    """Events in it, those that are excluded not counted."""
    excluded: dict[str, int]
    """What does not count → how often."""
    noted: dict[str, int]
    """What counts all the same, and should be known → how often."""
    latest_ms: int
    """An event dated later than this is excluded: a worker would reject it."""

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.recording.name

    def events(self) -> Iterator[Event]:
        """Yield its events in the order of the file, read anew each time."""
        for line in self.recording.lines():
            if line.occurred_at <= self.latest_ms:
                yield self.recording.event_of(line)


def slug(name: str) -> str:
    """Return a label's name in lower case, words joined by hyphens."""
    return _NOT_A_WORD.sub("-", name.lower()).strip("-")


def read_labelled(folder: Path, rule: LabelRule, *, min_users: int) -> LabelledRecording:
    """Read a recording and make a taxonomy of every label that `min_users` users or more have touched.

    The items are held in memory, the events are not. Raises `DataError`: as `open_recording`, for a bad line, where
    there is no event to count, and where no two labels are left.
    """
    recording = open_recording(folder)
    latest_ms = time.time_ns() // 1_000_000 + CLOCK_TOLERANCE_MS
    named = {key: _label_names(rule, item) for key, item in recording.items.items()}
    seen = _seen(recording, named, min_users, latest_ms)
    if not seen.lines:
        raise DataError(
            f"the recording holds no events ({seen.future} dated in the future)",
            where=str(folder),
            expected="events of several users",
            fix="Name another folder, or correct its times: Unix seconds.",
        )
    kept = sorted(name for name, touched in seen.users.items() if len(touched) >= min_users and slug(name))
    slugs: dict[str, str] = {}
    for name in kept:
        slugs.setdefault(slug(name), name)
    if len(slugs) < 2:  # noqa: PLR2004 - of one label there is nothing to tell apart
        raise DataError(
            f"{len(slugs)} labels with {min_users} users or more, of {len(seen.users)} that its items name",
            where=str(folder),
            expected="two labels or more",
            fix="Correct --labels, or lower --min-label-users.",
        )
    parents = {one: rule.parent(name) for one, name in slugs.items()}
    taxonomy = Taxonomy(
        recording.name,
        "1",
        _VENDOR_CATTAX,
        tuple(Label(one, one, name.replace("/", " / "), (one,), parent=parents[one]) for one, name in slugs.items()),
        tuple(sorted({*parents.values()} - {"", *slugs})),
    )
    noted = _described(recording, {key: {slug(name) for name in names} & slugs.keys() for key, names in named.items()})
    excluded = {
        FUTURE: seen.future,
        "items described again": recording.described_again,
        "labels of too few users in the recording": len(seen.users) - len(kept),
    }
    return LabelledRecording(
        recording,
        taxonomy,
        tuple(sorted(seen.platforms)),
        seen.lines,
        excluded,
        {**noted, "events of items nobody described": seen.undescribed},
        latest_ms,
    )


def _label_names(rule: LabelRule, item: Object) -> tuple[str, ...]:
    """Return the labels an item names; a name longer than an id may be is none."""
    return tuple(name for name in rule.names(item) if len(name) <= MAX_ID_CHARS)


class _Seen(NamedTuple):
    """What one pass over the lines found."""

    users: dict[str, set[str]]
    """Label name → users who touched it, as many as are asked for at the most."""
    platforms: set[str]
    lines: int
    future: int
    undescribed: int


def _seen(
    recording: RecordedFolder, named: Mapping[tuple[str, str], tuple[str, ...]], min_users: int, latest_ms: int
) -> _Seen:
    users: dict[str, set[str]] = defaultdict(set)
    platforms: set[str] = set()
    lines = future = undescribed = 0
    for line in recording.lines():
        if line.occurred_at > latest_ms:
            future += 1
            continue
        lines += 1
        platforms.add(line.platform)
        names = named.get((line.platform, line.item))
        undescribed += names is None
        for name in names or ():
            touched = users[name]
            if len(touched) < min_users:
                touched.add(line.user)
    return _Seen(users, platforms, lines, future, undescribed)


def _described(recording: RecordedFolder, labels: Mapping[tuple[str, str], set[str]]) -> dict[str, int]:
    """Write the labels into the items, cut what nobody reads of long titles, and count what items lack."""
    items = recording.items
    noted = {"items without a title": 0, LONG_TEXTS: 0, "items without a label": 0}
    for key, item in items.items():
        noted["items without a title"] += not item.title
        noted[LONG_TEXTS] += len(item.title) > MAX_TEXT_CHARS
        noted["items without a label"] += not labels[key]
        ids = tuple(sorted(labels[key]))
        if ids or len(item.title) > MAX_TEXT_CHARS:
            items[key] = msgspec.structs.replace(item, title=item.title[:MAX_TEXT_CHARS], iab=ids)
    return noted
