"""Vectors of texts by a pretrained encoder as it comes, kept on disk: an experiment has each title read once, ever."""

from __future__ import annotations

import os
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from tokenizers import Tokenizer

from trainer.networks.models import default_base, mean_vectors, read_base
from trainer.run.progress import silent
from xplat_stream.errors import DataError
from xplat_stream.event import hash_text
from xplat_stream.serving.features import TextFeatures

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from trainer.run.progress import Report

CACHE: Final = Path(".xplat/cache")
MAX_TOKENS: Final = 48
"""Of a title: nine in ten are shorter."""

_BATCH: Final = 64
_SAVE_EVERY: Final = 2048
"""Texts: what an interruption costs at the most."""


def frozen_vectors(
    texts: Sequence[str],
    *,
    base: str = "",
    max_tokens: int = MAX_TOKENS,
    cache: Path = CACHE,
    threads: int = 1,
    report: Report = silent,
) -> NDArray[np.float16]:
    """Return the mean of each text's token vectors, of unit length (texts, hidden); zeros for the empty text.

    Args:
        texts: read in order of length, each distinct one once.
        base: a Hugging Face encoder's folder or id; empty: the packaged MiniLM.
        max_tokens: read of a text.
        cache: folder of what was read before, by encoder; made where it is missing.
        threads: of torch.
        report: told as stage "vectors".

    Raises `DataError` when the encoder or what the cache holds cannot be read.
    """
    base = base or default_base()
    path = cache / f"frozen-{blake2b(f'{base} {max_tokens}'.encode(), digest_size=8).hexdigest()}.npz"
    known = _read(path)
    missing = sorted(
        {text for text in texts if text and hash_text(text) not in known}, key=lambda text: (len(text), text)
    )
    if missing:
        read = read_base(base)
        features = TextFeatures(Tokenizer.from_str(read.tokenizer_json().decode()), max_tokens=max_tokens)
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            for start in range(0, len(missing), _BATCH):
                part = missing[start : start + _BATCH]
                known.update(
                    zip(map(hash_text, part), mean_vectors(read, features, part).astype(np.float16), strict=True)
                )
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
