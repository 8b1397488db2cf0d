"""Releases on disk: Triton's layout, a manifest with every checksum, and a rename that makes one appear whole.

    model_repo/interest_encoder/<encoder version>/   model.onnx  tokenizer.json
    model_repo/interest_head/<release number>/       model.onnx  manifest.json
    model_repo/interest_fused/<number>/              model.onnx  tokenizer.json  manifest.json      serving/fused.py

A release is named by its head version: each release has a head of its own, several may share an encoder. A version is
staged beside the repository (`<repository>.staging`, same file system), flushed, and renamed into place, because Triton
takes any folder inside the repository for a model and any number-like name for a version.
"""

from __future__ import annotations

import os
import shutil
import uuid
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from xplat_stream.errors import ReleaseError
from xplat_stream.profile import ModelRef, TaxonomyRef
from xplat_stream.serving.features import TextFeatures

if TYPE_CHECKING:
    from collections.abc import Mapping

ENCODER: Final = "interest_encoder"
HEAD: Final = "interest_head"
MODEL_FILE: Final = "model.onnx"
TOKENIZER_FILE: Final = "tokenizer.json"
MANIFEST_FILE: Final = "manifest.json"
CONFIG_FILE: Final = "config.pbtxt"
LAST_NUMBER_FILE: Final = "last-number"


class Golden(msgspec.Struct, frozen=True):
    """Requests with the answers the trained model gave, repeated against every server that loads the release.

    Lists nest as the arrays do: `vectors` (texts, width); `head_*` (users, events[, width]); `scores` (users, labels).
    """

    texts: list[str]
    vectors: list[list[float]]
    head_vectors: list[list[list[float]]]
    head_platform: list[list[int]]
    head_action: list[list[int]]
    head_age: list[list[float]]
    scores: list[list[float]]


class Manifest(msgspec.Struct, frozen=True):
    """Everything needed to use a release and to trust it."""

    release: int
    encoder: int
    created_at: datetime
    taxonomy: TaxonomyRef
    labels: tuple[str, ...]
    """Taxonomy label ids in the order of the scores."""
    platforms: tuple[str, ...]
    width: int
    max_tokens: int
    max_events: int
    base: str
    """The pretrained encoder this one was fine-tuned from."""
    files: dict[str, str]
    """Path relative to the repository → sha256."""
    golden: Golden
    metrics: dict[str, float] = {}
    """Evaluation of the trained model, as `trainer` names it."""


class Release:
    """A release ready for use: its manifest and its tokenizer."""

    def __init__(self, manifest: Manifest, texts: TextFeatures) -> None:
        self.manifest = manifest
        self.texts = texts
        self.ref = ModelRef(manifest.release, manifest.encoder, manifest.release)

    @property
    def number(self) -> int:
        """The release number, which is its head version."""
        return self.manifest.release

    @property
    def encoder(self) -> int:
        """The encoder version."""
        return self.manifest.encoder


class ModelRepository:
    """Triton's model repository as this machine sees it."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self._staging = self.root.with_name(self.root.name + ".staging")

    def require_layout(self, *models: str) -> None:
        """Raise `ReleaseError` unless the models, by default a release's two, have the configuration Triton needs."""
        for model in models or (ENCODER, HEAD):
            path = self.root / model / CONFIG_FILE
            if not path.is_file():
                raise ReleaseError(
                    f"the model repository has no configuration of {model}",
                    where=str(path),
                    expected="the file of that name in this project's model_repo/",
                    fix="Copy model_repo/ there, or correct XPLAT_MODEL__REPOSITORY or the working folder.",
                )

    def versions(self, model: str) -> list[int]:
        """Return the versions of a model that lie in the repository, ascending."""
        folder = self.root / model
        return sorted(int(child.name) for child in folder.iterdir() if child.name.isdigit()) if folder.is_dir() else []

    def releases(self) -> list[int]:
        """Return the numbers of the releases that are complete, ascending."""
        return [number for number in self.versions(HEAD) if (self.root / HEAD / str(number) / MANIFEST_FILE).is_file()]

    def next_number(self) -> int:
        """Return a number above every version ever placed here, those taken away again included: numbers only grow."""
        last = self._staging / LAST_NUMBER_FILE
        ever = int(last.read_text()) if last.is_file() else 0
        models = [folder.name for folder in self.root.iterdir()] if self.root.is_dir() else []
        return max([ever, *(version for model in models for version in self.versions(model))]) + 1

    def place(self, model: str, version: int, files: Mapping[str, bytes | Path]) -> dict[str, str]:
        """Make a version appear whole. Returns path relative to the repository → sha256.

        Raises `ReleaseError` when the version exists already or the disk refuses.
        """
        target = self.root / model / str(version)
        if target.exists():
            raise ReleaseError(
                f"version {version} of {model} exists already",
                where=str(target),
                expected="a new number",
                fix="Numbers only grow: release again and a new one is taken.",
            )
        staged = self._staging / uuid.uuid4().hex
        try:
            staged.mkdir(parents=True)
            checksums = {
                f"{model}/{version}/{name}": _write_durably(staged / name, content) for name, content in files.items()
            }
            _flush_folder(staged)
            _write_durably(self._staging / LAST_NUMBER_FILE, str(max(version, self.next_number() - 1)).encode())
            target.parent.mkdir(parents=True, exist_ok=True)
            staged.rename(target)
            _flush_folder(target.parent)
        except OSError as error:
            shutil.rmtree(staged, ignore_errors=True)
            raise ReleaseError(
                f"version {version} of {model} cannot be written: {error.strerror}",
                where=str(error.filename or target),
                expected="a writable repository with a staging folder beside it, on one file system",
                fix="Correct the permissions or XPLAT_MODEL__REPOSITORY.",
            ) from error
        return checksums

    def remove(self, model: str, version: int) -> None:
        """Take a version away that no server could load: after a restart Triton would try it first."""
        shutil.rmtree(self.root / model / str(version), ignore_errors=True)

    def manifest(self, number: int) -> Manifest:
        """Read a release's manifest. Raises `ReleaseError`."""
        path = self.root / HEAD / str(number) / MANIFEST_FILE
        try:
            return msgspec.json.decode(path.read_bytes(), type=Manifest)
        except (OSError, ValueError) as error:  # msgspec's errors are ValueErrors, and so is one for a byte of no text
            raise ReleaseError(
                f"release {number} has no readable manifest: {error}",
                where=str(path),
                expected="the file the trainer wrote",
                fix="Train again (`xplat train`), or point XPLAT_MODEL__REPOSITORY at the repository Triton serves.",
            ) from error

    def load(self, number: int) -> Release:
        """Return a release after checking every file against its manifest. Raises `ReleaseError`."""
        manifest = self.manifest(number)
        if manifest.release != number:
            raise ReleaseError(
                f"the manifest in folder {number} is of release {manifest.release}",
                where=str(self.root / HEAD / str(number) / MANIFEST_FILE),
                expected="the number of its folder",
                fix="Restore the folder or train again: releases are not renamed.",
            )
        self.require_intact(number, manifest.files)
        tokenizer = self.root / ENCODER / str(manifest.encoder) / TOKENIZER_FILE
        return Release(manifest, TextFeatures.from_file(tokenizer, max_tokens=manifest.max_tokens))

    def require_intact(self, number: int, files: Mapping[str, str]) -> None:
        """Raise `ReleaseError` unless every file, by its path in the repository, has the sha256 given."""
        for name, expected in files.items():
            path = self.root / name
            found = sha256(path.read_bytes()).hexdigest() if path.is_file() else "no file"
            if found != expected:
                raise ReleaseError(
                    f"release {number} is altered: {name} has {found[:12]}",
                    where=str(path),
                    expected=f"sha256 {expected[:12]}…, as the manifest says",
                    fix="Restore the file or train again.",
                )


def _write_durably(path: Path, content: bytes | Path) -> str:
    raw = content if isinstance(content, bytes) else content.read_bytes()
    with path.open("wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())
    return sha256(raw).hexdigest()


def _flush_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
