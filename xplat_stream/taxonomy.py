"""A versioned, closed list of interests. Pure: reads the text it is given, never a path of its own but the default's.

The default is the tier-2 branch "Interest" of the IAB Tech Lab Audience Taxonomy 1.1 (CC BY 3.0), without the four
health and politics labels that are special-category data under the GDPR. Any team can swap the file.
"""

from __future__ import annotations

import re
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from xplat_stream.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable

DEFAULT_FILE: Final = "iab_audience_1_1.json"
_CLASSIFICATIONS: Final = 4096
"""Combinations of content ids and categories whose labels are held in memory: few are in use, whatever there is."""

_WORDS = re.compile(r"[^a-z0-9]+")


class Label(msgspec.Struct, frozen=True):
    """One interest. A `sensitive` one is scored and never published, but for a purpose: see `Taxonomy.for_purpose`.

    `id` is the taxonomy's own; `content_ids` are IAB Content Taxonomy 3.1 ids of items about it; `aliases` are other
    words platforms use for it in their categories.
    """

    id: str
    slug: str
    name: str
    content_ids: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    description: str = ""
    sensitive: bool = False


class Taxonomy(msgspec.Struct, frozen=True, cache_hash=True):
    """A named, versioned, ordered list of labels. The order is part of a model release.

    `cattax` is the AdCOM code of the taxonomy (4 = Audience 1.1; 500 and above are vendor-specific).
    """

    name: str
    version: str
    cattax: int
    labels: tuple[Label, ...]

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
            expected="JSON with name, version, cattax and labels of {id, slug, name}",
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
