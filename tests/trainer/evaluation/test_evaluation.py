"""An evaluation finds what was put into a log, and makes no figure of what cannot carry one."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from tests.trainer.people import FOLDS, LABELS, START_MS, TASK, People, make_people, study, subject, with_planted
from trainer import evaluate_command
from trainer.data.exclusions import FUTURE, LONG_TEXTS, REPEATED
from trainer.data.study import EVERYTHING
from trainer.evaluation.ablation import Ablation
from trainer.evaluation.evaluation import evaluate
from trainer.evaluation.ranking import OURS, Figures, Ranking
from trainer.evaluation.report import markdown, write_report
from trainer.evaluation.split import SplitMethod
from trainer.evaluation.subject import read_planted, read_subject
from trainer.evaluation.transfer import try_guarded
from trainer.measuring.baselines import LINEAR, LINEAR_COUNTS, LINEAR_TEXT, POPULARITY, Linear, Popularity, Scorer
from trainer.measuring.groups import COLD, NOTHING_YET, WARM, by_knowledge, by_length
from trainer.measuring.measures import Counts, Interval, ndcg
from xplat_stream.errors import DataError, InvalidScores, XplatError
from xplat_stream.event import Event, Millis, UserId

if TYPE_CHECKING:
    from pathlib import Path

    from trainer.evaluation.findings import Findings

NOW = Millis(START_MS + 100 * 86_400_000)


@pytest.fixture(scope="module")
def findings() -> Findings:
    """A whole evaluation: linear model beside its halves, a planted platform."""
    others = (Linear(LINEAR_TEXT, counts=False), Linear(LINEAR_COUNTS, words=False))
    return evaluate(subject(), TASK, Linear(), others, folds=FOLDS, planted=with_planted, rank=a_ranking)


def a_ranking() -> Ranking:
    """A measurement of one model on one platform."""
    figures = {OURS: {"shop": Figures(*(Interval(value, value - 0.1, value + 0.1) for value in (0.5, 0.25, 0.2)))}}
    return Ranking("rec", 9, 0, {"shop": 20}, {"shop": 40}, figures, figures, {}, {}, {})


def test_it_finds_what_was_put_into_the_log(findings: Findings) -> None:
    """Videos tell interests, so each side alone beats popularity, together they beat each; all checks pass."""
    views = {line.view: line for line in findings.views}
    assert all(line.over_popularity.low > 0 for line in views.values())
    assert views["A+B"].ndcg10.value > max(views["A only"].ndcg10.value, views["B only"].ndcg10.value)
    assert findings.failures() == []
    assert findings.before_after[0].gain.low > 0
    sides = {line.platform: line.side for line in findings.platforms}
    assert sides == {"radio": "other", "shop": "target", "video": "source"}


def test_its_figures_are_those_of_the_measures(findings: Findings) -> None:
    """The line of a method is what the measures say of the method tried by itself."""
    trial = try_guarded(study(), Linear(), {EVERYTHING: lambda cuts: cuts}, folds=range(FOLDS)).trials[EVERYTHING]
    line = findings.method(LINEAR)
    assert line.ndcg10.value == pytest.approx(ndcg(trial.scores, study().test.targets).mean())
    assert line.micro_f1.value == pytest.approx(Counts.of(trial.chosen(), study().test.targets).micro_f1())
    assert {POPULARITY, LINEAR_TEXT, LINEAR_COUNTS} < {one.name for one in findings.methods}
    assert findings.method(findings.best_linear).ndcg10_gain.value == 0


def test_a_stale_profile_lacks_what_happened_today(findings: Findings) -> None:
    """Times on minutes: hourly profiles miss little, daily ones more; real time misses nothing."""
    changed = [line.changed for line in findings.timeliness]
    assert findings.resolution == "finer"
    assert changed[0] == 0
    assert 0 <= changed[1] < changed[2]


def test_days_cannot_tell_real_time_from_daily() -> None:
    """Where every event is dated at midnight the report says that it cannot say."""
    days = tuple(event_at(event, event.occurred_at - event.occurred_at % 86_400_000) for event in make_people())
    found = evaluate(subject(days), TASK, Popularity2(), (), folds=FOLDS)
    assert found.resolution == "day"
    assert "tells days apart and no more" in markdown(found)


def test_the_matrix_has_a_column_for_every_platform_with_labels(findings: Findings) -> None:
    """Only the shop's items carry labels: it is foretold from the others, and they say why they are not."""
    assert {(cell.source, cell.target) for cell in findings.matrix} == {("video", "shop"), ("radio", "shop")}
    assert set(findings.no_matrix) == {"video", "radio"}


def test_the_report_is_whole(findings: Findings, tmp_path: Path) -> None:
    """Markdown with every section and picture, JSON that reads back as the findings."""
    page = write_report(findings, tmp_path / "new" / "folder").read_text("utf-8")
    pictures = {path.name for path in (tmp_path / "new" / "folder").glob("*.png")}
    assert pictures == {"methods.png", "history.png", "labels.png", "calibration.png", "matrix.png"}
    assert all(f"]({name})" in page for name in pictures)
    raw = json.loads((tmp_path / "new" / "folder" / "report.json").read_bytes())
    assert raw["methods"][0]["ndcg10"][0] == pytest.approx(findings.method(LINEAR).ndcg10.value)
    for words in ("A planted harmful platform", "## Item ranking", "hard-cold"):
        assert words in page
    assert f"| **{LINEAR}** |" in page


def test_a_report_that_cannot_be_written_is_one_line(findings: Findings, tmp_path: Path) -> None:
    """A file where the folder should be is the user's to correct."""
    (tmp_path / "taken").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write_report(findings, tmp_path / "taken")


def test_the_summary_has_what_scripts_ask_for(findings: Findings) -> None:
    """The named figures are there, flat; a ranking that was not measured is null."""
    found = findings.summary(("shop", "food"))
    assert {"ndcg10", "micro_f1", "best_linear_ndcg10", "gain_low", "gain_high", "ece", "a_only_gain_low"} < set(found)
    assert found["a_only_gain_in_time_low"] <= found["a_only_gain_in_time"] <= found["a_only_gain_in_time_high"]
    assert found["shop_ndcg10"] == 0.25
    assert found["food_ndcg10"] is None
    assert found["planted_share"] >= 0.99
    assert json.loads(msgspec.json.encode(found)) == found


def test_failures_are_named(findings: Findings) -> None:
    """A failed check and a guard that did not hold are one line each."""
    broken = msgspec.structs.replace(
        findings,
        leaks=[findings.leaks[0]._replace(passed=False)],
        planted=msgspec.structs.replace(findings.planted, guarded=0.1),
    )
    first, second = broken.failures()
    assert "shuffled histories" in first
    assert "guard failed" in second
    assert "FAIL" in markdown(broken)


def test_without_a_target_everything_is_foretold() -> None:
    """No target: one view, no source to mute, no before and after; the whole histories are shuffled."""
    found = evaluate(subject(), replace(TASK, target=(), source=()), Linear(), (), folds=FOLDS)
    assert [line.view for line in found.views] == [EVERYTHING]
    assert found.before_after == []
    assert found.failures() == []
    assert "a_only_gain" not in found.summary()
    assert {cell.target for cell in found.matrix} == {"shop"}


def test_groups_part_the_users() -> None:
    """Warm and cold are everybody; cold with nothing yet are cold; the bins of history lengths hold everybody."""
    found = by_knowledge(study())
    everybody = list(range(len(study().test)))
    assert sorted([*found[WARM], *found[COLD]]) == everybody
    assert set(found[NOTHING_YET]) <= set(found[COLD])
    assert len(found[WARM])
    assert len(found[COLD])
    assert sorted(np.concatenate(list(by_length(study()).values()))) == everybody


# What a log may have wrong with it.


class Popularity2(Popularity):
    """Popularity under another name, to stand as a main method."""

    name = "plain"


class Broken:
    """A method whose scores are wrong."""

    name = "broken"

    def __init__(self, value: float, labels: int = len(LABELS)) -> None:
        self._value, self._labels = value, labels

    def fit(self, *_: object) -> Scorer:
        return Scorer(lambda cuts: np.full((len(cuts), self._labels), self._value, np.float32))


@pytest.mark.parametrize(
    ("method", "words"),
    [
        pytest.param(Broken(np.nan), "NaN or outside", id="NaN"),
        pytest.param(Broken(1.5), "NaN or outside", id="above one"),
        pytest.param(Broken(0.5, 2), "of shape", id="another shape"),
    ],
)
def test_scores_that_are_none_stop_the_run(method: Broken, words: str) -> None:
    """No figure is made of NaN, of a score past one, or of too few scores: one line says whose they are."""
    with pytest.raises(InvalidScores, match=f"broken gave .*{words}"):
        evaluate(subject(), TASK, method, (), folds=FOLDS)


def event_at(event: Event, at: int) -> Event:
    return msgspec.structs.replace(event, occurred_at=Millis(at))


def with_label(event: Event, label: str) -> Event:
    item = msgspec.structs.replace(event.object, iab=(label,)) if event.object.iab else event.object
    return msgspec.structs.replace(event, object=item)


@pytest.mark.parametrize(
    ("events", "words"),
    [
        pytest.param((), "no event of the platform", id="empty"),
        pytest.param(tuple(with_label(event, "pets") for event in make_people()), "1 labels", id="one class"),
        pytest.param(
            tuple(event for event in make_people() if event.user_id == "u001"), "too little to evaluate", id="one user"
        ),
        pytest.param(make_people(users=12), "too little|to tune on", id="few users"),
    ],
)
def test_a_log_that_cannot_be_evaluated_on_says_so(events: tuple[Event, ...], words: str) -> None:
    """Nothing in it, one label, one user: one error that says what there is."""
    with pytest.raises(DataError, match=words):
        evaluate(subject(events), replace(TASK, min_label_users=1), Popularity2(), (), folds=FOLDS)


def test_an_empty_log_without_a_target_says_so() -> None:
    """The same where no platform is named."""
    with pytest.raises(DataError, match="too little to evaluate"):
        evaluate(subject(()), replace(TASK, target=(), source=()), Popularity2(), ())


def test_a_log_is_evaluated_where_it_lies(tmp_path: Path) -> None:
    """Read through the cache, with and without the planted platform, it gives the study of the events in memory."""
    spec = subject().spec
    found = read_subject(People(), tmp_path, spec.per_platform, spec.horizon)
    for stored, held in ((found, subject()), (read_planted(found, People(), tmp_path), with_planted())):
        one, other = stored.study(TASK, FOLDS), held.study(TASK, FOLDS)
        assert one.platforms == other.platforms
        assert stored.labelled_platforms() == held.labelled_platforms()
        assert all(map(np.array_equal, one.train.inputs, other.train.inputs))
        assert np.array_equal(one.train.targets, other.train.targets)


def test_two_methods_of_one_name_are_refused() -> None:
    """Lines are looked up by name."""
    with pytest.raises(ValueError, match="share a name"):
        evaluate(subject(), TASK, Linear(), (Linear(),), folds=FOLDS)


# The command.


def write_folder(folder: Path) -> Path:
    """Write the people as a recorded folder, with a title of 1 MB, a date in the future and a line that repeats."""
    lines, items = ["user\tplatform\titem\tts\taction"], {}
    for event in make_people():
        items[event.platform, event.object.id] = event.object
        lines.append(
            f"{event.user_id}\t{event.platform}\t{event.object.id}\t{event.occurred_at / 1000:.0f}\t{event.action}"
        )
    lines += [lines[-1], "u001\tshop\thuge\t253000000000\tview", "u002\tvideo\thuge\t1700000000\tview"]
    rows = ["item\tplatform\ttitle\tcategories", "huge\tvideo\t" + "long " * 200_000 + "\t"]
    for (platform, item), thing in items.items():
        path = f"all|things|{thing.iab[0]}" if thing.iab else ""
        rows.append(f"{item}\t{platform}\t{thing.title}\t{path}")
    for name, text in (("events", lines), ("items", rows)):
        with gzip.open(folder / f"{name}.tsv.gz", "wt", encoding="utf-8") as file:
            file.write("\n".join(text) + "\n")
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Run `xplat evaluate` with a quick method, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluate_command, "_main", lambda *_: Linear("quick", words=False))
    monkeypatch.setattr(evaluate_command, "_others", lambda *_: (Popularity2(),))
    app = typer.Typer()
    app.command()(evaluate_command.evaluate)
    return lambda *words: CliRunner().invoke(app, [str(word) for word in (*words, "--jobs", 1)])


def test_the_command_evaluates_a_folder(run, tmp_path: Path) -> None:
    """Its last line is one JSON object; the report counts what was left out of the folder."""
    folder = write_folder(tmp_path)
    options = ("--target", "shop", "--source", "video", "--folds", FOLDS, "--min-label-users", 10)
    result = run("--dataset", folder, *options, "--report", tmp_path / "report", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["ndcg10"] > 0.5
    excluded = json.loads((tmp_path / "report" / "report.json").read_bytes())["excluded"]
    assert (excluded[FUTURE], excluded[REPEATED], excluded[LONG_TEXTS]) == (1, 1, 1)


def test_simulated_people_have_an_oracle(run) -> None:
    """Its last line says what of the oracle's NDCG the main method reaches, and each baseline."""
    result = run("--simulated", 100, "--events-each", 30, "--folds", 2, "--min-label-users", 3, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["main"] == "quick"
    assert found["oracle_share"] == pytest.approx(found["ndcg10"] / found["oracle_ndcg10"], abs=1e-3)
    assert set(found["baselines"]) == {"plain"}
    assert 0 < found["baselines"]["plain"]["oracle_share"] < found["oracle_share"] < 1


def test_lines_are_measured_and_nothing_else(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line is told when it is done; a page and one JSON object hold the table, and no evaluation is made."""
    folder = write_folder(tmp_path)
    ablation = Ablation(Linear(), [Linear("no words | fewer", words=False)], folds=range(1))
    monkeypatch.setattr("trainer.evaluation.variants.ablation_of", lambda *_, **__: ablation)
    options = ("--target", "shop", "--folds", FOLDS, "--min-label-users", 10, "--ablate", "all", "--ablate-folds", 1)
    result = run("--dataset", folder, *options, "--report", tmp_path / "report", "--json")

    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout.splitlines()[-1])
    (line,) = found["lines"]
    assert (found["base"], found["folds"], line["name"]) == (LINEAR, 1, "no words | fewer")
    assert line["difference"][1] <= line["difference"][0] <= line["difference"][2]
    assert f"no words | fewer: NDCG@10 {line['difference'][0]:+.4f}" in result.stderr
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"ablation.md", "ablation.json"}
    page = (tmp_path / "report" / "ablation.md").read_text("utf-8")
    assert "| no words \\| fewer |" in page
    assert f"Of the {found['users']} users of the first 1 folds" in page
    assert json.loads((tmp_path / "report" / "ablation.json").read_bytes()) == found


def test_a_line_nobody_knows_costs_nothing(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told before anything is read: there is no recording here."""
    monkeypatch.setattr(evaluate_command, "_main", lambda *_: SplitMethod())
    result = run("--dataset", tmp_path / "none", "--ablate", "one member,two members")
    assert isinstance(result.exception, DataError)
    assert "two members" in str(result.exception)


def test_a_failed_check_ends_the_command_with_an_error(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures are printed all the same, and the error names the check."""
    folder = write_folder(tmp_path)
    monkeypatch.setattr("trainer.evaluation.findings.Findings.failures", lambda _: ["leak check failed: of a test"])
    options = ("--target", "shop", "--folds", FOLDS, "--min-label-users", 10)
    result = run("--dataset", folder, *options, "--json")
    assert isinstance(result.exception, XplatError)
    assert str(result.exception) == "leak check failed: of a test"
    assert json.loads(result.stdout.splitlines()[-1])["checks_passed"] is False


def test_one_source_is_named(run, tmp_path: Path) -> None:
    """Neither a folder nor the topics nor people made up, or two of them, is a mistake that costs nothing."""
    assert run().exit_code == 2
    assert run("--from-topic", "--simulated", 9).exit_code == 2
    assert run("--simulated", 9, "--labels", "tags").exit_code == 2
    assert run("--simulated", 9, "--plant-harmful").exit_code == 2
    assert run("--from-topic", "--folds", 3, "--ablate-folds", 4).exit_code == 2
    assert run("--from-topic", "--ablate", "all", "--plant-harmful").exit_code == 2
    assert run("--dataset", tmp_path, "--from-topic").exit_code == 2
    assert run("--from-topic", "--labels", "tags").exit_code == 2


def test_user_ids_are_strings() -> None:
    """Whatever a platform calls its people."""
    names = {event.user_id: UserId(f"Ünal {event.user_id} 🙂") for event in make_people()}
    renamed = tuple(msgspec.structs.replace(event, user_id=names[event.user_id]) for event in make_people())
    found = evaluate(subject(renamed), TASK, Popularity2(), (), folds=FOLDS)
    assert found.users == len(study().test)
