"""A population whose true interests are known. Pure: no clock, no Kafka, nothing but the standard library.

Each user has two to four strong interests that drift over days: one fades out while another comes in. Drift is a pure
function of (seed, user, time), so `truth` can be asked for any moment without playing the events up to it.
Everything is drawn from `random.Random`: the same seed gives the same events, on a bare install.
"""

from __future__ import annotations

import math
from datetime import timedelta
from functools import lru_cache
from itertools import accumulate
from random import Random
from typing import TYPE_CHECKING, Final, NamedTuple

from xplat_stream.catalogue import PLATFORMS, make_catalogue
from xplat_stream.event import Event, Millis, UserId

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from xplat_stream.catalogue import Item
    from xplat_stream.taxonomy import Taxonomy

_DAY_MS: Final = timedelta(days=1) // timedelta(milliseconds=1)
_TENURE_DAYS: Final = (12.0, 45.0)
"""How long one interest holds its place with a user, fading included."""
_FADE: Final = 0.3
"""The last part of a tenure, in which the next interest takes over."""
_FLOOR: Final = 0.1
"""Share of all weight that lies evenly on every label: people look at anything now and then."""
_NEGATIVE_SHARE: Final = 0.06
_PLATFORM_COUNTS: Final = ((1, 2, 3), (0.2, 0.35, 0.45))

_ACTIONS: Final[dict[str, dict[str, int]]] = {
    "shop": {"impression": 6, "view": 46, "click": 16, "save": 6, "add_to_cart": 12, "purchase": 9, "rate": 5},
    "video": {"impression": 8, "play": 38, "progress": 16, "complete": 22, "like": 9, "save": 3, "follow": 4},
    "social": {"impression": 8, "view": 20, "read": 30, "like": 24, "comment": 7, "share": 6, "follow": 5},
}
_NEGATIVE: Final[dict[str, dict[str, int]]] = {
    "shop": {"hide": 5, "remove_from_cart": 3, "refund": 2},
    "video": {"skip": 7, "dislike": 3},
    "social": {"hide": 5, "skip": 3, "unfollow": 1, "report": 1},
}


class _Mix:
    """Weighted choice with the running sums kept: `Random.choices` would add them up at every draw."""

    __slots__ = ("_sums", "_values")

    def __init__(self, values: Sequence[str], weights: Sequence[float]) -> None:
        self._values, self._sums = values, list(accumulate(weights))

    def draw(self, rng: Random) -> str:
        return rng.choices(self._values, cum_weights=self._sums)[0]


class _Person(NamedTuple):
    """The fixed traits of a user; what they are interested in at a time follows from these."""

    user_id: UserId
    ordinal: int
    platforms: _Mix
    strengths: tuple[float, ...]  # one a slot, the strongest first, summing to 1
    slots: tuple[tuple[float, float, tuple[_Mix, _Mix]], ...]  # tenure ms, phase ms, labels of even and odd tenures


class Population:
    """Users with latent interests over a taxonomy, on three platforms (shop, video, social)."""

    def __init__(self, taxonomy: Taxonomy, *, users: int, seed: int, items_per_label: int = 20) -> None:
        if users < 1 or items_per_label < 1:
            message = f"users is {users} and items_per_label {items_per_label}; expected at least 1 of each"
            raise ValueError(message)
        self.taxonomy = taxonomy
        self.seed = seed
        rng = Random(f"{seed}:population")
        self._catalogue = make_catalogue(taxonomy, rng, items_per_label=items_per_label)
        self._zipf = list(accumulate(1 / rank for rank in range(1, items_per_label + 1)))
        self._labels = taxonomy.ids()
        ranks = list(range(len(self._labels)))
        rng.shuffle(ranks)
        self._popularity = {label: 1 / (rank + 3) ** 0.7 for label, rank in zip(self._labels, ranks, strict=True)}
        self._people = [self._person(index) for index in range(users)]
        self._by_id = {person.user_id: person for person in self._people}
        self._activity = list(accumulate(rng.lognormvariate(0.0, 0.8) for _ in range(users)))
        self._actions = {name: _Mix(tuple(mix), tuple(mix.values())) for name, mix in _ACTIONS.items()}
        self._negative = {name: _Mix(tuple(mix), tuple(mix.values())) for name, mix in _NEGATIVE.items()}
        self._label_at = lru_cache(maxsize=100_000)(self._drawn_label)

    def _person(self, index: int) -> _Person:
        rng = Random(f"{self.seed}:person:{index}")
        kept = rng.sample(PLATFORMS, rng.choices(*_PLATFORM_COUNTS)[0])
        usage = [rng.uniform(0.2, 1.0) for _ in kept]
        count = max(1, min(rng.randint(2, 4), len(self._labels) // 2))
        raw = sorted((rng.uniform(0.5, 2.0) for _ in range(count)), reverse=True)
        # Labels are dealt out over (slot, parity of the tenure), so that no two slots hold the same one
        # and an interest is always followed by another.
        dealt = rng.sample(self._labels, len(self._labels))
        slots = []
        for slot in range(count):
            tenure = rng.uniform(*_TENURE_DAYS) * _DAY_MS
            groups = [dealt[2 * slot + parity :: 2 * count] or dealt for parity in (0, 1)]
            even, odd = (_Mix(group, [self._popularity[label] for label in group]) for group in groups)
            slots.append((tenure, rng.uniform(0, tenure), (even, odd)))
        strengths = tuple(value / sum(raw) for value in raw)
        return _Person(UserId(f"user-{index:05d}"), index, _Mix(kept, usage), strengths, tuple(slots))

    def _drawn_label(self, index: int, slot: int, number: int) -> str:
        mix = self._people[index].slots[slot][2][number % 2]
        return mix.draw(Random(f"{self.seed}:{index}:{slot}:{number}"))

    def _held(self, person: _Person, slot: int, at_ms: int) -> tuple[str, str, float]:
        """Return a slot's label, the one that follows, and how far the change has come (0 to 1)."""
        tenure, phase, _ = person.slots[slot]
        number = math.floor((at_ms + phase) / tenure)
        gone = (at_ms + phase) / tenure - number
        share = max(0.0, (gone - (1 - _FADE)) / _FADE)
        return self._label_at(person.ordinal, slot, number), self._label_at(person.ordinal, slot, number + 1), share

    def _weights(self, person: _Person, at_ms: int) -> dict[str, float]:
        weights = dict.fromkeys(self._labels, _FLOOR / len(self._labels))
        for slot, strength in enumerate(person.strengths):
            now, following, share = self._held(person, slot, at_ms)
            weights[now] += (1 - _FLOOR) * strength * (1 - share)
            weights[following] += (1 - _FLOOR) * strength * share
        return weights

    def truth(self, at_ms: int) -> dict[str, dict[str, float]]:
        """Return every user's latent interest weights (label id → weight, summing to 1) at a moment."""
        return {person.user_id: self._weights(person, at_ms) for person in self._people}

    def interests(self, user_id: UserId, at_ms: int) -> dict[str, float]:
        """Return one user's latent interest weights, as `truth` does of all. Raises `KeyError` for a stranger."""
        return self._weights(self._by_id[user_id], at_ms)

    def items(self) -> Iterator[Item]:
        """Yield the whole catalogue."""
        for items in self._catalogue.values():
            yield from items

    def source(self, start_ms: int) -> Callable[[int], Event]:
        """Return a function from event time to the next event of a run that starts at `start_ms`.

        The start is part of the ids, so that a second run with the same seed publishes new events, not new contents
        under old ids. The same run again gives the same events, which change nothing.
        """
        rng = Random(f"{self.seed}:events:{start_ms}")
        serial = iter(range(1, 1 << 62))

        def following(at_ms: int) -> Event:
            person = rng.choices(self._people, cum_weights=self._activity)[0]
            platform = person.platforms.draw(rng)
            if rng.random() < _NEGATIVE_SHARE:
                label, action = self._disliked(rng, person, at_ms), self._negative[platform].draw(rng)
            else:
                label, action = self._liked(rng, person, at_ms), self._actions[platform].draw(rng)
            items = self._catalogue[platform, label]
            item = rng.choices(items, cum_weights=self._zipf[: len(items)])[0]
            event_id = f"//{platform}.example/sim#{self.seed}-{start_ms}-{next(serial)}"
            return Event(event_id, person.user_id, platform, action, item.object, Millis(at_ms))

        return following

    def _liked(self, rng: Random, person: _Person, at_ms: int) -> str:
        if rng.random() < _FLOOR:
            return rng.choice(self._labels)
        slot = rng.choices(range(len(person.strengths)), person.strengths)[0]
        now, following, share = self._held(person, slot, at_ms)
        return following if rng.random() < share else now

    def _disliked(self, rng: Random, person: _Person, at_ms: int) -> str:
        """Return a label the user holds no strong interest in: nobody hides what they came for."""
        strong = {label for slot in range(len(person.strengths)) for label in self._held(person, slot, at_ms)[:2]}
        outside = [label for label in self._labels if label not in strong]
        return rng.choice(outside or self._labels)

    def events(self, start_ms: int, end_ms: int, count: int) -> Iterator[Event]:
        """Yield `count` events in time order, spread evenly over [start_ms, end_ms). Holds none of them in memory."""
        following = self.source(start_ms)
        rng = Random(f"{self.seed}:times:{start_ms}")
        at = float(start_ms)
        for left in range(count, 0, -1):
            at += (end_ms - at) * (1.0 - rng.random() ** (1.0 / left))  # the smallest of `left` uniform draws
            yield following(min(int(at), end_ms - 1))
