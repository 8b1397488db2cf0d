"""The head as it is exported: the answers of `trainer.networks.head`, in less than half of the time.

The head is written for training, member by member, term by term. Served, nearly all it does to an event is a linear map
of one row of features (vector, labels named, rings of age, platform, action), and nearly all it does to a window is a
weighted sum of its events. So here it is two matrix products:

- **features → all members** at once. A layer norm subtracts the mean, which is linear too; its scale of an event goes
  into the event's weight, its gain and bias into the layer behind; so normalized events are never written down.
- **weights → all sums** at once: attention, fading and recent counts, means by platform, for every member, the linear
  branch and both questions. The second question is more weights for the same events.

What is behind works on users, not on events, and is joined where members do the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.networks.head import FOCUS, QUERIES, RECENT
from xplat_stream.event import ACTIONS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trainer.networks.head import Head, Member

_HIDDEN: Final = -1e4
"""What an absent event's attention is before the softmax."""

_NORM_EPS: Final = 1e-5
"""Of `torch.nn.LayerNorm`."""


class ServedHead(nn.Module):
    """A trained head's answers, for inference alone. Inputs and outputs are those of `trainer.networks.head.Head`."""

    evidence: Tensor
    evidence_bias: Tensor
    centers: Tensor
    platform_rows: Tensor
    action_rows: Tensor
    events: Tensor
    each: Tensor
    fading: Tensor
    recent: Tensor
    smoothing: Tensor
    general: Tensor
    counts: Tensor
    shifts: Tensor
    user_bias: Tensor
    label: Tensor
    label_bias: Tensor
    prior: Tensor
    focus: Tensor

    def __init__(self, head: Head) -> None:
        super().__init__()
        self._shape = shape = head.shape
        members = _members(head)
        self._members, self._platforms, self._actions = len(members), shape.platforms + 1, len(ACTIONS) + 1
        self._questions = 1 + bool(shape.target)
        root = shape.width**0.5
        with torch.no_grad():
            self._hold("evidence", head.evidence.weight.T * root)
            self._hold("evidence_bias", head.evidence.bias)
            self._hold("centers", members[0].age_centers)
            self._hold("platform_rows", torch.eye(self._platforms))
            self._hold("action_rows", torch.eye(self._actions))
            self._hold("events", torch.cat([_centered(one) for one in members], 1))  # (features, members * width)
            self._hold("each", torch.cat([self._of_event(head), *map(_asked, members)], 1))  # (features, kinds)
            self._hold("fading", torch.stack([-functional.softplus(one.fading) for one in members])[:, None])
            self._hold("recent", torch.tensor(RECENT).log())
            self._hold("smoothing", torch.stack([functional.softplus(one.smoothing) for one in members])[:, None])
            general = torch.sigmoid(head.prior)
            self._hold("general", general / general.sum())  # (labels,), shares
            for number, one in enumerate(members):
                self._hold(f"mix_{number}", _mixing(one))
                self._hold(f"user_{number}", one.user.weight.T)
            hidden = [_layer(one) for one in members]
            behind = QUERIES * shape.width
            counts = [one.weight[:, behind:].T / 4 for one in hidden]
            # A softmax sums to one, so behind it the bias of the norm is a constant; where no event is, nobody asks.
            shifts = [
                one.bias + one.weight[:, :behind] @ member.norm.bias.repeat(QUERIES)
                for one, member in zip(hidden, members, strict=True)
            ]
            self._hold("counts", torch.cat(counts, 1))
            self._hold("shifts", torch.cat(shifts))
            self._hold("user_bias", torch.stack([one.user.bias for one in members]))
            self._hold("label", self._labels(head))
            self._hold("label_bias", self._label_bias(head))
            self._hold("prior", head.prior)
            focus = [1 - FOCUS, FOCUS] if shape.target else [1.0]
            self._hold("focus", torch.tensor(focus).reshape(1, -1, 1) / head.temperature)

    def _hold(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value.detach().clone())

    def _of_event(self, head: Head) -> Tensor:
        """Return what gives an event's gain by each member, whether it is liked, its platform and the target's share.

        (features, members + 1 + platforms + 1): all of it is known from platform and action alone.
        """
        shape = self._shape
        before = shape.width + shape.labels + len(self.centers)
        gains = [functional.softplus(one.action_gain.weight) for one in _members(head)]
        of_action = torch.cat([*gains, 1 - head.linear.negative], 1)  # (actions, members + 1)
        of_platform = torch.cat([torch.eye(self._platforms)[:, 1:], head.target], 1)  # (platforms + 1, platforms + 1)
        of_both = torch.cat(
            [functional.pad(of_platform, (0, of_action.shape[1])), functional.pad(of_action, (of_platform.shape[1], 0))]
        )
        return functional.pad(of_both, (0, 0, before, 0))

    def _labels(self, head: Head) -> Tensor:
        """Return the last layer, of: what is mixed, lifts, recent counts, all counts, mean text, text by platform."""
        members, labels = _members(head), self._shape.labels
        mine, lines = (1 - head.share) / len(members), head.share * head.linear.out.weight.T
        carried = [torch.split(one.carry.weight.T, labels) for one in members]  # lifts, recent counts, all counts
        return torch.cat([
            *(mine * one.label.weight.T for one in members),
            *(mine * (carry[0] + one.belief * torch.eye(labels)) for one, carry in zip(members, carried, strict=True)),
            *(mine * carry[1] for carry in carried), lines[:labels],
            *(mine * carry[2] for carry in carried), lines[labels : 2 * labels],
            self._shape.width**0.5 * mine * torch.stack([one.text.weight.T for one in members]).sum(0),
            lines[2 * labels :] / 2,
        ])  # fmt: skip

    def _label_bias(self, head: Head) -> Tensor:
        mine = torch.stack([one.label.bias for one in _members(head)]).mean(0)
        return (1 - head.share) * mine + head.share * (head.linear.out.bias - head.prior)

    def forward(self, vectors: Tensor, platform: Tensor, action: Tensor, age: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores in [0, 1] (users, labels) and user vectors (users, width)."""
        present = (action > 0).to(torch.float32).unsqueeze(1)  # (users, 1, events)
        features = self._features(vectors.to(torch.float32), platform, action, age)
        logits, user = self._answers(self._sums(features, present, age))
        there = present.amax(-1)  # (users, 1), 0 for an empty window: it says nothing beyond the prior
        return torch.sigmoid(self.prior + logits * there), functional.normalize(user * there, dim=-1)

    def _features(self, vectors: Tensor, platform: Tensor, action: Tensor, age: Tensor) -> Tensor:
        """Return the events' rows (users, events, features)."""
        has_text = (_squared(vectors).sum(-1, keepdim=True) > 0).to(torch.float32)
        named = torch.sigmoid(vectors @ self.evidence + self.evidence_bias) * has_text
        rings = torch.exp(-_squared(age.unsqueeze(-1) - self.centers))
        place, what = functional.embedding(platform, self.platform_rows), functional.embedding(action, self.action_rows)
        return torch.cat([vectors, named, rings, place, what], -1)

    def _sums(self, features: Tensor, present: Tensor, age: Tensor) -> Sequence[Tensor]:
        """Return the weighted sums of features, kind by kind: (users, questions, of the kind, features) each."""
        members, width = self._members, self._shape.width
        normal = torch.unflatten(features @ self.events, -1, (members, width))  # all but its scale
        scale = torch.rsqrt(_squared(normal).sum(-1).transpose(1, 2) / width + _NORM_EPS)  # (users, members, events)
        each = (features @ self.each).transpose(1, 2)  # (users, kinds, events)
        kinds = [self._platforms - 1, 1, members + 1, members * QUERIES]
        here, on_target, gain, asked = torch.split(
            each, kinds, dim=1
        )  # `gain`: by each member, and 1 where it is liked
        counted = present  # (users, questions, events)
        if self._questions > 1:
            own = present * on_target
            counted = torch.cat([present, torch.where(own.amax(-1, keepdim=True) > 0, own, present)], 1)
        younger = (age.unsqueeze(1) < age.unsqueeze(2)).to(torch.float32)  # (users, event, event younger than it)
        recent = torch.exp(self.recent * (counted @ younger.transpose(1, 2))).unsqueeze(
            2
        )  # (users, questions, 1, events)
        counted = counted.unsqueeze(2)

        asked = torch.unflatten(asked, 1, (members, QUERIES)) * scale.unsqueeze(2)  # (users, members, queries, events)
        hidden = ((1 - counted) * _HIDDEN).unsqueeze(2)
        attention = torch.softmax(asked.unsqueeze(1) + hidden, -1) * counted.unsqueeze(2)
        gain = gain.unsqueeze(1) * counted
        weights = [
            torch.flatten(attention * scale.unsqueeze(2).unsqueeze(1), 2, 3),
            attention[:, :, :, 0],  # by each member's first query, of what is not normalized
            here.unsqueeze(1) * counted,
            counted,
            gain[:, :, :-1] * torch.exp(self.fading * age.unsqueeze(1)).unsqueeze(1),
            gain * recent,
            gain,
        ]  # (users, questions, of the kind, events) each
        sums = torch.flatten(torch.cat(weights, 2), 1, 2) @ features
        kinds = [members * QUERIES, members, self._platforms - 1, 1, members, 2 * (members + 1)]
        return torch.split(torch.unflatten(sums, 1, (self._questions, sum(kinds))), kinds, dim=2)

    def _answers(self, sums: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return what the sums say beyond the prior, as logits (users, labels), and the user vectors (users, width)."""
        pooled, first, of_platform, total, faded, counts = sums
        members, width, labels = self._members, self._shape.width, self._shape.labels
        named = slice(width, width + labels)
        places = slice(width + labels + len(self.centers), -self._actions)
        number = total[:, :, 0, places]
        number = torch.cat([number, number.sum(-1, keepdim=True)], -1)  # (users, questions, platforms + 2)

        pooled = torch.flatten(torch.unflatten(pooled, 2, (members, QUERIES)), 3)  # (…, members, queries * features)
        hidden = torch.cat([pooled[:, :, one] @ self.get_buffer(f"mix_{one}") for one in range(members)], -1)
        mixed = functional.gelu(hidden + torch.log1p(number) @ self.counts + self.shifts)
        lifted = faded[..., named]
        share = (lifted + self.smoothing * self.general) / (lifted.sum(-1, keepdim=True) + self.smoothing)
        roots = torch.rsqrt(number[..., 1:-1].clamp(min=1.0)).unsqueeze(-1)
        known = [
            mixed,
            torch.flatten(torch.log(share / self.general), 2),
            torch.flatten(torch.log1p(counts[..., named]), 2),
            total[:, :, 0, :width] / number[..., -1:].clamp(min=1.0),
            torch.flatten(of_platform[..., :width] * roots, 2),
        ]
        logits = torch.cat(known, -1) @ self.label + self.label_bias  # (users, questions, labels)

        whole = torch.unflatten(mixed[:, 0], -1, (members, self._shape.hidden))
        users = torch.stack([whole[:, one] @ self.get_buffer(f"user_{one}") for one in range(members)], 1)
        users = functional.normalize(first[:, 0, :, :width] * width**0.5 + users + self.user_bias, dim=-1)
        return (logits * self.focus).sum(1), users.mean(1)


def _squared(values: Tensor) -> Tensor:
    return values * values  # exported as a product, which onnxruntime does in half the time of its `Pow`


def _members(head: Head) -> list[Member]:
    return cast("list[Member]", list(head.members))


def _layer(member: Member) -> nn.Linear:
    """Return the layer that mixes what is pooled with how many events there are."""
    return cast("nn.Linear", member.mix[1])


def _projection(member: Member) -> Tensor:
    """Return an event's features → its vector before the norm (features, width). Every event has one platform."""
    texts = member.event.weight.T * member.event.in_features**0.5
    platform = member.platform.weight + member.event.bias + member.age.bias
    parts = [texts, member.named.weight.T, member.age.weight.T, platform, member.action.weight]
    return torch.cat(parts)


def _centered(member: Member) -> Tensor:
    """Return the same, its mean subtracted as a layer norm does."""
    whole = _projection(member)
    return whole - whole.mean(1, keepdim=True)


def _asked(member: Member) -> Tensor:
    """Return an event's features → its attention by each query, before the norm's scale (features, queries)."""
    return _centered(member) @ (member.queries.weight * member.norm.weight).T


def _mixing(member: Member) -> Tensor:
    """Return features pooled by each query → the hidden layer (queries * features, hidden)."""
    by_query = _layer(member).weight[:, : QUERIES * member.norm.weight.numel()]
    read = torch.unflatten(by_query.T, 0, (QUERIES, -1))  # (queries, width, hidden)
    return torch.flatten(_centered(member) @ (member.norm.weight[:, None] * read), 0, 1)
