"""A farm of backends in child processes: started together, stopped together, each of them killed and revived at will.

    with Farm.of_speeds([1, 1, 2, 4], workers=4) as farm:
        farm.addresses          # ["127.0.0.1:40001", …]
        farm.fault("s3", kind="slow", factor=2)

`processes` shares the backends out: fewer processes cost less CPU, one each lets a single backend be killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from testbed.backends.backend import Spec
from testbed.processes import Child, StartError

_ROOT = Path(__file__).resolve().parent.parent


class Farm:
    def __init__(self, specs: Sequence[Spec], *, processes: int | None = None, cpu: int | None = None) -> None:
        """processes: how many to spread them over, default one each; cpu: the core that all of them run on."""
        self.specs = list(specs)
        self._cpu = cpu
        count = min(processes or len(self.specs), len(self.specs))
        self._groups = [list(range(i, len(self.specs), count)) for i in range(count)]
        self._children: list[Child | None] = [None] * count

    @classmethod
    def of_speeds(
        cls,
        speeds: Sequence[float],
        *,
        workers: int = 1,
        limit: int | None = None,
        demand: str = "fixed:0",
        processes: int | None = None,
        cpu: int | None = None,
    ) -> Self:
        """Servers s1, s2, … of these speeds."""
        specs = [
            Spec(name=f"s{i}", speed=speed, workers=workers, limit=limit, demand=demand, seed=i)
            for i, speed in enumerate(speeds, 1)
        ]
        return cls(specs, processes=processes, cpu=cpu)

    def __enter__(self) -> Self:
        try:
            for group in range(len(self._groups)):
                self._start(group)
            for group in range(len(self._groups)):
                self._await_ready(group)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def _start(self, group: int) -> None:
        wanted = json.dumps([asdict(self.specs[i]) for i in self._groups[group]])
        self._children[group] = Child(
            f"backend-{self.specs[self._groups[group][0]].name}",
            [sys.executable, "-m", "testbed.backends", "--spec", wanted],
            stdout=subprocess.PIPE,
            cpu=self._cpu,
            cwd=_ROOT,
            env={**os.environ, "PYTHONPATH": f"{_ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
        )

    def _await_ready(self, group: int, timeout_s: float = 20.0) -> None:
        child = self._children[group]
        assert child is not None
        assert child.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(child.process.stdout, selectors.EVENT_READ)
            if not selector.select(timeout_s):
                raise StartError(f"{child.name} was not ready after {timeout_s:g} s: {child.log()}")
        line = child.process.stdout.readline()
        if not line:
            child.process.wait()
            raise StartError(f"{child.name} ended with status {child.process.returncode}: {child.log()}")
        for i, ports in zip(self._groups[group], json.loads(line), strict=True):
            self.specs[i] = replace(self.specs[i], port=ports["port"], control=ports["control"])

    def stop(self) -> None:
        """End all processes; safe to call at any time, also twice."""
        living = [child for child in self._children if child is not None]
        for child in living:
            if child.is_alive:
                child.process.terminate()
        for child in living:
            child.stop()
        self._children = [None] * len(self._groups)

    @property
    def addresses(self) -> list[str]:
        return [f"{spec.host}:{spec.port}" for spec in self.specs]

    @property
    def pids(self) -> list[int]:
        return [child.pid for child in self._children if child is not None]

    @property
    def capacity_s(self) -> float:
        """Seconds of work at speed 1 that the farm does in a second."""
        return sum(spec.speed * spec.workers for spec in self.specs)

    def kill(self, name: str) -> None:
        """SIGKILL the process of this backend, and so of those that share it."""
        child = self._children[self._group_of(name)]
        if child is not None:
            child.kill()

    def revive(self, name: str) -> None:
        """Start the killed process of this backend again, on the same ports."""
        group = self._group_of(name)
        child = self._children[group]
        if child is not None:
            child.stop()
        self._start(group)
        self._await_ready(group)

    def fault(self, name: str, **fault: Any) -> None:
        """Show a fault (see backends/faults.py): farm.fault("s1", kind="slow", factor=4)."""
        self._call(self._spec_of(name), "/fault", json.dumps(fault).encode())

    def reset(self) -> None:
        """Drop what waits, zero the totals and end the faults of all backends."""
        for spec in self.specs:
            self._call(spec, "/reset", b"")

    def stats(self) -> list[dict[str, Any]]:
        """Ground truth of every backend, in order; of one that was killed only its name, `up` (False) and no work."""
        return [self._stats(spec) for spec in self.specs]

    def _stats(self, spec: Spec) -> dict[str, Any]:
        try:
            return {"up": True, **self._call(spec, "/stats", None)}
        except OSError:
            child = self._children[self._group_of(spec.name)]
            if child is not None and child.is_alive:
                raise
            return {"name": spec.name, "up": False, "busy": 0, "queued": 0, "workers": spec.workers}

    def await_idle(self, timeout_s: float = 30.0) -> bool:
        """Wait until no backend has work; False when that takes too long."""
        deadline = time.monotonic() + timeout_s
        while any(stats["busy"] or stats["queued"] for stats in self.stats()):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True

    def _spec_of(self, name: str) -> Spec:
        return next(spec for spec in self.specs if spec.name == name)

    def _group_of(self, name: str) -> int:
        index = next(i for i, spec in enumerate(self.specs) if spec.name == name)
        return next(group for group, members in enumerate(self._groups) if index in members)

    @staticmethod
    def _call(spec: Spec, path: str, body: bytes | None) -> dict[str, Any]:
        url = f"http://{spec.host}:{spec.control}{path}"
        with contextlib.closing(urllib.request.urlopen(url, data=body, timeout=10)) as answer:
            document: dict[str, Any] = json.loads(answer.read())
            return document
