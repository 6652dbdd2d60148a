"""A topology that runs: servers of different kinds, each in its own namespace and under its own CPU quota.

    with Topology(load("simple")) as topology:
        topology.addresses           # ["198.18.0.11:8080", …]
        topology.stats()             # ground truth of each server
        topology.fault("slow", kind="slow", factor=2, seconds=10)

It has the interface of `Farm`. Everything that it makes bears its id and is in its state file before it is made (see
topology_state.py, topology_sweep.py); signals wait while something is half made (see interrupts.py).
"""

from __future__ import annotations

import atexit
import contextlib
import ipaddress
import json
import os
import signal
import stat
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from controlplane.config_values import format_duration
from testbed import cgroups, namespaces, topology_state
from testbed.backends import apache
from testbed.backends.backend import Spec
from testbed.interrupts import Deferred
from testbed.processes import StartError, free_port
from testbed.topology_file import TopologyFile
from testbed.topology_plan import place, plan_cpu, spec_of
from testbed.topology_server import ATTEMPTS, Server, aiohttp_call, measure
from testbed.topology_state import Placed, State
from testbed.topology_sweep import folder_of, forget, sweep

APACHE_FAULTS = ("none", "slow", "hang", "cut")


class AlreadyUp(RuntimeError):
    """A topology of this name is up."""


class Topology:
    def __init__(
        self,
        file: TopologyFile,
        *,
        name: str | None = None,
        path: str = "",
        network: str | None = None,
        is_program: bool = False,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        """name: that it is known by, default its own id; network: instead of the file's; note: told of each step.

        is_program: this process is here for the topology alone, and ends with it.
        """
        self.file = file
        self._name = name
        self._path = path
        self._network = network or file.network
        self._is_program = is_program
        self._note = note
        self._servers: list[Server] = []
        self._timers: dict[str, threading.Timer] = {}  # that end faults
        self._slowed: dict[str, float] = {}
        self.state: State | None = None

    def __enter__(self) -> Self:
        with Deferred() as signals:
            try:
                self._start(signals)
                signals.check()
            except BaseException:
                self.stop()
                signals.forget()
                raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    # Starting, step by step; whatever fails or interrupts, stop() removes what was made.

    def _start(self, signals: Deferred) -> None:
        has_apache = any(group.backend == "apache" for group in self.file.servers)
        if has_apache and (problem := apache.why_not()):
            raise StartError(problem)
        hierarchy, warnings = self._means()
        quotas = plan_cpu(self.file, os.cpu_count() or 1) if hierarchy else {}
        period = self.file.period or cgroups.period_for(quotas.values())
        if quotas and not self.file.period and period > cgroups.PERIOD_MOST_S:
            warnings.append(
                f"the least quota is {min(quotas.values()):.3g} cores, which the kernel cannot hand out in a period of "
                f"{format_duration(cgroups.PERIOD_MOST_S)}: it is {format_duration(period)}, and short flows mostly "
                "wait for it; use fewer servers, a machine of more cores, or --backend aiohttp"
            )
        if quotas and self.file.period and min(quotas.values()) * period < cgroups.QUOTA_LEAST_S:
            what = f"a quota of {min(quotas.values()):.3g} cores is below 1ms in a period of {format_duration(period)}"
            raise StartError(f"{what}: leave 'period' out")
        state = self._claim(warnings, period if quotas else 0.0)
        self.state = state
        atexit.register(self.stop)
        for warning in warnings:
            self._note(warning)
        signals.check()
        self._make_folder(Path(state.folder), has_apache)
        documents, calibration = Path(state.folder) / "htdocs", apache.Calibration(1.0)
        if has_apache:
            self._note("measuring the CPU loop")
            apache.write_documents(documents)
            marked = {**os.environ, topology_state.MARK: f"{state.id}:calibration"}
            calibration = apache.calibrate(Path(state.folder) / "calibration", env=marked)
            state.turn_ns = calibration.turn_ns
        signals.check()
        self._place(state, quotas, hierarchy, documents, calibration)
        topology_state.write(state)
        self._note(f"starting {len(self._servers)} servers")
        for server in self._servers:
            self._make(server, state, hierarchy)
            signals.check()
            self._launch(server, documents, calibration)
            signals.check()
        for server in self._servers:
            self._await(server, signals, documents, calibration)
        for server in self._servers:
            server.limit(period)
            signals.check()
        state.phase = "running"
        topology_state.write(state)

    def _means(self) -> tuple[cgroups.Hierarchy | None, list[str]]:
        """What this machine lets us use, and what is to be said of it."""
        warnings = []
        problem = namespaces.why_not()
        if self._network == "namespaces" and problem:
            raise StartError(f"{problem}; with `network: loopback` the servers are plain processes")
        if self._network == "auto":
            self._network = "loopback" if problem else "namespaces"
            if problem:
                warnings.append(f"{problem}: the servers are plain processes on loopback")
        try:
            return cgroups.find(), warnings
        except cgroups.NoCgroups as error:
            if any(group.cpu is not None for group in self.file.servers):
                warnings.append(f"no CPU quotas, the servers share the machine: {error}")
            return None, warnings

    def _claim(self, warnings: list[str], period: float) -> State:
        """Write the state, under the lock: the name, the id and the subnet are ours from then on."""
        with topology_state.locked():
            topology = topology_state.new_id()
            while folder_of(topology).exists() or namespaces.existing(topology):
                topology = topology_state.new_id()
            name = self._name or topology
            before = topology_state.find(name)
            if before is not None and before.is_alive:
                raise AlreadyUp(f"{name} is up already (pid {before.owner}); `vickrey testbed down {name}` ends it")
            if before is not None:
                sweep(before.id, Path(before.folder))
                warnings.append(f"removed what a {name} whose starter is gone had left")
            subnet = ""
            if self._network == "namespaces":
                taken = [state.subnet for state in topology_state.all_states() if state.subnet]
                subnet = str(self.file.subnet or namespaces.free_subnet(taken))
            state = State(
                id=topology,
                name=name,
                file=self._path,
                title=self.file.title,
                folder=str(folder_of(topology)),
                network=self._network,
                owner=os.getpid(),
                owner_started=topology_state.started_at(os.getpid()),
                boot_id=topology_state.boot_id(),
                is_program=self._is_program,
                subnet=subnet,
                period_s=period,
                balancers=self.file.balancers,
                began=time.time(),
                warnings=warnings,
            )
            topology_state.write(state)
            return state

    @staticmethod
    def _make_folder(folder: Path, has_apache: bool) -> None:
        folder.mkdir()
        (folder / "owner").write_text(f"{os.getpid()} {topology_state.started_at(os.getpid())}")
        folder.chmod(0o755)
        if has_apache and apache.user() is not None:
            for above in folder.parents:
                if not above.stat().st_mode & stat.S_IXOTH:
                    raise StartError(f"{above} is closed to the user that Apache runs as: set TMPDIR to another folder")

    def _place(
        self,
        state: State,
        quotas: dict[str, float],
        hierarchy: cgroups.Hierarchy | None,
        documents: Path,
        calibration: apache.Calibration,
    ) -> None:
        """Decide where each server will be; nothing is made yet."""
        spaces: list[namespaces.Namespace | None] = [None] * len(self.file.server_names())
        if state.subnet:
            spaces = [*namespaces.plan(state.id, self.file.server_names(), ipaddress.IPv4Network(state.subnet))]
        members = [(group, name) for group in self.file.servers for name in group.names()]
        for i, ((group, name), space) in enumerate(zip(members, spaces, strict=True), 1):
            placed = place(group, name, space, quotas.get(name))
            placed.cgroup = f"{state.id}/{name}" if hierarchy else ""
            folder = Path(state.folder) / name
            wanted = spec_of(self.file, group, placed, seed=i)
            cgroup = hierarchy.group(placed.cgroup) if hierarchy else None
            self._servers.append(Server(state.id, placed, wanted, folder, cgroup))
            state.servers.append(placed)

    @staticmethod
    def _make(server: Server, state: State, hierarchy: cgroups.Hierarchy | None) -> None:
        if server.group is not None and hierarchy is not None:
            hierarchy.prepare(state.id).weigh(sum(placed.workers for placed in state.servers))
            server.group.make()
            server.group.weigh(server.placed.workers)
        if state.subnet:
            placed, subnet = server.placed, ipaddress.IPv4Network(state.subnet)
            host = str(subnet[namespaces.HOST_PART])
            namespaces.Namespace(placed.namespace, placed.link, placed.host, host).make()

    @staticmethod
    def _launch(server: Server, documents: Path, calibration: apache.Calibration) -> None:
        if isinstance(server.wanted, apache.Apache):
            apache.write(server.wanted, server.folder, documents, calibration)
        server.start()

    def _await(self, server: Server, signals: Deferred, documents: Path, calibration: apache.Calibration) -> None:
        for attempt in range(ATTEMPTS):
            try:
                return server.wait_ready(signals.check)
            except StartError:
                # On loopback, somebody may have taken the port between our look and Apache's bind.
                if server.placed.namespace or not isinstance(server.wanted, apache.Apache) or attempt == ATTEMPTS - 1:
                    raise
                if "Address already in use" not in apache.error_log(server.folder):
                    raise
                server.kill()
                port, control = free_port(), free_port()
                server.placed.port, server.placed.control = port, control
                group = next(g for g in self.file.servers if server.placed.name in g.names())
                server.wanted = spec_of(self.file, group, server.placed, seed=1)
                self._launch(server, documents, calibration)
        return None

    def stop(self) -> None:
        """End and remove everything; safe to call at any time, also twice. Signals wait until it is done."""
        state = self.state
        if state is None or state.owner != os.getpid():
            return
        with Deferred():
            for timer in self._timers.values():
                timer.cancel()
            state.phase = "stopping"
            with contextlib.suppress(OSError):
                topology_state.write(state)
            started = [server for server in self._servers if server.child is not None]
            for server in started:
                assert server.child is not None
                if server.child.is_alive:
                    server.signal(signal.SIGCONT)  # one that a fault has stopped would not hear
                    server.child.process.terminate()
            for server in started:
                assert server.child is not None
                server.child.stop(grace_s=3.0)
            swept = sweep(state.id, Path(state.folder))
            if not swept.left:
                forget(state)  # else `down` tries again
            else:
                self._note(f"could not be removed: {', '.join(swept.left)}")
            self.state = None
            self._servers = []
            atexit.unregister(self.stop)

    # The interface of Farm.

    @property
    def servers(self) -> list[Placed]:
        return [server.placed for server in self._servers]

    @property
    def names(self) -> list[str]:
        return [server.placed.name for server in self._servers]

    @property
    def addresses(self) -> list[str]:
        return [server.placed.address for server in self._servers]

    @property
    def pids(self) -> list[int]:
        """All processes of all servers."""
        return [pid for server in self._servers for pid in server.pids()]

    @property
    def capacity_s(self) -> float:
        """Seconds of work at speed 1 that the servers do in a second: what they compute is bounded by the machine."""
        cores = float(os.cpu_count() or 1)
        waiting, computing = 0.0, 0.0
        for server in self._servers:
            placed, wanted = server.placed, server.wanted
            if isinstance(wanted, Spec) and not wanted.cpu:
                waiting += placed.workers * placed.speed
            else:
                computing += min(placed.cpu or cores, placed.workers * placed.speed)
        return waiting + min(computing, cores)

    def stats(self) -> list[dict[str, Any]]:
        """Ground truth of every server, in order; see topology_server.measure."""
        with ThreadPoolExecutor(max_workers=max(len(self._servers), 1)) as pool:
            rows = list(pool.map(lambda server: measure(server.placed, server.group), self._servers))
        for row in rows:
            if row["quota_cores"] is not None:  # as a fault may have left it
                row["quota_cores"] /= self._factor(row["name"])
                if row["backend"] == "apache":
                    row["speed"] = row["quota_cores"]
        return rows

    def _factor(self, name: str) -> float:
        return self._slowed.get(name, 1.0)

    def dead(self) -> list[str]:
        """Names of the servers that have ended."""
        return [s.placed.name for s in self._servers if s.child is not None and s.placed.pid and not s.child.is_alive]

    def kill(self, name: str) -> None:
        """SIGKILL a server, all of its processes."""
        self._server(name).kill()
        self._save()

    def revive(self, name: str) -> None:
        """Start a killed server again, at the same address. From the thread that is to outlive it: see Child."""
        server = self._server(name)
        server.kill()
        server.start()
        server.wait_ready(lambda: None)
        server.limit(self._period)
        self._slowed.pop(name, None)
        self._save()

    def fault(self, name: str, **fault: Any) -> None:
        """Show a fault: fault("s1", kind="slow", factor=4, seconds=10). ValueError for one that it cannot show.

        aiohttp: see backends/faults.py. Apache: `slow` divides its CPU quota by `factor`, `hang` stops its processes,
        `cut` pulls its cable (in namespaces), `none` ends it; each for `seconds`, or until the next one.
        """
        server = self._server(name)
        if server.placed.backend == "aiohttp" and fault.get("kind") != "cut":
            aiohttp_call(server.placed, "/fault", json.dumps(fault).encode())
            return
        kind, seconds = fault.get("kind"), float(fault.get("seconds", 0.0))
        if kind not in APACHE_FAULTS:
            raise ValueError(f"{name}: unknown kind {kind!r} for an Apache: one of {', '.join(APACHE_FAULTS)}")
        if kind == "slow" and server.group is None:
            raise ValueError(f"{name}: 'slow' divides a CPU quota, and there are none here: it needs root")
        if kind == "cut" and not server.placed.namespace:
            raise ValueError(f"{name}: 'cut' pulls a cable, and on loopback there is none")
        if name in self._timers:
            self._timers.pop(name).cancel()
        self._mend(server)
        if kind == "slow":
            self._slow(server, float(fault.get("factor", 4.0)))
        elif kind == "hang":
            server.pause()
        elif kind == "cut":
            self._cable(server).cut(True)
        if seconds > 0 and kind != "none":
            timer = threading.Timer(seconds, self._mend, [server])
            timer.daemon = True
            self._timers[name] = timer
            timer.start()

    def reset(self) -> None:
        """End all faults; aiohttp also drops what waits and zeroes its totals."""
        for server in self._servers:
            if server.placed.backend == "aiohttp":
                aiohttp_call(server.placed, "/reset", b"")
            else:
                self.fault(server.placed.name, kind="none")

    def await_idle(self, timeout_s: float = 30.0) -> bool:
        """Wait until no server has work; False when that takes too long."""
        deadline = time.monotonic() + timeout_s
        while any(row["busy"] or row["queued"] for row in self.stats()):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    @property
    def _period(self) -> float:
        return (self.state.period_s if self.state else 0.0) or cgroups.PERIOD_S

    def _server(self, name: str) -> Server:
        for server in self._servers:
            if server.placed.name == name:
                return server
        raise KeyError(f"no server is called {name}: {', '.join(self.names)}")

    def _slow(self, server: Server, factor: float) -> None:
        if not factor > 0:
            raise ValueError(f"{server.placed.name}: factor must be above 0")
        if server.placed.cpu is None:  # it had the machine
            server.placed.cpu = min(float(os.cpu_count() or 1), float(server.placed.workers))
        server.limit(self._period, factor)
        self._slowed[server.placed.name] = factor

    def _mend(self, server: Server) -> None:
        if self.state is None or server.placed.pid == 0:
            return
        if self._slowed.pop(server.placed.name, None) is not None:
            server.limit(self._period)
        server.signal(signal.SIGCONT)
        if server.placed.namespace:
            self._cable(server).cut(False)

    def _cable(self, server: Server) -> namespaces.Namespace:
        assert self.state is not None
        placed, subnet = server.placed, ipaddress.IPv4Network(self.state.subnet)
        return namespaces.Namespace(placed.namespace, placed.link, placed.host, str(subnet[namespaces.HOST_PART]))

    def _save(self) -> None:
        if self.state is not None:
            topology_state.write(self.state)
