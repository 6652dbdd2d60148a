"""Runs of failures out of cumulative counters, and who is ejected for them and for how long."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.config import Outlier, Server
from controlplane.outlier import FailureRuns, Outcomes, OutlierDetector, Runs
from controlplane.servers import Server as TableServer
from controlplane.servers import ServerTable

PORTS = range(9001, 9100)


def table(n: int, **options: object) -> ServerTable:
    servers = ServerTable(64)
    servers.configure([Server.model_validate({"address": f"127.0.0.1:{port}", **options}) for port in PORTS[:n]])
    return servers


def runs(table: ServerTable, errors: dict[int, int], gateway: dict[int, int] | None = None) -> Runs:
    found = Runs(*(np.zeros(len(table.slots), np.int64) for _ in range(3)))
    for slot, count in errors.items():
        found.errors[slot] = count
    for slot, count in (gateway or {}).items():
        found.gateway[slot] = count
    return found


class Counters:
    """The counters of workers, moved one flow at a time as the data plane does."""

    def __init__(self, workers: int, servers: int = 1) -> None:
        shape = (workers, servers)
        self.ids = np.ones(shape, np.uint64)
        self.fields = {name: np.zeros(shape, np.uint64) for name in Outcomes.__annotations__ if name != "ids"}

    def flow(self, worker: int, outcome: str, server: int = 0) -> None:
        at = (worker, server)
        self.fields[outcome][at] += 1
        for name in ("in_a_row", "gateway_in_a_row"):
            ended = outcome == "good" or (name == "gateway_in_a_row" and outcome == "errors_5xx")
            self.fields[name][at] = 0 if ended else self.fields[name][at] + 1

    def outcomes(self) -> Outcomes:
        return Outcomes(ids=self.ids.copy(), **{name: field.copy() for name, field in self.fields.items()})


def test_a_run_goes_on_from_poll_to_poll_until_a_good_answer():
    counters, follow = Counters(1), FailureRuns()
    follow.poll(counters.outcomes())
    for _ in range(3):
        counters.flow(0, "errors_5xx")
    assert follow.poll(counters.outcomes()).errors[0] == 3
    counters.flow(0, "broken")
    found = follow.poll(counters.outcomes())
    assert (found.errors[0], found.gateway[0]) == (4, 1)
    counters.flow(0, "good")
    counters.flow(0, "connect_failed")
    found = follow.poll(counters.outcomes())
    assert (found.errors[0], found.gateway[0], found.connect[0]) == (1, 1, 1)


@given(st.lists(st.tuples(st.sampled_from(["good", "errors_5xx", "connect_failed", "broken"]), st.booleans())))
def test_with_one_worker_the_run_is_exact_at_every_poll(flows):
    counters, follow, run = Counters(1), FailureRuns(), 0
    follow.poll(counters.outcomes())
    for outcome, poll in flows:
        counters.flow(0, outcome)
        run = 0 if outcome == "good" else run + 1
        if poll:
            assert follow.poll(counters.outcomes()).errors[0] == run


def test_failures_of_several_workers_add_up_while_nobody_succeeds():
    counters, follow = Counters(3), FailureRuns()
    follow.poll(counters.outcomes())
    for worker in (0, 1, 2):
        counters.flow(worker, "connect_failed")
    found = follow.poll(counters.outcomes())
    assert (found.errors[0], found.connect[0]) == (3, 3)


def test_an_old_run_of_an_idle_worker_does_not_count():
    counters, follow = Counters(2), FailureRuns()
    follow.poll(counters.outcomes())
    for _ in range(9):
        counters.flow(0, "errors_5xx")
    counters.flow(1, "good")
    follow.poll(counters.outcomes())
    counters.flow(1, "good")
    assert follow.poll(counters.outcomes()).errors[0] == 0


def test_a_data_plane_that_begins_anew_counts_from_zero():
    counters, follow = Counters(1), FailureRuns()
    for _ in range(100):
        counters.flow(0, "good")
    follow.poll(counters.outcomes())
    fresh = Counters(1)
    for _ in range(2):
        fresh.flow(0, "errors_5xx")
    assert follow.poll(fresh.outcomes()).errors[0] == 2


def test_what_happened_before_a_rebase_is_forgotten():
    counters, follow = Counters(1), FailureRuns()
    follow.poll(counters.outcomes())
    for _ in range(50):
        counters.flow(0, "broken")
    follow.rebase()
    assert follow.poll(counters.outcomes()).errors[0] == 0
    counters.flow(0, "broken")
    assert follow.poll(counters.outcomes()).errors[0] == 1


def test_five_errors_in_a_row_eject_for_the_base_time():
    servers, detector = table(3), OutlierDetector(Outlier())
    assert detector.judge(servers, runs(servers, {1: 4}), now=100.0) == []
    ((server, cause),) = detector.judge(servers, runs(servers, {1: 5}), now=100.0)
    assert (server.slot, cause, server.health) == (1, "5 errors in a row", "ejected")
    assert server.ejected_until == 130.0


def test_each_late_ejection_lasts_longer_up_to_the_most():
    servers, detector = table(2), OutlierDetector(Outlier(max_ejection_time="70s"))
    now, lasted = 0.0, []
    for _ in range(4):
        ((server, _),) = detector.judge(servers, runs(servers, {0: 5}), now)
        lasted.append(server.ejected_until - now)
        now = server.ejected_until
        assert detector.take_back(servers, now) == [(server, "its time is over")]
    assert lasted == [30.0, 60.0, 70.0, 70.0]


def test_a_server_that_behaves_is_forgiven_one_ejection_each_interval():
    servers, detector = table(2), OutlierDetector(Outlier(interval="10s"))
    server = servers.slots[0]
    assert server is not None
    server.ejections = 2
    for now, left in ((100.0, 1), (105.0, 1), (110.0, 0), (120.0, 0)):
        detector.take_back(servers, now)
        assert server.ejections == left


@pytest.mark.parametrize(("servers", "percent", "ejected"), [(3, 10, 1), (20, 10, 2), (20, 50, 10), (20, 0, 1)])
def test_no_more_than_the_percentage_is_out_but_one_always_may_be(servers, percent, ejected):
    all_of_them, detector = table(servers), OutlierDetector(Outlier(max_ejection_percent=percent))
    found = detector.judge(all_of_them, runs(all_of_them, dict.fromkeys(range(servers), 9)), now=1.0)
    assert len(found) == ejected


def test_the_last_server_is_never_ejected():
    alone, detector = table(1), OutlierDetector(Outlier())
    assert detector.judge(alone, runs(alone, {0: 99}), now=1.0) == []
    two = table(2)
    other = two.slots[1]
    assert other is not None
    other.up = False
    assert detector.judge(two, runs(two, {0: 99}), now=1.0) == []


def test_ejected_servers_come_back_when_nobody_else_is_left():
    servers, detector = table(2), OutlierDetector(Outlier())
    ((server, _),) = detector.judge(servers, runs(servers, {0: 5}), now=1.0)
    other = servers.slots[1]
    assert other is not None
    other.up = False
    assert detector.take_back(servers, now=1.1) == [(server, "nobody else is left")]
    assert server.takes_flows


def test_gateway_failures_have_a_threshold_of_their_own():
    servers = table(2)
    detector = OutlierDetector(Outlier(consecutive_5xx=0, consecutive_gateway_failure=3))
    ((_, cause),) = detector.judge(servers, runs(servers, {0: 50}, {0: 3}), now=1.0)
    assert cause == "3 gateway failures in a row"
    off = OutlierDetector(Outlier(consecutive_5xx=0, consecutive_gateway_failure=0))
    assert off.judge(table(2), runs(servers, {1: 50}, {1: 50}), now=1.0) == []


def test_refusals_count_although_the_server_still_answered_between_two_polls():
    counters, follow = Counters(1), FailureRuns()
    follow.poll(counters.outcomes())
    for outcome in ("good", "broken", "broken", "connect_failed", "connect_failed", "connect_failed"):
        counters.flow(0, outcome)
    assert follow.poll(counters.outcomes()).connect[0] == 3


def ejected(errors: int, gateway: int) -> tuple[TableServer, OutlierDetector]:
    servers, detector = table(2), OutlierDetector(Outlier())
    ((server, _),) = detector.judge(servers, runs(servers, {0: errors}, {0: gateway}), now=1.0)
    return server, detector


def test_a_server_that_did_not_answer_is_back_after_rise_good_checks_once():
    server, detector = ejected(errors=5, gateway=5)
    server.checks_good = 1
    assert not detector.checked_good(server, went_up=False, rise=2, now=2.0)
    server.checks_good = 2
    assert detector.checked_good(server, went_up=False, rise=2, now=2.0)
    assert server.health == "up"
    server.ejected_until, server.ejections = 99.0, 2
    assert not detector.checked_good(server, went_up=False, rise=2, now=2.0)


def test_good_checks_do_not_excuse_a_server_that_answers_errors_unless_it_was_down_meanwhile():
    server, detector = ejected(errors=5, gateway=0)
    server.checks_good = 50
    assert not detector.checked_good(server, went_up=False, rise=2, now=2.0)
    assert detector.checked_good(server, went_up=True, rise=2, now=2.0)


def test_enforcing_zero_and_no_settings_eject_nobody():
    servers = table(3)
    for detector in (OutlierDetector(None), OutlierDetector(Outlier(enforcing=0))):
        assert detector.judge(servers, runs(servers, {0: 99}), now=1.0) == []


def test_a_pause_of_the_machine_does_not_shorten_an_ejection():
    servers, detector = table(2), OutlierDetector(Outlier())
    ((server, _),) = detector.judge(servers, runs(servers, {0: 5}), now=0.0)
    detector.shift(servers, 10.0)
    assert detector.take_back(servers, 35.0) == []
    assert detector.take_back(servers, 40.0) == [(server, "its time is over")]
