"""The auction on live traffic: real backends in every mode, and the ledger that the controller keeps of it."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import json
import os
import time
from pathlib import Path

import pytest

from controlplane.auction import ledger as ledgers
from controlplane.auction.ledger import Ledger, verify
from controlplane.auction.live_ledger import LiveLedger, check_writable
from testbed import clock
from testbed.demand import Demand
from testbed.farm import Farm as RealFarm
from testbed.load.generator import Generator, Target
from testbed.load.report import summarize
from testbed.load.schedule import poisson
from testbed.peers import vickrey
from testbed.peers.peer import Server
from tests.policies.farm import Backend, Farm

SPEEDS = (1, 1, 1, 1, 2, 2, 4, 4)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def kinds(path: Path) -> dict[str, int]:
    return verify(path).kinds


def eventually(true, seconds=10.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def run_rounds(farm, seconds):
    """Run, and let the ledger's writer keep up with simulated time."""
    for _ in range(int(seconds / 0.2)):
        farm.run(0.2)
        time.sleep(0.002)


# --- the ledger -------------------------------------------------------------------------------------------------------


def test_each_round_is_on_record_and_the_chain_is_sound(tmp_path):
    path = tmp_path / "auction.jsonl"
    spec = {"name": "auction", "ledger": str(path), "ledger_sample": 1.0}
    with Farm([Backend(0.02), Backend(0.04)], rate=150.0, policy=spec, reserve="classic") as farm:
        run_rounds(farm, 6.0)
        assert farm.loop.show()["ledger"]["error"] is None
        rounds = farm.loop.ledger.rounds
        farm.loop.close()
    assert verify(path).ok
    found = [line for line in lines(path) if line["kind"] == "round"]
    assert len(found) == rounds >= 25
    assert [line["round"] for line in found] == list(range(rounds))
    last = found[-1]
    assert last["rule"] == "classic"
    assert last["reserve"] > 0
    assert last["bid"] <= last["price"]
    assert sum(server["won"] for server in last["servers"]) == last["auctions"]
    for server in last["servers"]:
        assert {"name", "sensitivity", "capacity", "load_ratio", "shapley", "bid", "price", "margin"} <= set(server)


def test_idle_rounds_are_skipped(tmp_path):
    path = tmp_path / "auction.jsonl"
    with Farm([Backend(0.02)], rate=100.0, policy={"name": "auction", "ledger": str(path)}) as farm:
        run_rounds(farm, 2.0)
        farm.rate = 1e-3
        farm._finish()
        before = farm.loop.ledger.rounds
        farm.now += 100.0
        for _ in range(20):
            farm.loop.cycle(int(farm.now * 1e9))
            farm.now += 0.2
        assert farm.loop.ledger.rounds <= before + 1
        farm.loop.close()
    assert verify(path).ok


def test_any_policy_may_keep_a_ledger_and_a_swap_continues_the_chain(tmp_path):
    path = tmp_path / "auction.jsonl"
    with Farm([Backend(0.02)] * 2, rate=150.0, policy={"name": "auction", "ledger": str(path)}) as farm:
        run_rounds(farm, 2.0)
        same = farm.loop.ledger
        farm.loop.swap({"name": "adaptive", "ledger": str(path)}, lambda error: None)
        run_rounds(farm, 2.0)
        assert farm.loop.ledger is same
        farm.loop.swap("lsq", lambda error: None)
        run_rounds(farm, 2.0)
        assert farm.loop.ledger is None
        assert "ledger" not in farm.loop.show()
        farm.loop.close()
    assert verify(path).ok
    assert {line["policy"] for line in lines(path) if line["kind"] == "round"} == {"auction", "adaptive"}


def test_it_survives_being_opened_again(tmp_path):
    path = tmp_path / "auction.jsonl"
    for _ in range(2):
        with Farm([Backend(0.02)], rate=100.0, policy={"name": "auction", "ledger": str(path)}) as farm:
            run_rounds(farm, 1.0)
            farm.loop.close()
    assert verify(path).ok
    assert kinds(path)["open"] == 2


def test_a_ledger_that_was_tampered_with_is_set_aside(tmp_path):
    path = tmp_path / "auction.jsonl"
    with Ledger(path) as ledger:
        for i in range(5):
            ledger.append("round", round=i)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-2]))  # the end is cut off
    with Farm([Backend(0.02)], rate=100.0, policy={"name": "auction", "ledger": str(path)}) as farm:
        run_rounds(farm, 1.0)
        farm.loop.close()
    assert [file.name for file in tmp_path.glob("*.damaged-*")] == ["auction.jsonl.damaged-1"]
    assert verify(path).ok
    assert kinds(path).get("round", 0) >= 1


def test_a_full_disk_drops_records_and_harms_nobody(tmp_path, monkeypatch):
    path = tmp_path / "auction.jsonl"
    write_at = ledgers._write_at
    full = [False]

    def write(*args):
        if full[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_at(*args)

    monkeypatch.setattr(ledgers, "_write_at", write)
    with Farm([Backend(0.02)], rate=100.0, policy={"name": "auction", "ledger": str(path)}) as farm:
        run_rounds(farm, 1.0)
        eventually(lambda: farm.loop.ledger.records > 0)
        full[0] = True
        run_rounds(farm, 2.0)
        eventually(lambda: farm.loop.ledger.state["dropped"] > 0)
        assert "No space" in farm.loop.show()["ledger"]["error"]
        assert farm.loop.counts.failed == farm.loop.counts.late == 0
        full[0] = False
        run_rounds(farm, 1.0)
        farm.loop.close()
    assert verify(path).ok
    assert kinds(path)["dropped"] == 1


def test_a_writer_that_hangs_delays_no_decision(tmp_path, monkeypatch):
    path = tmp_path / "auction.jsonl"
    hangs = [True]
    write_at = ledgers._write_at

    def write(*args):
        while hangs[0]:
            time.sleep(0.01)
        return write_at(*args)

    with Farm([Backend(0.02)], rate=100.0, policy={"name": "auction", "ledger": str(path)}) as farm:
        monkeypatch.setattr(ledgers, "_write_at", write)
        farm.run(40.0)
        assert farm.loop.counts.failed == 0
        assert farm.loop.ledger.state["dropped"] > 0
        hangs[0] = False
        farm.loop.close()
    assert verify(path).ok


def test_where_nothing_can_be_written_a_policy_is_not_set(tmp_path):
    with Farm([Backend(0.02)], rate=100.0) as farm:
        for path, said in ((tmp_path / "no" / "file", "no directory"), (tmp_path, "is a directory")):
            with pytest.raises(ValueError, match=said):
                farm.loop.swap({"name": "auction", "ledger": str(path)}, lambda error: None)
    check_writable(tmp_path / "new")


def test_a_ledger_that_cannot_be_opened_at_the_start_says_so_and_serves_on(tmp_path):
    path = tmp_path / "no" / "auction.jsonl"
    with Farm([Backend(0.02)], rate=100.0, policy={"name": "auction", "ledger": str(path)}) as farm:
        farm.run(2.0)
        eventually(lambda: farm.loop.ledger.state["error"])
        assert farm.loop.counts.failed == 0
        farm.loop.close()


def test_sampled_flows_are_on_record_with_their_auctions(tmp_path):
    path = tmp_path / "auction.jsonl"
    with Farm([Backend(0.02)] * 2, rate=100.0, policy="auction") as farm:
        ledger = LiveLedger(path, farm.segment, "farm", 1.0)
        farm.loop.cycle(int(farm.now * 1e9))
        ledger.round(farm.loop.observation, farm.loop.last, "auction")
        award = farm.balancer.dispatch(int(farm.now * 1e9))
        opened = farm.balancer.open(award.server, int(farm.now * 1e9))
        farm.balancer.close(opened, int((farm.now + 0.01) * 1e9))
        record(farm, award)
        farm.now += 0.2
        farm.loop.cycle(int(farm.now * 1e9))
        ledger.round(farm.loop.observation, farm.loop.last, "auction")
        ledger.close(5.0)
        (line,) = [line for line in lines(path) if line["kind"] == "auction"]
        assert line["server"] == f"s{award.server}"
        assert line["bid"] == pytest.approx(award.bid, rel=1e-4)
        assert line["outcome"] == "ok"
        assert line["sla"] == "gold"
        assert line["fct_ms"] == pytest.approx(10.0)
    assert verify(path).ok


def record(farm, award):
    """Write the flow record that an engine writes."""
    from dataplane._dataplane import ffi, lib

    r = ffi.new("struct flow_record *")
    r.opened_ns, r.closed_ns = int(farm.now * 1e9), int(farm.now * 1e9) + 10_000_000
    r.server, r.server_id, r.bid, r.price, r.load = award.server, award.server + 1, award.bid, award.price, award.load
    lib.balancer_record(farm.balancer.c, r, b"/", 1)


# --- real backends ----------------------------------------------------------------------------------------------------


def answers(peer, seconds, rate):
    """Send open-loop load; return its summary."""
    schedule = poisson(rate, seconds, 1, Demand("exponential", 40.0))
    return summarize(clock.run(Generator(Target("127.0.0.1", peer.port), schedule).run()))


MODES = [("continuous", 0.0), ("thompson", 0.1)] + (
    [("dqn", 0.1)] if importlib.util.find_spec("torch") is not None else []
)


@pytest.mark.parametrize(("mode", "epsilon"), MODES)
def test_a_live_run_over_unequal_backends_fails_no_request(mode, epsilon, tmp_path):
    path = tmp_path / "auction.jsonl"
    policy = {
        "name": "auction",
        "learning": mode,
        "epsilon": epsilon,
        "ledger": str(path),
        "ledger_sample": 0.1,
    }
    with contextlib.ExitStack() as stack:
        farm = stack.enter_context(RealFarm.of_speeds(SPEEDS, workers=4, processes=2))
        peer = vickrey.start([Server(address) for address in farm.addresses], policy=policy, reserve="classic")
        try:
            summary = answers(peer, 4.0, 400.0)  # a quarter of what the servers can do
            shown = peer.call("GET", f"/v1/services/{vickrey.SERVICE}/policy")
        finally:
            peer.stop()
    assert summary.errors == {}
    assert summary.answered == summary.requests > 1000
    text = json.dumps(shown)
    for name in ("sensitivity", "capacity", "load_ratio", "shapley", "bid", "price", "margin", "reserve"):
        assert f'"{name}"' in text
    assert verify(path).ok
    found = kinds(path)
    assert found["round"] > 5
    assert found["auction"] > 20
