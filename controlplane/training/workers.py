"""Runs jobs: in this process, over processes, or on a Ray cluster. Results come in the jobs' order, whoever ran them.

Processes ignore the terminal's interrupt and are ended by their parent; should that die without a word, the kernel
ends them. An interrupted map leaves none behind.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol

from controlplane.command import CommandError
from controlplane.simulation import pool
from controlplane.training.jobs import Job


def run_job(job: Job) -> Any:
    """Run a job in this process."""
    return job.run()


class Workers(Protocol):
    """Where jobs are run."""

    count: int

    def map(self, jobs: Sequence[Job]) -> list[Any]:
        """Return the results in the jobs' order."""

    def close(self) -> None:
        """End all processes."""


class Here:
    """This process alone."""

    count = 1

    def map(self, jobs: Sequence[Job]) -> list[Any]:
        return [run_job(job) for job in jobs]

    def close(self) -> None:
        """Nothing was started."""


class Processes:
    """So many processes on this machine, started with the first jobs and kept."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool: ProcessPoolExecutor | None = None
        self._children: set[Any] = set()

    def map(self, jobs: Sequence[Job]) -> list[Any]:
        if self._pool is None:
            # spawn: a forked child would inherit whatever threads of ours held locked.
            context = multiprocessing.get_context("spawn")
            one_thread()
            self._pool = ProcessPoolExecutor(self.count, context, pool._begin, (os.getpid(),))
        try:
            before = set(multiprocessing.active_children())
            try:
                with pool._deaf_to_interrupts():
                    futures = [self._pool.submit(run_job, job) for job in jobs]
            finally:  # an interrupt that came meanwhile ends them, too
                self._children |= set(multiprocessing.active_children()) - before
            return [future.result() for future in futures]
        except BrokenProcessPool:
            self.close()
            raise CommandError("a worker process was ended from outside (out of memory?)") from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._pool is None:
            return
        for child in self._children:
            child.terminate()
        self._pool.shutdown(cancel_futures=True)  # waits for them, in the pool's thread
        self._pool, self._children = None, set()


def one_thread() -> None:
    """Keep arithmetic that starts from now on, here and in processes, to one thread: the matrices are small, and the
    processes are the parallelism."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")


class RayCluster:
    """A Ray cluster: one that runs at an address, or one of its own on this machine."""

    def __init__(self, address: str, count: int) -> None:
        """address: "" or "local" starts a cluster; "auto" or HOST:PORT attaches. count: processors of an own one."""
        try:
            import ray
        except ImportError:
            raise CommandError("--ray needs Ray: pip install 'vickrey[ray]'") from None
        self._ray = ray
        own = address in ("", "local")
        options: dict[str, Any] = {"num_cpus": count} if own else {"address": address}
        if own:
            options |= {"include_dashboard": False, "address": "local"}
        try:
            ray.init(**options, log_to_driver=False, logging_level=logging.ERROR, ignore_reinit_error=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise CommandError(f"--ray {address}: {' '.join(str(error).split())[:200]}") from None
        self._run: Callable[[Job], Any] = ray.remote(run_job).remote
        self.count = max(
            1,
            int(ray.cluster_resources().get("CPU", 1)),  # type: ignore[no-untyped-call]
        )

    def map(self, jobs: Sequence[Job]) -> list[Any]:
        handles = [self._run(job) for job in jobs]
        try:
            return list(self._ray.get(handles))
        except BaseException:
            for handle in handles:
                self._ray.cancel(handle, force=True)
            raise

    def close(self) -> None:
        self._ray.shutdown()


class Open:
    """Workers for the length of a `with`."""

    def __init__(self, count: int | None, ray: str | None = None) -> None:
        """count: processes, or processors of a Ray cluster of one's own; 0: all; None: one process, all processors."""
        self._count = 1 if count is None and ray is None else count or pool.cores()
        self._ray = ray
        self.workers: Workers | None = None

    def __enter__(self) -> Workers:
        if self._ray is not None:
            self.workers = RayCluster(self._ray, self._count)
        else:
            self.workers = Here() if self._count == 1 else Processes(self._count)
        return self.workers

    def __exit__(self, *_: object) -> None:
        assert self.workers is not None
        self.workers.close()
