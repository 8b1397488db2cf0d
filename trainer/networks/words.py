"""Where the vectors of words begin: the latent semantic space of what the same people touch.

A person's words are those of all texts of their window, whatever the platform. The singular vectors of the
person-by-word matrix (Deerwester et al. 1990) put words near each other that the same people touch, across platforms,
which no pretrained encoder can know. Only windows of training users are read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from scipy import sparse
from sklearn.decomposition import TruncatedSVD
from sklearn.preprocessing import normalize

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from trainer.data.compact import Compact
    from xplat_stream.serving.features import TextFeatures

_CHUNK: Final = 4096
_SHRINK: Final = 1e-3
"""Added to a word's length before it is divided by it: what hardly anybody touches stays near zero."""


class TokenTable(NamedTuple):
    """The tokens of every text of a `TextTable`, under a row of none for the empty text."""

    ids: NDArray[np.int32]  # (texts + 1, tokens), padded
    mask: NDArray[np.int8]  # (texts + 1, tokens), 1 = a token

    @classmethod
    def of(cls, features: TextFeatures, texts: Sequence[str]) -> TokenTable:
        """Tokenize as the encoder's inputs are."""
        batches = list(features.batches(texts, size=_CHUNK))
        longest = max((batch.input_ids.shape[1] for batch in batches), default=1)
        ids = np.zeros((len(texts) + 1, longest), np.int32)
        mask = np.zeros((len(texts) + 1, longest), np.int8)
        for batch in batches:
            rows = np.array(batch.where) + 1
            ids[rows, : batch.input_ids.shape[1]] = batch.input_ids
            mask[rows, : batch.input_ids.shape[1]] = batch.attention_mask
        return cls(ids, mask)


class LatentWords(NamedTuple):
    """A vector and a weight for every token."""

    words: NDArray[np.float32]  # (tokens, width), of unit length or zero
    rarity: NDArray[np.float32]  # (tokens,), inverse document frequency; 0 for the tokens around every text


def latent_words(tokens: TokenTable, windows: Compact, *, vocabulary: int, width: int, seed: int) -> LatentWords:
    """Return the singular vectors of the person-by-word matrix of these windows, one window a person."""
    texts, places = np.nonzero(tokens.mask)
    shape = (len(tokens.ids), vocabulary)
    bags = sparse.csr_matrix((np.ones(len(texts), np.float32), (texts, tokens.ids[texts, places])), shape)
    bags.data[:] = 1  # a text has a word or has it not
    of_texts = np.asarray(bags.sum(axis=0)).ravel()
    rarity = np.log((1 + len(tokens.ids)) / (1 + of_texts))
    # What stands in every text ([CLS], [SEP]) is no word, nor is what stands in none.
    rarity = np.where((of_texts > 0) & (of_texts < len(tokens.ids) - 1), rarity, 0).astype(np.float32)
    people, events = np.nonzero(windows.text)
    read = sparse.csr_matrix(
        (np.ones(len(people), np.float32), (people, windows.text[people, events])), (len(windows.text), len(tokens.ids))
    )
    counts = (read @ bags).multiply(rarity).tocsr()
    counts.data = np.log1p(counts.data)
    components = min(width, counts.shape[0] - 1)
    words = np.zeros((vocabulary, width), np.float32)
    if components > 0 and counts.nnz:
        found = TruncatedSVD(components, random_state=seed).fit(normalize(counts)).components_.T
        words[:, :components] = found / (np.linalg.norm(found, axis=1, keepdims=True) + _SHRINK)
    return LatentWords(words, rarity)
