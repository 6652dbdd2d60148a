"""One service while it runs: its segment, sockets, servers, checks and logs, and what changes them.

The supervisor calls `tick` some ten times a second. In it: failed flows are judged, ejections end, servers that left
free their slots, and whatever changed is published, once.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from controlplane import counters, settings
from controlplane.access_log import AccessLog
from controlplane.config import Service
from controlplane.deployment.followed import Followed
from controlplane.health import CheckPlan, CheckResult, HealthChecks, set_down, take_result
from controlplane.listeners import Listeners, open_listeners
from controlplane.metrics import ServiceView
from controlplane.outlier import FailureRuns, OutlierDetector
from controlplane.servers import Server, ServerTable
from controlplane.status import WINDOW_S, History, Learned, server_status, traffic_status
from shm_layout.segment import Segment, SegmentReadError, now_ns, segment_name

log = logging.getLogger("vickrey.service")

POLICIES_KEPT = 10
POLL_ROWS_PER_SECOND = 10_000  # rows of stats (servers times workers) that passive marking may read in a second


class LiveService:
    """One service of the balancer."""

    def __init__(self, name: str, config: Service, instance: str) -> None:
        self.name = name
        self.config = config
        self.policy: dict[str, Any] = config.policy.spec()
        self.policies_before: list[dict[str, Any]] = []  # latest last
        self.policies_cooling: list[tuple[str, float, str]] = []  # taken out of force lately (guard.CoolDown)
        self.deployment = Followed()
        self.threads = settings.threads(config)
        self.table = ServerTable(settings.segment_limits(config).max_servers)
        self.table.configure(config.servers)
        self.version = 0  # of the settings
        self.accepting = True
        self._drain_deadline_ns = 0
        self._published_changes = -1
        self._runs = FailureRuns()
        self._outliers = OutlierDetector(config.outlier)
        self._polled = 0.0
        self._records_seen = -1
        self._log: AccessLog | None = None
        self._log_lost_before = 0  # by logs that were closed since
        self.listeners: list[Listeners] = []
        self.segment = Segment.create(segment_name(instance, name), settings.segment_limits(config), name)
        try:
            for address in config.listen:
                self.listeners.append(open_listeners(address, config.workers))
            self.publish()
            self._open_log()
        except BaseException:
            self.close()
            raise
        self._history = History(self.snapshot())
        self._checks = HealthChecks(check_plan(config), self._checked)

    # What the children are told.

    def dataplane_document(self) -> dict[str, Any]:
        fds = [listeners.fds[worker] for worker in range(self.config.workers) for listeners in self.listeners]
        return {
            "segment": self.segment.name,
            "mode": self.config.mode,
            "workers": self.threads,
            "listen_fds": fds,
            "io": self.config.io,
        }

    def controller_document(self) -> dict[str, Any]:
        return {
            "service": self.name,
            "segment": self.segment.name,
            "interval": self.config.interval,
            "balancers": self.config.balancers,
            "objective": self.config.objective,
            "reserve": self.reserve,
            "policy": self.policy,
            "history": self.policies_before,
            "cooling": self.policies_cooling,
        }

    @property
    def reserve(self) -> str:
        """Return whether and how flows are held back; in mode tcp none are."""
        return "off" if self.config.mode == "tcp" and self.config.reserve == "auto" else self.config.reserve

    @property
    def addresses(self) -> list[str]:
        return [listeners.shown for listeners in self.listeners]

    # Its life.

    def start_checks(self) -> None:
        self._checks.follow(list(self.table))

    def tick(self, now: float) -> None:
        """Do what is due; now is the monotonic clock in seconds."""
        workers = self.segment.read_workers()[: self.threads]
        self._judge(now, int(workers["ring_head"].sum()))
        for server, cause in self._outliers.take_back(self.table, now):
            log.warning("%s: server %s is taken back: %s", self.name, server.name, cause)
            self._runs.forget(server.slot)
            self.table.begin_slowstart(server, self.config.slowstart)
        self._free_left(workers)
        if self._history.is_due(now, len(self.table.slots) * self.threads):
            self._history.add(self.snapshot())
        self.publish()

    def rebase(self, slept_s: float) -> None:
        """Judge nobody by what happened while this machine, or the data plane, stood still."""
        self._runs.rebase()
        self._records_seen = -1
        self._outliers.shift(self.table, slept_s)
        for server in self.table:
            server.checks_bad = 0

    def publish(self) -> None:
        """Publish the settings if anything changed since the last time."""
        if self._published_changes == self.table.changes:
            return
        self.version += 1
        data = settings.settings_of(
            self.config,
            self.table,
            self.version,
            accepting=self.accepting,
            drain_deadline_ns=self._drain_deadline_ns,
        )
        self.segment.publish_settings(data)
        self._published_changes = self.table.changes

    def stop_accepting(self) -> None:
        """Begin the end: no new connections, and a time at which the open ones are cut."""
        self.accepting = False
        self._drain_deadline_ns = now_ns() + int(self.config.drain_timeout * settings.SECOND)
        self.table.touch()
        self.publish()
        self.close_listeners()
        self._checks.stop()

    def close_listeners(self) -> None:
        for listeners in self.listeners:
            listeners.close()

    def close(self) -> None:
        """Let go of everything; the segment's name is removed."""
        if hasattr(self, "_checks"):
            self._checks.stop()
        self._close_log()
        self.close_listeners()
        self.segment.unlink()
        self.segment.close()

    def reopen_log(self) -> None:
        if self._log is not None:
            self._log.reopen()

    # Health.

    def _checked(self, server: Server, result: CheckResult) -> None:
        nobody_up = not any(other.takes_flows for other in self.table)
        changed = take_result(server, result, self._checks.plan, nobody_up)
        back = result.good and self._outliers.checked_good(server, changed, self._checks.plan.rise, time.monotonic())
        if not changed and not back:
            return
        if server.up:
            log.warning("%s: server %s is up: %s", self.name, server.name, result.text)
            self._runs.forget(server.slot)
            self.table.begin_slowstart(server, self.config.slowstart)
        else:
            log.warning("%s: server %s is down: %s", self.name, server.name, server.down_cause)
        self._health_changed()

    def _judge(self, now: float, records: int) -> None:
        """Look at the flows that ended since the last time, if any did."""
        rows = len(self.table.slots) * self.threads
        if records == self._records_seen or now - self._polled < rows / POLL_ROWS_PER_SECOND:
            return
        self._records_seen, self._polled = records, now
        runs = self._runs.poll(counters.read_outcomes(self.segment, len(self.table.slots), self.threads))
        fall = self._checks.plan.fall
        for slot in (runs.connect >= fall).nonzero()[0]:
            server = self.table.slots[slot]
            if server is not None and set_down(server, f"traffic: {runs.connect[slot]} connections failed in a row"):
                log.warning("%s: server %s is down: %s", self.name, server.name, server.down_cause)
                self._health_changed()
                self._checks.soon(server)
            self._runs.forget(int(slot))
        for server, cause in self._outliers.judge(self.table, runs, now):
            out_s = server.ejected_until - now
            log.warning("%s: server %s is ejected for %.0f s: %s", self.name, server.name, out_s, cause)
            self._health_changed()

    def _health_changed(self) -> None:
        self.table.touch()
        self._checks.follow(list(self.table))
        # At once rather than with the next tick: each further flow would be one more to fail.
        self.publish()

    def _free_left(self, workers: Any) -> None:
        """Free the slots of servers that left, once every worker knows and nothing is in flight there."""
        leaving = [server.slot for server in self.table if server.leaving]
        if not leaving or int(workers["settings_version"].min()) < self.version:
            return
        in_flight = self.segment.read_words(0, len(self.table.slots)).in_flight
        for name in self.table.free(slot for slot in leaving if in_flight[slot] == 0):
            log.info("%s: server %s has left", self.name, name)
        self._checks.follow(list(self.table))

    # Changes.

    def note_policy(self, spec: dict[str, Any], why: str, history: list[dict[str, Any]] | None = None) -> None:
        """Take note of the policy in force, and of those before when the controller tells them."""
        if history is not None:
            self.policy, self.policies_before = spec, history
            return
        if spec == self.policy:
            return
        if why.startswith("rolled back") and self.policies_before:
            self.policies_before.pop()
        else:
            self.policies_before = [*self.policies_before, self.policy][-POLICIES_KEPT:]
        self.policy = spec

    def change_server(self, server: Server, *, state: str, weight: int, maxconn: int) -> None:
        """Change what an operator may change; in force at once."""
        server.state, server.weight, server.maxconn = state, weight, maxconn
        self._health_changed()

    def reconfigure(self, config: Service) -> list[str]:
        """Take a new configuration in place, which settings.refusals() let pass; returns what changed, in words."""
        before, self.config = self.config, config
        changes = self.table.configure(config.servers, before.servers, config.slowstart)
        for key in type(config).model_fields:
            if key not in ("servers", "policy") and getattr(before, key) != getattr(config, key):
                changes.append(f"{key} changed")
        self._outliers.settings = config.outlier
        self._checks.change(check_plan(config))
        if before.log != config.log:
            self._close_log()
            self._open_log()
        self._health_changed()
        return changes

    def can_log(self, config: Service) -> str:
        """Return why the access log of a new configuration cannot be opened; empty: it can."""
        if config.log.access in ("off", "stdout") or config.log == self.config.log:
            return ""
        try:
            with open(config.log.access, "a"):
                return ""
        except OSError as error:
            return f"cannot open {config.log.access}: {error.strerror}"

    def _open_log(self) -> None:
        if self.config.log.access != "off":
            kind, path = self.config.log.format, self.config.log.access
            self._log = AccessLog(self.segment, self.name, self.threads, path, kind, self.table.names)

    def _close_log(self) -> None:
        if self._log is not None:
            self._log.stop()
            self._log_lost_before += self._log.lost_total
            self._log = None

    # What is told of it.

    def snapshot(self) -> counters.Snapshot:
        return counters.take_snapshot(self.segment, self.table.ids(), self.threads)

    def learned(self) -> Learned | None:
        """Return what the directive in force says; None: there is none yet."""
        try:
            view = self.segment.read_directive()
        except SegmentReadError:
            return None
        age_s = max(now_ns() - int(view.head["issued_ns"]), 0) / 1e9
        weights = None if view.weights is None else view.weights.astype(float)
        flagging = float(view.head["classic_reserve"]) if view.rule == "classic" else 0.0
        reserve = flagging or None if view.reserve is None else float(view.reserve[0])
        return Learned(view.policy, view.rule, int(view.head["sequence"]), age_s, weights, view.ids, reserve)

    def status(self, window_s: float = WINDOW_S) -> dict[str, Any]:
        snapshot, learned = self.snapshot(), self.learned()
        recent = self._history.recent(snapshot, window_s)
        return {
            "listen": self.addresses or [str(address) for address in self.config.listen],
            "mode": self.config.mode,
            "workers": self.threads,
            "policy": self.policy,
            "rule": learned.rule if learned is not None else None,
            "reserve": {
                "mode": self.reserve,
                "value": None if learned is None or learned.reserve is None else float(f"{learned.reserve:.6g}"),
            },
            "fallback": self.config.fallback,
            "fallback_active": snapshot.fallback_active,
            "directive": None
            if learned is None
            else {"policy": learned.policy, "sequence": learned.sequence, "age_s": round(learned.age_s, 3)},
            "deployment": self.deployment.document(self.policy),
            **traffic_status(self.config.mode, snapshot, recent),
            "log_lost": self.log_lost,
            "servers": [server_status(server, snapshot, recent, learned) for server in self.table],
        }

    def server_status(self, server: Server) -> dict[str, Any]:
        snapshot = self.snapshot()
        return server_status(server, snapshot, self._history.recent(snapshot), self.learned())

    def view(self) -> ServiceView:
        """Return what the metrics are made of."""
        return ServiceView(
            self.name,
            self.config.mode,
            self.snapshot(),
            tuple(self.table),
            self.learned(),
            self.log_lost,
            self.policy,
            self.deployment,
        )

    @property
    def log_lost(self) -> int:
        return self._log_lost_before + (self._log.lost_total if self._log is not None else 0)

    @property
    def has_server(self) -> bool:
        return any(server.takes_flows for server in self.table)


def check_plan(config: Service) -> CheckPlan:
    """Return how the servers of a service are checked."""
    health = config.health
    if health is None:
        return CheckPlan(always=False)
    return CheckPlan(
        path=health.path if health.type == "http" else "",
        expect=health.status,
        inter_s=health.inter,
        fall=health.fall,
        rise=health.rise,
        timeout_s=health.timeout,
    )
