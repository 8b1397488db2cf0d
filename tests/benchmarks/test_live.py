"""What the benchmarks of a live system compute from what they have seen."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from benchmarks.live import Published
from benchmarks.promotion import Freshness
from benchmarks.rollback import opposite, spoiled
from benchmarks.swaps import _apart
from tests.tiny_release import WIDTH, head_graph
from trainer.export.export import score_inputs
from trainer.release.release import Candidate, EncoderKept
from xplat_stream.event import UserId
from xplat_stream.serving.features import HeadInputs
from xplat_stream.testing import make_release

LABELS = 7


def published(at: float, *, latency_ms: int = 40, read_after_s: float = 0.01) -> Published:
    """Return a profile published at a time."""
    return Published(UserId("u"), 1, "behavior", latency_ms, at, at + read_after_s)


def test_freshness_ends_when_a_consumer_can_read() -> None:
    """The worker's own figure, and the way to whoever reads."""
    assert published(100.0, latency_ms=40, read_after_s=0.01).fresh_ms == pytest.approx(50)
    found = [published(float(number), latency_ms=number, read_after_s=0.0) for number in range(101)]
    assert Freshness.of(found) == (50.0, 99.0)
    with pytest.raises(ValueError, match="no profile"):
        Freshness.of([])


def test_a_latency_belongs_to_the_swap_it_fell_into() -> None:
    """Between two swaps is the steady state."""
    found = [published(at, latency_ms=int(at)) for at in (1.0, 5.0, 7.0, 12.0)]
    assert _apart(found, [(4.0, 6.0), (10.0, 13.0)]) == ([1, 7], [5, 12])


def test_opposite_ends_are_exchanged() -> None:
    """The most popular label for the rarest, and back."""
    order = opposite(np.array([0.1, 0.5, 0.3]))
    assert order.tolist() == [1, 0, 2]
    assert order[order].tolist() == [0, 1, 2]


def test_a_spoiled_release_answers_what_it_says() -> None:
    """Every label has the score of another one, and golden requests pass: only the gate and people find out."""
    head = head_graph(seed=1, labels=LABELS)
    random = np.random.default_rng(0)
    window = HeadInputs(
        random.normal(size=(2, 3, WIDTH)).astype(np.float16),
        np.ones((2, 3), np.int32),
        np.ones((2, 3), np.int32),
        np.zeros((2, 3), np.float32),
    )
    own = score_inputs(head, window)
    manifest = make_release().manifest
    golden = msgspec.structs.replace(manifest.golden, scores=own.tolist())
    bad = spoiled(
        Candidate(
            encoder=EncoderKept(1, {}),
            head=head,
            taxonomy=manifest.taxonomy,
            labels=manifest.labels[:LABELS],
            platforms=manifest.platforms,
            width=WIDTH,
            max_tokens=16,
            max_events=64,
            base="test",
            golden=golden,
            metrics={},
        )
    )
    found = score_inputs(bad.head, window)
    assert np.allclose(found, bad.golden.scores)
    assert np.allclose(found, own[:, opposite(own.mean(axis=0))])
    assert not np.allclose(found, own)
