"""Every setting, grouped by subject; the only reader of the environment.

Sources, later ones win: the defaults below ▸ the running local stack's addresses (`.xplat/stack.json`) ▸
`xplat.toml` in the working folder ▸ environment variables ``XPLAT_<GROUP>__<FIELD>``.
"""

from __future__ import annotations

import os
import tomllib
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from xplat_stream.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX: Final = "XPLAT_"
FILE: Final = "xplat.toml"
STACK_FILE: Final = "stack.json"

_Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
_Address = Annotated[str, Meta(pattern=r"^[^\s:,/]+:\d{1,5}(,[^\s:,/]+:\d{1,5})*$")]
_Keys = Annotated[str, Meta(pattern=r"^([A-Za-z0-9+/]{43}=(,[A-Za-z0-9+/]{43}=)*)?$")]
_Count = Annotated[int, Meta(ge=1)]
_Margin = Annotated[float, Meta(ge=0, le=1)]
_Seconds = Annotated[float, Meta(gt=0)]
_Days = Annotated[float, Meta(gt=0)]


class KafkaSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where Kafka is and how the topics are made."""

    bootstrap: _Address = "127.0.0.1:9092"
    """host:port, several separated by commas."""
    partitions: _Count = 4
    """Partitions of every topic keyed by user. One worker process serves at most this many; choose once."""
    replication: _Count = 1
    """Replicas of every topic created by this project; 3 on a real cluster."""
    retention_days: _Count = 7
    """How long behavior topics keep events. A worker whose changelog is lost rebuilds from them."""


class WindowSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much of a user's behavior counts (the window law)."""

    per_platform: Annotated[int, Meta(ge=1, le=500)] = 50
    """Newest events kept of each platform. 500 of three platforms are 61 kB a changelog record."""
    horizon_days: Annotated[float, Meta(gt=0, le=36_500)] = 90.0
    """Nothing older than this before the user's newest event is kept."""

    @property
    def horizon(self) -> timedelta:
        """The horizon as a duration."""
        return timedelta(days=self.horizon_days)


class WorkerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The Faust worker."""

    app: _Name = "xplat"
    """Consumer group and prefix of the changelog topic."""
    datadir: Annotated[str, Meta(min_length=1)] = ".xplat/worker"
    """RocksDB folder of one worker process; two processes need two."""
    chunk_events: Annotated[int, Meta(ge=1, le=100_000)] = 2000
    """Most events of one partition handled, and acknowledged, together. Of a backlog larger than that: most users."""
    session_timeout_s: Annotated[float, Meta(ge=6, le=300)] = 10.0
    """How soon Kafka gives a dead worker's partitions to another."""
    cached_users: _Count = 25_000
    """Windows held in memory by a worker, about 2.5 kB each at 50 events; the rest is read from RocksDB."""
    rocksdb_mb: Annotated[int, Meta(ge=8, le=65_536)] = 64
    """Memory of RocksDB for all partitions of a worker together, in MB: blocks read, and changes not on disk yet."""
    publish_timeout_s: _Seconds = 30.0
    """A chunk whose records Kafka does not acknowledge for this long stops the worker, unacknowledged."""
    metadata_interval_s: _Seconds = 5.0
    """How often the worker looks for new `behavior.<platform>.v1` topics."""
    stall_timeout_s: Annotated[float, Meta(ge=5)] = 120.0
    """A worker that has records to handle and finishes nothing for this long stops; longer than an encoder batch."""
    silence_s: _Seconds = 900.0
    """A platform of which nothing is read for this long counts as silent: missing data, not lost interest."""


class TritonSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The model server."""

    url: _Address = "127.0.0.1:8001"
    """host:port of the gRPC endpoint. Several, separated by commas, are replicas: a release is promoted when all have
    it, requests take turns, and what one does not answer is asked of the next."""
    deadline_s: _Seconds = 10.0
    """Longest one inference call may take, encoder batches on a busy CPU included."""
    encoder_batch: Annotated[int, Meta(ge=1, le=512)] = 8
    """Texts an encoder call: on a CPU nothing is gained past 8, and more block the core; 64 on a GPU."""
    head_batch: Annotated[int, Meta(ge=1, le=512)] = 64
    """Users a head call."""

    @property
    def replicas(self) -> tuple[TritonSettings, ...]:
        """The same settings for each of the addresses."""
        return tuple(msgspec.structs.replace(self, url=url) for url in self.url.split(","))


class ModelSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Releases, and what their scores mean."""

    repository: Annotated[str, Meta(min_length=1)] = "model_repo"
    """Triton's model repository, as this machine sees it."""
    taxonomy: str = ""
    """Path of a taxonomy file; empty for the shipped IAB Audience Taxonomy 1.1."""
    max_interests: Annotated[int, Meta(ge=1, le=1000)] = 10
    """Interests a profile carries at the most."""
    sensitive_purpose: str = ""
    """What labels that the taxonomy marks sensitive are published for, in words; empty: they are never published."""


class ScoreSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which updates are scored at once, and which can wait because they cannot move the top 3 interests."""

    tolerance: Annotated[float, Meta(ge=0, le=1)] = 0.01
    """Largest share of updates after which the top 3 may be others than scoring gives, in the upper bound that the
    release was measured with; 0 scores every update at once."""
    stale_s: Annotated[float, Meta(ge=1)] = 60.0
    """Whoever waits is scored within this time, whatever is expected."""
    stale_events: _Count = 20
    """And with the event of this number; never later than the release was measured with."""


class TrainerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When `xplat trainer` trains again; 0 switches a reason off."""

    look_every_s: _Seconds = 30.0
    """How often the log is looked at."""
    least_events: _Count = 5_000
    """New events without which nothing is trained, whatever the reason."""
    head_every_minutes: Annotated[float, Meta(ge=0)] = 60.0
    """A head, on the encoder in use, so many minutes after the last training."""
    head_every_events: Annotated[int, Meta(ge=0)] = 200_000
    """A head after so many new events."""
    drift: Annotated[float, Meta(ge=0)] = 0.25
    """A head when the population stability index of labels or platforms reaches this; .25 is another population."""
    encoder_every_hours: Annotated[float, Meta(ge=0)] = 24.0
    """Encoder and head, so many hours after the last encoder."""


class ReleaseSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The life of a release: what the gate asks for, who promotes, who is scored again, and what rolls it back."""

    approval: Literal["auto", "manual"] = "auto"
    """`auto`: what passes the gate is promoted; `manual`: it stays a candidate until `xplat model promote`, as one does
    that scores sensitive labels for a purpose."""
    signing_key: str = ""
    """Path of the trainer's private key, made by `xplat model keygen`; empty: releases are not signed."""
    trusted_keys: _Keys = ""
    """Public keys, several separated by commas: releases that none of them signed are refused. Empty: none are asked
    for."""
    margin: _Margin = 0.02
    """How much NDCG@10 a candidate may lose to the active release, over all held-out users."""
    group_margin: _Margin = 0.05
    """The same on one platform, one label or thin histories, beyond what chance explains."""
    calibration_margin: _Margin = 0.02
    """How much worse its calibration error may be."""
    max_p99_ms: _Seconds = 1000.0
    """Slowest call in a hundred, a batch of texts or of users, on the model server; a candidate may be 1.5 times as
    slow as the active release too."""
    max_memory_mb: _Count = 1024
    """Memory the model server may take for one more release, where it can be measured: on the local stack."""
    active_days: _Days = 7.0
    """Users whose newest event is at most this much older than their partition's newest are active."""
    rescore_per_s: Annotated[float, Meta(gt=0)] = 200.0
    """Active users a worker scores again each second after another release took over."""
    warm_per_s: Annotated[float, Meta(gt=0)] = 100.0
    """Texts of active users a worker has encoded each second by a coming encoder, before it is promoted."""
    shadow_share: Annotated[float, Meta(ge=0, le=1)] = 0.05
    """Share of the users, chosen by their ids, whom the shadow release scores too."""
    watch_minutes: Annotated[float, Meta(ge=0)] = 60.0
    """How long a promoted release is watched; meanwhile the one before it is its shadow. 0 watches none."""
    report_interval_s: _Seconds = 10.0
    """How often a worker says how far re-scoring and comparison are."""
    min_compared: _Count = 200
    """Users compared before any limit below is applied: fewer say nothing."""
    max_error_rate: Annotated[float, Meta(ge=0, le=1)] = 0.01
    """Largest share of failed scorings, beyond the share that fails under the other release at the same time."""
    max_latency_ratio: Annotated[float, Meta(gt=0)] = 1.5
    """Largest p99 of a head call, as a multiple of the other release's for the same windows."""
    max_score_drift: Annotated[float, Meta(gt=0)] = 0.1
    """Largest difference of the two mean scores of any label."""
    max_ndcg_loss: Annotated[float, Meta(ge=0)] = 0.02
    """Largest loss of online NDCG that may be certain, at 99 % confidence, against the other release."""

    @property
    def trusted(self) -> tuple[str, ...]:
        """The trusted keys one by one."""
        return tuple(filter(None, self.trusted_keys.split(",")))


class LocalSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The local stack: Kafka and Triton as child processes."""

    home: Annotated[str, Meta(min_length=1)] = ".xplat"
    """Logs, data and addresses of the stack."""
    kafka_port: Annotated[int, Meta(ge=0, le=65535)] = 0
    """Loopback port of the broker; 0 takes a free one."""
    triton_port: Annotated[int, Meta(ge=0, le=65535)] = 0
    """Loopback gRPC port of Triton; 0 takes a free one."""
    kafka_heap_mb: Annotated[int, Meta(ge=128)] = 512
    """Java heap of the broker."""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that can be set."""

    platforms: Annotated[tuple[_Name, ...], Meta(min_length=1, max_length=255)] = ("shop", "video", "social")
    """Platforms whose topics are created at the start; a worker also reads any other `behavior.*.v1` it finds."""
    kafka: KafkaSettings = KafkaSettings()
    window: WindowSettings = WindowSettings()
    worker: WorkerSettings = WorkerSettings()
    triton: TritonSettings = TritonSettings()
    model: ModelSettings = ModelSettings()
    score: ScoreSettings = ScoreSettings()
    trainer: TrainerSettings = TrainerSettings()
    release: ReleaseSettings = ReleaseSettings()
    local: LocalSettings = LocalSettings()


def load_settings(environ: Mapping[str, str] | None = None, *, folder: Path | None = None) -> Settings:
    """Read all sources. Raises `SettingsError` naming the variable or the file and key at fault."""
    environ = os.environ if environ is None else environ
    folder = folder or Path.cwd()
    merged: dict[str, Any] = {}
    origin: dict[str, str] = {}
    from_environment, from_toml = _from_environment(environ), _from_toml(folder / FILE)
    home = _home(from_environment) or _home(from_toml) or LocalSettings().home
    for name, source in (
        (f"{home}/{STACK_FILE}", _from_stack(folder / home / STACK_FILE)),
        (FILE, from_toml),
        ("environment", from_environment),
    ):
        _overlay(merged, source, origin, name)
    try:
        return msgspec.convert(merged, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise _explained(error, origin) from error


def _home(source: Mapping[str, Any]) -> str:
    """Return the stack's folder as one source names it, empty when it does not: it is needed before all are read."""
    group = source.get("local")
    home = group.get("home", "") if isinstance(group, dict) else ""
    return home if isinstance(home, str) else ""


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for variable in sorted(environ):
        if not variable.startswith(PREFIX):
            continue
        group, _, field = variable.removeprefix(PREFIX).lower().partition("__")
        if field:
            fields = found.setdefault(group, {})
            if isinstance(fields, dict):  # else the group itself is set to a word, which is refused later, by name
                fields[field] = environ[variable]
        elif group == "platforms":
            found[group] = [name.strip() for name in environ[variable].split(",")]
        else:
            found[group] = environ[variable]
    return found


def _from_stack(path: Path) -> dict[str, Any]:
    """Return the addresses the running local stack wrote; nothing when there is none."""
    try:
        return dict(msgspec.json.decode(path.read_bytes()).get("settings", {}))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise SettingsError(
            f"the local stack's file cannot be read: {error}",
            where=str(path),
            expected="the JSON that `xplat up` writes",
            fix="Delete the file; a stack that still runs is found by `pgrep -f kafka.Kafka`.",
        ) from error


def _from_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(
            f"settings file cannot be read: {error}",
            where=str(path),
            expected="TOML",
            fix="Correct the line named above.",
        ) from error


def _overlay(merged: dict[str, Any], source: Mapping[str, Any], origin: dict[str, str], name: str) -> None:
    for key, value in source.items():
        if isinstance(value, dict):
            group = merged.setdefault(key, {})
            if isinstance(group, dict):
                group.update(value)
            for field in value:
                origin[f"{key}.{field}"] = name
        else:
            merged[key] = value
        origin[key] = name


def _explained(error: msgspec.ValidationError, origin: Mapping[str, str]) -> SettingsError:
    """Translate msgspec's ``Expected `int`... - at `$.kafka.partitions` `` into the user's own words."""
    message, _, path = str(error).partition(" - at `$")
    key = path.rstrip("`").strip(".")
    unknown = message.partition("unknown field `")[2].rstrip("`")
    if unknown:
        key = f"{key}.{unknown}".strip(".")
    key = key.partition("[")[0]
    source = origin.get(key, origin.get(key.partition(".")[0], "settings"))
    variable = PREFIX + key.replace(".", "__").upper()
    if unknown:
        known = _fields_of(key.rpartition(".")[0])
        return SettingsError(
            f"unknown setting {variable if source == 'environment' else key}",
            where=source,
            expected=f"one of {', '.join(known)}",
            fix="Correct the name or remove it.",
        )
    return SettingsError(
        f"{variable if source == 'environment' else key} is not usable: {message}",
        where=source,
        expected=message.partition("Expected ")[2] or "another value",
        fix="Correct the value or remove it.",
    )


def _fields_of(group: str) -> list[str]:
    if not group:
        return sorted(Settings.__struct_fields__)
    owner = getattr(Settings(), group, None)
    return sorted(owner.__struct_fields__) if isinstance(owner, msgspec.Struct) else []
