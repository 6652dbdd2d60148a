"""Rubbish in shared memory under load (row 22), and a controller of another layout (row 21)."""

import mmap
import os
import random
import time

from shm_layout.mapping import segment_name
from shm_layout.segment import Segment
from tests.faults.running import Load, wait_until


def test_random_bits_in_the_blocks_cost_no_request(balancer):
    """Row 22: settings and directive are flipped at random for seconds; the last good ones hold."""
    seed = 7
    rng = random.Random(seed)
    with balancer() as running, Load(running.port) as load:
        with Segment.attach(segment_name(running.instance, "web")) as segment:
            header = segment._header
            first, end = int(header.off_settings), int(header.off_controller)
            published = [int(block) + 8 for block in (header.off_settings, header.off_directive)]
        fd = os.open(f"/dev/shm{segment_name(running.instance, 'web')}", os.O_RDWR)
        with mmap.mmap(fd, 0) as memory:
            os.close(fd)
            until = time.monotonic() + 3
            while time.monotonic() < until:
                for _ in range(20):
                    memory[rng.randrange(first, end)] ^= 1 << rng.randrange(8)
                for counter in published:  # or what is wrong now might never be looked at
                    memory[counter] ^= 1 << rng.randrange(8)
                running.change(
                    "PATCH", f"services/web/servers/{running.keys['servers'][0]}", {"weight": rng.randrange(1, 9)}
                )
                time.sleep(0.01)
        load.run_for(200)
        wait_until(lambda: running.get("health")["ok"], 20)
        assert running.process("dataplane")["restarts"] == 0
        refused = [n for name, n in running.metrics().items() if name.startswith("vickrey_shm_reject_total{")]
        assert sum(refused) > 0
    load.assert_nothing_lost()


def test_a_controller_of_another_layout_is_refused_and_the_data_plane_goes_on(balancer):
    """Row 21: the version in the header is another; attaching names both; flows go on by the fallback."""
    with balancer(stale_after="500ms") as running, Load(running.port) as load:
        path = f"/dev/shm{segment_name(running.instance, 'web')}"
        with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
            version = memory[8]
            memory[8] = 77
            os.kill(running.pid("controller"), 9)
            wait_until(lambda: "77" in running.log() and "expects" in running.log())
            wait_until(lambda: running.service["fallback_active"])
            load.run_for(200)
            memory[8] = version
        wait_until(lambda: running.process("controller")["up"], 30)
        wait_until(lambda: not running.service["fallback_active"])
    load.assert_nothing_lost()
