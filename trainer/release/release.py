"""A trained release: placed as a candidate ▸ judged by the gate ▸ promoted, where that is allowed.

A candidate lies whole and signed out of Triton's sight, and no worker acts on it until it is announced: one that is
refused, or whose training dies after any of these steps, harms nobody. `xplat model check` and `promote` go on with it.
"""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from trainer.release.gate import check
from xplat_stream.failpoints import reached
from xplat_stream.serving.promote import PATIENCE_S, WARM_WITHIN_S, exclusive, promote
from xplat_stream.serving.releases import (
    ENCODER,
    HEAD,
    MANIFEST_FILE,
    MODEL_FILE,
    SIGNATURE_FILE,
    TOKENIZER_FILE,
    DataSpan,
    Golden,
    Manifest,
    ModelRepository,
)
from xplat_stream.serving.signing import sign

if TYPE_CHECKING:
    from trainer.data.dataset import Dataset
    from trainer.run.progress import Report
    from xplat_stream.profile import TaxonomyRef
    from xplat_stream.serving.sensitivity import Sensitivity
    from xplat_stream.serving.store import Verdict
    from xplat_stream.settings import Settings


class EncoderFiles(NamedTuple):
    """A new encoder: its graph and its tokenizer."""

    graph: bytes
    tokenizer: bytes


class EncoderKept(NamedTuple):
    """An encoder that lies in the repository already, with its files' checksums from the release that brought it."""

    version: int
    files: dict[str, str]


class Candidate(NamedTuple):
    """Everything of a release but its number."""

    encoder: EncoderFiles | EncoderKept
    head: bytes
    taxonomy: TaxonomyRef
    labels: tuple[str, ...]
    platforms: tuple[str, ...]
    width: int
    max_tokens: int
    max_events: int
    base: str
    golden: Golden
    metrics: dict[str, float]
    calibration: dict[str, float] = {}  # noqa: RUF012 - never changed
    data: DataSpan | None = None
    sensitivity: Sensitivity | None = None


class Released(NamedTuple):
    """What became of a candidate."""

    number: int
    verdict: Verdict
    promoted: bool
    previous: int
    """The release that was active before, where this one took over; else 0."""


def release(
    settings: Settings, candidate: Candidate, data: Dataset, report: Report, *, force: bool = False
) -> Released:
    """Place a candidate, judge it on the data's held-out people, and promote it when it passes and may.

    `force`: promote it in spite of the gate and of who has to say so; the journal tells. Raises `ReleaseError` when
    it cannot be placed, or a server does not load it; `TritonUnavailable`, `KafkaUnavailable`, `DeliveryError`.
    """
    number = place_candidate(settings, candidate).release
    verdict = check(settings, number, data)
    reached("release.judged")
    report("check", 1, 1, {"checks": len(verdict.checks), "refused": len(verdict.refused_by)})
    if not force and (not verdict.passed or _by_hand(settings, data)):
        return Released(number, verdict, promoted=False, previous=0)
    promoted = promote(
        settings, number, force=force, reason="trained", patience_s=PATIENCE_S, warm_within_s=WARM_WITHIN_S
    )
    report("publish", 1, 1, {"release": number})
    return Released(number, verdict, promoted=True, previous=promoted.previous)


def _by_hand(settings: Settings, data: Dataset) -> bool:
    """Tell whether a person has to promote: where that is asked for, and where sensitive labels would be published."""
    sensitive = any(label.sensitive for label in data.taxonomy.labels)
    return settings.release.approval == "manual" or (sensitive and bool(settings.model.sensitive_purpose))


def kept_encoder(manifest: Manifest) -> EncoderKept:
    """Return the encoder of an existing release, for another head on it."""
    prefix = f"{ENCODER}/{manifest.encoder}/"
    return EncoderKept(
        manifest.encoder, {name: checksum for name, checksum in manifest.files.items() if name.startswith(prefix)}
    )


def place_candidate(settings: Settings, candidate: Candidate) -> Manifest:
    """Give a candidate the next number and place it. Raises `ReleaseError`, `KafkaUnavailable`, and leaves nothing."""
    with exclusive(settings, "a release is being placed", patience_s=PATIENCE_S) as (store, active):
        parent = active.release if active else 0
        number = store.repository.next_number()
        manifest = place(store.repository, number, candidate, parent=parent, key=settings.release.signing_key)
        store.note(number, "candidate", "trained", data=candidate.data)
    return manifest


def place(
    repository: ModelRepository, number: int, candidate: Candidate, *, parent: int = 0, key: str = ""
) -> Manifest:
    """Write a candidate beside the repository as release `number`, signed where a key's file is named.

    Raises `ReleaseError` and leaves nothing then.
    """
    if isinstance(candidate.encoder, EncoderKept):
        encoder, files = candidate.encoder.version, dict(candidate.encoder.files)
    else:
        encoder = number
        files = repository.place(
            ENCODER,
            number,
            {MODEL_FILE: candidate.encoder.graph, TOKENIZER_FILE: candidate.encoder.tokenizer},
            in_sight=False,
        )
    # The manifest appears in the same rename as the head, so the head's checksum is worked out before.
    files[f"{HEAD}/{number}/{MODEL_FILE}"] = sha256(candidate.head).hexdigest()
    manifest = Manifest(
        release=number,
        encoder=encoder,
        created_at=datetime.now(UTC),
        taxonomy=candidate.taxonomy,
        labels=candidate.labels,
        platforms=candidate.platforms,
        width=candidate.width,
        max_tokens=candidate.max_tokens,
        max_events=candidate.max_events,
        base=candidate.base,
        files=files,
        golden=candidate.golden,
        metrics=candidate.metrics,
        parent=parent,
        data=candidate.data,
        commit=commit_of(Path(__file__).parent),
        calibration=candidate.calibration,
        sensitivity=candidate.sensitivity,
    )
    try:
        raw = msgspec.json.encode(manifest)
        content = {MODEL_FILE: candidate.head, MANIFEST_FILE: raw}
        if key:
            content[SIGNATURE_FILE] = sign(Path(key), raw)
        repository.place(HEAD, number, content, in_sight=False)
    except BaseException:
        if encoder == number:
            repository.remove(ENCODER, encoder)
        raise
    return manifest


def commit_of(folder: Path) -> str:
    """Return the git commit that a package's files are of, ``-dirty`` where they differ; empty without a checkout."""
    if not _git(folder, "ls-files", "__init__.py"):  # installed, perhaps inside a checkout of something else
        return ""
    return _git(folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(folder: Path, *words: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True)  # noqa: S607
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
