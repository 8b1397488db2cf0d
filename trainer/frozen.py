"""Vectors of texts by a pretrained encoder as it comes, kept on disk: an experiment has each title read once, ever."""

from __future__ import annotations

import os
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from trainer.models import default_base
from trainer.progress import silent
from xplat_stream.errors import DataError
from xplat_stream.event import hash_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from trainer.progress import Report

CACHE: Final = Path(".xplat/cache")
MAX_TOKENS: Final = 48
"""Of a title: nine in ten are shorter."""

_BATCH: Final = 64
_SAVE_EVERY: Final = 2048
"""Texts: what an interruption costs at the most."""


def frozen_vectors(
    texts: Sequence[str], *, base: str = "", cache: Path = CACHE, threads: int = 1, report: Report = silent
) -> NDArray[np.float16]:
    """Return the mean of each text's token vectors, of unit length (texts, hidden); zeros for the empty text.

    Args:
        texts: read in order of length, each distinct one once.
        base: a Hugging Face encoder's folder or id; empty: the packaged MiniLM.
        cache: folder of what was read before, by encoder; made where it is missing.
        threads: of torch.
        report: told as stage "vectors".

    Raises `DataError` when the encoder or what the cache holds cannot be read.
    """
    base = base or default_base()
    path = cache / f"frozen-{blake2b(f'{base} {MAX_TOKENS}'.encode(), digest_size=8).hexdigest()}.npz"
    known = _read(path)
    missing = sorted(
        {text for text in texts if text and hash_text(text) not in known}, key=lambda text: (len(text), text)
    )
    if missing:
        encode = _Encoder(base)
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            for start in range(0, len(missing), _BATCH):
                part = missing[start : start + _BATCH]
                known.update(zip(map(hash_text, part), encode(part), strict=True))
                done = start + len(part)
                if done % _SAVE_EVERY == 0 or done == len(missing):
                    _write(path, known)
                report("vectors", done, len(missing), {})
        finally:
            torch.set_num_threads(before)
    width = len(next(iter(known.values()), np.zeros(1)))
    found = np.zeros((len(texts), width), np.float16)
    for row, text in enumerate(texts):
        if text:
            found[row] = known[hash_text(text)]
    return found


class _Encoder:
    def __init__(self, base: str) -> None:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(base)
            self._model = AutoModel.from_pretrained(base, dtype=torch.float32).eval()
        except (OSError, ValueError) as error:
            raise DataError(
                f"the pretrained encoder cannot be loaded: {str(error).splitlines()[0]}",
                where=base,
                expected="a Hugging Face encoder with its tokenizer",
                fix="Correct `base`, or leave it empty for the packaged MiniLM.",
            ) from error

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> NDArray[np.float16]:
        batch = self._tokenizer(texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        mask = batch["attention_mask"].unsqueeze(-1)  # (texts, tokens, 1)
        mean = (self._model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1).clamp(min=1)
        found: NDArray[Any] = torch.nn.functional.normalize(mean, dim=-1).numpy().astype(np.float16)
        return found


def _read(path: Path) -> dict[bytes, NDArray[np.float16]]:
    if not path.exists():
        return {}
    try:
        with np.load(path) as kept:
            hashes, vectors = kept["hashes"], kept["vectors"]
            return {row.tobytes(): vector for row, vector in zip(hashes, vectors, strict=True)}
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"cached vectors cannot be read: {error}",
            where=str(path),
            expected="what an earlier run wrote",
            fix="Remove the file; its texts are read again.",
        ) from error


def _write(path: Path, known: dict[bytes, NDArray[np.float16]]) -> None:
    """Write beside the file and rename over it: a run that is cut short leaves the former one whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    hashes = np.frombuffer(b"".join(known), np.uint8).reshape(len(known), -1)
    beside = path.with_suffix(f".{os.getpid()}.npz")
    np.savez(beside, hashes=hashes, vectors=np.stack(list(known.values())))
    beside.replace(path)
