"""Fuzz everything that reads bytes from outside: ``make fuzz SECONDS=60``, or one input: ``fuzz_admission.py FILE``.

The first byte of an input chooses the reader, the rest is what it reads. `check` is the oracle; `test_corpus.py` runs
it over the kept corpus in every `make test`. Inputs that broke something are kept there under a name that says what.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from xplat_stream.adapters import REASONS, admit, encode_event
from xplat_stream.errors import RejectedEvent
from xplat_stream.kafka.codec import Origin, dead_letter, decode_announcement, decode_profile, first_read
from xplat_stream.state import TextEntry, UserState
from xplat_stream.window import ROW_BYTES, BehaviorWindow, WindowSpec, row_of

if TYPE_CHECKING:
    from collections.abc import Callable

RECEIVED_MS: Final = 4_102_444_800_000
PLATFORM: Final = "shop"
KEY_END: Final = b"\n"
SPEC: Final = WindowSpec(per_platform=4)


def admission(data: bytes) -> None:
    """Admit a record: the key up to the first line feed, then the value."""
    key, _, value = data.partition(KEY_END)
    try:
        event = admit(key, value, platform=PLATFORM, received_at_ms=RECEIVED_MS)
    except RejectedEvent as rejection:
        _rejected(value, rejection)
        return
    if event is None:
        return
    assert len(row_of(event)) == ROW_BYTES
    again = admit(key, encode_event(event), platform=PLATFORM, received_at_ms=RECEIVED_MS)
    assert again == event, f"{event} is read back as {again}"


def _rejected(value: bytes, rejection: RejectedEvent) -> None:
    assert rejection.reason in REASONS, f"unknown reason {rejection.reason!r}"
    letter, headers = dead_letter(value, rejection, Origin("behavior.shop.v1", 0, 1, RECEIVED_MS))
    assert letter == value
    assert all(isinstance(name, str) and isinstance(held, bytes) for name, held in headers)
    assert sum(len(held) for _, held in headers) < 8_192, "headers of a dead letter are bounded"


def user_state(data: bytes) -> None:
    """Read a user's state from the changelog: what is read is written and read again as the same."""
    state = UserState.unpack(SPEC, data)
    assert UserState.unpack(SPEC, state.pack()) == state


def text_entry(data: bytes) -> None:
    """Read a text with its vector from the changelog."""
    entry = TextEntry.unpack(data)
    assert TextEntry.unpack(entry.pack()) == entry


def window(data: bytes) -> None:
    """Read a window."""
    read = BehaviorWindow.from_bytes(SPEC, data)
    assert BehaviorWindow.from_bytes(SPEC, bytes(read)) == read


def profile(data: bytes) -> None:
    """Read a profile record."""
    decode_profile(data)


def announcement(data: bytes) -> None:
    """Read a release announcement."""
    decode_announcement(data)


def rekeyed(data: bytes) -> None:
    """Read the headers of a rekeyed record: topic and Kafka time, a line each."""
    topic, _, received = data.partition(KEY_END)
    try:
        first_read([("topic", topic), ("received-at-ms", received)])
        first_read([("received-at-ms", received)])
    except KeyError:
        pass


READERS: Final[dict[str, Callable[[bytes], None]]] = {
    "a": admission,
    "u": user_state,
    "t": text_entry,
    "w": window,
    "p": profile,
    "r": rekeyed,
    "n": announcement,
}
"""First byte of an input → what reads the rest."""


def check(data: bytes) -> None:
    """Let a reader read. Anything but a value or a `ValueError` is a finding."""
    reader = READERS.get(chr(data[0])) if data else None
    try:
        (reader or admission)(data[1:] if reader else data)
    except ValueError:
        if reader in {None, admission}:
            raise  # here only `RejectedEvent` is allowed


def main() -> None:
    """Run under libFuzzer: arguments are its options, corpus folders and files."""
    import atheris

    atheris.instrument_all()
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
