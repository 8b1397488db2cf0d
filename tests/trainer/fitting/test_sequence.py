from __future__ import annotations

import numpy as np
import pytest
import torch

from trainer.fitting.sequence import SequenceModel, SequenceOptions, Sequences, fit_sequences, last_states
from trainer.run.progress import silent
from xplat_stream.errors import DataError

DAY_MS = 86_400_000
ITEMS = 40
PLATFORM = np.arange(ITEMS) % 2
SMALL = SequenceOptions(width=16, layers=1, heads=2, dropout=0.1, negatives=ITEMS, batch=16, epochs=30, patience=30)


def successor(item: int) -> int:
    """The planted rule: what is touched next."""
    return (item * 7 + 3) % ITEMS


def planted(users: int, events: int = 8, seed: int = 0) -> Sequences:
    random = np.random.default_rng(seed)
    items, times = [], []
    for _ in range(users):
        walk = [int(random.integers(ITEMS))]
        while len(walk) < events:
            walk.append(successor(walk[-1]))
        items.append(np.array(walk))
        times.append(np.sort(random.integers(0, 300, events)) * DAY_MS)
    return Sequences.of(items, times, 50)


def train(options: SequenceOptions = SMALL, text: np.ndarray | None = None) -> SequenceModel:
    return fit_sequences(planted(120), PLATFORM, text=text, options=options, quality=lambda _: 0.0, report=silent)


@pytest.fixture(scope="module")
def model() -> SequenceModel:
    # A quality that rises each epoch keeps the last one's weights.
    rising = iter(range(1000))
    return fit_sequences(
        planted(120), PLATFORM, text=None, options=SMALL, quality=lambda _: float(next(rising)), report=silent
    )


def test_a_planted_rule_is_learned(model):
    """What always follows an item is foretold for people the model never saw."""
    strangers = planted(60, seed=9)
    found = []
    with torch.no_grad():
        states = last_states(model, strangers)
        for row, length in enumerate(strangers.length):
            wanted = successor(int(strangers.item[row, length - 1]) - 1)
            shelf = np.flatnonzero(PLATFORM[wanted] == PLATFORM)
            logits = model.logits(states[row : row + 1], int(PLATFORM[wanted]), torch.from_numpy(shelf + 1))
            found.append(shelf[int(logits.argmax())] == wanted)
    assert np.mean(found) > 0.9


def test_a_state_knows_nothing_of_what_comes_after_it(model):
    """Other events on the right, or padding, leave every earlier state as it was."""
    sequences = planted(4)
    item, time = torch.from_numpy(sequences.item), torch.from_numpy(sequences.time)
    with torch.no_grad():
        whole = model(item, time)
        other = item.clone()
        other[:, 5:] = 1 + (other[:, 5:] + 3) % ITEMS
        torch.testing.assert_close(model(other, time)[:, :5], whole[:, :5])
        torch.testing.assert_close(model(item[:, :5], time[:, :5]), whole[:, :5])


def test_company_and_order_of_users_change_nothing(model):
    """A user's last state is the same alone and among others of any length."""
    long, short = planted(3, events=8), planted(3, events=4, seed=2)
    mixed = Sequences.of(
        [*(row[:8] - 1 for row in long.item), *(row[:4] - 1 for row in short.item)],
        [*(row[:8] for row in long.time), *(row[:4] for row in short.time)],
        50,
    )
    together = last_states(model, mixed)
    torch.testing.assert_close(together[:3], last_states(model, long))
    torch.testing.assert_close(together[3:], last_states(model, short))


def test_the_same_seed_gives_the_same_weights_and_another_others():
    """A figure that is reported can be made again."""
    options = SequenceOptions(width=8, layers=1, heads=1, epochs=2)
    first, again = train(options).state_dict(), train(options).state_dict()
    other = train(SequenceOptions(width=8, layers=1, heads=1, epochs=2, seed=1)).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["item.weight"], other["item.weight"])


def test_the_randomness_of_others_is_left_alone():
    """Training moves neither torch's generator nor its threads."""
    torch.manual_seed(4)
    threads, wanted = torch.get_num_threads(), torch.rand(3)
    torch.manual_seed(4)
    train(SequenceOptions(width=8, layers=1, heads=1, epochs=1))
    assert torch.equal(torch.rand(3), wanted)
    assert torch.get_num_threads() == threads


def test_training_stops_and_keeps_the_best_epoch():
    """Weights are those of the epoch with the highest quality; as many epochs as patience allows come after it."""
    qualities, seen = iter([0.1, 0.5, 0.3, 0.2, 0.9]), []

    def quality(one: SequenceModel) -> float:
        seen.append(one.item.weight.detach().clone())
        return next(qualities)

    options = SequenceOptions(width=8, layers=1, heads=1, epochs=5, patience=2)
    kept = fit_sequences(planted(40), PLATFORM, text=None, options=options, quality=quality, report=silent)
    assert len(seen) == 4
    assert torch.equal(kept.item.weight, seen[1])


def test_an_item_nobody_touched_speaks_by_its_text_alone():
    """Its id embedding is zero, so two untouched items with one text have one vector."""
    items = [np.array([0, 1, 2, 3])] * 8
    times = [np.arange(4) * DAY_MS] * 8
    text = np.ones((ITEMS, 4), np.float32)
    found = fit_sequences(
        Sequences.of(items, times, 50),
        PLATFORM,
        text=text,
        options=SequenceOptions(width=8, layers=1, heads=1, epochs=2),
        quality=lambda _: 0.0,
        report=silent,
    )
    vectors = found.items(torch.tensor([30, 35, 1]))
    assert torch.equal(vectors[0], vectors[1])
    assert not torch.equal(vectors[0], vectors[2])


def test_only_the_newest_events_are_kept():
    """A sequence longer than allowed loses its oldest."""
    found = Sequences.of([np.arange(9)], [np.arange(9) * 10], 4)
    assert found.item.tolist() == [[6, 7, 8, 9]]
    assert found.time.tolist() == [[50, 60, 70, 80]]
    assert found.length.tolist() == [4]


def test_an_empty_history_has_a_state_of_zeros(model):
    """Nobody known is scored by how often items are touched, not by padding."""
    nobody = Sequences.of([np.zeros(0, np.int64)], [np.zeros(0, np.int64)], 50)
    assert not last_states(model, nobody).any()


@pytest.mark.parametrize(
    ("items", "times", "what"),
    [
        ([np.arange(3)], [np.arange(2)], "3 items with 2 times"),
        ([np.arange(1)] * 3, [np.arange(1)] * 3, "none of 3 sequences holds two events"),
        ([], [], "none of 0 sequences holds two events"),
    ],
    ids=["unequal", "nothing-follows", "nobody"],
)
def test_data_that_teaches_nothing_is_refused(items, times, what):
    """The error says what, where, what was expected and what to do."""
    with pytest.raises(DataError) as caught:
        fit_sequences(
            Sequences.of(items, times, 50), PLATFORM, text=None, options=SMALL, quality=lambda _: 0.0, report=silent
        )
    assert what in str(caught.value)
    assert all((caught.value.where, caught.value.expected, caught.value.fix))
