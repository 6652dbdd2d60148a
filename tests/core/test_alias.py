"""Rule alias: a lottery in proportion to the weights, exact in the table and fair in the draws."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.core import alias_table
from tests.core.farm import Farm, chi_square_p

weights = st.lists(st.one_of(st.just(0.0), st.floats(2**-10, 2**10, width=32)), min_size=1, max_size=50)


def shares_of(keep, other):
    """Return the exact share of each server that a table gives; a full column keeps all."""
    n = len(keep)
    shares = [Fraction(0)] * n
    for i in range(n):
        kept = Fraction(1) if other[i] == i else Fraction(int(keep[i]), 2**32)
        shares[i] += kept / n
        shares[other[i]] += (1 - kept) / n
    return shares


@given(weights.filter(any))
def test_a_table_gives_each_server_its_share(weights):
    shares = shares_of(*alias_table(weights))
    total = sum(Fraction(w) for w in np.float32(weights).tolist())
    for share, weight in zip(shares, np.float32(weights).tolist(), strict=True):
        assert abs(share - Fraction(weight) / total) <= Fraction(len(weights), 2**32)
        assert share > 0 or weight == 0 or weight / float(total) < 2**-31


def test_uniform_weights_need_no_other():
    keep, other = alias_table(np.ones(7))
    assert other.tolist() == list(range(7))
    assert (keep == 2**32 - 1).all()


@pytest.mark.parametrize("bad", [[], [0, 0], [1, -1], [1, np.nan], [1, np.inf]])
def test_bad_weights_are_refused(bad):
    with pytest.raises(ValueError, match="weights"):
        alias_table(bad)


def direct(farm, shares, **fields):
    keep, other = alias_table(shares)
    farm.direct("alias", alias_keep=keep, alias_other=other, **fields)


@pytest.mark.parametrize("weights", [[1, 1, 1, 1, 1], [1, 2, 4, 8, 16], [0, 3, 0, 1, 1], [5]])
def test_draws_follow_the_weights(weights):
    with Farm(len(weights)) as farm:
        direct(farm, weights)
        won = farm.balancer.drill_dispatch(30_000)
        assert chi_square_p(won, weights) > 1e-4
        assert farm.dispatch().price == np.inf


def test_draws_among_those_with_room_keep_their_odds():
    weights = [1, 2, 3, 4, 90]
    with Farm(5) as farm:
        farm.servers[4].maxconn = 1
        farm.publish_settings()
        direct(farm, weights)
        flows = farm.load([0, 0, 0, 0, 1])
        assert chi_square_p(farm.balancer.drill_dispatch(30_000), [1, 2, 3, 4, 0]) > 1e-4
        assert len(flows) == 1


def test_a_server_that_joined_draws_by_its_configured_weight():
    # The known: 10 and 30 learned for 1 and 1 configured, so 20 for each unit of weight: 10, 30, 40.
    with Farm(2, max_servers=3) as farm:
        direct(farm, [10, 30], weights=[10, 30])
        farm.servers.append(type(farm.servers[0])(id=9, weight=2))
        farm.publish_settings()
        farm.refresh()
        assert chi_square_p(farm.balancer.drill_dispatch(30_000), [10, 30, 40]) > 1e-4


def test_weights_are_recovered_from_a_table_alone():
    with Farm(3) as farm:
        direct(farm, [10, 30, 5])
        farm.change(2, id=77, weight=2)
        # the known have 40 of 45, n = 3: 20 for each unit of weight; the newcomer has two
        assert chi_square_p(farm.balancer.drill_dispatch(30_000), [10, 30, 40]) > 1e-4


def test_a_server_in_slow_start_gets_a_part_of_its_share():
    with Farm(3, stale_after_ns=0) as farm:
        direct(farm, [1, 1, 2])
        farm.change(0, slowstart_begin_ns=farm.now, slowstart_ns=10 * 10**9)
        assert chi_square_p(farm.balancer.drill_dispatch(30_000), [0.1, 1, 2]) > 1e-4
        farm.now += 5 * 10**9
        farm.refresh()
        assert chi_square_p(farm.balancer.drill_dispatch(30_000), [0.5, 1, 2]) > 1e-4


def test_the_only_server_left_is_used_though_the_policy_gave_it_nothing():
    with Farm(3) as farm:
        direct(farm, [1, 1, 0])
        farm.change(0, health="down")
        farm.change(1, state="maint")
        assert farm.dispatch().server == 2


def test_the_fallback_draws_by_configured_weights():
    with Farm(weights=[1, 2, 5], fallback_rule="alias") as farm:
        assert chi_square_p(farm.balancer.drill_dispatch(30_000), [1, 2, 5]) > 1e-4
