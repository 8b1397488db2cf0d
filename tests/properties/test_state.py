"""The laws of what a worker keeps: stores, changelogs and leftovers are reconciled in any order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import publications, text_entries, windows
from xplat_stream.event import TextHash, UserId
from xplat_stream.state import MAX_VECTORS, Publication, TextEntry, UserState, text_key, user_key
from xplat_stream.window import WindowSpec

SPEC = WindowSpec(per_platform=4)


def states() -> st.SearchStrategy[UserState]:
    """Draw user states of one spec."""
    return st.builds(UserState, windows(SPEC), publications())


@given(states())
def test_pack_round_trips(state: UserState) -> None:
    """Unpacking gives the packed state, to the byte."""
    back = UserState.unpack(SPEC, state.pack())
    assert back == state
    assert back.pack() == state.pack()


@given(states(), st.integers(0, 400), st.binary(max_size=100))
def test_broken_states_are_refused_or_read(state: UserState, cut: int, noise: bytes) -> None:
    """Bytes that are not a state raise `ValueError` and nothing else."""
    for broken in (state.pack()[:cut], noise, state.pack() + noise):
        try:
            UserState.unpack(SPEC, broken)
        except ValueError:
            continue


@given(states(), states(), states())
def test_states_merge_in_any_order(a: UserState, b: UserState, c: UserState) -> None:
    """Merge is associative, commutative and idempotent, publications of equal revision included."""
    assert a.merge(b).pack() == b.merge(a).pack()
    assert a.merge(b).merge(c).pack() == a.merge(b.merge(c)).pack()
    assert a.merge(a).pack() == a.pack()


@given(states(), states())
def test_the_highest_revision_is_kept(a: UserState, b: UserState) -> None:
    """A revision never goes back by a merge, and both windows are in it."""
    merged = a.merge(b)
    assert merged.publication in (a.publication, b.publication)
    assert merged.publication.revision == max(a.publication.revision, b.publication.revision)
    assert merged.window == a.window.merge(b.window)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.integers(1, 2**32 - 1))
def test_published_scores_are_kept_to_one_step(scores: list[float], release: int) -> None:
    """What was published is remembered to 1/65535: fine enough to tell a move of a hundredth."""
    after = Publication(revision=3, pending=True).published(release, scores)
    assert (after.revision, after.release) == (3, release)
    for index, score in enumerate(scores):
        found = after.score_of(index)
        assert found is not None
        assert abs(found - score) <= 0.5 / 0xFFFF + 1e-12
    assert after.score_of(len(scores)) is None


@given(text_entries(), text_entries(), text_entries())
def test_texts_merge_in_any_order(a: TextEntry, b: TextEntry, c: TextEntry) -> None:
    """Merge is a join: the newer encoder's vector comes first, and of older ones the newest two stay."""
    assert a.merge(b) == b.merge(a)
    assert a.merge(b).merge(c) == a.merge(b.merge(c))
    assert a.merge(a) == a
    merged = a.merge(b)
    assert merged.encoder == max(a.encoder, b.encoder)
    assert merged.vectors.keys() <= a.vectors.keys() | b.vectors.keys()
    assert len(merged.vectors) <= MAX_VECTORS
    older = sorted({one for one in a.vectors.keys() | b.vectors.keys() if one < merged.encoder}, reverse=True)
    assert [encoder for encoder, _ in merged.others] == older[: MAX_VECTORS - 1]


@given(text_entries(), st.binary(max_size=60))
def test_text_entries_round_trip(entry: TextEntry, noise: bytes) -> None:
    """Unpacking gives the packed entry; other bytes raise `ValueError` and nothing else."""
    assert TextEntry.unpack(entry.pack()) == entry
    for broken in (noise, entry.pack()[:-1], entry.pack() + noise):
        try:
            TextEntry.unpack(broken)
        except ValueError:
            continue


@given(st.text(max_size=20), st.binary(min_size=8, max_size=8))
def test_keys_of_users_and_texts_never_meet(user: str, text_hash: bytes) -> None:
    """Users and texts share a store without sharing a key."""
    assert user_key(UserId(user)) != text_key(TextHash(text_hash))
