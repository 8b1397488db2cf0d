"""The simulator: what a population does, published with the disorder of a real network on top."""

from __future__ import annotations

import json
import threading
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from xplat_stream import simulate as module
from xplat_stream.adapters import admit, decode_event, encode_event
from xplat_stream.errors import RejectedEvent
from xplat_stream.kafka.topics import platform_of
from xplat_stream.settings import Settings
from xplat_stream.simulate import MALFORMED, Population, simulate
from xplat_stream.taxonomy import load_taxonomy

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from xplat_stream.event import Event

DAY_MS = 86_400_000
END_MS = 1_767_225_600_000


@pytest.fixture(scope="module")
def population() -> Population:
    """Return a population tests only read."""
    return Population(load_taxonomy(), users=60, seed=7)


@pytest.fixture(scope="module")
def history(population: Population) -> list[Event]:
    """Return some of its events."""
    return list(population.events(END_MS - 60 * DAY_MS, END_MS, 50))


@pytest.mark.parametrize(("reason", "spoil"), MALFORMED, ids=[reason for reason, _ in MALFORMED])
def test_spoiled_records_are_rejected_as_named(
    history: list[Event], reason: str, spoil: Callable[[Event], bytes]
) -> None:
    """Each way to spoil an event is dead-lettered under its own reason."""
    for event in history:
        with pytest.raises(RejectedEvent) as caught:
            admit(event.user_id.encode(), spoil(event), platform=event.platform, received_at_ms=event.occurred_at)
        assert caught.value.reason == reason


class RecordingProducer:
    """What would have gone to Kafka, in the place of `EventProducer`."""

    records: list[tuple[str, bytes, bytes]]

    def __init__(self, _: Settings) -> None:
        self.delivered = 0
        RecordingProducer.records = []

    def send(self, event: Event) -> None:
        self.send_raw(f"behavior.{event.platform}.v1", event.user_id.encode(), encode_event(event))

    def send_raw(self, topic: str, key: bytes, value: bytes) -> None:
        self.records.append((topic, key, value))

    def flush(self) -> None:
        self.delivered = len(self.records)


@pytest.fixture
def no_kafka(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a recording in the place of Kafka, and let time pass only while the simulator waits."""
    monkeypatch.setattr(module, "EventProducer", RecordingProducer)
    monkeypatch.setattr(module, "create_topics", lambda *_: [])


class Waits(threading.Event):
    """A stop sign on whose `wait` made-up time passes."""

    now_s = 0.0

    def wait(self, timeout: float | None = None) -> bool:
        self.now_s += timeout or 0.0
        return self.is_set()


@pytest.mark.usefixtures("no_kafka")
def test_a_history_is_published_with_its_truth(tmp_path: Path, population: Population) -> None:
    """History alone: every event once, in order, none from the future, and the truth beside, whole."""
    heard: list[int] = []
    path = tmp_path / "made" / "truth.json"
    result = simulate(
        Settings(), population, history_events=500, history_days=10, rate_per_s=0, truth_path=path, on_sent=heard.append
    )
    assert (result.sent, result.duplicates, result.out_of_order, result.bad, result.delivered) == (500, 0, 0, 0, 500)
    assert heard == [100, 200, 300, 400, 500]
    events = [decode_event(value) for _, _, value in RecordingProducer.records]
    times = [event.occurred_at for event in events if event is not None]
    assert len(times) == 500
    assert times == sorted(times)
    assert times[-1] - times[0] <= 10 * DAY_MS
    truth = json.loads(path.read_text())
    assert truth["users"] == population.truth(truth["at_ms"])
    assert [file.name for file in path.parent.iterdir()] == ["truth.json"]


@pytest.mark.usefixtures("no_kafka")
def test_disorder_is_mixed_in_and_counted(population: Population) -> None:
    """Bad records, repeats and late-comers come at their shares, and nothing is lost by them."""
    result = simulate(
        Settings(),
        population,
        history_events=2000,
        rate_per_s=0,
        bad_share=0.1,
        duplicate_share=0.05,
        out_of_order_share=0.2,
    )
    assert result.sent == 2000
    assert 120 < result.bad < 280
    assert 50 < result.duplicates < 160
    assert 300 < result.out_of_order < 500
    assert result.delivered == len(RecordingProducer.records) == 2000 + result.bad + result.duplicates
    good: list[Event] = []
    reasons = Counter[str]()
    for topic, key, value in RecordingProducer.records:
        try:
            event = admit(key, value, platform=platform_of(topic) or "", received_at_ms=2 * END_MS)
        except RejectedEvent as rejection:
            reasons[rejection.reason] += 1
        else:
            assert event is not None
            good.append(event)
    assert set(reasons) == {reason for reason, _ in MALFORMED}
    assert len({event.event_id for event in good}) == 2000
    assert [event.occurred_at for event in good] != sorted(event.occurred_at for event in good)


@pytest.mark.usefixtures("no_kafka")
@pytest.mark.parametrize(("rate", "seconds", "sent"), [(20.0, 3.0, 60), (500.0, 1.0, 500), (0.5, 9.0, 4)])
def test_live_events_keep_to_the_rate(
    monkeypatch: pytest.MonkeyPatch, population: Population, rate: float, seconds: float, sent: int
) -> None:
    """For so many seconds, so many events a second, dated when they were sent."""
    stop = Waits()
    monkeypatch.setattr("xplat_stream.simulate.time.monotonic", lambda: stop.now_s)
    monkeypatch.setattr("xplat_stream.simulate.time.time_ns", lambda: END_MS * 1_000_000 + int(stop.now_s * 1e9))
    result = simulate(Settings(), population, rate_per_s=rate, seconds=seconds, stop=stop)
    assert result.sent == sent
    times = [event.occurred_at for event in (decode_event(v) for _, _, v in RecordingProducer.records) if event]
    assert times == sorted(times)
    assert times[0] >= END_MS
    assert times[-1] - END_MS == pytest.approx(seconds * 1000, abs=1000 / rate + 50)


@pytest.mark.usefixtures("no_kafka")
def test_another_thread_can_stop_it(population: Population) -> None:
    """A stop sign ends an endless run after the event in hand, with everything flushed."""
    stop = threading.Event()

    def enough(sent: int) -> None:
        if sent >= 300:
            stop.set()

    result = simulate(Settings(), population, history_events=10_000, on_sent=enough, stop=stop)
    assert result.sent == result.delivered == 300


@pytest.mark.usefixtures("no_kafka")
def test_ctrl_c_ends_it_in_good_order(tmp_path: Path, population: Population) -> None:
    """An interrupt is the usual end of an endless run: counts and truth are there."""

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    result = simulate(
        Settings(), population, history_events=10_000, on_sent=interrupt, truth_path=tmp_path / "truth.json"
    )
    assert result.sent == result.delivered == 100
    assert (tmp_path / "truth.json").is_file()
