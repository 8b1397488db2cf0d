"""What is published for a user. Pure: a profile is a function of (window, model release, what was published before).

`as_of` is T, the window's newest event, never the clock: replaying the log gives the same interests as running live.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import msgspec

from xplat_stream.event import ACTIONS, Millis, TextHash, UserId

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from xplat_stream.state import Publication
    from xplat_stream.taxonomy import Taxonomy
    from xplat_stream.window import BehaviorWindow

Status = Literal["fresh", "stale", "degraded", "cold_start", "erased"]
Cause = Literal["behavior", "model", "decay", "late", "erase", "user"]
Trend = Literal["rising", "steady", "falling", "new", "unknown"]

TREND_STEP: Final = 0.01
"""A score that moved by less than this is steady: the calibration of a score is no finer."""

MAX_EVIDENCE: Final = 3
MAX_EXAMPLE_CHARS: Final = 80


class Evidence(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """Why an interest is there: how often, where and until when the user acted on items that carry its label."""

    platform: str
    action: str
    count: int
    last: datetime
    example: str = ""


class Interest(msgspec.Struct, frozen=True, gc=False):
    """One label with its score in [0, 1], its rank from 1 and how it moved since the last publication.

    `trend` is ``unknown`` where the score fell while a platform the user acts on is silent: that is missing data, and
    nobody can tell it from lost interest.
    """

    id: str
    slug: str
    label: str
    score: float
    rank: int
    delta: float
    trend: Trend
    evidence: tuple[Evidence, ...] = ()


class TaxonomyRef(msgspec.Struct, frozen=True, gc=False):
    """Which taxonomy the label ids belong to."""

    name: str
    version: str
    cattax: int


class ModelRef(msgspec.Struct, frozen=True, gc=False):
    """Which release scored this profile; 0 where nothing did."""

    release: int
    encoder: int = 0
    head: int = 0


class WindowRef(msgspec.Struct, frozen=True, gc=False):
    """The window behind this profile. `digest` names its bytes: `xplat verify` compares it with the log."""

    end: datetime
    events: int
    platforms: dict[str, int]
    digest: str


class Profile(msgspec.Struct, frozen=True, gc=False):
    """The current interests of one user. `revision` grows with every publication and never goes back.

    `silent`: platforms in the window from which nothing, of anybody, has come for a while: what the user does there
    now is not known. `scored_revision`: the revision whose window the scores are of, this one where it is fresh; 0
    where nothing was scored, or it is not known which.
    """

    user_id: UserId
    revision: int
    status: Status
    cause: Cause
    as_of: datetime
    taxonomy: TaxonomyRef
    model: ModelRef
    window: WindowRef
    interests: tuple[Interest, ...] = ()
    silent: tuple[str, ...] = ()
    scored_revision: int = 0


class KnownText(NamedTuple):
    """What a profile may quote of a text: the labels of the item and the words."""

    labels: tuple[str, ...]
    text: str


def instant(millis: Millis) -> datetime:
    """Return a point in time as an aware UTC datetime."""
    return datetime.fromtimestamp(millis / 1000, UTC)


def window_digest(packed: bytes) -> str:
    """Return the 16 hex digits that name a packed window."""
    return blake2b(packed, digest_size=8).hexdigest()


def unscored_profile(
    user_id: UserId,
    window: BehaviorWindow,
    revision: int,
    taxonomy: Taxonomy,
    *,
    status: Status = "cold_start",
    cause: Cause = "behavior",
) -> Profile:
    """Return the profile of a user whom no model has scored yet: the window alone."""
    window_ref = _window_ref(window)
    return Profile(
        user_id=user_id,
        revision=revision,
        status=status,
        cause=cause,
        as_of=window_ref.end,
        taxonomy=_taxonomy_ref(taxonomy),
        model=ModelRef(0),
        window=window_ref,
    )


def scored_profile(  # noqa: PLR0913 - a profile is made of exactly these
    user_id: UserId,
    window: BehaviorWindow,
    publication: Publication,
    scores: Sequence[float],
    *,
    taxonomy: Taxonomy,
    model: ModelRef,
    known: Mapping[TextHash, KnownText],
    max_interests: int,
    status: Status = "fresh",
    cause: Cause = "behavior",
    silent: Collection[str] = (),
) -> Profile:
    """Return the profile for label `scores` (one in [0, 1] a label, taxonomy order).

    `publication` is the state before this publication, its `revision` already the new one. `silent`: platforms from
    which nothing comes at present. Sensitive labels are left out, and so are examples of texts that carry one.
    """
    missing = tuple(sorted(platform for platform in window.counts() if platform in silent)) if silent else ()
    published, sensitive = _published(taxonomy)
    order = sorted(published, key=scores.__getitem__, reverse=True)[:max_interests]  # of equals the first stays first
    evidence = _evidence(window, known, {taxonomy.labels[index].id for index in order}, sensitive)
    interests = []
    for rank, index in enumerate(order, 1):
        label = taxonomy.labels[index]
        score, before = scores[index], publication.score_of(index)
        delta = 0.0 if before is None else score - before
        trend: Trend = (
            "new"
            if before is None
            else "rising"
            if delta >= TREND_STEP
            else "steady"
            if delta > -TREND_STEP
            else "unknown"
            if missing
            else "falling"
        )
        interests.append(
            Interest(
                id=label.id,
                slug=label.slug,
                label=label.name,
                score=round(score, 4),
                rank=rank,
                delta=round(delta, 4),
                trend=trend,
                evidence=evidence.get(label.id, ()),
            )
        )
    window_ref = _window_ref(window)
    return Profile(
        user_id=user_id,
        revision=publication.revision,
        status=status,
        cause=cause,
        as_of=window_ref.end,
        taxonomy=_taxonomy_ref(taxonomy),
        model=model,
        window=window_ref,
        interests=tuple(interests),
        silent=missing,
        scored_revision=publication.revision if status == "fresh" else publication.scored_revision,
    )


def degraded_profile(  # noqa: PLR0913 - a profile is made of exactly these
    user_id: UserId,
    window: BehaviorWindow,
    publication: Publication,
    *,
    taxonomy: Taxonomy,
    model: ModelRef,
    known: Mapping[TextHash, KnownText],
    max_interests: int,
    status: Status = "degraded",
    cause: Cause = "behavior",
    silent: Collection[str] = (),
) -> Profile:
    """Return the profile of a user who is not scored now: the new window, the last scores where there are any.

    `model` is the release the last scores are of. ``degraded``: the model server is away, and the profile comes again,
    scored, when it is back; ``stale``: scoring waits, for the new events cannot move the scores much or the encoder has
    to read a text first. Whom no model has scored yet waits as ``cold_start``.
    """
    if not publication.scores:
        waits: Status = "cold_start" if status == "stale" else status
        return unscored_profile(user_id, window, publication.revision, taxonomy, status=waits, cause=cause)
    return scored_profile(
        user_id,
        window,
        publication,
        publication.last_scores(),
        taxonomy=taxonomy,
        model=model,
        known=known,
        max_interests=max_interests,
        status=status,
        cause=cause,
        silent=silent,
    )


def _evidence(
    window: BehaviorWindow, known: Mapping[TextHash, KnownText], wanted: set[str], sensitive: frozenset[str]
) -> dict[str, tuple[Evidence, ...]]:
    found: dict[str, list[tuple[int, str, str, Millis, KnownText]]] = {}
    for platform, times, texts, actions in window.columns():
        groups: dict[tuple[str, int], list[Any]] = {}  # how many, and time and text of the newest
        newest_first = zip(reversed(times), map(known.get, reversed(texts)), reversed(actions), strict=True)
        for time, text, action in newest_first:
            for label in text.labels if text else ():
                if label in wanted:
                    group = groups.get((label, action))
                    if group is None:
                        groups[label, action] = [1, time, text]
                    else:
                        group[0] += 1
        for (label, action), (count, last, text) in groups.items():
            found.setdefault(label, []).append((-count, platform, ACTIONS[action], last, text))
    return {
        label: tuple(
            [
                Evidence(
                    platform,
                    action,
                    -count,
                    instant(last),
                    "" if sensitive.intersection(text.labels) else text.text[:MAX_EXAMPLE_CHARS],
                )
                for count, platform, action, last, text in sorted(items)[:MAX_EVIDENCE]
            ]
        )
        for label, items in found.items()
    }


@lru_cache(maxsize=16)
def _published(taxonomy: Taxonomy) -> tuple[tuple[int, ...], frozenset[str]]:
    """Return the positions of the labels that may be published, and the ids of those that may not."""
    return (
        tuple(index for index, label in enumerate(taxonomy.labels) if not label.sensitive),
        frozenset(label.id for label in taxonomy.labels if label.sensitive),
    )


@lru_cache(maxsize=16)
def _taxonomy_ref(taxonomy: Taxonomy) -> TaxonomyRef:
    return TaxonomyRef(taxonomy.name, taxonomy.version, taxonomy.cattax)


def _window_ref(window: BehaviorWindow) -> WindowRef:
    counts = window.counts()
    return WindowRef(instant(window.end), sum(counts.values()), counts, window_digest(bytes(window)))
