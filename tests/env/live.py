"""A data plane alone, with this process as its supervisor: a segment, listeners, and `python -m dataplane`."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from shm_layout.mapping import Limits, segment_name
from shm_layout.payload import ServerData, SettingsData, pack_address
from shm_layout.segment import Segment

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass
class DataPlane:
    """A running data plane of one worker; `name` is its segment's."""

    name: str
    port: int
    segment: Segment


@contextmanager
def data_plane(addresses: list[str]) -> Iterator[DataPlane]:
    """Run a data plane in front of servers at these addresses (host:port), without a controller."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    listener.setblocking(False)
    port = listener.getsockname()[1]
    name = segment_name(f"env{os.getpid()}", f"p{port}")
    servers = [
        ServerData(id=i + 1, name=f"s{i}", address=pack_address(host, int(number)))
        for i, (host, _, number) in enumerate(address.partition(":") for address in addresses)
    ]
    with Segment.create(name, Limits(max_servers=8, max_workers=1), f"p{port}") as segment:
        process = None
        try:
            segment.publish_settings(SettingsData(servers=servers, stale_after_ns=10**9))
            document = {
                "supervisor_pid": os.getpid(),
                "services": [
                    {"segment": name, "mode": "http", "workers": 1, "listen_fds": [listener.fileno()], "io": "epoll"}
                ],
            }
            process = subprocess.Popen(
                [sys.executable, "-m", "dataplane"],
                stdin=subprocess.PIPE,
                pass_fds=[listener.fileno()],
                cwd=ROOT,
                text=True,
            )
            assert process.stdin is not None
            process.stdin.write(json.dumps(document))
            process.stdin.close()
            until = time.monotonic() + 20
            while not segment.read_workers()["heartbeat_ns"].any():
                assert process.poll() is None, "the data plane did not start"
                assert time.monotonic() < until, "the data plane is not ready"
                time.sleep(0.01)
            yield DataPlane(name, port, segment)
        finally:
            if process is not None:
                process.send_signal(signal.SIGTERM)
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            listener.close()
            segment.unlink()
