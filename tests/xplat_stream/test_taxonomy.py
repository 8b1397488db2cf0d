"""The taxonomy: closed, versioned, unambiguous, and swappable by a file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import given

from tests.strategies import taxonomies
from xplat_stream.errors import DataError
from xplat_stream.taxonomy import DEFAULT_FILE, Label, Taxonomy, load_taxonomy, parse_taxonomy

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


def tree() -> Taxonomy:
    """Face and eyes of make-up, which is beauty; tools, a group; hair, alone in its own."""
    labels = (
        Label("beauty", "beauty", "Beauty"),
        Label("makeup", "makeup", "Make-up", parent="beauty"),
        Label("face", "face", "Face", parent="makeup"),
        Label("brush", "brush", "Brushes", parent="tools"),
        Label("mirror", "mirror", "Mirrors", parent="tools"),
        Label("hair", "hair", "Hair", parent="care"),
    )
    return Taxonomy("tree", "1", 500, labels, ("tools", "care"))


def test_families_hold_all_below() -> None:
    """A parent with what lies below it at any depth, a group without itself; none of one label."""
    assert sorted(tree().families()) == [(0, 1, 2), (1, 2), (3, 4)]
    assert load_taxonomy().families() == []


def test_a_label_left_out_leaves_its_parent() -> None:
    """Of fewer labels each keeps the nearest parent that is left; a group left with one label is no family."""
    fewer = tree().keeping([2, 0, 4])
    assert [(label.id, label.parent) for label in fewer.labels] == [
        ("face", "beauty"),
        ("beauty", ""),
        ("mirror", "tools"),
    ]
    assert fewer.families() == [(0, 1)]


@pytest.mark.parametrize(
    ("labels", "groups", "words"),
    [
        pytest.param([("a", "b")], (), "no label or group is the parent b", id="unknown"),
        pytest.param([("a", "a")], (), "its own parent", id="itself"),
        pytest.param([("x", ""), ("a", "b"), ("b", "c"), ("c", "b")], (), "its own parent", id="circle"),
        pytest.param([("a", "")], ("a",), "label and group at once: a", id="both"),
    ],
)
def test_parents_that_cannot_be(labels: list[tuple[str, str]], groups: tuple[str, ...], words: str) -> None:
    """A parent nobody knows, a circle and an id that is label and group are told."""
    with pytest.raises(ValueError, match=words):
        Taxonomy("t", "1", 500, tuple(Label(one, one, one, parent=parent) for one, parent in labels), groups)


def test_files_without_parents_are_read() -> None:
    """A file written before labels had parents means what it meant, and reads the same when written anew."""
    old = parse_taxonomy(f'{{"name": "t", "version": "1", "cattax": 500, "labels": [{LABEL}]}}'.encode(), where="t")
    assert (old.labels[0].parent, old.groups) == ("", ())
    assert parse_taxonomy(msgspec.json.encode(tree()), where="t") == tree()
