"""One chunk: what is written, sent and awaited, in which order, and what becomes of every record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.streams.conftest import PARTITIONS, RECEIVED_MS, Bench, user_on, without
from xplat_stream.adapters import encode_event
from xplat_stream.errors import DeliveryError, InvalidScores, TritonUnavailable
from xplat_stream.event import UserId
from xplat_stream.kafka.topics import PROFILES, REJECTED, REKEYED, changelog_topic
from xplat_stream.serving.texts import TextVectors
from xplat_stream.state import UserState
from xplat_stream.testing import make_event, make_release
from xplat_stream.window import BehaviorWindow, row_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import msgspec  # noqa: F401

    from xplat_stream.event import Event

USER = UserId("user-1")
CHANGELOG = "xplat-state-changelog"


def test_the_changelog_is_where_these_tests_look() -> None:
    """The name of the changelog topic follows the worker's group."""
    assert changelog_topic("xplat") == CHANGELOG


async def test_effects_come_in_the_promised_order(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """RocksDB, changelog, letters and strays, encoder, texts, head, profiles, and one wait for all of it at the end."""
    steps = bench.outbox.steps
    monkeypatch.setattr(bench.store, "write", _noting(bench.store.write, steps, "write"))
    monkeypatch.setattr(bench.scorer, "encode", _noting(bench.scorer.encode, steps, "encode"))
    monkeypatch.setattr(bench.scorer, "score", _noting(bench.scorer.score, steps, "score"))
    bench.pipeline.release = make_release()
    elsewhere = (bench.partition + 1) % PARTITIONS
    await bench.handle(
        bench.record(make_event()), bench.record(value=b"{"), bench.record(make_event(user_id=user_on(elsewhere)))
    )
    assert steps == [
        "write",
        f"send {CHANGELOG}",
        f"send {REJECTED}",
        f"send {REKEYED}",
        "encode",
        "write",
        f"send {CHANGELOG}",
        "score",
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
    end = await bench.handle(*map(bench.record, events))
    assert sorted(key.decode() for key, _ in bench.states()) == sorted(users)
    assert sorted(one.data.user_id for one in bench.profiles()) == sorted(users)
    assert {one.data.window.events for one in bench.profiles()} == {4}
    assert end == len(bench.outbox.on(CHANGELOG))
    assert (bench.metrics.events, bench.metrics.updates, bench.metrics.chunks) == (12, 3, 1)


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
    assert await bench.handle(bench.record(value=b"{"), bench.record(value=None)) == 0
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
    again = type(bench.vectors)(bench.scorer)
    bench.pipeline._vectors = again
    await bench.handle(bench.record(make_event(user_id=USER, object_title="coffee", object_id="same")))
    assert [call.size for call in bench.scorer.calls if call.kind == "encode"] == [1]


@pytest.mark.parametrize("faulty", ["encoder", "head"])
@pytest.mark.parametrize(("script", "error"), [("reject_next", InvalidScores), ("fail_next", TritonUnavailable)])
async def test_a_model_that_fails_leaves_the_chunk_unacknowledged(
    bench: Bench, faulty: str, script: str, error: type[Exception]
) -> None:
    """The error leaves `handle` and no profile goes out; handled again, the chunk ends as it should."""
    bench.pipeline.release = make_release()
    event: Event = make_event(user_id=USER, object_title="film")
    if faulty == "head":
        await bench.handle(bench.record(event))
    before = len(bench.profiles())
    getattr(bench.scorer, script)()
    record = bench.record(event)
    with pytest.raises(error):
        await bench.handle(record)
    assert len(bench.profiles()) == before
    await bench.handle(record)
    assert bench.profiles()[-1].data.window.events == 1
    assert bench.profiles()[-1].data.status == "fresh"


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
        bench.pipeline._vectors = vectors
        bench.outbox.sent.clear()
        for event in events:
            await bench.handle(bench.record(event))
        seen[vectors] = bench.profiles()[-1].data.interests
    assert len(tight.of(1)) <= 2
    assert [one.score for one in seen[tight]] == [one.score for one in seen[roomy]]
