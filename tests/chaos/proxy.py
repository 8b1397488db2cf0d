"""A TCP proxy that can stand for a bad network: between workers and Kafka, between workers and Triton.

It runs in a thread of its own, so that whoever breaks the network is not held up by it. What is on its way when a
connection is held stays on its way: a black hole that ends delivers what it swallowed, as a network does.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from enum import Enum
from typing import TYPE_CHECKING, Self

from xplat_stream.local.process import LOOPBACK

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from types import TracebackType

_READ_BYTES = 64 * 1024
_DRIPS_A_SECOND = 10
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER on, zero seconds: closing tells the other side that the connection is gone, not that all was said."""


class Mode(Enum):
    """What the network does."""

    PASS = "pass"
    REFUSE = "refuse"
    """Open connections are reset, new ones refused."""
    BLACKHOLE = "blackhole"
    """Connections are accepted and kept open, and nothing comes through."""
    DRIP = "drip"
    """Bytes go on to the client at a rate; what the client says arrives at once."""


class Proxy:
    """Forwards a loopback port to another. Use it as a context manager; `switch` it while connections are open."""

    def __init__(self, target: int, *, port: int = 0) -> None:
        """`target`: the port behind it. `port`: the one in front; 0 takes a free one."""
        self._target = target
        self.port = port
        self._mode = Mode.PASS
        self._rate = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"proxy-{target}", daemon=True)
        self._server: asyncio.Server | None = None
        self._changed = asyncio.Event()
        self._open: set[asyncio.Task[None]] = set()

    def switch(self, mode: Mode, *, bytes_per_s: int = 64) -> None:
        """Change what the network does, for open connections too; it is done when this returns.

        `bytes_per_s` is the rate of `Mode.DRIP`, for each connection.
        """
        self._run(self._switch(mode, bytes_per_s))

    async def _switch(self, mode: Mode, rate: int) -> None:
        self._mode, self._rate = mode, rate
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        if mode is Mode.REFUSE:
            await self._stop_listening()
        elif self._server is None:
            await self._listen()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, LOOPBACK, self.port, backlog=256)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        connections = list(self._open)
        for one in connections:
            one.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(self._connection(reader, writer))
        self._open.add(connection)
        connection.add_done_callback(self._open.discard)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client until either side ends; both sides end together."""
        ends = [writer]
        try:
            with contextlib.suppress(OSError):
                await self._passable()
                upstream, server = await asyncio.open_connection(LOOPBACK, self._target)
                ends.append(server)
                pumps = [
                    asyncio.create_task(self._pump(reader, server, dripping=False)),
                    asyncio.create_task(self._pump(upstream, writer, dripping=True)),
                ]
                try:
                    await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for pump in pumps:
                        pump.cancel()
                    await asyncio.gather(*pumps, return_exceptions=True)
        finally:
            for end in ends:
                _reset(end)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, dripping: bool) -> None:
        while data := await source.read(_READ_BYTES):
            while data:
                await self._passable()
                drip = dripping and self._mode is Mode.DRIP
                piece = data[: max(1, self._rate // _DRIPS_A_SECOND)] if drip else data
                sink.write(piece)
                await sink.drain()
                data = data[len(piece) :]
                if drip:
                    await self._pause(len(piece) / self._rate)

    async def _passable(self) -> None:
        while self._mode is Mode.BLACKHOLE:
            await self._changed.wait()

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), seconds)

    def _run(self, work: Coroutine[object, object, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._listen())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._stop_listening())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
