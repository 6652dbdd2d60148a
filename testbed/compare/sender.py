"""`python -m testbed.compare.sender FOLDER`: the load generator as a process of its own.

Whoever watches the run, reads statistics and kills servers must not share an interpreter with what promises arrival
times. Takes FOLDER/plan.npz (arrival_s, demand_ms, choice) and FOLDER/plan.json (targets and settings); says on
standard output when the run began (CLOCK_MONOTONIC); leaves FOLDER/result.npz. TERM ends the run.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from testbed import clock
from testbed.load.generator import Generator, Result, Target
from testbed.load.schedule import Schedule


def write_plan(
    folder: Path, targets: list[Target], schedule: Schedule, choice: Any, *, keep_alive: bool, warm: int, drain_s: float
) -> None:
    np.savez(folder / "plan.npz", arrival_s=schedule.arrival_s, demand_ms=schedule.demand_ms, choice=choice)
    document = {
        "targets": [[target.host, target.port, target.path] for target in targets],
        "keep_alive": keep_alive,
        "warm": warm,
        "drain_s": drain_s,
    }
    (folder / "plan.json").write_text(json.dumps(document))


def read_result(folder: Path) -> Result:
    with np.load(folder / "result.npz") as found:
        columns: dict[str, Any] = {name: found[name].item() for name in found.files if not found[name].ndim}
        return Result(records=found["records"], servers=[str(name) for name in found["servers"]], **columns)


async def send(folder: Path) -> None:
    plan = json.loads((folder / "plan.json").read_text())
    with np.load(folder / "plan.npz") as arrays:
        schedule = Schedule(arrays["arrival_s"], arrays["demand_ms"])
        choice = arrays["choice"]
    targets = [Target(host, port, path) for host, port, path in plan["targets"]]
    generator = Generator(
        targets,
        schedule,
        choice=choice,
        timeout_s=600.0,
        keep_alive=plan["keep_alive"],
        warm_connections=plan["warm"],
    )
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, generator.abort)
    run = asyncio.create_task(generator.run())
    while not generator.now_s and not run.done():
        await asyncio.sleep(0.002)
    began = loop.time() - generator.now_s
    print(json.dumps({"began": began}), flush=True)
    await asyncio.wait([run], timeout=began + schedule.duration_s + plan["drain_s"] - loop.time())
    generator.abort()
    result = await run
    np.savez(folder / "result.npz", **{field.name: getattr(result, field.name) for field in fields(Result)})


def main() -> int:
    # Where it is allowed: what measures must not wait for what is measured. Each of our children is a session of its
    # own, and where the kernel schedules by sessions (autogroup) a nice value counts only within one.
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -10)
        Path("/proc/self/autogroup").write_text("-10")
    clock.run(send(Path(sys.argv[1])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
