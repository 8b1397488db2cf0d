"""The pace of a training: its learning rate, its randomness and its end."""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor, nn

WARM_UP: Final = 0.1


@contextmanager
def seeded(seed: int, threads: int) -> Iterator[np.random.Generator]:
    """Fix torch's randomness and threads inside the block, and give a numpy generator; put both back afterwards."""
    before = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if threads:
            torch.set_num_threads(threads)
        try:
            yield np.random.default_rng(seed)
        finally:
            torch.set_num_threads(before)


def step_generator(seed: int, purpose: str, step: int, rank: int = 0) -> np.random.Generator:
    """Return the randomness of one step (or epoch), and set torch's to the same. It depends on nothing before it.

    That is why a training that goes on from a checkpoint draws what the uninterrupted one would have drawn. `rank`:
    which of several processes draws.
    """
    sequence = np.random.SeedSequence((seed, *purpose.encode(), step, rank))
    torch.manual_seed(int(sequence.generate_state(1)[0]))
    return np.random.default_rng(sequence)


def schedule(
    optimizer: torch.optim.Optimizer, steps: int, *, warm_up: float = WARM_UP
) -> torch.optim.lr_scheduler.LambdaLR:
    """Rise linearly over the first share `warm_up` of the steps, then fall as a cosine to zero."""
    rise = max(1, round(steps * warm_up))

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rise) / max(1, steps - rise))))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


class Patience:
    """Keeps the weights of the best epoch and says when enough epochs came without a better one."""

    def __init__(self, module: nn.Module, epochs: int) -> None:
        self._names = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
        self._module = module
        self._epochs = epochs
        self._best: dict[str, Tensor] = {}
        self._since = 0
        self.best_loss = math.inf

    def enough(self, loss: float) -> bool:
        """Take note of an epoch's loss; tell whether to stop."""
        if loss < self.best_loss:
            self.best_loss = loss
            self._since = 0
            self._best = {name: weight.clone() for name, weight in self._weights().items()}
        else:
            self._since += 1
        return self._since >= self._epochs

    def restore(self) -> None:
        """Put the best epoch's weights back."""
        self._module.load_state_dict(self._best, strict=False)

    def state(self) -> dict[str, Any]:
        """Return the weights as they are, and the best ones, for a checkpoint."""
        return {"weights": self._weights(), "best": self._best, "best_loss": self.best_loss, "since": self._since}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from `state()`."""
        self._module.load_state_dict(state["weights"], strict=False)
        self._best, self.best_loss, self._since = dict(state["best"]), state["best_loss"], state["since"]

    def _weights(self) -> dict[str, Tensor]:
        state = self._module.state_dict()
        return {name: state[name].detach() for name in sorted(self._names)}
