"""What the supervisor knows of a service's deployment: counts of what happened, and the controller's last word on it.

It outlives the controller: a count never falls because a controller was restarted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from controlplane.metrics import Page, ServiceView

# What is counted: what an event is called, name of the metric, text.
COUNTED = (
    ("enforced", "policy_changes_total", "Times that a policy, or another share of it, came into force."),
    ("refused", "policy_refused_total", "Policies that were refused: not valid, failed in shadow, or cooling down."),
    ("rolled back", "policy_rollbacks_total", "Returns to the policy before, asked for or automatic."),
    ("demoted", "policy_demotions_total", "Policies given up because they failed or were late again and again."),
    ("novel", "policy_novel_total", "Times that a learned policy began to trust its heuristic more than itself."),
)


@dataclass
class Followed:
    """Events and state of one service's deployment."""

    events: Counter[str] = field(default_factory=Counter)
    adapted: Counter[bool] = field(default_factory=Counter)  # by whether a step was kept
    switchbacks: Counter[str] = field(default_factory=Counter)  # by verdict
    state: dict[str, Any] = field(default_factory=dict)
    lost: int = 0  # messages of the controller that it could not send

    def take(self, event: Mapping[str, Any]) -> None:
        """Count an event."""
        self.events[str(event.get("what"))] += 1
        if event.get("what") == "adapted":
            self.adapted[bool(event.get("kept"))] += 1
        if event.get("what") == "switchback":
            self.switchbacks[str(event.get("result", {}).get("state"))] += 1

    def document(self, policy: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the status tells of it."""
        return {
            **self.state,
            "enforcing": _enforcing(policy),
            "events": {what: self.events[what] for what, _, _ in COUNTED if self.events[what]},
        }


def _enforcing(policy: Mapping[str, Any]) -> int:
    return 0 if policy.get("mode") == "shadow" else int(policy.get("enforcing", 100))


def families(out: Page, services: Iterable[ServiceView]) -> None:
    """Add the metrics of deployment to a page."""
    from controlplane.metrics import label

    each = [(s, label(service=s.name), s.deployment.state) for s in services]
    for what, name, text in COUNTED:
        out.family(name, "counter", text)
        for service, labels, _ in each:
            out.add(service.deployment.events[what], labels)
    out.family("policy_adapt_steps_total", "counter", "Steps of fine-tuning measured, by whether they were kept.")
    for service, labels, _ in each:
        for kept in (True, False):
            out.add(service.deployment.adapted[kept], f"{labels},{label(kept='yes' if kept else 'no')}")
    out.family("policy_switchbacks_total", "counter", "Switchback measurements that ended, by verdict.")
    for service, labels, _ in each:
        for verdict, count in sorted(service.deployment.switchbacks.items()):
            out.add(count, f"{labels},{label(verdict=verdict)}")
    out.family("policy_enforcing", "gauge", "Share of the traffic that follows the policy that was set, 0 … 1.")
    for service, labels, _ in each:
        out.add(_enforcing(service.policy) / 100, labels)
    for key, name, text in (
        ("novelty", "policy_novelty", "How far what a learned policy sees is from what it was trained on, 0 … 1."),
        ("blend", "policy_blend", "How much of a learned policy's correction is in force, 0: the heuristic alone … 1."),
    ):
        out.family(name, "gauge", text)
        for _, labels, state in each:
            if state.get(key) is not None:
                out.add(state[key], labels)
    out.family("policy_agreement", "gauge", "Part of the next flows that policy on trial and incumbent send alike.")
    for _, labels, state in each:
        trial = state.get("trial") or {}
        if trial.get("agreement_mean") is not None:
            out.add(trial["agreement_mean"], labels)
    _switchback(out, each, label)


def _switchback(out: Page, each: list[tuple[ServiceView, str, dict[str, Any]]], label: Any) -> None:
    out.family("policy_switchback_pairs", "gauge", "Pairs of blocks that the switchback measurement has.")
    for _, labels, state in each:
        if state.get("switchback"):
            out.add(state["switchback"]["pairs"], labels)
    text = "Change by the policy measured: relative (mean, p99), absolute (errors); and its 95 % interval."
    out.family("policy_switchback_effect", "gauge", text)
    for _, labels, state in each:
        for measure in ("mean", "p99", "errors"):
            effect = (state.get("switchback") or {}).get(measure) or {}
            for bound in ("change", "low", "high"):
                if effect.get(bound) is not None:
                    out.add(effect[bound], f"{labels},{label(measure=measure, bound=bound)}")
