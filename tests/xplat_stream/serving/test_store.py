"""A release's life is written down, follows the topic, and nobody who serves loses a file."""

from __future__ import annotations

from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING

import msgspec
import pytest

from xplat_stream.errors import ReleaseError
from xplat_stream.kafka.codec import Announcement, decode_announcement
from xplat_stream.serving.releases import (
    ENCODER,
    HEAD,
    MANIFEST_FILE,
    MODEL_FILE,
    SIGNATURE_FILE,
    TOKENIZER_FILE,
    Manifest,
    ModelRepository,
)
from xplat_stream.serving.signing import is_signed, make_key, public_key, sign
from xplat_stream.serving.store import Check, ReleaseStore, Verdict
from xplat_stream.testing import START, make_release

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TOKENIZER = make_release().texts._tokenizer.to_str().encode()


@pytest.fixture
def store(tmp_path: Path) -> ReleaseStore:
    """Return a store of an empty repository."""
    return ReleaseStore(ModelRepository(tmp_path / "model_repo"))


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """Return the path of a new private key."""
    make_key(tmp_path / "keys" / "signing.pem")
    return tmp_path / "keys" / "signing.pem"


def put(store: ReleaseStore, number: int, *, encoder: int = 0, in_sight: bool = False, key: Path | None = None) -> None:
    """Place a release, with an encoder of its own unless one is named."""
    repository = store.repository
    if not encoder:
        encoder = number
        content = {MODEL_FILE: b"encoder", TOKENIZER_FILE: TOKENIZER}
        repository.place(ENCODER, number, content, in_sight=in_sight)
    files = {
        f"{ENCODER}/{encoder}/{MODEL_FILE}": sha256(b"encoder").hexdigest(),
        f"{ENCODER}/{encoder}/{TOKENIZER_FILE}": sha256(TOKENIZER).hexdigest(),
        f"{HEAD}/{number}/{MODEL_FILE}": sha256(b"head").hexdigest(),
    }
    manifest = msgspec.json.encode(msgspec.structs.replace(make_release(number, encoder).manifest, files=files))
    head = {MODEL_FILE: b"head", MANIFEST_FILE: manifest}
    if key is not None:
        head[SIGNATURE_FILE] = sign(key, manifest)
    repository.place(HEAD, number, head, in_sight=in_sight)


def announced(release: int, previous: int = 0, **more: int) -> Announcement:
    """Return an announcement."""
    return Announcement(release, previous, 1, START, **more)


def verdict(number: int, *, passed: bool = True) -> Verdict:
    """Return a verdict of one check."""
    check = Check(name="overall", passed=passed, words="as said")
    return Verdict(release=number, against=0, checked_at=START, checks=(check,))


def test_what_is_out_of_sight_is_there_all_the_same(store: ReleaseStore) -> None:
    """Triton sees no candidate, the trainer loads it, and its number is never given again."""
    put(store, 7)
    repository = store.repository
    assert (repository.versions(HEAD), repository.versions(ENCODER), repository.releases()) == ([], [], [])
    assert repository.load(7).number == 7
    assert repository.next_number() == 8
    with pytest.raises(ReleaseError, match="exists already"):
        repository.place(HEAD, 7, {MODEL_FILE: b"another"})


def test_one_rename_shows_and_hides(store: ReleaseStore) -> None:
    """A version is whole in one place or the other; asking twice changes nothing."""
    put(store, 7)
    for _ in range(2):
        store.repository.show(ENCODER, 7)
        store.repository.show(HEAD, 7)
    assert store.repository.releases() == [7]
    assert store.repository.load(7).number == 7
    store.out_of_sight(7)
    assert (store.repository.versions(HEAD), store.repository.versions(ENCODER)) == ([], [])


def test_an_encoder_in_use_stays_in_sight(store: ReleaseStore) -> None:
    """A head that goes out of sight leaves the encoder to the head that shares it."""
    put(store, 1, in_sight=True)
    put(store, 2, encoder=1, in_sight=True)
    store.out_of_sight(1)
    assert (store.repository.versions(HEAD), store.repository.versions(ENCODER)) == ([2], [1])
    store.out_of_sight(2)
    assert store.repository.versions(ENCODER) == []
    assert store.repository.load(1).number == 1


def test_every_change_is_kept_with_its_reason(store: ReleaseStore) -> None:
    """The journal grows; nothing in it is overwritten."""
    put(store, 1)
    store.note(1, "candidate", "trained")
    store.keep(verdict(1, passed=False))
    store.note(1, "active", "forced")
    assert [(one.state, one.reason) for one in store.journal(1).changes] == [
        ("candidate", "trained"),
        ("candidate", "the gate refused it: overall"),
        ("active", "forced"),
    ]
    kept = store.verdict(1)
    assert kept is not None
    assert (kept.passed, kept.refused_by, store.state(1)) == (False, ("overall",), "active")


def test_the_journal_follows_the_topic(store: ReleaseStore) -> None:
    """Active and previous are as announced, whoever was so before is retired; one taken back is quarantined."""
    for number in (1, 2, 3, 4):
        put(store, number, encoder=0 if number == 1 else 1, in_sight=number < 4)
    store.follow(announced(2, 1))
    assert [store.state(number) for number in (1, 2, 3, 4)] == ["previous", "active", "candidate", "candidate"]
    store.follow(announced(3, 2))
    assert [store.state(number) for number in (1, 2, 3)] == ["retired", "previous", "active"]
    before = store.journal(2)
    store.follow(announced(3, 2))
    assert store.journal(2) == before
    store.follow(announced(2, 0, rolled_back=3))
    assert [store.state(number) for number in (1, 2, 3, 4)] == ["retired", "active", "quarantined", "candidate"]


def test_looking_writes_nothing(store: ReleaseStore) -> None:
    """Who lists releases sees what the topic says, and leaves it to others to write that down."""
    for number in (1, 2, 3):
        put(store, number)
        store.note(number, "candidate", "trained")
    before = {path: path.read_bytes() for path in store.repository.hidden.rglob("*") if path.is_file()}
    store.hear(announced(2, 0, rolled_back=3))
    seen = [(one.release, one.state) for one in store.listed()]
    assert seen == [(1, "candidate"), (2, "active"), (3, "quarantined")]
    assert store.shown(3).journal.changes[-1].state == "quarantined"
    assert {path: path.read_bytes() for path in store.repository.hidden.rglob("*") if path.is_file()} == before
    store.follow(store.announced)
    assert [(one.release, one.state) for one in store.listed()] == seen


def test_a_shadow_that_ends_is_a_candidate_again(store: ReleaseStore) -> None:
    """Whatever became of whoever ended it; one that is older than the active release is not worth a second look."""
    for number in (1, 2, 3):
        put(store, number)
    store.follow(announced(2, 0, shadow=3))
    store.follow(announced(2))
    assert store.state(3) == "candidate"
    store.follow(announced(2, 0, shadow=1))
    store.follow(announced(2))
    assert store.state(1) == "retired"


def test_tidying_shows_what_is_announced_and_nothing_else(store: ReleaseStore) -> None:
    """Whatever was shown or hidden when somebody died; what was never placed whole is gone."""
    repository = store.repository
    for number, encoder, in_sight in ((1, 0, True), (2, 1, False), (3, 0, True), (4, 3, True)):
        put(store, number, encoder=encoder, in_sight=in_sight)
    repository.place(ENCODER, 5, {MODEL_FILE: b"no head yet"}, in_sight=False)
    (repository.root.with_name("model_repo.staging") / "half").mkdir()
    store.tidy()
    assert repository.versions(HEAD) == [1, 3, 4]
    store.follow(announced(2, 1))
    store.tidy()
    assert (repository.versions(HEAD), repository.versions(ENCODER)) == ([1, 2], [1])
    assert (store.numbers(), repository.next_number()) == ([1, 2, 3, 4], 5)
    assert not list(repository.root.with_name("model_repo.staging").glob("*/"))


def test_what_is_not_ours_to_know_is_left_in_sight(store: ReleaseStore) -> None:
    """Where the active release lies in another repository, or none is announced, nothing is taken from anybody."""
    put(store, 1, in_sight=True)
    for said in (None, announced(7)):
        store.hear(said)
        store.tidy()
    assert store.repository.releases() == [1]


def test_announcements_of_before_are_read() -> None:
    """A record without the newer fields decodes, and one with fields of tomorrow too."""
    old = b'{"release":2,"previous":1,"encoder":1,"announced_at":"2026-01-01T00:00:00Z","tomorrow":[1]}'
    assert decode_announcement(old) == Announcement(2, 1, 1, datetime(2026, 1, 1, tzinfo=UTC))


def test_manifests_of_before_are_read() -> None:
    """A manifest without data span, parent, commit and calibration is still one."""
    said = msgspec.to_builtins(make_release().manifest)
    for name in ("parent", "data", "commit", "calibration"):
        del said[name]
    found = msgspec.convert(said, Manifest, strict=False)
    assert (found.parent, found.data, found.commit, found.calibration) == (0, None, "", {})


def test_collection_keeps_what_is_needed(store: ReleaseStore) -> None:
    """Active, previous, newer candidates and the encoders of all of them stay; the journals of the others too."""
    for number, encoder in ((1, 0), (2, 1), (3, 0), (4, 0), (5, 4), (6, 0)):
        put(store, number, encoder=encoder)
        store.note(number, "candidate", "trained")
    store.follow(announced(5, 2))
    store.note(3, "quarantined", "harm")

    removed = store.collect()

    kept = [number for number in range(1, 7) if store.repository.folder(HEAD, number).is_dir()]
    encoders = [number for number in range(1, 7) if store.repository.folder(ENCODER, number).is_dir()]
    assert (kept, encoders) == ([2, 5, 6], [1, 4, 6])
    assert len(removed) == 4
    assert [store.state(number) for number in range(1, 7)] == [
        "candidate" if number == 6 else state
        for number, state in enumerate(("retired", "previous", "quarantined", "retired", "active", "candidate"), 1)
    ]
    assert [(one.release, one.encoder) for one in store.listed()] == [(1, 0), (2, 1), (3, 0), (4, 0), (5, 4), (6, 6)]
    assert store.collect() == []


@pytest.mark.parametrize("state", ["active", "previous", "shadow"])
def test_who_is_needed_is_not_retired(store: ReleaseStore, state: str) -> None:
    """Retiring is for releases that nobody uses."""
    put(store, 1, in_sight=True)
    store.note(1, state, "announced")  # type: ignore[arg-type]
    with pytest.raises(ReleaseError, match=f"release 1 is the {state} one"):
        store.retire(1, "no longer wanted")
    assert store.repository.releases() == [1]


def test_a_release_nobody_knows_is_told(store: ReleaseStore) -> None:
    """The line says which there are."""
    put(store, 1, in_sight=True)
    with pytest.raises(ReleaseError, match=r"there is no release 9.*1"):
        store.journal(9)


def test_a_signed_release_loads_and_says_nothing(
    store: ReleaseStore, key: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One of several trusted keys is enough."""
    put(store, 1, key=key)
    other = make_key(key.with_name("other.pem"))
    assert ModelRepository(store.repository.root, trusted=(other, public_key(key))).load(1).number == 1
    assert not caplog.records


def spoil_signature(folder: Path, _: Path) -> None:
    folder.joinpath(SIGNATURE_FILE).unlink()


def sign_by_another(folder: Path, key: Path) -> None:
    make_key(key.with_name("stranger.pem"))
    folder.joinpath(SIGNATURE_FILE).write_bytes(
        sign(key.with_name("stranger.pem"), folder.joinpath(MANIFEST_FILE).read_bytes())
    )


def flip_in_manifest(folder: Path, _: Path) -> None:
    path = folder / MANIFEST_FILE
    path.write_bytes(path.read_bytes().replace(b'"base":"test"', b'"base":"tent"'))


def no_signature_at_all(folder: Path, _: Path) -> None:
    folder.joinpath(SIGNATURE_FILE).write_bytes(b"\xff not base64")


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (spoil_signature, "is not signed "),
        (sign_by_another, "not signed by anybody trusted"),
        (flip_in_manifest, "not signed by anybody trusted"),
        (no_signature_at_all, "not signed by anybody trusted"),
    ],
)
def test_what_nobody_trusted_signed_is_refused(
    store: ReleaseStore, key: Path, spoil: Callable[[Path, Path], None], complaint: str
) -> None:
    """Unsigned, signed by a stranger, or altered by one byte: it is not loaded."""
    put(store, 1, key=key)
    spoil(store.repository.folder(HEAD, 1), key)
    with pytest.raises(ReleaseError, match=complaint):
        ModelRepository(store.repository.root, trusted=(public_key(key),)).load(1)


def test_without_keys_the_trust_is_said_once(store: ReleaseStore, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody takes an unsigned release for a checked one."""
    caplog.set_level("INFO", logger="xplat.release")
    put(store, 1)
    store.repository.load(1)
    store.repository.load(1)
    assert [record.getMessage() for record in caplog.records] == [
        "release 1 is taken on trust: no release.trusted_keys are set"
    ]


def test_a_key_is_its_owners_and_never_written_over(key: Path) -> None:
    """Nobody else may read it, and a second `keygen` does not destroy it."""
    before = key.read_bytes()
    assert key.stat().st_mode & 0o077 == 0
    with pytest.raises(ReleaseError, match="not there yet"):
        make_key(key)
    assert key.read_bytes() == before
    assert is_signed(b"said", sign(key, b"said"), [public_key(key)])


@pytest.mark.parametrize("content", [None, b"", b"-----BEGIN PRIVATE KEY-----\n", b"\x00"])
def test_what_is_no_key_is_told(tmp_path: Path, content: bytes | None) -> None:
    """The line names the file and how a key is made."""
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ReleaseError, match=r"signing key.*xplat model keygen"):
        sign(path, b"")


def test_a_pushed_release_is_a_candidate(store: ReleaseStore, tmp_path: Path) -> None:
    """What another trainer made is taken in under its own number, out of Triton's sight."""
    there = ReleaseStore(ModelRepository(tmp_path / "elsewhere" / "model_repo"))
    put(there, 4)
    manifest = store.push(there.repository.hidden / "4")
    assert (manifest.release, store.state(4), store.repository.releases()) == (4, "candidate", [])
    assert store.repository.load(4).manifest == manifest
    with pytest.raises(ReleaseError, match="comes too late"):
        store.push(there.repository.hidden / "4")


def test_a_push_that_is_not_whole_leaves_nothing(store: ReleaseStore, tmp_path: Path) -> None:
    """A truncated file is found by its checksum; whole, it is taken in under the same number."""
    there = ReleaseStore(ModelRepository(tmp_path / "elsewhere" / "model_repo"))
    put(there, 4)
    path = there.repository.folder(ENCODER, 4) / MODEL_FILE
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(ReleaseError, match=f"altered: {ENCODER}/4"):
        store.push(there.repository.hidden / "4")
    assert (store.numbers(), list(store.repository.hidden.iterdir())) == ([], [])
    with pytest.raises(ReleaseError, match="holds no release"):
        store.push(tmp_path)
    path.write_bytes(whole)
    assert store.push(there.repository.hidden / "4").release == 4
