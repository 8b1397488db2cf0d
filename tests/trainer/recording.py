"""Small recorded folders: a good one of platforms unlike any of this project's, and ways to spoil it."""

from __future__ import annotations

import gzip
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

START_S = 1_400_000_000
DAY_S = 86_400
SUBJECTS = ("rust", "sewing", "bees", "jazz", "chess", "ovens")
PLATFORMS = ("forum-eu", "git_hub", "library2")
ACTIONS = {"forum-eu": ("comment", "like", ""), "git_hub": ("follow", "view", "save"), "library2": ("read", "", "hide")}

_ODD = ("ünïcode ☕", "semi;colon", "日本", "a/b\\c", "😀", " space ", 'quote"')


def odd_name(number: int) -> str:
    """Return a user id with characters that files, shells and logs trip over."""
    return f"{_ODD[number % len(_ODD)]}-{number}"


def rows(users: int = 90, each: int = 30, seed: int = 4) -> tuple[list[Sequence[str]], list[Sequence[str]]]:
    """Return events and items: people with two subjects each, tags on two platforms, every third title missing."""
    chance = random.Random(seed)
    items: list[Sequence[str]] = []
    known: dict[tuple[str, str], list[str]] = {}
    for platform in PLATFORMS:
        for subject in SUBJECTS:
            for number in range(4):
                item = f"{platform[:2]}:{subject}#{number}"
                title = "" if number == 2 else f"{subject} {('basics', 'advanced', '', 'stories')[number]} {number}"
                tags = "" if platform == "library2" else f"{subject.upper()}, all"
                items.append((item, platform, title, "", tags))
                known.setdefault((platform, subject), []).append(item)
    events: list[Sequence[str]] = []
    for user in range(users):
        interests = chance.sample(SUBJECTS, 2)
        for time in sorted(chance.uniform(0, 400 * DAY_S) for _ in range(each)):
            platform = chance.choice(PLATFORMS)
            subject = chance.choice(interests) if chance.random() < 0.85 else chance.choice(SUBJECTS)
            item = chance.choice(known[platform, subject])
            action = chance.choice(ACTIONS[platform])
            events.append((odd_name(user), platform, item, f"{START_S + time:.3f}", action))
    return events, items


def write(folder: Path, events: Sequence[Sequence[str]], items: Sequence[Sequence[str]]) -> Path:
    """Write a recording with the optional columns `action` and `tags`; the events gzipped, the items plain."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(row) for row in [("user", "platform", "item", "ts", "action"), *events]]
    (folder / "events.tsv.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    lines = ["\t".join(row) for row in [("item", "platform", "title", "categories", "tags"), *items]]
    (folder / "items.tsv").write_text("\n".join(lines) + "\n", "utf-8")
    return folder
