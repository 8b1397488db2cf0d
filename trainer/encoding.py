"""The encoder of a run, exported and ready to read texts: fine-tuned on the log, or the active release's."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from trainer.compact import vector_table
from trainer.export import encode_texts, export_encoder
from trainer.fit import Hints, fit_encoder, following_pairs
from trainer.models import DEFAULT_PACKAGE, default_base
from trainer.release import EncoderFiles, EncoderKept, kept_encoder
from trainer.weak import label_texts
from xplat_stream.errors import ReleaseError
from xplat_stream.kafka.consumer import active_announcement
from xplat_stream.serving.features import TextFeatures
from xplat_stream.serving.releases import ENCODER, MODEL_FILE, TOKENIZER_FILE, ModelRepository

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from trainer.checkpoint import Checkpoint
    from trainer.dataset import Dataset
    from trainer.models import Encoder
    from trainer.options import TrainOptions
    from trainer.progress import Report
    from xplat_stream.settings import Settings


class ReadyEncoder(NamedTuple):
    """An exported encoder and how its texts are prepared."""

    graph: bytes | Path
    features: TextFeatures
    files: EncoderFiles | EncoderKept
    width: int
    max_tokens: int
    base: str

    def vector_table(self, texts: Sequence[str], options: TrainOptions, report: Report) -> NDArray[np.float16]:
        """Return (texts + 1, width), `trainer.compact.vector_table`, made by the graph that will serve."""
        vectors = np.zeros((len(texts), self.width), np.float16)
        for done, vectors in encode_texts(self.graph, self.features, texts, width=self.width, threads=options.threads):
            report("vectors", done, len(vectors), {})
        return vector_table(vectors)


class FreshEncoder(NamedTuple):
    """A fine-tuned encoder that may still be trained with the head."""

    encoder: Encoder
    tokenizer: bytes
    features: TextFeatures

    def exported(self, options: TrainOptions) -> ReadyEncoder:
        """Return its graph. Raises `ReleaseError` when that answers differently."""
        graph = export_encoder(self.encoder, vocabulary=self.encoder.words.num_embeddings)
        files = EncoderFiles(graph, self.tokenizer)
        base = options.base or DEFAULT_PACKAGE
        return ReadyEncoder(graph, self.features, files, options.width, options.max_tokens, base)


def fine_tuned(data: Dataset, options: TrainOptions, report: Report, *, checkpoint: Checkpoint) -> FreshEncoder:
    """Fine-tune an encoder on the texts of a log. Raises `DataError`."""
    base = options.base or default_base()
    hints = Hints(
        following_pairs(data.train) if options.contrast else Hints().following,
        label_texts(data.taxonomy) if options.weak_labels else (),
    )
    encoder, raw_tokenizer = fit_encoder(data.texts, options, base, report, hints=hints, checkpoint=checkpoint)
    tokenizer = Tokenizer.from_str(raw_tokenizer.decode())
    return FreshEncoder(encoder, raw_tokenizer, TextFeatures(tokenizer, max_tokens=options.max_tokens))


def active_encoder(settings: Settings, options: TrainOptions) -> ReadyEncoder:
    """Return the active release's encoder. Raises `ReleaseError` when there is none, or one of another width."""
    active = active_announcement(settings)
    if active is None:
        raise ReleaseError(
            "no release is active whose encoder could be kept",
            where=settings.kafka.bootstrap,
            expected="a release announced on interest.models.v1",
            fix="Train encoder and head together first: `xplat train`.",
        )
    repository = ModelRepository(settings.model.repository)
    release = repository.load(active.release)
    manifest = release.manifest
    if manifest.width != options.width:
        raise ReleaseError(
            f"the active encoder's vectors are {manifest.width} wide",
            where=f"release {active.release}",
            expected=f"{options.width}, as asked for",
            fix="Train encoder and head together, or leave the width alone.",
        )
    folder = repository.root / ENCODER / str(manifest.encoder)
    features = TextFeatures.from_file(folder / TOKENIZER_FILE, max_tokens=manifest.max_tokens)
    return ReadyEncoder(
        folder / MODEL_FILE, features, kept_encoder(manifest), manifest.width, manifest.max_tokens, manifest.base
    )
