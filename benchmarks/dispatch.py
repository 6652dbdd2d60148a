"""What a dispatch costs, for 2 … 4,096 servers and every rule: nanoseconds of one thread.

    python benchmarks/dispatch.py [--quick] [--json] [--servers 16 1024] [--rules bids wrr]

Three figures a cell. *auction*: balancer_dispatch() alone, nobody tied. *tied*: the same with every bid equal, which
draws lots (rules that bid only). *flow*: dispatch, flow_open() and flow_close() with all their accounting, three flows
in flight a server. Each is CPU time, the median of several runs; loops run in C: no call from Python is in them.
--workers above 1 sizes the segment for several: words are then moved by compare-and-swap and told in a journal.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dataplane._dataplane import ffi, lib
from dataplane.core import Balancer, alias_table, maglev_table, new_flows
from shm_layout.layout import CLASSIC_SERVER, CURVE_LOW
from shm_layout.segment import DirectiveData, Limits, Segment, ServerData, SettingsData

SIZES = (2, 4, 16, 64, 256, 1024, 4096)
RULES = ("bids", "bids of 2", "wrr", "alias", "maglev", "classic")
TABLE_SLOTS = 65537


def directive(rule: str, n: int, tied: bool) -> DirectiveData:
    """Return a directive of n servers, every fourth of them four times as fast."""
    ids = np.arange(1, n + 1)
    speed = np.ones(n) if tied else np.where(np.arange(n) % 4 == 0, 4.0, 1.0) * (1 + np.arange(n) / 1e4)
    if rule.startswith("bids"):
        curves = (CURVE_LOW + 1)[None, :] / speed[:, None]
        return DirectiveData(ids=ids, rule="bids", curves=curves, choices=2 if rule == "bids of 2" else 0)
    if rule == "alias":
        keep, other = alias_table(speed)
        return DirectiveData(ids=ids, rule=rule, alias_keep=keep, alias_other=other)
    if rule == "maglev":
        return DirectiveData(ids=ids, rule=rule, table=maglev_table(speed, ids, TABLE_SLOTS))
    if rule == "classic":
        servers = np.zeros(n, dtype=CLASSIC_SERVER)
        servers["capacity"], servers["sensitivity"], servers["risk_aversion"] = 10 * speed, 1, 0.5
        servers["target_load_ratio"], servers["neural"] = 0.5, 1
        return DirectiveData(ids=ids, rule=rule, classic=servers)
    return DirectiveData(ids=ids, rule=rule, weights=speed)


def per_cycle_ns(run: Callable[[int], object], seconds: float, repeats: int) -> float:
    """Return the median time of a cycle; run(cycles) does so many."""
    cycles, elapsed = 1000, 0.0
    while True:
        start = time.thread_time()
        run(cycles)
        elapsed = time.thread_time() - start
        if elapsed > seconds / 4:
            break
        cycles *= 2
    cycles = max(1000, int(cycles * seconds / elapsed))
    times = []
    for _ in range(repeats):
        start = time.thread_time()
        run(cycles)
        times.append((time.thread_time() - start) / cycles * 1e9)
    return statistics.median(times)


def measure(rule: str, n: int, workers: int, seconds: float, repeats: int) -> dict[str, Any]:
    """Return one cell of the table."""
    limits = Limits(max_servers=n, max_workers=workers, table_slots=TABLE_SLOTS)
    with Segment.create(f"/vickrey.bench{os.getpid()}.dispatch", limits, "dispatch") as segment:
        segment.unlink()
        servers = [ServerData(id=i + 1) for i in range(n)]
        segment.publish_settings(SettingsData(servers=servers, stale_after_ns=0))
        segment.begin_controller()
        cell: dict[str, Any] = {"rule": rule, "servers": n}
        for name in ("tied", "auction") if rule in ("bids", "classic") else ("auction",):
            segment.publish_directive(directive(rule, n, tied=name == "tied"))
            balancer = Balancer(segment, repair=True)
            cell[f"{name}_ns"] = round(per_cycle_ns(balancer.drill_dispatch, seconds, repeats), 1)
        flows = new_flows(3 * n)
        balancer.drill_flows(flows, 3 * n)
        cell["flow_ns"] = round(per_cycle_ns(lambda cycles: balancer.drill_flows(flows, cycles), seconds, repeats), 1)
        return cell


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter runs")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--servers", type=int, nargs="+", default=SIZES, metavar="N")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="workers that the segment has room for")
    parser.add_argument("--rules", nargs="+", default=RULES, choices=RULES, metavar="RULE")
    args = parser.parse_args()
    seconds, repeats = (0.01, 3) if args.quick else (0.05, 7)
    scan = ffi.string(lib.scanner_best().name).decode()
    cells = []
    if not args.json:
        print(f"ns a cycle, one thread of {args.workers}, scan: {scan}")
        print(f"{'rule':<10}{'servers':>9}{'auction':>9}{'tied':>9}{'flow':>9}")
    for rule in args.rules:
        for n in args.servers:
            cell = measure(rule, n, args.workers, seconds, repeats)
            cells.append(cell)
            if not args.json:
                tied = f"{cell['tied_ns']:.0f}" if "tied_ns" in cell else "–"
                print(f"{rule:<10}{n:>9,}{cell['auction_ns']:>9.0f}{tied:>9}{cell['flow_ns']:>9.0f}", flush=True)
    if args.json:
        print(json.dumps({"benchmark": "dispatch", "scan": scan, "workers": args.workers, "cells": cells}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
