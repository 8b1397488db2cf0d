"""The proxy does to connections, open ones included, what its mode says."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
import time
from typing import TYPE_CHECKING

import pytest

from tests.chaos.proxy import Mode, Proxy

if TYPE_CHECKING:
    from collections.abc import Iterator

SHORT_S = 0.3
LONG_S = 10.0


class Echo(socketserver.BaseRequestHandler):
    """Says everything back."""

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            while data := self.request.recv(65_536):
                self.request.sendall(data)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    """Yield a proxy before a server that says everything back."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            with Proxy(server.server_address[1]) as one:
                yield one
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def client(proxy: Proxy) -> Iterator[socket.socket]:
    """Yield a connection that is open before the mode changes."""
    with connect(proxy) as one:
        assert said_back(one, b"hello") == b"hello"
        yield one


def connect(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=LONG_S)


def said_back(client: socket.socket, data: bytes, *, within_s: float = LONG_S) -> bytes:
    """Send and return what came back in time, at most as much."""
    if data:
        client.sendall(data)
    return received(client, len(data), within_s=within_s)


def received(client: socket.socket, size: int, *, within_s: float = LONG_S) -> bytes:
    deadline, found = time.monotonic() + within_s, b""
    while len(found) < size and (left := deadline - time.monotonic()) > 0:
        client.settimeout(left)
        try:
            piece = client.recv(size - len(found))
        except TimeoutError:
            break
        if not piece:
            break
        found += piece
    return found


def test_passes_everything(client: socket.socket) -> None:
    """A megabyte comes back unchanged."""
    data = bytes(range(256)) * 4096
    threading.Thread(target=client.sendall, args=(data,), daemon=True).start()
    assert received(client, len(data)) == data


def test_refuses(proxy: Proxy, client: socket.socket) -> None:
    """Open connections are reset and new ones refused; afterwards the same port serves again."""
    proxy.switch(Mode.REFUSE)
    with pytest.raises(ConnectionError):
        client.recv(1)
    with pytest.raises(ConnectionRefusedError):
        connect(proxy)
    proxy.switch(Mode.PASS)
    with connect(proxy) as again:
        assert said_back(again, b"back") == b"back"


def test_swallows(proxy: Proxy, client: socket.socket) -> None:
    """Nothing comes through an old or a new connection, both stay open, and what was said arrives when it ends."""
    proxy.switch(Mode.BLACKHOLE)
    with connect(proxy) as new:
        assert said_back(client, b"old", within_s=SHORT_S) == b""
        assert said_back(new, b"new", within_s=SHORT_S) == b""
        proxy.switch(Mode.PASS)
        assert received(client, 3) == b"old"
        assert received(new, 3) == b"new"


def test_drips(proxy: Proxy, client: socket.socket) -> None:
    """Answers come at the rate asked for, and the rest at once when it ends."""
    proxy.switch(Mode.DRIP, bytes_per_s=100)
    data = b"x" * 10_000
    some = said_back(client, data, within_s=1.0)
    assert 0 < len(some) <= 200
    proxy.switch(Mode.PASS)
    assert some + received(client, len(data) - len(some)) == data


def test_a_server_that_is_gone_ends_the_connection() -> None:
    """Nobody behind the proxy looks like a reset to the client, not like silence."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refuses
        # The reset may arrive before `connect` has returned.
        with Proxy(taken.getsockname()[1]) as proxy, pytest.raises(ConnectionError), connect(proxy) as client:
            client.recv(1)


def test_modes_change_while_clients_talk(proxy: Proxy) -> None:
    """Under a constant stream, modes that lose no connection lose no byte."""
    with connect(proxy) as client:
        data = bytes(range(256)) * 1000
        threading.Thread(target=client.sendall, args=(data,), daemon=True).start()
        found = b""
        for mode in (Mode.DRIP, Mode.BLACKHOLE, Mode.PASS, Mode.BLACKHOLE, Mode.DRIP):
            proxy.switch(mode, bytes_per_s=200)
            found += received(client, 1000, within_s=0.1)
        proxy.switch(Mode.PASS)
        assert found + received(client, len(data) - len(found)) == data
