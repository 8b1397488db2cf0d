"""Events: the vocabulary is wire format, and a text is what a transformer reads."""

from __future__ import annotations

import pytest

from xplat_stream.event import (
    ACTION_INDEX,
    ACTIONS,
    MAX_TEXT_CHARS,
    NEGATIVE_ACTIONS,
    TEXT_HASH_BYTES,
    Object,
    hash_text,
    item_text,
)


def test_the_action_vocabulary_is_pinned() -> None:
    """Windows store an action's index: the order may grow at its end and never change."""
    assert ACTIONS[:25] == (
        "impression",
        "view",
        "click",
        "search",
        "filter",
        "read",
        "play",
        "progress",
        "complete",
        "skip",
        "like",
        "dislike",
        "rate",
        "comment",
        "share",
        "save",
        "unsave",
        "add_to_cart",
        "remove_from_cart",
        "purchase",
        "refund",
        "follow",
        "unfollow",
        "hide",
        "report",
    )
    assert [ACTION_INDEX[action] for action in ACTIONS] == list(range(len(ACTIONS)))
    assert set(ACTIONS) >= NEGATIVE_ACTIONS
    assert len(ACTIONS) <= 255


@pytest.mark.parametrize(
    ("item", "text"),
    [
        pytest.param(Object("i", "post"), "", id="nothing-but-an-id"),
        pytest.param(Object("i", "post", title="A"), "A", id="title"),
        pytest.param(Object("i", "post", text="body"), "body", id="body"),
        pytest.param(
            Object("i", "post", "A", "body", ("S > R", "F"), ("483",), ("x", "y")), "A. S > R, F. x y. body", id="all"
        ),
    ],
)
def test_the_text_of_an_item(item: Object, text: str) -> None:
    """Title, categories, tags, body, in that order; IAB ids are no words."""
    assert item_text(item) == text


def test_long_texts_are_cut() -> None:
    """A title and a body count up to what a transformer reads of them."""
    text = item_text(Object("i", "post", title="t" * 2000, text="b" * 2000))
    assert text == "t" * MAX_TEXT_CHARS + ". " + "b" * MAX_TEXT_CHARS


def test_the_hash_of_a_text_is_pinned() -> None:
    """Stores and changelogs hold these names: they must be the same in every process and version."""
    assert hash_text("running shoes").hex() == "aee5535ad406f38d"
    assert len(hash_text("")) == TEXT_HASH_BYTES
