"""`xplat model`: the releases, their states, and passing from one to another. Parsing and printing only.

`xplat model check` needs torch's company and comes with the trainer.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from xplat_stream.drift import RECENT, shares
from xplat_stream.errors import ReleaseError
from xplat_stream.kafka.consumer import active_announcement
from xplat_stream.kafka.log import recent_events
from xplat_stream.kafka.reports import read_release_report
from xplat_stream.kafka.topics import MODELS
from xplat_stream.settings import load_settings
from xplat_stream.taxonomy import load_taxonomy

if TYPE_CHECKING:
    from xplat_stream.drift import Drift
    from xplat_stream.kafka.codec import Announcement
    from xplat_stream.serving.promote import Promoted
    from xplat_stream.serving.store import ReleaseStore, Shown
    from xplat_stream.settings import Settings

model_app = typer.Typer(help="The model releases: candidate, gate, promotion, roll-back.", no_args_is_help=True)
console = Console()

_SHIFTS = 5
"""Labels whose mean score has moved furthest, which `diff` names."""

_NO_REPORT = "nobody has made a report: xplat model check {} does"

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Number = Annotated[int, typer.Argument(min=1, help="Number of the release.")]


@model_app.command("list")
def model_list(json: Json = False) -> None:
    """List every release with its state, and what the gate said of it."""
    from xplat_stream.serving.promote import known_store

    found = known_store(load_settings())[0].listed()
    if json:
        _print_json(found)
        return
    table = Table("release", "state", "since", "encoder", "gate", "NDCG@10", "because")
    for one in found:
        said = {None: "not asked", True: "passed", False: "refused"}[one.passed]
        since = f"{one.since:%Y-%m-%d %H:%M}Z" if one.since else ""
        quality = f"{one.metrics['ndcg_at_10']:.3f}" if "ndcg_at_10" in one.metrics else ""
        table.add_row(str(one.release), one.state, since, str(one.encoder or "gone"), said, quality, one.reason)
    console.print(table)


@model_app.command("show")
def model_show(
    number: Number,
    report: Annotated[bool, typer.Option("--report", help="Its drift and fairness in full, as Markdown.")] = False,
    drift: Annotated[
        bool, typer.Option("--drift", help="How far people have moved from its data to the log's newest events.")
    ] = False,
    json: Json = False,
) -> None:
    """Show what a release is made of, everything that happened to it, the gate's verdict, drift and fairness."""
    from xplat_stream.serving.fairness import markdown
    from xplat_stream.serving.promote import known_store

    settings = load_settings()
    store, _ = known_store(settings)
    found = store.shown(number)
    if drift:
        _say_drift(_drift_now(settings, store, number), json=json)
        return
    if json:
        _print_json(found)
        return
    if report:
        sys.stdout.write(markdown(found.report) if found.report else f"{_NO_REPORT.format(number)}\n")
        return
    table = Table(show_header=False)
    for name, value in _about(found).items():
        table.add_row(name, value if isinstance(value, str) else msgspec.json.encode(value).decode())
    for change in found.journal.changes:
        table.add_row(change.state, f"{change.at:%Y-%m-%d %H:%M:%S}Z  {change.reason}")
    for one in found.verdict.checks if found.verdict else ():
        table.add_row(f"{'✓' if one.passed else '✗'} {one.name}", one.words)
    for note in found.verdict.notes if found.verdict else ():
        table.add_row("note", note)
    for name, words in (found.report.short() if found.report else {"report": _NO_REPORT.format(number)}).items():
        table.add_row(name, words)
    console.print(table)


@model_app.command("promote")
def model_promote(
    number: Number,
    force: Annotated[
        bool, typer.Option("--force", help="In spite of the gate, and of a cold encoder; the journal says so.")
    ] = False,
    wait: Annotated[
        float, typer.Option(min=0, help="Seconds to wait, as the shadow, until workers are warm for its encoder.")
    ] = 0.0,
    json: Json = False,
) -> None:
    """Make a release the active one: loaded on every Triton, asked its golden requests, announced."""
    from xplat_stream.serving.promote import promote

    _say(promote(load_settings(), number, force=force, warm_within_s=wait), json=json)


@model_app.command("rollback")
def model_rollback(json: Json = False) -> None:
    """Announce the previous release again, and quarantine the active one with what it was trained on."""
    from xplat_stream.serving.promote import rollback

    back = rollback(load_settings())
    if back is not None:
        _say(back, json=json)


@model_app.command("shadow")
def model_shadow(
    number: Annotated[int, typer.Argument(min=0, help="Number of the release; 0: none any longer.")], json: Json = False
) -> None:
    """Have a candidate score a sample of users beside the active release."""
    from xplat_stream.serving.promote import accompany

    accompany(load_settings(), number)
    words = f"release {number} is the shadow: xplat model diff" if number else "no release is the shadow"
    _done({"shadow": number}, words, json=json)


@model_app.command("diff")
def model_diff(json: Json = False) -> None:
    """Set the active release beside its shadow, or the release before it, by what workers report of a sample."""
    from xplat_stream.comparison import breaches

    settings = load_settings()
    announced = _announced(settings)
    report = read_release_report(settings, announced.release, shadow=announced.shadow or announced.previous)
    found = report.comparison
    slugs = [label.slug for label in load_taxonomy(settings.model.taxonomy).labels]
    judged = found.turned() if announced.shadow else found  # the newer of the two is the one that limits are for
    broken = [str(breach) for breach in breaches(judged, settings.release, slugs)]
    shift = sorted(zip(slugs, found.drift, strict=False), key=lambda pair: -abs(pair[1]))[:_SHIFTS]
    figures = {
        "active": report.release,
        "beside": report.shadow,
        "active_users": report.active_users,
        "scored_users": report.scored_users,
        "complete": report.complete,
        "compared": found.compared,
        "skipped": found.skipped,
        "top5_agreement": round(found.agreement, 4),
        "flips_a_user": round(found.flips_a_user, 4),
        "mean_difference": round(found.mean_difference, 4),
        "judged": found.judged,
        "ndcg": [round(one, 4) for one in found.ndcg],
        "error_rate": [round(side.error_rate, 4) for side in (found.active, found.other)],
        "p99_ms": [round(side.latency_ms(0.99), 1) for side in (found.active, found.other)],
        "drift": {slug: round(by, 4) for slug, by in shift},
        "breaches": broken,
    }
    if json:
        _print_json(figures)
        return
    table = Table("", f"release {report.release}, active", f"release {report.shadow or 'none'}, beside it")
    for name, value in figures.items():
        both = value if isinstance(value, list) and name != "breaches" else [value, ""]
        table.add_row(name.replace("_", " "), *(_words(one) for one in both))
    console.print(table)


@model_app.command("watch")
def model_watch(json: Json = False) -> None:
    """Watch the active release until its time is over; what breaks a limit is rolled back (exit code 1)."""
    from xplat_stream.watch import watch

    settings = load_settings()
    ended = watch(settings, _announced(settings))
    release, broken = ended.report.release, [str(breach) for breach in ended.breaches]
    words = f"release {release} stays"
    if broken:
        words = f"{'rolled back' if ended.rolled_back else 'another release took over'}: {'; '.join(broken)}"
    said = {"release": release, "kept": ended.kept, "rolled_back": ended.rolled_back, "breaches": broken}
    _done(said, words, json=json)
    if broken:
        raise typer.Exit(1)


@model_app.command("retire")
def model_retire(number: Number, json: Json = False) -> None:
    """Give up a release that is neither active nor previous: out of Triton's sight, its files for `gc`."""
    from xplat_stream.serving.promote import exclusive

    with exclusive(load_settings(), f"release {number} is being retired") as (store, _):
        store.retire(number, "retired by hand")
    _done({"retired": number}, f"release {number} is retired", json=json)


@model_app.command("gc")
def model_gc(json: Json = False) -> None:
    """Delete the files that neither the active, previous or shadow release nor a newer candidate needs."""
    from xplat_stream.serving.promote import exclusive

    with exclusive(load_settings(), "releases are being collected") as (store, _):
        removed = store.collect()
    _done({"removed": removed}, "\n".join(removed) or "nothing to remove", json=json)


@model_app.command("push")
def model_push(
    folder: Annotated[Path, typer.Argument(help="A release as another repository keeps it: model_repo.releases/7.")],
    json: Json = False,
) -> None:
    """Take in a release that was trained elsewhere, as a candidate."""
    from xplat_stream.serving.promote import exclusive

    with exclusive(load_settings(), f"{folder} is being pushed") as (store, _):
        number = store.push(folder).release
    _done({"release": number}, f"release {number} is a candidate: xplat model check {number}", json=json)


@model_app.command("keygen")
def model_keygen(
    path: Annotated[Path, typer.Argument(help="Where the private key goes; only its owner may read it.")] = Path(
        "release-key.pem"
    ),
    json: Json = False,
) -> None:
    """Make a key to sign releases with, and print the public one that those who load them trust."""
    from xplat_stream.serving.signing import make_key

    trusted = make_key(path)
    words = f"trainer:  XPLAT_RELEASE__SIGNING_KEY={path}\neveryone: XPLAT_RELEASE__TRUSTED_KEYS={trusted}"
    _done({"signing_key": str(path), "trusted_key": trusted}, words, json=json)


def _about(found: Shown) -> dict[str, Any]:
    """Return the manifest as a person reads it: without the shares, which are there for the drift to be told."""
    about = dict(found.about or {})
    if about.get("data"):
        about["data"] = {name: value for name, value in about["data"].items() if name != "shares"}
    return about


def _drift_now(settings: Settings, store: ReleaseStore, number: int) -> Drift:
    """Return how far people have moved. Raises `ReleaseError` where the release does not say what its people did."""
    from xplat_stream.serving.fairness import since

    taxonomy = load_taxonomy(settings.model.taxonomy)
    found = since(store.repository.manifest(number), shares(recent_events(settings, RECENT), taxonomy), taxonomy)
    if isinstance(found, str):
        raise ReleaseError(
            found,
            where=str(store.repository.hidden / str(number)),
            expected="a release that says what share of its events fell on each label and platform, and a log",
            fix="Train again: releases say it from now on.",
        )
    return found


def _say_drift(found: Drift, *, json: bool) -> None:
    from xplat_stream.serving.fairness import drift_lines

    words = "\n".join(drift_lines(found))
    _done({**msgspec.to_builtins(found), "words": found.words}, words, json=json)


def _announced(settings: Settings) -> Announcement:
    found = active_announcement(settings)
    if found is None:
        raise ReleaseError(
            "no release is active",
            where=MODELS,
            expected="a release that was promoted",
            fix="Train one: `xplat train`.",
        )
    return found


def _words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {by:+.3f}" for name, by in value.items()) or "none"
    return "; ".join(value) or "none" if isinstance(value, list) else str(value)


def _say(promoted: Promoted, *, json: bool) -> None:
    words = f"release {promoted.release} is active (before: {promoted.previous or 'none'})"
    _done(promoted._asdict(), words, json=json)


def _done(said: dict[str, Any], words: str, *, json: bool) -> None:
    if json:
        _print_json(said)
    else:
        console.print(words, highlight=False, soft_wrap=True)


def _print_json(value: Any) -> None:
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
