"""A running balancer as a source of steps: attaches to its segment, as its controller or only to watch.

As controller it takes the lock that only one controller holds, publishes a directive each step and gives the signs of
life. When steps stop coming, the data plane falls back by itself after `stale_after`. Read-only it publishes nothing:
actions are ignored, and `directive` tells what the controller in charge has published.
"""

from __future__ import annotations

import contextlib
import time

import numpy as np
from numpy.typing import NDArray

from controlplane.directive import check, to_data
from controlplane.env.orders import Orders
from controlplane.env.reading import Reading
from controlplane.observation import Observer
from controlplane.policy import CURVE_N, Directive, Observation
from dataplane._dataplane import ffi, lib
from shm_layout.errors import ControllerLockedError, SegmentEmptyError
from shm_layout.features import read_features
from shm_layout.layout import CURVE_POINTS, HISTOGRAM_BUCKETS
from shm_layout.payload import DirectiveView
from shm_layout.segment import Segment, now_ns, segment_name

# How long a controller that was taken over from may take to notice and to go, seconds.
HANDOVER = 2.0
# A weight of 0 bids this, as in dataplane/sim/vector.c.
BID_MAX = 1e30


class LiveSourceError(RuntimeError):
    """The segment cannot be controlled or observed, and why."""


def full_name(name: str) -> str:
    """Return a segment's name, given as "/vickrey.main.web" or as "main.web"."""
    if name.startswith("/"):
        return name
    instance, _, service = name.partition(".")
    if not instance or not service:
        raise ValueError(f"segment {name!r}: expected INSTANCE.SERVICE or /vickrey.INSTANCE.SERVICE")
    return segment_name(instance, service)


class LiveSource:
    """One row: this balancer."""

    def __init__(
        self,
        name: str,
        servers: int | None,
        balancers: int,
        *,
        interval: float,
        read_only: bool = False,
        takeover: bool = False,
        histogram: bool = False,
        slope: float = 1.0,
        constant: float = 1.0,
    ) -> None:
        self.interval, self.balancers, self.read_only = interval, 1, read_only
        if interval <= 0:
            raise ValueError(f"interval {interval} s: expected more than 0")
        self.segment = Segment.attach(full_name(name), writable=not read_only)
        try:
            if not read_only:
                self._take_control(takeover)
            self._observer = Observer(self.segment, interval, balancers)
            self.servers = self._slots() if servers is None else servers
        except BaseException:
            self.segment.close()
            raise
        self._slope, self._constant = slope, constant
        self.orders = Orders.empty(1, self.servers)
        self._buckets = HISTOGRAM_BUCKETS if histogram else 0
        self._sequence = self.segment.directives_published
        self._begun_ns = self._due_ns = now_ns()

    def _take_control(self, takeover: bool) -> None:
        try:
            self.segment.begin_controller()
            return
        except ControllerLockedError as error:
            if not takeover:
                raise LiveSourceError(
                    f"{error}. Stop that controller, take over from it (takeover=True), or only watch (read_only=True)"
                ) from None
        self.segment.begin_controller(takeover=True)
        # It ends when it notices; whoever holds the lock then stays in control, so be there before it is started again.
        until = time.monotonic() + HANDOVER
        while time.monotonic() < until:
            try:
                self.segment.lock_controller()
                return
            except ControllerLockedError:
                time.sleep(0.005)
        raise LiveSourceError(f"{self.segment.name}: the controller that was taken over from does not let go")

    def _slots(self) -> int:
        try:
            return len(self._observer.table().ids)
        except SegmentEmptyError:
            raise LiveSourceError(f"{self.segment.name}: no settings were published yet") from None

    @property
    def directive(self) -> DirectiveView | None:
        """The directive in force; None: none yet."""
        with contextlib.suppress(SegmentEmptyError):
            return self.segment.read_directive()
        return None

    def observe(self, row: int) -> Observation:
        """Return what a policy sees now."""
        return self._observer.read(now_ns())

    def reset(self, generators: dict[int, np.random.Generator]) -> Reading:
        """Begin an episode: nothing happens to the balancer."""
        self._begun_ns = self._due_ns = now_ns()
        return self._read()

    def step(self, replicas: object = None) -> Reading:
        """Publish, wait for the end of the interval, read."""
        if not self.read_only:
            begun = time.perf_counter()
            self._publish()
            self.segment.beat_controller(int((time.perf_counter() - begun) * 1e9))
        # On a grid that does not drift; after a pause, from now on.
        self._due_ns = max(self._due_ns + round(self.interval * 1e9), now_ns())
        while (left := self._due_ns - now_ns()) > 0:
            time.sleep(left * 1e-9)
        return self._read()

    def _publish(self) -> None:
        observation = self.observe(0)
        n = self._fitting(observation)
        directive = self._decided(n)
        check(directive, n)
        data = to_data(
            directive,
            observation.ids,
            table_room=self.segment.limits.table_slots,
            policy="env",
            sequence=self._sequence + 1,
            issued_ns=now_ns(),
            settings_version=self._observer.table().version,
        )
        self.segment.publish_directive(data)
        self._sequence += 1

    def _decided(self, n: int) -> Directive:
        """Return what the orders mean, as publish() of dataplane/sim/vector.c does."""
        orders, mode = self.orders, int(self.orders.mode[0])
        weights = orders.weights[0, :n]
        if mode == lib.VECTOR_ALIAS:
            return Directive(rule="alias", weights=weights)
        if mode == lib.VECTOR_WRR:
            return Directive(rule="wrr", weights=weights)
        if mode == lib.VECTOR_BIDS:
            each = np.divide(1.0, weights, out=np.zeros(n), where=weights > 0)[:, None]
            curves = np.where(each > 0, (self._slope * CURVE_N + self._constant) * each, BID_MAX)
            return Directive(rule="bids", curves=curves)
        base = np.ascontiguousarray(orders.base[0, :n])
        out = np.empty((n, CURVE_POINTS), dtype=np.float32)
        correction = ffi.from_buffer("double[]", orders.correction[0])
        lib.curves_correct(ffi.from_buffer("float[]", base), correction, n, ffi.from_buffer("float[]", out))
        return Directive(rule="bids", curves=out.astype(np.float64))

    def _fitting(self, observation: Observation) -> int:
        n = observation.n_servers
        if n > self.servers:
            raise LiveSourceError(
                f"{self.segment.name}: {n} server slots, and the environment has {self.servers} (servers=…)"
            )
        return n

    def _read(self) -> Reading:
        observation = self.observe(0)
        n = self._fitting(observation)
        reading = Reading.empty(1, 1, self.servers, self._buckets)
        features = read_features(self.segment, observation.ids)
        reading.features[0, :n] = np.minimum(features.values, 1e6)
        reading.active[0, :n] = observation.active
        outcomes = observation.outcomes
        completions, failures = outcomes[:, 0] + outcomes[:, 1], outcomes[:, 1:5].sum(axis=1)
        reading.counters[0, :n] = np.column_stack([observation.flows, completions, observation.fct_sum, failures])
        if self._buckets:
            reading.histogram[0] = observation.histogram.sum(axis=0)
        reading.settings_version[0] = self._observer.table().version
        reading.now_ns[0] = now_ns() - self._begun_ns
        return reading

    def seconds(self, reading: Reading) -> NDArray[np.float64]:
        """Return the time since the episode began, (1,)."""
        return np.asarray(reading.now_ns * 1e-9)

    def close(self) -> None:
        """Let the controller's lock go."""
        self.segment.close()
