"""The run: sends a plan, shows how it goes, and ends early and in order when a signal comes."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, Protocol, Self

from testbed import clock
from testbed.load.generator import Generator, Result
from testbed.replay.source import Plan

REFRESH_S = 0.25


class View(Protocol):
    def update(self, generator: Generator) -> None: ...


@dataclass(frozen=True)
class Outcome:
    result: Result
    interrupted: bool


class Interrupts:
    """Within the block INT, TERM and HUP end the run instead of the process; what is written then is not disturbed."""

    def __init__(self) -> None:
        self.came = False
        self._act: Callable[[], object] | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            before = signal.getsignal(number)
            if number != signal.SIGHUP or before is not signal.SIG_IGN:  # nohup's wish stands
                self._before[number] = before
                signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        if self._act is not None:
            self._act()

    def on_signal(self, act: Callable[[], object] | None) -> None:
        """Do this when a signal comes, and now when one has come."""
        self._act = act
        if self.came and act is not None:
            act()


def run(
    plan: Plan, interrupts: Interrupts, view: View | None = None, *, keep_alive: bool = True, timeout_s: float = 30.0
) -> Outcome:
    """Send the plan and wait for the last answer, or its timeout, or a signal."""
    return clock.run(_run(plan, interrupts, view, keep_alive, timeout_s))


async def _run(plan: Plan, interrupts: Interrupts, view: View | None, keep_alive: bool, timeout_s: float) -> Outcome:
    # No connection is opened ahead: an idle one takes a worker of a prefork server, which the trace did not ask for.
    generator = Generator(
        plan.target,
        plan.schedule,
        timeout_s=timeout_s,
        keep_alive=keep_alive,
        warm_connections=0,
        request=plan.request,
    )
    loop = asyncio.get_running_loop()
    interrupts.on_signal(lambda: loop.call_soon_threadsafe(generator.abort))
    sending = asyncio.create_task(generator.run())
    try:
        while not sending.done():
            await asyncio.wait([sending], timeout=REFRESH_S)
            if view is not None:
                view.update(generator)
        return Outcome(sending.result(), interrupts.came)
    finally:
        interrupts.on_signal(None)
