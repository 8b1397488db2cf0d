"""The consumer SDK, without a broker: which profiles of a user it passes on."""

from __future__ import annotations

from datetime import timedelta

import pytest

from xplat_stream.event import UserId
from xplat_stream.kafka.codec import encode_profile
from xplat_stream.kafka.consumer import ProfileConsumer
from xplat_stream.profile import unscored_profile
from xplat_stream.settings import Settings
from xplat_stream.taxonomy import load_taxonomy
from xplat_stream.testing import START, make_event
from xplat_stream.window import BehaviorWindow, WindowSpec, row_of

USER = UserId("someone")


def value(revision: int, seconds: int) -> bytes:
    """Return a profile record of a revision, published so many seconds after the start."""
    event = make_event(user_id=USER)
    window = BehaviorWindow(WindowSpec()).fold([(event.platform, row_of(event))])
    profile = unscored_profile(USER, window, revision, load_taxonomy())
    return encode_profile(profile, source="//test", published_at=START + timedelta(seconds=seconds), latency_ms=1)


@pytest.mark.parametrize(
    ("published", "passed_on"),
    [
        pytest.param([(1, 0), (2, 1)], [1, 2], id="newer"),
        pytest.param([(2, 1), (1, 0)], [2], id="older"),
        pytest.param([(1, 0), (1, 0)], [1], id="the same again"),
        pytest.param([(1, 0), (1, 5)], [1, 1], id="the same revision, published anew"),
    ],
)
def test_a_consumer_never_goes_back(published, passed_on) -> None:
    """What is older than, or the same as, what was passed on of a user is dropped."""
    consumer = ProfileConsumer(Settings(), group="test")
    try:
        found = [consumer._change(USER.encode(), value(*one)) for one in published]
        assert [one.record.data.revision for one in found if one and one.record] == passed_on
        erased = consumer._change(USER.encode(), None)
        assert erased is not None
        assert erased.record is None
        assert consumer._change(USER.encode(), value(1, 0)) is not None
    finally:
        consumer.close()
