"""A policy's hand on simulated balancers: observe each segment, decide, publish, with the controller's own functions.

Every balancer has its own copy of the policy and sees its own segment, as separate machines would.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from dataplane.simulator.memory import MemorySegment

if TYPE_CHECKING:
    from controlplane.policy import Policy


class PolicyControl:
    """One policy over the segments of a simulation; call it every interval."""

    def __init__(
        self, policy: Policy, segments: list[MemorySegment], balancers: int, interval: float, reserve: str = "off"
    ) -> None:
        # Only who runs a policy here needs the control plane, which itself imports the data plane.
        from controlplane.observation import Observer

        # Balancers that share a segment see all flows, so each of them is the only one as far as the policy can tell.
        seen = balancers if len(segments) > 1 else 1
        self.policies = [copy.deepcopy(policy) for _ in segments]
        self.observers = [Observer(segment, interval, seen, reserve=reserve) for segment in segments]
        self.sequence = 0

    def __call__(self) -> None:
        from controlplane.directive import check, to_data

        self.sequence += 1
        for policy, observer in zip(self.policies, self.observers, strict=True):
            segment = observer.segment
            assert isinstance(segment, MemorySegment)
            now_ns = segment.clock()
            observation = observer.read(now_ns)
            directive = policy.decide(observation)
            check(directive, observation.n_servers)
            data = to_data(
                directive,
                observation.ids,
                table_room=segment.limits.table_slots,
                policy=policy.name,
                sequence=self.sequence,
                issued_ns=now_ns,
                settings_version=observer.table().version,
            )
            segment.publish_directive(data)
