"""What can be said of topics, codecs and partitions without a broker."""

from __future__ import annotations

import msgspec
import pytest

from xplat_stream.errors import KafkaUnavailable, RejectedEvent
from xplat_stream.kafka.codec import MAX_LETTER_BYTES, Origin, dead_letter, first_read, rekeyed_headers
from xplat_stream.kafka.consumer import partition_for
from xplat_stream.kafka.topics import (
    MODELS,
    PROFILES,
    REJECTED,
    REKEYED,
    behavior_topic,
    partition_counts,
    platform_of,
    topic_specs,
)
from xplat_stream.settings import KafkaSettings, Settings

ORIGIN = Origin("behavior.shop.v1", 3, 17, 1_767_225_600_123)


@pytest.mark.parametrize("platform", ["shop", "tv-2", "a_b", "0"])
def test_a_platform_and_its_topic(platform: str) -> None:
    """The name of a topic leads back to its platform."""
    assert platform_of(behavior_topic(platform)) == platform


@pytest.mark.parametrize(
    "topic",
    [
        REJECTED,
        REKEYED,
        PROFILES,
        MODELS,
        "xplat-state-changelog",
        "behavior.Shop.v1",
        "behavior..v1",
        "behavior.a.b.v1",
        "behavior.shop.v2",
        "behavior.shop.v1x",
        "xbehavior.shop.v1",
        "behavior." + "a" * 65 + ".v1",
        "",
        "__consumer_offsets",
    ],
)
def test_other_topics_are_no_platforms(topic: str) -> None:
    """Neither our own topics nor near misses are taken for a platform's."""
    assert platform_of(topic) is None


def test_the_topics_of_the_design() -> None:
    """Topics that hold the current value of a key are compacted, streams are deleted by age, and the key is told."""
    found = {spec.name: (spec.keyed_by_user, spec.config["cleanup.policy"]) for spec in topic_specs(Settings())}
    assert found == {
        "behavior.shop.v1": (True, "delete"),
        "behavior.video.v1": (True, "delete"),
        "behavior.social.v1": (True, "delete"),
        "behavior.rekeyed.v1": (True, "delete"),
        "behavior.rejected.v1": (False, "delete"),
        "xplat-state-changelog": (True, "compact"),
        "interest.profiles.v1": (True, "compact"),
        "interest.models.v1": (False, "compact"),
    }


def test_a_changelog_is_compacted_in_small_pieces() -> None:
    """The open segment is never compacted and read whole by whoever takes over: 64 MiB of it at the most, not 1 GiB."""
    (changelog,) = [spec for spec in topic_specs(Settings()) if spec.name == "xplat-state-changelog"]
    assert changelog.config["segment.bytes"] == "67108864"


def test_settings_reach_the_topics() -> None:
    """Retention, app name and platforms are the configured ones."""
    settings = msgspec.convert({"kafka": {"retention_days": 2}, "worker": {"app": "mine"}}, Settings)
    specs = {spec.name: spec for spec in topic_specs(settings, ["tv"])}
    assert specs["behavior.tv.v1"].config["retention.ms"] == str(2 * 86_400_000)
    assert "mine-state-changelog" in specs
    assert "behavior.shop.v1" not in specs


@pytest.mark.parametrize(
    ("key", "partition"),
    [pytest.param(b"user-%d" % number, at, id=f"user-{number}") for number, at in enumerate([3, 0, 0, 3, 3, 2, 1, 0])],
)
def test_partitions_are_java_murmur2(key: bytes, partition: int) -> None:
    """The same partition as Kafka's own Java client takes: values from an independent murmur2."""
    assert partition_for(key, 4) == partition


def test_no_broker_is_an_operators_line() -> None:
    """A broker that is not there is one line with the address and the way out, and may be retried."""
    settings = Settings(kafka=KafkaSettings(bootstrap="127.0.0.1:1"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("xplat_stream.kafka.topics.ANSWER_S", 0.2)
        with pytest.raises(KafkaUnavailable, match=r"127\.0\.0\.1:1.*xplat up") as caught:
            partition_counts(settings)
    assert caught.value.retriable


def test_a_dead_letter_holds_the_original() -> None:
    """Value byte for byte, with the reason and the place it came from in the headers."""
    value, headers = dead_letter(b"\xff\x00", RejectedEvent("encoding", "not UTF-8"), ORIGIN)
    assert value == b"\xff\x00"
    assert dict(headers) == {
        "reason": b"encoding",
        "detail": b"not UTF-8",
        "topic": b"behavior.shop.v1",
        "partition": b"3",
        "offset": b"17",
        "received-at": b"2026-01-01T00:00:00.123000+00:00",
    }


@pytest.mark.parametrize(
    ("value", "header", "told"),
    [
        pytest.param(None, "null", b"true", id="null"),
        pytest.param(b"x" * (MAX_LETTER_BYTES + 1), "cut-from", str(MAX_LETTER_BYTES + 1).encode(), id="cut"),
    ],
)
def test_a_dead_letter_says_what_it_could_not_hold(value: bytes | None, header: str, told: bytes) -> None:
    """Null and empty stay apart, and a value too long for a letter says how long it was."""
    letter, headers = dead_letter(value, RejectedEvent("size", "d" * 5000), ORIGIN)
    assert len(letter) <= MAX_LETTER_BYTES
    assert dict(headers)[header] == told
    assert len(dict(headers)["detail"]) <= 1000


def test_a_rekeyed_record_knows_its_origin() -> None:
    """A forwarded event is admitted by its own topic and its own Kafka time."""
    assert first_read(rekeyed_headers(ORIGIN.topic, ORIGIN.received_at_ms)) == ("behavior.shop.v1", 1_767_225_600_123)


@pytest.mark.parametrize("headers", [[], [("topic", b"t")], [("topic", b"t"), ("received-at-ms", b"x")]])
def test_a_foreign_rekeyed_record_is_told(headers: list[tuple[str, bytes]]) -> None:
    """A record somebody else put on the rekeyed topic is recognised."""
    with pytest.raises((KeyError, ValueError)):
        first_read(headers)
