"""Releases on disk: Triton's layout, a manifest with every checksum, and a rename that makes one appear whole.

    model_repo/interest_encoder/<encoder version>/   model.onnx  tokenizer.json
    model_repo/interest_head/<release number>/       model.onnx  manifest.json  manifest.sig
    model_repo/interest_fused/<number>/              model.onnx  tokenizer.json  manifest.json      serving/fused.py
    model_repo.releases/<number>/interest_*/         the same, out of Triton's sight

A release is named by its head version: each release has a head of its own, several may share an encoder. A version is
staged beside the repository (`<repository>.staging`, same file system), flushed, and renamed into place, because Triton
takes any folder inside the repository for a model and any number-like name for a version (`12.tmp` is version 12).

A version is **in sight** when it lies in the repository: after a restart Triton loads the highest numbers it sees. So
whatever must not serve lies beside it, in the releases folder, and one rename brings it into sight or takes it away.
"""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from contextlib import ExitStack, contextmanager
from datetime import datetime
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from xplat_stream.disk import flush_folder, held, write_whole
from xplat_stream.drift import Shares
from xplat_stream.errors import ReleaseError
from xplat_stream.failpoints import reached
from xplat_stream.profile import ModelRef, TaxonomyRef
from xplat_stream.serving.features import HeadInputs, TextFeatures
from xplat_stream.serving.sensitivity import Sensitivity
from xplat_stream.serving.signing import is_signed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from xplat_stream.settings import Settings

log = logging.getLogger("xplat.release")

ENCODER: Final = "interest_encoder"
HEAD: Final = "interest_head"
MODEL_FILE: Final = "model.onnx"
TOKENIZER_FILE: Final = "tokenizer.json"
MANIFEST_FILE: Final = "manifest.json"
SIGNATURE_FILE: Final = "manifest.sig"
CONFIG_FILE: Final = "config.pbtxt"
LAST_NUMBER_FILE: Final = "last-number"
LOCK_FILE: Final = "lock"


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

    def head_inputs(self) -> HeadInputs:
        """Return what the head is asked."""
        return HeadInputs(
            np.array(self.head_vectors, np.float16),
            np.array(self.head_platform, np.int32),
            np.array(self.head_action, np.int32),
            np.array(self.head_age, np.float32),
        )


class DataSpan(msgspec.Struct, frozen=True):
    """What a release was trained on."""

    source: str
    """The topics, or the folder."""
    first_event_at: datetime
    last_event_at: datetime
    events: int
    users: int
    shares: Shares = Shares()
    """What part of the events fell on each label and platform; nothing where an older trainer made it."""


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
    parent: int = 0
    """The release that was active when this one was trained; 0 where none was."""
    data: DataSpan | None = None
    commit: str = ""
    """The trainer's git commit, with ``-dirty`` where files differed from it; empty where it ran from no checkout."""
    calibration: dict[str, float] = {}
    """What was fitted on the tuning users after the training: `temperature`, and the `linear` branch's share."""
    sensitivity: Sensitivity | None = None
    """How far events move its scores, so that scoring can wait; None: every update is scored."""


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
    """Triton's model repository as this machine sees it, and what lies beside it out of Triton's sight."""

    def __init__(self, root: str | Path, *, trusted: Sequence[str] = ()) -> None:
        """`trusted`: public keys, one of which has to have signed a release; none: signatures are not asked for."""
        self.root = Path(root)
        self.hidden = self.root.with_name(self.root.name + ".releases")
        self._staging = self.root.with_name(self.root.name + ".staging")
        self._trusted = tuple(trusted)
        self._warned = False

    @classmethod
    def of(cls, settings: Settings) -> ModelRepository:
        """Return the repository that the settings name, with the keys that they trust."""
        return cls(settings.model.repository, trusted=settings.release.trusted)

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
        """Return the versions of a model that Triton sees, ascending."""
        return numbered(self.root / model)

    def releases(self) -> list[int]:
        """Return the numbers of the releases that Triton sees and that are complete, ascending."""
        return [number for number in self.versions(HEAD) if (self.root / HEAD / str(number) / MANIFEST_FILE).is_file()]

    def folder(self, model: str, version: int) -> Path:
        """Return where a version lies: in Triton's sight, or out of it."""
        aside = self.hidden / str(version) / model
        return aside if aside.is_dir() else self.root / model / str(version)

    def _path(self, name: str) -> Path:
        """Return where a file lies that a manifest names by model, version and file name."""
        model, _, rest = name.partition("/")
        version, _, file = rest.partition("/")
        return self.folder(model, int(version)) / file if version.isdecimal() else self.root / name

    def show(self, model: str, version: int) -> None:
        """Bring a version into Triton's sight; nothing happens where it is. Raises `ReleaseError`."""
        self._move(self.hidden / str(version) / model, self.root / model / str(version))

    def hide(self, model: str, version: int) -> None:
        """Take a version out of Triton's sight; one that is loaded stays so until the next load of its model.

        Nothing happens where it is not in sight. Raises `ReleaseError`.
        """
        self._move(self.root / model / str(version), self.hidden / str(version) / model)

    def _move(self, source: Path, target: Path) -> None:
        if not source.is_dir():
            return
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            source.rename(target)
            reached("sight.renamed")
            flush_folder(target.parent)
            flush_folder(source.parent)
        except OSError as error:
            raise unwritable(str(target), error) from error

    def next_number(self) -> int:
        """Return a number above every version ever placed here, those taken away again included: numbers only grow.

        The probes that the gate has beside the models are no releases, also those that a killed run has left.
        """
        last = self._staging / LAST_NUMBER_FILE
        ever = int(last.read_text()) if last.is_file() else 0
        seen = [version for folder in self.root.glob("interest_*") for version in self.versions(folder.name)]
        return max([ever, *seen, *numbered(self.hidden)]) + 1

    def place(
        self, model: str, version: int, files: Mapping[str, bytes | Path], *, in_sight: bool = True
    ) -> dict[str, str]:
        """Make a version appear whole. Returns path relative to the repository → sha256.

        Raises `ReleaseError` when the version exists already or the disk refuses.
        """
        seen, aside = self.root / model / str(version), self.hidden / str(version) / model
        target = seen if in_sight else aside
        if seen.exists() or aside.exists():
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
            flush_folder(staged)
            target.parent.mkdir(parents=True, exist_ok=True)
            reached("place.written")
            staged.rename(target)
            reached("place.renamed")
            flush_folder(target.parent)
        except OSError as error:
            shutil.rmtree(staged, ignore_errors=True)
            raise unwritable(f"version {version} of {model}", error, target) from error
        return checksums

    def remove(self, model: str, version: int) -> None:
        """Delete a version, wherever it lies: gone at once, its number remembered. Raises `ReleaseError`."""
        folder, gone = self.folder(model, version), self._staging / uuid.uuid4().hex
        if not folder.is_dir():
            return
        try:
            write_whole(self._staging / LAST_NUMBER_FILE, str(self.next_number() - 1).encode())
            folder.rename(gone)
            reached("remove.renamed")
        except OSError as error:
            raise unwritable(str(folder), error) from error
        shutil.rmtree(gone, ignore_errors=True)

    def sweep(self) -> list[str]:
        """Delete what whoever died has left in staging. Only inside `held`, and nothing is being staged."""
        left = list(self._staging.glob("*/"))
        for folder in left:
            shutil.rmtree(folder, ignore_errors=True)
        return [str(folder) for folder in left]

    @contextmanager
    def held(self, doing: str, *, patience_s: float = 0.0) -> Iterator[None]:
        """Be the only one to change the repository inside the block. A crash lets it go.

        `doing`: what others are told. Raises `OperatorError` that names who has it where that one does not let go in
        time, `ReleaseError`.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(held(self._staging / LOCK_FILE, doing, patience_s=patience_s))
            except OSError as error:
                raise unwritable(str(self.root), error) from error
            yield

    def manifest(self, number: int) -> Manifest:
        """Read a release's manifest. Raises `ReleaseError`."""
        path = self.folder(HEAD, number) / MANIFEST_FILE
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
        """Return a release after checking its signature, and every file against its manifest. Raises `ReleaseError`."""
        manifest = self.manifest(number)
        if manifest.release != number:
            raise ReleaseError(
                f"the manifest in folder {number} is of release {manifest.release}",
                where=str(self.folder(HEAD, number) / MANIFEST_FILE),
                expected="the number of its folder",
                fix="Restore the folder or train again: releases are not renamed.",
            )
        self.require_signed(number)
        self.require_intact(number, manifest.files)
        name = f"{ENCODER}/{manifest.encoder}/{TOKENIZER_FILE}"
        return Release(manifest, _features(self._path(name), manifest.files.get(name), manifest.max_tokens))

    def require_signed(self, number: int) -> None:
        """Raise `ReleaseError` unless somebody trusted signed the manifest; where nobody is, say so once."""
        if not self._trusted:
            if not self._warned:
                log.info("release %d is taken on trust: no release.trusted_keys are set", number)
            self._warned = True
            return
        folder = self.folder(HEAD, number)
        try:
            signature = (folder / SIGNATURE_FILE).read_bytes()
        except FileNotFoundError:
            signature = b""
        if not is_signed((folder / MANIFEST_FILE).read_bytes(), signature, self._trusted):
            what = "is not signed by anybody trusted" if signature else "is not signed"
            raise ReleaseError(
                f"release {number} {what}",
                where=str(folder / SIGNATURE_FILE),
                expected=f"a signature of its manifest by one of {len(self._trusted)} trusted keys",
                fix="Restore the release or train again; XPLAT_RELEASE__TRUSTED_KEYS says who is trusted.",
            )

    def require_intact(self, number: int, files: Mapping[str, str]) -> None:
        """Raise `ReleaseError` unless every file, by its path in the repository, has the sha256 given."""
        for name, expected in files.items():
            path = self._path(name)
            found = sha256(path.read_bytes()).hexdigest() if path.is_file() else "no file"
            if found != expected:
                raise ReleaseError(
                    f"release {number} is altered: {name} has {found[:12]}",
                    where=str(path),
                    expected=f"sha256 {expected[:12]}…, as the manifest says",
                    fix="Restore the file or train again.",
                )


def numbered(folder: Path) -> list[int]:
    """Return the numbers that folders in a folder are named by, ascending."""
    return sorted(int(child.name) for child in folder.iterdir() if child.name.isdigit()) if folder.is_dir() else []


def unwritable(what: str, error: OSError, where: Path | None = None) -> ReleaseError:
    """Return what to say where a repository's file cannot be written."""
    return ReleaseError(
        f"{what} cannot be written: {error.strerror}",
        where=str(error.filename or where or what),
        expected="a writable repository with its staging and releases folders beside it, on one file system",
        fix="Correct the permissions or XPLAT_MODEL__REPOSITORY.",
    )


@lru_cache(maxsize=4)
def _features(tokenizer: Path, _checksum: str | None, max_tokens: int) -> TextFeatures:
    """Return a tokenizer; releases on one encoder share it. Reading one holds up all threads for some 40 ms."""
    return TextFeatures.from_file(tokenizer, max_tokens=max_tokens)


def _write_durably(path: Path, content: bytes | Path) -> str:
    raw = content if isinstance(content, bytes) else content.read_bytes()
    with path.open("wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())
    reached("place.file")
    return sha256(raw).hexdigest()
