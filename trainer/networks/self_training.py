"""Self-training: labels that a first fit reads from texts that name none are taken for their own in the next.

A platform without categories is unlabelled data. Where the layer that reads labels from a text's vector is sure, what
it says is as good as a label (pseudo-labels: Lee 2013), and the vectors are then trained on more texts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trainer.data.texts import TextTable
    from trainer.networks.head import Head

_SURE: Final = 0.9


@torch.no_grad()
def with_read_labels(texts: TextTable, head: Head, table: NDArray[np.float16]) -> TextTable:
    """Return the texts, those that name no label with the labels that a fitted head is sure of.

    `table`: the vectors that it was fitted on, `trainer.data.compact.vector_table`.
    """
    vectors = torch.from_numpy(table[1:].astype(np.float32)) * head.shape.width**0.5  # (texts, width)
    sure = torch.sigmoid(head.evidence(vectors)).numpy() >= _SURE  # (texts, labels)
    sure[texts.own_known] = False
    return texts._replace(own=np.where(sure, np.float32(1), texts.own), own_known=texts.own_known | sure.any(axis=1))
