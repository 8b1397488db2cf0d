"""The losses are the textbook's."""

from __future__ import annotations

import pytest
import torch

from trainer.networks.losses import info_nce, label_loss, parent_loss

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 0.0, 0.0]])
TARGETS = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])


def test_bce_asks_about_each_label_apart():
    """The loss of a row is the sum of its labels' binary cross-entropies."""
    expected = torch.nn.functional.softplus(torch.tensor([-2.0, -1.0, -0.5])).sum()

    assert label_loss(LOGITS, TARGETS, "bce")[0].item() == pytest.approx(expected.item())


def test_softmax_lets_labels_compete():
    """The loss is the cross-entropy to equal shares of the row's labels; a row without any costs nothing."""
    probabilities = torch.softmax(LOGITS[0], 0)
    expected = -(probabilities[0].log() + probabilities[2].log()) / 2

    found = label_loss(LOGITS, TARGETS, "softmax")

    assert found[0].item() == pytest.approx(expected.item())
    assert found[1].item() == 0


def test_contrast_is_small_where_partners_lie_together():
    """InfoNCE is near zero for vectors at their partners', and log 2 where two cannot be told apart."""
    vectors = torch.eye(2)

    assert info_nce(vectors, vectors, torch.tensor([1, 2]), 0.1).item() < 1e-3
    assert info_nce(vectors, torch.ones(2, 2), torch.tensor([1, 2]), 0.1).item() == pytest.approx(0.6931, abs=1e-3)


def test_the_same_partner_is_no_contrast():
    """Two texts followed by the same one are not pushed away from it."""
    vectors = torch.eye(2)

    assert info_nce(vectors, torch.ones(2, 2), torch.tensor([7, 7]), 0.1).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("pairs", [0, 1])
def test_nothing_to_contrast_costs_nothing(pairs):
    """A batch with fewer than two pairs has a loss of zero, and a gradient of zero."""
    vectors = torch.ones(pairs, 2, requires_grad=True)
    loss = info_nce(vectors, torch.ones(pairs, 2), torch.ones(pairs), 0.1)
    loss.backward()

    assert loss.item() == 0


def test_a_parent_is_touched_where_a_label_below_it_is():
    """Its probability is 1 - ∏ (1 - p) of its family, its target the largest there; the loss is their BCE."""
    families = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
    some = 1 - torch.stack([(1 - torch.sigmoid(LOGITS))[:, pair].prod(1) for pair in ([0, 1], [1, 2])], dim=1)
    targets = torch.tensor([[1.0, 0.0, 0.7], [0.0, 0.0, 0.0]])
    expected = torch.nn.functional.binary_cross_entropy(
        some, torch.tensor([[1.0, 0.7], [0.0, 0.0]]), reduction="none"
    ).mean(1)

    assert parent_loss(LOGITS, targets, families).tolist() == pytest.approx(expected.tolist())


def test_parents_of_impossible_labels_have_a_gradient_all_the_same():
    """Logits far from zero give a finite loss and a finite gradient."""
    logits = torch.tensor([[-200.0, -200.0], [200.0, 200.0]], requires_grad=True)
    loss = parent_loss(logits, torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.ones(1, 2)).sum()
    loss.backward()

    assert loss.isfinite()
    assert logits.grad.isfinite().all()
