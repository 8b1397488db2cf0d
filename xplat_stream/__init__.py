"""xplat-stream: live interest profiles of people across platforms."""

from xplat_stream.event import Event, Object
from xplat_stream.kafka import EventProducer, ProfileConsumer
from xplat_stream.profile import Interest, Profile
from xplat_stream.settings import Settings, load_settings
from xplat_stream.taxonomy import Taxonomy, load_taxonomy
from xplat_stream.window import BehaviorWindow, WindowSpec

__all__ = [
    "BehaviorWindow",
    "Event",
    "EventProducer",
    "Interest",
    "Object",
    "Profile",
    "ProfileConsumer",
    "Settings",
    "Taxonomy",
    "WindowSpec",
    "load_settings",
    "load_taxonomy",
]
