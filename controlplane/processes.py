"""The supervisor's children: started, listened to, restarted with backoff, ended.

A child gets its standard input from us, its standard error is read here line by line (a blocked log never blocks a
child), and it ends by itself when we die (it asks for that with PR_SET_PDEATHSIG).

    Child          one process, its restarts and what it last said
    DataPlane      its input is one JSON document, then end of file
    Controller     its input are commands, its output the answers, one JSON line each
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

log = logging.getLogger("vickrey.processes")

BACKOFF_FIRST_S = 0.1
BACKOFF_MOST_S = 5.0
BACKOFF_FORGOTTEN_S = 10.0  # a child that lived this long starts with a clean record
LINE_BYTES_MAX = 1 << 24  # `show` of thousands of servers is one line
LAST_LINES = 20


class ControllerError(Exception):
    """The controller refused a command; the text is its reason."""


class ControllerUnavailableError(ControllerError):
    """There is no controller to answer just now."""


class Backoff:
    """How long to wait before a restart: nothing the first time, then 0.1 s, doubled each time up to 5 s."""

    def __init__(self) -> None:
        self.failures = 0

    def delay_s(self, lived_s: float) -> float:
        """Return the wait after a child that lived that long."""
        self.failures = 1 if lived_s >= BACKOFF_FORGOTTEN_S else self.failures + 1
        if self.failures == 1:
            return 0.0
        return float(min(BACKOFF_FIRST_S * 2 ** min(self.failures - 2, 10), BACKOFF_MOST_S))


class Child:
    """One child process that is kept running until it is told to stop."""

    def __init__(self, name: str, argv: list[str]) -> None:
        self.name = name
        self.argv = argv
        self.restarts = 0
        self.started = 0.0  # monotonic seconds, of the present process
        self.last_exit = ""
        self.last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self.on_exit: Callable[[str], None] = lambda cause: None
        self.process: asyncio.subprocess.Process | None = None
        self._stopping = False
        self._keeper: asyncio.Task[None] | None = None
        self._backoff = Backoff()

    @property
    def pid(self) -> int:
        """Process id; 0 while it is not running."""
        return self.process.pid if self.running and self.process else 0

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.returncode is None

    def fds(self) -> list[int]:
        """Return the descriptors that it inherits."""
        return []

    async def start(self) -> None:
        """Start it, and keep it running from now on."""
        await self._spawn()
        self._keeper = asyncio.create_task(self._keep(), name=f"keep {self.name}")

    def signal(self, number: int) -> None:
        if self.running and self.process:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)

    def stop_restarting(self) -> None:
        """From now on its end is its end."""
        self._stopping = True

    async def wait(self, timeout_s: float) -> bool:
        """Wait for its end; False when it still runs after that time."""
        if self.process is None:
            return True
        try:
            await asyncio.wait_for(self.process.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    async def kill(self) -> None:
        """End it at once, and do not restart it."""
        self.stop_restarting()
        if self._keeper is not None:
            self._keeper.cancel()  # first: it may be about to start another one
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        self.signal(signal.SIGKILL)
        if self.process is not None:
            await self.process.wait()

    async def _spawn(self) -> None:
        root = str(Path(__file__).resolve().parent.parent)
        path = os.environ.get("PYTHONPATH")
        environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{path}" if path else root}
        self.started = time.monotonic()
        self.process = None
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # the directory that we happen to be in is not searched for modules
            *self.argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=self.fds(),
            env=environment,
            limit=LINE_BYTES_MAX,
        )
        log.info("%s started, pid %d", self.name, self.process.pid)

    async def _keep(self) -> None:
        while not self._stopping:
            try:
                await self._live()
            except Exception:
                # Whatever it was (no memory to fork, say), a balancer without this child is worse than another try.
                log.exception("%s", self.name)
                self.signal(signal.SIGKILL)
            lived_s = time.monotonic() - self.started
            if self._stopping:
                return
            delay_s = self._backoff.delay_s(lived_s)
            log.warning("%s ended (%s) after %.1f s; restart in %.1f s", self.name, self.last_exit, lived_s, delay_s)
            await asyncio.sleep(delay_s)
            if self._stopping:
                return
            self.restarts += 1
            try:
                await self._spawn()
            except OSError as error:
                log.error("%s cannot be started: %s", self.name, error)

    async def _live(self) -> None:
        """Attend to the present process until it ends."""
        process = self.process
        if process is None:
            return  # it could not be started
        reader = asyncio.create_task(self._read_errors(process))
        try:
            await self.attend(process)
            code = await process.wait()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(reader), 0.5)  # what it said last
        finally:
            reader.cancel()
        self.last_exit = exit_cause(code)
        self.on_exit(self.last_exit)

    async def attend(self, process: asyncio.subprocess.Process) -> None:
        """Speak with a process that has just started; returns when there is nothing more to say or hear."""

    async def _read_errors(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        rest = b""
        while chunk := await process.stderr.read(65536):
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > 65536:
                lines, rest = [*lines, rest], b""
            for line in lines:
                self._heard(line)
        if rest:
            self._heard(rest)

    def _heard(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip()
        if text:
            self.last_lines.append(text)
            log.info("%s: %s", self.name, text)


class DataPlane(Child):
    """The data plane. It reads one document when it starts, then forwards until it is told to end."""

    def __init__(self, services: Callable[[], list[dict[str, Any]]]) -> None:
        super().__init__("data plane", ["-m", "dataplane"])
        self._services = services

    def fds(self) -> list[int]:
        return [fd for service in self._services() for fd in service["listen_fds"]]

    async def attend(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        document = {"supervisor_pid": os.getpid(), "services": self._services()}
        with contextlib.suppress(ConnectionError):
            process.stdin.write(json.dumps(document).encode())
            await process.stdin.drain()
            process.stdin.close()
        while chunk := await process.stdout.read(65536):
            self._heard(chunk)


class Controller(Child):
    """The controller, and the conversation with it. Each new one is told the policies in force."""

    def __init__(self, services: Callable[[], list[dict[str, Any]]]) -> None:
        super().__init__("controller", ["-m", "controlplane.controller"])
        self.on_event: Callable[[dict[str, Any]], None] = lambda event: None
        self.first_start: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._services = services
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._next_id = 0

    async def command(self, timeout_s: float = 10.0, **command: Any) -> dict[str, Any]:
        """Send a command and return the answer; raises ControllerError when it is refused or nobody answers."""
        if not self.running or self.process is None or self.process.stdin is None:
            raise ControllerUnavailableError("the controller is not running")
        number = self._next_id
        self._next_id += 1
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        try:
            self.process.stdin.write(json.dumps({"id": number, **command}).encode() + b"\n")
            got = await asyncio.wait_for(answer, timeout_s)
        except (ConnectionError, RuntimeError) as error:
            raise ControllerUnavailableError("the controller ended") from error
        except TimeoutError:
            raise ControllerUnavailableError(f"the controller did not answer within {timeout_s:g} s") from None
        finally:
            self._answers.pop(number, None)
        if not got.get("ok"):
            raise ControllerError(str(got.get("error", "the controller refused")))
        return got

    def end_input(self) -> None:
        """Close its standard input, which asks it to end."""
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()

    async def attend(self, process: asyncio.subprocess.Process) -> None:
        start = asyncio.create_task(self._start(process))
        try:
            await self._read_answers(process)
        finally:
            for answer in self._answers.values():
                if not answer.done():
                    answer.set_exception(ControllerUnavailableError("the controller ended"))
            await start

    async def _start(self, process: asyncio.subprocess.Process) -> None:
        try:
            services = self._services()
            answer = await self.command(30.0, cmd="start", supervisor_pid=os.getpid(), services=services)
            if not self.first_start.done():
                self.first_start.set_result(answer)
        except ControllerError as error:
            if not self.first_start.done():
                self.first_start.set_exception(error)
            elif process.returncode is None and not self._stopping:
                log.error("controller: it did not start: %s", error)
                with contextlib.suppress(ProcessLookupError):
                    process.kill()  # the next one may do better: backoff bounds how often it is tried

    async def _read_answers(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while True:
            try:
                line = await process.stdout.readline()
            except ValueError:
                log.error(
                    "controller: a line of more than %d bytes on its standard output; it is restarted", LINE_BYTES_MAX
                )
                process.kill()
                return
            if not line:
                return
            try:
                message = json.loads(line)
                number = message.get("id")
            except (ValueError, AttributeError):
                log.warning("controller: not an answer: %.200r", line)
                continue
            answer = self._answers.get(number)
            if answer is not None and not answer.done():
                answer.set_result(message)
            elif "event" in message:
                self.on_event(message)


def exit_cause(code: int) -> str:
    """Return how a process ended, in words."""
    if code >= 0:
        return f"exit {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
