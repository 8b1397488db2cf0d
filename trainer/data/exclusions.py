"""Why events are left out of a log, and what else is counted of it: nothing goes away silently."""

from __future__ import annotations

from typing import Final

from xplat_stream.event import MAX_TEXT_CHARS

REPEATED: Final = "repeated events"
FUTURE: Final = "events dated in the future"
CONFLICTS: Final = "event ids with two contents, both kept as the window law has it"
LONG_TEXTS: Final = f"titles cut to {MAX_TEXT_CHARS} characters"
