"""Is a candidate fit to take over? Every figure and every check that says so, against the release that is active.

The two are compared on the same held-out people, each at the last cut: windows and targets are the trainer's own, and
neither release was trained on what these people did after the cut. In this order, and no further than it makes sense:

1. **sound**: signature, checksums, graphs that open, finite weights; labels, platforms and tokenizer as they must be;
   golden requests answered by the files themselves;
2. **not worse**: NDCG@10 over everybody, from each platform alone, on thin histories; F1 of each label; calibration;
3. **served**: on the real Triton, under names of its own: golden requests, the same answers as here, speed, memory.

A figure over everybody has to lie above minus the margin with its whole interval, where there are people enough to
tell. Where there are not, and in groups, of which there are many, harm that chance does not explain refuses.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import numpy as np
import onnx
from onnxruntime.capi.onnxruntime_pybind11_state import (
    Fail,
    InvalidArgument,
    InvalidGraph,
    InvalidProtobuf,
    RuntimeException,
)
from rich.table import Table

from trainer.data.compact import vector_table
from trainer.data.examples import last_of_each
from trainer.export.export import session
from trainer.measuring.fairness import FEWEST, begun, measured
from trainer.measuring.groups import THIN
from trainer.measuring.measures import (
    CONFIDENCE,
    Counts,
    Interval,
    bootstrap_mean,
    calibration_error,
    expected_threshold,
    ndcg,
    paired_label_f1,
)
from xplat_stream.errors import InvalidScores, ReleaseError, TritonUnavailable
from xplat_stream.serving.probe import encoder_times, head_times, probed, server_memory
from xplat_stream.serving.promote import known_store
from xplat_stream.serving.releases import ENCODER, HEAD, MODEL_FILE, TOKENIZER_FILE
from xplat_stream.serving.store import Check, Verdict
from xplat_stream.serving.triton import GOLDEN_TOLERANCE, TritonScorer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from trainer.data.compact import Compact
    from trainer.data.dataset import Dataset
    from xplat_stream.serving.fairness import FairnessReport
    from xplat_stream.serving.features import HeadInputs
    from xplat_stream.serving.releases import Manifest, ModelRepository, Release
    from xplat_stream.settings import ReleaseSettings, Settings

    Scores = NDArray[np.float32]  # (people, labels)

PEOPLE: Final = 2000
"""Held-out people judged on at the most: their texts are encoded once by each of two releases."""

TOP: Final = 5
CALIBRATED: Final = 0.03
"""Calibration error that a first release is held to, beside the margin."""
SLOWER: Final = 1.5
"""A candidate may take so many times as long as the active release, where that is longer than the limit."""

_ENCODER_CALLS, _HEAD_CALLS = 20, 60
_SAMPLE: Final = 32
_AT_ONCE: Final = 256
_ONE_SIDED: Final = 0.9
"""Confidence of an interval whose lower end alone is looked at: 95 of 100 resamplings lie above it."""


class Cuts(NamedTuple):
    """Held-out people at their last cut."""

    inputs: Compact
    targets: Scores


class Opened(NamedTuple):
    """A release whose graphs run on this machine."""

    release: Release
    encoder: Any
    head: Any

    @property
    def manifest(self) -> Manifest:
        """The release's manifest."""
        return self.release.manifest


def check(settings: Settings, number: int, data: Dataset, *, against: int = 0) -> Verdict:
    """Judge a release on the held-out people of a log, and keep the verdict with it.

    `against`: compare with this release; 0: with the active one, or with popularity where none is. Raises
    `ReleaseError` when there is no such release, `KafkaUnavailable`, `TritonUnavailable`.
    """
    store, active = known_store(settings)
    store.journal(number)
    against = against or (active.release if active and active.release != number else 0)
    judge = Judge(settings, store.repository, data, number, against)
    report = begun(settings, store, number, data)
    if report is not None and store.report(number) is None:
        store.keep_report(report)
    try:
        verdict = judge.verdict()
    finally:  # what is known is kept whatever ends the judging
        if report is not None:
            store.keep_report(judge.reported(report))
    store.keep(verdict)
    return verdict


class Judge:
    """Goes through the checks of one release."""

    def __init__(
        self, settings: Settings, repository: ModelRepository, data: Dataset, number: int, against: int
    ) -> None:
        self._settings, self._repository, self._data = settings, repository, data
        self._limits: ReleaseSettings = settings.release
        self._number, self._against = number, against
        self._checks: list[Check] = []
        self._figures: dict[str, float] = {}
        self._notes: list[str] = []
        self._scored: tuple[Cuts, Scores] | None = None

    def reported(self, report: FairnessReport) -> FairnessReport:
        """Return a report with how the candidate does by whom, as far as it was scored."""
        if self._scored is None:
            return report
        cuts, scores = self._scored
        if len(scores) < FEWEST:
            few = f"{len(scores)} held-out people are too few"
            return msgspec.structs.replace(report, people=len(scores), no_groups=few)
        return measured(report, self._data, cuts.inputs, scores, cuts.targets)

    def verdict(self) -> Verdict:
        """Judge. Raises `TritonUnavailable`, and `ReleaseError` when what it is compared with is unusable."""
        reference = self._reference()
        candidate = self._sound(reference)
        if candidate is not None:
            cuts = self._held_out()
            answers = self._answers(candidate, cuts.inputs)
            if answers is not None:
                self._scored = cuts, answers[1]
                self._compare(candidate, reference, cuts, *answers)
                asyncio.run(self._served(candidate, reference, cuts, answers[0]))
        return Verdict(
            release=self._number,
            against=self._against,
            checked_at=datetime.now(UTC),
            checks=tuple(self._checks),
            figures={name: round(value, 6) for name, value in self._figures.items()},
            notes=tuple(self._notes),
        )

    def _say(self, name: str, passed: bool, words: str, **figures: Any) -> bool:
        self._checks.append(Check(name=name, passed=bool(passed), words=words, **figures))
        return passed

    def _reference(self) -> Opened | None:
        """Return the release to compare with, None for popularity."""
        if not self._against:
            self._notes.append("no release is active: it is compared with popularity")
            return None
        release = self._repository.load(self._against)
        if not set(self._data.labels) <= set(release.manifest.labels):
            self._notes.append(f"release {self._against} scores other labels: it is compared with popularity")
            self._against = 0
            return None
        return _opened(self._repository, release)

    # 1. Sound

    def _sound(self, reference: Opened | None) -> Opened | None:
        """Return the candidate, None where one of its files forbids to go on."""
        repository, number = self._repository, self._number
        for name, look in (
            ("signature", lambda: repository.require_signed(number)),
            ("files", lambda: repository.load(number)),
        ):
            try:
                look()
            except ReleaseError as error:
                self._say(name, False, str(error))
                return None
            self._say(name, True, _AS_IT_SHOULD[name] if self._limits.trusted or name == "files" else "not asked for")
        release = repository.load(number)
        try:
            candidate = _opened(repository, release)
        except _NO_GRAPH as error:
            self._say("graphs", False, f"onnxruntime does not open them: {str(error).splitlines()[0][:200]}")
            return None
        self._say("graphs", True, "onnxruntime opens encoder and head")
        fits = [
            self._labels(candidate.manifest, reference),
            self._platforms(candidate.manifest),
            self._tokenizer(candidate.manifest, reference),
            self._weights(candidate.manifest),
            self._golden(candidate),
        ]
        return candidate if all(fits) else None

    def _labels(self, manifest: Manifest, reference: Opened | None) -> bool:
        wanted = self._data.labels
        if manifest.labels != wanted:
            same = sorted(manifest.labels) == sorted(wanted)
            found = "the same labels in another order" if same else f"{len(manifest.labels)} other labels"
            return self._say("labels", False, f"{found}; asked for: the taxonomy's {len(wanted)}, in its order")
        if reference and reference.manifest.taxonomy == manifest.taxonomy and reference.manifest.labels != wanted:
            return self._say("labels", False, f"release {self._against} names this taxonomy with other labels")
        return self._say("labels", True, f"the taxonomy's {len(wanted)}, in its order")

    def _platforms(self, manifest: Manifest) -> bool:
        missing = sorted(set(self._data.platforms) - set(manifest.platforms))
        if missing:
            return self._say("platforms", False, f"it knows nothing of {', '.join(missing)}, which the log holds")
        return self._say("platforms", True, f"all {len(self._data.platforms)} of the log")

    def _tokenizer(self, manifest: Manifest, reference: Opened | None) -> bool:
        if reference is None or reference.manifest.base != manifest.base:
            return self._say("tokenizer", True, "no release of this base to compare with; golden requests decide")
        mine, theirs = (
            (self._repository.folder(ENCODER, one.encoder) / TOKENIZER_FILE).read_bytes()
            for one in (manifest, reference.manifest)
        )
        words = f"release {self._against}'s, as of the same base {manifest.base or 'encoder'}"
        same = mine == theirs and (manifest.encoder != reference.manifest.encoder or _same_encoder(manifest, reference))
        return self._say("tokenizer", same, words if same else f"it differs from {words}")

    def _weights(self, manifest: Manifest) -> bool:
        wrong = []
        for model, version in ((ENCODER, manifest.encoder), (HEAD, manifest.release)):
            graph = onnx.load(str(self._repository.folder(model, version) / MODEL_FILE)).graph
            wrong += [f"{model} {one.name}" for one in _constants(graph) if not _is_finite(one)]
        words = f"NaN or infinity in {len(wrong)} tensors, {wrong[0]} among them" if wrong else "all finite"
        return self._say("weights", not wrong, words)

    def _golden(self, candidate: Opened) -> bool:
        """Ask the files themselves what they answered when they were made: another tokenizer or graph does not."""
        golden = candidate.manifest.golden
        try:
            vectors = _encode(candidate, golden.texts, self._settings.triton.encoder_batch)
            scores = _head(candidate, candidate.manifest.golden.head_inputs())
            worst = max(_apart(vectors, golden.vectors), _apart(scores, golden.scores))
        except (*_NO_GRAPH, ValueError) as error:
            return self._say("golden", False, f"they cannot be asked: {str(error).splitlines()[0][:200]}")
        passed = worst <= GOLDEN_TOLERANCE  # not for NaN
        words = f"off by {worst:.2g} at the most; allowed {GOLDEN_TOLERANCE:g}"
        return self._say("golden", passed, words, value=_number(worst))

    # 2. Not worse

    def _held_out(self) -> Cuts:
        """Return the last cut of every held-out person; of very many, some, evenly spread."""
        test = self._data.test
        rows = last_of_each(np.array(test.users))
        rows = rows[test.targets[rows].any(axis=1)]
        if len(rows) > PEOPLE:
            rows = rows[np.linspace(0, len(rows) - 1, PEOPLE).round().astype(np.int64)]
        if len(rows) < FEWEST:
            self._notes.append(f"{len(rows)} held-out people are too few to judge quality: {FEWEST} are needed")
        return Cuts(test.inputs.take(rows).trimmed(), test.targets[rows])

    def _answers(self, candidate: Opened, inputs: Compact) -> tuple[NDArray[np.float16], Scores] | None:
        """Return the candidate's vectors and scores, None where they are none."""
        try:
            vectors = _vectors(candidate, self._data, inputs)
            scores = _score(candidate, self._data, inputs, vectors)
        except (InvalidScores, *_NO_GRAPH) as error:
            self._say("scores", False, str(error).splitlines()[0][:200])
            return None
        self._say("scores", True, f"{scores.size} of {len(scores)} people, all finite and in [0, 1]")
        return vectors, scores

    def _compare(
        self, mine: Opened, reference: Opened | None, cuts: Cuts, vectors: NDArray[np.float16], scores: Scores
    ) -> None:
        data, limits = self._data, self._limits
        other: Scores
        if reference is None:
            shares = np.average(data.train.targets, axis=0, weights=data.train.weights).astype(np.float32)
            their_vectors = vectors
            other = np.tile(shares, (len(scores), 1))
        else:
            same = reference.manifest.encoder == mine.manifest.encoder
            their_vectors = vectors if same else _vectors(reference, data, cuts.inputs)
            other = _score(reference, data, cuts.inputs, their_vectors)
            self._churn(scores, other)
        mean = (ndcg(scores, cuts.targets), ndcg(other, cuts.targets))
        self._everybody("ndcg", *mean, limits.margin)

        groups: list[tuple[str, Interval, float, float, int]] = []
        frequent = np.flatnonzero(cuts.targets.sum(axis=0) >= FEWEST)
        confidence = 1 - (1 - CONFIDENCE) / max(1, len(frequent) + len(data.platforms) + 1)
        thin = cuts.inputs.length <= THIN
        if thin.sum() >= FEWEST:
            groups.append(_group("thin", mean[0][thin], mean[1][thin], confidence))
        for index, platform in enumerate(data.platforms, 1):
            alone = cuts.inputs.seeing(np.array([index], np.int32))
            rows = np.flatnonzero(alone.length > 0)
            if len(rows) < FEWEST:
                continue
            seen, targets = alone.take(rows), cuts.targets[rows]
            theirs = other[rows] if reference is None else _score(reference, data, seen, their_vectors)
            pair = (ndcg(_score(mine, data, seen, vectors), targets), ndcg(theirs, targets))
            groups.append(_group(f"platform:{platform}", *pair, confidence))
        if reference is not None:  # popularity names the same labels for everybody: nothing to hold a label to
            counts = [Counts.of(one >= expected_threshold(one), cuts.targets) for one in (scores, other)]
            for label in frequent.tolist():
                found = paired_label_f1(counts[0], counts[1], label, confidence=confidence)
                f1 = [float(one.label_f1()[label]) for one in counts]
                people = int(cuts.targets[:, label].sum())
                groups.append((f"label:{data.taxonomy.labels[label].slug}", found, f1[0], f1[1], people))
        for name, found, value, before, people in groups:
            harmed = found.value < -limits.group_margin and found.high < 0
            words = (
                f"{found.value:+.3f} [{found.low:+.3f}, {found.high:+.3f}]; harm beyond {limits.group_margin:g} refuses"
            )
            self._say(name, not harmed, words, **_figures(value, before, found, people))
        self._calibration(scores, None if reference is None else other, cuts.targets)

    def _everybody(self, name: str, mine: NDArray[np.float64], other: NDArray[np.float64], margin: float) -> None:
        people = len(mine)
        if people < FEWEST:
            self._say(name, True, f"{people} people are too few to judge", users=people)
            return
        found = bootstrap_mean(mine - other, confidence=_ONE_SIDED)
        enough = found.value - found.low <= margin
        passed = found.low >= -margin if enough else not (found.value < -margin and found.high < 0)
        words = f"{found.value:+.4f} [{found.low:+.4f}, {found.high:+.4f}]; "
        words += (
            f"its lower end has to reach {-margin:g}"
            if enough
            else f"{people} people are too few to tell {margin:g}: harm that is beyond it and beyond chance refuses"
        )
        self._say(name, passed, words, **_figures(float(mine.mean()), float(other.mean()), found, people))

    def _calibration(self, scores: Scores, other: Scores | None, targets: Scores) -> None:
        if len(targets) < FEWEST:
            return
        mine = calibration_error(scores, targets)
        before = None if other is None else calibration_error(other, targets)
        limit = (CALIBRATED if before is None else before) + self._limits.calibration_margin
        self._say("calibration", mine <= limit, f"{mine:.4f}; allowed {limit:.4f}", value=mine, reference=before)

    def _churn(self, mine: Scores, other: Scores) -> None:
        """Note how much of what people are shown would change."""
        top = [np.argsort(-one, axis=1, kind="stable")[:, :TOP] for one in (mine, other)]
        shared = (top[0][:, :, None] == top[1][:, None, :]).any(axis=2).mean() if len(mine) else 1.0
        named = [one >= expected_threshold(one) for one in (mine, other)] if len(mine) else [mine, other]
        self._figures["top5_overlap"] = float(shared)
        self._figures["label_flips"] = float((named[0] != named[1]).mean()) if len(mine) else 0.0

    # 3. Served

    async def _served(self, mine: Opened, reference: Opened | None, cuts: Cuts, vectors: NDArray[np.float16]) -> None:
        triton = self._settings.triton
        before = server_memory(self._settings)
        try:
            async with probed(self._settings, self._repository, mine.release) as scorer:
                await scorer.check_golden(mine.release)
                self._say("served", True, "Triton loads it and answers its golden requests")
                await self._parity(scorer, mine, cuts, vectors)
                await self._speed(scorer, mine, reference, cuts, vectors)
                after = server_memory(self._settings)
        except (ReleaseError, InvalidScores, TritonUnavailable) as error:
            async with TritonScorer(triton) as alive:
                await alive.require_ready()  # a server that is away says nothing of the candidate
            self._say("served", False, str(error))
            return
        if before is None or after is None:
            self._notes.append(f"the memory of the server at {triton.url} cannot be seen from here")
            return
        taken = (after - before) / 2**20
        limit = self._limits.max_memory_mb
        self._say("memory", taken <= limit, f"{taken:.0f} MB more on the server; allowed {limit}", value=taken)

    async def _parity(self, scorer: TritonScorer, mine: Opened, cuts: Cuts, vectors: NDArray[np.float16]) -> None:
        """Compare what the server answers with what the same files answer here."""
        texts, inputs = self._sample(mine, cuts, vectors)
        found = np.array([np.frombuffer(raw, np.float16) for raw in await scorer.encode(mine.release, texts)])
        expected = _encode(mine, texts, self._settings.triton.encoder_batch)
        self._figures["parity_vectors"] = _apart(found, expected)
        self._figures["parity_scores"] = _apart(await scorer.score(mine.release, inputs), _head(mine, inputs))
        worst = max(self._figures["parity_vectors"], self._figures["parity_scores"])
        words = f"served and local answers are {worst:.2g} apart at the most; allowed {GOLDEN_TOLERANCE:g}"
        self._say("parity", worst <= GOLDEN_TOLERANCE, words, value=_number(worst))

    async def _speed(
        self,
        scorer: TritonScorer,
        mine: Opened,
        reference: Opened | None,
        cuts: Cuts,
        vectors: NDArray[np.float16],
    ) -> None:
        texts, inputs = self._sample(mine, cuts, vectors)
        texts = texts[: self._settings.triton.encoder_batch]
        times = {
            "encoder": await encoder_times(scorer, mine.release, texts, _ENCODER_CALLS) if texts else [],
            "head": await head_times(scorer, mine.release, inputs, _HEAD_CALLS),
        }
        theirs: dict[str, list[float]] = {}
        if reference is not None:
            nothing = np.zeros((len(vectors), reference.manifest.width), np.float16)  # as quick as any other
            _, inputs = self._sample(reference, cuts, nothing)
            async with TritonScorer(self._settings.triton) as serving:
                if await serving.is_ready(reference.release):
                    theirs["encoder"] = await encoder_times(serving, reference.release, texts, _ENCODER_CALLS)
                    theirs["head"] = await head_times(serving, reference.release, inputs, _HEAD_CALLS)
                else:
                    self._notes.append(f"release {self._against} is not loaded: its speed was not measured")
        for name, seconds in times.items():
            if not seconds:
                continue
            value = _p99_ms(seconds)
            before = _p99_ms(theirs[name]) if theirs.get(name) else None
            limit = max(self._limits.max_p99_ms, SLOWER * (before or 0))
            self._figures[f"p50_{name}_ms"] = 1000 * float(np.median(seconds))
            words = f"{value:.1f} ms; allowed {limit:.0f}"
            self._say(f"p99:{name}", value <= limit, words, value=value, reference=before)

    def _sample(self, mine: Opened, cuts: Cuts, vectors: NDArray[np.float16]) -> tuple[list[str], HeadInputs]:
        """Return texts and windows of held-out people; the golden ones where there are none."""
        rows = np.arange(min(_SAMPLE, len(cuts.targets)))
        if not len(rows):
            return mine.manifest.golden.texts, mine.manifest.golden.head_inputs()
        inputs = _inputs_for(mine.manifest, self._data, cuts.inputs.take(rows).trimmed())
        used = np.unique(inputs.text)
        texts = [self._data.texts.texts[one - 1] for one in used[used > 0][:_SAMPLE].tolist()]
        return texts or mine.manifest.golden.texts, inputs.with_vectors(vectors, np.arange(len(rows)))


_NO_GRAPH: Final = (Fail, InvalidArgument, InvalidGraph, InvalidProtobuf, RuntimeException)
_AS_IT_SHOULD: Final = {"signature": "by a trusted key", "files": "every checksum as the manifest says"}


def _opened(repository: ModelRepository, release: Release) -> Opened:
    manifest = release.manifest
    folders = ((ENCODER, manifest.encoder), (HEAD, manifest.release))
    return Opened(release, *(session(repository.folder(*one) / MODEL_FILE) for one in folders))


def _same_encoder(manifest: Manifest, reference: Opened) -> bool:
    """Tell whether both name the same files of the encoder they share."""
    theirs = reference.manifest.files
    return all(theirs.get(name, sha) == sha for name, sha in manifest.files.items() if name.startswith(f"{ENCODER}/"))


def _constants(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        yield from (one.t for one in node.attribute if one.HasField("t"))


def _is_finite(tensor: onnx.TensorProto) -> bool:
    array = onnx.numpy_helper.to_array(tensor)
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def _encode(opened: Opened, texts: Sequence[str], size: int) -> NDArray[np.float16]:
    """Return (texts, width), in the batches that a server is asked in."""
    vectors = np.zeros((len(texts), opened.manifest.width), np.float16)
    for batch in opened.release.texts.batches(texts, size=size):
        feed = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        vectors[batch.where] = opened.encoder.run(["vector"], feed)[0]
    return vectors


def _vectors(opened: Opened, data: Dataset, inputs: Compact) -> NDArray[np.float16]:
    """Return (texts + 1, width): a release's vectors of the texts in some windows; of other texts zeros."""
    used = np.unique(inputs.text)
    used = used[used > 0]
    table = vector_table(np.zeros((len(data.texts.texts), opened.manifest.width), np.float16))
    table[used] = _encode(opened, [data.texts.texts[one - 1] for one in used.tolist()], _AT_ONCE // 16)
    return table


def _inputs_for(manifest: Manifest, data: Dataset, inputs: Compact) -> Compact:
    """Return windows as a release reads them: its numbers for platforms, and no more events than it takes."""
    number = {platform: index for index, platform in enumerate(manifest.platforms, 1)}
    renumber = np.array([0, *(number.get(platform, 0) for platform in data.platforms)], np.int32)
    found = inputs._replace(platform=renumber[inputs.platform])
    return found.newest(manifest.max_events)


def _score(opened: Opened, data: Dataset, inputs: Compact, vectors: NDArray[np.float16]) -> Scores:
    """Return a release's scores (windows, labels) in the order of the data's labels. Raises `InvalidScores`."""
    manifest = opened.manifest
    column = {label: place for place, label in enumerate(manifest.labels)}
    wanted = [column[label] for label in data.labels]
    read = _inputs_for(manifest, data, inputs)
    scores = np.zeros((len(read.length), len(wanted)), np.float32)
    for start in range(0, len(scores), _AT_ONCE):
        rows = np.arange(start, min(start + _AT_ONCE, len(scores)))
        found = _head(opened, read.with_vectors(vectors, rows))
        if found.shape != (len(rows), len(manifest.labels)):
            raise InvalidScores(f"the head gives {found.shape[1:]} scores a person for {len(manifest.labels)} labels")
        scores[rows] = found[:, wanted]
    wrong = ~((scores >= 0) & (scores <= 1))  # NaN compares with nothing
    if wrong.any():
        raise InvalidScores(
            f"{int(wrong.sum())} scores of {int(wrong.any(axis=1).sum())} people are NaN or outside [0, 1]"
        )
    return scores


def _head(opened: Opened, inputs: HeadInputs) -> Scores:
    found: Scores = opened.head.run(["scores"], inputs._asdict())[0]
    return found


def _group(
    name: str, mine: NDArray[np.float64], other: NDArray[np.float64], confidence: float
) -> tuple[str, Interval, float, float, int]:
    found = bootstrap_mean(mine - other, confidence=confidence)
    return name, found, float(mine.mean()), float(other.mean()), len(mine)


def _figures(value: float, before: float, found: Interval, people: int) -> dict[str, float]:
    return {"value": value, "reference": before, "low": found.low, "high": found.high, "users": people}


def _apart(found: NDArray[Any], expected: Any) -> float:
    """Return the largest difference of two arrays; NaN where one holds NaN, infinity where they have other shapes."""
    wanted = np.asarray(expected, np.float32)
    if found.shape != wanted.shape:
        return float("inf")
    return float(np.abs(found.astype(np.float32) - wanted).max(initial=0))


def _number(value: float) -> float | None:
    """Return what JSON can hold."""
    return value if np.isfinite(value) else None


def _p99_ms(seconds: Sequence[float]) -> float:
    return 1000 * float(np.percentile(seconds, 99))


def render(verdict: Verdict) -> Table:
    """Return a table of all checks, what refused it in bold."""
    beside = f"release {verdict.against}" if verdict.against else "popularity"
    passed = "passed" if verdict.passed else "REFUSED by " + ", ".join(verdict.refused_by)
    table = Table(title=f"release {verdict.release} beside {beside}: {passed}", title_justify="left")
    for name in ("check", "candidate", beside, "people", "found"):
        table.add_column(name, justify="left" if name in {"check", "found"} else "right")
    for one in verdict.checks:
        cells = [f"{one.value:.4g}" if one.value is not None else "", "", "", ""]
        cells[1] = f"{one.reference:.4g}" if one.reference is not None else ""
        cells[2] = str(one.users) if one.users is not None else ""
        table.add_row(one.name, *cells[:3], one.words, style=None if one.passed else "bold red")
    for name, figure in verdict.figures.items():
        table.add_row(name, f"{figure:.4g}", "", "", "", style="dim")
    return table
