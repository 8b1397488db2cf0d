"""State folders that were damaged, swapped or orphaned: a worker starts once more at the most, and all is exact."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from confluent_kafka import ConsumerGroupState

from tests.integration.conftest import Worker, assert_exact, configure, made_events, publish, records, with_worker
from xplat_stream.errors import EXIT_OPERATOR, EXIT_STATE
from xplat_stream.kafka.log import spans
from xplat_stream.kafka.topics import admin, changelog_topic, create_topics, partition_counts, topic_facts
from xplat_stream.local.process import wait_for
from xplat_stream.state import BARRIER_KEY

if TYPE_CHECKING:
    from collections.abc import Callable

    from xplat_stream.settings import Settings

pytestmark = pytest.mark.integration

PEOPLE, EACH = 400, 6


@pytest.fixture
def stopped(group: Settings, start_worker: Callable[..., Worker], request: pytest.FixtureRequest) -> Settings:
    """Return settings of a group whose only worker has handled a backlog and ended."""
    publish(group, made_events(PEOPLE, EACH, seed=300, name=request.node.name))
    worker = start_worker(group).ready()
    assert_exact(group)
    assert worker.end() == 0, worker.words()
    return group


def more(settings: Settings, name: str) -> None:
    """Publish another event or two of everybody."""
    publish(settings, made_events(PEOPLE, 2, seed=301, name=name))


def folders(settings: Settings) -> list[Path]:
    """Return the state folders of the four partitions."""
    return [Path(settings.worker.datadir) / f"partition-{number}" for number in range(4)]


def aside(settings: Settings, why: str) -> list[str]:
    """Return the folders set aside for one reason."""
    return sorted(path.name for path in Path(settings.worker.datadir).glob(f"partition-*.{why}-*"))


def sst(folder: Path) -> Path:
    """Return the largest SST file of a folder."""
    return max(folder.glob("*.sst"), key=lambda file: file.stat().st_size)


def flip(file: Path) -> None:
    """Turn a bit every two kilobytes of a file: its users, which come last, but not its first blocks or its index."""
    raw = bytearray(file.read_bytes())
    for at in range(len(raw) // 3, 9 * len(raw) // 10, 2048):
        raw[at] ^= 1
    file.write_bytes(raw)


def test_damage_seen_while_taking_over_costs_no_restart(
    stopped: Settings, start_worker: Callable[..., Worker], request: pytest.FixtureRequest
) -> None:
    """Each damaged folder is set aside and rebuilt from its changelog, up to the barrier that this worker appended."""
    first, second, third, fourth = folders(stopped)
    os.truncate(sst(first), sst(first).stat().st_size // 2)
    (second / "CURRENT").unlink()
    next(third.glob("MANIFEST-*")).write_bytes(b"")
    flip(sst(fourth))  # the users of the last chunk are merged again
    worker = start_worker(stopped).ready()
    more(stopped, request.node.name)
    assert_exact(stopped)
    assert [name.partition(".")[0] for name in aside(stopped, "corrupt")] == [path.name for path in folders(stopped)]
    assert worker.running
    marks = [one for one in records(stopped, changelog_topic(stopped.worker.app)) if one.key() == BARRIER_KEY]
    assert [one.partition() for one in marks] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [one.offset() for one in marks[::2]] == [0, 0, 0, 0]


def test_a_compacted_changelog_gives_everything_back(
    group: Settings, start_worker: Callable[..., Worker], request: pytest.FixtureRequest
) -> None:
    """Kafka drops the older records of a user; an empty folder filled from what is left has every window."""
    changelog = changelog_topic(group.worker.app)
    configure(group, changelog, segment_ms="100", min_cleanable_dirty_ratio="0.01")
    worker = start_worker(group).ready()
    for seed in (303, 304, 305):
        publish(group, made_events(PEOPLE, 2, seed=seed, name=request.node.name))
        assert_exact(group)
    written = sum(span.end for span in spans(group, [changelog]))  # offsets: Kafka may have compacted already
    assert wait_for(lambda: len(records(group, changelog)) <= written - PEOPLE, timeout_s=120), "nothing was compacted"
    worker.end(signal.SIGKILL)
    shutil.rmtree(group.worker.datadir)
    start_worker(group).ready()
    more(group, request.node.name)
    assert assert_exact(group).users >= PEOPLE


def test_flipped_bits_are_found_when_read(
    stopped: Settings, start_worker: Callable[..., Worker], request: pytest.FixtureRequest
) -> None:
    """The worker stops with exit code 74 and one line before a wrong window is used; the next one is exact."""
    worker = start_worker(stopped).ready()
    publish(stopped, made_events(40, 1, seed=302, name="0"))  # the last chunk, which a take-over merges again
    assert_exact(stopped)
    assert worker.end() == 0
    flip(sst(folders(stopped)[1]))
    worker = start_worker(stopped)  # it looks at everybody when it takes a release up, perhaps before it is ready
    more(stopped, request.node.name)
    assert worker.process.wait(60) == EXIT_STATE
    assert "state is damaged: Corruption" in worker.words().strip().splitlines()[-1]
    assert len(aside(stopped, "corrupt")) == 1
    assert not folders(stopped)[1].exists()
    start_worker(stopped).ready()
    assert_exact(stopped)


def test_a_foreign_folder_is_not_merged(
    stopped: Settings, start_worker: Callable[..., Worker], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The folder of another group, and one of another partition, are set aside; the worker is exact at once."""
    other = with_worker(stopped, app=f"{stopped.worker.app}-other", datadir=tmp_path / "other")
    create_topics(other)
    theirs = start_worker(other).ready()
    assert_exact(other)
    assert theirs.end() == 0
    first, second, third, _ = folders(stopped)
    shutil.rmtree(first)
    shutil.copytree(folders(other)[0], first)
    shutil.rmtree(second)
    shutil.copytree(third, second)
    worker = start_worker(stopped).ready()
    more(stopped, request.node.name)
    assert_exact(stopped)
    assert [name.partition(".")[0] for name in aside(stopped, "foreign")] == ["partition-0", "partition-1"]
    assert worker.running


def test_a_changelog_made_again_is_told_and_then_rebuilt(
    stopped: Settings, start_worker: Callable[..., Worker], request: pytest.FixtureRequest
) -> None:
    """Its state is lost and the committed offsets would hide that: refused in one line. Without them, exact."""
    topic = changelog_topic(stopped.worker.app)
    before = topic_facts(stopped, topic)
    client = admin(stopped)
    client.delete_topics([topic])[topic].result()
    wait_for(lambda: topic not in partition_counts(stopped), timeout_s=60)
    create_topics(stopped)
    assert topic_facts(stopped, topic).topic_id != before.topic_id
    more(stopped, request.node.name)
    worker = start_worker(stopped)
    assert worker.process.wait(40) == EXIT_OPERATOR, worker.words()
    line = worker.words().strip().splitlines()[-1]
    assert "the changelog is empty, but behavior." in line
    assert f"delete the consumer group {stopped.worker.app}" in line
    _delete_group(stopped)
    start_worker(stopped).ready()
    assert_exact(stopped)
    assert len(aside(stopped, "foreign")) == 4


def _delete_group(settings: Settings) -> None:
    client, group = admin(settings), settings.worker.app

    def is_empty() -> bool:
        return client.describe_consumer_groups([group])[group].result().state == ConsumerGroupState.EMPTY

    wait_for(is_empty, timeout_s=60)
    client.delete_consumer_groups([group])[group].result()
