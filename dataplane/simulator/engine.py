"""One run of the simulator: the C engine over segments in this process's memory, with or without a policy in Python.

Without control the whole run is one C call. With it, the engine returns at every control interval, the policy reads the
segments and publishes its directive, exactly as the controller does for a live balancer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dataplane._dataplane import ffi, lib
from dataplane.simulator.control import PolicyControl
from dataplane.simulator.memory import MemorySegment
from dataplane.simulator.results import REFUSED, Result, Totals
from dataplane.simulator.world import (
    MMPP,
    BoundedPareto,
    Crash,
    Deterministic,
    Drain,
    Event,
    Exponential,
    Hyperexponential,
    Join,
    Leave,
    Lognormal,
    OnOff,
    Poisson,
    Profile,
    RateChange,
    Recover,
    Sine,
    SpeedChange,
    Trace,
    WeightChange,
    Works,
    World,
)
from shm_layout.mapping import Limits
from shm_layout.segment import CURVE_LOW, CURVE_POINTS, DirectiveData

if TYPE_CHECKING:
    from controlplane.policy import Policy

UNLIMITED_NS = 2**62
FOREVER_NS = 2**64 - 1


class SimulationError(ValueError):
    """The engine refused the world, or cannot go on."""


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


def _dtype(struct: str) -> np.dtype[Any]:
    """Return numpy's view of a C struct, from cffi's fields: there is no second list of offsets."""
    kinds = {"uint64_t": "u8", "uint32_t": "u4", "uint16_t": "u2", "uint8_t": "u1", "double": "f8"}
    c_type = ffi.typeof(f"struct {struct}")
    names, formats, offsets = [], [], []
    for name, part in c_type.fields:
        names.append(name)
        formats.append(kinds[part.type.cname])
        offsets.append(part.offset)
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": ffi.sizeof(c_type)})


RECORD = _dtype("sim_record")
SERVER_STATE = _dtype("sim_server_state")


def _check(code: int, what: str) -> int:
    if code < 0:
        raise SimulationError(f"{what}: {ffi.string(lib.segment_strerror(code)).decode()}")
    return code


class _Arguments:
    """Collects what a C struct points to, so that it lives as long as the struct is used."""

    def __init__(self) -> None:
        self.kept: list[Any] = []

    def array(self, c_type: str, values: NDArray[Any] | None) -> Any:
        if values is None:
            return ffi.NULL
        dtype = {"uint64_t": np.uint64, "uint32_t": np.uint32, "double": np.float64}[c_type]
        data = np.ascontiguousarray(values, dtype=dtype)
        self.kept.append(data)
        return ffi.cast(f"const {c_type} *", ffi.from_buffer(data)) if len(data) else ffi.NULL


def _set_arrivals(c: Any, world: World, arguments: _Arguments) -> None:
    match world.arrivals:
        case Poisson(rate):
            c.arrival, c.rate_per_s = lib.SIM_POISSON, [rate, 0]
        case Sine(base, amplitude, period):
            c.arrival, c.rate_per_s, c.phase_ns = lib.SIM_SINE, [base, amplitude], [period * 1e9, 0]
        case MMPP(rates, sojourns):
            c.arrival, c.rate_per_s, c.phase_ns = lib.SIM_MMPP, list(rates), [s * 1e9 for s in sojourns]
        case OnOff(rates, durations):
            c.arrival, c.rate_per_s, c.phase_ns = lib.SIM_ON_OFF, list(rates), [s * 1e9 for s in durations]
        case Profile(rates, step):
            c.arrival, c.phase_ns, c.n_profile = lib.SIM_PROFILE, [step * 1e9, 0], len(rates)
            c.profile_per_s = arguments.array("double", np.asarray(rates))
        case Trace(times_ns, keys, balancers):
            c.arrival, c.n_times = lib.SIM_ARRIVAL_TRACE, len(times_ns)
            for name, column in (("keys", keys), ("balancers", balancers)):
                if column is not None and len(column) != len(times_ns):
                    raise SimulationError(f"the trace has {len(times_ns)} arrivals but {len(column)} {name}")
            c.times_ns = arguments.array("uint64_t", times_ns)
            c.keys = arguments.array("uint64_t", keys)
            c.balancers = arguments.array("uint32_t", balancers)


def _set_demand(c: Any, world: World, arguments: _Arguments) -> None:
    match world.demand:
        case Exponential(mean):
            c.demand, c.demands = lib.SIM_EXPONENTIAL, [mean * 1e9, 0, 0]
        case Deterministic(mean):
            c.demand, c.demands = lib.SIM_DETERMINISTIC, [mean * 1e9, 0, 0]
        case Lognormal(mean, cv):
            variance = np.log1p(cv**2)
            c.demand, c.demands = lib.SIM_LOGNORMAL, [np.log(mean * 1e9) - variance / 2, np.sqrt(variance), 0]
        case Hyperexponential(p, first, second):
            c.demand, c.demands = lib.SIM_HYPEREXPONENTIAL, [p, first * 1e9, second * 1e9]
        case BoundedPareto() as d:
            c.demand, c.demands = lib.SIM_BOUNDED_PARETO, [d.alpha, d.least * 1e9, d.least * d.ratio * 1e9]
        case Works(works):
            c.demand, c.n_works = lib.SIM_DEMAND_TRACE, len(works)
            c.works_ns = arguments.array("double", np.asarray(works, dtype=np.float64) * 1e9)


def _c_event(event: Event) -> tuple[int, int, int, float]:
    """Return struct sim_event's fields."""
    at_ns = _nanoseconds(event.at)
    match event:
        case SpeedChange(_, server, speed):
            return at_ns, lib.SIM_EVENT_SPEED, server, speed
        case WeightChange(_, server, weight):
            return at_ns, lib.SIM_EVENT_WEIGHT, server, weight
        case RateChange(_, factor):
            return at_ns, lib.SIM_EVENT_RATE, 0, factor
        case Crash(_, server):
            return at_ns, lib.SIM_EVENT_CRASH, server, 0
        case Recover(_, server):
            return at_ns, lib.SIM_EVENT_RECOVER, server, 0
        case Join(_, server):
            return at_ns, lib.SIM_EVENT_JOIN, server, 0
        case Leave(_, server):
            return at_ns, lib.SIM_EVENT_LEAVE, server, 0
        case Drain(_, server):
            return at_ns, lib.SIM_EVENT_DRAIN, server, 0


def _c_server(number: int, server: Any) -> dict[str, Any]:
    backlog = 2**32 - 1 if server.backlog is None else server.backlog
    return {
        "id": number + 1,
        "state": lib.SERVER_READY if server.present else lib.SERVER_FREE,
        "service": lib.SIM_FIFO if server.service == "fifo" else lib.SIM_SHARING,
        "workers": server.workers,
        "backlog": backlog,
        "weight": server.weight,
        "maxconn": server.maxconn,
        "backup": server.backup,
        "delay_ns": _nanoseconds(server.delay),
        "speed": server.speed,
    }


class Simulation:
    """A world at its beginning, to be run once. Server slot i has id i + 1."""

    def __init__(
        self, world: World, *, reservoir_slots: int = 128, ring_slots: int = 64, table_slots: int = 65537
    ) -> None:
        self.world = world
        self._sim: Any = None
        shared = world.view == "shared"
        limits = Limits(
            max_servers=len(world.servers),
            max_workers=world.balancers if shared else 1,
            reservoir_slots=reservoir_slots,
            ring_slots=ring_slots,
            journal_slots=1024 if shared else 64,
            table_slots=table_slots,
        )
        # One segment a view.
        self.segments = [MemorySegment(limits, self._clock) for _ in range(1 if shared else world.balancers)]
        self._records = np.zeros(world.records_expected, dtype=RECORD)
        self._sim = self._create()
        self._sequence = 0
        for segment in self.segments:
            segment.begin_controller()

    def _clock(self) -> int:
        return int(lib.sim_epoch_ns()) if self._sim is None else self.now_ns

    def _create(self) -> Any:
        world, arguments = self.world, _Arguments()
        c = ffi.new("struct sim_config *")
        c.seed = world.seed % 2**64
        c.flows_max = 0 if world.flows is None else world.flows
        c.records_max = len(self._records)
        c.records = ffi.cast("struct sim_record *", ffi.from_buffer(self._records)) if len(self._records) else ffi.NULL
        c.detect_ns = _nanoseconds(world.detect)
        c.sample_ns = _nanoseconds(world.sample)
        c.stale_after_ns = UNLIMITED_NS if world.stale_after is None else _nanoseconds(world.stale_after)
        c.clients = world.clients
        c.gold, c.bronze = world.gold, world.bronze
        c.retries = world.retries
        c.queue_slots = world.queue_slots
        rule = {"maglev": lib.RULE_MAGLEV, "alias": lib.RULE_ALIAS, "wrr": lib.RULE_WRR}
        curve = {"sed": lib.FALLBACK_SED, "gsed": lib.FALLBACK_GSED}
        c.fallback_rule = rule.get(world.fallback, lib.RULE_BIDS)
        c.fallback_curve = curve.get(world.fallback, lib.FALLBACK_LSQ)
        c.split = {"random": lib.SIM_SPLIT_RANDOM, "hash": lib.SIM_SPLIT_HASH, "trace": lib.SIM_SPLIT_TRACE}[
            world.split
        ]
        c.rings = world.rings
        c.load_per_ns = world.load_per_second * 1e-9
        _set_arrivals(c, world, arguments)
        _set_demand(c, world, arguments)
        servers = ffi.new("struct sim_server[]", [_c_server(i, server) for i, server in enumerate(world.servers)])
        shared = world.view == "shared"
        balancers = ffi.new(
            "struct sim_balancer[]",
            [
                {
                    "segment": ffi.cast("void *", self.segments[0 if shared else b].address),
                    "worker": b if shared else 0,
                }
                for b in range(world.balancers)
            ],
        )
        events = ffi.new("struct sim_event[]", [_c_event(event) for event in world.events])
        c.n_servers, c.servers_array = len(world.servers), servers
        c.n_balancers, c.balancers_array = world.balancers, balancers
        c.n_events, c.events_array = len(world.events), events
        out = ffi.new("struct sim **")
        _check(lib.sim_create(c, out), "the world")
        return ffi.gc(out[0], lib.sim_destroy)

    @property
    def handle(self) -> Any:
        """The engine's `struct sim *`, as long as this lives: for what drives many simulations in one call."""
        return self._sim

    @property
    def now(self) -> float:
        """Seconds since the start."""
        return float(self.now_ns - lib.sim_epoch_ns()) * 1e-9

    @property
    def now_ns(self) -> int:
        """The clock that the segments see."""
        return int(lib.sim_now_ns(self._sim))

    @property
    def records(self) -> NDArray[Any]:
        """One row a flow that has arrived, fields of struct sim_record: a view, still being written while it runs."""
        return self._records[: self.totals().arrivals]

    def totals(self) -> Totals:
        t = ffi.new("struct sim_totals *")
        lib.sim_totals(self._sim, t)
        completed = t.closed[lib.OUTCOME_OK]
        return Totals(
            now=t.now_ns * 1e-9,
            arrivals=t.arrivals,
            completed=completed,
            refused=t.closed[REFUSED],
            overflowed=t.closed[lib.OUTCOME_SERVER_5XX],
            failed=sum(t.closed[i] for i in range(lib.OUTCOME_CONNECT_FAILED, REFUSED)),
            retries=t.retries,
            in_flight=t.in_flight,
            waiting=t.waiting,
            finished=bool(t.finished),
            mean_fct=t.fct_sum_ns * 1e-9 / completed if completed else float("nan"),
            work=t.work_sum_ns * 1e-9,
        )

    def servers(self) -> NDArray[Any]:
        """The truth about the servers now, fields of struct sim_server_state."""
        out = np.zeros(len(self.world.servers), dtype=SERVER_STATE)
        lib.sim_servers(self._sim, ffi.cast("struct sim_server_state *", ffi.from_buffer(out)))
        return out

    def schedule(self, event: Event) -> None:
        """Let something happen; what should have happened already, happens now."""
        _check(lib.sim_schedule(self._sim, ffi.new("struct sim_event *", _c_event(event))), "the event")

    def publish(self, directive: DirectiveData, balancer: int | None = None) -> None:
        """Publish a directive to one balancer's segment, or to all; it is in force from the next run on."""
        self._sequence += 1
        directive.sequence, directive.issued_ns = self._sequence, self.now_ns
        for segment in self.segments if balancer is None else [self.segments[balancer]]:
            segment.publish_directive(directive)

    def publish_bids(self, curves: NDArray[Any], choices: int = 0, balancer: int | None = None) -> None:
        """Publish bid curves, (servers, CURVE_POINTS) or, one for all, (CURVE_POINTS,)."""
        n = len(self.world.servers)
        rows = np.broadcast_to(curves, (n, CURVE_POINTS))
        self.publish(
            DirectiveData(ids=np.arange(1, n + 1), rule="bids", policy="fixed", curves=rows, choices=choices), balancer
        )

    def beat(self, cycle_ns: int = 0) -> None:
        """Give the controller's sign of life in every segment."""
        for segment in self.segments:
            segment.beat_controller(cycle_ns)

    def run_until(self, seconds: float) -> bool:
        """Run to this time since the start; return whether the world has come to its end."""
        return _check(lib.sim_run(self._sim, _nanoseconds(seconds)), "the run") == 1

    def run(
        self,
        policy: Policy | None = None,
        *,
        interval: float = 0.2,
        reserve: str = "off",
        control: Callable[[Simulation], None] | None = None,
    ) -> Result:
        """Run the world to its end.

        policy: decides for each balancer at the start and every interval; reserve: "off", "classic" or "learned", what
        it is told of holding flows back. control: is called then instead, and may
        publish what it likes. With neither, what was published before stays in force and the run is one C call.
        """
        if policy is not None:
            decide = PolicyControl(policy, self.segments, self.world.balancers, interval, reserve)
            return self.run(control=lambda _: decide(), interval=interval)
        end_ns = FOREVER_NS if self.world.duration is None else _nanoseconds(self.world.duration)
        warmup_ns = _nanoseconds(self.world.warmup)
        step_ns = FOREVER_NS if control is None else _nanoseconds(interval)
        now_ns = tick_ns = 0
        before = self.servers()
        finished = False
        while not finished and now_ns < end_ns:
            if control is not None and now_ns == tick_ns:
                control(self)
                self.beat()
            if now_ns == tick_ns:
                tick_ns = min(now_ns + step_ns, FOREVER_NS)
            now_ns = min(end_ns, tick_ns, warmup_ns if now_ns < warmup_ns else FOREVER_NS)
            finished = _check(lib.sim_run(self._sim, now_ns), "the run") == 1
            if now_ns == warmup_ns:
                before = self.servers()
        after = self.servers()
        capacity = after["capacity_ns"] - before["capacity_ns"]
        busy = after["busy_ns"] - before["busy_ns"]
        utilisation = np.divide(busy, capacity, out=np.zeros(len(after)), where=capacity > 0)
        return Result(self.world, self.records, self.totals(), after, utilisation)


def curve_from(bid: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return the curve (CURVE_POINTS,) of a bid that is a function of the flows in flight."""
    return bid(CURVE_LOW.astype(np.float64))


def gsed_curves(speeds: Sequence[float], c: float = 0.5, k: float = 1.0) -> NDArray[np.float64]:
    """Return the curves (k·n + c) / speed: c = 1 is shortest expected delay, c = 0 greedy."""
    return np.asarray(curve_from(lambda n: k * n + c) / np.asarray(speeds)[:, None])
