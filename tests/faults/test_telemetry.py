"""What the controller measures is lost, late or torn (rows 23 and 31)."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shm_layout.mapping import segment_name
from shm_layout.segment import Segment
from tests.faults.running import Load, wait_until
from tests.learned.files import random, save
from tests.shm_layout.test_publish import Buffers


def test_a_writer_that_dies_in_the_middle_of_a_directive_is_recovered_from(balancer: Any) -> None:
    """Row 23: kill -9 in a loop, and both buffers left as in mid-write: the last good directive holds, then the new."""
    with balancer(interval="10ms") as running, Load(running.port) as load:
        load.run_for(50)
        with Segment.attach(segment_name(running.instance, "web"), writable=True) as segment:
            for restarts in (1, 2, 3):
                os.kill(running.pid("controller"), signal.SIGKILL)
                buffers = Buffers(segment, "off_directive")
                for buffer in buffers.buffers:
                    buffer["sequence"] |= 1
                load.run_for(20)
                wait_until(lambda: running.process("controller")["restarts"] == restarts, 20)  # noqa: B023
                epoch = wait_until(lambda: int(segment.read_controller()["epoch"]) > restarts, 20)  # noqa: B023
                assert epoch
                wait_until(
                    lambda: segment.read_workers()["directive_epoch"][0] == segment.read_controller()["epoch"], 20
                )
                latest = int(buffers.head["latest"][0])
                assert int(buffers.buffers[latest]["sequence"][0]) % 2 == 0
                del buffers, buffer
        load.run_for(50)
        assert running.process("dataplane")["restarts"] == 0
    load.assert_nothing_lost()


@pytest.mark.parametrize("name", ["adaptive", "learned"])
def test_measurements_that_are_lost_count_as_nothing_known_never_as_no_delay(
    balancer: Any, tmp_path: Path, name: str
) -> None:
    """Row 31: the data plane dies, and with it all counters and samples; a server joins of which none are."""
    spec: Any = name
    if name == "learned":
        spec = {"name": name, "file": str(save(tmp_path / "p.safetensors", random()))}
    with balancer(policy=spec) as running:
        slowest, *others = running.keys["servers"]
        running.write(servers=others)
        running.change("POST", "reload")
        with Load(running.port) as load:
            load.run_for(200)
            running.write(servers=[*others, slowest])
            running.change("POST", "reload")
            before = sum(server["flows_total"] for server in running.service["servers"])
            load.run_for(300)
            since = sum(server["flows_total"] for server in running.service["servers"]) - before
            # It is the slowest of four: nothing known of it must not read as no delay.
            assert running.server(slowest)["flows_total"] < 0.6 * since
        load.assert_nothing_lost()
        os.kill(running.pid("dataplane"), signal.SIGKILL)
        wait_until(lambda: running.process("dataplane")["restarts"] == 1)
        wait_until(lambda: running.get("health")["ok"])
        with Load(running.port) as again:
            again.run_for(300)
            shown = wait_until(lambda: running.get("services/web/policy").get("servers"))
            for server in shown:
                assert all(bid is not None and bid > 0 for bid in server["bids"][1:])
                assert server["weight"] is None or np.isfinite(server["weight"])
            assert running.get("services/web/policy")["failed"] == 0
            flows = [server["flows_total"] for server in running.service["servers"]]
            assert max(flows) < 0.95 * sum(flows)
        again.assert_nothing_lost()
