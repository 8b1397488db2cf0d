"""The head as it is exported answers as the trained one, whatever it was trained for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.export.served_head import ServedHead
from trainer.networks.head import Head, HeadShape
from xplat_stream.event import ACTIONS


def made(target: frozenset[int], members: int) -> Head:
    """Return a head in which nothing is zero or one that could hide a mistake."""
    torch.manual_seed(members)
    head = Head(HeadShape(labels=6, platforms=3, width=16, hidden=24, target=target), torch.linspace(-3, 0, 6), members)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    head.share.fill_(0.3)
    head.temperature.fill_(1.4)
    return head.eval()


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize(
    "target",
    [
        pytest.param(frozenset(), id="all platforms"),
        pytest.param(frozenset({2}), id="one"),
        pytest.param(frozenset({1, 3}), id="two"),
    ],
)
@torch.no_grad()
def test_served_equals_trained(target, members):
    """Scores and user vectors are the trained head's; of full, short and empty windows, texts missing, ages equal."""
    head = made(target, members)
    served = ServedHead(head)

    @settings(max_examples=20, deadline=None)
    @given(st.integers(0, 2**32), st.lists(st.integers(0, 12), min_size=1, max_size=5))
    def holds(seed: int, lengths: list[int]) -> None:
        draw = torch.Generator().manual_seed(seed)
        shape = (len(lengths), max(lengths) + 1)
        there = torch.arange(shape[1]) < torch.tensor(lengths).unsqueeze(1)
        texts = there & (torch.rand(shape, generator=draw) < 0.8)
        vectors = (torch.randn((*shape, 16), generator=draw) / 4 * texts.unsqueeze(-1)).to(torch.float16)
        platform = (torch.randint(0, 4, shape, generator=draw) * there).to(torch.int32)
        action = (torch.randint(1, len(ACTIONS) + 1, shape, generator=draw) * there).to(torch.int32)
        age = (torch.rand(shape, generator=draw) * 7).round(decimals=1) * there

        torch.testing.assert_close(
            served(vectors, platform, action, age), head(vectors, platform, action, age), rtol=1e-4, atol=1e-5
        )

    holds()
