"""The head: vectors of a window → calibrated label scores and a user vector. What Triton serves beside the encoder.

It is a small committee that answers as one network. Its **members** pool the window's vectors with learned queries; its
**linear branch** is a logistic regression on label counts and on the mean text of each platform, which is what a person
would try first, which is strong on little data, and which errs differently: their logits are averaged. All of them
read the labels that a text names from its vector, by one shared layer. Where the labels of some platforms alone are
foretold, the committee is asked twice: about the whole window, and about the events on those platforms.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from xplat_stream.event import ACTIONS, NEGATIVE_ACTIONS

if TYPE_CHECKING:
    from collections.abc import Sequence

QUERIES: Final = 4
_AGE_CENTERS: Final = 13
"""Of log(1 + hours), one apart: about 0, 2, 6 and 19 hours, 2, 6, 17 and 46 days, and on to 18 years."""

RECENT: Final = 0.85
"""An event counts for this much of the next newer one in the recent label counts (notes: the best of four)."""

FOCUS: Final = 0.4
"""Of the target's own events in the answer. NDCG@10 on recorded reviews: 0 .6826, .3 .6863, .5 .6861, 1 .6801."""


class HeadShape(NamedTuple):
    """What fixes the shape of a head."""

    labels: int
    platforms: int
    width: int = 64
    hidden: int = 128
    dropout: float = 0.3
    target: frozenset[int] = frozenset()
    """Platforms, by index from 1, whose labels alone are foretold; none: those of all."""


class Window(NamedTuple):
    """A batch of windows as members and linear branch read them."""

    texts: Tensor  # (users, events, width), unit vectors times the root of the width; zero where there is no text
    named: Tensor  # (users, events, labels), how surely the text names the label, in [0, 1]
    platform: Tensor  # (users, events), 0 = a platform the release does not know
    action: Tensor  # (users, events), 0 = padding
    age: Tensor  # (users, events), log(1 + hours)
    present: Tensor  # (users, events, 1), 1 where there is an event


class Head(nn.Module):
    """Vectors of a window → calibrated label scores and a user vector in the space of the text vectors."""

    prior: Tensor
    temperature: Tensor
    share: Tensor
    target: Tensor

    def __init__(self, shape: HeadShape, prior: Tensor, members: int = 1) -> None:
        super().__init__()
        self.shape = shape
        self.register_buffer("prior", prior.clone())  # (labels,), logits of the label frequencies
        self.register_buffer("temperature", torch.ones(()))
        self.register_buffer("share", torch.zeros(()))  # of the linear branch in the answer
        on_target = [float(one in shape.target) for one in range(shape.platforms + 1)]
        self.register_buffer("target", torch.tensor(on_target).unsqueeze(-1))  # (platforms + 1, 1)
        self.evidence = nn.Linear(shape.width, shape.labels)
        self.members = nn.ModuleList(Member(shape, prior) for _ in range(members))
        self.linear = Linear(shape)

    def window(self, vectors: Tensor, platform: Tensor, action: Tensor, age: Tensor) -> Window:
        """Return the inputs (`xplat_stream.serving.features.HeadInputs`) with the labels that the texts name."""
        present = (action > 0).to(torch.float32).unsqueeze(-1)
        # Unit vectors have components near width^-1/2; layers start best near 1.
        texts = vectors.to(torch.float32) * self.shape.width**0.5
        has_text = (texts.abs().sum(-1, keepdim=True) > 0).to(torch.float32)
        return Window(texts, torch.sigmoid(self.evidence(texts)) * has_text, platform, action, age, present)

    def residual(self, window: Window) -> tuple[Tensor, Tensor]:
        """Return what windows say beyond the prior, as logits (users, labels), and the user vectors (users, width).

        What people do elsewhere says little once they are known on the target's own platforms, and there is noise in
        it: what those say alone is mixed in. Who has no event there is judged by the whole.
        """
        logits, user = self._answer(window)
        if self.shape.target:
            own = window.present * functional.embedding(window.platform, self.target)  # (users, events, 1)
            known = own.amax(1, keepdim=True)  # (users, 1, 1)
            narrow, _ = self._answer(window._replace(present=torch.where(known > 0, own, window.present)))
            logits = (1 - FOCUS) * logits + FOCUS * narrow
        return logits, user

    def _answer(self, window: Window) -> tuple[Tensor, Tensor]:
        answers = [member(window) for member in self.members]
        logits = torch.stack([answer[0] for answer in answers]).mean(0)
        user = torch.stack([answer[1] for answer in answers]).mean(0)
        known = window.present.amax(1)  # (users, 1), 0 for an empty window: it says nothing beyond the prior
        logits = (1 - self.share) * logits + self.share * (self.linear(window) - self.prior)
        return logits * known, functional.normalize(user * known, dim=-1)

    def forward(self, vectors: Tensor, platform: Tensor, action: Tensor, age: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores in [0, 1] (users, labels) and user vectors (users, width).

        The temperature draws a score towards the prior, so an empty window scores the label frequencies themselves.
        """
        logits, user = self.residual(self.window(vectors, platform, action, age))
        return torch.sigmoid(self.prior + logits / self.temperature), user


class Member(nn.Module):
    """One pooling network of the committee."""

    prior: Tensor
    age_centers: Tensor
    platforms: Tensor

    def __init__(self, shape: HeadShape, prior: Tensor) -> None:
        super().__init__()
        width = shape.width
        self.register_buffer("prior", prior.clone())
        self.register_buffer("age_centers", torch.arange(float(_AGE_CENTERS)))
        self.register_buffer("platforms", torch.arange(shape.platforms + 1, dtype=torch.int32))
        self.event = nn.Linear(width, width)
        self.named = nn.Linear(shape.labels, width, bias=False)
        self.platform = nn.Embedding(shape.platforms + 1, width)
        self.action = nn.Embedding(len(ACTIONS) + 1, width)
        self.age = nn.Linear(_AGE_CENTERS, width)
        self.norm = nn.LayerNorm(width)
        self.queries = nn.Linear(width, QUERIES, bias=False)
        self.mix = nn.Sequential(
            nn.Dropout(shape.dropout / 2),
            nn.Linear(QUERIES * width + shape.platforms + 2, shape.hidden),
            nn.GELU(),
            nn.Dropout(shape.dropout),
        )
        self.label = nn.Linear(shape.hidden, shape.labels)
        self.user = nn.Linear(shape.hidden, width)
        # Counting: how much each action counts, how fast it fades, how many events of popularity it is smoothed with,
        # and how much the outcome is believed.
        self.action_gain = nn.Embedding(len(ACTIONS) + 1, 1)
        self.fading = nn.Parameter(torch.tensor(-1.5))
        self.smoothing = nn.Parameter(torch.tensor(1.0))
        self.belief = nn.Parameter(torch.tensor(0.5))
        self.carry = nn.Linear(3 * shape.labels, shape.labels, bias=False)
        self.text = nn.Linear(width, shape.labels, bias=False)
        for embedding in (self.platform, self.action):
            nn.init.normal_(embedding.weight, std=0.1)
        for layer in (self.carry, self.text, self.label):
            nn.init.zeros_(layer.weight)
        nn.init.zeros_(self.label.bias)
        negative = [-3.0 if action in NEGATIVE_ACTIONS else 0.5 for action in ACTIONS]
        self.action_gain.weight.data.copy_(torch.tensor([-3.0, *negative]).unsqueeze(-1))

    def counting(self) -> list[nn.Parameter]:
        """Return the few weights of the counting, each of which has to move far."""
        return [*self.action_gain.parameters(), self.fading, self.smoothing, self.belief]

    def forward(self, window: Window) -> tuple[Tensor, Tensor]:
        """Return logits beyond the prior (users, labels) and a vector of the user (users, width)."""
        present = window.present
        rings = torch.exp(-((window.age.unsqueeze(-1) - self.age_centers) ** 2))  # (users, events, centers)
        events = self.norm(
            self.event(window.texts)
            + self.named(window.named)
            + self.platform(window.platform)
            + self.action(window.action)
            + self.age(rings)
        )
        attention = _masked_softmax(self.queries(events), present)  # (users, events, queries)
        pooled = (attention.transpose(1, 2) @ events).flatten(1)  # (users, queries * width)
        of_platform = (window.platform.unsqueeze(-1) == self.platforms).to(torch.float32)
        counts = (of_platform * present).sum(1)  # (users, platforms + 1)
        counts = torch.log1p(torch.cat([counts, present.sum(1)], dim=-1)) / 4.0
        mixed = self.mix(torch.cat([pooled, counts], dim=-1))  # (users, hidden)
        gain = functional.softplus(self.action_gain(window.action)) * present  # (users, events, 1)
        faded = gain * torch.exp(-functional.softplus(self.fading) * window.age.unsqueeze(-1))
        lift = self._lift((window.named * faded).sum(1))  # (users, labels)
        counted = torch.cat([lift, *(torch.log1p(part) for part in label_counts(window, gain))], dim=-1)
        mean = (window.texts * present).sum(1) / present.sum(1).clamp(min=1.0)  # (users, width)
        logits = self.label(mixed) + self.belief * lift + self.carry(counted) + self.text(mean)
        return logits, functional.normalize((attention[..., :1] * window.texts).sum(1) + self.user(mixed), dim=-1)

    def _lift(self, counted: Tensor) -> Tensor:
        """Return how many times more often than in general a label was counted, as a smoothed logarithm."""
        general = torch.sigmoid(self.prior)
        general = general / general.sum()  # (labels,), shares
        smoothing = functional.softplus(self.smoothing)
        share = (counted + smoothing * general) / (counted.sum(-1, keepdim=True) + smoothing)
        return torch.log(share / general)


class Linear(nn.Module):
    """Logistic regression on label counts and on the mean text of each platform. Fitted by itself, to convergence."""

    negative: Tensor

    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        self.platforms = shape.platforms
        negative = [1.0, *(float(action in NEGATIVE_ACTIONS) for action in ACTIONS)]
        self.register_buffer("negative", torch.tensor(negative).unsqueeze(-1))  # (actions + 1, 1)
        self.out = nn.Linear(2 * shape.labels + shape.platforms * shape.width, shape.labels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def features(self, window: Window) -> Tensor:
        """Return what the regression reads (users, features)."""
        counted = window.present * (1 - functional.embedding(window.action, self.negative))
        parts = [torch.log1p(part) for part in label_counts(window, counted)]
        for platform in range(1, self.platforms + 1):
            here = window.present * (window.platform == platform).to(torch.float32).unsqueeze(-1)
            number = here.sum(1).clamp(min=1.0)
            # The mean, growing with the root of how much there is: ten events say more than one, not ten times more.
            parts.append((window.texts * here).sum(1) / number.sqrt() / (2 * window.texts.shape[-1] ** 0.5))
        return torch.cat(parts, dim=-1)

    def forward(self, window: Window) -> Tensor:
        """Return logits (users, labels)."""
        logits: Tensor = self.out(self.features(window))
        return logits


def label_counts(window: Window, weight: Tensor) -> Sequence[Tensor]:
    """Return the counts of recent labels and of all (users, labels), an event counting `weight` (users, events, 1)."""
    # Counted by age, not by place: the order that events come in changes no score. Of one age, none is newer.
    younger = (window.age.unsqueeze(1) < window.age.unsqueeze(2)).to(torch.float32)  # (users, events, events)
    newer = younger @ window.present  # (users, events, 1)
    return (window.named * weight * RECENT**newer).sum(1), (window.named * weight).sum(1)


def _masked_softmax(scores: Tensor, present: Tensor) -> Tensor:
    """Softmax over events (dimension 1) of those present; all zero, not NaN, when none is."""
    hidden = scores.masked_fill(present == 0, -1e4)
    weights = torch.exp(hidden - hidden.amax(1, keepdim=True)) * present
    return weights / weights.sum(1, keepdim=True).clamp(min=1e-9)
