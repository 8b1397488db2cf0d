"""Text → token ids, window → head inputs, window → fused text: the only feature code, for worker and trainer alike.

A release's manifest says which platforms, how many tokens and how many events its inputs were built with.
"""

from __future__ import annotations

from itertools import islice, repeat
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from tokenizers import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from xplat_stream.event import TextHash
    from xplat_stream.window import BehaviorWindow, WindowEvent

TOKEN_BUCKETS: Final = (8, 12, 16, 20, 24, 28, 32, 40, 48, 64)
"""Padded text lengths in tokens: Triton joins only requests of equal shape, and padding costs compute."""

EVENT_BUCKETS: Final = (8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Padded window lengths in events."""

_HOUR_MS: Final = 3_600_000.0


class TokenBatch(NamedTuple):
    """Texts of similar length, padded together. `where`: their positions in the list that was given."""

    where: list[int]
    input_ids: NDArray[np.int64]  # (texts, tokens)
    attention_mask: NDArray[np.int64]  # (texts, tokens)


class TextFeatures:
    """Turns texts into the encoder's inputs with the tokenizer of one release."""

    def __init__(self, tokenizer: Tokenizer, *, max_tokens: int = TOKEN_BUCKETS[-1]) -> None:
        self._tokenizer = tokenizer
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)
        self._buckets = [bucket for bucket in TOKEN_BUCKETS if bucket < max_tokens] + [max_tokens]

    @classmethod
    def from_file(cls, path: Path, *, max_tokens: int) -> TextFeatures:
        """Read a Hugging Face ``tokenizer.json``."""
        return cls(Tokenizer.from_file(str(path)), max_tokens=max_tokens)

    def batches(self, texts: Sequence[str], *, size: int) -> Iterator[TokenBatch]:
        """Yield the texts in batches of at most `size`, short texts first, each padded to a bucket."""
        ids = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts))]
        order = sorted(range(len(ids)), key=lambda position: len(ids[position]))
        for start in range(0, len(order), size):
            where = order[start : start + size]
            longest = len(ids[where[-1]])
            width = next(bucket for bucket in self._buckets if bucket >= longest)
            input_ids = np.zeros((len(where), width), np.int64)
            attention_mask = np.zeros((len(where), width), np.int64)
            for row, position in enumerate(where):
                length = len(ids[position])
                input_ids[row, :length] = ids[position]
                attention_mask[row, :length] = 1
            yield TokenBatch(where, input_ids, attention_mask)


def fuse(events: Iterable[tuple[str, str, str]], *, max_tokens: int) -> str:
    """Join events, each `(platform, action, text)` and newest first, into the one text that a fused model reads.

    An event is two tokens or more, so those after the first `max_tokens / 2` are left to no tokenizer to cut off.
    """
    pieces = [" ".join(filter(None, event)) for event in islice(events, max_tokens // 2)]
    return ". ".join(pieces)


def fused_text(window: BehaviorWindow, texts: Mapping[TextHash, str], *, max_tokens: int) -> str:
    """Return a window as a fused model reads it; a text not in `texts` counts as empty."""
    newest_first = reversed(newest_events(window, max_tokens // 2))
    return fuse(
        ((event.platform, event.action, texts.get(event.text_hash, "")) for event in newest_first),
        max_tokens=max_tokens,
    )


class HeadInputs(NamedTuple):
    """Windows as the head reads them, padded to the longest. Index 0 of `action` marks padding.

    `age` is log(1 + hours before T): a day is 3.2, a month 6.6.
    """

    vectors: NDArray[np.float16]  # (users, events, width)
    platform: NDArray[np.int32]  # (users, events), 0 = a platform the release does not know
    action: NDArray[np.int32]  # (users, events), 0 = padding
    age: NDArray[np.float32]  # (users, events)


def newest_events(window: BehaviorWindow, max_events: int) -> list[WindowEvent]:
    """Return the newest `max_events` events a reader of the window sees, oldest first."""
    return sorted(window.events(), key=lambda event: event.occurred_at)[-max_events:]


def head_inputs(
    windows: Sequence[BehaviorWindow],
    vectors: Mapping[TextHash, bytes],
    *,
    platforms: Sequence[str],
    width: int,
    max_events: int,
) -> HeadInputs:
    """Build the head's inputs. `vectors` maps text hash → float16 bytes; a text not in it counts as the zero vector.

    A window's age is counted from its own end (T), so the same window gives the same inputs for ever.
    """
    platform_index = {platform: index for index, platform in enumerate(platforms, 1)}
    times: list[int] = []
    places: list[int] = []
    actions: list[int] = []
    packed: list[bytes] = []
    ends = np.zeros(len(windows), np.int64)  # behind each window's last event, counted through all of them
    nothing = bytes(2 * width)
    for row, window in enumerate(windows):
        for platform, of_events, texts, done in window.columns():
            times += of_events
            places += [platform_index.get(platform, 0)] * len(of_events)
            actions += done
            packed += map(vectors.get, texts, repeat(nothing))
        ends[row] = len(times)
    counts = np.diff(ends, prepend=0)
    user, time = np.repeat(np.arange(len(windows)), counts), np.array(times, np.int64)
    oldest_first = np.lexsort((time, user))
    column = np.arange(len(times)) - (ends - np.minimum(counts, max_events))[user]  # below 0: too old to be read
    user, column, order = user[column >= 0], column[column >= 0], oldest_first[column >= 0]
    longest = min(max_events, int(counts.max(initial=0)))
    length = next((bucket for bucket in EVENT_BUCKETS if bucket >= longest), longest)
    shape = (len(windows), length)
    found = HeadInputs(
        np.zeros((*shape, width), np.float16),
        np.zeros(shape, np.int32),
        np.zeros(shape, np.int32),
        np.zeros(shape, np.float32),
    )
    found.vectors[user, column] = np.frombuffer(b"".join(packed), np.float16).reshape(-1, width)[order]
    found.platform[user, column] = np.array(places, np.int32)[order]
    found.action[user, column] = np.array(actions, np.int32)[order] + 1
    before = np.array([window.end for window in windows])[user] - time[order]
    found.age[user, column] = np.log1p(np.maximum(before, 0) / _HOUR_MS)
    return found
