"""Active health checks: ask each server now and then, believe it after `fall` bad or `rise` good answers in a row.

Names and meaning are HAProxy's (`inter`, `fall`, `rise`). A check is one HTTP GET, or only a connection. The client
is made of plain sockets: an idle balancer must not spend its processor on asking after its servers.

A service without checks still has its servers probed by connecting once they were marked down for refusing connections;
otherwise nothing would ever bring them back.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from controlplane.config_values import StatusRanges
from controlplane.servers import Server

ANSWER_BYTES_MAX = 4096  # the status line stands in its first bytes
LATE_S = 1.0  # a timer that fires this much too late says that we slept, not the server
SOON_S = 0.25  # first check of a server that was marked down by its traffic


@dataclass(frozen=True)
class CheckPlan:
    """How a service's servers are asked. path empty: a connection is answer enough."""

    path: str = ""
    host: str = ""
    expect: StatusRanges = ((200, 399),)
    inter_s: float = 2.0
    fall: int = 3
    rise: int = 2
    timeout_s: float = 2.0
    always: bool = True  # False: only while the server is down


@dataclass(frozen=True)
class CheckResult:
    good: bool
    text: str  # in HAProxy's terms: L4OK, L4CON, L4TOUT, L7OK, L7STS, L7RSP, L7TOUT, and what was seen
    took_s: float


async def check(server: Server, plan: CheckPlan, clock: Callable[[], float] = time.monotonic) -> CheckResult | None:
    """Ask once. None: nothing can be said, because this process did not run for a while."""
    loop = asyncio.get_running_loop()
    began = clock()
    connected = False
    good, text = False, ""
    with socket.socket(server.address.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
        try:
            async with asyncio.timeout(plan.timeout_s):
                await loop.sock_connect(sock, server.address.sockaddr)
                connected = True
                if plan.path:
                    await loop.sock_sendall(sock, _request(server, plan))
                    good, text = judge(await _answer(loop, sock), plan.expect)
                else:
                    good, text = True, "L4OK"
        except TimeoutError:
            text = "L7TOUT" if connected else "L4TOUT"
        except OSError as error:
            text = f"{'L7RSP' if connected else 'L4CON'} {os.strerror(error.errno) if error.errno else error}"
    took_s = clock() - began
    if took_s > plan.timeout_s + LATE_S:
        return None
    return CheckResult(good, text, took_s)


def _request(server: Server, plan: CheckPlan) -> bytes:
    host = plan.host or ("localhost" if server.address.is_unix else server.address.text)
    fields = f"Host: {host}\r\nUser-Agent: vickrey-health\r\nAccept: */*\r\nConnection: close"
    return f"GET {plan.path} HTTP/1.1\r\n{fields}\r\n\r\n".encode()


async def _answer(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> bytes:
    answer = b""
    while b"\n" not in answer and len(answer) < ANSWER_BYTES_MAX:
        more = await loop.sock_recv(sock, ANSWER_BYTES_MAX)
        if not more:
            break
        answer += more
    return answer


def judge(answer: bytes, expect: StatusRanges) -> tuple[bool, str]:
    """Judge an answer by its status line."""
    if not answer:
        return False, "L7RSP no answer"
    parts = answer.split(b"\n", 1)[0].split()
    if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or len(parts[1]) != 3 or not parts[1].isdigit():
        return False, "L7RSP not HTTP"
    status = int(parts[1])
    good = any(low <= status <= high for low, high in expect)
    return good, f"{'L7OK' if good else 'L7STS'} {status}"


class HealthChecks:
    """The checks of one service: one task a server, which sleeps most of the time."""

    def __init__(self, plan: CheckPlan, report: Callable[[Server, CheckResult], None]) -> None:
        self.plan = plan
        self._report = report
        self._tasks: dict[Server, asyncio.Task[None]] = {}

    def follow(self, servers: list[Server]) -> None:
        """Check these servers from now on and no others. Call it whenever a server, its state or its health changed."""
        wanted = {server for server in servers if server.state != "maint" and (self.plan.always or not server.up)}
        for server in [server for server in self._tasks if server not in wanted]:
            self._tasks.pop(server).cancel()
        for server in wanted:
            task = self._tasks.get(server)
            if task is None or task.done():
                self._tasks[server] = asyncio.create_task(self._follow_one(server), name=f"check {server.name}")

    def soon(self, server: Server) -> None:
        """Check a server that has just been marked down within a moment rather than after a whole interval."""
        task = self._tasks.pop(server, None)
        if task is not None:
            task.cancel()
        self._tasks[server] = asyncio.create_task(self._follow_one(server, SOON_S), name=f"check {server.name}")

    def change(self, plan: CheckPlan) -> None:
        """Ask in another way from now on; a check under way ends in the old one."""
        self.plan = plan

    def stop(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        self._tasks.clear()

    async def _follow_one(self, server: Server, first_s: float | None = None) -> None:
        # Servers that are followed from the same moment on are not asked in the same moment.
        wait_s = random.uniform(0, self.plan.inter_s) if first_s is None else first_s
        while True:
            await asyncio.sleep(wait_s)
            began = time.monotonic()
            result = await check(server, self.plan)
            if result is not None:
                self._report(server, result)
            wait_s = max(self.plan.inter_s - (time.monotonic() - began), 0.05)


def take_result(server: Server, result: CheckResult, plan: CheckPlan, nobody_up: bool) -> bool:
    """Note a check's result; returns whether the server went up or down by it.

    nobody_up: the service has no server left, so the first good answer is enough.
    """
    server.last_check, server.last_check_s = result.text, result.took_s
    if result.good:
        server.checks_good += 1
        server.checks_bad = 0
        if not server.up and (server.checks_good >= plan.rise or nobody_up):
            return set_up(server)
        return False
    server.checks_bad += 1
    server.checks_good = 0
    server.checks_failed_total += 1
    if server.up and server.checks_bad >= plan.fall:
        return set_down(server, f"check: {result.text}")
    return False


def set_down(server: Server, cause: str) -> bool:
    """Mark a server down; returns whether it was up."""
    was_up = server.up
    server.up, server.down_cause, server.checks_good = False, cause, 0
    if was_up:
        server.down_count += 1
        server.changed = time.monotonic()
    return was_up


def set_up(server: Server) -> bool:
    """Mark a server up; returns whether it was down."""
    was_up = server.up
    server.up, server.down_cause, server.checks_bad = True, "", 0
    if not was_up:
        server.changed = time.monotonic()
    return not was_up
