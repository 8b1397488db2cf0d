"""The fused baseline as a server sees it: one model that reads a whole window as one text, and its manifest.

    model_repo/interest_fused/<number>/   model.onnx  tokenizer.json  manifest.json

It lies in the same repository as the releases, takes its numbers from the same row, and is placed, loaded and asked its
golden requests by the same code; but no worker scores with it and nothing announces it (docs/adr/0006).
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from xplat_stream.errors import ReleaseError
from xplat_stream.profile import TaxonomyRef
from xplat_stream.serving.features import TextFeatures
from xplat_stream.serving.releases import MANIFEST_FILE, TOKENIZER_FILE
from xplat_stream.serving.triton import require_probabilities, require_shape

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from xplat_stream.serving.releases import ModelRepository
    from xplat_stream.serving.triton import TritonScorer

FUSED: Final = "interest_fused"


class FusedGolden(msgspec.Struct, frozen=True):
    """Fused texts with the scores the trained model gave them."""

    texts: list[str]
    scores: list[list[float]]
    """(texts, labels)."""


class FusedManifest(msgspec.Struct, frozen=True):
    """Everything needed to use a fused model and to trust it."""

    number: int
    created_at: datetime
    taxonomy: TaxonomyRef
    labels: tuple[str, ...]
    """Taxonomy label ids in the order of the scores."""
    max_tokens: int
    """Tokens read of a window; see `xplat_stream.serving.features.fused_text`."""
    base: str
    """The pretrained encoder this model was fine-tuned from."""
    files: dict[str, str]
    """Path relative to the repository → sha256."""
    golden: FusedGolden
    metrics: dict[str, float] = {}
    """Evaluation on users it was not trained on, as `trainer` names it."""


class FusedRelease:
    """A fused model ready for use: its manifest and its tokenizer."""

    def __init__(self, manifest: FusedManifest, texts: TextFeatures) -> None:
        self.manifest = manifest
        self.texts = texts

    @property
    def number(self) -> int:
        """The version in the repository."""
        return self.manifest.number


def load_fused(repository: ModelRepository, number: int) -> FusedRelease:
    """Return a fused model after checking every file against its manifest. Raises `ReleaseError`."""
    folder = repository.root / FUSED / str(number)
    try:
        manifest = msgspec.json.decode((folder / MANIFEST_FILE).read_bytes(), type=FusedManifest)
    except (OSError, ValueError) as error:
        raise ReleaseError(
            f"version {number} of {FUSED} has no readable manifest: {error}",
            where=str(folder / MANIFEST_FILE),
            expected="the file the trainer wrote",
            fix="Train it again: `xplat train --fused`.",
        ) from error
    repository.require_intact(number, manifest.files)
    return FusedRelease(manifest, TextFeatures.from_file(folder / TOKENIZER_FILE, max_tokens=manifest.max_tokens))


class FusedScorer:
    """Scores windows by their fused texts, over the connection of a `TritonScorer`."""

    def __init__(self, scorer: TritonScorer, *, batch: int = 8) -> None:
        self._scorer = scorer
        self._batch = batch

    async def score(self, release: FusedRelease, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return calibrated label scores in [0, 1], shape (texts, labels), in order.

        `texts`: of `xplat_stream.serving.features.fused_text`. Raises `TritonUnavailable`, `InvalidScores`.
        """
        scores = np.zeros((len(texts), len(release.manifest.labels)), np.float32)
        for batch in release.texts.batches(texts, size=self._batch):
            inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
            found = await self._scorer.infer(FUSED, release.number, inputs, "scores")
            require_shape("scores", found, (len(batch.where), scores.shape[1]))
            scores[batch.where] = found
        require_probabilities(scores)
        return scores

    async def check_golden(self, release: FusedRelease) -> None:
        """Ask the golden requests. Raises `ReleaseError` when an answer differs, `TritonUnavailable`."""
        golden = release.manifest.golden
        self._scorer.require_same(release.number, "scores", await self.score(release, golden.texts), golden.scores)
