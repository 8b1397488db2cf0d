"""The kept inputs of the fuzzer, read again by its oracle, and records bent at any one place."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.fuzz_admission import KEY_END, READERS, SPEC, check
from xplat_stream.adapters import encode_event
from xplat_stream.testing import make_event
from xplat_stream.window import BehaviorWindow

CORPUS = sorted((Path(__file__).parent / "corpus").iterdir())
GOOD: dict[str, Any] = msgspec.json.decode(
    encode_event(make_event(user_id="u", object_categories=("A > B",), object_iab=("483",), object_tags=("x",)))
)


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_kept_inputs(path: Path) -> None:
    """Every reader answers with a value, `RejectedEvent` or `ValueError`, and what it reads it can write."""
    check(path.read_bytes())


def test_every_reader_has_an_input() -> None:
    """The fuzzer starts from something of every kind."""
    assert {path.read_bytes()[:1].decode() for path in CORPUS} == set(READERS)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for name, held in inside for place in _places(held, (*path, name)))]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=300),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
BENT = JSON | st.sampled_from(
    ["#", "a#b", "%23", "1970-01-01T00:00:00Z", "9999-12-31T23:59:59.9999-23:59", "1.0", 2**64]
)


@given(st.sampled_from(_places(GOOD)[1:]), BENT, st.sampled_from(["u", "", "v"]))
def test_a_record_bent_at_one_place(place: tuple[Any, ...], value: Any, key: str) -> None:
    """Whatever stands in one field of a good event, it is admitted and survives the way back, or has a reason."""
    envelope = copy.deepcopy(GOOD)
    *parents, last = place
    inside: Any = envelope
    for parent in parents:
        inside = inside[parent]
    inside[last] = value
    check(b"a" + key.encode() + KEY_END + msgspec.json.encode(envelope))


def test_an_action_of_a_newer_version_is_refused_or_readable() -> None:
    """A window of a version with more actions is a `ValueError` when read, not an `IndexError` when used."""
    row = bytes(40) + b"\xff"
    try:
        window = BehaviorWindow.from_bytes(SPEC, b"\x01\x04shop\x00\x01" + row)
    except ValueError:
        return
    window.events()
