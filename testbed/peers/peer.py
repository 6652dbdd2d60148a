"""A balancer under comparison: its port, its processes, its end."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from testbed.processes import Child, accepts, process_tree

_CONFIGURATIONS = (".cfg", ".conf", ".json", ".yaml")


@dataclass(frozen=True)
class Server:
    """A server as a balancer may be told of it; what is 0 is not told."""

    address: str
    weight: int = 0
    maxconn: int = 0


@dataclass(frozen=True)
class Health:
    """How servers are checked, and that a request whose connection failed may go to another server: the same wish to
    every balancer, in its own words."""

    path: str = "/health"
    inter_s: float = 1.0
    fall: int = 2
    rise: int = 2


class Peer:
    """One running balancer; leaving the `with` block stops it. `folder` holds its configuration, and goes with it."""

    stop_signal = signal.SIGTERM

    def __init__(self, name: str, port: int) -> None:
        self.name = name
        self.port = port
        self._folder = tempfile.TemporaryDirectory(prefix=f"vickrey-{name.split()[0]}-")
        self.folder = Path(self._folder.name)
        self.child: Child | None = None

    def start(
        self,
        command: Sequence[str],
        *,
        cpu: int | None = None,
        is_ready: Callable[[], bool] | None = None,
        env: dict[str, str] | None = None,
    ) -> Self:
        """env: set on top of our own environment."""
        try:
            merged = {**os.environ, **env} if env else None
            self.child = Child(
                self.name.split()[0], command, cpu=cpu, cwd=self.folder, env=merged, death_signal=self.stop_signal
            )
            self.child.wait_ready(is_ready or (lambda: accepts(self.port)))
        except BaseException:
            self.stop()
            raise
        return self

    @property
    def configuration(self) -> str:
        """The configuration as it was written."""
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("*.*")) if path.suffix in _CONFIGURATIONS)

    def stop(self) -> None:
        if self.child is not None:
            self.child.stop(number=self.stop_signal)
        self._folder.cleanup()

    def pids(self) -> list[int]:
        """All processes of the balancer."""
        return process_tree(self.child.pid) if self.child is not None else []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()
