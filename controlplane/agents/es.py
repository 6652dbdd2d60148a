"""An evolution strategy: no gradient of anything, only complete episodes of policies that differ a little.

Source   Salimans et al., "Evolution Strategies as a Scalable Alternative to Reinforcement Learning", 2017, algorithm 2
         (rank shaping: section 2.1; mirrored sampling: Brockhoff et al., PPSN 2010; Adam: Kingma and Ba, ICLR 2015)

    θ        parameters of the policy network, as one vector         σ     deviation of what is tried
    ε_j      N(0, I), j = 1 … pairs; θ ± σ s ε_j are tried, s the scale of each parameter: 1 of biases, 1/√inputs of
             weights, so that every parameter moves the network about as much
    F        fitness; u its centred rank, in [−½, ½]
    g        = 1/(2·pairs·σ) Σ_j (u_j⁺ − u_j⁻) ε_j,   θ ← θ + s · Adam(g − weight_decay · (θ − θ₀))

All that are tried meet the same farms and arrivals. A correction is worth per cents, episodes differ by tens of per
cents, so the differences of the fitness between members are what can be learned from, and there is no critic to be
wrong about them. Fitness is the mean over episodes of −log(FCT / mean FCT of all members in that episode).

The departures from the paper: scales s, decay towards where training began (a correction of zero is worth something),
numpy instead of torch: an episode's cost is the simulator's and the base policy's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from controlplane.agents.bounds import Momentum, Number, Positive, Share, Units, Weight
from controlplane.learned.encoding import SERVER_COLUMNS, Inputs
from controlplane.learned.network import shapes
from controlplane.learned.schema import ActionSchema

Floats = NDArray[np.float32]

# The level that does nothing begins as likely as so many times each other one; as in agents/networks.py.
ZERO_BIAS = 2.0


@dataclass(frozen=True)
class EvolutionConfig:
    """Hyper-parameters."""

    hidden: Units = 32  # units of the network
    pairs: Number = 16  # mirrored pairs a generation
    sigma: Positive = 0.2  # deviation of what is tried
    learning_rate: Positive = 0.2  # of Adam, in units of the scales
    beta1: Momentum = 0.9
    beta2: Momentum = 0.99
    weight_decay: Share = 0.0  # towards where training began
    learns: Literal["all", "heads"] = "all"  # heads: over random features, an echo state network
    episodes: Number = 2  # that each member meets in a generation
    cost_limit: Weight = 0.01  # mean cost that each constraint may have
    multiplier_rate: Weight = 1.0  # by how much a multiplier rises a generation for each unit above the limit
    multiplier_max: Weight = 100.0

    def __post_init__(self) -> None:
        if min(self.pairs, self.hidden, self.episodes) < 1:
            raise ValueError("expected pairs, hidden and episodes of at least 1")
        if self.learns not in ("all", "heads"):
            raise ValueError(f"expected learns: all or heads, not {self.learns!r}")
        if not (self.sigma > 0 and self.learning_rate > 0 and self.weight_decay >= 0):
            raise ValueError("expected sigma and learning_rate above 0 and weight_decay of at least 0")


class EvolutionStrategy:
    """ask() for members, tell() their fitness."""

    name = "es"
    config_class = EvolutionConfig
    on_policy = True
    several = False
    decode = "mean"

    def __init__(self, schema: ActionSchema, config: EvolutionConfig | None = None, seed: int = 0) -> None:
        self.schema, self.config, self.seed = schema, config or EvolutionConfig(), seed
        if schema.kind in ("choice", "discrete"):
            # What is decoded by its greatest logit changes in jumps; ranks bear that, but "mean" says more.
            self.decode = "mode"
        self.generation = 0
        self.centre = initial(schema, self.config.hidden, np.random.default_rng([seed, 0]))
        self._begin(self.centre)

    def _begin(self, centre: Floats) -> None:
        self.centre = centre.astype(np.float32)
        self.start = self.centre.copy()
        self.scale = scales(self.schema, self.config.hidden, self.config.learns)
        self._first = np.zeros_like(self.centre, dtype=np.float64)
        self._second = np.zeros_like(self._first)

    def noise(self) -> Floats:
        """Return this generation's ε, (pairs, parameters)."""
        generator = np.random.default_rng([self.seed, 1, self.generation])
        return generator.standard_normal((self.config.pairs, len(self.centre)), dtype=np.float32)

    def ask(self) -> Floats:
        """Return the members to try, (2·pairs, parameters): all plus, then all minus."""
        change = self.config.sigma * self.scale * self.noise()
        return np.concatenate([self.centre + change, self.centre - change])

    def tell(self, fitness: NDArray[np.float64]) -> dict[str, float]:
        """Make one update from the members' fitness, (2·pairs,), greater is better; what is not finite ranks last."""
        c = self.config
        if fitness.shape != (2 * c.pairs,):
            raise ValueError(f"fitness of shape {fitness.shape}, expected ({2 * c.pairs},)")
        ranks = centred_ranks(fitness)
        gain = ranks[: c.pairs] - ranks[c.pairs :]
        gradient = gain @ self.noise().astype(np.float64) / (2 * c.pairs * c.sigma)
        gradient -= c.weight_decay * self._moved()
        gradient[self.scale == 0] = 0.0
        self.generation += 1
        self._first = c.beta1 * self._first + (1 - c.beta1) * gradient
        self._second = c.beta2 * self._second + (1 - c.beta2) * gradient**2
        first = self._first / (1 - c.beta1**self.generation)
        second = self._second / (1 - c.beta2**self.generation)
        step = c.learning_rate * first / (np.sqrt(second) + 1e-8)
        self.centre = (self.centre + self.scale * step).astype(np.float32)
        good = fitness[np.isfinite(fitness)]
        return {
            "fitness/deviation": float(good.std()) if len(good) else float("nan"),
            "fitness/pair_difference": float(np.abs(gain).mean()),
            "step/norm": float(np.linalg.norm(step)),
            "parameters/moved": float(np.linalg.norm(self._moved())),
        }

    def _moved(self) -> Floats:
        """Return how far parameters are from where training began, in units of their scales."""
        return np.asarray((self.centre - self.start) / np.where(self.scale > 0, self.scale, 1.0))

    def parameters(self) -> dict[str, Floats]:
        """Return what controlplane.learned.network.Network takes."""
        return unpack(self.centre, self.schema, self.config.hidden)

    def load_actor(self, parameters: Mapping[str, Any]) -> None:
        """Begin from an exported network (fine-tuning)."""
        wanted = shapes(self.schema, self.config.hidden)
        for name, shape in wanted.items():
            if name not in parameters or np.shape(parameters[name]) != shape:
                raise ValueError(f"network: {name} is missing or not of shape {shape}")
        self._begin(np.concatenate([np.asarray(parameters[name], dtype=np.float32).ravel() for name in wanted]))

    def state_dict(self, *, replay: bool = False) -> dict[str, Any]:
        """Return all that is needed to go on: arrays and plain values. There is no replay to keep."""
        return {
            "agent": self.name,
            "schema": json.dumps(self.schema.as_json()),
            "seed": self.seed,
            "generation": self.generation,
            "centre": self.centre.copy(),
            "start": self.start.copy(),
            "first": self._first.copy(),
            "second": self._second.copy(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state. Raises ValueError when it is another agent's, or of other networks."""
        if state["agent"] != self.name or ActionSchema.of(json.loads(state["schema"])) != self.schema:
            raise ValueError(f"agent {self.name}: the state is of agent {state['agent']} or of another action schema")
        if np.shape(state["centre"]) != self.centre.shape:
            raise ValueError(f"agent {self.name}: the state is of a network of another size")
        self.seed, self.generation = int(state["seed"]), int(state["generation"])
        self.centre, self.start = (np.asarray(state[name], dtype=np.float32) for name in ("centre", "start"))
        self._first, self._second = (np.asarray(state[name], dtype=np.float64) for name in ("first", "second"))


def centred_ranks(fitness: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ranks in [−½, ½], equal ones for equal fitness; what is not finite is last."""
    x = np.where(np.isfinite(fitness), fitness, -np.inf)
    ordered = np.sort(x)
    middle = (np.searchsorted(ordered, x, "left") + np.searchsorted(ordered, x, "right") - 1) / 2.0
    return np.asarray(middle / max(len(x) - 1, 1) - 0.5)


def scales(schema: ActionSchema, hidden: int, learns: str = "all") -> Floats:
    """Return s, (parameters,); heads: 1 of the heads' parameters, whose inputs are within ±1, and 0 of all others."""
    if learns == "heads":
        parts = [(int(np.prod(shape)), float(_is_head(name))) for name, shape in shapes(schema, hidden).items()]
    else:
        parts = [
            (int(np.prod(shape)), 1.0 if len(shape) == 1 else shape[1] ** -0.5)
            for shape in shapes(schema, hidden).values()
        ]
    return np.concatenate([np.full(size, value, dtype=np.float32) for size, value in parts])


def _is_head(name: str) -> bool:
    return name.partition(".")[0] in ("row", "all", "choice")


def initial(schema: ActionSchema, hidden: int, generator: np.random.Generator) -> Floats:
    """Return a network's first parameters: torch's distributions, heads at the action that does nothing."""
    parts = []
    for name, shape in shapes(schema, hidden).items():
        if _is_head(name):
            values = np.zeros(shape)
            if name.endswith("bias") and schema.kind == "curves":
                values.reshape(-1, len(schema.levels))[:, schema.zero] = ZERO_BIAS
        else:
            # torch: uniform within 1/√inputs, of a linear layer; within 1/√hidden, of a GRU cell.
            inputs = (
                hidden if name.startswith("cell") else shapes(schema, hidden)[f"{name.partition('.')[0]}.weight"][1]
            )
            values = generator.uniform(-1.0, 1.0, shape) * inputs**-0.5
        parts.append(values.ravel())
    return np.concatenate(parts).astype(np.float32)


def unpack(vector: Floats, schema: ActionSchema, hidden: int) -> dict[str, Floats]:
    """Return a vector (…, parameters) as named arrays (…, shape)."""
    found, at = {}, 0
    for name, shape in shapes(schema, hidden).items():
        size = int(np.prod(shape))
        found[name] = vector[..., at : at + size].reshape(*vector.shape[:-1], *shape)
        at += size
    return found


class Members:
    """Networks of different parameters run side by side: learned.network.Network with an axis of members before all.

    Rows come member by member: (members · rows of each, …). A test holds it to Network, member by member.
    """

    def __init__(self, vectors: Floats, schema: ActionSchema, hidden: int) -> None:
        self.schema, self.hidden, self.count = schema, hidden, len(vectors)
        # Transposed for x @ W: (members, inputs, outputs); biases (members, 1, outputs).
        self.p = {
            name: np.ascontiguousarray(value.swapaxes(1, 2)) if value.ndim == 3 else value[:, None, :]
            for name, value in unpack(vectors, schema, hidden).items()
        }

    def forward(self, inputs: Inputs, hidden: Floats) -> tuple[Floats, Floats, Floats]:
        """Return what Network.forward returns, rows of all members."""
        m, h, p = self.count, self.hidden, self.p
        r, n = inputs.active.shape
        columns = len(SERVER_COLUMNS)

        def linear(x: Floats, weight: Floats) -> Floats:
            """x (rows, …, i) → (rows, …, o)"""
            return np.asarray(np.matmul(x.reshape(m, -1, x.shape[-1]), weight)).reshape(*x.shape[:-1], -1)

        def bias(x: Floats, name: str) -> Floats:
            return (x.reshape(m, -1, x.shape[-1]) + p[name]).reshape(x.shape)

        active = inputs.active
        own = linear(inputs.rows, p["enter.weight"][:, :columns])
        common = bias(linear(inputs.whole, p["enter.weight"][:, columns:]), "enter.bias")
        e = np.maximum(own + common[:, None], 0.0)
        around = bias(linear(_pool(e, active), p["mix.weight"][:, h:]), "mix.bias")
        mixed = np.maximum(linear(e, p["mix.weight"][:, :h]) + around[:, None], 0.0)
        gi = bias(linear(mixed, p["cell.weight_ih"]), "cell.bias_ih")
        gh = bias(linear(hidden, p["cell.weight_hh"]), "cell.bias_hh")
        gates = 0.5 * (1.0 + np.tanh(0.5 * (gi[..., : 2 * h] + gh[..., : 2 * h])))
        reset, update = gates[..., :h], gates[..., h:]
        new = np.tanh(gi[..., 2 * h :] + reset * gh[..., 2 * h :])
        state = ((1.0 - update) * new + update * hidden) * active[:, :, None]
        pooled = _pool(state, active)
        levels = len(self.schema.levels)

        def head(name: str) -> Floats:
            weight = p[f"{name}.weight"]
            of_all = bias(linear(pooled, weight[:, h:]), f"{name}.bias")
            return np.asarray(linear(state, weight[:, :h]) + of_all[:, None])

        rows = np.zeros((r, n, 0, levels), dtype=np.float32)
        if self.schema.row_heads:
            rows = head("row").reshape(r, n, len(self.schema.row_heads), levels)
        whole = np.zeros((r, 0, levels), dtype=np.float32)
        if self.schema.global_heads:
            logits = bias(linear(pooled, p["all.weight"]), "all.bias")
            whole = logits.reshape(r, len(self.schema.global_heads), levels)
        if self.schema.kind == "choice":
            whole = np.where(active, head("choice")[:, :, 0], -np.inf)[:, None, :]
        return rows, whole, np.asarray(state, dtype=np.float32)


def _pool(x: Floats, active: NDArray[np.bool_]) -> Floats:
    number = np.maximum(active.sum(axis=1, keepdims=True), 1).astype(np.float32)
    greatest = np.where(active[:, :, None], x, -np.inf).max(axis=1, initial=-np.inf)
    greatest = np.where(np.isfinite(greatest), greatest, np.float32(0.0))
    return np.concatenate([(x * active[:, :, None]).sum(axis=1) / number, greatest], axis=1).astype(np.float32)
