"""Claims: a run lands each chunk once, whichever segment meets it first, however many there are."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmcellar.backup import claims as module
from vmcellar.backup.claims import Claims

A, B = ("vda", 0), ("vda", 1)
IDS = st.tuples(st.integers(0, 3), st.integers(0, 6)).map(lambda pair: bytes([pair[0]]) * 8 + bytes([pair[1]]) * 24)
"""Many with the same beginning, which is what they are sorted by."""
OWNERS = st.sampled_from([A, B, ("vdb", 0)])
STEPS = st.one_of(
    st.tuples(st.just("claim"), IDS, OWNERS),
    st.tuples(st.just("adopt"), IDS, OWNERS),
    st.tuples(st.just("drop"), IDS, OWNERS),
)


def name(text: bytes) -> bytes:
    return text * 32


def test_a_chunk_is_landed_by_one_segment_and_again_when_that_is_read_again() -> None:
    claims = Claims()
    assert claims.claim(name(b"1"), A)
    assert not claims.claim(name(b"1"), B)
    assert not claims.claim(name(b"1"), A)
    claims.drop(A)
    assert claims.claim(name(b"1"), A)


def test_what_an_earlier_process_landed_is_not_landed_twice() -> None:
    claims = Claims()
    claims.adopt([name(b"1"), name(b"2")], A)
    assert not claims.claim(name(b"2"), B)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.integers(1, 4), st.lists(STEPS, max_size=60))
def test_any_order_gives_what_a_plain_dict_gives(recent: int, steps: list[tuple[str, bytes, tuple[str, int]]]) -> None:
    claims = Claims()
    model: dict[bytes, tuple[str, int]] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "RECENT", recent)
        patch.setattr(module, "RUN_MOST", 4 * recent)
        for what, chunk, owner in steps:
            if what == "claim":
                assert claims.claim(chunk, owner) == (chunk not in model)
            elif what == "adopt":
                claims.adopt([chunk], owner)
            else:
                claims.drop(owner)
                model = {each: holder for each, holder in model.items() if holder != owner}
                continue
            model.setdefault(chunk, owner)


def test_a_claim_takes_no_more_than_a_third_of_a_dict_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RECENT", 1 << 9)
    count = 1 << 14
    ids = np.random.default_rng(1).integers(0, 256, (count, 32), np.uint8).tobytes()
    claims = Claims()
    tracemalloc.start()
    try:
        claims.adopt((ids[start : start + 32] for start in range(0, len(ids), 32)), A)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 45 * count
    assert not claims.claim(ids[:32], B)
    assert not claims.claim(ids[-32:], B)
