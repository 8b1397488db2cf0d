"""A record batch as aiokafka never writes one."""

from __future__ import annotations

import struct

from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.util import calc_crc32c

HEADER_NAME = "header-name"


class SpoiledBatch(BatchBuilder):
    """A batch in which the header named `HEADER_NAME` has no UTF-8 as its name: as a client in C can send it."""

    def _build(self) -> bytes:
        self._buffer = spoiled(bytes(super()._build()))
        return self._buffer


def spoiled(built: bytes) -> bytes:
    """Return an uncompressed batch with that name spoiled and its checksum right."""
    body = built[21:].replace(HEADER_NAME.encode(), b"\xff\xfeader-name")
    return built[:17] + struct.pack(">I", calc_crc32c(body)) + body
