"""A scorer that does not ask a model server which just failed, until it answers its golden requests again.

Without it, every chunk would wait for the deadline while the server is away, and profiles would come later and later.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final, TypeVar

from xplat_stream.errors import InvalidScores, ReleaseError, TritonUnavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from xplat_stream.serving.features import HeadInputs
    from xplat_stream.serving.releases import Release
    from xplat_stream.serving.scorer import Scorer

log = logging.getLogger("xplat.worker")

_FIRST_PAUSE_S: Final = 0.2
_LONGEST_PAUSE_S: Final = 5.0

_What = TypeVar("_What")
_Answer = TypeVar("_Answer")


class CircuitBreaker:
    """A `Scorer` in front of another.

    One call that is not answered opens it: from then on every call fails at once with `TritonUnavailable`, while
    `watch` asks the golden requests at growing intervals and closes it when they are answered as recorded. Invalid
    scores pass through and open nothing: they cost no waiting, and one user's window can be their cause.
    """

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self._release: Release | None = None
        self._opened = asyncio.Event()

    @property
    def closed(self) -> bool:
        """Whether calls go through."""
        return not self._opened.is_set()

    def open(self, release: Release) -> None:
        """Let no call through until this release answers."""
        self._release = release
        self._opened.set()

    async def encode(self, release: Release, texts: Sequence[str]) -> list[bytes]:
        """See `Scorer.encode`."""
        return await self._asked(release, self._scorer.encode, texts)

    async def score(self, release: Release, inputs: HeadInputs) -> NDArray[np.float32]:
        """See `Scorer.score`."""
        return await self._asked(release, self._scorer.score, inputs)

    async def check_golden(self, release: Release) -> None:
        """See `Scorer.check_golden`. Always asked."""
        await self._scorer.check_golden(release)

    async def watch(self) -> None:
        """Close the breaker whenever the release asked for last answers again, for ever."""
        while True:
            await self._opened.wait()
            pause_s = _FIRST_PAUSE_S
            while not self.closed and self._release is not None:
                await asyncio.sleep(pause_s)
                try:
                    await self._scorer.check_golden(self._release)
                except (TritonUnavailable, InvalidScores, ReleaseError) as error:
                    pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                    log.debug("still degraded: %s", error)
                else:
                    log.warning("scoring again with release %d", self._release.number)
                    self._opened.clear()

    async def _asked(
        self, release: Release, call: Callable[[Release, _What], Awaitable[_Answer]], what: _What
    ) -> _Answer:
        if not self.closed:
            self._release = release
            raise TritonUnavailable(
                "the model server is not asked after a failure",
                where=f"release {release.number}",
                expected="its golden requests answered",
                fix="It is asked again every few seconds.",
            )
        try:
            return await call(release, what)
        except TritonUnavailable as error:
            if self.closed:
                log.warning("profiles are degraded from now on: %s", error)
                self.open(release)
            raise
