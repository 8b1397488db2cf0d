"""Why a person has an interest: the events without which its score would be lower, and a check that this is so.

The user's window is rebuilt from the behavior topics by the worker's own code and scored by the active release. Then
each event is hidden in turn, all of them in one batch (occlusion, Zeiler and Fergus 2014). A hidden event is padding:
everything else keeps its place and its age, which is what heads are trained to bear.

**Fidelity.** Words that sound right prove nothing, so the cited events are hidden together, and as many at random:
the score has to fall further (the comprehensiveness of DeYoung et al. 2020, beside chance).
"""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
import numpy as np

from xplat_stream.errors import DataError, RejectedEvent, ReleaseError
from xplat_stream.event import UserId, hash_text, item_text
from xplat_stream.kafka.consumer import active_announcement
from xplat_stream.kafka.log import read_behavior
from xplat_stream.profile import MAX_EXAMPLE_CHARS, instant
from xplat_stream.serving.features import HeadInputs, head_inputs, newest_events
from xplat_stream.serving.releases import ModelRepository
from xplat_stream.serving.triton import TritonScorer
from xplat_stream.taxonomy import load_taxonomy
from xplat_stream.window import BehaviorWindow, WindowEvent, WindowSpec, row_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from xplat_stream.event import Event, TextHash
    from xplat_stream.serving.releases import Release
    from xplat_stream.serving.scorer import Scorer
    from xplat_stream.settings import Settings

_HOUR_MS: Final = 3_600_000
_SEED: Final = 7


class CitedEvent(msgspec.Struct, frozen=True):
    """An event that speaks for an interest. `change` is what hiding it alone does to the score: below 0."""

    event_id: str
    platform: str
    action: str
    item: str
    text: str
    occurred_at: datetime
    age_hours: float
    """Before the window's end."""
    change: float


class Fidelity(msgspec.Struct, frozen=True):
    """How far scores fall, in score points: without the cited events, and without as many random ones."""

    cited: float
    random: float
    """Mean over the draws; below 0 where the score rises without them."""
    draws: int
    holds: bool
    """Whether it falls further without the cited events."""


class ExplainedInterest(msgspec.Struct, frozen=True):
    """One interest with the events that carry it, the weightiest first.

    `events` is empty where no event raises the score: it is what the release gives to anybody.
    """

    id: str
    label: str
    score: float
    events: tuple[CitedEvent, ...]
    fidelity: Fidelity | None
    """None where no event is cited, and where a window of one event leaves nothing to compare with."""


class Explanation(msgspec.Struct, frozen=True):
    """Why a user's top interests are what they are. Times are UTC; `events` counts those the head reads."""

    user_id: UserId
    release: int
    as_of: datetime
    events: int
    interests: tuple[ExplainedInterest, ...]
    fidelity: Fidelity | None
    """The mean of the interests'."""


class Question(NamedTuple):
    """How much of an explanation is wanted."""

    interests: int = 3
    events: int = 5
    """Cited per interest at the most, and never more than half the window: else nothing is left to compare with."""
    draws: int = 32
    withheld: frozenset[str] = frozenset()
    """Labels that are not spoken of."""


def explain(settings: Settings, user_id: UserId, question: Question = Question()) -> Explanation:  # noqa: B008 - frozen
    """Explain the top interests of one user, as the log and the active release have them now.

    Raises `DataError` for a user without events, `ReleaseError` where no release is active or its files are altered,
    `TritonUnavailable`, `InvalidScores`, `KafkaUnavailable`, `DeliveryError`.
    """
    active = active_announcement(settings)
    if active is None:
        raise ReleaseError(
            "no release is active, so nothing scores anybody",
            where=settings.kafka.bootstrap,
            expected="a release announced on interest.models.v1",
            fix="Train one: `xplat train`.",
        )
    release = ModelRepository.of(settings).load(active.release)
    events = _events_of(settings, user_id)
    if not events:
        raise DataError(
            f"no admitted event of user {user_id!r}",
            where=settings.kafka.bootstrap,
            expected="a user with at least one event on a behavior topic",
            fix="`xplat tail --from-start` lists who has a profile; a log past its retention is gone.",
        )
    spec = WindowSpec(settings.window.per_platform, settings.window.horizon)
    taxonomy = load_taxonomy(settings.model.taxonomy).for_purpose(settings.model.sensitive_purpose)
    names = {label.id: label.name for label in taxonomy.labels}
    question = question._replace(withheld=frozenset(label.id for label in taxonomy.labels if label.sensitive))
    return asyncio.run(_ask_triton(settings, release, spec, events, names, question))


def _events_of(settings: Settings, user_id: UserId) -> list[Event]:
    """Return a user's admitted events. All partitions are looked through: a stray lies in any of them."""
    key = user_id.encode()
    return [
        event
        for event, _ in read_behavior(settings, key=key)
        if event is not None and not isinstance(event, RejectedEvent)
    ]


async def _ask_triton(
    settings: Settings,
    release: Release,
    spec: WindowSpec,
    events: Sequence[Event],
    names: Mapping[str, str],
    question: Question,
) -> Explanation:
    async with TritonScorer(settings.triton) as scorer:
        await scorer.require_ready()
        return await explain_events(scorer, release, spec, events, names=names, question=question)


async def explain_events(
    scorer: Scorer,
    release: Release,
    spec: WindowSpec,
    events: Sequence[Event],
    *,
    names: Mapping[str, str],
    question: Question = Question(),  # noqa: B008 - frozen
) -> Explanation:
    """Explain what a release says of one user's `events`. `names`: label id → words for people.

    Raises what the scorer raises.
    """
    window = BehaviorWindow(spec).fold((event.platform, row_of(event)) for event in events)
    seen = newest_events(window, release.manifest.max_events)  # in the order of the head's inputs
    known = {_as_window(event): event for event in sorted(events, key=lambda event: event.event_id, reverse=True)}
    one = await _inputs(scorer, release, window, events)
    width = one.action.shape[1]
    alone = np.eye(len(seen), width, dtype=bool)
    (score,) = await scorer.score(release, one)  # (labels,)
    without = await scorer.score(release, _hiding(one, alone))  # (events, labels)
    change = without - score
    labels = release.manifest.labels
    spoken = (label for label, name in enumerate(labels) if name not in question.withheld)
    top = sorted(spoken, key=lambda label: (-score[label], label))[: question.interests]
    most = min(question.events, max(1, len(seen) // 2))
    cited = {label: _cited(change[:, label], most) for label in top}
    fidelity = await _fidelity(scorer, release, one, score, cited, events=len(seen), draws=question.draws)
    return Explanation(
        user_id=events[0].user_id,
        release=release.number,
        as_of=instant(window.end),
        events=len(seen),
        interests=tuple(
            ExplainedInterest(
                labels[label],
                names.get(labels[label], labels[label]),
                round(float(score[label]), 4),
                tuple(
                    _citation(seen[row], known[seen[row]], window.end, float(change[row, label]))
                    for row in cited[label]
                ),
                fidelity.get(label),
            )
            for label in top
        ),
        fidelity=_mean(list(fidelity.values())),
    )


def _as_window(event: Event) -> WindowEvent:
    """Return an event as a window remembers it: two that look the same there are the same to the head."""
    return WindowEvent(event.platform, event.action, event.occurred_at, hash_text(item_text(event.object)))


async def _inputs(scorer: Scorer, release: Release, window: BehaviorWindow, events: Iterable[Event]) -> HeadInputs:
    wanted = window.text_hashes()
    texts = {
        text_hash: text for event in events for text_hash, text in [_hashed(event)] if text and text_hash in wanted
    }
    vectors = dict(zip(texts, await scorer.encode(release, list(texts.values())), strict=True))
    manifest = release.manifest
    return head_inputs(
        [window], vectors, platforms=manifest.platforms, width=manifest.width, max_events=manifest.max_events
    )


def _hashed(event: Event) -> tuple[TextHash, str]:
    text = item_text(event.object)
    return hash_text(text), text


def _hiding(one: HeadInputs, hidden: NDArray[np.bool_]) -> HeadInputs:
    """Return one window as often as `hidden` (variants, events) has rows, each without the events hidden there."""
    count = len(hidden)
    return HeadInputs(
        np.repeat(one.vectors, count, axis=0),
        np.repeat(one.platform, count, axis=0),
        np.where(hidden, 0, one.action).astype(np.int32),
        np.repeat(one.age, count, axis=0),
    )


def _cited(change: NDArray[np.float32], most: int) -> list[int]:
    """Return the events (rows) without which the score falls furthest; at most `most`, none that raises it."""
    order = np.argsort(change, kind="stable")[:most]
    return [int(row) for row in order if change[row] < 0]


async def _fidelity(  # noqa: PLR0913 - the check in one batch
    scorer: Scorer,
    release: Release,
    one: HeadInputs,
    score: NDArray[np.float32],
    cited: Mapping[int, list[int]],
    *,
    events: int,
    draws: int,
) -> dict[int, Fidelity]:
    """Return the check of each label that cites an event, and leaves others to compare with."""
    random = np.random.default_rng(_SEED)
    checked = {label: rows for label, rows in cited.items() if 0 < len(rows) < events}
    hidden = np.zeros((len(checked) * (1 + draws), one.action.shape[1]), bool)
    for place, rows in enumerate(checked.values()):
        block = hidden[place * (1 + draws) : (place + 1) * (1 + draws)]
        block[0, rows] = True
        for draw in block[1:]:
            draw[random.choice(events, len(rows), replace=False)] = True
    if not checked:
        return {}
    without = (await scorer.score(release, _hiding(one, hidden))).reshape(len(checked), 1 + draws, -1)
    found = {}
    for place, label in enumerate(checked):
        fall = score[label] - without[place, :, label]  # (1 + draws,)
        found[label] = _checked(float(fall[0]), float(fall[1:].mean()), draws)
    return found


def _checked(cited: float, random: float, draws: int) -> Fidelity:
    return Fidelity(round(cited, 4), round(random, 4), draws, cited > random)


def _mean(found: Sequence[Fidelity]) -> Fidelity | None:
    if not found:
        return None
    cited = sum(one.cited for one in found) / len(found)
    random = sum(one.random for one in found) / len(found)
    return _checked(cited, random, sum(one.draws for one in found))


def _citation(seen: WindowEvent, event: Event, end_ms: int, change: float) -> CitedEvent:
    return CitedEvent(
        event.event_id,
        seen.platform,
        seen.action,
        event.object.id,
        (event.object.title or item_text(event.object))[:MAX_EXAMPLE_CHARS],
        instant(seen.occurred_at),
        round((end_ms - seen.occurred_at) / _HOUR_MS, 2),
        round(change, 4),
    )
