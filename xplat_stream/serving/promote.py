"""One release takes over from another, or gives way to it again. Workers act on the announcement alone.

In this order: files and signature checked ▸ in Triton's sight ▸ READY on every server ▸ golden requests ▸ announced ▸
what is neither active nor previous is taken out of sight. Whatever fails before the announcement leaves the active
release as it was, and the other out of sight: after a restart Triton loads the highest numbers it sees.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NamedTuple

from xplat_stream.errors import ReleaseError, XplatError
from xplat_stream.kafka.codec import ACTIVE_KEY, Announcement, encode_announcement
from xplat_stream.kafka.consumer import active_announcement
from xplat_stream.kafka.producer import EventProducer
from xplat_stream.kafka.topics import MODELS
from xplat_stream.serving.releases import ENCODER, HEAD
from xplat_stream.serving.store import ReleaseStore
from xplat_stream.serving.triton import TritonScorer

if TYPE_CHECKING:
    from xplat_stream.serving.releases import DataSpan, ModelRepository, Release
    from xplat_stream.settings import Settings

_ANNOUNCE_S: Final = 30.0


class Promoted(NamedTuple):
    """The release that is active now, and the one before it; 0 where there was none."""

    release: int
    previous: int


def known_store(settings: Settings) -> tuple[ReleaseStore, Announcement | None]:
    """Return the releases, their states as the topic has them, and what it says. Raises `KafkaUnavailable`."""
    announced = active_announcement(settings)
    store = ReleaseStore.of(settings)
    store.follow(announced)
    return store, announced


def promote(settings: Settings, number: int, *, force: bool = False, reason: str = "promoted by hand") -> Promoted:
    """Make a release the active one.

    Raises `ReleaseError` when the gate did not pass it (unless forced), its files are altered, or a server does not
    load it or answers differently; `TritonUnavailable`, `KafkaUnavailable`. Nothing is changed then. Raises
    `DeliveryError` when Kafka did not acknowledge the announcement: it may still be there, so it stays loaded.
    """
    store, active = known_store(settings)
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
    previous = active.release if active else 0
    _serve(settings, store, release, active)
    _announce(settings, Announcement(number, previous, release.encoder, datetime.now(UTC)))
    store.note(number, "active", f"{reason}, by force" if force else reason)
    _clear(store, {number, previous}, f"release {number} is active, {previous} previous")
    if previous:
        store.note(previous, "previous", f"release {number} was promoted")
    return Promoted(number, previous)


def rollback(settings: Settings, *, reason: str = "rolled back by hand") -> Promoted:
    """Announce the previous release again and quarantine the active one with what it was trained on.

    Raises `ReleaseError` when there is no previous release or it cannot be used; otherwise as `promote`.
    """
    store, active = known_store(settings)
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
    _announce(settings, again)
    store.note(release.number, "active", reason)
    store.note(active.release, "quarantined", reason, data=_data_of(store, active.release))
    _clear(store, {release.number}, f"release {release.number} is active again")
    return Promoted(release.number, active.release)


def accompany(settings: Settings, number: int) -> None:
    """Have a release score a sample of users beside the active one, as its shadow; 0: have none do so any longer.

    Raises `ReleaseError` where no release is active or it is that one, else as `promote`.
    """
    store, active = known_store(settings)
    if active is None or active.release == number:
        raise ReleaseError(
            f"release {number} cannot be the shadow of the active one: {'that is it' if active else 'there is none'}",
            where=MODELS,
            expected="a candidate beside an active release",
            fix="`xplat model list` shows which there are.",
        )
    if number:
        _serve(settings, store, store.repository.load(number), active)
    again = Announcement(active.release, active.previous, active.encoder, datetime.now(UTC), shadow=number)
    _announce(settings, again)
    if number:
        store.note(number, "shadow", f"beside release {active.release}")
    if active.shadow not in {0, number, active.previous}:
        store.note(active.shadow, "candidate", "no longer a shadow")
        store.out_of_sight(active.shadow)


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


def _serve(settings: Settings, store: ReleaseStore, release: Release, active: Announcement | None) -> None:
    """Have a release READY beside the active one on every server, with its golden requests answered."""
    repository = store.repository
    wanted = {ENCODER: release.encoder, HEAD: release.number}
    held = {HEAD: active.release, ENCODER: active.encoder} if active else {HEAD: 0, ENCODER: 0}
    shown = [(model, version) for model, version in wanted.items() if version not in repository.versions(model)]
    # Triton loads the highest versions it sees: what is above this one and not the active one would be in its way.
    above = [
        (model, version)
        for model, version in wanted.items()
        for version in repository.versions(model)
        if version > wanted[model] and version != held[model]
    ]
    for model, version in above:
        repository.hide(model, version)
    try:
        for model, version in shown:
            repository.show(model, version)
        asyncio.run(_load(settings, release))
    except BaseException as error:
        for model, version in reversed(shown):
            repository.hide(model, version)
        for model, version in above:
            repository.show(model, version)
        with suppress(XplatError):  # best effort: the failure that brought us here is the one to tell
            asyncio.run(_reload(settings, repository))
        if isinstance(error, ReleaseError):
            store.note(release.number, store.state(release.number), f"it was not taken up: {error.what}")
        raise


async def _load(settings: Settings, release: Release) -> None:
    for replica in settings.triton.replicas:
        async with TritonScorer(replica) as scorer:
            await scorer.load(ENCODER, release.encoder)
            await scorer.load(HEAD, release.number)
            await scorer.check_golden(release)


async def _reload(settings: Settings, repository: ModelRepository) -> None:
    """Let every server return to the versions that are in sight."""
    for replica in settings.triton.replicas:
        async with TritonScorer(replica) as scorer:
            for model in (ENCODER, HEAD):
                versions = repository.versions(model)
                if versions:
                    await scorer.load(model, versions[-1])


def _announce(settings: Settings, announcement: Announcement) -> None:
    producer = EventProducer(settings)
    producer.send_raw(MODELS, ACTIVE_KEY, encode_announcement(announcement))
    producer.flush(_ANNOUNCE_S)


def _clear(store: ReleaseStore, kept: set[int], reason: str) -> None:
    """Take every other release out of Triton's sight."""
    for number in store.repository.releases():
        if number not in kept:
            if store.state(number) in {"active", "previous"}:
                store.note(number, "retired", reason)
            store.out_of_sight(number)


def _data_of(store: ReleaseStore, number: int) -> DataSpan | None:
    with suppress(ReleaseError):  # quarantined all the same: its manifest may be what is wrong with it
        return store.repository.manifest(number).data
    return None
