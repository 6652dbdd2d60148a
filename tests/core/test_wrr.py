"""Rule wrr: smooth weighted round robin, turn by turn as nginx has it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.farm import Farm

TURN = 2**24


def smooth_turns(weights, n):
    """nginx's algorithm, on weights scaled as the rule scales them."""
    total = sum(np.float32(w) for w in weights)
    steps = [max(1, int(float(w) / float(total) * TURN + 0.5)) if w else 0 for w in weights]
    gained, turns = [0] * len(weights), []
    for _ in range(n):
        gained = [g + s for g, s in zip(gained, steps, strict=True)]
        best = max((i for i, s in enumerate(steps) if s), key=lambda i: gained[i])
        gained[best] -= sum(steps)
        turns.append(best)
    return turns


@settings(max_examples=60)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=9).filter(any))
def test_turns_are_as_the_model_says(weights):
    with Farm(len(weights)) as farm:
        farm.direct("wrr", weights=weights)
        assert [farm.dispatch().server for _ in range(60)] == smooth_turns(weights, 60)


def test_the_known_example_comes_out():
    # nginx commit 52327e0627f4 (2012): weights 5, 1, 1 give a a b a c a a; the lowest slot wins equal turns
    with Farm(3) as farm:
        farm.direct("wrr", weights=[5, 1, 1])
        assert "".join("abc"[farm.dispatch().server] for _ in range(14)) == "aabacaa" * 2


def test_no_run_of_turns_is_far_from_its_share():
    weights = np.array([1, 2, 3, 5, 8, 13, 21, 34])
    with Farm(len(weights)) as farm:
        farm.direct("wrr", weights=weights)
        turns = np.array([farm.dispatch().server for _ in range(2 * weights.sum())])
    share = np.cumsum(turns[:, None] == np.arange(len(weights)), axis=0)
    expected = np.arange(1, len(turns) + 1)[:, None] * weights / weights.sum()
    assert np.abs(share - expected).max() < 2
    assert (share[weights.sum() - 1] == weights).all()


def test_a_full_server_sits_out_and_the_others_keep_their_shares():
    with Farm(3) as farm:
        farm.servers[0].maxconn = 1
        farm.publish_settings()
        farm.direct("wrr", weights=[10, 2, 1])
        flows = farm.load([1, 0, 0])
        assert farm.balancer.drill_dispatch(300).tolist() == [0, 200, 100]
        farm.balancer.close(flows[0], farm.now)
        won = farm.balancer.drill_dispatch(1300)
        assert np.abs(won.astype(int) - [1000, 200, 100]).max() <= 2


def test_turns_go_on_where_they_were_when_the_weights_are_written_again():
    with Farm(4) as farm:
        servers = []
        for _ in range(20):
            farm.direct("wrr", weights=[1, 1, 1, 1])
            servers.append(farm.dispatch().server)
        assert sorted(servers) == sorted(list(range(4)) * 5)


def test_a_server_in_slow_start_has_fewer_turns():
    with Farm(2, stale_after_ns=0) as farm:
        farm.direct("wrr", weights=[1, 1])
        farm.change(0, slowstart_begin_ns=farm.now, slowstart_ns=10 * 10**9)
        won = farm.balancer.drill_dispatch(1100)
        assert won.tolist() == pytest.approx([100, 1000], abs=2)


def test_the_only_server_left_is_used_though_the_policy_gave_it_nothing():
    with Farm(2) as farm:
        farm.direct("wrr", weights=[1, 0])
        farm.change(0, health="down")
        assert farm.dispatch().server == 1


def test_the_fallback_turns_by_configured_weights():
    with Farm(weights=[3, 1], fallback_rule="wrr") as farm:
        assert farm.balancer.drill_dispatch(400).tolist() == [300, 100]
