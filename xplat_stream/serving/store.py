"""A release's life, written down: candidate → shadow → active → previous → retired, or quarantined.

    model_repo.releases/<number>/state.json      every change of state, with time and reason
    model_repo.releases/<number>/verdict.json    what the gate found
    model_repo.releases/<number>/report.*        drift and fairness: `serving.fairness`

Which release is active, previous and shadow is said by `interest.models.v1` alone. What it says and a journal does not
yet is read as if it stood there (`ReleaseStore.hear`) and written down by whoever changes something next (`follow`).
"""

from __future__ import annotations

import shutil
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import msgspec

from xplat_stream.disk import held, write_whole
from xplat_stream.errors import ReleaseError
from xplat_stream.serving.fairness import FairnessReport, markdown
from xplat_stream.serving.releases import (
    ENCODER,
    HEAD,
    MANIFEST_FILE,
    MODEL_FILE,
    SIGNATURE_FILE,
    TOKENIZER_FILE,
    DataSpan,
    Manifest,
    ModelRepository,
    numbered,
    unwritable,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from xplat_stream.kafka.codec import Announcement
    from xplat_stream.settings import Settings

STATE_FILE: Final = "state.json"
VERDICT_FILE: Final = "verdict.json"
REPORT_FILE: Final = "report.json"
REPORT_PAGE: Final = "report.md"
_LOCK_FILE: Final = ".journals.lock"
_WRITES_WITHIN_S: Final = 30.0

_Kept = TypeVar("_Kept")

State = Literal["candidate", "shadow", "active", "previous", "retired", "quarantined"]
KEPT: Final[frozenset[State]] = frozenset({"candidate", "shadow", "active", "previous"})
"""States whose files are needed."""

_ANNOUNCED: Final[frozenset[State]] = frozenset({"shadow", "active", "previous"})


class Change(msgspec.Struct, frozen=True, omit_defaults=True):
    """A release passed into a state, or was looked at again in the one it is in."""

    state: State
    at: datetime
    reason: str
    data: DataSpan | None = None
    """What it was trained on, where that is what it is distrusted for."""


class Journal(msgspec.Struct, frozen=True):
    """Everything that happened to a release, the newest last."""

    release: int
    changes: tuple[Change, ...]


class Check(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing the gate looked at."""

    name: str
    passed: bool
    words: str
    """What was found, and what is asked for."""
    value: float | None = None
    """The candidate's figure."""
    reference: float | None = None
    """The same of what it is compared with."""
    low: float | None = None
    """Lower end of the difference's interval."""
    high: float | None = None
    users: int | None = None


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What the gate says of a release."""

    release: int
    against: int
    """The release it was compared with; 0: none was active, or none that can be compared, so popularity."""
    checked_at: datetime
    checks: tuple[Check, ...]
    figures: dict[str, float] = {}
    """What was measured and decides nothing: churn, parity, sizes."""
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every check did."""
        return all(check.passed for check in self.checks)

    @property
    def refused_by(self) -> tuple[str, ...]:
        """The names of the checks that did not pass."""
        return tuple(check.name for check in self.checks if not check.passed)

    def in_full(self) -> dict[str, Any]:
        """Return it as machines read it: all fields, and first what follows from them."""
        return {"passed": self.passed, "refused_by": self.refused_by, **msgspec.to_builtins(self)}


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """A release as `xplat model list` shows it."""

    release: int
    state: State
    since: datetime | None
    reason: str
    encoder: int
    """0 where the files are gone."""
    in_sight: bool
    passed: bool | None
    """What the gate said; None: it was not asked."""
    metrics: dict[str, float]


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """A release as `xplat model show` shows it."""

    release: int
    state: State
    about: dict[str, Any] | None
    """The manifest without golden requests; None where the files are gone."""
    journal: Journal
    verdict: Verdict | None
    report: FairnessReport | None
    """None where nobody has made one: `xplat model check` does."""


class ReleaseStore:
    """The releases of a model repository with their journals."""

    def __init__(self, repository: ModelRepository) -> None:
        self.repository = repository
        self.announced: Announcement | None = None
        """What the topic was last heard to say."""

    @classmethod
    def of(cls, settings: Settings) -> ReleaseStore:
        """Return the store of the repository that the settings name."""
        return cls(ModelRepository.of(settings))

    def numbers(self) -> list[int]:
        """Return every release that is there or was, ascending."""
        beside = self.repository.hidden
        journals = [path.parent.name for path in beside.glob(f"*/{STATE_FILE}")]
        heads = [path.parents[1].name for path in beside.glob(f"*/{HEAD}/{MANIFEST_FILE}")]
        return sorted({*self.repository.releases(), *map(int, filter(str.isdecimal, journals + heads))})

    def hear(self, announced: Announcement | None) -> None:
        """Read releases' states from here on as the topic has them. Nothing is written."""
        self.announced = announced

    def follow(self, announced: Announcement | None) -> None:
        """Let the journals say what the topic says. Raises `ReleaseError`."""
        self.hear(announced)
        for number in self.numbers():
            with self._journal_held():
                noted = self._noted(number)
                said = self._said(number, noted)
                if said is not None:
                    self._write(number, STATE_FILE, _json(Journal(number, (*noted, said))))

    def journal(self, number: int) -> Journal:
        """Return what happened to a release. Raises `ReleaseError` where there is none of that number."""
        noted = self._noted(number)
        if not noted and number not in self.numbers():
            known = ", ".join(map(str, self.numbers())) or "none"
            raise ReleaseError(
                f"there is no release {number}",
                where=str(self.repository.root),
                expected=f"one of those that are there: {known}",
                fix="`xplat model list` shows them.",
            )
        said = self._said(number, noted)
        return Journal(number, noted if said is None else (*noted, said))

    def state(self, number: int) -> State:
        """Return a release's state. Raises `ReleaseError`."""
        return _state_after(self.journal(number).changes)

    def note(self, number: int, state: State, reason: str, *, data: DataSpan | None = None) -> None:
        """Write down that a release is in a state, and why. Raises `ReleaseError`."""
        with self._journal_held():
            change = Change(state, datetime.now(UTC), reason, data)
            self._write(number, STATE_FILE, _json(Journal(number, (*self._noted(number), change))))

    @contextmanager
    def _journal_held(self) -> Iterator[None]:
        """Let one process at a time add to a journal: the gate does so while somebody else may promote."""
        with held(self.repository.hidden / _LOCK_FILE, "a journal is being written", patience_s=_WRITES_WITHIN_S):
            yield

    def _noted(self, number: int) -> tuple[Change, ...]:
        found = self._read(number, STATE_FILE, Journal)
        return found.changes if found else ()

    def _said(self, number: int, noted: tuple[Change, ...]) -> Change | None:
        """Return the change that the topic tells of and a release's journal does not."""
        announced = self.announced
        if announced is None:
            return None
        now: dict[int, State] = {announced.previous: "previous", announced.shadow: "shadow"}
        now |= {announced.rolled_back: "quarantined", announced.release: "active"}
        state, said = _state_after(noted), now.get(number)
        if said is None and state == "shadow" and number > announced.release:
            said = "candidate"
        elif said is None and (state in _ANNOUNCED or (number < announced.release and not noted)):
            said = "retired"
        if said in (None, state):
            return None
        reason = f"as announced at {announced.announced_at:%Y-%m-%d %H:%M:%S}Z"
        return Change(said, announced.announced_at, reason, self.data_of(number) if said == "quarantined" else None)

    def data_of(self, number: int) -> DataSpan | None:
        """Return what a release was trained on, None where that cannot be read."""
        with suppress(ReleaseError):  # quarantined all the same: its manifest may be what is wrong with it
            return self.repository.manifest(number).data
        return None

    def verdict(self, number: int) -> Verdict | None:
        """Return what the gate said of a release last, None where it was not asked. Raises `ReleaseError`."""
        return self._read(number, VERDICT_FILE, Verdict)

    def keep(self, verdict: Verdict) -> None:
        """Keep a verdict with its release. Raises `ReleaseError`."""
        self._write(verdict.release, VERDICT_FILE, _json(verdict))
        refused = ", ".join(verdict.refused_by)
        said = f"the gate refused it: {refused}" if refused else "the gate passed it"
        self.note(verdict.release, self.state(verdict.release), said)

    def report(self, number: int) -> FairnessReport | None:
        """Return a release's report on drift and fairness, None where there is none. Raises `ReleaseError`."""
        return self._read(number, REPORT_FILE, FairnessReport)

    def keep_report(self, report: FairnessReport) -> None:
        """Keep a report with its release, for machines and for people. Raises `ReleaseError`."""
        self._write(report.release, REPORT_FILE, _json(report))
        self._write(report.release, REPORT_PAGE, markdown(report).encode())

    def listed(self) -> list[Listed]:
        """Return every release, ascending. Raises `ReleaseError`."""
        found = []
        for number in self.numbers():
            changes = self.journal(number).changes
            manifest = self._manifest(number)
            verdict = self.verdict(number)
            found.append(
                Listed(
                    release=number,
                    state=self.state(number),
                    since=_since(changes),
                    reason=changes[-1].reason if changes else "",
                    encoder=manifest.encoder if manifest else 0,
                    in_sight=number in self.repository.versions(HEAD),
                    passed=verdict.passed if verdict else None,
                    metrics=manifest.metrics if manifest else {},
                )
            )
        return found

    def shown(self, number: int) -> Shown:
        """Return everything that is known of a release. Raises `ReleaseError`."""
        journal, manifest = self.journal(number), self._manifest(number)
        about = None if manifest is None else {**msgspec.to_builtins(manifest)}
        if about is not None:
            del about["golden"]
        return Shown(
            release=number,
            state=self.state(number),
            about=about,
            journal=journal,
            verdict=self.verdict(number),
            report=self.report(number),
        )

    def retire(self, number: int, reason: str) -> None:
        """Take a release that nobody uses out of Triton's sight. Raises `ReleaseError` where somebody does."""
        state = self.state(number)
        if state in _ANNOUNCED:
            raise ReleaseError(
                f"release {number} is the {state} one",
                where=str(self.repository.root),
                expected="a release that is neither active nor previous nor shadow",
                fix="Promote another first, or `xplat model rollback`.",
            )
        if state != "quarantined":
            self.note(number, "retired", reason)
        self.out_of_sight(number)

    def out_of_sight(self, number: int) -> None:
        """Hide a release's head, and its encoder unless a head in sight needs it. Raises `ReleaseError`."""
        manifest = self._manifest(number)
        self.repository.hide(HEAD, number)
        if manifest is not None and manifest.encoder not in self._encoders(self.repository.releases()):
            self.repository.hide(ENCODER, manifest.encoder)

    def tidy(self) -> None:
        """Finish, or undo, what whoever died at it has left half done. Only inside `ModelRepository.held`.

        In Triton's sight is then what is announced, no more and no less; where nothing is, or something that does not
        lie here, all stays. Of releases that were not placed whole nothing is left. Raises `ReleaseError`.
        """
        repository, announced = self.repository, self.announced
        repository.sweep()
        for number in self._unfinished():
            shutil.rmtree(repository.hidden / str(number), ignore_errors=True)
        if announced is None or not repository.folder(HEAD, announced.release).is_dir():
            return
        heads = {announced.release, announced.previous, announced.shadow}
        try:
            encoders = self._encoders(heads) | {announced.encoder}
        except ReleaseError:  # a manifest that cannot be read does not say which encoder is needed: all of them stay
            encoders = set(repository.versions(ENCODER))
        for model, wanted in ((ENCODER, encoders), (HEAD, heads)):
            for version in wanted:
                repository.show(model, version)
            for version in set(repository.versions(model)) - wanted:
                repository.hide(model, version)

    def _unfinished(self) -> list[int]:
        """Return the numbers of releases that were never placed whole: no head, no journal, an encoder of nobody's."""
        alone = [
            number
            for number in numbered(self.repository.hidden)
            if not self.repository.folder(HEAD, number).is_dir() and not self._noted(number)
        ]
        used = self._encoders(self.numbers()) if alone else set()
        return [number for number in alone if number not in used]

    def collect(self) -> list[str]:
        """Delete the files that no kept release needs, and return their paths; journals and verdicts stay.

        Kept are active, previous and shadow, candidates newer than the active one, and the encoders of all of these.
        """
        states = {number: self.state(number) for number in self.numbers()}
        active = max((number for number, state in states.items() if state == "active"), default=0)
        kept = {
            number for number, state in states.items() if state in KEPT and (state != "candidate" or number > active)
        }
        encoders = self._encoders(kept)
        seen = {*self.repository.versions(ENCODER), *map(int, self._beside(ENCODER))}
        gone = [(HEAD, number) for number in states if number not in kept]
        gone += [(ENCODER, version) for version in sorted(seen - encoders)]
        removed = []
        for number, state in states.items():
            if state == "candidate" and number not in kept:
                self.note(number, "retired", f"never promoted; release {active} is newer")
        for model, version in gone:
            folder = self.repository.folder(model, version)
            if folder.is_dir():
                self.repository.remove(model, version)
                removed.append(str(folder))
        return removed

    def push(self, folder: Path) -> Manifest:
        """Take in a release that was made elsewhere, as a candidate: `interest_head/` and `interest_encoder/`.

        It keeps its number, which its signature covers. Raises `ReleaseError` and leaves nothing then.
        """
        repository = self.repository
        manifest = _pushed(folder)
        number = manifest.release
        if number < repository.next_number():
            raise ReleaseError(
                f"release {number} comes too late",
                where=str(folder),
                expected=f"number {repository.next_number()} or higher: numbers only grow",
                fix="Train it again, against this repository.",
            )
        parts = {ENCODER: (MODEL_FILE, TOKENIZER_FILE), HEAD: (MODEL_FILE, MANIFEST_FILE, SIGNATURE_FILE)}
        try:
            for model, names in parts.items():
                files = {name: folder / model / name for name in names if (folder / model / name).is_file()}
                if files and (model == HEAD or manifest.encoder == number):
                    repository.place(model, number, files, in_sight=False)
            repository.load(number)
        except BaseException:
            shutil.rmtree(repository.hidden / str(number), ignore_errors=True)
            raise
        self.note(number, "candidate", f"pushed from {folder}")
        return manifest

    def _encoders(self, numbers: set[int] | list[int]) -> set[int]:
        return {manifest.encoder for number in numbers if (manifest := self._manifest(number)) is not None}

    def _beside(self, model: str) -> list[str]:
        return [path.parent.name for path in self.repository.hidden.glob(f"*/{model}") if path.parent.name.isdecimal()]

    def _manifest(self, number: int) -> Manifest | None:
        there = (self.repository.folder(HEAD, number) / MANIFEST_FILE).is_file()
        return self.repository.manifest(number) if there else None

    def _read(self, number: int, name: str, kind: type[_Kept]) -> _Kept | None:
        path = self.repository.hidden / str(number) / name
        try:
            return msgspec.json.decode(path.read_bytes(), type=kind)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ReleaseError(
                f"what is kept of release {number} cannot be read: {error}",
                where=str(path),
                expected="the JSON that `xplat` wrote",
                fix="Delete the file; what is active is said by the topic, and `xplat model check` judges again.",
            ) from error

    def _write(self, number: int, name: str, content: bytes) -> None:
        path = self.repository.hidden / str(number) / name
        try:
            write_whole(path, content)
        except OSError as error:
            raise unwritable(str(path), error) from error


def _state_after(changes: tuple[Change, ...]) -> State:
    """Return the state of a release with this journal. One that nobody wrote anything of is a candidate."""
    return changes[-1].state if changes else "candidate"


def _json(value: msgspec.Struct) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def _since(changes: tuple[Change, ...]) -> datetime | None:
    """Return when the state began that the changes end with."""
    found = None
    for change in reversed(changes):
        if change.state != changes[-1].state:
            break
        found = change.at
    return found


def _pushed(folder: Path) -> Manifest:
    path = folder / HEAD / MANIFEST_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Manifest)
    except (OSError, ValueError) as error:
        raise ReleaseError(
            f"the folder holds no release: {error}",
            where=str(path),
            expected=f"{HEAD}/ with {MANIFEST_FILE}, and {ENCODER}/ where it brings one",
            fix="Name a folder of another repository's releases, such as model_repo.releases/7.",
        ) from error
