"""A training that was killed goes on, and ends where it would have ended; nothing else is gone on from."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
import torch

from tests.trainer import killable
from tests.trainer.conftest import OPTIONS
from trainer.fitting.checkpoint import Checkpoint, fingerprint
from trainer.fitting.fit import fit_encoder
from trainer.run.progress import silent
from xplat_stream.errors import DataError

ROOT = Path(__file__).resolve().parents[3]


def checkpoint(folder, *, resume=False, run="run"):
    made = Checkpoint(folder, every=timedelta(0), resume=resume)
    made.belongs_to(run)
    return made


def interrupting(steps):
    """Return a report that ends a training after so many steps, before the last of them is saved."""

    def report(stage, done, total, metrics):
        if done == steps:
            raise InterruptedError

    return report


def killed_in_the_middle(base, folder, steps=20):
    """Start the training as a process of its own and kill it when so many steps are saved."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    program = subprocess.Popen(
        [sys.executable, "-m", "tests.trainer.killable", base, str(folder)], env=environment, cwd=ROOT
    )
    saved = folder / "encoder.checkpoint"
    try:
        while program.poll() is None:
            if saved.exists() and torch.load(saved, weights_only=True)["state"]["done"] >= steps:
                break
            with suppress(subprocess.TimeoutExpired):
                program.wait(0.05)
    finally:
        program.kill()
    return program.wait()


def test_killed_and_resumed_is_as_if_never_killed(tiny_base, tmp_path):
    """After a `kill -9` between any two steps, a resumed run gives the metrics and the graphs of an undisturbed one."""
    steps = []

    def report(stage, done, total, metrics):
        if stage == "encoder" and "loss" in metrics:
            steps.append((done, total))

    code = killed_in_the_middle(tiny_base, tmp_path / "kept")
    resumed = killable.run(tiny_base, str(tmp_path / "kept"), resume=True, report=report)
    undisturbed = killable.run(tiny_base, "", resume=False)

    assert code == -9
    assert 20 < steps[0][0] < steps[-1][0] == steps[-1][1]
    assert resumed.metrics == undisturbed.metrics
    assert resumed.candidate.head == undisturbed.candidate.head
    assert resumed.candidate.encoder == undisturbed.candidate.encoder
    assert list((tmp_path / "kept").iterdir()) == []


@pytest.mark.parametrize("adapter", ["lora", "adalora", "bottleneck", "prefix", "full"])
def test_every_adapter_resumes_at_any_step(dataset, tiny_base, tmp_path, adapter):
    """Interrupted after any step, inside an epoch or at its end, the encoder ends with the same weights."""
    options = msgspec.structs.replace(
        OPTIONS, adapter=adapter, encoder_texts_shown=150, max_texts=80, encoder_batch=16, threads=1
    )

    def train(report, **how):
        return fit_encoder(dataset.texts, options, tiny_base, report, **how).encoder.state_dict()

    expected = train(silent)
    for steps in (3, 6):
        with pytest.raises(InterruptedError):
            train(interrupting(steps), checkpoint=checkpoint(tmp_path))
        found = train(silent, checkpoint=checkpoint(tmp_path, resume=True))

        assert all(map(torch.equal, found.values(), expected.values()))


def test_what_was_saved_is_found_again(tmp_path):
    """A part comes back as it was saved last; parts do not mix."""
    first = checkpoint(tmp_path)
    first.save("encoder", {"weights": torch.arange(3), "done": 1})
    first.save("encoder", {"weights": torch.arange(4), "done": 2})

    again = checkpoint(tmp_path, resume=True)

    assert again.load("mlm") is None
    found = again.load("encoder")
    assert found is not None
    assert found["done"] == 2
    assert torch.equal(found["weights"], torch.arange(4))


def test_a_new_training_forgets_the_old(tmp_path):
    """Without `resume` nothing is gone on from, and what was kept is gone."""
    checkpoint(tmp_path).save("encoder", {"done": 1})

    assert checkpoint(tmp_path).load("encoder") is None
    assert list(tmp_path.iterdir()) == []


def test_another_training_is_not_gone_on_from(tmp_path):
    """The checkpoint of a run with other options or another log is refused, with the way out."""
    checkpoint(tmp_path).save("encoder", {"done": 1})

    with pytest.raises(DataError, match=r"another training.*without `--resume`"):
        checkpoint(tmp_path, resume=True, run="other").load("encoder")


@pytest.mark.parametrize(
    "damage", [b"", b"PK\x03\x04 half a file", b"no checkpoint at all"], ids=["empty", "torn", "foreign"]
)
def test_a_damaged_file_is_one_line(tmp_path, damage):
    """A file that no training wrote is refused, and the line names it."""
    (tmp_path / "encoder.checkpoint").write_bytes(damage)

    with pytest.raises(DataError, match=r"cannot be read.*encoder\.checkpoint"):
        checkpoint(tmp_path, resume=True).load("encoder")


def test_a_torn_write_leaves_the_state_before(tmp_path):
    """A process that dies while it writes has lost that write and nothing else."""
    kept = checkpoint(tmp_path)
    kept.save("encoder", {"done": 1})
    (tmp_path / ".encoder.checkpoint.77").write_bytes(b"half")

    found = checkpoint(tmp_path, resume=True).load("encoder")

    assert found == {"done": 1}


def test_a_folder_that_cannot_be_is_one_line(tmp_path):
    """A checkpoint where a file lies already is refused before anything is trained."""
    (tmp_path / "taken").write_text("")

    with pytest.raises(DataError, match="cannot be kept"):
        checkpoint(tmp_path / "taken")


def test_nothing_is_kept_unless_asked_for():
    """Without a folder a checkpoint takes everything and has nothing."""
    none = Checkpoint.off()
    none.save("encoder", {"done": 1})

    assert none.load("encoder") is None
    assert not none.due()


def test_a_run_is_its_options_and_its_examples(dataset):
    """The name of a run changes with an option or an example that matters, and with nothing else."""
    name = fingerprint(OPTIONS, dataset)
    other = dataset._replace(test=dataset.tune)

    assert fingerprint(msgspec.structs.replace(OPTIONS, checkpoint="elsewhere", resume=True), dataset) == name
    assert fingerprint(msgspec.structs.replace(OPTIONS, seed=4), dataset) != name
    assert fingerprint(OPTIONS, other) != name
