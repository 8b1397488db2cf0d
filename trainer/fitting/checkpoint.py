"""Where a training stands, kept on disk so that a `kill -9` costs seconds and not the run.

A checkpoint is a folder with one file for each part of a training (`log`, `search`, `mlm`, `encoder`). A file is
written beside its place, synced and renamed, so it is whole or not there. Every file says which run it belongs to: a
run with other options or another log does not go on from it.

What is drawn at random is drawn anew from (seed, step) at every step, so weights, optimizer and position are all there
is to keep, and a resumed run ends with the same bits as one that was never interrupted.
"""

from __future__ import annotations

import time
from datetime import timedelta
from hashlib import blake2b
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, Final, Self
from zipfile import BadZipFile

import msgspec
import torch

from trainer.run.devices import is_first_process
from trainer.run.options import NOT_THE_MODEL
from xplat_stream.disk import written_whole
from xplat_stream.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trainer.data.dataset import Dataset
    from trainer.run.options import TrainOptions

_SUFFIX: Final = ".checkpoint"
_AFRESH: Final = "Train without `--resume` to begin again."


class Checkpoint:
    """The parts of one training. `folder` None: nothing is kept and nothing is found.

    Of several processes the first one writes; `resume` off: they begin anew, and what was kept is forgotten.
    """

    def __init__(self, folder: Path | None, *, every: timedelta, resume: bool) -> None:
        self._folder = folder
        self._resume = resume
        self._writes = folder is not None and is_first_process()
        self._every_s = every.total_seconds()
        self._saved_at = time.monotonic()
        self._run = ""
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise DataError(
                    f"the checkpoint cannot be kept: {error.strerror}",
                    where=str(folder),
                    expected="a folder that can be written to",
                    fix="Name another one as `checkpoint`.",
                ) from error
            if not resume:
                self.clear()

    @classmethod
    def of(cls, options: TrainOptions) -> Self:
        """Return the one that a training's options ask for. Raises `DataError` where its folder cannot be."""
        folder = Path(options.checkpoint) if options.checkpoint else None
        return cls(folder, every=options.checkpoint_every, resume=options.resume)

    @classmethod
    def off(cls) -> Self:
        """Return one that keeps nothing."""
        return cls(None, every=timedelta(0), resume=False)

    def belongs_to(self, run: str) -> None:
        """Say which run the parts saved and loaded from here on are of. `run`: see `fingerprint`."""
        self._run = run

    def load(self, part: str) -> dict[str, Any] | None:
        """Return a part's state as the interrupted training saved it last; None where there is none to go on from.

        Raises `DataError` when it is of another run, or cannot be read.
        """
        path = self._path(part)
        if path is None or not self._resume or not path.exists():
            return None
        try:
            found: dict[str, Any] = torch.load(path, weights_only=True)
            run, state = str(found["run"]), dict(found["state"])
        except (OSError, RuntimeError, EOFError, KeyError, UnpicklingError, BadZipFile) as error:
            raise DataError(
                f"the checkpoint cannot be read: {str(error).partition(chr(10))[0]}",
                where=str(path),
                expected="a file that a training wrote",
                fix=_AFRESH,
            ) from error
        if run != self._run:
            raise DataError(
                "the checkpoint is of another training: options, log or base are not the same",
                where=str(path),
                expected="the run that was interrupted",
                fix=f"Repeat its options, or: {_AFRESH}",
            )
        return state

    def save(self, part: str, state: Mapping[str, Any]) -> None:
        """Keep a part's state: tensors, numbers, text, lists and dicts of them. The one before stays until then."""
        path = self._path(part)
        if path is None or not self._writes:
            return
        with written_whole(path) as file:
            torch.save({"run": self._run, "state": dict(state)}, file)
        self._saved_at = time.monotonic()

    def due(self) -> bool:
        """Tell whether it is time to save again."""
        return self._writes and time.monotonic() - self._saved_at >= self._every_s

    def clear(self) -> None:
        """Forget every part: the training came to its end, or another one begins."""
        if self._folder is not None and self._writes:
            for path in [*self._folder.glob(f"*{_SUFFIX}"), *self._folder.glob(f".*{_SUFFIX}.*")]:
                path.unlink(missing_ok=True)

    def _path(self, part: str) -> Path | None:
        return None if self._folder is None else self._folder / f"{part}{_SUFFIX}"


def fingerprint(options: TrainOptions, data: Dataset) -> str:
    """Return a name for a training: equal where options and examples are, so that the outcome would be."""
    chosen = {name: value for name, value in msgspec.structs.asdict(options).items() if name not in NOT_THE_MODEL}
    digest = blake2b(msgspec.json.encode(chosen, order="deterministic"), digest_size=16)
    for text_hash in data.texts.hashes:
        digest.update(text_hash)
    for part in (data.train, data.tune, data.test):
        digest.update(part.cuts.tobytes() + part.targets.tobytes())
    digest.update(repr((data.labels, data.platforms)).encode())
    return digest.hexdigest()
