"""The supervisor: starts the balancer's processes, keeps them alive, and carries what an operator wants to them.

    run()   everything: segments and sockets, data plane and controller, health, admin API, signals, the end

It forwards nothing and decides nothing about a flow: both children may die, and be brought back, without a connection
lost in the other. Signals: TERM ends gracefully, a second one at once; INT ends at once; HUP reloads; USR1 reopens
logs; QUIT writes the state to the log. Exit status 0: ended as asked; 1: it could not start.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import resource
import signal
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from controlplane import logs, reload, stats_csv
from controlplane.admin import Admin
from controlplane.config import Config
from controlplane.config_errors import Problem
from controlplane.deployment.audit import AuditLog
from controlplane.liveness import Liveness
from controlplane.metrics import ProcessView
from controlplane.notify import Notifier
from controlplane.processes import Controller, ControllerError, ControllerUnavailableError, DataPlane
from controlplane.service import LiveService
from controlplane.status import WINDOW_S
from shm_layout.segment import SegmentError

TICK_S = 0.1
READY_TIMEOUT_S = 15.0
CONTROLLER_TIMEOUT_S = 10.0
END_S = 2.0  # given to a child that was told to end at once, before it is killed
DRAIN_EXTRA_S = 2.0


class StartError(Exception):
    """The balancer cannot start; the text says why."""


def run(config: Config, config_path: str | os.PathLike[str] | None, log: logging.Logger) -> int:
    """Run the balancer until a signal ends it; returns the exit status."""
    if sys.version_info < (3, 12):
        # Waiting for a child through its descriptor, as later Pythons do: no thread for each.
        asyncio.set_child_watcher(asyncio.PidfdChildWatcher())
    with logs.never_blocking() as dropping:
        supervisor = Supervisor(config, None if config_path is None else Path(config_path), log, dropping)
        try:
            return asyncio.run(supervisor.run())
        except (StartError, SegmentError, OSError) as error:
            log.error("%s", error)
            return 1


class Supervisor:
    """The balancer as a whole."""

    def __init__(
        self, config: Config, config_path: Path | None, log: logging.Logger, dropping: logs.DroppingHandler
    ) -> None:
        self.config = config
        self.config_path = config_path
        self.services: dict[str, LiveService] = {}
        self.log = log
        self.version = _version()
        self._dropping = dropping
        self._notify = Notifier()
        self._started = time.time()
        self._reload_good = True
        self._reload_unix = self._started
        self._reloads = {"success": 0, "failure": 0}
        self._reload_lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._terms = 0
        self._stop = asyncio.Event()  # end, gracefully or not
        self._at_once = asyncio.Event()
        self._dataplane: DataPlane | None = None
        self._controller: Controller | None = None
        self._admin: Admin | None = None
        self.audit = AuditLog()
        self._liveness: Liveness | None = None

    # --- life ---------------------------------------------------------------------------------------------------------

    async def run(self) -> int:
        self._install_signals()
        try:
            await self._start()
            ticker = asyncio.create_task(self._tick_forever())
            await self._stop.wait()
            if not self._at_once.is_set():
                await self._drain()
            ticker.cancel()
            self.log.info("ended")
            return 0
        except _EndedWhileStartingError:
            return 0
        finally:
            await self._end()

    async def _start(self) -> None:
        raise_descriptor_limit()
        self._open_audit()
        for name, service_config in self.config.service.items():
            self.services[name] = LiveService(name, service_config, self.config.instance)
        if self.config.admin.listen is not None:
            self._admin = Admin(self, self.config.admin.listen)
            await self._admin.start()
        self._dataplane = DataPlane(lambda: [service.dataplane_document() for service in self.services.values()])
        self._controller = Controller(lambda: [service.controller_document() for service in self.services.values()])
        self._controller.on_event = self._controller_said
        self._liveness = Liveness(self.services, self._dataplane, self._controller)
        failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._dataplane.on_exit = lambda cause: None if failed.done() else failed.set_result(cause)
        await self._dataplane.start()
        await self._controller.start()
        await self._wait_for_dataplane(failed)
        for name, service in self.services.items():
            service.start_checks()
            self.log.info("%s: listening on %s (%s)", name, ", ".join(service.addresses), service.config.mode)
        if self._admin is not None:
            self.log.info("admin on %s", self._admin.shown)
        await self._wait_for_controller()
        self._notify.ready(f"{len(self.services)} services")

    def _open_audit(self) -> None:
        path = self.config.admin.audit
        try:
            self.audit = AuditLog("" if path == "off" else path)
        except OSError as error:
            raise StartError(f"admin.audit: cannot open {path}: {error.strerror}") from None
        self.audit.record("started", who=f"uid {os.getuid()}", version=self.version, instance=self.config.instance)

    async def _wait_for_dataplane(self, failed: asyncio.Future[str]) -> None:
        assert self._dataplane is not None
        assert self._liveness is not None
        until = time.monotonic() + READY_TIMEOUT_S
        while not self._liveness.dataplane_is_ready():
            if self._stop.is_set():
                raise _EndedWhileStartingError
            if failed.done():
                said = "; ".join(self._dataplane.last_lines) or "it said nothing"
                raise StartError(f"the data plane did not start ({failed.result()}): {said}")
            if time.monotonic() > until:
                raise StartError(f"the data plane was not ready within {READY_TIMEOUT_S:g} s")
            await asyncio.sleep(0.01)
        failed.cancel()
        self._dataplane.on_exit = lambda cause: None

    async def _wait_for_controller(self) -> None:
        """Wait for a controller, which may be late: what it must not do is refuse its configuration."""
        assert self._controller is not None
        stopped = asyncio.ensure_future(self._stop.wait())
        first: set[asyncio.Future[Any]] = {self._controller.first_start, stopped}
        await asyncio.wait(first, timeout=CONTROLLER_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if self._stop.is_set():
            return
        error = self._controller.first_start.exception() if self._controller.first_start.done() else None
        if isinstance(error, ControllerError) and not isinstance(error, ControllerUnavailableError):
            raise StartError(f"the controller did not start: {error}")
        if error is not None or not self._controller.first_start.done():
            self.log.error("no controller yet (%s): the fallback rule dispatches", error or "it is late")

    async def _tick_forever(self) -> None:
        assert self._liveness is not None
        last = time.monotonic()
        while True:
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
            slept_s, last = now - last - TICK_S, now
            try:
                if stood_still_s := self._liveness.watch(now, slept_s):
                    for service in self.services.values():
                        service.rebase(stood_still_s)
                for service in self.services.values():
                    service.tick(now)
                self._notify.watchdog(now)
            except Exception:
                # One service's trouble must not end the watch over all; the log says what it was.
                self.log.exception("tick")

    async def _drain(self) -> None:
        """Let what is open finish, as long as drain_timeout allows."""
        assert self._dataplane is not None
        self.log.info("ending: what is open may finish")
        self._notify.stopping("draining")
        self._dataplane.stop_restarting()
        for service in self.services.values():
            service.stop_accepting()
        self._dataplane.signal(signal.SIGTERM)
        most_s = max(service.config.drain_timeout for service in self.services.values()) + DRAIN_EXTRA_S
        ended = asyncio.create_task(self._dataplane.wait(most_s))
        at_once = asyncio.create_task(self._at_once.wait())
        await asyncio.wait({ended, at_once}, return_when=asyncio.FIRST_COMPLETED)
        at_once.cancel()
        if self._at_once.is_set():
            self.log.info("ending at once")
        elif not ended.result():
            self.log.warning("the data plane did not end within %.0f s", most_s)
        ended.cancel()

    async def _end(self) -> None:
        """End the children, then remove everything that was made. Nothing of it may keep us."""
        self._notify.stopping("ending")
        for task in self._tasks:
            task.cancel()
        if self._dataplane is not None:
            self._dataplane.stop_restarting()
            self._dataplane.signal(signal.SIGTERM)
        if self._controller is not None:
            self._controller.stop_restarting()
            self._controller.end_input()
        if self._dataplane is not None and self._dataplane.running:
            await asyncio.sleep(0.05)  # two of one signal that are sent at once may arrive as one
            self._dataplane.signal(signal.SIGTERM)
        for child in (self._dataplane, self._controller):
            if child is not None:
                if not await child.wait(END_S):
                    self.log.warning("%s did not end, it is killed", child.name)
                await child.kill()
        if self._controller is not None and self._controller.first_start.done():
            self._controller.first_start.exception()  # looked at, so that nobody complains that nobody did
        if self._admin is not None:
            await self._admin.stop()
        for service in self.services.values():
            service.close()
        self.audit.record("ended", who="supervisor")
        self.audit.close()
        # From here on there is nothing left to end: a late signal must not turn a clean end into a death by signal.
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGQUIT):
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)

    def _install_signals(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._on_term)
        loop.add_signal_handler(signal.SIGINT, self._on_int)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._background(self.reload()))
        loop.add_signal_handler(signal.SIGUSR1, self._reopen_logs)
        loop.add_signal_handler(signal.SIGQUIT, self._dump)

    def _on_term(self) -> None:
        self._terms += 1
        if self._terms > 1:
            self._at_once.set()
        self._stop.set()

    def _on_int(self) -> None:
        self._at_once.set()
        self._stop.set()

    def _background(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _reopen_logs(self) -> None:
        self.log.info("logs are opened anew")
        self.audit.reopen()
        for service in self.services.values():
            service.reopen_log()

    def _dump(self) -> None:
        self.log.info("state: %s", json.dumps(self.status(), separators=(",", ":")))

    def _controller_said(self, event: dict[str, Any]) -> None:
        """The controller tells of every change of policy, ours and its own (demoted, rolled back by the guard): that
        is the policy in force, with which a new controller is started. And of every step of a deployment."""
        service = self.services.get(str(event.get("service")))
        if service is None:
            return
        service.deployment.lost += int(event.get("lost", 0))
        if event["event"] == "deployment":
            service.deployment.state = event.get("state") or {}
        elif event["event"] == "audit":
            service.deployment.take(event)
            told = {key: value for key, value in event.items() if key not in ("event", "service", "lost")}
            self.audit.record(str(told.pop("what", "?")), who=str(told.pop("who", "?")), service=service.name, **told)
        elif isinstance(spec := event.get("policy"), dict):
            why = str(event.get("why", ""))
            self.log.info("%s: policy %s is in force: %s", service.name, spec.get("name"), why)
            service.note_policy(spec, why, event.get("history"))
            service.policies_cooling = event.get("cooling", [])

    # --- changes ------------------------------------------------------------------------------------------------------

    async def reload(self) -> reload.ReloadOutcome:
        """Read the configuration file again and take it, wholly or not at all."""
        async with self._reload_lock:
            self._notify.reloading()
            if self.config_path is None:
                problem = Problem("command line", 0, 0, "", "started without a file: there is nothing to read again")
                outcome = reload.ReloadOutcome(False, problems=(problem,))
            else:
                outcome = await reload.reload(self.config_path, self.config, self.services, self._controller)
            self._reload_good = outcome.good
            self._reloads["success" if outcome.good else "failure"] += 1
            if outcome.config is not None:
                self.config = outcome.config
                self._reload_unix = time.time()
                if outcome.restart_controller and self._controller is not None:
                    self.log.info("the controller is restarted: interval, balancers or objective changed")
                    self._controller.signal(signal.SIGKILL)
            if outcome.good:
                self.log.info("reloaded: %s", "; ".join(outcome.changes) or "nothing has changed")
            for problem in outcome.problems:
                self.log.error("not reloaded: %s", problem)
            self.audit.record(
                "reloaded" if outcome.good else "reload refused",
                who="reload",
                changes=list(outcome.changes),
                problems=[str(problem) for problem in outcome.problems],
            )
            self._notify.ready("reloaded" if outcome.good else "the new configuration was refused")
            return outcome

    async def set_policy(self, service: LiveService, spec: dict[str, Any], who: str = "operator") -> dict[str, Any]:
        """Swap a service's policy, or change its share; returns what it did in shadow. Raises ControllerError."""
        answer = await self._command(cmd="policy", service=service.name, policy=spec, who=who)
        return {"service": service.name, "policy": service.policy, **answer}

    async def rollback_policy(self, service: LiveService, who: str = "operator") -> dict[str, Any]:
        """Go back to the policy before; raises ControllerError."""
        before = service.policies_before
        try:
            await self._command(cmd="rollback", service=service.name, who=who)
        except ControllerUnavailableError:
            raise
        except ControllerError:
            # A controller that was restarted since has no history; we have.
            if not before:
                raise
            await self._command(cmd="policy", service=service.name, policy=before[-1])
            del service.policies_before[-2:]  # what is in force again, and what was just left
        return {"service": service.name, "policy": service.policy}

    async def show_policy(self, service: LiveService) -> dict[str, Any]:
        """Return the policy in force and what the controller tells of it; without a controller only the former."""
        shown: dict[str, Any] = {"service": service.name, "policy": service.policy}
        try:
            answer = await self._command(cmd="show", service=service.name)
        except ControllerUnavailableError as error:
            return {**shown, "controller": str(error)}
        return {**shown, **answer["services"].get(service.name, {})}

    async def _command(self, **command: Any) -> dict[str, Any]:
        if self._controller is None:
            raise ControllerUnavailableError("there is no controller")
        answer = await self._controller.command(**command)
        return {key: value for key, value in answer.items() if key not in ("id", "ok")}

    # --- what is told -------------------------------------------------------------------------------------------------

    def status(self, window_s: float = WINDOW_S) -> dict[str, Any]:
        return {
            "instance": self.config.instance,
            "version": self.version,
            "pid": os.getpid(),
            "uptime_s": round(time.time() - self._started, 1),
            "last_reload_success": self._reload_good,
            "processes": {} if self._liveness is None else self._liveness.status(),
            "services": {name: service.status(window_s) for name, service in self.services.items()},
        }

    def health(self) -> dict[str, Any]:
        """Return whether flows are forwarded: the data plane works, and each service has a server."""
        up = self._liveness is not None and self._liveness.dataplane_up
        services = {name: service.has_server for name, service in self.services.items()}
        return {
            "ok": up and all(services.values()) and not self._stop.is_set(),
            "dataplane": up,
            "controller": self._liveness is not None and self._liveness.controller_up,
            "draining": self._stop.is_set(),
            "services": services,
        }

    def metrics_view(self) -> ProcessView:
        assert self._liveness is not None
        return ProcessView(
            version=self.version,
            instance=self.config.instance,
            started_unix=self._started,
            up={"dataplane": self._liveness.dataplane_up, "controller": self._liveness.controller_up},
            restarts={name: child["restarts"] for name, child in self._liveness.status().items()},
            reload_good=self._reload_good,
            reloads=self._reloads,
            reload_unix=self._reload_unix,
            log_dropped=self._dropping.dropped,
            audit_dropped=self.audit.dropped,
            services=tuple(service.view() for service in self.services.values()),
        )

    def csv(self) -> str:
        return stats_csv.table(
            (name, service.status(), service.snapshot(), list(service.table)) for name, service in self.services.items()
        )


class _EndedWhileStartingError(Exception):
    """A signal came before everything ran."""


def raise_descriptor_limit() -> None:
    """Raise the soft limit on open files to the hard one: the configuration was checked against that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _version() -> str:
    try:
        return version("vickrey")
    except PackageNotFoundError:
        return "unknown"
