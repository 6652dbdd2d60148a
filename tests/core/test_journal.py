"""Workers follow each other's journals: an auction knows the flows that other workers opened and closed."""

from dataplane.core import Balancer
from tests.core.farm import SECOND, Farm


def test_a_worker_sees_at_its_next_dispatch_what_another_did():
    with Farm(3, workers=2) as farm:
        farm.curves([[0, 1, 2, 3]] * 3)
        a, b = farm.balancers
        flows = farm.load([2, 1, 2], worker=0)
        award = b.dispatch(farm.now)
        assert (award.server, award.bid, award.price) == (1, 1, 2)
        a.close(flows[0], farm.now)
        a.close(flows[1], farm.now)
        award = b.dispatch(farm.now)
        assert (award.server, award.bid, award.price) == (0, 0, 1)


def test_a_limit_holds_over_all_workers():
    with Farm(1, workers=3) as farm:
        farm.change(0, maxconn=3)
        flows = [balancer.open(0, farm.now) for balancer in farm.balancers]
        assert all(balancer.dispatch(farm.now).full for balancer in farm.balancers)
        farm.balancers[2].close(flows[2], farm.now)
        assert all(balancer.dispatch(farm.now).server == 0 for balancer in farm.balancers)


def test_a_journal_that_came_round_is_made_up_for():
    with Farm(8, workers=2, journal_slots=64) as farm:
        farm.curves([[0, 100, 200, 300]] * 8)
        farm.load([30] * 7 + [29], worker=0)  # 239 entries into 64 slots
        award = farm.balancers[1].dispatch(farm.now)
        assert (award.server, award.bid, award.price) == (7, 2900, 3000)


def test_a_worker_that_comes_late_is_noticed_with_all_that_it_did():
    with Farm(2, workers=2) as farm:
        farm.curves([[0, 1, 2], [0.5, 1, 2]])
        farm.balancers[1] = Balancer(farm.segment, worker=1, now_ns=farm.now)
        farm.load([2, 0], worker=1)
        farm.meet()
        assert farm.balancers[0].dispatch(farm.now).server == 1


def test_a_worker_that_is_gone_is_no_longer_read():
    with Farm(2, workers=2, stale_after_ns=0) as farm:
        farm.curves([[0, 1, 2], [0.5, 1, 2]])
        farm.now += 6 * SECOND
        farm.balancers[0].refresh(farm.now)  # the other has not beaten for six seconds
        farm.load([2, 0], worker=1)
        assert farm.balancers[0].dispatch(farm.now).server == 0
        farm.meet()  # the other beats again …
        farm.meet()  # … and is noticed
        assert farm.balancers[0].dispatch(farm.now).server == 1
