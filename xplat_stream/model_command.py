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

from xplat_stream.settings import load_settings

if TYPE_CHECKING:
    from xplat_stream.serving.promote import Promoted

model_app = typer.Typer(help="The model releases: candidate, gate, promotion, roll-back.", no_args_is_help=True)
console = Console()

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
def model_show(number: Number, json: Json = False) -> None:
    """Show what a release is made of, everything that happened to it, and the gate's verdict."""
    from xplat_stream.serving.promote import known_store

    found = known_store(load_settings())[0].shown(number)
    if json:
        _print_json(found)
        return
    table = Table(show_header=False)
    for name, value in (found.about or {}).items():
        table.add_row(name, value if isinstance(value, str) else msgspec.json.encode(value).decode())
    for change in found.journal.changes:
        table.add_row(change.state, f"{change.at:%Y-%m-%d %H:%M:%S}Z  {change.reason}")
    for one in found.verdict.checks if found.verdict else ():
        table.add_row(f"{'✓' if one.passed else '✗'} {one.name}", one.words)
    for note in found.verdict.notes if found.verdict else ():
        table.add_row("note", note)
    console.print(table)


@model_app.command("promote")
def model_promote(
    number: Number,
    force: Annotated[bool, typer.Option("--force", help="In spite of the gate; the journal says so.")] = False,
    json: Json = False,
) -> None:
    """Make a release the active one: loaded on every Triton, asked its golden requests, announced."""
    from xplat_stream.serving.promote import promote

    _say(promote(load_settings(), number, force=force), json=json)


@model_app.command("rollback")
def model_rollback(json: Json = False) -> None:
    """Announce the previous release again, and quarantine the active one with what it was trained on."""
    from xplat_stream.serving.promote import rollback

    _say(rollback(load_settings()), json=json)


@model_app.command("retire")
def model_retire(number: Number, json: Json = False) -> None:
    """Give up a release that is neither active nor previous: out of Triton's sight, its files for `gc`."""
    from xplat_stream.serving.promote import known_store

    known_store(load_settings())[0].retire(number, "retired by hand")
    _done({"retired": number}, f"release {number} is retired", json=json)


@model_app.command("gc")
def model_gc(json: Json = False) -> None:
    """Delete the files that neither the active, previous or shadow release nor a newer candidate needs."""
    from xplat_stream.serving.promote import known_store

    removed = known_store(load_settings())[0].collect()
    _done({"removed": removed}, "\n".join(removed) or "nothing to remove", json=json)


@model_app.command("push")
def model_push(
    folder: Annotated[Path, typer.Argument(help="A release as another repository keeps it: model_repo.releases/7.")],
    json: Json = False,
) -> None:
    """Take in a release that was trained elsewhere, as a candidate."""
    from xplat_stream.serving.promote import known_store

    number = known_store(load_settings())[0].push(folder).release
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
