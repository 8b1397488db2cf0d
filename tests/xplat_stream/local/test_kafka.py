"""The broker's configuration: where it listens, and what it tells its clients."""

from __future__ import annotations

from pathlib import Path

from xplat_stream.local.kafka import Listener, server_properties


def properties(**options) -> dict[str, str]:
    text = server_properties(data=Path("/data"), port=9001, controller_port=9002, **options)
    return dict(line.split("=", 1) for line in text.splitlines())


def test_one_listener_for_clients() -> None:
    """By default clients are sent back to the port they came by, and nothing else is open but the controller's."""
    found = properties()
    assert found["listeners"] == "PLAINTEXT://127.0.0.1:9001,CONTROLLER://127.0.0.1:9002"
    assert found["advertised.listeners"] == "PLAINTEXT://127.0.0.1:9001"


def test_clients_behind_a_proxy_are_sent_back_to_it() -> None:
    """A listener of its own advertises the proxy's port; direct clients and the broker itself never hear of it."""
    found = properties(behind=Listener(port=9003, advertised_port=9004))
    assert found["listeners"] == "PLAINTEXT://127.0.0.1:9001,BEHIND://127.0.0.1:9003,CONTROLLER://127.0.0.1:9002"
    assert found["advertised.listeners"] == "PLAINTEXT://127.0.0.1:9001,BEHIND://127.0.0.1:9004"
    assert found["inter.broker.listener.name"] == "PLAINTEXT"
    assert set(found["listener.security.protocol.map"].split(",")) == {
        "PLAINTEXT:PLAINTEXT",
        "BEHIND:PLAINTEXT",
        "CONTROLLER:PLAINTEXT",
    }
