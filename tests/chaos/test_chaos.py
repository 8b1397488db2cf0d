"""A short seed of the chaos suite, as `make chaos` runs it; and that a seed means the same each time."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from tests.chaos.cycles import MARGIN_S, drawn_kinds
from tests.chaos.faults import FAULTS
from tests.chaos.fleet import found_exits, found_stops, found_tracebacks
from tests.chaos.traffic import drawn_events, probes, recorded
from xplat_stream.kafka.consumer import partition_for

ROOT = Path(__file__).resolve().parents[2]
SESSION_S = 6.0
"""What the suite gives its workers."""

SUPERVISED_LOG = """\
[2026-11-24 12:24:42,132] [26114] [INFO] [^Worker]: Ready
[2026-11-24 12:24:43,000] [26114] [WARNING] looked away
Traceback (most recent call last):
  File "/somewhere/streams/switch.py", line 75, in follow
    await self._follow_one()
ValueError: surprising
[2026-11-24 12:24:44,000] [26114] [ERROR] not of ours
Traceback (most recent call last):
  File "/somewhere/aiokafka/client.py", line 75, in connect
    raise
OSError: gone
[2026-11-24 12:24:45,442] [26114] [CRITICAL] xplat worker stopped: KeyError: 'x'
Traceback (most recent call last):
  File "/somewhere/streams/lanes.py", line 75, in run
    await self._handle()
KeyError: 'x'
xplat worker ended with exit code 70; starting it again in 0.5 s
xplat worker stopped: the process stood still for 9.1 s
xplat worker ended with exit code 72; starting it again in 1.0 s
xplat worker was killed by SIGKILL; starting it again in 2.0 s
"""


@pytest.mark.integration
def test_a_short_seed_holds_every_promise(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Under a kill, a lost host and a black-holed broker nothing is missing, extra, different or goes back."""
    command = [sys.executable, "-m", "tests.chaos", "cycles", "--cycles", "3", "--seed", "4"]
    done = subprocess.run(
        [*command, "--faults", "kill,state,broker-blackhole"],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "HOME": str(Path.home()), "TMPDIR": str(tmp_path_factory.mktemp("chaos"))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["cycles"] == 3
    assert figures["faults"] == {"broker-blackhole": 1, "kill": 1, "state": 1}
    assert figures["events"] > 1800
    zeros = (
        "missing",
        "extra",
        "differing",
        "unlettered",
        "revisions_back",
        "still_degraded",
        "unacknowledged",
        "tracebacks",
    )
    assert {name: figures[name] for name in zeros} == dict.fromkeys(zeros, 0)
    assert figures["worst_recovery_s"] <= SESSION_S + MARGIN_S


def test_a_seed_gives_the_same_faults_and_events() -> None:
    """Two runs of a seed break the same things in the same order and send the same bytes; another seed does not."""
    first, again, other = (list(islice(drawn_kinds(tuple(FAULTS), seed), 40)) for seed in (7, 7, 8))
    assert first == again
    assert first != other
    assert set(first[: len(FAULTS)]) == set(FAULTS)
    sent = [recorded(drawn_events("c1", 50, seed=seed)) for seed in ("7/1", "7/1", "8/1")]
    assert sent[0] == sent[1]
    assert sent[0] != sent[2]


@pytest.mark.parametrize("partitions", [1, 4, 7])
def test_probes_reach_every_partition(partitions: int) -> None:
    """There is one probe for each partition, so that none can be without an owner unnoticed."""
    found = probes("c1", partitions)
    assert sorted(partition_for(one.user_id.encode(), partitions) for one in found) == list(range(partitions))


def test_logs_tell_how_workers_ended() -> None:
    """Exits are counted as supervisors report them; a traceback that is no stop, and of ours, is found by its end."""
    assert found_exits(SUPERVISED_LOG) == {"70": 1, "72": 1, "SIGKILL": 1}
    assert list(found_stops(SUPERVISED_LOG)) == ["KeyError: 'x'", "the process stood still for 9.1 s"]
    assert found_tracebacks(SUPERVISED_LOG) == {"ValueError: surprising": 1}
