"""What the head's parts look at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from trainer.head import Window


def windows(head, platforms: torch.Tensor) -> Window:
    """Return windows of five events of random texts, on these platforms (users, 5)."""
    random = torch.Generator().manual_seed(3)
    users = len(platforms)
    return head.window(
        torch.randn((users, 5, 64), generator=random) / 8,
        platforms,
        torch.randint(1, 26, (users, 5), generator=random),
        torch.rand((users, 5), generator=random).cumsum(1).flip(1),
    )


@torch.no_grad()
def test_all_members_but_the_first_look_at_the_targets_own_events(head) -> None:
    """Other platforms' events change the first member's answer and no other's, where the target has events."""
    window = windows(head, torch.tensor([[2, 1, 3, 2, 1]]))
    own = window._replace(present=window.present * torch.tensor([1.0, 0, 0, 1, 0]).reshape(1, 5, 1))
    whole, narrow = (head.answer(number, window)[0] for number in (0, 1))
    torch.testing.assert_close(narrow, head.answer(1, own)[0])
    assert (whole - head.answer(0, own)[0]).abs().max() > 1e-3


@torch.no_grad()
def test_where_the_target_has_no_events_all_members_look_at_the_whole(head) -> None:
    """A person known on other platforms only is scored by all of the committee."""
    window = windows(head, torch.tensor([[1, 1, 3, 3, 1]]))
    torch.testing.assert_close(head.answer(1, window)[0], head.members[1](window)[0])
