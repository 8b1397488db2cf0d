"""The command line: parsing and printing only.

Commands that need more than the bare install (worker, train, bench) are entry points of the group ``xplat.commands``
in the packages they belong to, so that `xplat tail` never imports torch and the library never imports its users.
"""

from __future__ import annotations

import base64
import logging
import os
import sys
import time
from datetime import UTC, datetime, timedelta
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from xplat_stream.errors import EXIT_OPERATOR, EXIT_SOFTWARE, DataError, OperatorError, XplatError
from xplat_stream.event import UserId
from xplat_stream.kafka.consumer import ProfileConsumer, current_profile
from xplat_stream.kafka.topics import check_topics, create_topics, partition_counts
from xplat_stream.model_command import model_app
from xplat_stream.settings import Settings, load_settings
from xplat_stream.taxonomy import load_taxonomy
from xplat_stream.verify import verify as verify_log
from xplat_stream.verify import wait_until_caught_up

if TYPE_CHECKING:
    from xplat_stream.explain import Fidelity

app = typer.Typer(
    name="xplat",
    help="Live interest profiles of people across platforms.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
topics_app = typer.Typer(help="The Kafka topics.", no_args_is_help=True)
app.add_typer(topics_app, name="topics")
rejected_app = typer.Typer(help="The dead letters: records that no worker could admit.", no_args_is_help=True)
app.add_typer(rejected_app, name="rejected")
app.add_typer(model_app, name="model")
console = Console()
errors = Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def main() -> NoReturn:
    """Run the command line; a person's mistake is one line and exit code 2."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    _add_installed_commands()
    try:
        code = app(arguments, standalone_mode=True)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader of a pipe went away: not our error
        sys.exit(0)
    except XplatError as error:
        if debug:
            raise
        errors.print(f"xplat: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(EXIT_OPERATOR if isinstance(error, OperatorError) else 1)
    except ModuleNotFoundError as error:
        if debug:
            raise
        words = (
            f"xplat: this command needs the package {error.name} (this Python environment); expected an extra that has "
            "it. pip install 'xplat-stream[worker]' for workers, [trainer] to train, [local] for the local stack"
        )
        errors.print(words, markup=False, highlight=False, soft_wrap=True)
        sys.exit(EXIT_OPERATOR)
    except Exception as error:
        if debug:
            raise
        words = f"xplat: unexpected {type(error).__name__}: {error}; run it with --debug and report it"
        errors.print(words, markup=False, highlight=False, soft_wrap=True)
        sys.exit(EXIT_SOFTWARE)
    sys.exit(code)


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Live interest profiles of people across platforms."""


def _add_installed_commands() -> None:
    for entry in sorted(entry_points(group="xplat.commands"), key=lambda entry: entry.name):
        try:
            command = entry.load()
        except ModuleNotFoundError as error:
            command = _absent(entry.name, error.name or "a package")
        group, _, name = entry.name.rpartition(".")
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            (_GROUPS[group] if group else app).command(name)(command)


_GROUPS = {"model": model_app}
"""Groups that installed commands may be part of: an entry point named ``model.check`` is `xplat model check`."""


def _absent(name: str, module: str) -> Any:
    extra = {"train": "trainer", "evaluate": "trainer", "model.check": "trainer"}.get(name, "worker")
    name = name.replace(".", " ")

    def command() -> None:
        raise OperatorError(
            f"`xplat {name}` needs {module}",
            where="this Python environment",
            expected=f"the extra `{extra}`",
            fix=f"pip install 'xplat-stream[{extra}]'",
        )

    command.__doc__ = f"Not installed: pip install 'xplat-stream\\[{extra}]'"
    return command


@app.command()
def up() -> None:
    """Start Kafka and Triton as child processes, or check the ones given, and create the topics."""
    from xplat_stream import local

    local.up(
        load_settings(),
        report=console.print,
        external_kafka=os.environ.get("XPLAT_KAFKA__BOOTSTRAP"),
        external_triton=os.environ.get("XPLAT_TRITON__URL"),
    )
    created = create_topics(load_settings())
    console.print(f"topics {'created: ' + ', '.join(created) if created else 'in place'}", highlight=False)


@app.command()
def down() -> None:
    """Stop the local stack. Data stays; the next `xplat up` goes on with it."""
    from xplat_stream import local

    local.down(load_settings(), report=console.print)


@app.command()
def status(json: Json = False) -> None:
    """Say what runs where."""
    from xplat_stream import local

    settings = load_settings()
    state = local.status(settings)
    if json:
        _print_json(state)
        return
    console.print(_table_of(msgspec.to_builtins(state)))


@topics_app.command("create")
def topics_create() -> None:
    """Create every topic that is missing, with the right policy and partition count."""
    created = create_topics(load_settings())
    console.print("\n".join(created) or "all topics in place", highlight=False)


@topics_app.command("list")
def topics_list(json: Json = False) -> None:
    """List the topics on the broker with their partition counts, and check them."""
    settings = load_settings()
    counts = partition_counts(settings)
    if json:
        _print_json(counts)
    else:
        console.print(_table_of(dict(sorted(counts.items()))))
    check_topics(settings)


@app.command()
def simulate(
    users: Annotated[int, typer.Option(min=1, help="People in the population.")] = 1000,
    rate: Annotated[float, typer.Option(min=0, help="Live events per second, all platforms together.")] = 200.0,
    seconds: Annotated[float, typer.Option(min=0, help="How long; 0 = until stopped.")] = 0.0,
    history: Annotated[int, typer.Option(min=0, help="Past events published first, as fast as Kafka takes them.")] = 0,
    history_days: Annotated[float, typer.Option(min=0.1, help="How far back the past events reach.")] = 30.0,
    bad: Annotated[float, typer.Option(min=0, max=1, help="Share of malformed records on top.")] = 0.0,
    duplicates: Annotated[float, typer.Option(min=0, max=1, help="Share of events sent twice.")] = 0.0,
    out_of_order: Annotated[float, typer.Option(min=0, max=1, help="Share of events held back for a while.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Same seed, same people and items.")] = 7,
    truth: Annotated[Path | None, typer.Option(help="Where the latent interests go, for evaluation.")] = None,
    record: Annotated[
        Path | None,
        typer.Option(help="Write the past events into this folder, as `xplat replay` reads it; publish none."),
    ] = None,
) -> None:
    """Publish the behavior of a simulated population on three platforms."""
    from xplat_stream.population import Population
    from xplat_stream.replay import write_recording
    from xplat_stream.simulate import simulate as run

    settings = load_settings()
    population = Population(load_taxonomy(settings.model.taxonomy), users=users, seed=seed)
    if record is not None:
        end_ms = time.time_ns() // 1_000_000
        start_ms = end_ms - round(timedelta(days=history_days) / timedelta(milliseconds=1))
        _print_json(write_recording(record, population.events(start_ms, end_ms, history)))
        return
    truth = truth or Path(settings.local.home) / "truth.json"
    _print_json(
        run(
            settings,
            population,
            history_events=history,
            history_days=history_days,
            rate_per_s=rate,
            seconds=seconds,
            bad_share=bad,
            duplicate_share=duplicates,
            out_of_order_share=out_of_order,
            truth_path=truth,
        )
    )


@app.command()
def replay(
    folder: Annotated[Path, typer.Argument(help="A recorded log: events.tsv.gz and items.tsv.gz.")],
    speed: Annotated[float, typer.Option(min=0, help="0 = as fast as possible, N = N times real time.")] = 0.0,
    limit: Annotated[int, typer.Option(min=0, help="Most events; 0 = all.")] = 0,
    platforms: Annotated[str, typer.Option(help="Only these, separated by commas.")] = "",
) -> None:
    """Publish a recorded log to its platforms' topics, which are created where they are missing."""
    from xplat_stream.replay import replay as run

    wanted = [name.strip() for name in platforms.split(",") if name.strip()]
    _print_json(run(load_settings(), folder, speed=speed, limit=limit, platforms=wanted))


@app.command()
def tail(
    user: Annotated[str, typer.Option(help="Only this user.")] = "",
    from_start: Annotated[bool, typer.Option("--from-start", help="Begin with what is there already.")] = False,
    limit: Annotated[int, typer.Option(min=0, help="Stop after so many; 0 = never.")] = 0,
    idle: Annotated[float, typer.Option(min=0, help="Stop after so many quiet seconds; 0 = never.")] = 0.0,
    json: Json = False,
) -> None:
    """Print profiles as they are published."""
    shown = 0
    with ProfileConsumer(load_settings(), from_start=from_start) as consumer:
        for change in consumer.changes(idle_s=idle or None):
            if user and change.user_id != user:
                continue
            if json:
                _print_json({"user_id": change.user_id, "profile": change.record})
            elif change.record is None:
                console.print(_plain(f"{change.user_id}  erased"))
            else:
                profile = change.record.data
                top = "  ".join(f"{one.slug} {one.score:.2f} {_ARROWS[one.trend]}" for one in profile.interests[:4])
                line = (
                    f"{profile.as_of:%H:%M:%S} {profile.user_id} r{profile.revision} {profile.status} "
                    f"{sum(profile.window.platforms.values())} events  {top}"
                )
                console.print(_plain(line), soft_wrap=True)
            shown += 1
            if shown == limit:
                return


_ARROWS = {"rising": "↑", "falling": "↓", "steady": "·", "new": "+", "unknown": "?"}


@app.command()
def show(user: Annotated[str, typer.Argument(help="User id.")], json: Json = False) -> None:
    """Show the current profile of one user, with the evidence for each interest."""
    settings = load_settings()
    record = current_profile(settings, UserId(user))
    if record is None:
        raise DataError(
            f"no profile of user {user!r}",
            where=settings.kafka.bootstrap,
            expected="a user with at least one admitted event",
            fix="`xplat tail --from-start` lists who has one.",
        )
    if json:
        _print_json(record)
        return
    profile = record.data
    console.print(
        Text.assemble(
            (_escaped(user), "bold"),
            f"  revision {profile.revision}  {profile.status}  release {profile.model.release}  "
            f"as of {profile.as_of:%Y-%m-%d %H:%M:%S}Z  {profile.window.platforms}",
        )
    )
    table = Table("rank", "interest", "score", "moved", "because of")
    for one in profile.interests:
        because = "; ".join(f"{e.count}× {e.action} on {e.platform}: {e.example}" for e in one.evidence)
        moved = f"{one.delta:+.3f} {one.trend}"
        table.add_row(*map(_plain, (str(one.rank), one.label, f"{one.score:.3f}", moved, because)))
    console.print(table)


@app.command()
def explain(
    user: Annotated[str, typer.Argument(help="User id.")],
    interests: Annotated[int, typer.Option(min=1, help="Top interests to explain.")] = 3,
    events: Annotated[int, typer.Option(min=1, help="Events cited per interest, at the most.")] = 5,
    draws: Annotated[int, typer.Option(min=1, help="Random draws that the cited events are compared with.")] = 32,
    json: Json = False,
) -> None:
    """Say which events carry a user's top interests, and check it: each is hidden in turn from the active release."""
    from xplat_stream.explain import Question
    from xplat_stream.explain import explain as explain_user

    found = explain_user(load_settings(), UserId(user), Question(interests, events, draws))
    if json:
        _print_json(found)
        return
    line = f"  release {found.release}  as of {found.as_of:%Y-%m-%d %H:%M:%S}Z  {found.events} events read"
    console.print(Text.assemble((_escaped(user), "bold"), line))
    for one in found.interests:
        table = Table("hidden", "age", "platform", "action", "event", title_justify="left")
        table.title = _plain(f"{one.label} {one.score:.3f}")
        for event in one.events:
            words = event.text or event.item
            cells = (f"{event.change:+.3f}", f"{event.age_hours / 24:.1f} d", event.platform, event.action, words)
            table.add_row(*map(_plain, cells))
        console.print(table if one.events else _plain(f"{one.label} {one.score:.3f}: no event raises it"))
        if one.fidelity is not None:
            console.print(_plain(_in_words(one.fidelity)))
    if found.fidelity is not None:
        console.print(_plain(f"all: {_in_words(found.fidelity)}"))


def _in_words(check: Fidelity) -> str:
    verdict = "holds" if check.holds else "DOES NOT HOLD"
    return (
        f"without all of these it falls by {check.cited:.3f}, without as many random ones by {check.random:.3f} "
        f"(mean of {check.draws} draws): {verdict}"
    )


@app.command()
def verify(
    wait: Annotated[float, typer.Option(min=0, help="Give the workers so many seconds to catch up first.")] = 0.0,
    json: Json = False,
) -> None:
    """Compare state and profiles with the log, byte for byte. Exit code 1 unless they are exact."""
    settings = load_settings()
    caught_up = wait_until_caught_up(settings, timeout_s=wait)
    if not caught_up:
        errors.print("the worker group has not committed the whole log; what it still has to read counts as missing")
    verdict = verify_log(settings, report=lambda line: errors.print(line, highlight=False))
    if json:
        _print_json(verdict)
    else:
        console.print(_table_of({**msgspec.to_builtins(verdict), "verdict": "exact" if verdict.exact else "NOT EXACT"}))
    if not verdict.exact:
        raise typer.Exit(1)


Reason = Annotated[str, typer.Option(help="Only letters of this reason.")]
SourceTopic = Annotated[str, typer.Option(help="Only letters from this topic.")]


@rejected_app.command("list")
def rejected_list(json: Json = False) -> None:
    """Count the dead letters by reason and topic, with what each reason means."""
    from xplat_stream.rejected import list_rejected

    listing = list_rejected(load_settings())
    if json:
        _print_json(listing)
        return
    for one in listing.counts:
        last = f"{one.last_at:%Y-%m-%d %H:%M:%S}Z"
        console.print(
            Text.assemble(
                (_escaped(one.reason), "bold"),
                f"  {_escaped(one.topic)}  {one.letters} letters, {one.replayed} replayed, last {last}\n",
                f"  {one.meaning}",
            ),
            soft_wrap=True,
        )
    foreign = f", {listing.foreign} records that no worker wrote" if listing.foreign else ""
    console.print(f"{listing.letters} letters, {listing.replayed} replayed{foreign}", highlight=False)


@rejected_app.command("show")
def rejected_show(
    reason: Reason = "",
    topic: SourceTopic = "",
    limit: Annotated[int, typer.Option(min=1, help="Most letters; the newest are shown, the newest last.")] = 10,
    offset: Annotated[str, typer.Option(help="Only the letter of the record at TOPIC:PARTITION:OFFSET.")] = "",
    json: Json = False,
) -> None:
    """Explain single dead letters: reason, detail, where the record lies and its bytes."""
    from xplat_stream.adapters import REASONS
    from xplat_stream.rejected import find_rejected, select

    for found in find_rejected(load_settings(), select(reason, topic, offset), limit=limit):
        letter, origin = found.letter, found.letter.origin
        if json:
            _print_json(
                {
                    "reason": letter.reason,
                    "meaning": REASONS.get(letter.reason),
                    "detail": letter.detail,
                    "origin": origin._asdict(),
                    "key": _base64(letter.key),
                    "value": _base64(letter.value),
                    "cut_from": letter.cut_from,
                    "written_at": found.written_at,
                    "replayed": found.replayed,
                }
            )
            continue
        received = f"{datetime.fromtimestamp(origin.received_at_ms / 1000, UTC):%Y-%m-%d %H:%M:%S}Z"
        console.print(
            Text.assemble(
                (_escaped(letter.reason), "bold"),
                f"  {_escaped(letter.place)}  received {received}{'  replayed' if found.replayed else ''}\n",
                f"  {REASONS.get(letter.reason, 'not known to this version')}\n",
                f"  detail  {_escaped(letter.detail)}\n",
                f"  key     {_shortened(letter.key)}\n",
                f"  value   {_shortened(letter.value, whole=letter.cut_from)}\n",
            ),
            soft_wrap=True,
        )


@rejected_app.command("replay")
def rejected_replay(
    reason: Reason = "",
    topic: SourceTopic = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be published; publish nothing.")] = False,
    key_from_event: Annotated[
        bool, typer.Option("--key-from-event", help="Where the key is what is wrong, use the event's own user.")
    ] = False,
    json: Json = False,
) -> None:
    """Publish the dead letters again that can be admitted now, each once however often this is run."""
    from xplat_stream.rejected import replay_rejected, select

    done = replay_rejected(load_settings(), select(reason, topic), key_from_event=key_from_event, dry_run=dry_run)
    if json:
        _print_json(done)
    else:
        console.print(_table_of(msgspec.to_builtins(done)))


_SHOWN_CHARS = 240


def _escaped(text: str) -> str:
    """Return what a terminal can show: control and other invisible characters as escapes."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def _plain(text: str) -> Text:
    """Return text of other people's: no markup, no emoji codes, nothing that moves the cursor."""
    return Text(_escaped(text))


def _shortened(raw: bytes | None, *, whole: int | None = None) -> str:
    if raw is None:
        return "none"
    start = _escaped(raw[:_SHOWN_CHARS].decode("utf-8", "backslashreplace"))
    return f"{start}{'…' if (whole or len(raw)) > _SHOWN_CHARS else ''} ({whole or len(raw)} bytes)"


def _base64(raw: bytes | None) -> str | None:
    return None if raw is None else base64.b64encode(raw).decode()


@app.command()
def demo(
    seconds: Annotated[float, typer.Option(min=5, help="Length of the live part.")] = 120.0,
    seed: Annotated[int, typer.Option(help="Same seed, same people and items.")] = 7,
    keep: Annotated[bool, typer.Option("--keep", help="Leave Kafka and Triton running afterwards.")] = False,
) -> None:
    """Run everything on this machine: stack, training, three platforms, worker, refresh while streaming, proof."""
    from xplat_stream.demo import run_demo

    result = run_demo(console, dict(os.environ), seconds=seconds, seed=seed, keep=keep)
    _print_json(result)
    if not result.good:
        raise typer.Exit(1)


@app.command("settings")
def show_settings() -> None:
    """Print every setting as it is in force here, as JSON."""
    _print_json(_readable(load_settings()))


def _readable(settings: Settings) -> dict[str, Any]:
    return dict(msgspec.to_builtins(settings))


def _print_json(value: Any) -> None:
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
    sys.stdout.flush()


def _table_of(values: dict[str, Any]) -> Table:
    table = Table(show_header=False)
    for name, value in values.items():
        table.add_row(name, _plain(value if isinstance(value, str) else msgspec.json.encode(value).decode()))
    return table


if __name__ == "__main__":
    main()
