"""Changelog records as earlier versions wrote them: every one of them is read, for ever.

The files are the promise. One that has to be changed, to make a test pass, is a format that needs a new number.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from xplat_stream.event import Event, Millis, Object, UserId, hash_text
from xplat_stream.state import Publication, TextEntry, UserState, glance
from xplat_stream.window import BehaviorWindow, WindowEvent, WindowSpec, row_of

FOLDER = Path(__file__).parent
SPEC = WindowSpec()
BASE_MS = 1_750_000_000_000
SHOES, NOTHING = hash_text("running shoes"), hash_text("")
EVENTS = [
    WindowEvent("shop", "view", BASE_MS, SHOES),
    WindowEvent("shop", "purchase", BASE_MS + 1000, SHOES),
    WindowEvent("social", "report", BASE_MS - 1, NOTHING),
    WindowEvent("vidéo", "like", BASE_MS + 5, NOTHING),
]
STATES = {
    "user-state-1{}.bin": (EVENTS, Publication(12, 3, (0, 32768, 65535), pending=True)),
    "user-state-1{}-unpublished.bin": (EVENTS, Publication(1)),
    "user-state-1{}-empty.bin": ([], Publication()),
}
WINDOWS = ("", "-window-2")
"""Formats of the window inside: 1, and what is written now."""

KNOWN = "user-state-1-known-event.bin"
KNOWN_EVENT = Event(
    "//shop.example.com#17",
    UserId("u"),
    "shop",
    "view",
    Object("8472", "product", title="running shoes", iab=("483", "596")),
    Millis(BASE_MS),
)
TEXTS = {
    "text-entry-1.bin": TextEntry("running shoes", ("483", "596"), 2, bytes.fromhex("003c00bc")),
    "text-entry-1-unencoded.bin": TextEntry("ünïcödé ☕"),
}


def test_every_file_is_read_by_a_test() -> None:
    """No golden record lies here unread."""
    states = {name.format(window) for name in STATES for window in WINDOWS}
    assert {path.name for path in FOLDER.glob("*.bin")} == {*states, *TEXTS, KNOWN}


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("name", STATES)
def test_user_states_of_format_1(name: str, window: str) -> None:
    """Window, revision, release, scores and the pending mark are what was written; writing gives today's bytes."""
    events, publication = STATES[name]
    packed = (FOLDER / name.format(window)).read_bytes()
    state = UserState.unpack(SPEC, packed)
    assert state.window.events() == events
    assert state.publication == publication
    assert state.pack() == (FOLDER / name.format(WINDOWS[-1])).read_bytes()
    assert glance(packed) == state.glance()


def test_an_event_that_comes_again_after_an_upgrade_is_the_one_that_is_held() -> None:
    """The row of an event in a window of format 1 is the one that the event gives today: nothing is held twice."""
    window = UserState.unpack(SPEC, (FOLDER / KNOWN).read_bytes()).window
    assert window.fold([("shop", row_of(KNOWN_EVENT))]) == window
    assert len(window) == 1


@pytest.mark.parametrize("name", TEXTS)
def test_text_entries_of_format_1(name: str) -> None:
    """Text, labels, encoder and vector are what was written; writing gives the same bytes."""
    packed = (FOLDER / name).read_bytes()
    assert TextEntry.unpack(packed) == TEXTS[name]
    assert TEXTS[name].pack() == packed


@pytest.mark.parametrize("version", [0, *range(3, 256)])
def test_unknown_formats_are_refused(version: int) -> None:
    """A state or window of another format number is a `ValueError` that names it, never a misread window."""
    packed = (FOLDER / "user-state-1-window-2-unpublished.bin").read_bytes()
    window = bytes(UserState.unpack(SPEC, packed).window)
    with pytest.raises(ValueError, match=rf"format.*{version:02x}"):
        UserState.unpack(SPEC, bytes([version]) + packed[1:])
    with pytest.raises(ValueError, match=rf"format.*{version:02x}"):
        UserState.unpack(SPEC, packed[: -len(window)] + bytes([version]) + window[1:])
    with pytest.raises(ValueError, match=rf"format.*{version:02x}"):
        BehaviorWindow.from_bytes(SPEC, bytes([version]) + window[1:])


def test_a_text_entry_of_another_shape_is_refused() -> None:
    """A map, a number or fields of other types are a `ValueError`."""
    for packed in (b"\x80", b"\x01", b"\x94\x01\x90\x00\xc4\x00", b"\x90", b""):
        with pytest.raises(ValueError, match=r".+"):
            TextEntry.unpack(packed)
