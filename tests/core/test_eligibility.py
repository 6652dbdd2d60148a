"""Who may take a flow: state, health, weight, maxconn, backups; and what an award says when nobody may."""

import pytest

from dataplane.core import NO_SERVER
from tests.core.farm import Farm, classic_rows, whole_curve

RULES = ("maglev", "alias", "wrr", "bids", "classic")


@pytest.fixture(params=RULES)
def farm(request):
    """Three equal servers under each rule."""
    n, rule = 3, request.param
    fields = {
        "maglev": {"table": [0, 1, 2, 0, 1, 2, 0]},
        "alias": {"alias_keep": [2**32 - 1] * n, "alias_other": [0, 1, 2]},
        "wrr": {"weights": [1] * n},
        "bids": {"curves": [whole_curve([1, 2])] * n},
        "classic": {"classic": classic_rows([{"capacity": 100}] * n)},
    }[rule]
    with Farm(n) as farm:
        farm.direct(rule, **fields)
        yield farm


def winners(farm, n=300, **fields):
    return {farm.dispatch(hash=i * 0x9E3779B97F4A7C15 % 2**64, **fields).server for i in range(n)}


def test_everybody_takes_part(farm):
    assert winners(farm) == {0, 1, 2}


@pytest.mark.parametrize(
    "change",
    [{"state": "drain"}, {"state": "maint"}, {"health": "down"}, {"health": "ejected"}, {"weight": 0}],
    ids=lambda change: "-".join(map(str, *change.items())),
)
def test_a_server_that_is_out_takes_no_new_flows_and_comes_back(farm, change):
    before = {name: getattr(farm.servers[1], name) for name in change}
    farm.change(1, **change)
    assert winners(farm) == {0, 2}
    farm.change(1, **before)
    assert winners(farm) == {0, 1, 2}


def test_a_freed_slot_takes_no_flows(farm):
    farm.change(1, id=0, state="free", weight=0)
    assert winners(farm) == {0, 2}


def test_a_full_server_takes_no_flows_until_one_closes(farm):
    farm.change(1, maxconn=2)
    flows = farm.load([0, 2, 0])
    assert winners(farm) == {0, 2}
    farm.balancer.close(flows[0], farm.now)
    if farm.directive.rule not in ("bids", "classic"):  # there one more flow makes it the dearer one
        assert winners(farm) == {0, 1, 2}
    else:
        farm.load([3, 0, 3])
        assert winners(farm) == {1}


def test_all_full_is_wait_and_all_down_is_not(farm):
    for slot in range(3):
        farm.change(slot, maxconn=1)
    flows = farm.load([1, 1, 1])
    award = farm.dispatch()
    assert (award.server, award.full) == (NO_SERVER, True)
    assert farm.balancer.worker()["no_server_full"] == 1
    for slot in range(3):
        farm.change(slot, health="down")
    award = farm.dispatch()
    assert (award.server, award.full) == (NO_SERVER, False)
    assert farm.balancer.worker()["no_server_down"] == 1
    assert len(flows) == 3


def test_backups_serve_only_while_nobody_else_is_up(farm):
    farm.change(0, backup=True)
    farm.change(1, backup=True)
    assert winners(farm) == {2}
    farm.change(2, health="down")
    assert winners(farm) == {0, 1}
    farm.change(2, health="up")
    assert winners(farm) == {2}


def test_a_full_server_does_not_call_the_backups(farm):
    farm.change(0, backup=True)
    farm.change(1, backup=True)
    farm.change(2, maxconn=1)
    flows = farm.load([0, 0, 1])
    assert farm.dispatch().full
    assert len(flows) == 1


def test_the_server_to_avoid_is_taken_only_when_it_is_the_last(farm):
    assert winners(farm, avoid=1) == {0, 2}
    farm.change(0, health="down")
    farm.change(2, health="down")
    assert winners(farm, avoid=1) == {1}


def test_up_means_that_open_flows_may_stay(farm):
    balancer = farm.balancer
    farm.change(0, state="drain")
    farm.change(1, state="maint")
    farm.change(2, health="down")
    assert [balancer.is_up(slot) for slot in (0, 1, 2, 3)] == [True, False, False, False]
