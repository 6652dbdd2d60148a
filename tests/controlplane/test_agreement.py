"""How far two directives agree: the share of the flows that both would send to the same servers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.deployment.agreement import DEPTH, agreement, shares
from controlplane.policy import CURVE_N, Directive
from tests.policies.observations import observation


def bids(slopes: Any, n: int) -> Directive:
    return Directive(rule="bids", curves=(CURVE_N + 1) * np.asarray(slopes, dtype=float)[:n, None])


@settings(max_examples=60)
@given(
    st.integers(1, 12).flatmap(
        lambda n: st.tuples(
            *(st.lists(st.floats(0.1, 10), min_size=n, max_size=n) for _ in range(3)),
            st.lists(st.integers(0, 300), min_size=n, max_size=n),
            st.lists(st.booleans(), min_size=n, max_size=n),
        )
    )
)
def test_agreement_is_a_share_the_same_both_ways_and_whole_with_itself(drawn):
    one, other, weights, in_flight, active = drawn
    n = len(one)
    o = observation(n, in_flight=np.array(in_flight, dtype=float), active=np.array(active))
    directives = [bids(one, n), bids(other, n), Directive(rule="alias", weights=np.array(weights))]
    for a in directives:
        assert agreement(a, a, o) == pytest.approx(1.0)
        got = shares(a, o)
        assert got.sum() == pytest.approx(1.0 if any(active) else 0.0)
        assert (got[~np.array(active)] == 0).all()
        for b in directives:
            assert agreement(a, b, o) + 1e-9 >= 0.0
            assert agreement(a, b, o) == pytest.approx(agreement(b, a, o))


def test_agreement_by_hand():
    o = observation(2)
    assert agreement(bids([1, 1], 2), bids([1, 3], 2), o) == pytest.approx(1 - abs(4 - 6) / DEPTH)
    left, right = (Directive(rule="alias", weights=np.array(w)) for w in ([1.0, 0.0], [0.0, 1.0]))
    assert agreement(left, right, o) == 0.0
