"""Agents that learn to correct the best known policy, one file each; `vickrey[rl]`. docs/learning.md explains them.

    agent      what every agent does          networks   the policy network in torch
    batch      transitions and sequences      replay     sequences with the recurrent state that was stored
    lagrange   multipliers of constraints     surfaces   what constant corrections are worth

AGENTS names them all; `agent_class(name)` imports the one that is asked for, and torch with it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from controlplane.agents.agent import Agent

AGENTS: Final[dict[str, str]] = {
    "sac": "controlplane.agents.sac:SoftActorCritic",
    "ssac": "controlplane.agents.sac:SingleSoftActorCritic",
    "dqn": "controlplane.agents.dqn:DeepQNetwork",
    "arms": "controlplane.agents.arms:ConstantArms",
    "es": "controlplane.agents.es:EvolutionStrategy",
    "ppo": "controlplane.agents.ppo:ProximalPolicy",
    "isac": "controlplane.agents.isac:IndependentSoftActorCritic",
    "mpg": "controlplane.agents.mpg:PotentialGame",
    "qmix": "controlplane.agents.qmix:QMix",
    "vdn": "controlplane.agents.vdn:ValueDecomposition",
    "cql": "controlplane.agents.cql:ConservativeQ",
    "bcq": "controlplane.agents.bcq:BatchConstrainedQ",
    "bc": "controlplane.agents.cloning:BehaviourCloning",
}


def agent_class(name: str) -> type[Agent]:
    """Return the class of an agent. Raises ValueError for an unknown name, ImportError without torch."""
    if name not in AGENTS:
        raise ValueError(f"agent: {name!r} is unknown; there are {', '.join(sorted(AGENTS))}")
    module, _, attribute = AGENTS[name].partition(":")
    try:
        found: type[Agent] = getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("controlplane"):
            raise
        raise ImportError(f"agent {name}: {error.name} is missing: pip install 'vickrey[rl]'") from error
    return found
