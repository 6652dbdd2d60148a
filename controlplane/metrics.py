"""The counters in Prometheus' text format (version 0.0.4), for GET /metrics.

Names say what they count and end in their unit; a counter ends in _total. The FCT histograms are classic ones,
cumulative, one bucket to an octave; the segment's own are eight times finer (the status document takes its
percentiles from those).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from controlplane.counters import BUCKET_EDGES_S, OUTCOME_NAMES, Snapshot
from controlplane.deployment import followed
from controlplane.deployment.followed import Followed
from controlplane.servers import Server
from controlplane.status import Learned
from shm_layout.layout import SLA_CLASSES

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Bucket edges shown: powers of two from 2^16 ns (66 µs) to 2^36 ns (69 s), at each of which one of the segment's ends.
FIRST_OCTAVE, LAST_OCTAVE = 16, 36
FINE_PER_OCTAVE = 8
SHIFT = 10


@dataclass(frozen=True)
class ServiceView:
    """What is told of one service."""

    name: str
    mode: str
    snapshot: Snapshot
    servers: tuple[Server, ...]
    learned: Learned | None
    log_lost: int
    policy: Mapping[str, Any] = field(default_factory=dict)
    deployment: Followed = field(default_factory=Followed)


@dataclass
class ProcessView:
    """What is told of the balancer as a whole."""

    version: str
    instance: str
    started_unix: float
    up: Mapping[str, bool]
    restarts: Mapping[str, int]
    reload_good: bool
    reloads: Mapping[str, int]
    reload_unix: float
    log_dropped: int
    audit_dropped: int = 0
    services: tuple[ServiceView, ...] = field(default=())


class Page:
    """A page under construction: families, each with its samples right below it, as the format wants."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._name = ""

    def family(self, name: str, kind: str, text: str) -> None:
        self._name = f"vickrey_{name}"
        self._lines.append(f"# HELP {self._name} {text}")
        self._lines.append(f"# TYPE {self._name} {kind}")

    def add(self, value: float, labels: str = "", suffix: str = "") -> None:
        number = int(value) if float(value).is_integer() else repr(float(value))
        braces = f"{{{labels}}}" if labels else ""
        self._lines.append(f"{self._name}{suffix}{braces} {number}")

    def text(self) -> str:
        return "\n".join(self._lines) + "\n"


def label(**pairs: object) -> str:
    """Return labels in the format's spelling."""
    return ",".join(f'{key}="{_escaped(str(value))}"' for key, value in pairs.items())


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


# Totals of the workers: name in the segment, name here, kind, text.
WORKER_TOTALS = (
    ("connections", "connections", "gauge", "Client connections open now."),
    ("connections_total", "connections_total", "counter", "Client connections ever accepted."),
    ("connections_refused", "connections_refused_total", "counter", "Client connections over maxconn, closed at once."),
    ("connections_idle_up", "connections_idle", "gauge", "Pooled connections to servers."),
    ("requests_total", "requests_total", "counter", "Requests read from clients."),
    ("requests_bad", "requests_bad_total", "counter", "Requests refused as malformed, too long or too slow."),
    ("answered_here", "answered_here_total", "counter", "502, 503 and 504 made by the balancer itself."),
    ("retries", "retries_total", "counter", "Flows sent to another server."),
    ("retries_denied", "retries_denied_total", "counter", "Retries not made, the budget being spent."),
    ("queued", "queued", "gauge", "Flows that wait for a server now."),
    ("queue_total", "queue_total", "counter", "Flows that ever waited for a server."),
    ("queue_timeouts", "queue_timeouts_total", "counter", "Flows that waited in vain."),
    ("no_server_down", "no_server_down_total", "counter", "Dispatches that found no server up."),
    ("no_server_full", "no_server_full_total", "counter", "Dispatches that found every server at its maxconn."),
    ("auctions", "auctions_total", "counter", "Dispatches decided."),
    ("auctions_fallback", "auctions_fallback_total", "counter", "Dispatches decided by the fallback rule."),
    ("auctions_above_reserve", "auctions_above_reserve_total", "counter", "Winners above the reserve."),
    ("held", "auctions_held_total", "counter", "Auctions whose lowest bid was above the reserve: the flow waits on."),
    ("handoffs", "handoffs_total", "counter", "Flows that went to a partner of the winner's coalition."),
    ("fallback_entered", "fallback_entered_total", "counter", "Times that the fallback rule took over in a worker."),
    ("accept_paused", "accept_paused_total", "counter", "Times that accepting paused for want of descriptors."),
    ("blocks_exhausted", "buffers_exhausted_total", "counter", "Times that the buffer pool ran out."),
)


# Totals of the workers by SLA class: name in the segment, name here, kind, text, divisor.
CLASS_TOTALS = (
    ("queued_class", "class_queued", "gauge", "Flows that wait for a server now, by SLA class.", 1),
    ("flows_class", "class_flows_total", "counter", "Flows sent to a server, by SLA class.", 1),
    ("waited_class", "class_waited_total", "counter", "Flows among these that had waited, by SLA class.", 1),
    ("wait_class_sum_ns", "class_wait_seconds_total", "counter", "Time that these had waited, by SLA class.", 1e9),
)


def page(process: ProcessView, now_ns: int) -> str:
    """Return the whole page."""
    out = Page()
    _process(out, process)
    for name, shown, kind, text in WORKER_TOTALS:
        out.family(shown, kind, text)
        for service in process.services:
            out.add(service.snapshot.total(name), label(service=service.name))
    _services(out, process.services, now_ns)
    _servers(out, process.services)
    followed.families(out, process.services)
    _histograms(out, process.services)
    return out.text()


def _process(out: Page, process: ProcessView) -> None:
    out.family("build_info", "gauge", "Version and instance; always 1.")
    out.add(1, label(version=process.version, instance=process.instance))
    out.family("start_time_seconds", "gauge", "When the supervisor started, Unix time.")
    out.add(process.started_unix)
    for name, up in process.up.items():
        out.family(f"{name}_up", "gauge", f"1: the {name} runs and shows signs of life.")
        out.add(int(up))
    out.family("process_restarts_total", "counter", "Restarts of a child process.")
    for name, restarts in process.restarts.items():
        out.add(restarts, label(process=name))
    out.family("last_reload_success", "gauge", "1: the last reload was taken.")
    out.add(int(process.reload_good))
    out.family("last_reload_success_timestamp_seconds", "gauge", "When a configuration was taken last, Unix time.")
    out.add(process.reload_unix)
    out.family("reloads_total", "counter", "Reloads by result.")
    for result, count in process.reloads.items():
        out.add(count, label(result=result))
    out.family("log_dropped_total", "counter", "Lines of the balancer's own log that nobody took in time.")
    out.add(process.log_dropped)
    out.family("audit_dropped_total", "counter", "Records of the audit log that could not be written.")
    out.add(process.audit_dropped)


def _services(out: Page, services: Iterable[ServiceView], now_ns: int) -> None:
    services = tuple(services)
    out.family("responses_total", "counter", "Answers sent to clients, by class of status.")
    for service in services:
        for i, name in enumerate(("other", "1xx", "2xx", "3xx", "4xx", "5xx")):
            out.add(service.snapshot.total("responses", i), label(service=service.name, **{"class": name}))
    out.family("bytes_total", "counter", "Bytes from and to clients.")
    for service in services:
        out.add(service.snapshot.total("bytes_in"), label(service=service.name, direction="in"))
        out.add(service.snapshot.total("bytes_out"), label(service=service.name, direction="out"))
    out.family("queue_wait_seconds_total", "counter", "Time that flows spent waiting for a server.")
    for service in services:
        out.add(service.snapshot.total("queue_wait_sum_ns") / 1e9, label(service=service.name))
    for counter, shown, kind, text, scale in CLASS_TOTALS:
        out.family(shown, kind, text)
        for service in services:
            for i, name in enumerate(SLA_CLASSES):
                out.add(service.snapshot.total(counter, i) / scale, label(service=service.name, **{"class": name}))
    out.family("shm_reject_total", "counter", "Blocks of shared memory that a worker did not take, by reason.")
    for service in services:
        for reason, count in service.snapshot.rejected().items():
            out.add(count, label(service=service.name, reason=reason))
    out.family("fallback_active", "gauge", "1: the fallback rule dispatches, for want of a controller.")
    for service in services:
        out.add(int(service.snapshot.fallback_active), label(service=service.name))
    out.family("access_log_lost_total", "counter", "Lines of the access log that could not be written.")
    for service in services:
        out.add(service.log_lost, label(service=service.name))
    out.family("policy_info", "gauge", "Policy and rule of the directive in force; always 1.")
    for service in services:
        if service.learned is not None:
            out.add(1, label(service=service.name, policy=service.learned.policy, rule=service.learned.rule))
    out.family(
        "reserve", "gauge", "Reserve of the directive in force for a flow that nobody waits before; unit of the bids."
    )
    for service in services:
        if service.learned is not None and service.learned.reserve is not None:
            out.add(service.learned.reserve, label(service=service.name))
    out.family("directive_age_seconds", "gauge", "Age of the directive in force.")
    for service in services:
        if service.learned is not None:
            out.add(round(service.learned.age_s, 3), label(service=service.name))
    for name, kind, text, scale in (
        ("cycles", "counter", "Control cycles.", 1),
        ("late", "counter", "Decisions dropped because they came too late.", 1),
        ("failed", "counter", "Decisions that raised or were not valid.", 1),
        ("cycle_last_ns", "gauge", "Duration of the last control cycle.", 1e9),
    ):
        shown = "controller_cycle_seconds" if scale != 1 else f"controller_{name}_total"
        out.family(shown, kind, text)
        for service in services:
            out.add(service.snapshot.controller[name] / scale, label(service=service.name))
    out.family("worker_heartbeat_age_seconds", "gauge", "Time since a worker's last sign of life.")
    for service in services:
        for i, beat_ns in enumerate(service.snapshot.workers["heartbeat_ns"]):
            if beat_ns:
                age_s = max(now_ns - int(beat_ns), 0) / 1e9
                out.add(round(age_s, 3), label(service=service.name, worker=i))


def _servers(out: Page, services: Iterable[ServiceView]) -> None:
    each = [(s.snapshot, server, label(service=s.name, server=server.name)) for s in services for server in s.servers]

    def numbers(name: str, kind: str, text: str, values: Iterable[float]) -> None:
        out.family(name, kind, text)
        for (_, _, labels), value in zip(each, values, strict=True):
            out.add(value, labels)

    numbers("server_up", "gauge", "1: neither down nor ejected.", (server.health == "up" for _, server, _ in each))
    numbers("server_weight", "gauge", "Configured weight.", (server.weight for _, server, _ in each))
    out.family("server_state", "gauge", "1 for the administrative state that the server is in.")
    for _, server, labels in each:
        for state in ("ready", "drain", "maint"):
            out.add(int(server.shown_state == state), f"{labels},{label(state=state)}")
    numbers("server_in_flight", "gauge", "Flows in flight.", (s.in_flight[v.slot] for s, v, _ in each))
    numbers("server_flows_total", "counter", "Flows sent to it.", (s.flows[v.slot] for s, v, _ in each))
    out.family("server_outcomes_total", "counter", "Flows ended, by how.")
    for snapshot, server, labels in each:
        for name, count in zip(OUTCOME_NAMES, snapshot.outcomes[server.slot], strict=True):
            out.add(count, f"{labels},{label(outcome=name)}")
    out.family("server_bytes_total", "counter", "Bytes to and from it.")
    for snapshot, server, labels in each:
        out.add(snapshot.stats["bytes_in"][server.slot], f'{labels},direction="in"')
        out.add(snapshot.stats["bytes_out"][server.slot], f'{labels},direction="out"')
    for name, shown, text in (
        ("retries", "retries_total", "Flows sent on elsewhere from it."),
        ("connections_opened", "connections_opened_total", "Connections made to it."),
        ("connections_reused", "connections_reused_total", "Flows that found a pooled connection."),
        ("auctions_won", "auctions_won_total", "Auctions won."),
    ):
        numbers(f"server_{shown}", "counter", text, (s.stats[name][v.slot] for s, v, _ in each))
    numbers(
        "server_connect_seconds_total",
        "counter",
        "Time spent connecting.",
        (s.stats["connect_sum_ns"][v.slot] / 1e9 for s, v, _ in each),
    )
    numbers("server_bid_total", "counter", "Sum of the winning bids.", (s.stats["bid_sum"][v.slot] for s, v, _ in each))
    numbers(
        "server_price_total", "counter", "Sum of the second prices.", (s.stats["price_sum"][v.slot] for s, v, _ in each)
    )
    # A price is known of auctions in which somebody else bid: both sums are over these alone.
    numbers(
        "server_margin_total",
        "counter",
        "Sum of second price minus winning bid, in the unit of the bids.",
        (s.stats["margin_sum"][v.slot] for s, v, _ in each),
    )
    numbers(
        "server_priced_total",
        "counter",
        "Auctions won that had a second price.",
        (s.stats["priced"][v.slot] for s, v, _ in each),
    )
    numbers(
        "server_checks_failed_total", "counter", "Health checks failed.", (v.checks_failed_total for _, v, _ in each)
    )
    numbers("server_downs_total", "counter", "Times that it went down.", (v.down_count for _, v, _ in each))
    numbers("server_ejections_total", "counter", "Times that it was ejected.", (v.ejections_total for _, v, _ in each))


def _histograms(out: Page, services: Iterable[ServiceView]) -> None:
    out.family("server_fct_seconds", "histogram", "Completion time of flows, first byte seen to last byte forwarded.")
    ends = [(octave - SHIFT) * FINE_PER_OCTAVE for octave in range(FIRST_OCTAVE, LAST_OCTAVE + 1)]
    edges = [f'le="{float(BUCKET_EDGES_S[end])!r}"' for end in ends]
    for service in services:
        for server in service.servers:
            labels = label(service=service.name, server=server.name)
            cumulative = np.concatenate(([0], np.cumsum(service.snapshot.histogram[server.slot].astype(np.int64))))
            for edge, end in zip(edges, ends, strict=True):
                out.add(int(cumulative[end]), f"{labels},{edge}", "_bucket")
            out.add(int(cumulative[-1]), f'{labels},le="+Inf"', "_bucket")
            out.add(float(service.snapshot.fct_sum_ns[server.slot]) / 1e9, labels, "_sum")
            out.add(int(cumulative[-1]), labels, "_count")
