"""Platforms from which nothing comes: missing data, which must never read as lost interest."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class Silence:
    """Knows when each platform was last heard by this worker, whoever the user was.

    A platform counts as silent when nothing was read of it for `after_s` seconds; one never heard, since the worker
    began. The clock is the reader's: a backlog being read is not silence.
    """

    def __init__(
        self, platforms: Iterable[str], *, after_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._after_s = after_s
        self._clock = clock
        self._heard_at = dict.fromkeys(platforms, clock())

    def hear(self, platforms: Iterable[str]) -> None:
        """Note that records of these platforms were read now."""
        self._heard_at.update(dict.fromkeys(platforms, self._clock()))

    def silent(self) -> frozenset[str]:
        """Return the platforms that are silent now."""
        before = self._clock() - self._after_s
        return frozenset(platform for platform, heard_at in self._heard_at.items() if heard_at < before)
