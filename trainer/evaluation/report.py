"""Findings as a folder that people and programs read: a page, the same as JSON, and the plots beside them."""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec

from trainer.evaluation import plots
from trainer.evaluation.ablation import NOTHING
from xplat_stream.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from trainer.evaluation.ablation import AblationTable
    from trainer.evaluation.findings import Findings
    from trainer.measuring.measures import Interval


def write_report(findings: Findings, folder: Path) -> Path:
    """Write report.md, report.json and the plots into a folder, made where it is missing. Returns report.md's path.

    Raises `DataError` where the folder cannot be written.
    """
    with _writing(folder):
        plots.draw_all(findings, folder)
        return _write(folder / "report.md", markdown(findings), findings)


def write_ablation(table: AblationTable, folder: Path) -> Path:
    """Write ablation.md and ablation.json into a folder, as `write_report`."""
    with _writing(folder):
        return _write(folder / "ablation.md", ablation_markdown(table), table)


def _write(page: Path, words: str, found: Findings | AblationTable) -> Path:
    page.with_suffix(".json").write_bytes(msgspec.json.format(msgspec.json.encode(found)) + b"\n")
    page.write_text(words, "utf-8")
    return page


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise DataError(
            f"the report cannot be written: {error.strerror}",
            where=str(folder),
            expected="a folder that can be written",
            fix="Name another --report.",
        ) from error


def markdown(findings: Findings) -> str:
    """Return the whole report as Markdown."""
    parts = (
        _head,
        _overall,
        _views,
        _groups,
        _lengths,
        _labels,
        _platforms,
        _matrix,
        _before_after,
        _timeliness,
        _calibration,
        _ranking,
        _checks,
        _excluded,
    )
    return "\n\n".join(text for part in parts if (text := part(findings))) + "\n"


def _head(findings: Findings) -> str:
    failures = findings.failures()
    verdict = "All checks passed." if not failures else "\n".join(f"- **{line}**" for line in failures)
    return f"""# Evaluation on {findings.name}

| | |
| --- | --- |
| foretold | the labels of the next {findings.label_events} labelled events on {_list(findings.target)} |
| from | what a person did before, on any platform; view A: {_list(findings.source)} |
| evaluated | {findings.users:,} users, each at one moment, by a model that never saw them |
| learned from | {findings.cuts:,} cuts of {findings.training_users:,} users, {findings.folds} folds by user |
| labels | {len(findings.labels)} |

Brackets hold 95 % of 2,000 resamplings of the users. A difference is paired: both sides are of the same users. It is
**bold** where its interval excludes zero.

{verdict}"""


def _overall(findings: Findings) -> str:
    rows = [
        [
            _strong(line.name, line.name == findings.main),
            *(_figure(value) for value in (line.ndcg10, line.map, line.recall5, line.micro_f1, line.macro_f1)),
            f"{line.ece.value:.4f}",
            _difference(line.ndcg10_gain) if line.name != findings.best_linear else "–",
            _difference(line.micro_f1_gain),
        ]
        for line in findings.methods
    ]
    head = ["method", "NDCG@10", "MAP", "Recall@5", "micro-F1", "macro-F1", "ECE", "NDCG@10 gain", "micro-F1 gain"]
    return f"""## All methods

{_table(head, rows)}

Gains are to the best linear baseline of this run: {findings.best_linear} by NDCG@10, and the best by micro-F1 for
micro-F1. F1 uses one threshold for all labels, chosen on the tuning users of each fold. ECE is after the calibration
step of each fold, the same choice for every method.

![Methods](methods.png)"""


def _views(findings: Findings) -> str:
    rows = [
        [
            line.view,
            ", ".join(line.platforms),
            _figure(line.ndcg10),
            _figure(line.micro_f1),
            _difference(line.over_popularity),
            _difference(line.over_popularity_in_time),
            f"{_difference(line.over_best_linear)} to {line.best_linear}",
        ]
        for line in findings.views
    ]
    head = ["view", "platforms shown", "NDCG@10", "micro-F1", "over popularity", "over popularity in time", "gain"]
    return f"""## What each side says

{_table(head, rows)}

{findings.main}, the same fitted model, with the other platforms of the window hidden. The gain is to the linear
baseline that is best under the same view."""


def _groups(findings: Findings) -> str:
    return f"""## Warm, cold and hard-cold users

{_group_table("group", findings)}

Cold users have fewer than 3 events on the target's platforms before the cut, the next line's none at all. Hard-cold
users have none, and nobody trained on has touched the items they go on to touch.{_no_hard_cold(findings)}"""


def _no_hard_cold(findings: Findings) -> str:
    if findings.groups[-1].users:
        return ""
    return " There are none such here: of every user's\nnext items one at the least was touched by others."


def _lengths(findings: Findings) -> str:
    return f"""## Quality against the length of the history

{_group_table("events in the window", findings, lengths=True)}

![Quality against history length](history.png)"""


def _group_table(title: str, findings: Findings, *, lengths: bool = False) -> str:
    rows = [
        [
            line.group,
            f"{line.users:,}",
            _figure(line.ndcg10),
            _figure(line.micro_f1),
            f"{line.popularity.value:.4f}" if line.users else "–",
            f"{line.best_linear.value:.4f}" if line.users else "–",
            _difference(line.gain),
        ]
        for line in (findings.lengths if lengths else findings.groups)
    ]
    return _table([title, "users", "NDCG@10", "micro-F1", "popularity", "best linear", "gain"], rows)


def _labels(findings: Findings) -> str:
    rows = [
        [
            line.label,
            str(line.users),
            f"{line.frequency:.3f}",
            f"{line.score:.3f}",
            f"{line.f1:.3f}",
            f"{line.best_linear_f1:.3f}",
            _difference(line.gain, digits=3),
        ]
        for line in findings.labels
    ]
    head = ["label", "users", "frequency", "mean score", "F1", f"F1 {findings.best_linear}", "gain"]
    return f"## Every label\n\n{_table(head, rows)}\n\n![Labels](labels.png)"


def _platforms(findings: Findings) -> str:
    rows = []
    for line in findings.platforms:
        harm, muted = "–", "–"
        if line.harm is not None:
            harm = f"{_difference(line.harm.hiding)} ({line.harm.users:,} users)"
            muted = f"**muted** in {line.muted_folds} of {findings.folds} folds" if line.muted_folds else "no"
        rows.append(
            [
                line.platform,
                line.side,
                f"{line.events:,}",
                f"{line.users:,}",
                _difference(line.alone),
                _difference(line.hiding),
                harm,
                muted,
            ]
        )
    head = ["platform", "side", "events", "users", "alone over popularity", "hidden", "hidden, held-out users", "guard"]
    return f"""## Every platform, and the guard

{_table(head, rows)}

Of the evaluated users with events of the platform; NDCG@10. *Hidden*: the change when it is left out, below zero where
it is useful. The guard asks the models of all folds about users they were not fitted on, at all their cuts. Where
hiding a source helps with a 99.9 % interval above zero it is muted for this target: the model is fitted again and
scores without it. So is a source without which a regression on words learns more from the training users, beyond
chance: a model cannot forget what it was fitted with. The users tested in a fold have no say in what is muted
there.{_planted(findings)}"""


def _planted(findings: Findings) -> str:
    found = findings.planted
    if found is None:
        return ""
    rows = [
        ["trained without it", f"{found.without:.4f}", "–"],
        ["trained with it, guard off", f"{found.unguarded:.4f}", _difference(found.harm)],
        ["trained with it, guard on", f"{found.guarded:.4f}", _difference(found.left)],
    ]
    return f"""

### A planted harmful platform

A platform was added on which the same users touch items drawn at random, as often as they do anything else. On
{found.found.users:,} held-out users hiding it changes NDCG@10 by {_difference(found.found.hiding)}; it was muted in
{found.muted_folds} of {findings.folds} folds.

{_table(["", "NDCG@10", "to training without it"], rows)}

The guarded figure is {found.guarded / found.without:.2%} of training without it; 99 % are asked for."""


def _matrix(findings: Findings) -> str:
    cells = [
        [
            cell.source,
            cell.target,
            f"{cell.users:,}",
            _difference(cell.alone),
            _difference(cell.added),
        ]
        for cell in findings.matrix
    ]
    words = "".join(f"\n- {name}: no column, {why}" for name, why in findings.no_matrix.items())
    table = _table(["source", "target", "users", "source alone over popularity", "added to the target alone"], cells)
    picture = "\n\n![Transfer matrix](matrix.png)" if findings.matrix else ""
    return f"""## From source to target

{table if cells else "No platform has labels enough to be a target by itself."}

NDCG@10 of {findings.main}, fitted once a target on all platforms, on the evaluated users with events of the source.
{words}{picture}"""


def _before_after(findings: Findings) -> str:
    if not findings.before_after:
        return ""
    rows = [
        [line.group, f"{line.users:,}", _figure(line.before), _figure(line.after), _difference(line.gain)]
        for line in findings.before_after
    ]
    return f"""## Before and after transfer

{_table(["users", "", "target only", "all platforms", "gain"], rows)}

NDCG@10 of {findings.main} trained and scored on {_list(findings.target)} alone, and on every platform."""


def _timeliness(findings: Findings) -> str:
    rows = [
        [
            line.profile,
            _figure(line.ndcg10),
            _difference(line.difference) if line.changed else "–",
            f"{line.changed:,}",
            _difference(line.changed_difference) if line.changed else "–",
        ]
        for line in findings.timeliness
    ]
    note = {
        "day": "This log tells days apart and no more, so real-time, hourly and daily profiles know the same: it "
        "cannot say what real time is worth.",
        "hour": "This log tells hours apart and no more, so hourly profiles are as good as real time here.",
        "finer": "Hours and days are UTC; a stale profile knows what happened before the hour or day of the cut began.",
    }[findings.resolution]
    head = ["profile", "NDCG@10", "difference", "users it changes", "difference for these"]
    return f"## Real-time, hourly and daily profiles\n\n{_table(head, rows)}\n\n{note}"


def _calibration(findings: Findings) -> str:
    found = findings.calibration
    rows = [[step, _figure(value)] for step, value in found.ece.items()]
    rows.append([f"**as taken**: {', '.join(found.taken)}", _figure(found.chosen)])
    return f"""## Calibration

{_table(["step in every fold", "expected calibration error"], rows)}

Ten bins of equal width over all labels. The step of a fold is the one with the lowest log loss on tuning users that it
was not fitted on. Every step keeps the order of a user's labels, so NDCG@10 is the same before and after.

![Calibration](calibration.png)"""


def _ranking(findings: Findings) -> str:
    ranking = findings.ranking
    if ranking is None:
        return ""
    rows = [
        [model, platform, kind, _figure(figures.hit_rate), _figure(figures.ndcg), _figure(figures.reciprocal_rank)]
        for model, platform, kind, figures in ranking.rows()
    ]
    return f"""## Item ranking

The last event of each user's mixed sequence, ranked among {ranking.negatives} items of its platform that the user never
touched ("sampled") or among all of them ("full"); {", ".join(f"{n} users on {p}" for p, n in ranking.users.items())}.

{_table(["model", "platform", "among", "HR@10", "NDCG@10", "MRR"], rows)}"""


def ablation_markdown(ablation: AblationTable) -> str:
    """Return what each option brings as Markdown."""
    rows = [
        [
            line.name,
            f"{line.ndcg10:.4f}",
            _difference(line.difference),
            _difference(line.micro_f1_difference),
            line.verdict if line.verdict != NOTHING else f"*{NOTHING}*",
        ]
        for line in ablation.lines
    ]
    head = ["variant", "NDCG@10", "to the base", "micro-F1 to the base", ""]
    base = [f"**{ablation.base}**", f"{ablation.ndcg10.value:.4f}", "–", "–", "the base"]
    return f"""# What each option brings

{_table(head, [base, *rows])}

Of the {ablation.users:,} users of the first {ablation.folds} folds, the whole window shown, no source muted. Each line
differs from the base, {ablation.base} (micro-F1 {_figure(ablation.micro_f1)}), in what its name says. Brackets hold
95 % of 2,000 resamplings of the users; a difference is paired, and **bold** where its interval excludes zero.
"""


def _checks(findings: Findings) -> str:
    rows = [[check.name, "pass" if check.passed else "**FAIL**", check.words] for check in findings.leaks]
    if findings.planted is not None:
        share = f"{findings.planted.guarded / findings.planted.without:.2%} of training without it"
        rows.append(["planted platform held off", "pass" if findings.planted.passed else "**FAIL**", share])
    return f"""## Checks

{_table(["check", "", "found"], rows)}

Differences of NDCG@10 fail where a 99.9 % interval lies above zero, counts where they are not 0."""


def _excluded(findings: Findings) -> str:
    rows = [[reason, f"{count:,}"] for reason, count in findings.excluded.items()]
    left = _table(["left out, or to be known", "how many"], rows) if rows else "Nothing was left out."
    seconds = _table(["stage", "s"], [[stage, f"{value:.1f}"] for stage, value in findings.seconds.items()])
    return f"## What was left out, and time taken\n\n{left}\n\n{seconds}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [list(head), ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _figure(value: Interval) -> str:
    return "–" if math.isnan(value.low) else f"{value.value:.4f} [{value.low:.3f}, {value.high:.3f}]"


def _difference(value: Interval, digits: int = 4) -> str:
    if math.isnan(value.low):
        return "–"
    words = f"{value.value:+.{digits}f} [{value.low:+.3f}, {value.high:+.3f}]"
    return _strong(words, value.excludes_zero)


def _strong(words: str, strong: bool) -> str:
    return f"**{words}**" if strong else words


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
