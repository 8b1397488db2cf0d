"""Bad input: none of it stops a worker, all of it is put aside with its reason, and what is good counts."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from aiokafka import AIOKafkaProducer
from confluent_kafka import Producer

from tests.integration.bad_input import BAD, BOMB_BYTES, GOOD, Record, good
from tests.integration.conftest import XPLAT, Worker, assert_exact, environment, last_profiles, records
from tests.streams.spoiled_batch import HEADER_NAME, SpoiledBatch
from xplat_stream.kafka.codec import MAX_LETTER_BYTES, Letter, read_letter
from xplat_stream.kafka.consumer import partition_for
from xplat_stream.kafka.topics import QUIET, REJECTED, behavior_topic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from confluent_kafka import KafkaError, Message

    from xplat_stream.settings import Settings

pytestmark = pytest.mark.integration

SHOP = behavior_topic("shop")
Place = tuple[int, int]


def produce(settings: Settings, sent: Iterable[tuple[str, Record]]) -> dict[str, list[Place]]:
    """Produce records to the topic of the shop, and return by name the partitions and offsets they got."""
    places: dict[str, list[Place]] = {}
    options = {
        "bootstrap.servers": settings.kafka.bootstrap,
        "partitioner": "murmur2_random",
        "message.max.bytes": 2 * BOMB_BYTES,
        "compression.type": "gzip",
        **QUIET,
    }
    producer = Producer(options)
    for name, record in sent:

        def note(error: KafkaError | None, message: Message, name: str = name) -> None:
            assert error is None, f"{name}: {error}"
            places.setdefault(name, []).append((message.partition(), message.offset()))

        producer.produce(
            SHOP, record.value, record.key, record.partition, on_delivery=note, headers=list(record.headers)
        )
    assert producer.flush(60) == 0
    return places


def letters_of(settings: Settings) -> dict[Place, list[Letter]]:
    """Return the letters from the topic of the shop by the place of their originals."""
    found: dict[Place, list[Letter]] = {}
    for one in records(settings, REJECTED):
        letter = read_letter(one.key(), one.value(), one.headers())
        if letter.origin.topic == SHOP and letter.reason != "replayed":
            found.setdefault((letter.origin.partition, letter.origin.offset), []).append(letter)
    return found


def peak_bytes(pid: int) -> int:
    """Return the most memory a process ever had resident."""
    return int(re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())[0]) * 1024


def test_every_kind_of_bad_input_is_put_aside_and_good_input_counts(
    group: Settings, start_worker: Callable[..., Worker], subtests: pytest.Subtests
) -> None:
    """Each bad kind is one letter, byte for byte, with its reason; each good kind is in its window; no restart."""
    assert len(BAD) >= 30
    worker = start_worker(group).ready()
    conflicts = assert_exact(group).conflicts
    pid, before = worker.process.pid, peak_bytes(worker.process.pid)
    users = {name: f"good-{name}-{kind.user}" for name, kind in GOOD.items()}
    bad = {name: kind.make(f"bad-{name}") for name, kind in BAD.items()}
    mixed = [(name, bad[name]) for name in BAD]
    for number, (name, kind) in enumerate(GOOD.items()):
        mixed[2 * number : 2 * number] = [(name, record) for record in kind.make(users[name])]
    places = produce(group, mixed)
    verdict = assert_exact(group)

    letters = letters_of(group)
    for name, kind in BAD.items():
        with subtests.test(name):
            (letter,) = letters.get(places[name][0], [None])
            assert letter is not None, "no letter"
            sent = bad[name]
            assert letter.reason == kind.reason, letter.detail
            assert letter.detail
            assert letter.key == sent.key
            assert letter.value == (None if sent.value is None else sent.value[:MAX_LETTER_BYTES])
            assert letter.cut_from == (len(sent.value or b"") if len(sent.value or b"") > MAX_LETTER_BYTES else None)
    shown = last_profiles(group, "good-")
    for name, kind in GOOD.items():
        with subtests.test(name):
            assert not [place for place in places[name] if place in letters]
            assert (shown[users[name]].window.events if kind.kept else 0) == kind.kept
            assert kind.kept or users[name] not in shown
    assert verdict.conflicts == conflicts + 1
    assert worker.running
    assert worker.process.pid == pid
    assert worker.metrics.restarts == 0
    assert peak_bytes(pid) < before + 12 * BOMB_BYTES


def test_letters_are_explained_mended_and_replayed_once(group: Settings, start_worker: Callable[..., Worker]) -> None:
    """What had a wrong key is listed, shown, replayed twice under its event's user, and counts once; the rest stays."""

    def xplat(*arguments: str) -> str:
        done = subprocess.run(
            [str(XPLAT), "rejected", *arguments],
            env=environment(group),
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    worker = start_worker(group).ready()
    made = {f"mended-{kind}": BAD[kind].make(f"mended-{kind}") for kind in ("no-key", "other-key")}
    nobody = Record(b"mended-not", b"\x1b[2J[red]{")
    places = produce(group, [*made.items(), *made.items(), ("nobody", nobody)])
    assert_exact(group)
    assert not last_profiles(group, "mended-")

    counted = {(one["reason"], one["topic"]): one for one in json.loads(xplat("list", "--json"))["counts"]}
    assert counted["bad_key", SHOP]["letters"] >= 2
    assert counted["syntax", SHOP]["meaning"] == "the value is not one JSON document"
    assert "the record's key is not the event's user" in xplat("list")
    partition, offset = places["nobody"][0]
    shown = xplat("show", "--offset", f"{SHOP}:{partition}:{offset}")
    assert shown.startswith(f"syntax  {SHOP}:{partition}:{offset}  received ")
    assert "JSON is malformed" in shown
    assert r"value   \x1b[2J[red]{ (10 bytes)" in shown
    found = json.loads(xplat("show", "--reason", "syntax", "--limit", "1", "--json"))
    assert (found["value"], found["replayed"]) == ("G1sySltyZWRdew==", False)

    rehearsed = json.loads(xplat("replay", "--key-from-event", "--dry-run", "--json"))
    assert rehearsed["replayed"]["bad_key"] >= 2
    assert rehearsed["still"]["syntax"] >= 1
    untouched = json.loads(xplat("replay", "--reason", "bad_key", "--json"))
    assert (untouched["replayed"], untouched["still"]) == ({}, {"bad_key": untouched["letters"]})
    assert_exact(group)
    assert not last_profiles(group, "mended-")

    before = letters_of(group)
    first = json.loads(xplat("replay", "--key-from-event", "--topic", SHOP, "--json"))
    second = json.loads(xplat("replay", "--key-from-event", "--topic", SHOP, "--json"))
    assert first["replayed"] == rehearsed["replayed"]
    assert (second["replayed"], second["already"]) == ({}, sum(first["replayed"].values()))
    assert second["still"] == first["still"]
    assert_exact(group)
    mended = last_profiles(group, "mended-")
    assert {user: profile.window.events for user, profile in mended.items()} == {
        "mended-no-key": 1,
        "mended-other-key": 1,
    }
    assert letters_of(group) == before
    assert json.loads(xplat("show", "--reason", "bad_key", "--limit", "1", "--json"))["replayed"]
    assert worker.running


def test_a_letter_that_was_cut_is_read_whole_from_its_place(
    group: Settings, start_worker: Callable[..., Worker]
) -> None:
    """The bytes past 2 MiB come from the record itself, so that admission judges what was sent."""
    from xplat_stream.rejected import find_rejected, select, whole_value

    start_worker(group).ready()
    record = BAD["decompression-bomb"].make("cut")
    ((partition, offset),) = produce(group, [("cut", record)])["cut"]
    assert_exact(group)
    (found,) = find_rejected(group, select(place=f"{SHOP}:{partition}:{offset}"), limit=1)
    assert (len(found.letter.value or b""), found.letter.cut_from) == (MAX_LETTER_BYTES, len(record.value or b""))
    assert whole_value(group, found.letter) == record.value
    with pytest.raises(LookupError, match="not in the log any more"):
        whole_value(group, found.letter._replace(cut_from=BOMB_BYTES * 2))


async def test_a_header_name_that_is_no_utf8_stops_nobody(group: Settings, start_worker: Callable[..., Worker]) -> None:
    """The event counts as if it had no headers, and so do the records around it; the worker goes on."""
    worker = await asyncio.to_thread(lambda: start_worker(group).ready())
    user = "oddly-named"
    batch = SpoiledBatch(1 << 20, 0, is_transactional=False)
    for number in range(3):
        batch.append(
            key=user.encode(),
            value=good(user),
            timestamp=None,
            headers=[(HEADER_NAME, b"x")] if number == 1 else [],
        )
    async with AIOKafkaProducer(bootstrap_servers=group.kafka.bootstrap) as producer:
        await (await producer.send_batch(batch, SHOP, partition=partition_for(user.encode(), 4)))
    await asyncio.to_thread(assert_exact, group)
    assert (await asyncio.to_thread(last_profiles, group, user))[user].window.events == 3
    assert worker.running
