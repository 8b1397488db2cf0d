"""FGM: every step is also taken at the worst point near the texts (Miyato et al. 2017, arXiv:1605.07725).

The perturbation is added to the word embeddings' output, text by text, so it works where the embeddings themselves are
frozen, as they are under every adapter but `full`.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Adversary:
    """Watches the word embeddings of an encoder, and disturbs them on request.

    `reach`: length of the disturbance as a share of the length of the text's own embeddings.
    """

    def __init__(self, words: nn.Module, reach: float) -> None:
        self._words = words
        self._reach = reach
        self._seen: Tensor | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Take note, inside the block, of what the embeddings first give and which way the loss rises there."""
        self._seen = None

        def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
            if self._seen is not None:
                return output
            self._seen = output if output.requires_grad else output.detach().requires_grad_()
            self._seen.retain_grad()
            return self._seen

        with self._hooked(keep):
            yield

    @contextmanager
    def disturbing(self) -> Iterator[None]:
        """Add, inside the block, the worst disturbance to what the embeddings first give: the batch watched."""
        left = [self._worst()]

        def disturb(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
            return output + left.pop() if left else output

        with self._hooked(disturb):
            yield

    @contextmanager
    def _hooked(self, hook: Callable[[nn.Module, Any, Tensor], Tensor]) -> Iterator[None]:
        handle = self._words.register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()

    @torch.no_grad()
    def _worst(self) -> Tensor:
        """Return r = reach · ‖x‖ · g / ‖g‖ (texts, tokens, hidden); zero where the loss does not rise."""
        if self._seen is None or self._seen.grad is None:
            message = "nothing was watched, or the loss was not differentiated"
            raise RuntimeError(message)
        gradient, words = self._seen.grad, self._seen
        steepness = gradient.flatten(1).norm(dim=1).clamp(min=torch.finfo(gradient.dtype).tiny)
        length = words.flatten(1).norm(dim=1)  # (texts,)
        worst: Tensor = gradient * (self._reach * length / steepness)[:, None, None]
        return worst
