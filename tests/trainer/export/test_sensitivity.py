"""The head's sensitivity: fitted to a head, and honest about how often it is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trainer.export.export import export_head
from trainer.export.sensitivity import sensitivity_of
from trainer.networks.head import Head, HeadShape

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trainer.data.dataset import Dataset


def test_the_curve_trades_calls_for_agreement(dataset: Dataset, table: NDArray[np.float16], head: Head) -> None:
    """A wider margin saves fewer calls and is wrong less often; the bound lies above what was counted."""
    shape = HeadShape(labels=25, platforms=3)
    made = Head(shape, head.prior, members=1)
    made.load_state_dict({name: value for name, value in head.state_dict().items() if name in made.state_dict()}
                         | {"target": made.target})  # fmt: skip

    found = sensitivity_of(made.eval(), export_head(made), dataset, table)

    saved = [point.saved for point in found.curve]
    assert saved == sorted(saved, reverse=True)
    assert saved[0] > saved[-1]
    assert found.curve[-1].disagreement <= found.curve[0].disagreement
    assert all(point.disagreement <= point.highest for point in found.curve)
    assert len(np.frombuffer(found.names, np.float32)) == (64 + 1) * 25
