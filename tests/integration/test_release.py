"""A release's life against a real Kafka and a real Triton: candidates, promotion, roll-back, and what a restart serves.

These tests have a stack of their own: promotion takes from Triton's sight what is neither active nor previous.
"""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from tritonclient.grpc import InferenceServerClient

from tests.integration.conftest import assert_exact, last_profiles, made_events, publish
from tests.tiny_release import head_graph, make_published, successor
from tests.worker_process import READY_WITHIN_S, XPLAT, environment
from trainer.data.dataset import build_examples
from trainer.release.gate import check
from trainer.release.release import place_candidate, release
from trainer.run.options import TrainOptions
from trainer.run.progress import silent
from xplat_stream import local
from xplat_stream.errors import ReleaseError, TritonUnavailable
from xplat_stream.kafka.consumer import active_announcement
from xplat_stream.kafka.topics import create_topics
from xplat_stream.local import health, triton
from xplat_stream.local.process import LOOPBACK, choose_port, spawn, stop, wait_for
from xplat_stream.population import Population
from xplat_stream.serving import ModelRepository, TritonScorer
from xplat_stream.serving.promote import known_store, promote, rollback
from xplat_stream.serving.releases import ENCODER, HEAD
from xplat_stream.serving.signing import make_key
from xplat_stream.serving.store import ReleaseStore
from xplat_stream.settings import KafkaSettings, ReleaseSettings, TritonSettings
from xplat_stream.simulate import simulate
from xplat_stream.taxonomy import load_taxonomy
from xplat_stream.window import WindowSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.worker_process import Worker
    from trainer.data.dataset import Dataset
    from xplat_stream.serving.releases import Manifest
    from xplat_stream.settings import Settings

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, stack_settings: Callable[..., Settings]) -> Iterator[Settings]:
    """Yield a stack that these tests may restart."""
    settings = stack_settings(tmp_path_factory.mktemp("release"))
    try:
        yield started(settings)
    finally:
        local.down(settings, report=lambda _: None)


def started(settings: Settings) -> Settings:
    """Start what does not run, and return the settings with its addresses."""
    state = local.up(settings, report=lambda _: None)
    settings = msgspec.structs.replace(
        settings,
        kafka=KafkaSettings(bootstrap=state.kafka.address),
        triton=TritonSettings(url=state.triton.address),
    )
    create_topics(settings)
    return settings


@pytest.fixture(scope="module")
def first(home: Settings) -> Manifest:
    """Return a release that was active before there was a store: placed, loaded and announced."""
    simulate(home, Population(load_taxonomy(), users=120, seed=5), history_events=5000, history_days=20, rate_per_s=0)
    made = make_published(home)
    return ModelRepository(home.model.repository).manifest(made.number)


def served(home: Settings) -> list[int]:
    """Return which of the releases answer their golden requests on Triton now."""

    async def ask() -> list[int]:
        repository = ModelRepository(home.model.repository)
        found = []
        async with TritonScorer(home.triton) as scorer:
            for number in ReleaseStore(repository).numbers():
                manifest = repository.manifest(number)
                if await scorer.has(ENCODER, manifest.encoder) and await scorer.has(HEAD, number):
                    await scorer.check_golden(repository.load(number))
                    found.append(number)
        return found

    return asyncio.run(ask())


def states(home: Settings) -> dict[int, str]:
    """Return every release's state as the topic and the journals have it."""
    store = known_store(home)[0]
    return {number: store.state(number) for number in store.numbers()}


def xplat(home: Settings, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command on the stack."""
    return subprocess.run(
        [str(XPLAT), *words],
        env=environment(home, **variables),
        cwd=Path(home.local.home).parent,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def answer(done: subprocess.CompletedProcess[str]) -> Any:
    """Return what a command printed as JSON."""
    return msgspec.json.decode(done.stdout.splitlines()[-1])


def test_from_candidate_to_roll_back(home: Settings, first: Manifest) -> None:
    """A candidate is judged without being seen, promoted, and rolled back; at every step the active release answers."""
    number = place_candidate(home, successor(home, first)).release
    assert ModelRepository(home.model.repository).versions(HEAD) == [first.release]
    with pytest.raises(ReleaseError, match=f"release {number} was not checked"):
        promote(home, number)

    checked = xplat(home, "model", "check", str(number), "--json")
    verdict = answer(checked)
    names = {one["name"] for one in verdict["checks"]}
    assert checked.returncode == 0, checked.stderr
    assert verdict["against"] == first.release
    assert {"served", "parity", "p99:head", "memory", "ndcg"} <= names
    assert served(home) == [first.release]

    shown = answer(xplat(home, "model", "show", str(number), "--json"))
    page = xplat(home, "model", "show", str(number), "--report")
    assert {group["kind"] for group in shown["report"]["groups"]} == {"platform", "activity", "label"}
    assert page.stdout.startswith(f"# Drift and fairness of release {number}")

    promoted = xplat(home, "model", "promote", str(number), "--json")
    announced = active_announcement(home)
    assert promoted.returncode == 0, promoted.stderr
    assert answer(promoted) == {"release": number, "previous": first.release}
    assert announced is not None
    assert (announced.release, announced.previous) == (number, first.release)
    assert states(home) == {first.release: "previous", number: "active"}
    assert served(home) == [first.release, number]

    back = xplat(home, "model", "rollback", "--json")
    again = active_announcement(home)
    assert back.returncode == 0, back.stderr
    assert again is not None
    assert (again.release, again.previous, again.rolled_back) == (first.release, 0, number)
    assert states(home) == {first.release: "active", number: "quarantined"}
    assert ModelRepository(home.model.repository).versions(HEAD) == [first.release]
    with pytest.raises(ReleaseError, match="no previous release"):
        rollback(home)
    with pytest.raises(ReleaseError, match="is quarantined: rolled back by hand"):
        promote(home, number)


def test_a_release_that_does_not_load_changes_nothing(home: Settings, first: Manifest) -> None:
    """Forced past the gate with half a graph, it is refused by Triton, goes out of sight, and the active one answers.

    A restart of Triton finds nothing of it.
    """
    candidate = successor(home, first, new_encoder=True)
    cut = candidate.encoder._replace(graph=candidate.encoder.graph[: len(candidate.encoder.graph) // 2])
    number = place_candidate(home, candidate._replace(encoder=cut)).release
    before = active_announcement(home)

    refused = check(home, number, examples(home))
    done = xplat(home, "model", "promote", str(number), "--force")

    assert refused.refused_by == ("graphs",)
    assert done.returncode == 2
    assert "Triton does not load" in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("xplat: ")
    assert active_announcement(home) == before
    assert ModelRepository(home.model.repository).versions(ENCODER) == [first.encoder]
    assert states(home)[number] == "candidate"
    assert first.release in served(home)


def test_a_restart_of_triton_serves_the_active_release(home: Settings, first: Manifest) -> None:
    """With candidates of higher numbers lying beside it, Triton comes back with the active release."""
    place_candidate(home, successor(home, first, new_encoder=True))
    url = home.triton.url
    stopped = msgspec.structs.replace(home, kafka=KafkaSettings(), triton=TritonSettings())
    local.down(stopped, report=lambda _: None)
    again = started(stopped)

    assert again.triton.url == url
    assert served(again) == [first.release]


def test_a_shadow_serves_beside_the_active_release(home: Settings, first: Manifest) -> None:
    """A candidate is loaded and announced as shadow, the active release stays; taken back, it is out of sight."""
    number = place_candidate(home, successor(home, first, tilt=0.5)).release
    seen = ModelRepository(home.model.repository).versions(HEAD)

    done = xplat(home, "model", "shadow", str(number), "--json")
    announced = active_announcement(home)
    assert done.returncode == 0, done.stderr
    assert announced is not None
    assert (announced.release, announced.shadow) == (first.release, number)
    assert states(home)[number] == "shadow"
    assert {first.release, number} <= set(served(home))
    beside = answer(xplat(home, "model", "diff", "--json"))
    assert (beside["active"], beside["beside"], beside["compared"], beside["breaches"]) == (
        first.release,
        number,
        0,
        [],
    )

    back = xplat(home, "model", "shadow", "0", "--json")
    assert back.returncode == 0, back.stderr
    assert states(home)[number] == "candidate"
    assert ModelRepository(home.model.repository).versions(HEAD) == seen
    refused = xplat(home, "model", "shadow", str(first.release))
    assert (refused.returncode, "that is it" in refused.stderr) == (2, True)


def examples(home: Settings) -> Dataset:
    """Return the held-out people of the stack's log."""
    from xplat_stream.kafka.log import read_behavior

    events = [event for event, _ in read_behavior(home) if event is not None]
    spec = WindowSpec(home.window.per_platform, home.window.horizon)
    return build_examples(events, load_taxonomy(), spec, TrainOptions())


def test_a_poisoned_candidate_is_refused_on_the_real_server(home: Settings, first: Manifest) -> None:
    """A head that answers NaN for long windows passes its golden requests, and is refused; force alone promotes it."""
    spoiled = head_graph(seed=first.release, labels=len(first.labels), nan_beyond=8)
    candidate = successor(home, first)._replace(head=spoiled)

    found = release(home, candidate, examples(home), silent)

    assert (found.promoted, found.verdict.refused_by) == (False, ("scores",))
    assert states(home)[found.number] == "candidate"
    assert states(home)[first.release] == "active"


def test_approval_by_a_person(home: Settings, first: Manifest) -> None:
    """Where a person has to approve, what passed waits; a signed release is promoted by those who trust its key."""
    key = Path(home.local.home).parent / "key.pem"
    trusted = make_key(key)
    manual = msgspec.structs.replace(home, release=ReleaseSettings(approval="manual", signing_key=str(key)))

    found = release(manual, successor(home, first), examples(home), silent)
    strange = xplat(home, "model", "promote", str(found.number), XPLAT_RELEASE__TRUSTED_KEYS="A" * 43 + "=")
    done = xplat(home, "model", "promote", str(found.number), XPLAT_RELEASE__TRUSTED_KEYS=trusted)
    listed = {one["release"]: one for one in answer(xplat(home, "model", "list", "--json"))}
    shown = answer(xplat(home, "model", "show", str(found.number), "--json"))

    assert found.verdict.passed, found.verdict.refused_by
    assert not found.promoted
    assert strange.returncode == 2
    assert "not signed by anybody trusted" in strange.stderr
    assert done.returncode == 0, done.stderr
    assert (listed[found.number]["state"], listed[first.release]["state"]) == ("active", "previous")
    assert [one["state"] for one in shown["journal"]["changes"]] == ["candidate", "candidate", "active"]
    assert shown["about"]["parent"] == first.release


def test_two_servers_on_one_repository(
    home: Settings, first: Manifest, start_worker: Callable[..., Worker], tmp_path: Path
) -> None:
    """A release is promoted when both have it; a worker asks both in turn, and goes on with one when the other dies.

    Then nothing is promoted, and the line names the one that is away.
    """
    ports = [choose_port(wanted=0, previous=0, variable="") for _ in range(3)]
    names = ("port", "http_port", "metrics_port")
    repository = Path(home.model.repository)
    command = triton.command(home=tmp_path, repository=repository, **dict(zip(names, ports, strict=True)))
    url = f"{LOOPBACK}:{ports[0]}"
    second = spawn(command, log=tmp_path / "second.log", env=triton.environment())
    both = msgspec.structs.replace(
        home,
        triton=TritonSettings(url=f"{home.triton.url},{url}"),
        worker=msgspec.structs.replace(home.worker, app="replicas", datadir=str(tmp_path / "state")),
    )
    try:
        assert wait_for(lambda: health.triton_answers(url, timeout_s=2), timeout_s=READY_WITHIN_S)
        create_topics(both)
        number = place_candidate(both, successor(both, first, new_encoder=True)).release
        promote(both, number, force=True)
        alone = msgspec.structs.replace(both, triton=TritonSettings(url=url))
        assert number in served(home)
        assert number in served(alone)

        worker = start_worker(both).ready()
        publish(both, made_events(100, 2, seed=540))
        assert_exact(both)
        assert min(inferences(one, HEAD, number) for one in both.triton.replicas) > 0
        stop(second, patience_s=0)
        publish(both, made_events(100, 2, seed=541))
        assert_exact(both)
        assert {one.status for one in last_profiles(both, "541-").values()} == {"fresh"}
        assert worker.metrics.degraded == 0

        before, said = states(both), active_announcement(both)
        following = place_candidate(both, successor(both, first)).release
        with pytest.raises(TritonUnavailable) as away:
            promote(both, following, force=True)
        assert away.value.where == url
        assert states(both) == before | {following: "candidate"}
        assert active_announcement(both) == said
        assert number in served(home)
    finally:
        stop(second, patience_s=0)


def inferences(server: TritonSettings, model: str, version: int) -> int:
    """Return how many requests a server has answered with a version."""
    with InferenceServerClient(server.url) as client:
        (found,) = client.get_inference_statistics(model, str(version)).model_stats
    return int(found.inference_stats.success.count)


def test_collection_leaves_what_serves(home: Settings, first: Manifest) -> None:
    """`gc` deletes files of releases nobody needs; active and previous go on answering."""
    before = set(served(home))
    removed = answer(xplat(home, "model", "gc", "--json"))["removed"]
    kept = {number for number, state in states(home).items() if state in {"active", "previous"}}
    assert removed
    assert kept <= before
    assert answer(xplat(home, "model", "gc", "--json")) == {"removed": []}
    for number in kept:
        assert ModelRepository(home.model.repository).load(number).number == number
