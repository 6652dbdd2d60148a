"""Rule maglev: the table of the paper, even and little disturbed by changes; and flows that stay where they are.

Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, sections 3.4 and 5.3.
"""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.core import maglev_table
from tests.core.farm import Farm

MASK = 2**64 - 1


def mix(x):
    """splitmix64, as rng.h."""
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def table_model(weights, ids, size):
    """The paper's algorithm 1, a server taking its turn when its weight has added up to the heaviest's."""
    walks = [(mix(i ^ 0x6D61676C65766F66) % size, mix(i ^ 0x6D61676C6576736B) % (size - 1) + 1) for i in ids]
    preference = [iter([(offset + j * skip) % size for j in range(size)]) for offset, skip in walks]
    table, gained, filled = [None] * size, [0.0] * len(ids), 0
    while True:
        for i, weight in enumerate(weights):
            gained[i] += weight / max(weights)
            if gained[i] < 1:
                continue
            gained[i] -= 1
            slot = next(s for s in preference[i] if table[s] is None)
            table[slot] = i
            filled += 1
            if filled == size:
                return table


@settings(max_examples=60)
@given(
    st.lists(st.integers(0, 8), min_size=1, max_size=8).filter(any), st.sampled_from([7, 31, 101]), st.integers(0, MASK)
)
def test_a_table_is_as_the_model_says(weights, size, seed):
    ids = [mix(seed + i) for i in range(len(weights))]
    assert maglev_table(weights, ids, size).tolist() == table_model(weights, ids, size)


def test_entries_are_even():
    # Section 3.4: with equal weights the shares differ by one turn at most before the table is full.
    n, size = 100, 65537
    counts = np.bincount(maglev_table(np.ones(n), np.arange(1, n + 1), size), minlength=n)
    assert counts.max() - counts.min() <= 1


def test_entries_follow_the_weights():
    weights = np.array([1, 2, 4, 16, 0, 9])
    counts = np.bincount(maglev_table(weights, np.arange(1, 7), 10007), minlength=6)
    assert np.abs(counts - 10007 * weights / weights.sum()).max() <= 2


def test_a_server_that_leaves_disturbs_few_others():
    # Section 5.3: beyond the entries that have to move, a few per cent do, fewer the larger the table is.
    n, size = 100, 65537
    ids = np.arange(1, n + 1)
    before = maglev_table(np.ones(n), ids, size)
    weights = np.ones(n)
    weights[17] = 0
    after = maglev_table(weights, ids, size)
    stayed = before != 17
    assert not (after == 17).any()
    assert np.mean(before[stayed] != after[stayed]) < 0.04


def test_the_order_of_the_servers_matters_little_and_their_ids_all():
    # Balancers that list the same servers in another order agree on nearly all flows: a permutation is its id's alone.
    n, size = 20, 10007
    ids = np.arange(1, n + 1, dtype=np.uint64)
    straight, reversed_ = maglev_table(np.ones(n), ids, size), maglev_table(np.ones(n), ids[::-1], size)
    assert np.mean(ids[straight] == ids[::-1][reversed_]) > 0.9


@pytest.mark.parametrize(("weights", "size"), [([0, 0], 7), ([1, -1], 7), ([1, np.nan], 7), ([1, 1], 8), ([1, 1], 1)])
def test_bad_weights_and_sizes_that_are_no_prime_are_refused(weights, size):
    with pytest.raises(ValueError, match="Maglev"):
        maglev_table(weights, np.arange(len(weights)), size)


def direct(farm, weights):
    farm.direct("maglev", table=maglev_table(weights, farm.ids, 1021))


def places(farm, hashes=range(400)):
    return np.array([farm.dispatch(hash=mix(h)).server for h in hashes])


def test_a_flow_goes_where_the_table_says():
    with Farm(5) as farm:
        direct(farm, [1, 2, 3, 4, 5])
        table = maglev_table([1, 2, 3, 4, 5], farm.ids, 1021)
        assert places(farm).tolist() == [table[mix(h) % 1021] for h in range(400)]


def test_flows_of_a_server_that_is_out_spread_over_the_others_and_always_alike():
    with Farm(5) as farm:
        direct(farm, np.ones(5))
        before = places(farm)
        farm.change(2, health="down")
        after = places(farm)
        assert (after[before != 2] == before[before != 2]).all()
        moved = np.bincount(after[before == 2], minlength=5)
        assert moved[2] == 0
        assert (moved[[0, 1, 3, 4]] > 0).all()
        assert (places(farm) == after).all()
        farm.change(2, health="up")
        assert (places(farm) == before).all()


def test_a_slot_that_has_another_server_now_is_not_what_the_table_means():
    with Farm(3) as farm:
        direct(farm, np.ones(3))
        farm.change(1, id=1000)
        assert set(places(farm)) == {0, 2}


def test_in_slow_start_the_flows_taken_are_a_growing_set():
    with Farm(2, stale_after_ns=0) as farm:
        direct(farm, np.ones(2))
        everything = set(np.flatnonzero(places(farm) == 0))
        farm.change(0, slowstart_begin_ns=farm.now, slowstart_ns=10 * 10**9)
        taken = []
        for _ in range(4):
            farm.refresh()
            taken.append(set(np.flatnonzero(places(farm) == 0)))
            farm.now += 3 * 10**9
        assert all(a < b for a, b in itertools.pairwise(taken))
        assert taken[-1] <= everything


def test_the_last_server_takes_everything():
    with Farm(3) as farm:
        direct(farm, [1, 1, 0])
        farm.change(0, health="down")
        farm.change(1, health="ejected")
        assert set(places(farm)) == {2}


def test_the_fallback_hashes_by_configured_weights():
    with Farm(weights=[1, 3], fallback_rule="maglev") as farm:
        shares = np.bincount(places(farm, range(4000)), minlength=2) / 4000
        assert shares[1] == pytest.approx(0.75, abs=0.03)
