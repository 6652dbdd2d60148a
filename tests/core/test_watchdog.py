"""Without a live controller the fallback rule dispatches, and stops as soon as there is one."""

import pytest

from shm_layout.segment import DirectiveData
from tests.core.farm import RULE, SECOND, Farm, whole_curve


def state(farm):
    worker = farm.balancer.worker()
    return int(worker["fallback_active"]), int(worker["fallback_entered"]), int(worker["rule"])


def beat(farm):
    """The controller's heartbeat, at the farm's time."""
    from shm_layout._segment import lib

    lib.segment_controller_beat(farm.segment.base, farm.now, 1000, 0, 0)


def test_before_the_first_directive_the_fallback_dispatches():
    with Farm(2, fallback_rule="wrr") as farm:
        assert state(farm) == (1, 0, RULE["wrr"])
        assert farm.dispatch().rule == RULE["wrr"]
        assert farm.balancer.worker()["auctions_fallback"] == 1
        farm.curves([[1, 2], [3, 4]])
        assert state(farm) == (0, 0, RULE["bids"])
        assert farm.dispatch().bid == 1


def test_the_fallback_takes_over_after_stale_after_and_hands_back():
    with Farm(2, stale_after_ns=3 * SECOND, fallback_rule="wrr") as farm:
        farm.curves([[1, 2], [3, 4]])
        farm.now += 3 * SECOND
        farm.refresh()
        assert state(farm) == (0, 0, RULE["bids"])
        farm.now += 1
        farm.refresh()
        assert state(farm) == (1, 1, RULE["wrr"])
        assert {farm.dispatch().server for _ in range(4)} == {0, 1}
        beat(farm)
        farm.refresh()
        assert state(farm) == (0, 1, RULE["bids"])
        assert farm.dispatch().bid == 1


def test_a_heartbeat_alone_keeps_the_directive_in_force():
    with Farm(2) as farm:
        farm.curves([[1, 2], [3, 4]])
        for _ in range(10):
            farm.now += 2 * SECOND
            beat(farm)
            farm.refresh()
            assert state(farm)[0] == 0


def test_a_heartbeat_from_a_far_future_is_no_sign_of_life():
    with Farm(2) as farm:
        farm.curves([[1, 2], [3, 4]])
        here, farm.now = farm.now, farm.now + 10**18
        beat(farm)
        farm.now = here + 4 * SECOND
        farm.refresh()
        assert state(farm)[0] == 1


def test_the_keys_are_right_when_the_fallback_takes_over_and_when_it_hands_back():
    with Farm(3) as farm:
        farm.curves([[0, 1, 2, 3]] * 3)
        flows = farm.load([2, 1, 2])
        farm.now += 4 * SECOND
        farm.refresh()
        award = farm.dispatch()  # lsq, over what happened before
        assert (award.server, award.bid, award.price) == (1, 1, 2)
        flows += farm.load([0, 2, 0])
        beat(farm)
        farm.refresh()
        award = farm.dispatch()
        assert (award.bid, award.price) == (2, 2)
        assert award.server in (0, 2)
        assert len(flows) == 7


@pytest.mark.parametrize("percent", [0, 30, 100])
def test_a_share_of_the_flows_follows_the_directive_the_rest_the_fallback(percent):
    with Farm(2) as farm:
        farm.curves([[9, 10], [5, 6]], enforcing_percent=percent)
        flows = farm.load([0, 1])  # least connections would take 0, the directive 1
        won = farm.balancer.drill_dispatch(10_000)
        assert won[1] / 10_000 == pytest.approx(percent / 100, abs=0.03)
        assert farm.balancer.worker()["auctions_fallback"] == won[0]
        assert len(flows) == 1


def test_a_restarted_data_plane_takes_the_directive_that_lies_there():
    with Farm(2) as farm:
        directive = DirectiveData(
            ids=farm.ids, rule="bids", curves=[whole_curve([4, 5]), whole_curve([2, 3])], issued_ns=farm.now, sequence=9
        )
        farm.segment.publish_directive(directive)
        from dataplane.core import Balancer

        farm.balancers[:] = [Balancer(farm.segment, now_ns=farm.now + SECOND, repair=True)]
        assert farm.dispatch().bid == 2
        assert farm.balancer.worker()["directive_sequence"] == 9
