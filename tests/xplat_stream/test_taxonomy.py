"""The taxonomy: closed, versioned, unambiguous, and swappable by a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given

from tests.strategies import taxonomies
from xplat_stream.errors import DataError
from xplat_stream.taxonomy import DEFAULT_FILE, Taxonomy, load_taxonomy, parse_taxonomy

if TYPE_CHECKING:
    from pathlib import Path

LABEL = '{"id": "1", "slug": "a", "name": "A"}'


def test_the_shipped_taxonomy_is_whole() -> None:
    """25 labels of IAB Audience 1.1, ids and slugs unique, none of them special-category data."""
    taxonomy = load_taxonomy()
    assert (taxonomy.name, taxonomy.version, taxonomy.cattax, len(taxonomy)) == ("iab-audience", "1.1", 4, 25)
    assert len(set(taxonomy.ids())) == len({label.slug for label in taxonomy.labels}) == 25
    assert not any(label.sensitive for label in taxonomy.labels)


def test_the_order_of_labels_is_pinned() -> None:
    """Scores are stored in label order: it is part of every release."""
    assert load_taxonomy().ids() == (
        "207",
        "243",
        "258",
        "268",
        "338",
        "344",
        "348",
        "359",
        "368",
        "406",
        "422",
        "457",
        "467",
        "481",
        "534",
        "541",
        "581",
        "583",
        "606",
        "607",
        "676",
        "687",
        "706",
        "719",
        "733",
    )


def test_no_word_names_two_labels() -> None:
    """Every slug, name, alias and content id of the shipped file leads to its own label."""
    taxonomy = load_taxonomy()
    for label in taxonomy.labels:
        for word in (label.slug, label.name, *label.aliases):
            assert taxonomy.label_ids(categories=[word]) == (label.id,), word
        for code in label.content_ids:
            assert taxonomy.label_ids(iab=[code]) == (label.id,), code


@pytest.mark.parametrize(
    ("categories", "labels"),
    [
        pytest.param(["Sports > Running"], ("607",), id="coarse-part"),
        pytest.param(["Home & Garden > Books"], ("258",), id="finest-part-wins"),
        pytest.param(["books|literature"], ("258",), id="bar"),
        pytest.param(["FOOD & DRINK"], ("368",), id="case-and-signs"),
        pytest.param(["Travel", "Sports"], ("607", "719"), id="taxonomy-order"),
        pytest.param(["Sports", "sport"], ("607",), id="once"),
        pytest.param(["Quilts"], (), id="unknown"),
        pytest.param([""], (), id="empty"),
    ],
)
def test_categories_name_labels(categories: list[str], labels: tuple[str, ...]) -> None:
    """A platform's own category path counts for the finest part that is known."""
    assert load_taxonomy().label_ids(categories=categories) == labels


@given(taxonomies())
def test_found_labels_are_of_the_taxonomy(taxonomy: Taxonomy) -> None:
    """Whatever is looked up, the answer is a subset of the labels in their order."""
    words = [word for label in taxonomy.labels for word in (label.name, *label.aliases)]
    found = taxonomy.label_ids(categories=words, iab=["c0"])
    assert list(found) == [label for label in taxonomy.ids() if label in found]
    assert taxonomy.ids()[0] in found


@pytest.mark.parametrize(
    ("text", "told"),
    [
        pytest.param("", "truncated", id="empty-file"),
        pytest.param("{", "truncated", id="not-json"),
        pytest.param('{"name": "n", "version": "1", "cattax": 4}', "labels", id="no-labels-field"),
        pytest.param('{"name": "n", "version": "1", "cattax": 4, "labels": []}', "labels is empty", id="no-labels"),
        pytest.param(f'{{"name": "n", "version": "1", "cattax": "x", "labels": [{LABEL}]}}', "$.cattax", id="type"),
        pytest.param(
            '{"name": "n", "version": "1", "cattax": 4, "labels": [{"id": "1", "slug": "a"}]}',
            "$.labels[",
            id="label-without-name",
        ),
        pytest.param(
            f'{{"name": "n", "version": "1", "cattax": 4, "labels": [{LABEL}, {LABEL}]}}', "share the id 1", id="twice"
        ),
    ],
)
def test_a_bad_file_is_told_with_its_place(tmp_path: Path, text: str, told: str) -> None:
    """The error names the file and the place inside it, and what to compare it with."""
    path = tmp_path / "taxonomy.json"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        load_taxonomy(str(path))
    assert str(path) in caught.value.where
    assert told in caught.value.what
    assert DEFAULT_FILE in caught.value.fix


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    """A path that does not exist names itself and the setting."""
    with pytest.raises(DataError, match=r"nowhere\.json.*XPLAT_MODEL__TAXONOMY"):
        load_taxonomy(str(tmp_path / "nowhere.json"))


def test_unknown_fields_are_allowed() -> None:
    """A file may say more than is read, a source for example."""
    raw = f'{{"name": "n", "version": "1", "cattax": 500, "source": "us", "labels": [{LABEL}]}}'
    assert parse_taxonomy(raw.encode(), where="here").ids() == ("1",)
