"""The local stack: a real Apache Kafka and a real Triton as child processes, without Docker."""

from __future__ import annotations

from xplat_stream.local.stack import ServerState, StackState, down, status, up

__all__ = ["ServerState", "StackState", "down", "status", "up"]
