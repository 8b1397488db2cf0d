"""How near the published profiles come to the truth that the simulation kept aside."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from xplat_stream.errors import RejectedEvent
from xplat_stream.kafka.consumer import ProfileConsumer
from xplat_stream.kafka.log import read_behavior

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from xplat_stream.settings import Settings
    from xplat_stream.taxonomy import Taxonomy

TOP = 10


def ndcg(ranking: Sequence[str], gains: Mapping[str, float], top: int = TOP) -> float:
    """Return NDCG@top of a ranking of labels for graded gains (Järvelin and Kekäläinen 2002, log2 discount)."""
    best = sum(gain / math.log2(rank + 2) for rank, gain in enumerate(sorted(gains.values(), reverse=True)[:top]))
    found = sum(gains.get(label, 0.0) / math.log2(rank + 2) for rank, label in enumerate(ranking[:top]))
    return found / best if best else 0.0


def against_truth(
    settings: Settings, taxonomy: Taxonomy, truth: Mapping[str, Mapping[str, float]]
) -> tuple[float, float]:
    """Return the mean NDCG@10 of all users' last profiles, and of one ranking by popularity for everybody.

    Popularity counts the labels that platforms' own categories give the events of the whole log.
    """
    rankings: dict[str, list[str]] = {}
    with ProfileConsumer(settings, from_start=True) as consumer:
        for change in consumer.changes(idle_s=3.0):
            if change.record is not None:
                rankings[change.user_id] = [interest.id for interest in change.record.data.interests]
    counts: Counter[str] = Counter()
    for event, _ in read_behavior(settings):
        if event is not None and not isinstance(event, RejectedEvent):
            counts.update(taxonomy.label_ids(iab=event.object.iab, categories=event.object.categories))
    popular = sorted(taxonomy.ids(), key=lambda label: (-counts[label], label))
    users = [user for user in rankings if user in truth]
    if not users:
        return 0.0, 0.0
    return (
        sum(ndcg(rankings[user], truth[user]) for user in users) / len(users),
        sum(ndcg(popular, truth[user]) for user in users) / len(users),
    )
