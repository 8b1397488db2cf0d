"""One chunk: what is written, sent and awaited, in which order, and what becomes of every record."""

from __future__ import annotations

import gc
import sys
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streams.reading import Reading
from streams.store import PartitionStore
from tests.streams.conftest import PARTITIONS, RECEIVED_MS, Bench, user_on, without
from xplat_stream.adapters import encode_event
from xplat_stream.errors import DeliveryError, InvalidScores
from xplat_stream.event import UserId, hash_text, item_text
from xplat_stream.kafka.topics import PROFILES, REJECTED, REKEYED, changelog_topic
from xplat_stream.serving.texts import TextVectors
from xplat_stream.state import TextEntry, UserState
from xplat_stream.testing import make_event, make_release
from xplat_stream.window import BehaviorWindow, row_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from xplat_stream.serving import HeadInputs, Release

USER = UserId("user-1")
CHANGELOG = "xplat-state-changelog"


def test_the_changelog_is_where_these_tests_look() -> None:
    """The name of the changelog topic follows the worker's group."""
    assert changelog_topic("xplat") == CHANGELOG


async def test_effects_come_in_the_promised_order(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """RocksDB, changelog, letters and strays, head, a wait for all of it; profiles, a wait for them; no encoder."""
    steps = bench.outbox.steps
    monkeypatch.setattr(bench.store, "write", _noting(bench.store.write, steps, "write"))
    monkeypatch.setattr(bench.scorer, "encode", _noting(bench.scorer.encode, steps, "encode"))
    monkeypatch.setattr(bench.scorer, "score", _noting(bench.scorer.score, steps, "score"))
    bench.pipeline.release = make_release()
    elsewhere = (bench.partition + 1) % PARTITIONS
    records = [
        bench.record(make_event()),
        bench.record(value=b"{"),
        bench.record(make_event(user_id=user_on(elsewhere))),
    ]
    await bench.handle(*records, unread=True)
    await bench.read()
    steps.clear()
    await bench.handle(*records, unread=True)
    assert steps == [
        "write",
        f"send {CHANGELOG}",
        f"send {REJECTED}",
        f"send {REKEYED}",
        "score",
        "write",
        "confirm",
        f"send {PROFILES}",
        "confirm",
    ]


def _noting(function: Callable[..., Any], steps: list[str], name: str) -> Callable[..., Any]:
    def noted(*arguments: Any) -> Any:
        steps.append(name)
        return function(*arguments)

    return noted


async def test_every_touched_user_is_written_and_published_once(bench: Bench) -> None:
    """However many events of a user a chunk holds, there is one state and one profile of them all."""
    users = [user_on(bench.partition, number) for number in range(3)]
    events = [make_event(user_id=user) for _ in range(4) for user in users]
    await bench.handle(*map(bench.record, events))
    assert sorted(key.decode() for key, _ in bench.states()) == sorted(users)
    assert sorted(one.data.user_id for one in bench.profiles()) == sorted(users)
    assert {one.data.window.events for one in bench.profiles()} == {4}
    bench.store.write()
    assert bench.store.changelog_position() == len(bench.outbox.on(CHANGELOG))
    assert (bench.metrics.events, bench.metrics.updates, bench.metrics.chunks) == (12, 3, 1)


@pytest.mark.parametrize("release", [None, make_release()], ids=["without", "with"])
async def test_many_users_are_published_in_turns(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, release: Release | None
) -> None:
    """Folded and logged together, and in turns after that: each is published once, and every text is kept."""
    monkeypatch.setattr("streams.pipeline._TURN_USERS", 2)
    bench.pipeline.release = release
    users = [user_on(bench.partition, number) for number in range(5)]
    events = [make_event(user_id=user) for user in users]
    await bench.handle(*map(bench.record, events))
    assert sorted(one.data.user_id for one in bench.profiles()) == sorted(users)
    assert bench.outbox.steps.count(f"send {PROFILES}") == 3
    assert sorted(key.decode() for key, _ in bench.states()) == sorted(users)
    assert all(bench.store.has_text(hash_text(item_text(event.object))) for event in events)


async def test_handling_the_same_records_again_changes_no_window(bench: Bench) -> None:
    """A chunk that is read again after a crash is written and published again, with the same window."""
    records = [bench.record(make_event(user_id=USER)) for _ in range(5)]
    await bench.handle(*records)
    await bench.handle(*records)
    windows = [UserState.unpack(bench.spec, value).window for _, value in bench.states()]
    assert len(windows) == 2
    assert bytes(windows[0]) == bytes(windows[1])
    first, second = (one.data for one in bench.profiles())
    assert (first.window, first.revision, second.revision) == (second.window, 1, 2)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(data=st.data())
async def test_any_order_and_any_chunks_give_the_window_of_the_log(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Shuffled, repeated and cut into chunks anywhere, records end in the window of the set of them."""
    events = [make_event(user_id=USER, platform=data.draw(st.sampled_from(["shop", "video"]))) for _ in range(8)]
    order = data.draw(st.permutations(events + events[:3]))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(order)), max_size=3)))
    bench = Bench(tmp_path_factory.mktemp("bench"))
    for start, stop in zip([0, *cuts], [*cuts, len(order)], strict=True):
        await bench.handle(*map(bench.record, order[start:stop]))
    wanted = BehaviorWindow(bench.spec).fold([(event.platform, row_of(event)) for event in events])
    assert bytes(bench.store.user(USER).window) == bytes(wanted)
    bench.store.close()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        pytest.param({"value": None}, "empty", id="null"),
        pytest.param({"value": b""}, "empty", id="empty"),
        pytest.param({"value": b"\xff{"}, "encoding", id="bad byte"),
        pytest.param({"value": b'{"a":'}, "syntax", id="truncated"),
        pytest.param({"value": b"{" + b" " * (33 * 1024)}, "size", id="too long"),
        pytest.param({"key": None, "value": encode_event(make_event())}, "bad_key", id="no key"),
        pytest.param({"key": b"other", "value": encode_event(make_event())}, "key_mismatch", id="other key"),
        pytest.param({"value": encode_event(make_event(platform="video"))}, "platform_mismatch", id="platform"),
        pytest.param({"value": without(encode_event(make_event()), action="fly")}, "unknown_action", id="action"),
        pytest.param({"value": encode_event(make_event()), "timestamp": 1}, "time_range", id="from the future"),
        pytest.param({"topic": REKEYED, "value": encode_event(make_event())}, "value", id="rekeyed without origin"),
    ],
)
async def test_a_bad_record_becomes_a_letter_and_good_ones_count(
    bench: Bench, fields: dict[str, Any], reason: str
) -> None:
    """The letter has the original bytes and key, the reason, and where the record lies; its neighbors are folded."""
    bad = bench.record(**fields)
    await bench.handle(bench.record(make_event(user_id=USER)), bad, bench.record(make_event(user_id=USER)))
    ((key, value, headers),) = bench.outbox.on(REJECTED)
    named = dict(headers)
    assert (key, value) == (bad.key, bad.value or b"")
    assert ("null" in named) == (bad.value is None)
    assert named["reason"] == reason.encode()
    assert (named["topic"], named["partition"], named["offset"]) == (
        bad.topic.encode(),
        str(bad.partition).encode(),
        str(bad.offset).encode(),
    )
    assert bench.metrics.rejected == {reason: 1}
    assert bench.profiles()[-1].data.window.events == 2


async def test_a_chunk_of_nothing_but_bad_records_is_acknowledged(bench: Bench) -> None:
    """No state and no profile is written, and the letters are awaited."""
    await bench.handle(bench.record(value=b"{"), bench.record(value=None))
    assert bench.outbox.steps[-1] == "confirm"
    assert (bench.states(), bench.profiles()) == ([], [])
    assert len(bench.outbox.on(REJECTED)) == 2


async def test_a_stray_travels_to_its_own_partition_and_is_admitted_there(bench: Bench) -> None:
    """It is forwarded byte for byte with its first topic and Kafka time, and counts there as if sent there."""
    home = (bench.partition + 1) % PARTITIONS
    user = user_on(home)
    record = bench.record(make_event(user_id=user, platform="video"))
    await bench.handle(record)
    assert bench.states() == []
    ((topic, partition, (forwarded,)),) = [one for one in bench.outbox.sent if one[0] == REKEYED]
    key, value, headers = forwarded
    assert (topic, partition, key, value) == (REKEYED, home, record.key, record.value)
    assert dict(headers) == {"topic": b"behavior.video.v1", "received-at-ms": str(RECEIVED_MS).encode()}
    arrived = bench.record(topic=REKEYED, key=key, value=value, headers=tuple(headers), timestamp=RECEIVED_MS + 999_999)
    await bench.handle(arrived, partition=home)
    assert bench.profiles()[-1].data.window.platforms == {"video": 1}
    assert bench.metrics.rekeyed == 1


async def test_a_rekeyed_event_is_judged_by_its_first_time(bench: Bench) -> None:
    """An event from the future stays rejected however long forwarding it took."""
    event = make_event(user_id=USER, occurred_at=RECEIVED_MS + 600_000)
    headers = (("topic", b"behavior.shop.v1"), ("received-at-ms", str(RECEIVED_MS).encode()))
    await bench.handle(bench.record(event, topic=REKEYED, headers=headers, timestamp=RECEIVED_MS + 900_000))
    assert bench.metrics.rejected == {"time_range": 1}


async def test_an_event_without_consent_is_counted_and_not_kept(bench: Bench) -> None:
    """It is neither folded, nor published, nor a letter."""
    value = without(encode_event(make_event(user_id=USER)), consent={"personalization": False})
    await bench.handle(bench.record(value=value))
    assert (bench.states(), bench.profiles(), bench.outbox.on(REJECTED)) == ([], [], [])
    assert (bench.metrics.events, bench.metrics.withheld) == (1, 1)


async def test_a_late_event_is_counted_and_changes_nothing(bench: Bench) -> None:
    """Older than the horizon before the user's newest event: the window stays as it was."""
    event = make_event(user_id=USER)
    await bench.handle(bench.record(event))
    before = bytes(bench.store.user(USER).window)
    await bench.handle(bench.record(make_event(user_id=USER, occurred_at=event.occurred_at - 91 * 86_400_000)))
    assert bytes(bench.store.user(USER).window) == before
    assert bench.metrics.late == 1


async def test_profiles_before_the_first_release_are_unscored(bench: Bench) -> None:
    """They carry the window alone, and no model is asked."""
    await bench.handle(bench.record(make_event(user_id=USER)))
    (record,) = bench.profiles()
    assert (record.data.status, record.data.model.release, record.data.interests) == ("cold_start", 0, ())
    assert bench.scorer.calls == []
    assert bench.metrics.unscored == 1


async def test_scores_are_published_with_their_release_and_change(bench: Bench) -> None:
    """Interests are ranked, named by the taxonomy, carry evidence, and the next profile says how they moved."""
    bench.pipeline.release = make_release(3, 2)
    await bench.handle(bench.record(make_event(user_id=USER, object_title="running shoes", object_iab=("483",))))
    await bench.handle(bench.record(make_event(user_id=USER, object_title="coffee")))
    first, second = (one.data for one in bench.profiles())
    assert (first.status, first.model.release, first.model.encoder) == ("fresh", 3, 2)
    assert {one.trend for one in first.interests} == {"new"}
    assert "new" not in {one.trend for one in second.interests}
    assert [one.rank for one in second.interests] == list(range(1, 11))
    assert [one.score for one in second.interests] == sorted((one.score for one in second.interests), reverse=True)


async def test_a_text_is_encoded_once(bench: Bench) -> None:
    """Events about the same words cost one call of the encoder, also across chunks and restarts of the cache."""
    bench.pipeline.release = make_release()
    for _ in range(3):
        await bench.handle(bench.record(make_event(user_id=USER, object_title="coffee", object_id="same")))
    assert [call.size for call in bench.scorer.calls if call.kind == "encode"] == [1]
    bench.use(TextVectors(bench.scorer))
    await bench.handle(bench.record(make_event(user_id=USER, object_title="coffee", object_id="same")))
    assert [call.size for call in bench.scorer.calls if call.kind == "encode"] == [1]


async def test_a_text_the_encoder_has_to_read_holds_up_nobody(bench: Bench) -> None:
    """Whose texts are read is scored; who has a new one is published with the last scores, and scored when it is."""
    bench.pipeline.release = make_release()
    known, new = (user_on(bench.partition, number) for number in range(2))
    for user in (known, new):
        await bench.handle(bench.record(make_event(user_id=user, object_title="film")))
    calls = len(bench.scorer.calls)
    records = [
        bench.record(make_event(user_id=new, object_title="coffee")),
        bench.record(make_event(user_id=known, object_title="film")),
    ]
    await bench.handle(*records, unread=True)

    assert [call.kind for call in bench.scorer.calls[calls:]] == ["score"]
    first, second = (one.data for one in bench.profiles()[2:])
    assert (first.user_id, first.status, first.scored_revision) == (known, "fresh", 2)
    assert (second.user_id, second.status, second.scored_revision, second.window.events) == (new, "stale", 1, 2)
    assert bench.store.pending(limit=9) == [new]
    assert bench.pipeline.reading.waits(bench.partition, new)
    await bench.read()
    (corrected,) = (one.data for one in bench.profiles()[4:])
    assert (corrected.user_id, corrected.status, corrected.revision, corrected.scored_revision) == (new, "fresh", 3, 3)
    assert bench.store.pending(limit=9) == []
    assert not bench.pipeline.reading.waits(bench.partition, new)


async def test_the_first_text_of_a_person_is_published_before_it_is_read(bench: Bench) -> None:
    """No model has scored them yet: the window comes alone, and the interests follow."""
    bench.pipeline.release = make_release()
    await bench.handle(bench.record(make_event(user_id=USER)), unread=True)
    await bench.read()
    first, scored = (one.data for one in bench.profiles())
    assert (first.status, first.interests, first.window.events) == ("cold_start", (), 1)
    assert (scored.status, scored.revision, scored.window.events) == ("fresh", 2, 1)
    assert scored.interests


async def test_an_encoder_that_is_away_keeps_nobody_waiting_for_ever(bench: Bench) -> None:
    """Profiles are degraded as long as it is away, and whoever waits is scored when it is back."""
    now = 0.0
    bench.pipeline.reading = Reading(bench.vectors, clock=lambda: now)
    bench.pipeline.release = make_release()
    bench.scorer.fail_next(1)
    await bench.handle(bench.record(make_event(user_id=USER, object_title="a")), unread=True)
    await bench.read()
    await bench.handle(bench.record(make_event(user_id=USER, object_title="b")), unread=True)
    assert [one.data.status for one in bench.profiles()] == ["cold_start", "degraded"]
    now = bench.pipeline.reading.wait_s(bench.partition)
    await bench.read()
    assert bench.profiles()[-1].data.status == "fresh"
    await bench.handle(bench.record(make_event(user_id=USER, object_title="c")), unread=True)
    assert bench.profiles()[-1].data.status == "stale"


async def test_a_text_that_cannot_be_read_keeps_nobody_else_waiting(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The encoder answers nonsense for one text: whoever has it stays pending, and all others are scored."""
    bench.pipeline.release = make_release()
    encode = bench.scorer.encode

    async def picky(release: Release, texts: Any) -> list[bytes]:
        if any("poison" in text for text in texts):
            raise InvalidScores("NaN")
        return await encode(release, texts)

    monkeypatch.setattr(bench.scorer, "encode", picky)
    users = [user_on(bench.partition, number) for number in range(5)]
    titles = ["film", "poison", "coffee", "poison", "tea"]
    events = [make_event(user_id=user, object_title=title) for user, title in zip(users, titles, strict=True)]
    await bench.handle(*map(bench.record, events), unread=True)
    await bench.read()
    fresh = {one.data.user_id for one in bench.profiles() if one.data.status == "fresh"}
    assert fresh == {users[0], users[2], users[4]}
    assert set(bench.store.pending(limit=9)) == {users[1], users[3]}
    assert not bench.pipeline.reading.waits(bench.partition, users[1])


async def test_who_waits_for_the_encoder_is_found_by_whoever_takes_over(bench: Bench) -> None:
    """Memory is lost, the mark in the state is not: the next owner has the text read and scores the user."""
    bench.pipeline.release = make_release()
    await bench.handle(bench.record(make_event(user_id=USER)), unread=True)
    bench.use(TextVectors(bench.scorer))
    await bench.pipeline.rescore(bench.store, bench.partition, bench.store.pending(limit=9))
    await bench.read()
    assert bench.profiles()[-1].data.status == "fresh"
    assert bench.store.pending(limit=9) == []


async def test_so_many_wait_in_memory_and_no_more(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those for whom there is no room are pending all the same, and follow."""
    bench.pipeline.release = make_release()
    monkeypatch.setattr("streams.reading.MOST_WAITING", 2)
    reading = bench.pipeline.reading
    users = [user_on(bench.partition, number) for number in range(5)]
    await bench.handle(*(bench.record(make_event(user_id=user)) for user in users), unread=True)
    assert sum(reading.waits(bench.partition, user) for user in users) == 2
    while pending := bench.store.pending(limit=9):
        await bench.pipeline.rescore(bench.store, bench.partition, pending)
        await bench.read()
    assert {one.data.user_id for one in bench.profiles() if one.data.status == "fresh"} == set(users)


@pytest.mark.parametrize("script", ["reject_next", "fail_next"])
async def test_while_the_model_fails_profiles_are_degraded(bench: Bench, script: str) -> None:
    """The window goes on, the last good scores are published again, and later the user is scored."""
    bench.pipeline.release = make_release(3)
    await bench.handle(bench.record(make_event(user_id=USER, object_title="film")))
    getattr(bench.scorer, script)(1)
    await bench.handle(bench.record(make_event(user_id=USER, object_title="film")))
    first, degraded = (one.data for one in bench.profiles())
    assert (degraded.status, degraded.revision, degraded.window.events) == ("degraded", 2, 2)
    assert degraded.model == first.model
    assert [(one.id, one.score) for one in degraded.interests] == [
        (one.id, pytest.approx(one.score, abs=1e-4)) for one in first.interests
    ]
    assert {one.trend for one in degraded.interests} == {"steady"}
    assert bench.store.pending(limit=9) == [USER]
    await bench.pipeline.rescore(bench.store, bench.partition, [USER])
    again = bench.profiles()[-1].data
    assert (again.status, again.revision, again.window.events, again.model.release) == ("fresh", 3, 2, 3)
    assert bench.store.pending(limit=9) == []
    last = UserState.unpack(bench.spec, bench.states()[-1][1])
    assert (last.publication.revision, last.pending) == (4, False)


async def test_a_user_never_scored_is_degraded_without_interests(bench: Bench) -> None:
    """There are no last good scores; the window is published all the same."""
    bench.pipeline.release = make_release()
    await bench.vectors.encode(make_release(), {hash_text("film"): TextEntry("film")})
    bench.scorer.fail_next(1)
    await bench.handle(bench.record(make_event(user_id=USER, object_title="film")))
    (profile,) = (one.data for one in bench.profiles())
    assert (profile.status, profile.interests, profile.window.events, profile.model.release) == ("degraded", (), 1, 0)


async def test_degraded_users_survive_a_lost_host(bench: Bench) -> None:
    """The changelog says who is still to be scored, so a rebuilt store knows them; an ordinary event scores them."""
    bench.pipeline.release = make_release()
    await bench.vectors.encode(make_release(), {hash_text("film"): TextEntry("film")})
    bench.scorer.fail_next(1)
    await bench.handle(bench.record(make_event(user_id=USER, object_title="film")))
    bench.store.close()
    bench.store = type(bench.store)(bench.folder / "other", bench.spec, cached_users=10)
    assert bench.store.pending(limit=9) == []
    changelog = [(key, value) for key, value, _ in bench.outbox.on(CHANGELOG)]
    bench.store.restore(changelog, position=len(changelog))
    assert bench.store.pending(limit=9) == [USER]
    await bench.handle(bench.record(make_event(user_id=USER, object_title="film")))
    assert bench.profiles()[-1].data.status == "fresh"
    assert bench.store.pending(limit=9) == []


async def test_who_takes_over_after_a_new_encoder_encodes_nothing_again(bench: Bench) -> None:
    """The vectors a new encoder makes of texts in windows are in the changelog of every partition that uses them."""
    partitions = (bench.partition, (bench.partition + 1) % PARTITIONS)
    stores = {one: PartitionStore(bench.folder / f"lost-{one}", bench.spec, cached_users=10) for one in partitions}

    async def encoded_after(release: int, partition: int, *titles: str) -> int:
        bench.pipeline.release = make_release(release, encoder=release)
        bench.store, bench.partition = stores[partition], partition
        for title in titles:
            event = make_event(user_id=UserId(user_on(partition)), object_title=title)
            await bench.handle(bench.record(event, partition=partition), unread=True)
            await bench.read()
        return sum(call.size for call in bench.scorer.calls if call.kind == "encode")

    assert [await encoded_after(1, one, "film", "coffee") for one in partitions] == [2, 2]
    assert [await encoded_after(2, one, "film") for one in partitions] == [4, 4]
    for partition in partitions:
        stores.pop(partition).close()
        rebuilt = stores[partition] = PartitionStore(bench.folder / f"{partition}", bench.spec, cached_users=10)
        changelog = [
            (key, value)
            for topic, number, records in bench.outbox.sent
            if (topic, number) == (CHANGELOG, partition)
            for key, value, _ in records
        ]
        rebuilt.restore(changelog, position=len(changelog))
        bench.use(TextVectors(bench.scorer))
        assert await encoded_after(2, partition, "film") == 4
        assert (bench.profiles()[-1].data.status, bench.profiles()[-1].data.model.release) == ("fresh", 2)
        rebuilt.close()


async def test_one_window_the_model_cannot_score_leaves_the_others_fresh(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scored again in smaller parts: who can be scored is, and who cannot stays degraded with what is known."""
    bench.pipeline.release = make_release()
    users = [user_on(bench.partition, number) for number in range(9)]
    score = bench.scorer.score

    async def picky(release: Release, inputs: HeadInputs) -> Any:
        if (inputs.action > 0).sum(axis=1).max() > 1:
            raise InvalidScores("NaN")
        return await score(release, inputs)

    monkeypatch.setattr(bench.scorer, "score", picky)
    events = [make_event(user_id=user) for user in users] + [make_event(user_id=users[4])]
    await bench.handle(*map(bench.record, events))
    assert {one.data.status for one in bench.profiles()} == {"degraded"}
    await bench.pipeline.rescore(bench.store, bench.partition, bench.store.pending(limit=99))
    assert bench.store.pending(limit=99) == [users[4]]
    last = {one.data.user_id: one.data.status for one in bench.profiles()}
    assert last == {user: "degraded" if user == users[4] else "fresh" for user in users}


async def test_users_of_another_release_are_scored_again_with_their_cause(bench: Bench) -> None:
    """The window stays, the revision grows, the changelog goes first, and again once the profile is out."""
    users = [user_on(bench.partition, number) for number in range(3)]
    bench.pipeline.release = make_release(1)
    await bench.handle(*(bench.record(make_event(user_id=user)) for user in users))
    bench.pipeline.release = make_release(2)
    await bench.handle(bench.record(make_event(user_id=users[0])))
    bench.outbox.steps.clear()
    assert await bench.pipeline.rescore(bench.store, bench.partition, users) == 2
    logged = [f"send {CHANGELOG}", "confirm"]
    assert bench.outbox.steps == [*logged, f"send {PROFILES}", "confirm", *logged]
    again = [one.data for one in bench.profiles()[-2:]]
    assert [(one.user_id, one.cause, one.revision, one.model.release) for one in again] == [
        (user, "model", 2, 2) for user in users[1:]
    ]
    assert {one.status for one in again} == {"fresh"}
    assert {one.trend for one in again[0].interests} != {"new"}
    written = [UserState.unpack(bench.spec, value) for _, value in bench.states()[-2:]]
    assert [(one.publication.release, one.publication.revision) for one in written] == [(2, 3), (2, 3)]
    assert (bench.metrics.migrated, bench.metrics.rescored) == (2, 0)
    assert await bench.pipeline.rescore(bench.store, bench.partition, users) == 0


async def test_a_record_never_names_a_release_that_did_not_score_the_last_profile(bench: Bench) -> None:
    """A worker that is lost after a roll-back still finds everyone whom the bad release scored."""
    bench.pipeline.release = make_release(1)
    await bench.handle(bench.record(make_event(user_id=USER)))
    bench.pipeline.release = make_release(2)
    await bench.handle(bench.record(make_event(user_id=USER)))
    for value in [value for _, value in bench.states()]:
        publication = UserState.unpack(bench.spec, value).publication
        assert publication.release == publication.revision
    assert "new" not in {one.trend for one in bench.profiles()[-1].data.interests}
    bench.store.close()
    bench.store = type(bench.store)(bench.store.path, bench.spec, cached_users=10)
    bench.pipeline.release = make_release(1)
    assert await bench.pipeline.rescore(bench.store, bench.partition, [USER]) == 1
    assert (bench.profiles()[-1].data.model.release, bench.profiles()[-1].data.cause) == (1, "model")


async def test_degraded_under_another_release_keeps_the_scores_it_has(bench: Bench) -> None:
    """They are quoted under the release that made them, also when the model server fails at the first touch."""
    bench.pipeline.release = make_release(1)
    await bench.handle(bench.record(make_event(user_id=USER, object_title="film")))
    bench.pipeline.release = make_release(2)
    bench.scorer.fail_next(2)
    await bench.handle(bench.record(make_event(user_id=USER, object_title="film")))
    degraded = bench.profiles()[-1].data
    assert (degraded.status, degraded.model.release, len(degraded.interests)) == ("degraded", 1, 10)
    written = UserState.unpack(bench.spec, bench.states()[-1][1])
    assert (written.pending, written.publication.release) == (True, 1)
    assert written.publication.scores


async def test_a_model_server_that_is_away_moves_nobody(bench: Bench) -> None:
    """They stay on the release they have and are no degraded users."""
    bench.pipeline.release = make_release(1)
    await bench.handle(bench.record(make_event(user_id=USER)))
    bench.pipeline.release = make_release(2)
    bench.scorer.fail_next()
    assert await bench.pipeline.rescore(bench.store, bench.partition, [USER]) == 0
    assert len(bench.profiles()) == 1
    assert not bench.store.pending(limit=9)


async def test_who_cannot_be_scored_by_another_release_is_pending(bench: Bench) -> None:
    """The release they have stays published, the state says that scoring is owed, and the others move."""
    users = [user_on(bench.partition, number) for number in range(3)]
    bench.pipeline.release = make_release(1)
    await bench.handle(*(bench.record(make_event(user_id=user)) for user in users))
    bench.pipeline.release = make_release(2)
    bench.scorer.reject_next(2)
    assert await bench.pipeline.rescore(bench.store, bench.partition, users) == 2
    assert bench.store.pending(limit=9) == [users[0]]
    assert len(bench.profiles()) == 5


async def test_an_event_out_of_order_repairs_with_its_cause(bench: Bench) -> None:
    """Inside the horizon and behind the newest: the profile says `late`; a duplicate of it repairs nothing more."""
    bench.pipeline.release = make_release()
    newest = make_event(user_id=USER)
    early = make_event(user_id=USER, occurred_at=newest.occurred_at - 86_400_000)
    for event in (newest, early, early, make_event(user_id=USER)):
        await bench.handle(bench.record(event))
    assert [one.data.cause for one in bench.profiles()] == ["behavior", "late", "behavior", "behavior"]
    assert [one.data.window.events for one in bench.profiles()] == [1, 2, 2, 3]
    assert bench.metrics.repaired == 1


async def test_a_corrected_event_repairs_too(bench: Bench) -> None:
    """The same event id with another content, sent later: both are in the window, and one of them is read."""
    bench.pipeline.release = make_release()
    wrong = make_event(user_id=USER, object_title="coffee")
    right = msgspec.structs.replace(wrong, object=msgspec.structs.replace(wrong.object, title="film"))
    for event in (wrong, make_event(user_id=USER), right):
        await bench.handle(bench.record(event))
    assert bench.profiles()[-1].data.cause == "late"
    window = bench.store.user(USER).window
    assert (len(window), window.conflicts, len(list(window.events()))) == (3, 1, 2)


async def test_a_silent_platform_is_missing_data_and_no_lost_interest(bench: Bench) -> None:
    """Its name is in the profile, and a score that fell meanwhile has an unknown trend instead of a falling one."""
    bench.pipeline.release = make_release()
    for platform in ("video", "shop"):
        await bench.handle(bench.record(make_event(user_id=USER, platform=platform, object_title="film")))
    bench.now_s = 61.0
    for title in ("coffee", "guitar", "garden"):
        await bench.handle(bench.record(make_event(user_id=USER, platform="shop", object_title=title)))
    profile = bench.profiles()[-1].data
    assert profile.silent == ("video",)
    assert min(one.delta for one in profile.interests) < -0.01
    assert {one.trend for one in profile.interests if one.delta < -0.01} == {"unknown"}
    await bench.handle(bench.record(make_event(user_id=USER, platform="video", object_title="game")))
    assert bench.profiles()[-1].data.silent == ()


async def test_condemned_records_are_not_looked_at(bench: Bench) -> None:
    """They become dead letters with the reason `crash`, byte for byte, and change no window."""
    record = bench.record(make_event(user_id=USER))
    await bench.pipeline.handle(bench.store, bench.partition, [record], condemned=True)
    ((key, value, headers),) = bench.outbox.on(REJECTED)
    assert (key, value, dict(headers)["reason"]) == (record.key, record.value, b"crash")
    assert bench.profiles() == []


async def test_the_changelog_is_confirmed_before_profiles_are_sent(bench: Bench) -> None:
    """A revision that consumers have seen is in the changelog: a lost host never publishes it again."""
    bench.outbox.fault = DeliveryError("no", left=1)
    with pytest.raises(DeliveryError):
        await bench.handle(bench.record(make_event(user_id=USER)))
    assert bench.profiles() == []


async def test_what_kafka_does_not_confirm_is_not_acknowledged(bench: Bench) -> None:
    """The error leaves `handle`, so that the worker stops; the next one reads the chunk again."""
    bench.outbox.fault = DeliveryError("no", left=1)
    with pytest.raises(DeliveryError):
        await bench.handle(bench.record(make_event(user_id=USER)))
    assert bench.metrics.updates == 0


async def test_revisions_go_on_after_a_restart(bench: Bench) -> None:
    """A store that is closed and opened again goes on counting where it was."""
    await bench.handle(bench.record(make_event(user_id=USER)))
    bench.store.close()
    bench.store = type(bench.store)(bench.store.path, bench.spec, cached_users=10)
    await bench.handle(bench.record(make_event(user_id=USER)))
    assert [one.data.revision for one in bench.profiles()] == [1, 2]


async def test_scores_do_not_depend_on_how_many_vectors_memory_holds(bench: Bench) -> None:
    """Vectors pushed out of memory come back from the store before a window is scored; none counts as nothing."""
    bench.pipeline.release = make_release(1)
    roomy = bench.vectors
    tight = TextVectors(bench.scorer, max_texts=2)
    events = [make_event(user_id=USER, object_title=f"title {number}") for number in range(12)]
    seen: dict[TextVectors, list[Any]] = {}
    for vectors in (roomy, tight):
        bench.use(vectors)
        bench.outbox.sent.clear()
        for event in events:
            await bench.handle(bench.record(event), unread=True)
            await bench.read()
        seen[vectors] = bench.profiles()[-1].data.interests
    assert len(tight.of(1)) <= 2
    assert [one.score for one in seen[tight]] == [one.score for one in seen[roomy]]


async def test_no_call_of_the_head_is_full_while_another_is_nearly_empty(bench: Bench) -> None:
    """One user more than a call may have makes two calls of half the size."""
    bench.pipeline.release = make_release()
    users = [user_on(bench.partition, number) for number in range(65)]
    await bench.handle(*(bench.record(make_event(user_id=user)) for user in users))
    assert sorted(call.size for call in bench.scorer.calls if call.kind == "score") == [32, 33]


async def test_memory_does_not_grow_with_the_items_seen(bench: Bench) -> None:
    """People and texts stay the same and their windows are full: however many items come by, nothing of them stays."""
    bench.pipeline.release = make_release()
    users = [user_on(bench.partition, number) for number in range(3)]

    async def held_after(chunks: int) -> int:
        for _ in range(chunks):
            events = [
                make_event(user_id=users[number % 3], object_title=f"Thing {number % 20}") for number in range(60)
            ]
            await bench.handle(*map(bench.record, events))
            bench.outbox.sent.clear()
            bench.outbox.steps.clear()
            bench.scorer.calls.clear()
        gc.collect()
        return sys.getallocatedblocks()

    full = await held_after(10)
    assert await held_after(20) - full < 20 * 60 / 10


@pytest.mark.parametrize("hours", [-1, 1])
async def test_the_workers_clock_does_not_enter_the_state(
    bench: Bench, hours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker an hour off writes the very same changelog: only event times and Kafka's times count."""
    events = [make_event(user_id=USER) for _ in range(5)]
    await bench.handle(*map(bench.record, events))
    right = bench.states()

    class Skewed(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) + timedelta(hours=hours)

    monkeypatch.setattr("streams.pipeline.datetime", Skewed)
    bench.outbox.sent.clear()
    bench.store.close()
    bench.store = type(bench.store)(bench.folder / "skewed", bench.spec, cached_users=10)
    await bench.handle(*map(bench.record, events))
    assert bench.states() == right
