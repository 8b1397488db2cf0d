"""Events and labels of a recorded folder: what `xplat train --dataset` and `xplat evaluate --dataset` read.

The format is `xplat_stream.replay`'s. Its labels are made from the items' own classification, as asked for:
``categories:2-3`` joins the second and third part of an item's category path, ``tags`` takes every tag as a label.
The events are the ones `xplat replay` would publish, each with its labels added as content ids, so that a folder and
a topic go through the same code from there on.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from xplat_stream.errors import DataError
from xplat_stream.replay import Recording, read_recording
from xplat_stream.taxonomy import Label, Taxonomy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from xplat_stream.event import Event, Object

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


class LabelledRecording(NamedTuple):
    """A recording, and the taxonomy its own items make."""

    recording: Recording
    taxonomy: Taxonomy
    platforms: tuple[str, ...]

    def events(self) -> Iterator[Event]:
        """Yield its events in time order."""
        return self.recording.events()


def slug(name: str) -> str:
    """Return a label's name in lower case, words joined by hyphens."""
    return _NOT_A_WORD.sub("-", name.lower()).strip("-")


def read_labelled(folder: Path, rule: LabelRule, *, min_users: int) -> LabelledRecording:
    """Read a recording and make a taxonomy of every label that `min_users` users or more have touched.

    Raises `DataError`: as `read_recording`, and where no label is left.
    """
    recording = read_recording(folder)
    if not recording.lines:
        raise DataError(
            "the recording holds no events",
            where=str(folder),
            expected="events of several users",
            fix="Name another folder.",
        )
    named = {key: rule.names(item) for key, item in recording.items.items()}
    users: dict[str, set[str]] = defaultdict(set)
    for line in recording.lines:
        for name in named.get((line.platform, line.item), ()):
            users[name].add(line.user)
    kept = sorted(name for name, touched in users.items() if len(touched) >= min_users and slug(name))
    if len({slug(name) for name in kept}) < 2:  # noqa: PLR2004 - of one label there is nothing to tell apart
        raise DataError(
            f"{len(kept)} labels with {min_users} users or more, of {len(users)} that its items name",
            where=str(folder),
            expected="two labels or more",
            fix="Correct --labels, or lower --min-label-users.",
        )
    slugs: dict[str, str] = {}
    for name in kept:
        slugs.setdefault(slug(name), name)
    taxonomy = Taxonomy(
        recording.name,
        "1",
        _VENDOR_CATTAX,
        tuple(Label(one, one, name.replace("/", " / "), (one,)) for one, name in slugs.items()),
    )
    for key, names in named.items():
        ids = tuple(sorted({slug(name) for name in names} & slugs.keys()))
        if ids:
            recording.items[key] = msgspec.structs.replace(recording.items[key], iab=ids)
    return LabelledRecording(recording, taxonomy, recording.platforms)
