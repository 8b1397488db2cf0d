"""Several processes train one encoder; number formats are the device's or refused."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch

from tests.trainer import shared
from tests.trainer.conftest import OPTIONS
from trainer.fitting.fit import fit_encoder
from trainer.run.devices import accelerator_for, is_first_process
from trainer.run.progress import silent
from xplat_stream.errors import DataError

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def _fresh_accelerate():
    """Let accelerate forget which number format the process trains in, before and after."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


def test_two_processes_share_the_steps_of_one_encoder(tiny_base, tmp_path):
    """Started as `torchrun` starts them, both end with the same weights after half the steps; one would publish."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "tests.trainer.shared", tiny_base, str(tmp_path)],
            cwd=ROOT,
            env=os.environ
            | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
            | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
            | {"RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in "01"
    ]
    alone = tmp_path / "alone"
    alone.mkdir()
    shared.main(tiny_base, alone)
    assert [process.wait() for process in processes] == [0, 0]
    first, second, single = (
        torch.load(path, weights_only=True) for path in (tmp_path / "0.pt", tmp_path / "1.pt", alone / "0.pt")
    )

    assert all(map(torch.equal, first["weights"].values(), second["weights"].values()))
    assert single["steps"] == 2 * first["steps"] > 0
    assert second["steps"] == 0  # nothing was reported twice
    assert (first["first"], second["first"]) == (True, False)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.usefixtures("_fresh_accelerate")
def test_half_precision_gives_whole_weights(dataset, tiny_base, precision):
    """Trained in half precision, the encoder is kept and served in float32."""
    options = msgspec.structs.replace(OPTIONS, precision=precision, encoder_texts_shown=60, max_texts=60, threads=1)
    encoder, _ = fit_encoder(dataset.texts, options, tiny_base, silent)

    vectors = encoder(torch.randint(5, 90, (2, 8)), torch.ones(2, 8, dtype=torch.long))

    assert {weight.dtype for weight in encoder.parameters()} == {torch.float32}
    assert vectors.dtype == torch.float32
    assert torch.isfinite(vectors).all()


@pytest.mark.usefixtures("_fresh_accelerate")
def test_a_process_trains_in_one_format():
    """A second number format in one process is refused with the way out."""
    accelerator_for(msgspec.structs.replace(OPTIONS, precision="no"))

    with pytest.raises(DataError, match=r"cannot be trained in bf16.*`auto`"):
        accelerator_for(msgspec.structs.replace(OPTIONS, precision="bf16"))


def test_one_process_is_the_first():
    """Where nobody helps, this process writes and publishes."""
    assert is_first_process()
