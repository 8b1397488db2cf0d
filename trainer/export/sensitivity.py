"""The head's own sensitivity, fitted and measured: which updates can wait because they cannot move the top labels.

Windows are replayed event by event with the exported head. A ridge regression says how its logits move with the sums
of `xplat_stream.serving.sensitivity`; the curve, calls saved over disagreement, is of people it was not fitted on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from trainer.data.compact import Compact, since_newest
from trainer.data.examples import last_of_each, thinned
from trainer.export.export import session
from xplat_stream.serving.sensitivity import CurvePoint, Estimator, Sensitivity, leads, logits_of, tops

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from trainer.data.dataset import Dataset
    from trainer.data.examples import Examples
    from trainer.networks.head import Head

    Floats = NDArray[np.float32]

MOST_EVENTS: Final = 20
"""Events in a row that the curve lets go unscored; `score.stale_events` may ask for fewer."""

_FITTED_ON: Final = 300
_MEASURED_ON: Final = 250
_FITTED_STEPS: Final = 10
_MEASURED_STEPS: Final = 24
_APART: Final = (1, 4)
"""Steps between the windows of a pair that the map is fitted on: what one event does, and what several do."""

_RIDGE: Final = 10.0
_MARGINS: Final = (0.0, 0.02, 0.04, 0.06, 0.08, 0.1, 0.12, 0.15, 0.2, 0.25, 0.3, 0.4, 0.6, 0.8, 1.2)
_AT_ONCE: Final = 64
_Z: Final = 1.96


class Replayed(NamedTuple):
    """Windows as they grew, event by event."""

    logits: Floats  # (users, steps + 1, labels), the head's
    sums: Floats  # (users, steps + 1, kinds, columns)
    events: NDArray[np.int64]  # (users, steps + 1), in the window then


def sensitivity_of(head: Head, graph: bytes, data: Dataset, table: NDArray[np.float16]) -> Sensitivity:
    """Fit the map of an exported head and measure it. `table`: the vectors, `trainer.data.compact.vector_table`."""
    published = [place for place, label in enumerate(data.taxonomy.labels) if not label.sensitive]
    weight = head.evidence.weight.detach().numpy().T * head.shape.width**0.5  # (width, labels)
    names = np.concatenate([weight, head.evidence.bias.detach().numpy()[None]]).astype(np.float32)
    empty = Sensitivity(names.tobytes(), b"", MOST_EVENTS, ())
    shape = {"platforms": len(data.platforms), "width": head.shape.width, "labels": head.shape.labels}
    blank = Estimator(empty, **shape)
    shown = [_replayed(blank, graph, _last(part, _FITTED_ON), table, _FITTED_STEPS) for part in (data.train, data.tune)]
    weights = _fit(blank, shown)
    fitted = Sensitivity(names.tobytes(), weights.astype(np.float16).tobytes(), MOST_EVENTS, ())
    test = _replayed(blank, graph, _last(data.test, _MEASURED_ON), table, _MEASURED_STEPS)
    curve = tuple(curve_point(Estimator(fitted, **shape), test, margin, published) for margin in _MARGINS)
    return Sensitivity(fitted.names, fitted.weights, MOST_EVENTS, curve)


def _last(examples: Examples, most: int) -> Compact:
    """Return the last window of some people."""
    rows = last_of_each(np.array(examples.users))
    return examples.inputs.take(thinned(rows, most)).trimmed()


def _replayed(estimator: Estimator, graph: bytes, windows: Compact, table: NDArray[np.float16], steps: int) -> Replayed:
    opened = session(graph, 1)
    logits, sums, events = [], [], []
    for step in range(steps, -1, -1):
        length = np.maximum(windows.length - step, 0)
        present = np.arange(windows.action.shape[1]) < length[:, None]
        text, platform, action = (np.where(present, array, 0).astype(np.int32) for array in windows[:3])
        then = Compact(text, platform, action, since_newest(windows.age, present), length)
        parts = []
        for start in range(0, len(length), _AT_ONCE):
            inputs = then.with_vectors(table, np.arange(start, min(start + _AT_ONCE, len(length))))
            parts.append((opened.run(["scores"], inputs._asdict())[0], estimator.sums(inputs)))
        scores, summed = (np.concatenate(column) for column in zip(*parts, strict=True))
        logits.append(logits_of(scores))
        sums.append(summed)
        events.append(length)
    return Replayed(np.stack(logits, 1), np.stack(sums, 1), np.stack(events, 1))


def _fit(estimator: Estimator, shown: Sequence[Replayed]) -> Floats:
    """Return the map (features, labels) by ridge regression on differences."""
    rows, moved = [], []
    for replayed in shown:
        users, steps = replayed.events.shape
        features = estimator.features(replayed.sums.reshape(users * steps, *replayed.sums.shape[2:]))
        features = features.reshape(users, steps, -1)
        for apart in _APART:
            known = replayed.events[:, :-apart] > 0
            rows.append((features[:, apart:] - features[:, :-apart])[known])
            moved.append((replayed.logits[:, apart:] - replayed.logits[:, :-apart])[known])
    inputs, targets = np.concatenate(rows), np.concatenate(moved)
    scale = inputs.std(axis=0) + 1e-6
    scaled = inputs / scale
    gram = scaled.T @ scaled + _RIDGE * np.eye(len(scale), dtype=np.float32)
    return np.asarray(np.linalg.solve(gram, scaled.T @ targets) / scale[:, None], np.float32)


def curve_point(estimator: Estimator, replayed: Replayed, margin: float, published: Sequence[int]) -> CurvePoint:
    """Replay people under a margin: who is scored when, and how often the top labels are not those that scoring gives.

    The labels on top are taken as a set: two of them that change places change nobody's interests.
    """
    users, steps = replayed.events.shape
    mapped = estimator.logits(replayed.sums.reshape(users * steps, *replayed.sums.shape[2:])).reshape(users, steps, -1)
    base, since = np.zeros(users, np.int64), np.zeros(users, np.int64)
    everyone = np.arange(users)
    calls = updates = wrong = 0
    begun = np.zeros(users, np.bool_)
    for step in range(1, steps):
        known = replayed.events[:, step - 1] > 0
        base[known & ~begun] = step - 1
        begun |= known
        since += known
        top = tops(replayed.logits[everyone, base], published)
        guessed = replayed.logits[everyone, base] + mapped[:, step] - mapped[everyone, base]
        wait = (leads(guessed, top, published) > margin * np.sqrt(since)) & (since < MOST_EVENTS)
        scored = known & ~wait
        base[scored], since[scored] = step, 0
        true = tops(replayed.logits[:, step], published)
        now = tops(replayed.logits[everyone, base], published)
        updates += int(known.sum())
        calls += int(scored.sum())
        wrong += int(((true != now).any(axis=1) & known).sum())
    updates = max(1, updates)
    return CurvePoint(
        margin, round(1 - calls / updates, 4), round(wrong / updates, 4), round(_wilson(wrong, updates), 4)
    )


def _wilson(count: int, of: int) -> float:
    """Return the upper end of a share's 95 % interval (Wilson 1927)."""
    share, z2 = count / of, _Z**2
    middle = share + z2 / (2 * of)
    return float((middle + _Z * np.sqrt(share * (1 - share) / of + z2 / (4 * of**2))) / (1 + z2 / of))
