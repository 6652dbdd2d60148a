"""Constant corrections of the base policy, tried side by side on many farms: no exploration, no credit to be assigned.

What a correction is worth depends on the farm, and hardly changes within an episode. So on each farm that is drawn, an
episode is run with the base policy and with each of a few corrections u = (K, c, m), all on the same arrivals and
demands. Regressions over the farms of a regime (surfaces.py), which the simulator knows and a balancer does not, give

    y(farm, u)    log of the mean completion time over the base policy's, and `tail` times that of the p99: a surface ȳ,
                  and its standard deviation σ

and the network, a GRU over what a balancer sees, as in service, learns corrections by the gradient of

    L = mean over farms and time of  ȳ(farm, u) + doubt · σ(farm, u) + price(u)

It has to find out by itself where it is, and where it cannot, to do what costs least. The price keeps it in the box
that was tried, of m in a part of it, its rows in the shape of m, and makes what is worth next to nothing not worth
doing.

Source   our own; the surfaces are Box and Wilson's (1951), σ is Efron's bootstrap (1979). docs/learning.md says what
         else was tried on this problem and why it failed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from controlplane.agents import surfaces
from controlplane.agents.bounds import Draws, Few, Number, Rate, Share, Spread, Units, Weight
from controlplane.agents.networks import RowNetwork
from controlplane.agents.surfaces import LEAST, MOST, SUM_LEAST, SUM_MOST, Arms, Farm, Judge, terms
from controlplane.learned.encoding import GLOBAL_COLUMNS
from controlplane.learned.schema import ActionSchema

Singles = NDArray[np.float32]

# Inputs that tell one scenario from another and say nothing of what it is like: in learning they are other farms'.
BESIDE: Final = [GLOBAL_COLUMNS.index(name) for name in ("servers", "flows", "interval")]
# What leaving the box costs, by unit.
OUTSIDE = 0.1


@dataclass(frozen=True)
class ArmsConfig:
    """Hyper-parameters."""

    hidden: Units = 16  # units of the network
    farms: Few = 16  # of a round
    arms: Few = 7  # corrections tried on each
    epochs: Number = 30  # passes over all farms whenever the network is learned anew
    batch: Number = 16  # farms a step
    learning_rate: Rate = 3e-3  # of AdamW; falls along a cosine to 0
    weight_decay: Share = 0.02
    tail: Share = 0.5  # what the p99 counts beside the mean
    worst: Spread = 0.15  # |y| beyond which it counts hardly more
    noise: Spread = 0.015  # least standard deviation of a farm's y
    draws: Draws = 40  # surfaces that tell how sure they are
    doubt: Weight = 2.0  # standard deviations that a correction must be worth
    caution: Weight = 0.0005  # y that a unit of a correction must be worth
    lean: Share = 0.15  # most m that is made use of: more is tried, as a short lever tells little (docs/learning.md)
    shape: Weight = 0.3  # what rows pay that do not follow m, by the mean square


class ConstantArms:
    """take() what farms gave and what learn() makes of it."""

    name = "arms"
    config_class = ArmsConfig
    on_policy = True
    several = False
    decode = "mean"

    def __init__(self, schema: ActionSchema, config: ArmsConfig | None = None, seed: int = 0) -> None:
        """Raises ValueError for other heads than K, c and μ."""
        self._units = surfaces.units_of(schema)
        self.schema, self.config, self.seed = schema, config or ArmsConfig(), seed
        self.farms: list[Farm] = []
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        self.network = RowNetwork(schema, self.config.hidden, neutral=True)
        with torch.no_grad():
            for head in (self.network.row, self.network.all):
                assert head is not None
                head.weight.zero_()  # no correction at all
        self._start = self.network.parameters_numpy()  # where every learning begins
        self._learned = 0  # how many farms the network was learned from

    # Learning

    def take(self, farms: Sequence[Farm]) -> None:
        """Take in farms. The network stays as it is."""
        self.farms = [*self.farms, *farms]

    def learn(self) -> dict[str, float]:
        """Learn the network anew from all farms, if some came since; return figures: what its last epoch came to, and
        its mean corrections. Interrupted, it leaves the agent as it was."""
        if self._learned == len(self.farms):
            return {}
        c = self.config
        # Where in some episode no flow ended, nothing is told.
        farms = [farm for farm in self.farms if farm.is_whole]
        network = RowNetwork(self.schema, c.hidden)
        network.load_numpy(self._start)
        if not farms:
            return {}
        arms = [farm.arms for farm in farms]
        judge = Judge(c.tail, c.worst, c.noise)
        drawn = surfaces.doubted(arms, np.random.default_rng([self.seed, 3]), c.draws, judge)
        table = torch.tensor(drawn, dtype=torch.float32)
        parts = [torch.from_numpy(np.stack([getattr(farm, name) for farm in farms])) for name in _SEEN]
        optimiser = torch.optim.AdamW(network.parameters(), lr=c.learning_rate, weight_decay=c.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, c.epochs)
        generator, n = np.random.default_rng([self.seed, 2]), len(farms)
        worth, means = [0.0], [np.zeros(3)]
        for _ in range(c.epochs):
            worth, means = [], []
            for which in np.array_split(generator.permutation(n), max(1, n // c.batch)):
                side = generator.integers(2, size=len(which))
                rows, whole, active, relative = (part[which, side] for part in parts)
                whole[:, :, BESIDE] = parts[1][generator.choice(n, len(which)), side][:, :, BESIDE]
                u, rest = self._acts(network, rows.float(), whole, active, relative.float())
                y = self._worth(table[:, which], u)
                optimiser.zero_grad()
                (y.mean() + self._price(u, rest)).backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimiser.step()
                worth.append(float(y.detach().mean()))
                means.append(u.detach().mean((0, 1)).numpy())
            schedule.step()
        self.network, self._learned = network, len(self.farms)
        figures = {"worth": float(np.mean(worth))}
        return figures | dict(zip(("K", "c", "m"), map(float, np.mean(means, axis=0)), strict=True))

    def _acts(
        self, network: RowNetwork, rows: Tensor, whole: Tensor, active: Tensor, relative: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return u (B, T, 3), and the mean square (B, T) by which the rows' bids differ from what m gives them."""
        levels, bounds = torch.tensor(self.schema.levels), self.schema.bounds
        logits = network.unroll(rows, whole, active, network.initial(len(rows), rows.shape[2]))
        mine = (logits[0].softmax(-1) @ levels)[..., 0] * bounds["mu"]  # (B, T, n)
        both = logits[1].softmax(-1) @ levels  # (B, T, 2)
        of = {name: both[..., i] * bounds[name] for i, name in enumerate(self.schema.global_heads)}
        m = (mine * relative).sum(-1) / ((relative**2).sum(-1) + 0.05)
        rest = ((mine - m[..., None] * relative) * active).square().sum(-1) / active.sum(-1).clamp(min=1)
        units = torch.tensor(self._units, dtype=torch.float32)
        return torch.stack([of["balancers"], of["scale"], m], -1) / units, rest

    def _worth(self, table: Tensor, u: Tensor) -> Tensor:
        """Return y and `doubt` times its standard deviation (B, T), of surfaces (draws, B, 9) at u (B, T, 3)."""
        each = torch.einsum("dbi,bti->dbt", table, terms(u, torch.stack))
        return each.mean(0) + self.config.doubt * each.var(0, correction=0).add(1e-12).sqrt()

    def _price(self, u: Tensor, rest: Tensor) -> Tensor:
        total = -u[..., 0] + u[..., 1] + u[..., 2]
        used = np.minimum(MOST, [np.inf, np.inf, self.config.lean])
        least, most = (torch.tensor(x, dtype=torch.float32) for x in (LEAST, used))
        outside = ((u - most).relu() + (least - u).relu()).sum(-1)
        outside = outside + (total - SUM_MOST).relu() + (SUM_LEAST - total).relu()
        return (self.config.shape * rest + OUTSIDE * outside + self.config.caution * u.abs().sum(-1)).mean()

    # Going on

    def parameters(self) -> dict[str, Singles]:
        """Return what controlplane.learned.network.Network takes."""
        return self.network.parameters_numpy()

    def load_actor(self, parameters: Mapping[str, Any]) -> None:
        """Begin every learning from an exported network (fine-tuning)."""
        self.network.load_numpy(parameters)
        self._start = self.network.parameters_numpy()

    def state_dict(self) -> dict[str, Any]:
        """Return all that is needed to go on: arrays and plain values."""
        return {
            "agent": self.name,
            "schema": json.dumps(self.schema.as_json()),
            "seed": self.seed,
            "start": dict(self._start),
            "network": self.parameters(),
            "learned": self._learned,
            "farms": [
                {name: getattr(farm, name) for name in _SEEN} | {f.name: getattr(farm.arms, f.name) for f in _ARMS}
                for farm in self.farms
            ],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state. Raises ValueError when it is another agent's, or of another action schema."""
        if state["agent"] != self.name or ActionSchema.of(json.loads(state["schema"])) != self.schema:
            raise ValueError(f"agent {self.name}: the state is of agent {state['agent']} or of another action schema")
        if "learned" not in state:
            raise ValueError(f"agent {self.name}: the state is of an earlier version, which told no p99")
        self.seed = int(state["seed"])
        self.network.load_numpy(state["network"])
        self._start, self._learned = dict(state["start"]), int(state["learned"])
        self.farms = [
            Farm(Arms(**{f.name: given[f.name] for f in _ARMS}), **{name: given[name] for name in _SEEN})
            for given in state["farms"]
        ]


_SEEN: Final = ("rows", "whole", "active", "relative")
_ARMS: Final = fields(Arms)
