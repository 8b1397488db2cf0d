"""A worker that stops is started again, and one record cannot stop it for ever."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from tests.integration.conftest import SUPERVISED, assert_exact, made_events, publish, records, settled
from xplat_stream.errors import EXIT_LEASE, EXIT_SOFTWARE
from xplat_stream.kafka.topics import REJECTED
from xplat_stream.local.process import wait_for
from xplat_stream.testing import make_event

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.integration.conftest import Worker
    from xplat_stream.settings import Settings


pytestmark = pytest.mark.integration


def test_a_killed_worker_is_back_by_itself(group: Settings, start_worker: Callable[..., Worker]) -> None:
    """`kill -9` of the worker process: the supervisor says so, starts it again, and the result is exact."""
    worker = start_worker(group, command=SUPERVISED).ready()
    publish(group, made_events(40, 5, seed=400))
    (child,) = worker.children
    os.kill(child, signal.SIGKILL)
    publish(group, made_events(40, 5, seed=401))
    worker.until(lambda: worker.metrics.restarts == 1, "be started again")
    assert_exact(group)
    assert worker.said("was killed by SIGKILL; starting it again in 0.5 s")
    assert worker.end() == 0


def test_a_supervisor_takes_its_worker_with_it(group: Settings, start_worker: Callable[..., Worker]) -> None:
    """Killed outright, it leaves no worker behind that would hold the state folder."""
    first = start_worker(group, command=SUPERVISED).ready()
    (child,) = first.children
    first.end(signal.SIGKILL)
    assert wait_for(lambda: not os.path.exists(f"/proc/{child}"), timeout_s=60)  # noqa: PTH110 - not a file
    publish(group, made_events(10, 2, seed=402))
    start_worker(group, command=SUPERVISED).ready()
    assert_exact(group)


def test_a_worker_that_stood_still_writes_nothing_more(group: Settings, start_worker: Callable[..., Worker]) -> None:
    """Stopped for longer than its lease and woken up, it leaves at once with an exit code of its own, and is back."""
    worker = start_worker(group, command=SUPERVISED).ready()
    (child,) = worker.children
    publish(group, made_events(20, 3, seed=403))
    os.kill(child, signal.SIGSTOP)
    publish(group, made_events(20, 3, seed=404))
    assert not wait_for(lambda: not worker.running, timeout_s=group.worker.session_timeout_s)
    os.kill(child, signal.SIGCONT)
    worker.until(lambda: worker.said(f"ended with exit code {EXIT_LEASE}"), "lose its lease")
    assert worker.said("the process stood still for")
    worker.until(lambda: worker.metrics.restarts == 1, "be started again")
    assert_exact(group)


_CRASHING = """
import os, sys
from pathlib import Path
from streams.supervisor import Supervisor
faust = "-m faust -A tests.integration.crashing -L uvloop worker --without-web --loglevel info"
sys.exit(Supervisor([sys.executable, *faust.split()], os.environ, Path(os.environ["XPLAT_WORKER__DATADIR"])).run())
"""


@pytest.mark.parametrize(
    ("poison", "how"),
    [("POISON-EXCEPTION", f"ended with exit code {EXIT_SOFTWARE}"), ("POISON-SIGNAL", "was killed by SIGSEGV")],
)
def test_a_record_that_crashes_the_worker_three_times_is_put_aside(
    group: Settings, start_worker: Callable[..., Worker], poison: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three crashes, then the one record is a dead letter and everything around it is counted; no fourth crash."""
    monkeypatch.setenv("PYTHONPATH", os.getcwd())  # noqa: PTH109 - a variable, not a path
    monkeypatch.setenv("POISON", poison)
    culprit = make_event(user_id=f"culprit-{poison}", object_title=poison)
    publish(group, [*made_events(20, 3, seed=405), culprit, *made_events(20, 3, seed=406)])
    worker = start_worker(group, command=(sys.executable, "-c", _CRASHING))
    worker.until(
        lambda: worker.metrics.restarts == 3 and worker.metrics.rejected.get("crash") == 1, "put it aside", within_s=180
    )
    verdict = settled(group)
    assert (verdict.missing, verdict.extra, verdict.differing) == (1, 0, 1), verdict
    assert verdict.examples[0].startswith(culprit.user_id)
    letters = [one for one in records(group, REJECTED) if dict(one.headers())["reason"] == b"crash"]
    assert [one.key() for one in letters if poison.encode() in one.value()] == [culprit.user_id.encode()]
    assert worker.log.read_text().count(how) == 3
