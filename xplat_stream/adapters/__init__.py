"""Whatever a platform sends → Event, or a reason why not."""

from xplat_stream.adapters.admission import REASONS, admit
from xplat_stream.adapters.cloudevents import decode_event, encode_event

__all__ = ["REASONS", "admit", "decode_event", "encode_event"]
