"""Killed at any step of what is done to releases, a process leaves a serving release, and the next one a tidy house."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from typing import TYPE_CHECKING

import pytest

from tests.release_steps import ACTS, LABELS, WIDTH, Processes, prepare, said, settings_in, sight, states, topic_in
from tests.release_steps import act as perform
from xplat_stream.errors import OperatorError, ReleaseError, TritonUnavailable
from xplat_stream.failpoints import POINTS
from xplat_stream.kafka.reports import Warmth
from xplat_stream.serving import ModelRepository, TritonScorer, promote
from xplat_stream.serving.releases import ENCODER, HEAD
from xplat_stream.testing import FakeTriton

if TYPE_CHECKING:
    from pathlib import Path

    from xplat_stream.settings import Settings

STEPS = [one for one in POINTS if not one.startswith(("switch.", "rescore.", "shadow.", "report.", "release.judged"))]
"""Those that are reached without a worker and without a training."""


@pytest.fixture(scope="module")
def processes() -> Processes:
    """Return a starter of processes."""
    return Processes()


def answers(folder: Path, triton: FakeTriton) -> bool:
    """Tell whether the release that is announced is whole, and answers its golden requests."""
    active = ModelRepository.of(settings_in(folder)).load(said(folder).release)

    async def ask() -> bool:
        async with TritonScorer(settings_in(folder, triton.url).triton) as scorer:
            await scorer.check_golden(active)
            return await scorer.is_ready(active)

    return asyncio.run(ask())


def house(folder: Path) -> tuple[object, ...]:
    """Return all that another run has to find: what is announced, in which state each release is, what is in sight."""
    told = said(folder)
    repository = ModelRepository.of(settings_in(folder))
    whole = [number for number in states(folder) if repository.folder(HEAD, number).is_dir()]
    for number in whole:
        repository.load(number)
    staged = list((folder / "model_repo.staging").glob("*/"))
    encoders = sorted(int(one.parent.name) for one in repository.hidden.glob(f"*/{ENCODER}"))
    return (told.release, told.previous, told.shadow), states(folder), sight(folder), whole, encoders, staged


@pytest.mark.parametrize("act", sorted(ACTS.keys() - {"place", "watch"}))  # programs, which wait for their turn
def test_two_at_once_are_kept_apart(act: str, tmp_path: Path) -> None:
    """The second is told who is at it, before it has asked anybody anything; all stays as it was."""
    prepare(tmp_path)
    settings, before = settings_in(tmp_path), house(tmp_path)
    with ModelRepository.of(settings).held("release 9 is being promoted"), pytest.raises(OperatorError) as told:
        ACTS[act](settings)
    assert "release 9 is being promoted since" in str(told.value)
    assert f"by process {os.getpid()} on " in str(told.value)
    assert house(tmp_path) == before


@pytest.mark.parametrize("act", ACTS)
def test_killed_anywhere(act: str, tmp_path: Path, processes: Processes) -> None:
    """The active release answers then and after Triton's restart; done again, all is as if nobody had been killed."""
    prepare(tmp_path / "before")
    shutil.copytree(tmp_path / "before", tmp_path / "whole")
    with FakeTriton(tmp_path / "whole" / "model_repo", width=WIDTH, labels=LABELS) as triton:
        assert processes.run(tmp_path / "whole", triton.url, act) == 0
    expected = house(tmp_path / "whole")
    killed = []
    for point in STEPS:
        for nth in range(1, 100):
            folder = tmp_path / f"{point}-{nth}"
            shutil.copytree(tmp_path / "before", folder)
            with FakeTriton(folder / "model_repo", width=WIDTH, labels=LABELS) as triton:
                code = processes.run(folder, triton.url, act, failpoint=f"{point}:{nth}")
                if code == 0:
                    break
                killed.append(f"{point}:{nth}")
                assert (code, answers(folder, triton)) == (-signal.SIGKILL, True), killed[-1]
                triton.stop()
                triton.start()
                assert answers(folder, triton), killed[-1]
                assert processes.run(folder, triton.url, act) == 0, killed[-1]
                assert answers(folder, triton), killed[-1]
            assert house(folder) == expected, killed[-1]
    assert {one.partition(":")[0] for one in killed} >= {"file.written", "file.replaced"}


@pytest.mark.parametrize("act", ["promote", "promote a head", "roll back", "shadow"])
@pytest.mark.parametrize("fault", ["away", "refuses"])
def test_one_server_of_two_is_enough_to_stop_it(act: str, fault: str, tmp_path: Path) -> None:
    """It is named, nothing is announced, and on the other the active release answers as before, after a restart too."""
    prepare(tmp_path)
    about = {"width": WIDTH, "labels": LABELS}
    with FakeTriton(tmp_path / "model_repo", **about) as well, FakeTriton(tmp_path / "model_repo", **about) as ill:
        before, loaded = house(tmp_path), {model: set(versions) for model, versions in well.loaded.items()}
        if fault == "away":
            ill.stop()
        else:
            ill.refused.add(HEAD)
        with pytest.raises((TritonUnavailable, ReleaseError)) as told:
            perform(tmp_path, f"{well.url},{ill.url}", act)
        assert told.value.where == ill.url
        assert house(tmp_path) == before
        assert well.loaded == loaded
        assert answers(tmp_path, well)
        ill.refused.clear()
        ill.stop()
        ill.start()
        assert answers(tmp_path, ill)
        perform(tmp_path, f"{well.url},{ill.url}", act)
        assert answers(tmp_path, well)
        assert answers(tmp_path, ill)


def test_a_cold_encoder_is_not_promoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told how far workers are, and nothing is changed; asked to wait, the release is their shadow meanwhile.

    Another head on the encoder in use waits for nobody, nor does what is forced.
    """
    prepare(tmp_path)
    colder = [Warmth(4, 0, 0, 0), Warmth(4, 3, 100, 80), Warmth(4, 4, 100, 100)]
    shadows = []

    def read(settings: Settings, encoder: int) -> Warmth:
        assert encoder == 5
        shadows.append(said(tmp_path).shadow)
        return colder.pop(0) if len(colder) > 1 else colder[0]

    with FakeTriton(tmp_path / "model_repo", width=WIDTH, labels=LABELS) as triton, topic_in(tmp_path):
        monkeypatch.setattr(promote, "read_warmth", read)
        settings, before = settings_in(tmp_path, triton.url), house(tmp_path)
        with pytest.raises(ReleaseError, match=r"release 5 is not warm: 0 of 4 partitions, 0 of 0 texts.*--wait"):
            promote.promote(settings, 5)
        assert house(tmp_path) == before
        promote.promote(settings, 5, warm_within_s=600)
        assert (said(tmp_path).release, shadows) == (5, [4, 4, 5, 5])
    again = tmp_path / "again"
    prepare(again)
    with FakeTriton(again / "model_repo", width=WIDTH, labels=LABELS) as triton, topic_in(again):
        monkeypatch.setattr(promote, "read_warmth", lambda *_: pytest.fail("nobody is to be asked"))
        promote.promote(settings_in(again, triton.url), 6)
        assert said(again).release == 6
        promote.promote(settings_in(again, triton.url), 5, force=True)
        assert said(again).release == 5
