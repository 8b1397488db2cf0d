"""The command line: what a person's mistake looks like, and what a script can read."""

from __future__ import annotations

import json
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.cimpl import NewTopic

from tests.integration.conftest import XPLAT, Worker, assert_exact, environment, made_events, publish, records
from xplat_stream.kafka.consumer import partition_for
from xplat_stream.kafka.topics import PROFILES, admin, changelog_topic
from xplat_stream.state import UserState, user_key
from xplat_stream.testing import make_event
from xplat_stream.window import WindowSpec, row_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from xplat_stream.settings import Settings

pytestmark = pytest.mark.integration


@pytest.fixture
def xplat(group: Settings, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a runner of `xplat` with the settings of this test's group; an empty variable is not set at all."""

    def run(*arguments: str, settings: Settings | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
        set_here = environment(settings or group, **variables)
        kept = {name: value for name, value in set_here.items() if value}
        return subprocess.run(
            [str(XPLAT), *arguments], env=kept, cwd=tmp_path, capture_output=True, text=True, timeout=180, check=False
        )

    return run


def one_line(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Hold what every mistake is told like: exit code 2, one line, what and where and what to do, no traceback."""
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("xplat: ")
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in lines[0]


@pytest.fixture
def nobody() -> str:
    """Return an address where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def test_no_broker(xplat: Callable[..., Any], nobody: str, subtests: pytest.Subtests) -> None:
    """Every command that needs Kafka says which address does not answer, and how to get a broker."""
    commands = ("worker", "tail", "verify", "show someone", "topics list", "topics create")
    with ThreadPoolExecutor(len(commands)) as pool:
        runs = [pool.submit(xplat, *command.split(), XPLAT_KAFKA__BOOTSTRAP=nobody) for command in commands]
    for command, run in zip(commands, runs, strict=True):
        with subtests.test(command):
            one_line(run.result(), "no Kafka broker answers", nobody, "xplat up")


def test_a_taken_port(xplat: Callable[..., Any], tmp_path: Path) -> None:
    """`up` names the port and its variable."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = str(listener.getsockname()[1])
        done = xplat(
            "up",
            XPLAT_KAFKA__BOOTSTRAP="",
            XPLAT_TRITON__URL="",
            XPLAT_LOCAL__HOME=str(tmp_path / "home"),
            XPLAT_LOCAL__KAFKA_PORT=port,
        )
    one_line(done, f"port {port} is taken", "XPLAT_LOCAL__KAFKA_PORT")


def test_an_unwritable_state_folder(xplat: Callable[..., Any], tmp_path: Path) -> None:
    """The worker names the folder and the variable."""
    (tmp_path / "file").write_bytes(b"")
    folder = str(tmp_path / "file" / "state")
    one_line(xplat("worker", XPLAT_WORKER__DATADIR=folder), folder, "XPLAT_WORKER__DATADIR")


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("XPLAT_KAFKA__BOOTSTRAPS", "x:1", ("unknown setting XPLAT_KAFKA__BOOTSTRAPS", "bootstrap")),
        ("XPLAT_KAFKA__PARTITIONS", "many", ("XPLAT_KAFKA__PARTITIONS is not usable", "int")),
        ("XPLAT_KAFKA__BOOTSTRAP", "nowhere", ("XPLAT_KAFKA__BOOTSTRAP is not usable",)),
        ("XPLAT_WORKER__SESSION_TIMEOUT_S", "1", ("XPLAT_WORKER__SESSION_TIMEOUT_S is not usable", ">= 6")),
        ("XPLAT_PLATFORMS", "Not A Name", ("XPLAT_PLATFORMS is not usable",)),
    ],
    ids=["unknown variable", "not a number", "not an address", "too small", "not a name"],
)
@pytest.mark.parametrize("command", ["worker", "settings"])
def test_broken_settings(
    xplat: Callable[..., Any], command: str, variable: str, value: str, words: tuple[str, ...]
) -> None:
    """Every command names the variable, where it is set and what it may be."""
    one_line(xplat(command, **{variable: value}), *words)


def test_a_broken_settings_file(xplat: Callable[..., Any], tmp_path: Path) -> None:
    """It is named with the line at fault."""
    (tmp_path / "xplat.toml").write_text("[kafka\n", encoding="utf-8")
    one_line(xplat("settings"), "xplat.toml", "line 1")


def test_missing_topics(xplat: Callable[..., Any]) -> None:
    """They are named, with the command that makes them."""
    done = xplat("worker", XPLAT_WORKER__APP="nobody-made-me")
    one_line(done, "missing topics: nobody-made-me-state-changelog", "xplat topics create")


def test_differing_partition_counts(xplat: Callable[..., Any], group: Settings) -> None:
    """The topics that differ are named with both counts; nothing is started."""
    client = admin(group)
    name = changelog_topic(f"{group.worker.app}-odd")
    client.create_topics([NewTopic(name, 3, 1)])[name].result(30)
    for arguments in (("worker",), ("topics", "create")):
        done = xplat(*arguments, XPLAT_WORKER__APP=f"{group.worker.app}-odd")
        one_line(done, "partition counts differ", "behavior.shop.v1 has 4", "expected 3")


def test_an_unknown_user(xplat: Callable[..., Any]) -> None:
    """`show` says there is no profile and how to find who has one."""
    one_line(xplat("show", "nobody-at-all"), "no profile of user 'nobody-at-all'", "xplat tail --from-start")


def test_a_missing_recording(xplat: Callable[..., Any], tmp_path: Path) -> None:
    """`replay` names the folder and the files it looks for."""
    one_line(xplat("replay", str(tmp_path / "nowhere")), "nowhere", "events.tsv")


def test_debug_shows_the_traceback(xplat: Callable[..., Any]) -> None:
    """With `--debug`, the mistake comes with where it was found."""
    done = xplat("show", "nobody-at-all", "--debug")
    assert done.returncode != 0
    assert "Traceback" in done.stderr
    assert "DataError" in done.stderr


@pytest.fixture
def worked(group: Settings, start_worker: Callable[..., Worker]) -> Iterator[Worker]:
    """Yield a worker that has caught up with a few events."""
    worker = start_worker(group).ready()
    publish(group, made_events(10, 3, seed=200))
    assert_exact(group)
    return worker


def test_what_scripts_read_is_json(xplat: Callable[..., Any], worked: Worker) -> None:
    """`tail`, `show`, `topics list`, `status`, `settings` and `verify` print what a JSON parser takes."""
    group = worked.settings
    lines = xplat("tail", "--from-start", "--limit", "3", "--json").stdout.splitlines()
    assert len(lines) == 3
    user = json.loads(lines[0])["user_id"]
    assert json.loads(xplat("show", user, "--json").stdout)["data"]["user_id"] == user
    assert user in xplat("show", user).stdout
    topics = json.loads(xplat("topics", "list", "--json").stdout)
    assert topics["behavior.shop.v1"] == topics[changelog_topic(group.worker.app)] == 4
    assert json.loads(xplat("settings").stdout)["worker"]["app"] == group.worker.app
    status = json.loads(xplat("status", "--json").stdout)
    assert status["kafka"]["healthy"]
    assert status["triton"]["healthy"]
    done = xplat("verify", "--json")
    assert done.returncode == 0, done.stderr
    verdict = json.loads(done.stdout)
    assert verdict["missing"] == verdict["extra"] == verdict["differing"] == 0
    for command in (("tail", "--from-start", "--idle", "4"), ("topics", "list"), ("status",), ("verify",)):
        done = xplat(*command)
        assert done.returncode == 0, done.stderr
        assert done.stdout


def test_verify_finds_what_someone_altered(xplat: Callable[..., Any], worked: Worker, group: Settings) -> None:
    """An event too many, a state taken away, a profile taken away: exit code 1, and the counts say which."""
    assert worked.end() == 0
    spec = WindowSpec(group.window.per_platform, group.window.horizon)
    key = b"200-1"
    held = next(one for one in reversed(records(group, changelog_topic(group.worker.app))) if one.key() == b"w" + key)
    state = UserState.unpack(spec, held.value())
    added = make_event(user_id="200-1", occurred_at=state.window.end)
    fuller = UserState(state.window.fold([("shop", row_of(added))]), state.publication)
    for topic, record_key, value, expected in (
        (changelog_topic(group.worker.app), user_key("200-1"), fuller.pack(), (0, 1, 1)),
        (changelog_topic(group.worker.app), user_key("200-1"), None, (len(state.window), 0, 1)),
        (changelog_topic(group.worker.app), user_key("200-1"), held.value(), (0, 0, 0)),
        (PROFILES, key, None, (0, 0, 1)),
    ):
        _write(group, topic, partition_for(key, 4), record_key, value)
        done = xplat("verify", "--json")
        verdict = json.loads(done.stdout)
        assert (verdict["missing"], verdict["extra"], verdict["differing"]) == expected
        assert done.returncode == (0 if expected == (0, 0, 0) else 1)
        assert bool(verdict["examples"]) == (expected != (0, 0, 0))
        if expected[2]:
            assert verdict["examples"][0].startswith("200-1: ")
    assert "NOT EXACT" in xplat("verify").stdout


def _write(settings: Settings, topic: str, partition: int, key: bytes, value: bytes | None) -> None:
    producer = Producer({"bootstrap.servers": settings.kafka.bootstrap})
    producer.produce(topic, value, key, partition=partition)
    assert producer.flush(30) == 0


def test_a_recording_is_replayed_exactly(
    xplat: Callable[..., Any], group: Settings, start_worker: Callable[..., Worker], tmp_path: Path
) -> None:
    """`replay` says what it published; a worker makes of it what `verify` expects."""
    folder = tmp_path / "recording"
    folder.mkdir()
    (folder / "items.tsv").write_text(
        "item\tplatform\ttitle\tcategories\ni1\tshop\tRunning shoes\tSports|Running\ni2\tvideo\tA film\tFilm\n", "utf-8"
    )
    rows = [
        f"p{number % 7}\t{('video', 'shop')[number % 2]}\ti{1 + number % 2}\t{1_700_000_000 + number}"
        for number in range(60)
    ]
    (folder / "events.tsv").write_text("\n".join(["user\tplatform\titem\tts", *rows]) + "\n", "utf-8")
    start_worker(group).ready()
    done = xplat("replay", str(folder))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["delivered"] == 60
    done = xplat("verify", "--wait", "40", "--json")
    assert done.returncode == 0, done.stderr + done.stdout
    assert json.loads(xplat("show", "p1", "--json").stdout)["data"]["window"]["events"] >= 8
