"""What people and programs do to releases, each as a process that can be killed at any of its steps.

Kafka's part is a file here: what the models topic says last. Everything else is real but the model server, which is
`FakeTriton`.
"""

from __future__ import annotations

import multiprocessing
import os
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from unittest import mock

import msgspec

from trainer.release.release import Candidate, EncoderFiles, kept_encoder, place, place_candidate
from xplat_stream import watch
from xplat_stream.comparison import Comparison
from xplat_stream.errors import ReleaseError
from xplat_stream.failpoints import arm
from xplat_stream.kafka.codec import Announcement, decode_announcement, encode_announcement
from xplat_stream.kafka.reports import ReleaseReport
from xplat_stream.serving import promote
from xplat_stream.serving.releases import ENCODER, HEAD, Golden, ModelRepository
from xplat_stream.serving.store import Check, ReleaseStore, Verdict
from xplat_stream.settings import ModelSettings, ReleaseSettings, Settings, TritonSettings
from xplat_stream.testing import START, make_release

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_ABOUT = make_release().manifest
_NEW: Final = 7
"""Number of the release that is placed or pushed."""

WIDTH, LABELS = _ABOUT.width, len(_ABOUT.labels)
_TOKENIZER: Final = make_release().texts._tokenizer.to_str().encode()
_GOLDEN: Final = Golden(
    texts=["running shoes"],
    vectors=[[0.0] * WIDTH],
    head_vectors=[[[0.0] * WIDTH]],
    head_platform=[[1]],
    head_action=[[1]],
    head_age=[[0.0]],
    scores=[[0.5] * LABELS],
)
"""What `FakeTriton` answers."""


def settings_in(folder: Path, url: str = "127.0.0.1:1") -> Settings:
    """Return the settings of a stack in a folder, with model servers at an address, or at several."""
    return Settings(
        model=ModelSettings(repository=str(folder / "model_repo")),
        triton=TritonSettings(url=url),
        release=ReleaseSettings(min_compared=1, watch_minutes=60.0, report_interval_s=0.01),
    )


def candidate(repository: ModelRepository, encoder: int = 0) -> Candidate:
    """Return a candidate with an encoder of its own, or another head on the encoder that a release of it brought."""
    files = EncoderFiles(b"encoder", _TOKENIZER)
    return Candidate(
        encoder=kept_encoder(repository.manifest(encoder)) if encoder else files,
        head=b"head",
        taxonomy=_ABOUT.taxonomy,
        labels=_ABOUT.labels,
        platforms=_ABOUT.platforms,
        width=WIDTH,
        max_tokens=_ABOUT.max_tokens,
        max_events=_ABOUT.max_events,
        base="test",
        golden=_GOLDEN,
        metrics={},
    )


def prepare(folder: Path) -> None:
    """Make a repository in the middle of its life: 2 previous, 3 active, 4 shadow, 5 and 6 candidates, 1 an old one."""
    (folder / "model_repo").mkdir(parents=True)
    repository = ModelRepository.of(settings_in(folder))
    store = ReleaseStore(repository)
    for number, encoder in ((1, 0), (2, 0), (3, 2), (4, 0), (5, 0), (6, 2)):
        place(repository, number, candidate(repository, encoder))
        store.note(number, "candidate", "trained")
        sound = Check(name="sound", passed=True, words="")
        store.keep(Verdict(release=number, against=0, checked_at=START, checks=(sound,)))
    say(folder, Announcement(3, 2, 2, START, shadow=4))
    store.follow(said(folder))
    store.tidy()
    elsewhere = ModelRepository(folder / "elsewhere")
    place(elsewhere, _NEW, candidate(elsewhere))


def said(folder: Path) -> Announcement:
    """Return what the topic says."""
    return decode_announcement((folder / "topic").read_bytes())


def say(folder: Path, announcement: Announcement) -> None:
    """Let the topic say something else, as a broker does: all of it or nothing."""
    partial = folder / f"topic.{os.getpid()}"
    partial.write_bytes(encode_announcement(announcement))
    partial.replace(folder / "topic")


def _watch(settings: Settings) -> None:
    comparison = Comparison()
    comparison.add([0.9] * LABELS, [0.1] * LABELS)
    watch.watch(
        settings,
        msgspec.structs.replace(said(Path(settings.model.repository).parent), announced_at=START),
        read=lambda *_: ReleaseReport(3, 2, 1, 1, 1, 1, 1, comparison),
        now=lambda: START,
    )


def _place(settings: Settings) -> None:
    if _NEW not in ReleaseStore.of(settings).numbers():
        place_candidate(settings, candidate(ModelRepository.of(settings)))


def _push(settings: Settings) -> None:
    if _NEW in ReleaseStore.of(settings).numbers():
        return
    folder = Path(settings.model.repository).with_name("elsewhere.releases") / str(_NEW)
    with promote.exclusive(settings, "a release is being pushed") as (store, _):
        store.push(folder)


def _collect(settings: Settings) -> None:
    with promote.exclusive(settings, "releases are being collected") as (store, _):
        store.collect()


def _retire(settings: Settings) -> None:
    with promote.exclusive(settings, "a release is being retired") as (store, _):
        store.retire(5, "not wanted")


ACTS: Final[dict[str, Callable[[Settings], Any]]] = {
    "place": _place,
    "promote": lambda settings: promote.promote(settings, 5),
    "promote a head": lambda settings: promote.promote(settings, 6),
    "roll back": promote.rollback,
    "watch": _watch,
    "shadow": lambda settings: promote.accompany(settings, 5),
    "no shadow": lambda settings: promote.accompany(settings, 0),
    "push": _push,
    "retire": _retire,
    "collect": _collect,
}
"""What is done, by name."""


@contextmanager
def topic_in(folder: Path) -> Iterator[None]:
    """Have a file for the topic inside the block, and no workers."""

    def announce(_: Settings, store: ReleaseStore, announcement: Announcement) -> None:
        say(folder, announcement)
        promote.reached("release.announced")
        store.hear(announcement)

    with (
        mock.patch.object(promote, "active_announcement", side_effect=lambda _: said(folder)),
        mock.patch.object(promote, "_announce", announce),
        mock.patch.object(promote, "read_warmth", return_value=None),
    ):
        yield


def act(folder: Path, url: str, name: str) -> None:
    """Do it in this process."""
    with topic_in(folder):
        ACTS[name](settings_in(folder, url))


def _in_child(folder: str, url: str, name: str, spec: str) -> None:
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        arm(spec)
        try:
            act(Path(folder), url, name)
        except ReleaseError as error:  # it was done before, by somebody who died right after
            if not any(words in str(error) for words in ("active already", "no previous release")):
                raise


class Processes:
    """Starts processes in which all is imported already. A fork of this very process would take servers with it."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__])

    def run(self, folder: Path, url: str, name: str, *, failpoint: str = "") -> int:
        """Do something in a process that is killed at a step; return its exit code, -9 where it was."""
        child = self._context.Process(target=_in_child, args=(str(folder), url, name, failpoint))
        child.start()
        child.join()
        code = child.exitcode
        child.close()
        assert code is not None
        return code


def sight(folder: Path) -> dict[str, list[int]]:
    """Return which versions lie where Triton looks."""
    repository = ModelRepository.of(settings_in(folder))
    return {model: repository.versions(model) for model in (ENCODER, HEAD)}


def states(folder: Path) -> dict[int, str]:
    """Return every release's state as topic and journals have it."""
    store = ReleaseStore.of(settings_in(folder))
    store.hear(said(folder))
    return {one.release: one.state for one in store.listed()}
