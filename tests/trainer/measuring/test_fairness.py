"""A release's report: each group's figures are what they say, the gap is found, and what is not known is said."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np
import pytest

from tests.trainer.conftest import OPTIONS, SPEC
from trainer.data.compact import Compact
from trainer.data.dataset import TOPICS, build_examples, data_span
from trainer.data.histories import gather
from trainer.measuring import fairness
from trainer.measuring.fairness import begun, measured
from trainer.measuring.groups import by_activity
from trainer.measuring.measures import Counts, bootstrap_mean, calibration_error, expected_threshold, ndcg
from xplat_stream.drift import shares
from xplat_stream.serving.fairness import FairnessReport, markdown
from xplat_stream.serving.releases import HEAD, MANIFEST_FILE, DataSpan, ModelRepository
from xplat_stream.serving.store import ReleaseStore
from xplat_stream.settings import ModelSettings, Settings
from xplat_stream.testing import START, make_release

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from trainer.data.dataset import Dataset
    from xplat_stream.event import Event

BEGUN = FairnessReport(release=2, made_at=START, parent=1, no_drift="nothing is known")


class People(NamedTuple):
    """Windows, scores and what was done next, row by row."""

    inputs: Compact
    scores: NDArray[np.float32]
    targets: NDArray[np.float32]

    @property
    def thick(self) -> NDArray[np.bool_]:
        """Who has a thick history."""
        return by_activity(self.inputs.length)["thick"]


@pytest.fixture
def people(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> People:
    """Return people half of whom are seen with three events, and scores that know what the others do next, no more."""
    monkeypatch.setattr(fairness, "FEWEST", 5)  # some sixty people are held out
    test, random = dataset.test, np.random.default_rng(3)
    few, many = np.arange(0, len(test), 2), np.arange(1, len(test), 2)
    inputs = Compact.join([test.inputs.newest(3).take(few), test.inputs.take(many)])
    targets = test.targets[np.concatenate([few, many])]
    noise = random.random(targets.shape, np.float32)
    known = np.arange(len(targets))[:, None] >= len(few)
    return People(inputs, np.where(known, 0.9 * targets + 0.05 * noise, noise), targets)


def report_of(dataset: Dataset, people: People) -> FairnessReport:
    """Return the report on these people."""
    return measured(BEGUN, dataset, *people)


def test_figures_are_those_of_the_group(dataset: Dataset, people: People) -> None:
    """NDCG of its people; F1 and calibration of its people, or of one label over everybody."""
    found = {(one.kind, one.name): one for one in report_of(dataset, people).groups}
    _, scores, targets = people
    counts = Counts.of(scores >= expected_threshold(scores), targets)
    rows = people.thick
    thick = found["activity", "thick"]
    assert thick.people == rows.sum()
    assert thick.ndcg10.value == pytest.approx(ndcg(scores, targets)[rows].mean(), abs=1e-4)
    assert thick.micro_f1.value == pytest.approx(Counts(*(one[rows] for one in counts)).micro_f1(), abs=1e-4)
    assert thick.ece.value == pytest.approx(calibration_error(scores[rows], targets[rows]), abs=1e-4)
    label = int(targets.sum(axis=0).argmax())
    one = found["label", dataset.taxonomy.labels[label].slug]
    assert one.people == targets[:, label].sum()
    assert one.micro_f1.value == pytest.approx(counts.label_f1()[label], abs=1e-4)
    column = (scores[:, label : label + 1], targets[:, label : label + 1])
    assert one.ece.value == pytest.approx(calibration_error(*column), abs=1e-4)
    assert {name for kind, name in found if kind == "platform"} == set(dataset.platforms)


def test_everybody_as_one_group_is_everybody(dataset: Dataset, people: People) -> None:
    """Where all people are in a group, its interval is the one that everybody's figure has anywhere else."""
    everybody = dataset._replace(platforms=("all",))
    inputs = people.inputs._replace(platform=np.ones_like(people.inputs.platform))
    report = report_of(everybody, people._replace(inputs=inputs))
    (group,) = (one for one in report.groups if one.kind == "platform")
    assert group.ndcg10 == pytest.approx(bootstrap_mean(ndcg(people.scores, people.targets)), abs=1e-4)


def test_the_largest_gap_is_said(dataset: Dataset, people: People) -> None:
    """A release that serves thick histories alone is found out, in a sentence, with what chance explains."""
    report = report_of(dataset, people)
    gap = next(one for one in report.gaps if one.kind == "activity")
    assert gap.best == "thick"
    assert gap.difference.low > 0
    assert "between thick and" in gap.words
    assert "chance does not explain it" in gap.words
    assert [one.difference.value for one in report.gaps] == sorted(one.difference.value for one in report.gaps)[::-1]
    page = markdown(report)
    assert f"- {gap.words}" in page
    assert f"| thick | {people.thick.sum()} |" in page
    assert msgspec.json.decode(msgspec.json.encode(report), type=FairnessReport) == report


def test_of_few_people_nothing_is_said(dataset: Dataset, people: People) -> None:
    """A group that is too small is counted and has no figures."""
    report = report_of(dataset, people)
    assert any(one.ndcg10 is None for one in report.groups if one.kind == "label")
    assert all(one.ndcg10 is None for one in report.groups if one.people < 5)


def test_a_span_says_what_its_events_were(log: Sequence[Event], dataset: Dataset) -> None:
    """The shares of what a release is trained on are counted as those of the live log are."""
    held = gather(TOPICS, log, dataset.taxonomy)
    assert data_span(held).shares == shares(log, dataset.taxonomy)
    assert dataset.span == data_span(held)
    few = data_span(held, [0, 1])
    assert set(few.shares.labels) <= {label.id for label in dataset.taxonomy.labels[:2]}


def placed(store: ReleaseStore, number: int, parent: int, span: DataSpan | None) -> None:
    """Put a manifest where a release's lies."""
    manifest = msgspec.structs.replace(make_release(number).manifest, parent=parent, data=span)
    store.repository.place(HEAD, number, {MANIFEST_FILE: msgspec.json.encode(manifest)}, in_sight=False)


def test_drift_is_from_the_parents_data_to_its_own(log: Sequence[Event], dataset: Dataset, tmp_path: Path) -> None:
    """With the labels that moved most by name; and why it is not known, where it is not."""
    store = ReleaseStore(ModelRepository(tmp_path / "model_repo"))
    on_shop = build_examples([one for one in log if one.platform == "shop"], dataset.taxonomy, SPEC, OPTIONS).span
    for number, parent, span in ((1, 0, dataset.span), (2, 1, on_shop), (3, 1, None), (4, 77, on_shop)):
        placed(store, number, parent, span)
    reports = {number: begun(Settings(), store, number, dataset) for number in (1, 2, 3, 4)}
    assert reports[2].drift.platforms > 0.25
    assert "another population since release 1" in reports[2].short()["drift"]
    assert {"social", "video"} <= {shift.name for shift in reports[2].drift.shifts}
    assert "no release was active" in reports[1].no_drift
    assert "nothing is known" in reports[3].no_drift
    assert "release 77 are gone" in reports[4].no_drift
    assert begun(Settings(), store, 5, dataset) is None
    assert "the gate has not scored anybody" in markdown(reports[2])


@pytest.mark.parametrize(("purpose", "words"), [("", "never published, quoted"), ("care", "for this purpose: care")])
def test_sensitive_labels_are_listed(purpose: str, words: str, dataset: Dataset, tmp_path: Path) -> None:
    """With what they are published for, or that they are not."""
    store = ReleaseStore(ModelRepository(tmp_path / "model_repo"))
    placed(store, 1, 0, dataset.span)
    first = msgspec.structs.replace(dataset.taxonomy.labels[0], sensitive=True)
    taxonomy = msgspec.structs.replace(dataset.taxonomy, labels=(first, *dataset.taxonomy.labels[1:]))
    settings = Settings(model=ModelSettings(sensitive_purpose=purpose))
    report = begun(settings, store, 1, dataset._replace(taxonomy=taxonomy))
    assert report.sensitive == (first.name,)
    assert words in report.short()["sensitive"]
    assert words in markdown(report)
