"""A versioned, closed list of interests. Pure: reads the text it is given, never a path of its own but the default's.

The default is the tier-2 branch "Interest" of the IAB Tech Lab Audience Taxonomy 1.1 (CC BY 3.0), without the four
health and politics labels that are special-category data under the GDPR. Any team can swap the file.
"""

from __future__ import annotations

import re
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import msgspec

from xplat_stream.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

DEFAULT_FILE: Final = "iab_audience_1_1.json"
_CLASSIFICATIONS: Final = 4096
"""Combinations of content ids and categories whose labels are held in memory: few are in use, whatever there is."""

_WORDS = re.compile(r"[^a-z0-9]+")


class Label(msgspec.Struct, frozen=True):
    """One interest. A `sensitive` one is scored and never published, but for a purpose: see `Taxonomy.for_purpose`.

    `id` is the taxonomy's own; `content_ids` are IAB Content Taxonomy 3.1 ids of items about it; `aliases` are other
    words platforms use for it in their categories; `parent` is the id of the label or group that it is part of.
    """

    id: str
    slug: str
    name: str
    content_ids: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    description: str = ""
    sensitive: bool = False
    parent: str = ""


class Taxonomy(msgspec.Struct, frozen=True, cache_hash=True):
    """A named, versioned, ordered list of labels. The order is part of a model release.

    `cattax` is the AdCOM code of the taxonomy (4 = Audience 1.1; 500 and above are vendor-specific). `groups` are ids
    that labels name as their parent and that nobody is scored for.
    """

    name: str
    version: str
    cattax: int
    labels: tuple[Label, ...]
    groups: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field in ("id", "slug"):
            values = [getattr(label, field) for label in self.labels]
            twice = sorted({value for value in values if values.count(value) > 1})
            if twice:
                message = f"labels share the {field} {', '.join(twice)}"
                raise ValueError(message)
        if not self.labels:
            message = "labels is empty"
            raise ValueError(message)
        self._check_parents()

    def _check_parents(self) -> None:
        parents = {label.id: label.parent for label in self.labels}
        known = {"", *parents, *self.groups}
        unknown = sorted({parent for parent in parents.values() if parent not in known})
        if unknown:
            message = f"no label or group is the parent {', '.join(unknown)}"
            raise ValueError(message)
        both = sorted(parents.keys() & set(self.groups))
        if both:
            message = f"label and group at once: {', '.join(both)}"
            raise ValueError(message)
        for one in parents:
            if one in self._above(one, parents):
                message = f"the label {one} is its own parent"
                raise ValueError(message)

    @staticmethod
    def _above(label: str, parents: Mapping[str, str]) -> list[str]:
        """Return the parent of a label, its parent's, and so on; of a circle each member once."""
        found: list[str] = []
        while (label := parents.get(label, "")) and label not in found:
            found.append(label)
        return found

    def families(self) -> list[tuple[int, ...]]:
        """Return, for every label or group with others below it, the positions of all of them, its own included.

        None of a single label: it would say the same again.
        """
        parents = {label.id: label.parent for label in self.labels}
        found: dict[str, list[int]] = {}
        for position, label in enumerate(parents):
            for one in (label, *self._above(label, parents)):
                found.setdefault(one, []).append(position)
        return [tuple(family) for family in found.values() if len(family) > 1]

    def keeping(self, positions: Iterable[int]) -> Self:
        """Return the taxonomy with these labels only. Where a parent is left out, its own takes its place."""
        kept = [self.labels[position] for position in positions]
        parents = {label.id: label.parent for label in self.labels}
        named = {label.id for label in kept} | set(self.groups)
        labels = tuple(
            msgspec.structs.replace(
                label, parent=next((one for one in self._above(label.id, parents) if one in named), "")
            )
            for label in kept
        )
        return msgspec.structs.replace(self, labels=labels)

    def __len__(self) -> int:
        return len(self.labels)

    def ids(self) -> tuple[str, ...]:
        """Return the label ids in order."""
        return tuple(label.id for label in self.labels)

    def for_purpose(self, purpose: str) -> Taxonomy:
        """Return the taxonomy as a worker may publish it: with a purpose stated, sensitive labels as any other."""
        if not purpose:
            return self
        labels = tuple(msgspec.structs.replace(label, sensitive=False) for label in self.labels)
        return msgspec.structs.replace(self, labels=labels)

    def label_ids(self, *, iab: Iterable[str] = (), categories: Iterable[str] = ()) -> tuple[str, ...]:
        """Return the ids of the labels an item's own classification names, in taxonomy order.

        A category path counts for the finest part that is a label, slug, name or alias.
        """
        return _label_ids(self, tuple(iab), tuple(categories))


@lru_cache(maxsize=16)
def _vocabulary(taxonomy: Taxonomy) -> tuple[dict[str, str], dict[str, str]]:
    by_content = {content: label.id for label in taxonomy.labels for content in label.content_ids}
    by_word = {
        _normal(word): label.id for label in taxonomy.labels for word in (label.slug, label.name, *label.aliases)
    }
    return by_content, by_word


@lru_cache(maxsize=_CLASSIFICATIONS)
def _label_ids(taxonomy: Taxonomy, iab: tuple[str, ...], categories: tuple[str, ...]) -> tuple[str, ...]:
    by_content, by_word = _vocabulary(taxonomy)
    found = {by_content[code] for code in iab if code in by_content}
    for path in categories:
        for part in reversed(re.split(r"[>|/]", path)):
            label = by_word.get(_normal(part))
            if label is not None:
                found.add(label)
                break
    return tuple(label.id for label in taxonomy.labels if label.id in found)


def _normal(word: str) -> str:
    return _WORDS.sub(" ", word.lower()).strip()


def parse_taxonomy(raw: bytes, *, where: str) -> Taxonomy:
    """Parse a taxonomy file. Raises `DataError` naming the place inside the file."""
    try:
        return msgspec.json.decode(raw, type=Taxonomy)
    except (msgspec.MsgspecError, ValueError) as error:
        raise DataError(
            f"taxonomy cannot be read: {error}",
            where=where,
            expected="JSON with name, version, cattax and labels of {id, slug, name}, parents among them",
            fix=f"Compare it with the shipped {DEFAULT_FILE}.",
        ) from error


def load_taxonomy(path: str = "") -> Taxonomy:
    """Return the taxonomy in `path`, or the shipped one. Raises `DataError`."""
    if not path:
        return parse_taxonomy(files("xplat_stream").joinpath(DEFAULT_FILE).read_bytes(), where=DEFAULT_FILE)
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise DataError(
            f"taxonomy file cannot be opened: {error.strerror}",
            where=path,
            expected="a readable JSON file",
            fix="Correct XPLAT_MODEL__TAXONOMY, or unset it for the shipped taxonomy.",
        ) from error
    return parse_taxonomy(raw, where=path)
