"""The trainer against a real Kafka and a real Triton: from a log to a release that scores, and to its successor."""

from __future__ import annotations

import asyncio
import subprocess
from typing import TYPE_CHECKING

import msgspec
import pytest

from tests.tiny_release import make_published
from tests.trainer.recording import PLATFORMS, odd_name, rows, write
from tests.worker_process import XPLAT, environment
from trainer.data.study import Task
from trainer.train import Recorded, TrainOptions, train
from xplat_stream import local
from xplat_stream.demo.score import against_truth
from xplat_stream.errors import DataError, ReleaseError
from xplat_stream.event import UserId
from xplat_stream.explain import Question, explain
from xplat_stream.kafka.consumer import active_announcement
from xplat_stream.kafka.topics import create_topics
from xplat_stream.population import Population
from xplat_stream.replay import replay
from xplat_stream.serving import ModelRepository, TritonScorer
from xplat_stream.settings import KafkaSettings, LocalSettings, ModelSettings, ReleaseSettings, WorkerSettings
from xplat_stream.simulate import simulate
from xplat_stream.taxonomy import load_taxonomy
from xplat_stream.verify import verify, wait_until_caught_up

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tests.integration.conftest import Worker
    from xplat_stream.settings import Settings

pytestmark = pytest.mark.integration

QUICK = TrainOptions(encoder_texts_shown=800, head_windows_shown=40_000)
EVENTS = 8000


@pytest.fixture(scope="module")
def own(stack: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Yield a broker whose log holds nothing but what these tests put there, beside the shared Triton."""
    folder = tmp_path_factory.mktemp("train")
    settings = msgspec.structs.replace(
        stack,
        local=LocalSettings(home=str(folder / "home")),
        worker=WorkerSettings(app="train", datadir=str(folder / "worker")),
        # How busy this machine is is no matter here, nor what chance does to the 50 people held out.
        release=ReleaseSettings(max_p99_ms=60_000, margin=0.2, group_margin=0.2, calibration_margin=0.2),
    )
    state = local.up(settings, report=lambda _: None, external_triton=stack.triton.url)
    try:
        settings = msgspec.structs.replace(settings, kafka=KafkaSettings(bootstrap=state.kafka.address))
        create_topics(settings)
        yield settings
    finally:
        local.down(settings, report=lambda _: None)


def test_too_little_data_is_said_before_anything_is_trained(own: Settings) -> None:
    """An empty log is refused with how many events there are and how to get more."""
    with pytest.raises(DataError, match=r"xplat simulate"):
        train(own, QUICK)


def test_nothing_is_explained_before_the_first_release(own: Settings) -> None:
    """Where no release scores there is nothing to explain, and the line says how to change that."""
    with pytest.raises(ReleaseError, match=r"no release is active.*xplat train"):
        explain(own, UserId("anybody"))


def test_a_repository_without_configuration_is_refused_first(own: Settings, tmp_path) -> None:
    """Where Triton could not load a version nothing is trained."""
    elsewhere = msgspec.structs.replace(own, model=ModelSettings(repository=str(tmp_path)))
    with pytest.raises(ReleaseError, match=r"no configuration of interest_encoder"):
        train(elsewhere, QUICK)


def test_from_the_log_to_profiles_that_know_people(
    own: Settings, start_worker: Callable[..., Worker], tmp_path
) -> None:
    """A release is trained, verified, announced and scores; its successor shares the encoder and takes over unlost.

    The published profiles come clearly nearer to the latent interests than popularity does, and are exact.
    """
    population = Population(load_taxonomy(), users=150, seed=5)
    truth_path = tmp_path / "truth.json"
    simulate(own, population, history_events=EVENTS, history_days=20, rate_per_s=0, truth_path=truth_path)

    first = train(own, QUICK)
    worker = start_worker(own).ready()
    assert wait_until_caught_up(own, timeout_s=180), worker.words()
    second = train(own, msgspec.structs.replace(QUICK, head_only=True))
    assert second.promoted, second.verdict
    worker.until(lambda: worker.metrics.release == second.release, "switch to the second release")
    simulate(own, population, rate_per_s=100, seconds=3)
    assert wait_until_caught_up(own, timeout_s=180), worker.words()

    verdict = verify(own)
    truth = msgspec.json.decode(truth_path.read_bytes())["users"]
    model, popularity = against_truth(own, load_taxonomy(), truth)
    announced = active_announcement(own)
    manifests = [ModelRepository(own.model.repository).manifest(one.release) for one in (first, second)]

    assert (verdict.missing, verdict.extra, verdict.differing) == (0, 0, 0)
    assert (second.previous, manifests[1].encoder) == (first.release, manifests[0].encoder)
    assert announced is not None
    assert (announced.release, announced.previous) == (second.release, first.release)
    assert first.metrics["ndcg_at_10"] > first.metrics["popularity_ndcg_at_10"] + 0.1
    assert model > popularity + 0.2
    asyncio.run(_both_still_answer(own, [first.release, second.release]))


def test_a_resumed_training_reads_the_log_as_it_was(own: Settings, tmp_path) -> None:
    """What came into the topics after a training was interrupted is not in the training that goes on."""
    population = Population(load_taxonomy(), users=60, seed=6)
    simulate(own, population, history_events=2000, history_days=20, rate_per_s=0)
    options = msgspec.structs.replace(
        QUICK, publish=False, encoder_texts_shown=64, max_texts=64, head_windows_shown=500, checkpoint=str(tmp_path)
    )
    read: list[float] = []

    def note(stage: str, done: int, total: int, metrics: Mapping[str, float]) -> None:
        if "events" in metrics:
            read.append(metrics["events"])
        if stage == "encoder" and len(read) == 1:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train(own, options, note)
    simulate(own, population, history_events=300, history_days=1, rate_per_s=0)
    train(own, msgspec.structs.replace(options, resume=True), note)
    train(own, options, note)

    assert read[1] == read[0]
    assert read[2] == read[0] + 300


async def _both_still_answer(settings: Settings, numbers: list[int]) -> None:
    repository = ModelRepository(settings.model.repository)
    async with TritonScorer(settings.triton) as scorer:
        for number in numbers:
            await scorer.check_golden(repository.load(number))


def test_the_log_in_kafka_is_evaluated_on(own: Settings, tmp_path) -> None:
    """`xplat evaluate --from-topic` says what videos and posts tell of the shop; nothing leaks, and history counts."""
    words = ("--from-topic", "--target", "shop", "--folds", "2", "--min-label-users", "10", "--teachers", "0", "--json")
    population = Population(load_taxonomy(), users=150, seed=6)
    simulate(own, population, history_events=EVENTS, history_days=20, rate_per_s=0)
    done = subprocess.run(
        [str(XPLAT), "evaluate", *words],
        env=environment(own),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = msgspec.json.decode(done.stdout.splitlines()[-1])
    assert found["checks_passed"]
    assert found["a_only_gain_low"] > 0
    assert found["ndcg10"] > found["a_only_ndcg10"]


def test_a_recorded_folder_becomes_a_release(own: Settings, start_worker: Callable[..., Worker], tmp_path) -> None:
    """A folder of other platforms, string users and tags is trained on, published, announced, and scores.

    The worker is told the recording's taxonomy, as the run says. The encoder is the active release's, a tiny one.
    """
    folder = write(tmp_path / "other-world", *rows())
    before = make_published(own)
    options = msgspec.structs.replace(QUICK, head_only=True)

    found = train(own, options, recorded=Recorded(folder, "tags", Task(min_label_users=5)))
    manifest = ModelRepository(own.model.repository).manifest(found.release)
    taxonomy = load_taxonomy(found.serve_with["XPLAT_MODEL__TAXONOMY"])
    there = msgspec.structs.replace(
        own,
        model=msgspec.structs.replace(own.model, taxonomy=found.serve_with["XPLAT_MODEL__TAXONOMY"]),
        worker=WorkerSettings(app="folder", datadir=str(tmp_path / "state")),
    )
    create_topics(there)
    replay(there, folder)
    worker = start_worker(there).ready()
    assert wait_until_caught_up(there, timeout_s=180), worker.words()
    told = explain(there, UserId(odd_name(0)), Question(interests=1))

    assert (found.previous, manifest.encoder) == (before.number, before.encoder)
    assert manifest.labels == taxonomy.ids()
    assert manifest.platforms == PLATFORMS
    assert float(found.serve_with["XPLAT_WINDOW__HORIZON_DAYS"]) > 390
    assert found.excluded["items without a title"] > 0
    assert worker.metrics.release == found.release
    assert told.interests[0].id in manifest.labels
