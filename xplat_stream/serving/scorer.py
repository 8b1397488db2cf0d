"""What the worker asks of a model server.

`TritonScorer` is the real one, `xplat_stream.testing.FakeScorer` the public double.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from xplat_stream.serving.features import HeadInputs
    from xplat_stream.serving.releases import Release


class Scorer(Protocol):
    """Runs the two models of a release. Every call names the release, so that two can be in use at once."""

    async def encode(self, release: Release, texts: Sequence[str]) -> list[bytes]:
        """Return one float16 vector (`release.manifest.width` wide) a text, in order.

        Raises `TritonUnavailable`, `InvalidScores`.
        """

    async def check_golden(self, release: Release) -> None:
        """Ask the release's golden requests.

        Raises `ReleaseError` when an answer differs, `TritonUnavailable`, `InvalidScores`.
        """

    async def score(self, release: Release, inputs: HeadInputs) -> NDArray[np.float32]:
        """Return calibrated label scores in [0, 1], shape (users, labels), in order.

        Raises `TritonUnavailable`, `InvalidScores`.
        """
