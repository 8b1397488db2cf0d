"""A small made-up log: people with lasting interests on three platforms, of which only the shop names categories."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from xplat_stream.event import Event, Millis, Object, UserId
from xplat_stream.taxonomy import Taxonomy, load_taxonomy

DAY_MS = 86_400_000
START_MS = 1_780_000_000_000
PLATFORMS = ("shop", "social", "video")

_WORDS: dict[str, tuple[str, ...]] = {
    "automotive": ("brake pads", "engine oil", "sedan", "spark plugs", "tires", "road test"),
    "books-and-literature": ("novel", "paperback", "short stories", "poetry", "memoir", "thriller"),
    "food-and-drink": ("olive oil", "espresso", "sourdough", "curry paste", "recipe", "tasting"),
    "home-and-garden": ("sofa", "lawn mower", "curtains", "rose bush", "paint roller", "bookshelf"),
    "music-and-audio": ("guitar", "vinyl record", "headphones", "piano", "concert", "drum kit"),
    "pets": ("dog leash", "cat litter", "aquarium", "puppy", "bird cage", "kitten"),
    "sports": ("running shoes", "football", "tennis racket", "marathon", "goalkeeper", "cycling"),
    "style-and-fashion": ("lipstick", "leather boots", "dress", "handbag", "denim", "runway"),
    "technology-and-computing": ("laptop", "graphics card", "router", "keyboard", "smartphone", "compiler"),
    "travel": ("suitcase", "beach hotel", "city guide", "hiking trail", "airline", "island"),
    "video-gaming": ("console", "boss fight", "speedrun", "game controller", "quest", "strategy game"),
    "television": ("season finale", "sitcom", "series pilot", "episode recap", "streaming show", "talk show"),
}
_FRAMES = {
    "shop": ("{} set for daily use, black", "premium {} with two year warranty", "{} pack of three, large"),
    "social": ("my honest thoughts about {} this week", "{} tips that nobody told me", "why I love {} so much"),
    "video": ("{} review and full comparison", "beginner guide to {} in ten minutes", "top ten {} moments"),
}
_ACTIONS = {
    "shop": ("view", "view", "add_to_cart", "purchase"),
    "social": ("like", "comment", "share"),
    "video": ("play", "complete", "like"),
}


def taxonomy() -> Taxonomy:
    """Return the shipped taxonomy."""
    return load_taxonomy()


def catalog(random: np.random.Generator, items: int) -> dict[str, dict[str, list[Object]]]:
    """Return platform → label slug → items; every item has a text of its own."""
    found: dict[str, dict[str, list[Object]]] = {}
    names = {label.slug: label.name for label in taxonomy().labels}
    kinds = {"shop": "product", "social": "post", "video": "video"}
    for platform in PLATFORMS:
        for slug, words in _WORDS.items():
            found.setdefault(platform, {})[slug] = [
                Object(
                    id=f"{platform}-{slug}-{number}",
                    type=kinds[platform],
                    title=_FRAMES[platform][number % 3].format(str(random.choice(words))) + f" no {number}",
                    categories=(names[slug],) if platform == "shop" else (),
                )
                for number in range(items)
            ]
    return found


def words() -> list[str]:
    """Return everything a text can be made of."""
    return [
        *(word for words in _WORDS.values() for word in words),
        *(frame for one in _FRAMES.values() for frame in one),
    ]


def label_of(text: str) -> str:
    """Return the label slug whose words a text was made of."""
    return max((len(word), slug) for slug, words in _WORDS.items() for word in words if word in text)[1]


@lru_cache(maxsize=4)
def make_log(users: int, events_each: int, items: int = 8, days: int = 30, seed: int = 1) -> tuple[Event, ...]:
    """Return the events of `users` people with two or three interests each, in order of time.

    Every fifth event is noise, interests drift once in the middle, and every other user is never seen in the shop's
    categories before the last third.
    """
    random = np.random.default_rng(seed)
    items_of = catalog(random, items)
    slugs = sorted(_WORDS)
    popularity = 1.0 / np.arange(2, len(slugs) + 2)
    popularity /= popularity.sum()
    events = []
    for user in range(users):
        interests = list(random.choice(slugs, 3, replace=False, p=popularity))
        times = np.sort(random.integers(0, days * DAY_MS, events_each))
        for number, offset in enumerate(times):
            if number == events_each // 2:
                interests[0] = str(random.choice(slugs))
            slug = str(random.choice(slugs)) if random.random() < 0.2 else str(random.choice(interests))
            early = number < 2 * events_each // 3
            weights = (0.0, 0.5, 0.5) if user % 2 and early else (0.4, 0.3, 0.3)
            platform = str(random.choice(PLATFORMS, p=weights))
            item = items_of[platform][slug][int(random.integers(items))]
            action = str(random.choice(_ACTIONS[platform]))
            events.append(
                Event(
                    f"//{platform}#{user}-{number}",
                    UserId(f"u{user}"),
                    platform,
                    action,
                    item,
                    Millis(START_MS + int(offset)),
                )
            )
    return tuple(sorted(events, key=lambda event: event.occurred_at))
