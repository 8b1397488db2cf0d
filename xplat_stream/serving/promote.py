"""One release takes over from another, or gives way to it again. Workers act on the announcement alone.

In this order: files and signature checked ▸ in Triton's sight ▸ READY on every server ▸ golden requests ▸ announced ▸
journaled ▸ what is neither active nor previous out of sight. Whatever fails before the announcement leaves the active
release as it was, and the other out of sight: after a restart Triton loads the highest numbers it sees. Whoever dies
at any step leaves what the next one, under the same lock, finishes or undoes before it begins.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NamedTuple

from xplat_stream.errors import ReleaseError, XplatError
from xplat_stream.failpoints import reached
from xplat_stream.kafka.codec import ACTIVE_KEY, Announcement, encode_announcement
from xplat_stream.kafka.consumer import active_announcement
from xplat_stream.kafka.producer import EventProducer
from xplat_stream.kafka.reports import read_warmth
from xplat_stream.kafka.topics import MODELS
from xplat_stream.serving.releases import ENCODER, HEAD, ModelRepository
from xplat_stream.serving.store import ReleaseStore
from xplat_stream.serving.triton import TritonScorer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xplat_stream.kafka.reports import Warmth
    from xplat_stream.serving.releases import Release
    from xplat_stream.settings import Settings

PATIENCE_S: Final = 600.0
"""How long a program waits for another to be through; a person is told at once."""

WARM_WITHIN_S: Final = 3600.0
"""How long a program waits for workers to have a new encoder's vectors."""

_ANNOUNCE_S: Final = 30.0


class Promoted(NamedTuple):
    """The release that is active now, and the one before it; 0 where there was none."""

    release: int
    previous: int


def known_store(settings: Settings) -> tuple[ReleaseStore, Announcement | None]:
    """Return the releases, their states as the topic has them, and what it says. Raises `KafkaUnavailable`."""
    announced = active_announcement(settings)
    store = ReleaseStore.of(settings)
    store.hear(announced)
    return store, announced


@contextmanager
def exclusive(
    settings: Settings, doing: str, *, patience_s: float = 0.0
) -> Iterator[tuple[ReleaseStore, Announcement | None]]:
    """Be the only one to change releases inside the block, which begins with what is announced and nothing half done.

    `doing`: what others are told meanwhile. Raises `OperatorError` that names who is at it, where that one is not
    through within `patience_s`; `KafkaUnavailable`, `ReleaseError`.
    """
    with ModelRepository.of(settings).held(doing, patience_s=patience_s):
        store, announced = known_store(settings)
        store.follow(announced)
        store.tidy()
        yield store, announced


def promote(
    settings: Settings,
    number: int,
    *,
    force: bool = False,
    reason: str = "promoted by hand",
    patience_s: float = 0.0,
    warm_within_s: float = 0.0,
) -> Promoted:
    """Make a release the active one.

    One that brings an encoder waits `warm_within_s`, as the shadow, for workers to have the texts of their active users
    encoded by it. Raises `ReleaseError` when the gate did not pass it or workers are not through with that (unless
    forced), its files are altered, or a server does not load it or answers differently; `OperatorError` as `exclusive`,
    `TritonUnavailable`, `KafkaUnavailable`. Nothing is changed then. Raises `DeliveryError` when Kafka did not
    acknowledge the announcement: it may still be there, so it stays loaded.
    """
    if warm_within_s and not force:
        _await_warm(settings, number, warm_within_s, patience_s=patience_s)
    with exclusive(settings, f"release {number} is being promoted", patience_s=patience_s) as (store, active):
        if active is not None and active.release == number:
            raise ReleaseError(
                f"release {number} is active already",
                where=MODELS,
                expected="another release",
                fix="`xplat model list` shows which there are.",
            )
        if not force:
            _require_passed(store, number)
        release = store.repository.load(number)
        if not force:
            _require_warm(settings, release, active)
        previous = active.release if active else 0
        _serve(settings, store, release, active)
        _announce(settings, store, Announcement(number, previous, release.encoder, datetime.now(UTC)))
        store.note(number, "active", f"{reason}, by force" if force else reason)
        if previous:
            store.note(previous, "previous", f"release {number} was promoted")
        _settle(store)
    return Promoted(number, previous)


def rollback(
    settings: Settings, *, only: int = 0, reason: str = "rolled back by hand", patience_s: float = 0.0
) -> Promoted | None:
    """Announce the previous release again and quarantine the active one with what it was trained on.

    `only`: where this release is not active any longer, do nothing and return None. Raises `ReleaseError` when there
    is no previous release or it cannot be used; otherwise as `promote`.
    """
    with exclusive(settings, "the active release is being rolled back", patience_s=patience_s) as (store, active):
        if only and (active is None or active.release != only):
            return None
        if active is None or not active.previous:
            raise ReleaseError(
                "there is no previous release to go back to",
                where=MODELS,
                expected="an active release that another one was active before",
                fix="Name one: `xplat model list`, then `xplat model promote N`.",
            )
        release = store.repository.load(active.previous)
        _serve(settings, store, release, active)
        again = Announcement(release.number, 0, release.encoder, datetime.now(UTC), rolled_back=active.release)
        _announce(settings, store, again)
        store.note(active.release, "quarantined", reason, data=store.data_of(active.release))
        store.note(release.number, "active", reason)
        _settle(store)
    return Promoted(release.number, active.release)


def accompany(settings: Settings, number: int, *, patience_s: float = 0.0) -> None:
    """Have a release score a sample of users beside the active one, as its shadow; 0: have none do so any longer.

    Raises `ReleaseError` where no release is active or it is that one, else as `promote`.
    """
    with exclusive(settings, f"release {number} is being made the shadow", patience_s=patience_s) as (store, active):
        if active is None or active.release == number:
            raise ReleaseError(
                f"release {number} cannot be the shadow of the active one: "
                f"{'that is it' if active else 'there is none'}",
                where=MODELS,
                expected="a candidate beside an active release",
                fix="`xplat model list` shows which there are.",
            )
        if number:
            _serve(settings, store, store.repository.load(number), active)
        again = Announcement(active.release, active.previous, active.encoder, datetime.now(UTC), shadow=number)
        _announce(settings, store, again)
        if number:
            store.note(number, "shadow", f"beside release {active.release}")
        _settle(store)


def _require_passed(store: ReleaseStore, number: int) -> None:
    state, verdict = store.state(number), store.verdict(number)
    if state == "quarantined":
        why = f"release {number} is quarantined: {store.journal(number).changes[-1].reason}"
    elif verdict is None:
        why = f"release {number} was not checked"
    elif not verdict.passed:
        why = f"the gate refused release {number}: {', '.join(verdict.refused_by)}"
    else:
        return
    raise ReleaseError(
        why,
        where=str(store.repository.hidden / str(number)),
        expected="a release that the gate passed",
        fix=f"Run `xplat model check {number}`, or promote it in spite of that with --force.",
    )


def _coldness(settings: Settings, release: Release, active: Announcement | None) -> Warmth | None:
    """Return how far workers are with an encoder they have to know before it is promoted; None: promote it."""
    if active is None or active.encoder == release.encoder:
        return None
    found = read_warmth(settings, release.encoder)
    return None if found is None or found.complete else found


def _require_warm(settings: Settings, release: Release, active: Announcement | None) -> None:
    cold = _coldness(settings, release, active)
    if cold is not None:
        raise ReleaseError(
            f"the encoder of release {release.number} is not warm: {cold.warm} of {cold.partitions} partitions, "
            f"{cold.warmed} of {cold.texts} texts so far",
            where=MODELS,
            expected="the texts of all active users encoded ahead by the workers",
            fix=f"`xplat model promote {release.number} --wait 3600` has them do so, or `xplat model shadow "
            f"{release.number}`; --force promotes it cold.",
        )


def _await_warm(settings: Settings, number: int, within_s: float, *, patience_s: float) -> None:
    """Have a release's encoder warmed, and wait for that; longer than `within_s` for nothing."""
    deadline = time.monotonic() + within_s
    while True:
        store, active = known_store(settings)
        _require_passed(store, number)
        if _coldness(settings, store.repository.load(number), active) is None or time.monotonic() >= deadline:
            return
        if active is not None and active.shadow != number:
            accompany(settings, number, patience_s=patience_s)
        time.sleep(min(settings.release.report_interval_s, max(0.0, deadline - time.monotonic())))


def _serve(settings: Settings, store: ReleaseStore, release: Release, active: Announcement | None) -> None:
    """Have a release READY beside the active one on every server, with its golden requests answered."""
    repository = store.repository
    wanted = {ENCODER: release.encoder, HEAD: release.number}
    held = {HEAD: active.release, ENCODER: active.encoder} if active else wanted
    shown = [(model, version) for model, version in wanted.items() if version not in repository.versions(model)]
    # Triton loads the highest versions it sees: what is above one of these two would be in its way.
    above = [
        (model, version)
        for model in wanted
        for version in repository.versions(model)
        if version > min(wanted[model], held[model]) and version not in (wanted[model], held[model])
    ]
    asyncio.run(_require_all(settings))
    try:
        for model, version in above:
            repository.hide(model, version)
        for model, version in shown:
            repository.show(model, version)
        asyncio.run(_load(settings, release))
    except BaseException as error:
        for model, version in reversed(shown):
            repository.hide(model, version)
        for model, version in above:
            repository.show(model, version)
        asyncio.run(_reload(settings, repository))
        if isinstance(error, ReleaseError):
            store.note(release.number, store.state(release.number), f"it was not taken up: {error.what}")
        raise


async def _require_all(settings: Settings) -> None:
    async with TritonScorer(settings.triton) as scorer:
        await scorer.require_all()


async def _load(settings: Settings, release: Release) -> None:
    async with TritonScorer(settings.triton) as scorer:
        await scorer.load(ENCODER, release.encoder)
        await scorer.load(HEAD, release.number)
    for replica in settings.triton.replicas:
        async with TritonScorer(replica) as scorer:  # of each on its own
            await scorer.check_golden(release)
    reached("release.answered")


async def _reload(settings: Settings, repository: ModelRepository) -> None:
    """Let every server return to the versions that are in sight; one that is away does so when it starts."""
    for replica in settings.triton.replicas:
        async with TritonScorer(replica) as scorer:
            for model in (ENCODER, HEAD):
                versions = repository.versions(model)
                with suppress(XplatError):  # best effort: the failure that brought us here is the one to tell
                    if versions:
                        await scorer.load(model, versions[-1])


def _announce(settings: Settings, store: ReleaseStore, announcement: Announcement) -> None:
    producer = EventProducer(settings)
    producer.send_raw(MODELS, ACTIVE_KEY, encode_announcement(announcement))
    producer.flush(_ANNOUNCE_S)
    reached("release.announced")
    store.hear(announcement)


def _settle(store: ReleaseStore) -> None:
    """Let journals and Triton's sight follow what has just been announced."""
    store.follow(store.announced)
    reached("release.journaled")
    store.tidy()
