"""People with two interests each, in a shop that names its categories and on a video platform whose titles tell them.

The radio says nothing: everybody listens to the same. Times fall on minutes over sixty days.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from trainer.data.histories import gather
from trainer.data.study import Study, Task
from trainer.evaluation.subject import Subject
from trainer.evaluation.transfer import PlantedSource
from xplat_stream.event import Event, Millis, Object, UserId
from xplat_stream.taxonomy import Label, Taxonomy
from xplat_stream.window import WindowSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

START_MS = 1_700_000_000_000 - 1_700_000_000_000 % 86_400_000
MINUTE_MS = 60_000
LABELS = ("books", "bikes", "music", "pets", "plants", "shoes")
TASK = Task(("shop",), ("video",), min_label_users=10)
FOLDS = 3
_WORDS = {
    "books": "novel library chapter",
    "bikes": "wheel saddle gravel",
    "music": "guitar concert drums",
    "pets": "kitten puppy aquarium",
    "plants": "orchid garden seeds",
    "shoes": "sneaker laces leather",
}
TAXONOMY = Taxonomy("people", "1", 500, tuple(Label(one, one, one.title(), (one,)) for one in LABELS))


@lru_cache(maxsize=4)
def make_people(users: int = 150, seed: int = 0) -> tuple[Event, ...]:
    """Return the events of people who do what interests them four times in five."""
    random = np.random.default_rng(seed)
    events = []
    for user in range(users):
        interests = random.choice(LABELS, 2, replace=False)
        bought = 9 if user % 3 else 6  # every third knows the shop for one event only before what is foretold
        for platform, count in (("shop", bought), ("video", 8), ("radio", 4)):
            for number, minute in enumerate(np.sort(random.integers(0, 60 * 24 * 60, count))):
                label = str(random.choice(interests if random.random() < 0.8 else LABELS))
                item = int(random.integers(6))
                thing = {
                    "shop": Object(f"s-{label}-{item}", "product", f"{label} article {item}", iab=(label,)),
                    "video": Object(f"v-{label}-{item}", "video", f"{_WORDS[label]} number {item}"),
                    "radio": Object("r", "audio", "the evening news"),
                }[platform]
                at = Millis(START_MS + int(minute) * MINUTE_MS)
                events.append(
                    Event(f"//{platform}/{user}#{number}", UserId(f"u{user:03}"), platform, "view", thing, at)
                )
    return tuple(sorted(events, key=lambda event: event.occurred_at))


def subject(events: tuple[Event, ...] | None = None) -> Subject:
    """Return the log of `make_people`, or of other events, as an evaluation takes it."""
    return Subject(gather("people", make_people() if events is None else events, TAXONOMY), WindowSpec(20))


class People:
    """The people as a source. A `trainer.data.sources.Source`."""

    name, taxonomy, expected, by_content, excluded = "people", TAXONOMY, len(make_people()), False, {}

    def identity(self) -> str:
        return "people"

    def events(self) -> Iterator[Event]:
        return iter(make_people())


def with_planted() -> Subject:
    """Return the log of the people with a platform of random items."""
    return subject(tuple(PlantedSource(People(), subject().log).events()))


@lru_cache(maxsize=1)
def study() -> Study:
    """Return their study: the shop foretold from videos."""
    return subject().study(TASK, FOLDS)
