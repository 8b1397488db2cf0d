"""What the head's parts look at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from trainer.networks.head import Window


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
def test_the_targets_own_events_are_heard_alone_too(head) -> None:
    """Where the target has events, its own say more in the answer than in that of a head without a target."""
    window = windows(head, torch.tensor([[2, 1, 3, 2, 1]]))
    own = window._replace(present=window.present * torch.tensor([1.0, 0, 0, 1, 0]).reshape(1, 5, 1))
    found, narrow = head.residual(window)[0], head.residual(own)[0]
    head.shape = head.shape._replace(target=frozenset())
    plain = head.residual(window)[0]
    assert ((found - narrow).abs() < (plain - narrow).abs()).all()


@torch.no_grad()
def test_who_has_no_event_on_the_target_is_judged_by_the_whole(head) -> None:
    """A person known on other platforms only is scored as by a head without a target."""
    window = windows(head, torch.tensor([[1, 1, 3, 3, 1]]))
    found = head.residual(window)
    head.shape = head.shape._replace(target=frozenset())
    torch.testing.assert_close(found, head.residual(window))
