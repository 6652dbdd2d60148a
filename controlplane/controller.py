"""The controller process: `python -m controlplane.controller`, commands on standard input, answers on standard output.

One thread a service runs its control loop (`controlplane.control_loop`), so that a slow policy of one service does
not delay another's; the main thread reads commands, one JSON line each, and every one is answered by one line with
its `id`:

    {"id": 0, "cmd": "start", "supervisor_pid": 1, "services": [{"service": "web", "segment": "/vickrey.i.web", …}]}
    {"id": 1, "cmd": "policy", "service": "web", "policy": {"name": "sed"}, "who": "127.0.0.1"}
    {"id": 2, "cmd": "rollback", "service": "web", "who": "127.0.0.1"}
    {"id": 3, "cmd": "show"}

Every change of the policy in force, also one on its own (demoted, rolled back by the guard), is told as a line
{"event": "policy", …}, every step of a deployment as {"event": "audit", …}, and at most once a second what changes by
itself (novelty, blend, a switchback's state) as {"event": "deployment", …}. A thread writes these lines: no loop waits
for a supervisor that does not read. Logs go to standard error. It ends with its input, which ends with the
supervisor, and with TERM; INT is ignored: the supervisor decides.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import queue
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from controlplane.background import to_background
from controlplane.control_loop import SHADOW_CYCLES, ControlLoop, Spec
from controlplane.deployment.chosen import Chosen, prepare
from controlplane.deployment.deployment import ROLLED_BACK
from controlplane.deployment.shown import deployment_state
from shm_layout.errors import ControllerLockedError, SegmentError
from shm_layout.mapping import now_ns
from shm_layout.segment import ControllerSupersededError, Segment

log = logging.getLogger("vickrey.controller")

# Between the shadow cycles of a policy that is being set, seconds, when the interval is longer.
SHADOW_INTERVAL = 0.2
# Decides where the policy that was in force cannot be made again.
STAND_IN = "adaptive"
INTERVAL_LEAST = 0.01
# Between tries to become the controller of a service that another one has, seconds.
LOCKED_RETRY = 1.0
# Lines that may wait for the supervisor; and seconds between two reports of a service's deployment.
LINES_MAX = 10_000
REPORT_SECONDS = 1.0


class CommandError(ValueError):
    """A command that is refused, and why."""


REFUSALS = (CommandError, SegmentError, ValueError, TypeError, KeyError)


def reason(error: Exception) -> str:
    """Return why a command was refused."""
    return f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error) or type(error).__name__


def _made(spec: str | Spec) -> Chosen | Exception | None:
    """Return a policy, None for a change of the one in force, or why it cannot be made."""
    try:
        return prepare(spec)
    except Exception as error:  # a policy's module may raise anything
        return error


class Service(threading.Thread):
    """The thread of one service's loop."""

    def __init__(self, loop: ControlLoop) -> None:
        super().__init__(name=f"control-{loop.service}", daemon=True)
        self.loop = loop
        self.ended = ""  # why it gave up
        self._lock = threading.Condition()
        self.report: Callable[[dict[str, Any]], None] = lambda state: None
        self._stopping = False
        self._hurry = 0  # shadow cycles still to run
        self._reported: tuple[float, dict[str, Any]] = (0.0, {})
        self._setting: threading.Thread | None = None  # the policy that was set last
        self._making: set[object] = set()  # a mark of each policy that is to be set

    def run(self) -> None:
        """Run a cycle each interval, on a grid that does not drift; after a pause of the machine, from now on."""
        due = time.monotonic()
        while True:
            with self._lock:
                while not self._stopping and (wait := due - time.monotonic()) > 0 and not self._woken(due):
                    self._lock.wait(wait)
                if self._stopping:
                    return
                try:
                    self.loop.cycle(now_ns())
                except ControllerSupersededError as error:
                    self.ended = str(error)
                except SegmentError as error:
                    self.ended = f"{self.loop.service}: {error}"
                if self.ended:
                    log.error("%s", self.ended)
                    os.kill(os.getpid(), signal.SIGTERM)
                    return
                self._hurry = max(self._hurry - 1, 0)
                self._report()
            interval = self.loop.interval
            due = max(due + interval, time.monotonic() - interval)
            if self._hurry:
                due = min(due, time.monotonic() + min(interval, SHADOW_INTERVAL))

    def _report(self) -> None:
        at, told = self._reported
        if time.monotonic() - at < REPORT_SECONDS:
            return
        state = deployment_state(self.loop)
        if state != told:
            self.report(state)
        self._reported = time.monotonic(), state

    def _woken(self, due: float) -> bool:
        return self._hurry > 0 and due - time.monotonic() > SHADOW_INTERVAL

    def call(self, do: Callable[[ControlLoop], Any], *, hurry: int = 0) -> Any:
        """Do something with the loop between two cycles; hurry: run so many cycles soon."""
        with self._lock:
            result = do(self.loop)
            self._hurry = max(self._hurry, hurry)
            self._lock.notify()
            return result

    def set_policy(self, spec: str | Spec, done: Callable[[str | None], None], who: str) -> None:
        """Set a policy that is made beside the loop: what it imports may take seconds. In the order of calls."""
        before, mark = self._setting, object()
        with self._lock:
            self._making.add(mark)

        def make_and_swap() -> None:
            if before is not None:
                before.join()
            made = _made(spec)

            def swap(loop: ControlLoop) -> None:
                is_gone = mark not in self._making
                self._making.discard(mark)
                loop.swap(spec, done, who, ValueError(ROLLED_BACK) if is_gone else made)

            self._call_late(swap, done)

        self._setting = threading.Thread(target=make_and_swap, name=f"set-{self.loop.service}", daemon=True)
        self._setting.start()

    def rollback(self, done: Callable[[str | None], None], who: str) -> None:
        """Go back to the policy before: at once, or when that is made again.

        One that is being made is not set any more; then the one in force is the policy before.
        """
        with self._lock:
            cancelled = bool(self._making)
            self._making.clear()

        def back(loop: ControlLoop) -> None:
            loop.rollback(done, who, cancelled=cancelled)

        unmade = self.call(lambda loop: loop.history.unmade_last() if loop.trial is None else None)
        if cancelled or unmade is None:
            self.call(back, hurry=SHADOW_CYCLES + 1)
            return

        def make_and_go_back() -> None:
            made = self._remake(unmade)
            self._call_late(back, done) if made is None else done(reason(made))

        threading.Thread(target=make_and_go_back, name=f"back-{self.loop.service}", daemon=True).start()

    def remake(self) -> None:
        """Make what an earlier controller had in force, beside the loop: the guard may go back to it at any moment."""
        for spec in self.call(lambda loop: loop.history.unmade()):
            self._remake(spec)

    def _remake(self, spec: Spec) -> Exception | None:
        """Make a version of the history; return why that failed."""
        made = _made(spec)
        if isinstance(made, Chosen):
            self.call(lambda loop: loop.history.keep(spec, made))
        return made if isinstance(made, Exception) else None

    def _call_late(self, do: Callable[[ControlLoop], None], done: Callable[[str | None], None]) -> None:
        try:
            self.call(do, hurry=SHADOW_CYCLES + 1)
        except Exception as error:  # whatever it is: who asked waits for an answer
            done(reason(error))

    def stop(self) -> None:
        """End after the cycle that runs."""
        with self._lock:
            self._stopping = True
            self._lock.notify()


class Controller:
    """All services, and the conversation with the supervisor."""

    def __init__(self, out: TextIO, *, takeover: bool = False) -> None:
        self.services: dict[str, Service] = {}
        self.takeover = takeover
        self._stopping = threading.Event()
        self._out = out
        self._lost = 0  # lines that found no room, since the last that did
        self._lines: queue.Queue[str | None] = queue.Queue(LINES_MAX)
        self._writer = threading.Thread(target=self._write_all, name="lines", daemon=True)
        self._writer.start()

    def say(self, **message: Any) -> None:
        """Give one JSON line to the writer."""
        if self._lost:
            message["lost"] = self._lost
        try:
            self._lines.put_nowait(json.dumps(message, default=str) + "\n")
            self._lost = 0
        except queue.Full:
            self._lost += 1

    def _write_all(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._out.write(line)
                self._out.flush()
            except (BrokenPipeError, ValueError):
                return  # nobody listens any more: end of input follows

    def handle(self, line: str) -> None:
        """Carry out one command and answer it, now or when it is done."""
        number: Any = None
        try:
            command = json.loads(line)
            if not isinstance(command, dict):
                raise CommandError("a command is a JSON object")
            number = command.get("id")
            answer = self._dispatch(command, number)
        except REFUSALS as error:
            self.say(id=number, ok=False, error=reason(error))
            return
        if answer is not None:
            self.say(id=number, ok=True, **answer)

    def _dispatch(self, command: dict[str, Any], number: Any) -> dict[str, Any] | None:
        match command.get("cmd"):
            case "start":
                return self._start(command)
            case "show":
                return {"services": {name: s.call(ControlLoop.show) for name, s in self.services.items()}}
            case "policy":
                spec, service, who = command["policy"], self._service(command), str(command.get("who", "operator"))
                service.set_policy(spec, self._answer(number, service), who)
            case "rollback":
                service, who = self._service(command), str(command.get("who", "operator"))
                service.rollback(self._answer(number, service), who)
            case other:
                raise CommandError(f"unknown command {other!r}: expected start, policy, rollback or show")
        return None

    def _answer(self, number: Any, service: Service) -> Callable[[str | None], None]:
        """Return what a swap calls when it is done."""

        def done(error: str | None) -> None:
            if error is None:
                self.say(id=number, ok=True, **service.loop.watch.show(), shadow=service.loop.shadow_report)
            else:
                self.say(id=number, ok=False, error=error)

        return done

    def _service(self, command: dict[str, Any]) -> Service:
        name = command["service"]
        if name not in self.services:
            raise CommandError(f"no service is called {name!r}")
        return self.services[name]

    def _start(self, command: dict[str, Any]) -> dict[str, Any]:
        if self.services:
            raise CommandError("already started")
        started: list[Service] = []
        locked: dict[Service, ControllerLockedError] = {}
        for given in command["services"]:
            interval = float(given.get("interval", 0.2))
            if not INTERVAL_LEAST <= interval <= 3600:
                raise CommandError(f"service {given['service']}: interval {interval} s: expected 0.01 … 3600")
            segment = Segment.attach(given["segment"], writable=True)
            loop = _loop(given, segment, interval)
            service = Service(loop)
            self._listen(service, given["service"])
            if loop.demoted:
                told = {"policy": given["policy"]["name"], "spec": given["policy"], "sha256": None}
                loop.on_event({"what": "demoted", "who": "controller", **told, "why": loop.demoted, "to": STAND_IN})
            try:
                loop.begin(takeover=self.takeover)
                started.append(service)
            except ControllerLockedError as error:
                locked[service] = error
        if locked and not started:
            raise next(iter(locked.values()))
        for service in started:
            self._run(service)  # the first directive is in force before the answer
        for service, why in locked.items():
            log.error("%s: %s; tried again until it is free", service.loop.service, why)
            threading.Thread(target=self._run_when_free, args=(service,), daemon=True).start()
        return {"pid": os.getpid(), "locked": {service.loop.service: str(why) for service, why in locked.items()}}

    def _run(self, service: Service) -> None:
        service.loop.cycle(now_ns())
        self.services = {**self.services, service.loop.service: service}
        service.start()
        threading.Thread(target=service.remake, name=f"remake-{service.loop.service}", daemon=True).start()

    def _run_when_free(self, service: Service) -> None:
        """Another controller has this service alone: the others do not wait for it."""
        while not self._stopping.wait(LOCKED_RETRY):
            try:
                service.loop.begin()
            except ControllerLockedError:
                continue
            log.info("%s: its other controller is gone", service.loop.service)
            self._run(service)
            return

    def _listen(self, service: Service, name: str) -> None:
        """Tell the supervisor what happens in a service's loop."""

        def changed(spec: Spec, why: str) -> None:
            loop = service.loop
            kept = {"history": list(loop.history), "cooling": list(loop.cooling)}  # the next controller is given them
            self.say(event="policy", service=name, policy=spec, why=why, **kept)

        service.loop.on_change = changed
        service.loop.on_event = lambda event: self.say(event="audit", service=name, **event)
        service.report = lambda state: self.say(event="deployment", service=name, state=state)

    def stop(self) -> None:
        """End all loops; the segments stay as they are, and the data plane goes on by the last directive."""
        self._stopping.set()
        for service in self.services.values():
            service.stop()
        for service in self.services.values():
            service.join(1.0)
            if not service.is_alive():
                service.loop.close()
                service.loop.segment.close()
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(None)
        self._writer.join(1.0)


def _loop(given: dict[str, Any], segment: Segment, interval: float) -> ControlLoop:
    """Return a service's control loop. What was in force may be there no longer, its file gone or damaged since: then
    the default policy decides, and the others' services have their controller."""

    def make(policy: str | Spec) -> ControlLoop:
        return ControlLoop(
            segment,
            given["service"],
            policy,
            interval=interval,
            balancers=int(given.get("balancers", 1)),
            objective=str(given.get("objective", "mean")),
            reserve=str(given.get("reserve", "off")),
            history=given.get("history", ()),
            cooling=given.get("cooling", ()),
        )

    try:
        return make(given.get("policy", STAND_IN))
    except ValueError as error:
        log.error("%s: %s; %s decides until a policy is set", given["service"], error, STAND_IN)
        loop = make(STAND_IN)
        loop.demoted = str(error)
        return loop


def _lines_of(descriptor: int) -> Iterator[str]:
    """Yield the lines that come, until the input ends.

    A signal that arrives when the main thread is about to read, not reading yet, would be noticed only with the next
    line: so every signal writes a byte to a pipe that is waited for beside the input.
    """
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    rest = b""
    while True:
        ready, _, _ = select.select([descriptor, woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
        if descriptor not in ready:
            continue
        chunk = os.read(descriptor, 65536)
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line.decode(errors="replace") for line in lines)
        if not chunk:
            if rest:
                yield rest.decode(errors="replace")
            return


def main(argv: list[str] | None = None) -> int:
    """Run until the input ends; 1: it could not start, or another controller took over."""
    parser = argparse.ArgumentParser(prog="python -m controlplane.controller", description=__doc__)
    parser.add_argument("--takeover", action="store_true", help="become the controller although another one runs")
    args = parser.parse_args(argv)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(message)s")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    to_background()

    def terminate(*_: object) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, terminate)
    controller = Controller(sys.stdout, takeover=args.takeover)
    try:
        for line in _lines_of(sys.stdin.fileno()):
            if line.strip():
                controller.handle(line)
    except SystemExit:
        pass
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        controller.stop()
    return 1 if any(service.ended for service in controller.services.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
