"""The adversary's step: as long as it was told, uphill, and gone afterwards."""

from __future__ import annotations

import pytest
import torch

from trainer.networks.adversarial import Adversary

REACH = 0.25


class Reader(torch.nn.Module):
    """Word embeddings, frozen, and a loss over them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = torch.nn.Embedding(20, 6).requires_grad_(requires_grad=False)
        self.layer = torch.nn.Linear(6, 1)

    def forward(self, ids):
        self.read = self.words(ids)
        return self.layer(self.read).square().sum()


IDS = torch.tensor([[1, 2, 3], [4, 5, 6]])


def test_the_step_is_as_long_as_told_and_uphill():
    """Each text moves by the share it was told, in the direction in which its loss rises most."""
    reader = Reader()
    adversary = Adversary(reader.words, REACH)
    with adversary.watching():
        loss = reader(IDS)
        loss.backward()
        plain = reader.read.detach()
    with adversary.disturbing():
        worse = reader(IDS)
        moved = reader.read.detach() - plain

    torch.testing.assert_close(moved.flatten(1).norm(dim=1), REACH * plain.flatten(1).norm(dim=1))
    assert worse > loss


def test_only_the_first_reading_is_disturbed():
    """A second text read within the same step, as the contrast does, is left alone; so is everything afterwards."""
    reader = Reader()
    adversary = Adversary(reader.words, REACH)
    plain = reader.words(IDS)
    with adversary.watching():
        reader(IDS).backward()
        assert torch.equal(reader.words(IDS), plain)
    with adversary.disturbing():
        assert not torch.equal(reader.words(IDS), plain)
        assert torch.equal(reader.words(IDS), plain)

    assert torch.equal(reader.words(IDS), plain)


def test_a_flat_loss_moves_nothing():
    """Where no direction is worse than another, the texts stay as they are: no NaN."""
    reader = Reader()
    torch.nn.init.zeros_(reader.layer.weight)
    torch.nn.init.zeros_(reader.layer.bias)
    adversary = Adversary(reader.words, REACH)
    with adversary.watching():
        reader(IDS).backward()
    with adversary.disturbing():
        assert torch.equal(reader.words(IDS), reader.words.weight[IDS])


def test_disturbing_needs_watching():
    """Asked for the worst step before any loss was seen, it says so."""
    with pytest.raises(RuntimeError, match="watched"), Adversary(Reader().words, REACH).disturbing():
        pass
