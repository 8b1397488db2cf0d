"""Settings: defaults are promises, later sources win, and every error says which place to correct."""

from __future__ import annotations

import inspect
import json
from datetime import timedelta
from typing import TYPE_CHECKING

import msgspec
import pytest

from xplat_stream import settings
from xplat_stream.errors import SettingsError
from xplat_stream.settings import FILE, STACK_FILE, Settings, load_settings

if TYPE_CHECKING:
    from pathlib import Path


def test_the_defaults_are_pinned(tmp_path: Path) -> None:
    """A default is what a user who sets nothing gets: it changes here, on purpose, or not at all."""
    assert msgspec.to_builtins(load_settings({}, folder=tmp_path)) == {
        "platforms": ("shop", "video", "social"),
        "kafka": {"bootstrap": "127.0.0.1:9092", "partitions": 4, "replication": 1, "retention_days": 7},
        "window": {"per_platform": 50, "horizon_days": 90.0},
        "worker": {
            "app": "xplat",
            "datadir": ".xplat/worker",
            "chunk_events": 2000,
            "session_timeout_s": 10.0,
            "cached_users": 25_000,
            "rocksdb_mb": 64,
            "publish_timeout_s": 30.0,
            "metadata_interval_s": 5.0,
            "stall_timeout_s": 120.0,
            "silence_s": 900.0,
        },
        "triton": {"url": "127.0.0.1:8001", "deadline_s": 10.0, "encoder_batch": 8, "head_batch": 64},
        "model": {"repository": "model_repo", "taxonomy": "", "max_interests": 10, "sensitive_purpose": ""},
        "score": {"tolerance": 0.01, "stale_s": 60.0, "stale_events": 20},
        "trainer": {
            "look_every_s": 30.0,
            "least_events": 5_000,
            "head_every_minutes": 60.0,
            "head_every_events": 200_000,
            "drift": 0.25,
            "encoder_every_hours": 24.0,
        },
        "release": {
            "approval": "auto",
            "signing_key": "",
            "trusted_keys": "",
            "margin": 0.02,
            "group_margin": 0.05,
            "calibration_margin": 0.02,
            "max_p99_ms": 1000.0,
            "max_memory_mb": 1024,
            "active_days": 7.0,
            "rescore_per_s": 200.0,
            "warm_per_s": 100.0,
            "shadow_share": 0.05,
            "watch_minutes": 60.0,
            "report_interval_s": 10.0,
            "min_compared": 200,
            "max_error_rate": 0.01,
            "max_latency_ratio": 1.5,
            "max_score_drift": 0.1,
            "max_ndcg_loss": 0.02,
        },
        "local": {"home": ".xplat", "kafka_port": 0, "triton_port": 0, "kafka_heap_mb": 512},
    }
    assert load_settings({}, folder=tmp_path) == Settings()
    assert Settings().window.horizon == timedelta(days=90)


def sources(folder: Path, *, stack: str = "", toml: str = "", home: str = ".xplat") -> None:
    """Write the files that set kafka.bootstrap."""
    if stack:
        (folder / home).mkdir()
        (folder / home / STACK_FILE).write_text(json.dumps({"settings": {"kafka": {"bootstrap": stack}}}))
    if toml:
        (folder / FILE).write_text(toml)


TOML = '[kafka]\nbootstrap = "toml:1"\n'
VARIABLE = {"XPLAT_KAFKA__BOOTSTRAP": "env:1"}


@pytest.mark.parametrize(
    ("stack", "toml", "environ", "found"),
    [
        pytest.param("", "", {}, "127.0.0.1:9092", id="default"),
        pytest.param("stack:1", "", {}, "stack:1", id="stack-over-default"),
        pytest.param("stack:1", TOML, {}, "toml:1", id="file-over-stack"),
        pytest.param("stack:1", TOML, VARIABLE, "env:1", id="environment-over-file"),
        pytest.param("", "", VARIABLE, "env:1", id="environment-over-default"),
    ],
)
def test_later_sources_win(tmp_path: Path, stack: str, toml: str, environ: dict[str, str], found: str) -> None:
    """Default ▸ local stack ▸ xplat.toml ▸ environment, one setting at a time."""
    sources(tmp_path, stack=stack, toml=toml)
    assert load_settings(environ, folder=tmp_path).kafka.bootstrap == found


def test_one_source_leaves_the_rest_of_a_group(tmp_path: Path) -> None:
    """Setting one field does not reset the others of its group."""
    sources(tmp_path, toml=TOML + "partitions = 7\n")
    kafka = load_settings({"XPLAT_KAFKA__REPLICATION": "3"}, folder=tmp_path).kafka
    assert (kafka.bootstrap, kafka.partitions, kafka.replication) == ("toml:1", 7, 3)


@pytest.mark.parametrize(
    ("toml", "environ"),
    [
        pytest.param("", {"XPLAT_LOCAL__HOME": "elsewhere"}, id="environment"),
        pytest.param('[local]\nhome = "elsewhere"\n', {}, id="file"),
    ],
)
def test_the_stack_is_found_where_home_says(tmp_path: Path, toml: str, environ: dict[str, str]) -> None:
    """A stack started under another home is found again by whoever has the same setting."""
    sources(tmp_path, stack="stack:1", toml=toml, home="elsewhere")
    assert load_settings(environ, folder=tmp_path).kafka.bootstrap == "stack:1"


def test_platforms_are_a_comma_list(tmp_path: Path) -> None:
    """XPLAT_PLATFORMS names platforms separated by commas, blanks allowed."""
    assert load_settings({"XPLAT_PLATFORMS": "tv, radio"}, folder=tmp_path).platforms == ("tv", "radio")


def test_other_variables_are_not_ours(tmp_path: Path) -> None:
    """Only XPLAT_ variables are read."""
    assert load_settings({"KAFKA__BOOTSTRAP": "no:1", "PATH": "/"}, folder=tmp_path) == Settings()


def test_the_process_environment_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without arguments the process's own environment and folder are read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XPLAT_WORKER__APP", "other")
    assert load_settings().worker.app == "other"


@pytest.mark.parametrize(
    ("environ", "name"),
    [
        pytest.param({"XPLAT_KAFKA__PARTITIONS": "many"}, "XPLAT_KAFKA__PARTITIONS", id="not-a-number"),
        pytest.param({"XPLAT_KAFKA__PARTITIONS": "0"}, "XPLAT_KAFKA__PARTITIONS", id="out-of-range"),
        pytest.param({"XPLAT_KAFKA__BOOTSTRAP": "nohost"}, "XPLAT_KAFKA__BOOTSTRAP", id="not-an-address"),
        pytest.param({"XPLAT_KAFKA__BOOTSTRAPP": "h:1"}, "XPLAT_KAFKA__BOOTSTRAPP", id="unknown-field"),
        pytest.param({"XPLAT_KAFAK__BOOTSTRAP": "h:1"}, "XPLAT_KAFAK", id="unknown-group"),
        pytest.param({"XPLAT_KAFKA": "h:1"}, "XPLAT_KAFKA", id="group-is-a-word"),
        pytest.param({"XPLAT_KAFKA": "h", "XPLAT_KAFKA__BOOTSTRAP": "h:1"}, "XPLAT_KAFKA", id="group-and-field"),
        pytest.param({"XPLAT_LOCAL": "h"}, "XPLAT_LOCAL", id="home-group-is-a-word"),
        pytest.param({"XPLAT_LOCAL__HOME": ""}, "XPLAT_LOCAL__HOME", id="empty"),
        pytest.param({"XPLAT_PLATFORMS": "Shop"}, "XPLAT_PLATFORMS", id="bad-platform"),
        pytest.param({"XPLAT_PLATFORMS": ""}, "XPLAT_PLATFORMS", id="no-platform"),
        pytest.param({"XPLAT_WINDOW__HORIZON_DAYS": "nan"}, "XPLAT_WINDOW__HORIZON_DAYS", id="nan"),
    ],
)
def test_a_bad_variable_is_named(tmp_path: Path, environ: dict[str, str], name: str) -> None:
    """The line says which variable, what was expected and what to do."""
    with pytest.raises(SettingsError) as caught:
        load_settings(environ, folder=tmp_path)
    assert name in caught.value.what
    assert caught.value.where == "environment"
    assert caught.value.expected
    assert caught.value.fix


@pytest.mark.parametrize(
    ("toml", "name"),
    [
        pytest.param("[kafka]\npartitions = 'many'\n", "kafka.partitions", id="not-a-number"),
        pytest.param("[kafka]\nbroker = 'h:1'\n", "kafka.broker", id="unknown-field"),
        pytest.param("[broker]\nurl = 'h:1'\n", "broker", id="unknown-group"),
        pytest.param("kafka = 3\n", "kafka", id="group-is-a-number"),
        pytest.param("platforms = []\n", "platforms", id="no-platform"),
        pytest.param("[kafka\n", "settings file", id="not-toml"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, toml: str, name: str) -> None:
    """The line says which file and key, what was expected and what to do."""
    sources(tmp_path, toml=toml)
    with pytest.raises(SettingsError) as caught:
        load_settings({}, folder=tmp_path)
    assert name in caught.value.what
    assert FILE in caught.value.where
    assert caught.value.expected
    assert caught.value.fix


def test_an_unreadable_encoding_is_told(tmp_path: Path) -> None:
    """A settings file that is not UTF-8 is told like any other fault of it."""
    (tmp_path / FILE).write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match=FILE):
        load_settings({}, folder=tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"settings": 5}', '{"settings": [1]}', '"x"', ""])
def test_a_broken_stack_file_is_told(tmp_path: Path, text: str) -> None:
    """A stack file damaged by a crash names itself and the way out."""
    (tmp_path / ".xplat").mkdir()
    (tmp_path / ".xplat" / STACK_FILE).write_text(text)
    with pytest.raises(SettingsError, match=r"stack\.json.*Delete the file"):
        load_settings({}, folder=tmp_path)


def test_every_setting_says_what_it_is_for() -> None:
    """A reader of `settings.py` learns unit and reason of each field: a docstring follows every one."""
    lines = inspect.getsource(settings).splitlines()
    classes = [one for one in vars(settings).values() if inspect.isclass(one)]
    groups = [group for group in classes if group.__name__.endswith("Settings")]
    for group in groups:
        for field in getattr(group, "__struct_fields__", ()):
            at = next(n for n, line in enumerate(lines) if line.startswith(f"    {field}: "))
            nested = field in Settings.__struct_fields__ and field != "platforms"
            assert nested or lines[at + 1].lstrip().startswith('"""'), field
