"""What is kept of a release beside its journal: how far people have moved, and how it does by whom.

    model_repo.releases/<number>/report.json     exactly `FairnessReport`
    model_repo.releases/<number>/report.md       the same for people

The trainer measures (`trainer.measuring.fairness`); this is what it found, and how that reads. Pure.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from xplat_stream.drift import ANOTHER, MOVING, Drift, Shares, drift

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from xplat_stream.serving.releases import Manifest
    from xplat_stream.taxonomy import Taxonomy

KINDS: Final = ("platform", "activity", "label")
"""How people are told apart."""


class Figure(NamedTuple):
    """A figure with the range that holds it in 95 of 100 resamplings of the people; no range where there is none."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        ends = "" if self.low is None else f" [{self.low:.3f}, {self.high:.3f}]"
        return f"{self.value:.3f}{ends}"


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """Some of the held-out people, and how well the release does by them. Figures are None for too few people."""

    kind: str
    """`platform`: people seen there; `activity`: by events in the window; `label`: people who touched it next."""
    name: str
    people: int
    ndcg10: Figure | None = None
    micro_f1: Figure | None = None
    """Of a label: of that label alone, over everybody."""
    ece: Figure | None = None
    """Expected calibration error, ten bins. Of a label: of that label alone, over everybody."""


class Gap(msgspec.Struct, frozen=True, kw_only=True):
    """The two groups of a kind that are furthest apart in NDCG@10."""

    kind: str
    best: str
    worst: str
    difference: Figure

    @property
    def words(self) -> str:
        """Say it in a sentence."""
        low = self.difference.low
        chance = "chance may explain it" if low is None or low <= 0 else "chance does not explain it"
        return (
            f"By {self.kind}, the largest gap is between {self.best} and {self.worst}: NDCG@10 differs by "
            f"{self.difference}; {chance}."
        )


class FairnessReport(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a release's data and of how evenly it serves."""

    release: int
    made_at: datetime
    parent: int
    """The release it is compared with for drift: the one that was active when it was trained; 0: none was."""
    drift: Drift | None = None
    """From the data of its parent to its own; None: see `no_drift`."""
    no_drift: str = ""
    people: int = 0
    """Held-out people measured on; 0: see `no_groups`."""
    groups: tuple[Group, ...] = ()
    gaps: tuple[Gap, ...] = ()
    """One a kind with two groups or more, the largest difference first."""
    no_groups: str = "the gate has not scored anybody with it"
    sensitive: tuple[str, ...] = ()
    """Names of the labels that the taxonomy marks sensitive."""
    purpose: str = ""
    """What they are published for; empty: they are not."""

    def short(self) -> dict[str, str]:
        """Return the lines that `xplat model show` prints."""
        gaps = {f"gap by {gap.kind}": gap.words for gap in self.gaps}
        return {
            "drift": f"{psi_words(self.drift)} since release {self.parent}" if self.drift else self.no_drift,
            **(gaps or {"gap": self.no_groups or "there are no two groups to compare"}),
            "sensitive": sensitive_words(self.sensitive, self.purpose),
        }


def since(then: Manifest, now: Shares, taxonomy: Taxonomy) -> Drift | str:
    """Return how far people have moved since a release's data, or why that is not known.

    `taxonomy`: whose labels `now` counts; where they are not the release's, platforms alone are compared.
    """
    before = then.data.shares if then.data else Shares()
    for shares, what in ((before, f"the data of release {then.release}"), (now, "the data")):
        if not shares.platforms:
            return f"nothing is known of what people did in {what}"
    if (then.taxonomy.name, then.taxonomy.version) != (taxonomy.name, taxonomy.version):
        before, now = Shares({}, before.platforms), Shares({}, now.platforms)
    return drift(before, now, {label.id: label.slug for label in taxonomy.labels})


def sensitive_words(labels: Sequence[str], purpose: str) -> str:
    """Say which labels are sensitive and what that means here."""
    if not labels:
        return "the taxonomy marks no label sensitive"
    named = ", ".join(labels)
    if purpose:
        return f"{named}: published for this purpose: {purpose}"
    return f"{named}: no purpose is set, so they are never published, quoted from or explained"


def drift_lines(found: Drift) -> Iterable[str]:
    """Yield what a drift says, as Markdown."""
    yield f"{psi_words(found)} (below {MOVING:g} nothing moved, from {ANOTHER:g} on it is another population)."
    yield ""
    yield from _table(
        ("most moved", "share then", "share now"),
        [(one.name, f"{one.then:.2%}", f"{one.now:.2%}") for one in found.shifts],
    )


def markdown(report: FairnessReport) -> str:
    """Return the report for people."""
    lines = [f"# Drift and fairness of release {report.release}", "", f"Made {report.made_at:%Y-%m-%d %H:%M}Z.", ""]
    lines += [f"## Drift since release {report.parent}" if report.parent else "## Drift", ""]
    lines += drift_lines(report.drift) if report.drift else [f"Not known: {report.no_drift}."]
    lines += ["", "## Quality", ""]
    if report.groups:
        lines += [f"Of {report.people} held-out people, each at the last cut; ranges hold 95 of 100 resamplings.", ""]
        lines += [f"- {gap.words}" for gap in report.gaps]
        head = ("people", "NDCG@10", "micro-F1", "ECE")
        for kind in KINDS:
            lines += ["", *_table((kind, *head), [_row(one) for one in report.groups if one.kind == kind])]
    else:
        lines += [f"Not known: {report.no_groups}."]
    lines += ["", "## Sensitive labels", "", f"{sensitive_words(report.sensitive, report.purpose)}.", ""]
    return "\n".join(lines)


def _row(group: Group) -> tuple[str, ...]:
    figures = (group.ndcg10, group.micro_f1, group.ece)
    return group.name, str(group.people), *("too few" if one is None else str(one) for one in figures)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [list(head), ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def psi_words(found: Drift) -> str:
    """Say what a drift comes to, in a line."""
    return f"PSI {found.labels:.3f} over labels, {found.platforms:.3f} over platforms: {found.words}"
