"""`docker-compose.yml` and `Dockerfile` agree with the settings, the local stack and the command line.

Nothing here needs Docker: the files are read, and every name in them that also exists elsewhere is compared.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

from xplat_stream.local.jars import read_lock
from xplat_stream.local.kafka import LOCK
from xplat_stream.settings import Settings, load_settings

ROOT = Path(__file__).resolve().parent.parent
OURS = ("topics", "worker", "trainer")


@cache
def compose() -> dict[str, Any]:
    """Read the compose file."""
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    return loaded


@cache
def dockerfile() -> str:
    """Read the Dockerfile, continued lines joined and comments dropped."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    return "\n".join(line for line in text.splitlines() if not line.startswith("#"))


def service(name: str) -> dict[str, Any]:
    """Return one service."""
    found: dict[str, Any] = compose()["services"][name]
    return found


def settings_of(name: str, folder: Path) -> Settings:
    """Read a service's environment as its container will."""
    return load_settings(service(name)["environment"], folder=folder)


def mounts_of(name: str) -> dict[str, str]:
    """Return mount point to volume; empty for an unnamed volume."""
    mounts = {}
    for volume in service(name).get("volumes", []):
        source, _, rest = volume.rpartition(":") if volume.startswith("/") else volume.partition(":")
        mounts[rest.partition(":")[0]] = source
    return mounts


def triton_options() -> dict[str, str]:
    """Return Triton's command line as option to value."""
    words = (word.removeprefix("--").partition("=") for word in service("triton")["command"][1:])
    return {option: value for option, _, value in words}


def listeners(variable: str) -> dict[str, str]:
    """Return Kafka's listeners as name to host:port."""
    return dict(item.split("://") for item in service("kafka")["environment"][variable].split(","))


@pytest.mark.parametrize("name", OURS)
def test_every_setting_exists_and_converts(name: str, tmp_path: Path) -> None:
    """Each XPLAT_ variable names a setting and holds a value of its type; nothing else is passed."""
    assert all(variable.startswith("XPLAT_") for variable in service(name)["environment"])
    assert settings_of(name, tmp_path) != Settings()


@pytest.mark.parametrize("name", OURS)
def test_addresses_lead_to_ports_the_services_listen_on(name: str, tmp_path: Path) -> None:
    """Kafka's and Triton's addresses name the service and a port it opens to containers."""
    settings = settings_of(name, tmp_path)
    assert settings.kafka.bootstrap in listeners("KAFKA_ADVERTISED_LISTENERS").values()
    host, _, port = settings.kafka.bootstrap.partition(":")
    assert host == "kafka"
    assert f":{port}" in listeners("KAFKA_LISTENERS").values()
    assert settings.triton.url == f"triton:{triton_options()['grpc-port']}"


def test_kafka_advertises_what_it_listens_on() -> None:
    """Every advertised listener is opened on its port and has a protocol; the one for this machine is published."""
    opened, advertised = listeners("KAFKA_LISTENERS"), listeners("KAFKA_ADVERTISED_LISTENERS")
    protocols = dict(
        pair.split(":") for pair in service("kafka")["environment"]["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"].split(",")
    )
    assert opened.keys() == protocols.keys()
    for name, address in advertised.items():
        assert address.rpartition(":")[2] == opened[name].rpartition(":")[2]
    voter = service("kafka")["environment"]["KAFKA_CONTROLLER_QUORUM_VOTERS"]
    assert voter == f"{service('kafka')['environment']['KAFKA_NODE_ID']}@kafka{opened['CONTROLLER']}"
    host_port = advertised["HOST"].rpartition(":")[2]
    assert f"127.0.0.1:{host_port}:{host_port}" in service("kafka")["ports"]


def test_published_ports_are_opened_and_on_loopback() -> None:
    """No service without a password can be reached from another machine, and no published port leads nowhere."""
    opened = {
        "kafka": {address.rpartition(":")[2] for address in listeners("KAFKA_LISTENERS").values()},
        "triton": {value for option, value in triton_options().items() if option.endswith("-port")},
    }
    for name, definition in compose()["services"].items():
        for published in definition.get("ports", []):
            address, _, port = published.split(":")
            assert address == "127.0.0.1"
            assert port in opened[name]


def test_health_checks_ask_the_ports_that_are_opened() -> None:
    """Each server's check asks an address that the server has."""
    assert service("kafka")["healthcheck"]["test"][-1] in listeners("KAFKA_ADVERTISED_LISTENERS").values()
    assert f"127.0.0.1:{triton_options()['http-port']}/" in service("triton")["healthcheck"]["test"][-1]


def test_both_stacks_run_the_same_kafka() -> None:
    """The image's version is the one whose jars the local stack is locked to."""
    assert service("kafka")["image"] == f"apache/kafka:{read_lock(LOCK).version}"


def test_data_of_kafka_is_on_a_volume() -> None:
    """Removing the container keeps the records: the broker's data folder is a named volume."""
    assert mounts_of("kafka")[service("kafka")["environment"]["KAFKA_LOG_DIRS"]] in compose()["volumes"]


@pytest.mark.parametrize("name", OURS)
def test_everyone_sees_the_same_model_repository(name: str, tmp_path: Path) -> None:
    """Triton, worker and trainer have the repository at the same path, its parent on one shared named volume.

    The parent, because a release is staged beside the repository and renamed, which works inside one mount only.
    """
    repository = settings_of(name, tmp_path).model.repository
    assert triton_options()["model-repository"] == repository
    parent = str(PurePosixPath(repository).parent)
    volume = mounts_of(name)[parent]
    assert volume in compose()["volumes"]
    assert mounts_of("triton")[parent] == volume
    assert repository not in mounts_of(name)


def test_triton_is_in_explicit_mode_and_comes_up_without_a_model() -> None:
    """Versions are loaded when asked for, and an empty or broken repository keeps no one from starting."""
    assert triton_options()["model-control-mode"] == "explicit"
    assert triton_options()["exit-on-error"] == "false"
    assert triton_options()["strict-readiness"] == "false"


def test_every_worker_has_state_of_its_own(tmp_path: Path) -> None:
    """The state folder lies on an unnamed volume: two workers on one RocksDB would stop each other."""
    state = PurePosixPath(settings_of("worker", tmp_path).worker.datadir)
    mounts = mounts_of("worker")
    assert [mounts[str(folder)] for folder in state.parents if str(folder) in mounts] == [""]


def test_services_wait_for_what_they_need() -> None:
    """Topics exist and the model volume is filled before anything reads them; every condition can be met."""
    for name in ("triton", "worker", "trainer"):
        assert service(name)["depends_on"]["topics"]["condition"] == "service_completed_successfully"
    for definition in compose()["services"].values():
        for needed, how in definition.get("depends_on", {}).items():
            assert how["condition"] != "service_healthy" or "healthcheck" in service(needed)
    assert service("trainer")["profiles"] == ["train"]
    assert "restart" not in service("topics")


def test_images_are_pinned_and_targets_exist() -> None:
    """Every image carries a full version, and every build target is a stage of the Dockerfile."""
    stages = set(re.findall(r"^FROM \S+ AS (\S+)$", dockerfile(), re.MULTILINE))
    for definition in compose()["services"].values():
        if "build" in definition:
            assert definition["build"]["target"] in stages
        else:
            assert re.search(r":\d+\.\d+", definition["image"])


def test_the_images_are_built_from_hashed_requirements_and_existing_files() -> None:
    """Dependencies are installed against hashes, the project without any, and nothing copied is missing."""
    installs = re.findall(r"pip install (.*)$", dockerfile(), re.MULTILINE)
    assert {line.split()[-1].removeprefix("/build") for line in installs} == {
        "",
        "/requirements/worker.txt",
        "/requirements/trainer.txt",
    }
    assert all("--require-hashes" in line or "--no-deps" in line for line in installs)
    sources = [
        source
        for line in re.findall(r"^COPY (?!--from)(.*)$", dockerfile(), re.MULTILINE)
        for source in re.sub(r"--\S+ ", "", line).split()[:-1]
    ]
    assert [source for source in sources if not (ROOT / source).exists()] == []
    assert {f"model_repo/{p.parent.name}/config.pbtxt" for p in (ROOT / "model_repo").glob("*/config.pbtxt")} <= set(
        sources
    )


def test_the_images_bring_the_folders_the_volumes_are_filled_from(tmp_path: Path) -> None:
    """The model configurations lie in the image where the volume is mounted, owned by the user that runs there."""
    settings = settings_of("worker", tmp_path)
    copies = re.findall(r"^COPY --chown=xplat:xplat model_repo/(\S+)/config.pbtxt (\S+)$", dockerfile(), re.MULTILINE)
    assert [(target, f"{settings.model.repository}/{model}/") for model, target in copies] == [
        (target, target) for _, target in copies
    ]
    assert "USER xplat" in dockerfile()
    assert str(PurePosixPath(settings.worker.datadir).parent) in dockerfile()


@pytest.mark.parametrize("name", OURS)
def test_every_command_exists(name: str) -> None:
    """Each service's command is a verb of `xplat`, with options it takes."""
    typer_main = import_module("typer.main")
    program, *words = service(name)["command"]
    assert program == "xplat"
    command = typer_main.get_command(import_module("xplat_stream.cli").app)
    for word in words:
        if word.startswith("--"):
            assert word in {option for parameter in command.params for option in parameter.opts}
        else:
            assert word in command.commands
            command = command.commands[word]
