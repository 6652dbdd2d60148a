"""Learning from recorded transitions alone: datasets (controlplane/env/dataset.py) become sequences of one row each.

    agent = ConservativeQ(schema, config)
    agent.load(read_dataset("run.npz"))
    for _ in range(updates):
        agent.learn()

**Inputs.** A dataset that was recorded with the inputs themselves, `observation.rows`, `observation.whole` and
`observation.active`, has everything: `Recorder` writes them where the base policy bids, `record()` from transitions.
One of raw observations (`observation.servers`, `observation.active`) tells the 11 features of each server, but not the
counters nor the base policy's bids: those columns are then what encode() makes of "nothing is known", and a policy that
is trained so sees in service what it never saw in training (its novelty score will say so).

**Actions.** What is learned are levels. Recorded actions of kinds curves and weights are continuous and are taken for
the nearest level of each head (`off_grid` tells how far they were off on average); heads that the schema does not have
are left out, so the recorded policy should have left them at 0. Bounds are taken to be the schema's.

**Borders.** Rows of one `episode` belong together, in the order in which they were recorded. The observation after the
last one of an episode is known, so it serves as its successor unless the episode terminated. States of the network were
not recorded: sequences begin with the initial one and the burn-in (Kapturowski et al., ICLR 2019, "zero start state").

Offline agents do not explore: `act` is greedy whatever `explore` says, but for cloning, which draws as the recorded
policy did.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from controlplane.agents.agent import Numbers
from controlplane.agents.batch import Sequences, Transition
from controlplane.agents.bounds import Seconds, Warmup, Weight
from controlplane.agents.networks import RowNetwork
from controlplane.agents.replay import Replay, ReplayAgent, ReplayConfig
from controlplane.agents.sac import mean_over
from controlplane.env.dataset import Buffer, Dataset, DatasetError
from controlplane.learned.encoding import Inputs, encode
from controlplane.learned.schema import CORRECTIONS, GLOBALS, ActionSchema
from shm_layout.features import FEATURES


@dataclass(frozen=True)
class OfflineConfig(ReplayConfig):
    """Hyper-parameters of agents that learn from datasets."""

    warmup: Warmup = 1
    cost_weight: Weight = 0.0  # of the recorded cost, taken off the reward; multipliers cannot be learned from a record
    interval: Seconds | None = None  # seconds between the steps recorded; None: as the dataset says


# Datasets


def inputs_of(data: Dataset, prefix: str, interval: float | None = None) -> Inputs:
    """Return what a network takes of the dataset's column group `observation` or `next_observation`, (N, n, …).

    Raises DatasetError for a dataset that has neither form.
    """
    columns = data.columns

    def column(name: str) -> NDArray[Any]:
        return columns[f"{prefix}.{name}"]

    if f"{prefix}.rows" in columns and f"{prefix}.whole" in columns:
        active = column("active").astype(np.bool_)
        return Inputs(column("rows").astype(np.float32), column("whole").astype(np.float32), active)
    if f"{prefix}.servers" not in columns or f"{prefix}.active" not in columns:
        raise DatasetError(
            f"dataset: expected columns {prefix}.servers and {prefix}.active, or {prefix}.rows, {prefix}.whole and "
            f"{prefix}.active; there are {', '.join(sorted(columns))}"
        )
    if list(data.meta.get("features", FEATURES)) != list(FEATURES):
        raise DatasetError(f"dataset: features {data.meta['features']}, this program has {list(FEATURES)}")
    told = data.meta.get("environment", {}).get("interval")
    seconds = interval if interval is not None else told
    if seconds is None:
        raise DatasetError("dataset: its environment tells no interval; say it (`interval`)")
    features = column("servers")
    shape = features.shape[:2]
    active = column("active").astype(np.bool_)
    return encode(features, active, np.zeros((*shape, 4)), np.zeros((*shape, 9)), float(seconds), 1)


def levels_of(data: Dataset, schema: ActionSchema, servers: int) -> tuple[Numbers, Numbers, float]:
    """Return the levels nearest to the recorded actions, (N, n, row heads) and (N, global heads) or (N, 1), and the
    mean distance to them in the action's own unit. Raises DatasetError when they are not of the schema's kind."""
    action = np.asarray(data.columns["action"])
    kind = data.meta.get("environment", {}).get("action", schema.kind)
    wanted = {"curves": (len(GLOBALS) + len(CORRECTIONS) * servers,), "choice": ()}.get(schema.kind, (servers,))
    if kind != schema.kind or action.shape[1:] != wanted:
        raise DatasetError(
            f"dataset: actions of kind {kind}, shape {action.shape[1:]}; expected kind {schema.kind}, shape {wanted}"
        )
    rows = np.zeros((len(action), servers, len(schema.row_heads)))
    whole = np.zeros((len(action), len(schema.global_heads)))
    if schema.kind in ("choice", "discrete"):
        greatest = servers if schema.kind == "choice" else len(schema.levels)
        if len(action) and not (action.min() >= 0 and action.max() < greatest):
            raise DatasetError(f"dataset: actions up to {action.max()}, expected 0 to {greatest - 1}")
        if schema.kind == "choice":
            return np.zeros(rows.shape, dtype=np.int64), action.astype(np.int64).reshape(-1, 1), 0.0
        return action.astype(np.int64)[:, :, None], np.zeros(whole.shape, dtype=np.int64), 0.0
    if schema.kind == "weights":
        rows[:, :, 0] = action
    else:
        for head, name in enumerate(schema.global_heads):
            whole[:, head] = action[:, GLOBALS.index(name)]
        for head, name in enumerate(schema.row_heads):
            rows[:, :, head] = action[:, len(GLOBALS) + CORRECTIONS.index(name) :: len(CORRECTIONS)]
    numbers = [np.abs(x[..., None] - schema.grid).argmin(axis=-1) for x in (rows, whole)]
    off = [np.abs(x - schema.grid[number]).ravel() for x, number in zip((rows, whole), numbers, strict=True)]
    return numbers[0], numbers[1], float(np.concatenate(off).mean())


def steps(data: Dataset, schema: ActionSchema, config: OfflineConfig) -> Iterator[Transition]:
    """Yield the recorded steps, one row each, episode after episode, each with the successor of its last step."""
    before, after = (inputs_of(data, prefix, config.interval) for prefix in ("observation", "next_observation"))
    servers = before.rows.shape[1]
    rows, whole, _ = levels_of(data, schema, servers)
    c = data.columns
    reward = (c["reward"] - config.cost_weight * c.get("cost", np.zeros(len(data)))).astype(np.float32)
    order = np.argsort(c["episode"], kind="stable")
    hidden = np.zeros((1, servers, config.hidden), dtype=np.float32)
    no_cost, nothing = np.zeros((1, 0), dtype=np.float32), np.zeros(1, dtype=np.float32)
    yes, no = np.ones(1, dtype=np.bool_), np.zeros(1, dtype=np.bool_)

    def one(inputs: Inputs, i: int) -> Inputs:
        return Inputs(inputs.rows[i : i + 1], inputs.whole[i : i + 1], inputs.active[i : i + 1])

    for place, i in enumerate(order):
        own = slice(i, i + 1)
        first = place == 0 or c["episode"][order[place - 1]] != c["episode"][i]
        last = place + 1 == len(order) or c["episode"][order[place + 1]] != c["episode"][i]
        done = yes if c["terminated"][i] else no
        fresh = yes if first else no
        yield Transition(one(before, i), rows[own], whole[own], reward[own], no_cost, done, fresh, hidden)
        if last and not c["terminated"][i]:
            yield Transition(one(after, i), rows[own], whole[own], nothing, no_cost, no, no, hidden)


def record(
    buffer: Buffer,
    step: Transition,
    after: Inputs,
    action: NDArray[Any],
    episodes: NDArray[np.integer[Any]],
    *,
    truncated: bool = False,
    **told: Any,
) -> None:
    """Append every row of a vector step to a buffer, with the inputs as networks take them.

    after: what the step led to. action (R, …): as the environment took it. episodes (R,): each row's number. told:
    `policy`, `time` and what else Buffer.add takes, the same for all rows.
    """
    for i in range(len(step.reward)):
        seen, later = (
            {"rows": x.rows[i], "whole": x.whole[i], "active": x.active[i].astype(np.int8)}
            for x in (step.inputs, after)
        )
        end, cost, episode = bool(step.done[i]), float(step.cost[i].sum()), int(episodes[i])
        buffer.add(seen, action[i], float(step.reward[i]), later, end, truncated, cost=cost, episode=episode, **told)


# Agents


class OfflineAgent(ReplayAgent):
    """What agents that learn from datasets have in common. They may observe as well, and so go on from there."""

    config: OfflineConfig
    offline: ClassVar[bool] = True
    off_grid: float = 0.0  # mean distance of recorded actions to the levels that they were taken for

    def load(self, data: Dataset) -> None:
        """Learn from this dataset from now on; what was stored before is forgotten. Raises DatasetError."""
        c = self.config
        taken = list(steps(data, self.schema, c))
        self.off_grid = levels_of(data, self.schema, taken[0].inputs.rows.shape[1])[2]
        self.replay = Replay(max(c.capacity, len(taken)), c.length, c.burn_in)
        for step in taken:
            self.replay.add(step)
        if not len(self.replay.starts()):
            raise DatasetError(f"dataset: {len(data)} transitions, a sequence has {self.replay.span}")
        reward = data.columns["reward"] - c.cost_weight * data.columns.get("cost", np.zeros(len(data)))
        self.scale.steps = len(data)
        self.scale.mean, self.scale.square = float(reward.mean()), float(reward.var())
        self._due = c.steps_per_update

    def choose(
        self, rows: NDArray[np.float32], whole: NDArray[np.float32], active: NDArray[np.bool_], explore: bool
    ) -> tuple[Numbers, Numbers]:
        return super().choose(rows, whole, active, explore=False)

    def centred(self, value: Tensor, valid: Tensor) -> Tensor:
        """Return values of successors less their mean over the batch, (B, T); unchanged when rewards are not centred.

        The rewards' mean is the recorded policy's. What is learned earns more, and without this its values would rise
        by that for 1/(1 − γ) steps, far above what levels differ by. Relative values choose the same levels
        (Abounadi, Bertsekas, Borkar, "Learning Algorithms for Markov Decision Processes with Average Cost", 2001).
        """
        return value - mean_over(value, valid) if self.config.normalise_reward else value

    def states(self, network: RowNetwork, batch: Sequences) -> Tensor:
        """Return a network's states along a batch, (B, T, n, h)."""
        borders = self.borders(batch)
        return network.states(batch.rows, batch.whole, batch.active, batch.hidden, borders, batch.burn_in)
