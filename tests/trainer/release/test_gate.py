"""What the gate lets through, and that every poisoned training is refused by the check that is meant for it.

Small real ONNX releases, judged by onnxruntime; in place of Triton the same graphs answer here.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np
import onnx
import pytest
from tokenizers import Tokenizer

from tests.trainer.conftest import OPTIONS, SPEC
from tests.trainer.corpus import taxonomy
from trainer.data.compact import Compact, vector_table
from trainer.data.dataset import build_examples
from trainer.export.export import encode_texts, export_head, score_inputs
from trainer.fitting.fit_head import Fitting, LabelledWindows, fit_head
from trainer.measuring.fairness import begun
from trainer.release import gate
from trainer.release.gate import Judge, render
from trainer.release.release import Candidate, EncoderFiles, kept_encoder, place
from trainer.run.progress import silent
from trainer.train import train_data
from xplat_stream.errors import InvalidScores
from xplat_stream.serving.features import TextFeatures
from xplat_stream.serving.releases import ENCODER, HEAD, MODEL_FILE, ModelRepository
from xplat_stream.serving.signing import make_key
from xplat_stream.serving.store import ReleaseStore, Verdict
from xplat_stream.settings import LocalSettings, ModelSettings, ReleaseSettings, Settings
from xplat_stream.testing import FakeScorer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from trainer.data.dataset import Dataset

QUICK = msgspec.structs.replace(OPTIONS, encoder_texts_shown=400, head_epochs=8, threads=1, members=1)


class Trained(NamedTuple):
    """A release as trained, and the vectors its encoder gives the log's texts."""

    candidate: Candidate
    table: NDArray[np.float16]


@pytest.fixture(scope="module")
def trained(dataset: Dataset, tiny_base: str) -> Trained:
    """Return a release that learned what there is to learn."""
    found = train_data(dataset, Settings(), msgspec.structs.replace(QUICK, base=tiny_base)).candidate
    assert isinstance(found.encoder, EncoderFiles)
    features = TextFeatures(Tokenizer.from_str(found.encoder.tokenizer.decode()), max_tokens=found.max_tokens)
    *_, (_, vectors) = encode_texts(found.encoder.graph, features, dataset.texts.texts, width=found.width, threads=1)
    return Trained(found, vector_table(vectors))


def with_head(trained: Trained, dataset: Dataset, *, seed: int = 11) -> Candidate:
    """Return a release with another head on the same vectors, as a head-only run makes it."""
    parts = (LabelledWindows.of_examples(part) for part in (dataset.train, dataset.tune))
    options = msgspec.structs.replace(QUICK, seed=seed)
    head = fit_head(Fitting(*parts, dataset.texts, len(dataset.platforms), options, silent), trained.table)
    return answering(trained.candidate, export_head(head))


def answering(candidate: Candidate, head: bytes) -> Candidate:
    """Return a release with another head and that head's own answers as golden ones."""
    golden = candidate.golden
    golden = msgspec.structs.replace(golden, scores=score_inputs(head, golden.head_inputs()).tolist())
    return candidate._replace(head=head, golden=golden)


class LocalServer(FakeScorer):
    """Answers as Triton would that has loaded the very files; `off` is added to every score."""

    def __init__(self, repository: ModelRepository, off: float = 0.0) -> None:
        super().__init__()
        self._repository, self._off = repository, off

    async def encode(self, release, texts):
        opened = gate._opened(self._repository, release)
        return [vector.tobytes() for vector in gate._encode(opened, texts, 8)]

    async def score(self, release, inputs):
        scores = gate._head(gate._opened(self._repository, release), inputs)
        if not np.isfinite(scores).all():
            raise InvalidScores("NaN")
        return scores + np.float32(self._off)

    async def check_golden(self, release):
        await self.score(release, release.manifest.golden.head_inputs())


class Bench:
    """A repository with an active release, the first, and a gate in front of the second."""

    def __init__(self, folder: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
        self.key = folder / "key.pem"
        release = ReleaseSettings(signing_key=str(self.key), trusted_keys=make_key(self.key))
        model = ModelSettings(repository=str(folder / "model_repo"))
        self.settings = Settings(local=LocalSettings(home=str(folder)), model=model, release=release)
        self.store = ReleaseStore.of(self.settings)
        self.data = data
        self.served_off = 0.0

        @asynccontextmanager
        async def probed(_settings, repository, _release):
            yield LocalServer(repository, self.served_off)

        monkeypatch.setattr(gate, "probed", probed)

    def put(self, number: int, candidate: Candidate) -> None:
        """Place a release, signed."""
        place(self.store.repository, number, candidate, key=str(self.key))
        self.store.note(number, "candidate", "trained")

    def judge(self, number: int = 2, *, against: int = 1) -> Verdict:
        """Return what the gate says of a release, kept with it."""
        judge = Judge(self.settings, self.store.repository, self.data, number, against)
        verdict = judge.verdict()
        self.store.keep(verdict)
        report = begun(self.settings, self.store, number, self.data)
        if report is not None:
            self.store.keep_report(judge.reported(report))
        return verdict


@pytest.fixture
def bench(tmp_path: Path, dataset: Dataset, trained: Trained, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Return a bench whose release 1 is active."""
    made = Bench(tmp_path, dataset, monkeypatch)
    made.put(1, trained.candidate)
    made.store.note(1, "active", "first")
    for model in (ENCODER, HEAD):
        made.store.repository.show(model, 1)
    return made


def kept(bench: Bench, candidate: Candidate) -> Candidate:
    """Return a release on the active one's encoder."""
    return candidate._replace(encoder=kept_encoder(bench.store.repository.manifest(1)))


def assert_refused(bench: Bench, verdict: Verdict, *names: str) -> None:
    """Hold that one of these checks refused it, that its verdict is kept, and that the active release is untouched."""
    assert not verdict.passed
    assert set(verdict.refused_by) & set(names), verdict.refused_by
    assert bench.store.verdict(2) == verdict
    assert bench.store.state(2) == "candidate"
    assert bench.store.repository.releases() == [1]
    assert bench.store.state(1) == "active"
    assert bench.store.repository.load(1).number == 1


def test_a_successor_that_is_as_good_passes(
    bench: Bench, trained: Trained, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head of another seed passes, with every figure in the verdict, which reads back as it was written."""
    # Sixty people are held out, and few labels were touched by more than five: what they say leaps from head to head.
    monkeypatch.setattr(gate, "FEWEST", 5)
    limits = msgspec.structs.replace(bench.settings.release, margin=1.0, group_margin=1.0)
    bench.settings = msgspec.structs.replace(bench.settings, release=limits)
    bench.put(2, kept(bench, with_head(trained, dataset)))
    verdict = bench.judge()
    by_name = {check.name: check for check in verdict.checks}
    assert verdict.passed, verdict.refused_by
    assert (verdict.release, verdict.against) == (2, 1)
    assert {"signature", "files", "graphs", "labels", "platforms", "tokenizer", "weights", "golden"} <= by_name.keys()
    assert {"scores", "ndcg", "calibration", "served", "parity", "p99:encoder", "p99:head"} <= by_name.keys()
    assert {f"platform:{platform}" for platform in dataset.platforms} <= by_name.keys()
    assert any(name.startswith("label:") for name in by_name)
    assert by_name["ndcg"].users >= gate.FEWEST
    assert {"top5_overlap", "label_flips", "parity_vectors", "parity_scores"} <= verdict.figures.keys()
    assert msgspec.json.decode(msgspec.json.encode(verdict), type=Verdict) == verdict
    assert render(verdict).row_count == len(verdict.checks) + len(verdict.figures)
    report = bench.store.report(2)
    assert report.people == by_name["ndcg"].users
    assert {one.name for one in report.groups if one.kind == "platform"} == set(dataset.platforms)
    assert (
        (bench.store.repository.hidden / "2" / "report.md").read_text().startswith("# Drift and fairness of release 2")
    )


def test_the_first_release_is_compared_with_popularity(bench: Bench) -> None:
    """Where none is active the candidate has to beat counting, and the verdict says that it was compared with it."""
    verdict = bench.judge(1, against=0)
    ndcg = next(check for check in verdict.checks if check.name == "ndcg")
    assert (verdict.passed, verdict.against) == (True, 0), verdict.refused_by
    assert ndcg.value > ndcg.reference + 0.05
    assert "compared with popularity" in verdict.notes[0]


def test_too_few_people_refuse_nobody(bench: Bench, dataset: Dataset) -> None:
    """A young log has too few held-out people to judge quality by: the verdict says so, and soundness still counts."""
    few = dataset.test.take(np.arange(20))
    bench.data = dataset._replace(test=few)
    verdict = bench.judge(1, against=0)
    assert verdict.passed, verdict.refused_by
    assert any("too few" in note for note in verdict.notes)
    assert "too few" in bench.store.report(1).short()["gap"]


def test_a_release_of_other_labels_is_no_measure(bench: Bench, trained: Trained, dataset: Dataset) -> None:
    """Where the active release scores other labels, popularity takes its place, and the verdict says why."""
    other = tuple(f"other-{label}" for label in trained.candidate.labels)
    bench.put(3, trained.candidate._replace(labels=other))
    bench.put(2, with_head(trained, dataset))
    verdict = bench.judge(2, against=3)
    assert (verdict.passed, verdict.against) == (True, 0), verdict.refused_by
    assert "scores other labels" in verdict.notes[0]


def test_shuffled_labels_are_refused(bench: Bench, trained: Trained, dataset: Dataset) -> None:
    """A head that learned what other people did ranks worse, by far more than chance."""
    random = np.random.default_rng(0)
    train, tune = (
        replace(part, targets=part.targets[random.permutation(len(part))][:, random.permutation(25)])
        for part in (dataset.train, dataset.tune)
    )
    bench.put(2, kept(bench, with_head(trained, dataset._replace(train=train, tune=tune))))
    verdict = bench.judge()
    ndcg = next(check for check in verdict.checks if check.name == "ndcg")
    assert_refused(bench, verdict, "ndcg")
    assert ndcg.high < -bench.settings.release.margin


def test_a_platform_left_out_is_refused(bench: Bench, log, tiny_base: str) -> None:
    """A training that read all topics but one gives a release that knows nothing of that platform."""
    partial = build_examples([one for one in log if one.platform != "video"], taxonomy(), SPEC, OPTIONS)
    options = msgspec.structs.replace(QUICK, base=tiny_base, encoder_texts_shown=64, head_epochs=1)
    bench.put(2, train_data(partial, Settings(), options).candidate)
    verdict = bench.judge()
    assert_refused(bench, verdict, "platforms")
    assert "video" in next(check.words for check in verdict.checks if check.name == "platforms")


def test_a_platform_nobody_learned_from_is_refused(bench: Bench, trained: Trained, dataset: Dataset) -> None:
    """A release that takes a platform's events for nothing is found by what it says of people seen there alone."""
    shop = dataset.platforms.index("shop") + 1
    wrong = with_head(trained, dataset)
    graph = onnx.load_from_string(wrong.head)
    graph = nothing_of(graph, shop)
    bench.put(2, kept(bench, answering(wrong, graph)))
    assert_refused(bench, bench.judge(), "platform:shop", "ndcg")


def nothing_of(graph: onnx.ModelProto, platform: int) -> bytes:
    """Return a head that takes every event of a platform for padding."""
    for node in graph.graph.node:
        for position, name in enumerate(node.input):
            if name == "action":
                node.input[position] = "action_seen"
    make = onnx.helper.make_node
    graph.graph.initializer.append(onnx.numpy_helper.from_array(np.array(platform, np.int32), "gone"))
    graph.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0, np.int32), "no_action"))
    graph.graph.node.insert(0, make("Where", ["is_gone", "no_action", "action"], ["action_seen"]))
    graph.graph.node.insert(0, make("Equal", ["platform", "gone"], ["is_gone"]))
    return bytes(graph.SerializeToString())


@pytest.mark.parametrize("model", ["encoder", "head"])
def test_weights_that_are_no_numbers_are_refused(bench: Bench, trained: Trained, model: str) -> None:
    """One NaN among a hundred thousand weights is found, whether or not an answer shows it."""
    candidate = trained.candidate
    graph = onnx.load_from_string(candidate.encoder.graph if model == "encoder" else candidate.head)
    tensor = max(
        (one for one in graph.graph.initializer if one.data_type == onnx.TensorProto.FLOAT),
        key=lambda one: len(one.raw_data),
    )
    array = onnx.numpy_helper.to_array(tensor).copy()
    array.flat[-1] = np.nan
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    spoiled = graph.SerializeToString()
    encoder = candidate.encoder._replace(graph=spoiled) if model == "encoder" else candidate.encoder
    bench.put(2, candidate._replace(encoder=encoder, head=spoiled if model == "head" else candidate.head))
    verdict = bench.judge()
    assert_refused(bench, verdict, "weights")
    assert f"interest_{model}" in next(check.words for check in verdict.checks if check.name == "weights")


def another_tokenizer(raw: bytes) -> bytes:
    """Return a tokenizer whose words have other numbers."""
    spec = msgspec.json.decode(raw)
    vocab = spec["model"]["vocab"]
    words = sorted((word for word in vocab if not word.startswith("[")), key=vocab.__getitem__)
    numbers = [vocab[word] for word in words]
    vocab.update(zip(words, numbers[1:] + numbers[:1], strict=True))
    return msgspec.json.encode(spec)


def test_another_tokenizer_is_refused(bench: Bench, trained: Trained) -> None:
    """Golden requests answer differently under it, and it is not the one of the active encoder's base."""
    files = trained.candidate.encoder
    files = files._replace(tokenizer=another_tokenizer(files.tokenizer))
    bench.put(2, trained.candidate._replace(encoder=files))
    verdict = bench.judge()
    assert_refused(bench, verdict, "tokenizer")
    assert_refused(bench, verdict, "golden")


def test_another_order_of_labels_is_refused(bench: Bench, trained: Trained) -> None:
    """Scores would go out under other labels' names."""
    labels = trained.candidate.labels
    bench.put(2, trained.candidate._replace(labels=(labels[1], labels[0], *labels[2:])))
    verdict = bench.judge()
    assert_refused(bench, verdict, "labels")
    assert "has not scored anybody" in bench.store.report(2).no_groups
    assert "another order" in next(check.words for check in verdict.checks if check.name == "labels")


def test_scores_in_another_order_are_refused(bench: Bench, trained: Trained) -> None:
    """A head whose own outputs are permuted, golden answers and all, is found by what people did next."""
    graph = onnx.load_from_string(trained.candidate.head)
    order = np.roll(np.arange(25), 7)
    maker = next(node for node in graph.graph.node if "scores" in node.output)
    maker.output[list(maker.output).index("scores")] = "scores_in_order"
    graph.graph.initializer.append(onnx.numpy_helper.from_array(order, "order"))
    graph.graph.node.append(onnx.helper.make_node("Gather", ["scores_in_order", "order"], ["scores"], axis=1))
    bench.put(2, kept(bench, answering(trained.candidate, graph.SerializeToString())))
    verdict = bench.judge()
    assert_refused(bench, verdict, "ndcg")
    assert verdict.figures["top5_overlap"] < 0.5


@pytest.mark.parametrize("model", ["encoder", "head"])
def test_a_truncated_graph_is_refused(bench: Bench, trained: Trained, model: str) -> None:
    """One that was cut before it was placed has the checksum of its half, and does not open."""
    candidate = trained.candidate
    if model == "encoder":
        cut = candidate.encoder.graph
        candidate = candidate._replace(encoder=candidate.encoder._replace(graph=cut[: len(cut) // 2]))
    else:
        candidate = candidate._replace(head=candidate.head[: len(candidate.head) // 2])
    bench.put(2, candidate)
    assert_refused(bench, bench.judge(), "graphs")


def cut_short(path: Path, _: Bench) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_byte(path: Path, _: Bench) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("spoil", [cut_short, flip_a_byte])
@pytest.mark.parametrize("model", [ENCODER, HEAD])
def test_a_file_altered_on_disk_is_refused(
    bench: Bench, trained: Trained, spoil: Callable[[Path, Bench], None], model: str
) -> None:
    """A byte flipped or lost after the release was signed is found by its checksum, before anything runs it."""
    bench.put(2, trained.candidate)
    spoil(bench.store.repository.folder(model, 2) / MODEL_FILE, bench)
    assert_refused(bench, bench.judge(), "files")


def test_a_wrong_signature_is_refused(bench: Bench, trained: Trained, tmp_path: Path) -> None:
    """A release that somebody else signed is not looked into."""
    stranger = tmp_path / "stranger.pem"
    make_key(stranger)
    place(bench.store.repository, 2, trained.candidate, key=str(stranger))
    verdict = bench.judge()
    assert_refused(bench, verdict, "signature")
    assert [check.name for check in verdict.checks] == ["signature"]


def test_a_server_that_answers_differently_refuses(bench: Bench, trained: Trained, dataset: Dataset) -> None:
    """What is served has to be what was judged."""
    bench.put(2, kept(bench, with_head(trained, dataset)))
    bench.served_off = 0.02
    verdict = bench.judge()
    assert_refused(bench, verdict, "parity")
    assert verdict.figures["parity_scores"] == pytest.approx(0.02, abs=1e-4)


def test_fewer_events_are_the_newest(inputs: dict[str, Compact]) -> None:
    """A release that reads fewer events than the log's windows hold is given the newest ones, in their order."""
    whole = inputs["test"]
    short = whole.newest(6)
    assert short.text.shape[1] <= 8
    for row in range(len(whole.length)):
        length = int(whole.length[row])
        kept_here = int(short.length[row])
        assert kept_here == min(length, 6)
        np.testing.assert_array_equal(short.text[row, :kept_here], whole.text[row, length - kept_here : length])
        assert not short.action[row, kept_here:].any()
