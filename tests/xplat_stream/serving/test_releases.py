"""Releases on disk appear whole or not at all, and are used only as they were written; scorers keep their contract."""

from __future__ import annotations

import asyncio
import subprocess
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest

from xplat_stream.errors import InvalidScores, ReleaseError, TritonUnavailable
from xplat_stream.serving.features import head_inputs
from xplat_stream.serving.probe import PROBES
from xplat_stream.serving.releases import (
    CONFIG_FILE,
    ENCODER,
    HEAD,
    MANIFEST_FILE,
    MODEL_FILE,
    TOKENIZER_FILE,
    ModelRepository,
)
from xplat_stream.testing import FakeScorer, ScorerCall, broken_promises, make_event, make_release
from xplat_stream.window import BehaviorWindow, WindowSpec, row_of

if TYPE_CHECKING:
    from xplat_stream.serving.features import HeadInputs

ROOT = Path(__file__).resolve().parents[3]
TOKENIZER = make_release().texts._tokenizer.to_str().encode()


@pytest.fixture
def repository(tmp_path: Path) -> ModelRepository:
    """Return an empty repository."""
    return ModelRepository(tmp_path / "model_repo")


def place_release(repository: ModelRepository, number: int, *, encoder: int = 1) -> None:
    """Place a release as the trainer does: encoder, then head with the manifest of both."""
    files = {}
    if encoder not in repository.versions(ENCODER):
        files = repository.place(ENCODER, encoder, {MODEL_FILE: b"encoder", TOKENIZER_FILE: TOKENIZER})
    files |= {f"{HEAD}/{number}/{MODEL_FILE}": sha256(b"head").hexdigest()}
    manifest = msgspec.structs.replace(make_release(number, encoder).manifest, files=files)
    repository.place(HEAD, number, {MODEL_FILE: b"head", MANIFEST_FILE: msgspec.json.encode(manifest)})


def names_in(folder: Path) -> set[str]:
    """Return the paths of all files below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_placed_version_is_there_with_its_checksums(repository: ModelRepository, tmp_path: Path) -> None:
    """Bytes and files alike lie in the version, their checksums are returned, and nothing is left beside."""
    source = tmp_path / "exported.onnx"
    source.write_bytes(b"weights")
    sums = repository.place(HEAD, 3, {MODEL_FILE: source, "labels.txt": b"a"})
    assert sums == {
        f"{HEAD}/3/{MODEL_FILE}": sha256(b"weights").hexdigest(),
        f"{HEAD}/3/labels.txt": sha256(b"a").hexdigest(),
    }
    assert names_in(repository.root) == set(sums)
    assert names_in(tmp_path / "model_repo.staging") == set()
    assert repository.versions(HEAD) == [3]


def test_a_tokenizer_is_read_once(repository: ModelRepository) -> None:
    """Reading one holds up the whole process, and a release that is loaded again has the one it had."""
    place_release(repository, 2)
    assert repository.load(2).texts is repository.load(2).texts


def test_a_number_is_never_given_twice(repository: ModelRepository) -> None:
    """The number of a version that was taken away again, because no server loaded it, is not used for another."""
    repository.place(HEAD, 5, {MODEL_FILE: b"x"})
    repository.remove(HEAD, 5)
    assert (repository.versions(HEAD), repository.next_number()) == ([], 6)


def test_a_version_appears_whole_or_not_at_all(repository: ModelRepository, tmp_path: Path) -> None:
    """When a file cannot be read, the repository is as before and no remains are left."""
    with pytest.raises(ReleaseError, match=r"cannot be written.*gone\.onnx"):
        repository.place(HEAD, 1, {MODEL_FILE: b"x", "other": tmp_path / "gone.onnx"})
    assert repository.versions(HEAD) == []
    assert not list((tmp_path / "model_repo.staging").iterdir())


def test_a_crash_while_writing_leaves_the_repository_alone(
    repository: ModelRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever moment the process dies at, Triton sees no half version: all is written before the one rename."""
    seen: list[list[int]] = []

    def dying(_: int) -> None:
        seen.append(repository.versions(HEAD))
        if len(seen) == 2:
            raise SystemExit

    monkeypatch.setattr("xplat_stream.serving.releases.os.fsync", dying)
    with pytest.raises(SystemExit):
        repository.place(HEAD, 1, {MODEL_FILE: b"x", "other": b"y"})
    assert seen == [[], []]
    assert not repository.root.exists()


def test_an_existing_version_is_refused(repository: ModelRepository) -> None:
    """A version that servers may have loaded is never replaced."""
    repository.place(HEAD, 1, {MODEL_FILE: b"first"})
    with pytest.raises(ReleaseError, match="exists already"):
        repository.place(HEAD, 1, {MODEL_FILE: b"second"})
    assert (repository.root / HEAD / "1" / MODEL_FILE).read_bytes() == b"first"


def test_numbers_only_grow(repository: ModelRepository) -> None:
    """The next number is above every encoder and head version that is there."""
    numbers = []
    for model, step in ((ENCODER, 0), (HEAD, 0), (HEAD, 5), (ENCODER, 0)):
        number = repository.next_number()
        repository.place(model, number + step, {MODEL_FILE: b"x"})
        numbers.append(number)
    assert numbers == [1, 2, 3, 9]


def test_other_names_are_no_versions(repository: ModelRepository) -> None:
    """Configurations and stray folders beside the versions are not counted, nor is a probe that a killed gate left."""
    for name in ("config", "1a", ".2"):
        (repository.root / HEAD / name).mkdir(parents=True)
    (repository.root / HEAD / "config.pbtxt").write_text("")
    for probe in PROBES.values():
        (repository.root / probe / "1").mkdir(parents=True)
    assert (repository.versions(HEAD), repository.versions(ENCODER), repository.next_number()) == ([], [], 1)


def test_a_fresh_checkout_begins_with_release_1() -> None:
    """The project ships the configurations of its models, and no trace of releases somebody made here."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "model_repo*"],
        capture_output=True,
        text=True,
        check=True,
    )
    names = {Path(line).name for line in listed.stdout.splitlines()}
    assert names == {CONFIG_FILE}


def test_a_release_is_loaded_as_written(repository: ModelRepository) -> None:
    """Manifest, numbers and tokenizer come back; several releases may share an encoder."""
    place_release(repository, 1)
    place_release(repository, 2)
    release = repository.load(2)
    assert (release.number, release.encoder, repository.releases()) == (2, 1, [1, 2])
    assert (release.ref.release, release.ref.encoder, release.ref.head) == (2, 1, 2)
    assert [batch.where for batch in release.texts.batches(["shoes"], size=1)] == [[0]]


def test_a_version_without_manifest_is_no_release(repository: ModelRepository) -> None:
    """A head that was placed without its manifest is not offered."""
    place_release(repository, 1)
    repository.place(HEAD, 2, {MODEL_FILE: b"x"})
    assert repository.releases() == [1]


@pytest.mark.parametrize(
    "name", [f"{ENCODER}/1/{MODEL_FILE}", f"{ENCODER}/1/{TOKENIZER_FILE}", f"{HEAD}/1/{MODEL_FILE}"]
)
@pytest.mark.parametrize("fault", ["altered", "missing"])
def test_an_altered_file_is_refused(repository: ModelRepository, name: str, fault: str) -> None:
    """A single byte in any file of a release, or a missing file, stops its use and is named."""
    place_release(repository, 1)
    path = repository.root / name
    if fault == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ReleaseError, match=name):
        repository.load(1)


@pytest.mark.parametrize(
    "manifest", [None, b"", b"{}", b'{"base": "\xff"}'], ids=["absent", "empty", "without-fields", "not-utf8"]
)
def test_a_release_without_a_readable_manifest_is_told(repository: ModelRepository, manifest: bytes | None) -> None:
    """The error names the manifest and what to do."""
    place_release(repository, 1)
    path = repository.root / HEAD / "1" / MANIFEST_FILE
    if manifest is None:
        path.unlink()
    else:
        path.write_bytes(manifest)
    with pytest.raises(ReleaseError, match=r"manifest.*xplat train"):
        repository.load(1)


def test_a_removed_version_is_gone(repository: ModelRepository) -> None:
    """A version no server could load is taken away, again and again without complaint."""
    place_release(repository, 1)
    repository.remove(HEAD, 1)
    repository.remove(HEAD, 1)
    assert (repository.versions(HEAD), repository.versions(ENCODER)) == ([], [1])


def test_the_fake_scorer_keeps_the_contract() -> None:
    """`FakeScorer` passes the conformance check every scorer has to pass."""
    assert asyncio.run(broken_promises(FakeScorer(), make_release())) == []
    assert asyncio.run(broken_promises(FakeScorer(), make_release(labels=["a"], width=64))) == []


@pytest.mark.parametrize("fault", ["answer_nan_next", "answer_wrong_shape_next"])
def test_the_conformance_check_has_teeth(fault: str) -> None:
    """A scorer that lets NaN or a wrong shape through does not pass."""
    scorer = FakeScorer()
    getattr(scorer, fault)(9)
    assert asyncio.run(broken_promises(scorer, make_release()))


def inputs() -> HeadInputs:
    """Return the inputs of one user."""
    event = make_event(event_id="//t#1", occurred_at=1_767_225_600_000, object_title="shoes")
    window = BehaviorWindow(WindowSpec()).fold([(event.platform, row_of(event))])
    return head_inputs([window], {}, platforms=("shop",), width=8, max_events=8)


def test_scripted_faults_come_in_order_and_pass() -> None:
    """A double fails exactly as often as told, then answers again, and remembers every call."""

    async def play() -> None:
        scorer, release = FakeScorer(), make_release(7)
        scorer.fail_next(2)
        scorer.reject_next()
        scorer.answer_nan_next()
        scorer.answer_wrong_shape_next()
        for error in (TritonUnavailable, TritonUnavailable, InvalidScores):
            with pytest.raises(error):
                await scorer.score(release, inputs())
        assert np.isnan(await scorer.score(release, inputs())).all()
        assert [len(vector) for vector in await scorer.encode(release, ["a"])] == [18]
        assert (await scorer.score(release, inputs())).shape == (1, 25)
        assert scorer.calls == [*[ScorerCall("score", 7, 1)] * 4, ScorerCall("encode", 7, 1), ScorerCall("score", 7, 1)]

    asyncio.run(play())


def test_fake_answers_depend_on_release_and_inputs_alone() -> None:
    """Two doubles agree; another encoder or another head answers differently."""

    async def play() -> None:
        one, other = FakeScorer(), FakeScorer()
        assert await one.encode(make_release(1, 1), ["a"]) == await other.encode(make_release(2, 1), ["a"])
        assert await one.encode(make_release(1, 1), ["a"]) != await one.encode(make_release(1, 2), ["a"])
        given = inputs()
        given.vectors[0, 0] = np.frombuffer((await one.encode(make_release(), ["a"]))[0], np.float16)
        first, again = await one.score(make_release(1), given), await other.score(make_release(1), given)
        assert first.tobytes() == again.tobytes()
        assert first.tobytes() != (await one.score(make_release(2), given)).tobytes()

    asyncio.run(play())
