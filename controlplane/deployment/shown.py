"""What `vickrey policy show`, the status and the metrics tell of a service's policy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from controlplane.policy import Directive, Observation

if TYPE_CHECKING:
    from controlplane.control_loop import ControlLoop
    from controlplane.deployment.deployment import Deployment


def shown_policy(loop: ControlLoop) -> dict[str, Any]:
    """Return policy, history, counts and what is under way."""
    counts, chosen = loop.counts, loop.chosen
    seconds = np.array(counts.cycle_seconds) if counts.cycle_seconds else np.zeros(1)
    shown: dict[str, Any] = {
        "policy": chosen.name,
        "spec": chosen.spec,
        "sha256": chosen.sha256,
        "mode": "shadow" if chosen.shadow else "enforce",
        "enforcing": chosen.enforcing_percent,
        "history": list(loop.history),
        "demoted": loop.demoted or None,
        **loop.watch.show(),
        "interval": loop.interval,
        "cycles": counts.cycles,
        "cycles_idle": counts.idle,
        "published": counts.published,
        "late": counts.late,
        "failed": counts.failed,
        "rollbacks": counts.rollbacks,
        "demotions": counts.demotions,
        "cycle_ms_mean": round(float(seconds.mean()) * 1e3, 3),
        "cycle_ms_max": round(float(seconds.max()) * 1e3, 3),
        "decisions": loop.decider.show(),
        "servers": [],
    }
    shown |= {key: value for key, value in deployment_state(loop).items() if value is not None}
    if loop.shadow_report:
        shown["shadow"] = loop.shadow_report
    if loop.ledger is not None:
        shown["ledger"] = loop.ledger.state
    return shown


def deployment_state(loop: Deployment) -> dict[str, Any]:
    """Return the few numbers of a deployment that change by themselves; None where there is nothing to tell."""
    trial = loop.trial
    switchback = trial.switchback.show() if trial is not None and trial.switchback is not None else loop.measured
    return {
        "novelty": _round(loop.decider.novelty),
        "blend": _round(loop.decider.blend),
        # Of a learned policy: the input that is most novel, and why its base policy decides alone, when it does.
        "novel_input": getattr(loop.decider.chosen.policy, "strangest", None) or None,
        "alone": getattr(loop.decider.chosen.policy, "alone", None) or None,
        "trial": trial.show() if trial is not None else None,
        "switchback": switchback,
        "adapt": loop.tuner.show() if loop.tuner is not None else None,
    }


def shown_servers(o: Observation, last: Directive) -> list[dict[str, Any]]:
    """Return what the policy knows of each server and does with it."""
    same_rows = last.weights is None or len(last.weights) == o.n_servers
    total = float(last.weights[o.active].sum()) if last.weights is not None and same_rows else 0.0
    servers = []
    for row in np.flatnonzero(o.ids):
        server: dict[str, Any] = {"id": int(o.ids[row]), "name": o.names[row], "active": bool(o.active[row])}
        if last.weights is not None and same_rows and total > 0:
            server["weight"] = _round(last.weights[row] / total * o.active[row])
        if last.curves is not None and row < len(last.curves):
            server["bids"] = [_round(bid) for bid in last.curves[row, :8]]
        for name, values in last.fitted.items():
            if row < len(values):
                server[name] = _round(values[row])
        servers.append(server)
    return servers


def _round(value: Any) -> float | None:
    number = float(value) if value is not None else np.nan
    return float(f"{number:.5g}") if np.isfinite(number) else None
