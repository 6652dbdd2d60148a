"""Train the policy for two balancers from whole episodes of constant corrections, several of them on every farm.

    python benchmarks/several_training.py --seed 1 --farms 136 --out runs/several  # a quarter of an hour of two cores
    python benchmarks/several_training.py --from runs/several/episodes.npz --out runs/again  # learn from those

What a correction is worth depends on the farm, and hardly changes within an episode. So for each farm that is drawn, an
episode is run with the base policy and with each of ARMS corrections u = (K, c, m), all on the same arrivals and
demands: no exploration, no credit to be assigned. What one episode says of one farm is mostly chance, so the farms are
taken together, by what the simulator knows of them and a balancer does not (REGIMES): a regression gives

    y(farm, u) = log of the mean completion time over the base policy's: a surface of second degree in u, whose slopes
                 depend on the load, and on how many balancers there are; drawing the farms anew tells how sure that is

and the network (GRU over what a balancer sees, as in service) learns the corrections whose y, and DOUBT times its
standard deviation, are least in the mean over farms and time, by its gradient. It has to find out by itself where it
is, and where it cannot, to do what costs least.
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from several_balancers import Constant

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from controlplane.agents.networks import RowNetwork
from controlplane.directive import BID_MAX
from controlplane.learned.encoding import GLOBAL_COLUMNS, encode
from controlplane.learned.manifest import BOUNDS, Manifest, Ranges, Training
from controlplane.learned.policy_file import write
from controlplane.learned.schema import FIVE, ActionSchema
from controlplane.policies.learned import FEATURE_MAX, counted_since
from controlplane.policy import Directive, Observation
from controlplane.simulation.runs import RING_SLOTS
from controlplane.training.start import commit
from controlplane.training.tasks import RandomTask, Task, tasks_of
from dataplane.simulator import Server, Simulation, World
from dataplane.simulator.results import OUTCOME_OK

Floats = NDArray[np.float64]

SCENARIOS = Path(__file__).parent / "scenarios"
TASKS = (
    "random:servers=4-16,balancers=2,load=0.5-0.95",
    "queues:balancers=2",
    "balancers-2",
    "random:servers=4-16,balancers=2,load=0.6-0.95",
    "marllb-2",
    str(SCENARIOS / "capacity-swap-by-two.yaml"),
    "queues:balancers=2",
    "balancers-2",
)
# The network's bounds, as logarithms, and what one unit of u is: log K, log c, and m: that part of the logarithm of a
# server's capacity over the geometric mean by which its bids are lower.
SCHEMA = ActionSchema(
    row_heads=("mu",), global_heads=("balancers", "scale"), bounds=BOUNDS | {"mu": 0.5, "balancers": 0.5, "scale": 0.6}
)
UNITS = np.array([0.5, 0.6, 0.3])
# Corrections that are tried lie in this box, and between these sums of −K + c + m: beyond, all are bad.
LEAST, MOST, SUMS = np.array([-1.0, -0.5, -0.4]), np.array([0.5, 1.0, 1.0]), (-0.8, 1.3)
ARMS, SECONDS, WARMUP, INTERVAL, WIDTH = 7, 45.0, 18.0, 0.2, 16
# Ordered: bids come from the own flows, in order (controlplane/shared_view.py). The others do not: two balancers or
# more, before servers where flows queue or share the cores.
REGIMES = ("ordered", "two, queues", "two, shared cores", "more, queues", "more, shared cores")
# Greatest y that counts, and the least deviation of episodes, as logarithms; what a unit of u must be worth; what rows
# pay that do not follow m.
WORST, NOISE, CAUTION, SHAPE = 0.15, 0.015, 0.0005, 0.3
# Surfaces from farms drawn anew, and how many of their standard deviations a correction must be worth.
DRAWN, DOUBT = 40, 4.0
# Inputs that tell one scenario from another and say nothing of what it is like: in learning they are other farms'.
BESIDE = [GLOBAL_COLUMNS.index(name) for name in ("servers", "flows", "interval")]
HIDDEN = 16


@dataclass(frozen=True)
class Queues(RandomTask):
    """Random farms of servers of some workers that keep the order of their flows, of which others have few."""

    def _farm(self, g: np.random.Generator, n: int) -> list[Server]:
        workers, farm = int(g.choice([2, 4, 8])), super()._farm(g, n)
        scale = 64.0 / max(server.speed for server in farm) if any(server.weight > 1 for server in farm) else 0.0
        return [
            replace(server, workers=workers, service="fifo", weight=max(1, round(scale * server.speed)))
            for server in farm
        ]


def task_of(name: str) -> Task:
    if not name.startswith("queues:"):
        return tasks_of((name,), INTERVAL, hide_weights=True)[0]
    low, _, high = name.partition("=")[2].partition("-")
    return Queues(name, servers=(4, 16), balancers=(int(low), int(high or low)), load=(0.5, 0.95), interval=INTERVAL)


class Watched:
    """adaptive with a constant correction; what the first balancer sees is kept."""

    name = "watched"

    def __init__(self, u: Floats, seen: list[Any] | None = None) -> None:
        k, c, m = u * UNITS
        self.policy = Constant(K=float(np.exp(k)), c=float(np.exp(c)), mu=float(m))
        self.seen = seen
        self._before: Observation | None = None

    def __deepcopy__(self, memo: Any) -> Watched:
        new = Watched(np.zeros(3), self.seen)
        new.policy = Constant(**self.policy.of)
        self.seen = None  # every balancer has a copy; the first is watched
        return new

    def decide(self, o: Observation) -> Directive:
        directive = self.policy.decide(o)
        if self.seen is not None:
            base = self.policy.decided
            assert base.curves is not None
            assert base.weights is not None
            curves = np.minimum(base.curves, BID_MAX).astype(np.float32)
            features, change = np.clip(o.features, 0.0, FEATURE_MAX), counted_since(o, self._before)
            inputs = encode(features[None], o.active[None], change[None], curves[None], o.interval, o.balancers)
            relative = self.policy.relative(base.weights, o.active) * o.active
            self.seen.append((inputs.rows[0], inputs.whole[0], o.active.copy(), relative, "service" in base.fitted))
            self._before = o
        return directive


def run(world: World, u: Floats, seen: list[Any] | None = None) -> tuple[float, float]:
    """Return the mean completion time, seconds, and the part of the flows that failed."""
    records = Simulation(world, ring_slots=RING_SLOTS).run(Watched(u, seen), interval=INTERVAL).records
    good = (records["outcome"] == OUTCOME_OK) & (records["arrival_ns"] >= WARMUP * 1e9)
    fct = (records["closed_ns"] - records["arrival_ns"])[good] * 1e-9
    return float(fct.mean()) if good.any() else float("nan"), float((records["outcome"] != OUTCOME_OK).mean())


def draw(generator: np.random.Generator) -> Floats:
    """Return one correction in the box."""
    while True:
        u: Floats = generator.uniform(LEAST, MOST)
        if SUMS[0] < -u[0] + u[1] + u[2] < SUMS[1]:
            return u


def farm(seed: int, number: int) -> dict[str, Any]:
    """Return what the corrections come to on one farm, what it is, and what one balancer saw under the base policy
    and under one of them."""
    generator = np.random.default_rng([seed, number, 7])
    task = task_of(TASKS[number % len(TASKS)])
    low, high = task.balancers
    world = task.world(generator, int(generator.integers(low, high + 1)), SECONDS)
    world = replace(world, duration=SECONDS, flows=None, seed=int(generator.integers(2**62)), rings=True)
    us = np.array([np.zeros(3)] + [draw(generator) for _ in range(ARMS)])
    second = 1 + int(generator.integers(ARMS))
    seen: dict[int, list[Any]] = {0: [], second: []}
    found = [run(world, u, seen.get(arm)) for arm, u in enumerate(us)]
    sharing = float(np.mean([server.service == "sharing" for server in world.servers]))
    stacked = [_stack(seen[arm]) for arm in (0, second)]
    ordered = float(stacked[0]["ordered"][len(stacked[0]["ordered"]) // 2 :].mean())
    return {
        "u": us[1:],
        "y": np.log([fct for fct, _ in found[1:]]) - np.log(found[0][0]),
        "failed": max(part for _, part in found),
        "regime": 0 if ordered > 0.5 else 1 + int(sharing > 0.5) + 2 * int(world.balancers > 2),
        "balancers": world.balancers,
        "load": world.load,
        **{name: np.stack([one[name] for one in stacked]) for name in ("rows", "whole", "active", "relative")},
    }


def _stack(seen: list[Any]) -> dict[str, Any]:
    """Return the looks of one episode, padded to WIDTH servers."""
    rows, whole, active, relative, ordered = zip(*seen, strict=True)

    def padded(parts: Any) -> NDArray[Any]:
        return np.stack([np.pad(p, [(0, WIDTH - len(p)), *[(0, 0)] * (p.ndim - 1)]) for p in parts])

    return {
        "rows": padded(rows).astype(np.float32),
        "whole": np.stack(whole).astype(np.float32),
        "active": padded(active),
        "relative": padded(relative).astype(np.float32),
        "ordered": np.array(ordered),
    }


def collect(seed: int, farms: int, workers: int, path: Path) -> dict[str, Any]:
    """Run so many farms; what was found is kept in a file."""
    began, found = time.monotonic(), []
    with ProcessPoolExecutor(workers) as pool:
        for number, one in enumerate(pool.map(farm, [seed] * farms, range(farms)), 1):
            found.append(one)
            if number % 10 == 0:
                print(f"{number} farms, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    data = {key: np.stack([one[key] for one in found]) for key in found[0]}
    np.savez_compressed(path, **data, seconds=time.monotonic() - began)
    return data


# --- what corrections are worth --------------------------------------------------------------------------------------


def terms(u: Any, stack: Any = np.stack) -> Any:
    """Return the three linear and the six quadratic terms of u (…, 3): (…, 9)."""
    k, c, m = u[..., 0], u[..., 1], u[..., 2]
    return stack([k, c, m, k * k, c * c, m * m, k * c, k * m, c * m], -1)


def about(data: dict[str, Any], i: int) -> Floats:
    """Return what the slopes of farm i depend on: the load, and how many balancers there are."""
    several = np.log2(data["balancers"][i]) - 1.5
    return np.array(
        [1.0, data["load"][i] - 0.8, *([] if REGIMES[int(data["regime"][i])].startswith("two") else [several])]
    )


def surfaces(data: dict[str, Any], farms: NDArray[np.intp]) -> Floats:
    """Return each farm's nine coefficients, all farms' from the episodes of these; (F, 9)."""
    out = np.zeros((len(data["y"]), 9))
    for regime in range(len(REGIMES)):
        mine = [i for i in farms if data["regime"][i] == regime]
        if len(mine) < 5:
            continue  # nothing is known there: no correction is the best
        depends = len(about(data, mine[0]))
        x, y, weight = [], [], []
        for i in mine:
            t = terms(data["u"][i])
            x.append(np.hstack([(t[:, :3, None] * about(data, i)).reshape(len(t), -1), t[:, 3:]]))
            y.append(WORST * np.tanh(data["y"][i] / WORST))
            # A farm whose episodes differ much says little.
            weight.append(np.full(len(t), 1.0 / (NOISE**2 + float(np.var(y[-1])))))
        matrix, target, w = np.concatenate(x), np.concatenate(y), np.concatenate(weight)
        w /= w.mean()
        normal = (matrix * w[:, None]).T @ matrix + 1.0 * np.eye(matrix.shape[1])
        found = np.linalg.solve(normal, (matrix * w[:, None]).T @ target)
        for i in np.flatnonzero(data["regime"] == regime):
            out[i, :3] = found[: 3 * depends].reshape(3, depends) @ about(data, i)
            out[i, 3:] = found[3 * depends :]
    return out


# --- what the network learns -----------------------------------------------------------------------------------------


def doubted(data: dict[str, Any], farms: NDArray[np.intp], seed: int) -> Floats:
    """Return surfaces (DRAWN, F, 9), each from the episodes of as many farms drawn from these with replacement."""
    generator = np.random.default_rng([seed, 3])
    return np.stack([surfaces(data, generator.choice(farms, len(farms))) for _ in range(DRAWN)])


class Learner:
    """The network, and what it comes to on given farms."""

    def __init__(self, data: dict[str, Any], table: Floats, seed: int) -> None:
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        self.network = RowNetwork(SCHEMA, HIDDEN, neutral=True)
        self.table = torch.tensor(table, dtype=torch.float32)
        self.parts = [torch.tensor(data[key]) for key in ("rows", "whole", "active")]
        self.relative = torch.tensor(data["relative"])
        self.levels = torch.tensor(FIVE)

    def act(self, which: Any, side: Any, mixed: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Return u (B, T, 3), and the mean square (B, T) by which the rows' bids differ from what m gives them.

        mixed: farms from which the inputs BESIDE are taken; None: their own.
        """
        rows, whole, active = (part[which, side] for part in self.parts)
        if mixed is not None:
            whole[:, :, BESIDE] = self.parts[1][mixed, side][:, :, BESIDE]
        logits = self.network.unroll(rows, whole, active, self.network.initial(len(rows), rows.shape[2]))
        mine = (logits[0].softmax(-1) @ self.levels)[..., 0] * SCHEMA.bounds["mu"]  # (B, T, n)
        both = logits[1].softmax(-1) @ self.levels  # (B, T, 2)
        relative = self.relative[which, side]
        m = (mine * relative).sum(-1) / ((relative**2).sum(-1) + 0.05)
        rest = ((mine - m[..., None] * relative) * active).square().sum(-1) / active.sum(-1).clamp(min=1)
        scale = torch.tensor([SCHEMA.bounds["balancers"], SCHEMA.bounds["scale"], 1.0]) / torch.tensor(UNITS)
        return torch.cat([both, m[..., None]], -1) * scale.float(), rest

    def worth(self, which: Any, side: Any, mixed: Any = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return y (B,), the mean u (B, 3), and what is to be paid for leaving the box and for rows out of shape."""
        u, rest = self.act(which, side, mixed)
        each = torch.einsum("dbi,bti->dbt", self.table[:, which], terms(u, torch.stack).float())
        y = each.mean(0) + DOUBT * each.var(0).add(1e-12).sqrt()
        total = -u[..., 0] + u[..., 1] + u[..., 2]
        outside = (u - torch.tensor(MOST)).relu() + (torch.tensor(LEAST) - u).relu()
        out = outside.sum(-1) + (total - SUMS[1]).relu() + (SUMS[0] - total).relu()
        price = SHAPE * rest + 0.1 * out.float() + CAUTION * u.abs().sum(-1)
        return y.mean(1), u.mean(1), price.mean()


def learn(data: dict[str, Any], seed: int, epochs: int) -> tuple[RowNetwork, list[str]]:
    """Return the network and, a line a regime, what it is worth on farms that neither it nor the surfaces it learned
    from have seen."""
    n = len(data["y"])
    held = np.random.default_rng(seed).permutation(n)[: n // 5]
    train = np.setdiff1d(np.arange(n), held)
    judge = torch.tensor(doubted(data, held, seed), dtype=torch.float32)
    learner = Learner(data, doubted(data, train, seed), seed)
    optimiser = torch.optim.AdamW(learner.network.parameters(), lr=3e-3, weight_decay=2e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    generator = np.random.default_rng([seed, 2])
    for epoch in range(epochs):
        worth = []
        for batch in np.array_split(generator.permutation(train), max(1, len(train) // 16)):
            others = generator.choice(train, len(batch))
            y, _, price = learner.worth(batch, generator.integers(2, size=len(batch)), others)
            optimiser.zero_grad()
            (y.mean() + price).backward()
            torch.nn.utils.clip_grad_norm_(learner.network.parameters(), 1.0)
            optimiser.step()
            worth.append(float(y.detach().mean()))
        schedule.step()
        print(f"epoch {epoch}: {100 * np.mean(worth):+.2f} %", file=sys.stderr, flush=True)
    lines = []
    learner.table = judge
    with torch.no_grad():
        for regime, name in enumerate(REGIMES):
            which = np.array([i for i in held if data["regime"][i] == regime])
            if len(which):
                y, u, _ = learner.worth(which, np.ones(len(which), dtype=np.int64))
                mean = " ".join(f"{float(x):+.2f}" for x in u.mean(0))
                lines.append(f"{name}: {len(which)} farms held out, y {100 * float(y.mean()):+.2f} %, K c m {mean}")
    return learner.network, lines


def save(path: Path, network: RowNetwork, data: dict[str, Any], args: argparse.Namespace, seconds: float) -> None:
    generator = np.random.default_rng(args.seed)
    active = data["active"]
    rows, whole = data["rows"][active], data["whole"].reshape(-1, data["whole"].shape[-1])
    rows, whole = (x[generator.permutation(len(x))[:50_000]] for x in (rows, whole))
    count = active.sum(axis=-1)
    balancers = int(data["balancers"].min()), int(data["balancers"].max())
    training = Training(
        command=f"python benchmarks/several_training.py --seed {args.seed} --farms {args.farms}",
        commit=commit(),
        seed=args.seed,
        steps=data["y"].size * round(SECONDS / INTERVAL),
        scenario=" + ".join(Path(task).stem if task.endswith(".yaml") else task for task in TASKS),
        seconds=round(seconds, 1),
        hyper_parameters={
            "farms": len(data["y"]),
            "noise": NOISE,
            "doubt": DOUBT,
            "arms": ARMS,
            "seconds": SECONDS,
            "epochs": args.epochs,
            "caution": CAUTION,
            "shape": SHAPE,
        },
    )
    manifest = Manifest(
        "several",
        "arms",
        SCHEMA,
        Ranges.measure(rows, whole, (int(count.min()), int(count.max())), balancers),
        training,
        description="Corrects adaptive's bids where two balancers each see their own flows alone; one balancer, and "
        "four or more, it leaves alone.",
        hidden=HIDDEN,
        decode="mean",
        base="adaptive",
    )
    write(path, network.parameters_numpy(), manifest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--farms", type=int, default=136)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--from", dest="episodes", help="learn from these episodes instead of new ones")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    began, before = time.monotonic(), 0.0
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    if args.episodes:
        with np.load(args.episodes) as file:
            data = dict(file)
        before = float(data.pop("seconds"))
    else:
        data = collect(args.seed, args.farms, args.workers, out / "episodes.npz")
    usable = np.isfinite(data["y"]).all(axis=1) & (data["failed"] < 0.02)
    data = {key: value[usable] for key, value in data.items()}
    network, worth = learn(data, args.seed, args.epochs)
    print("\n".join(worth))
    save(out / "several.safetensors", network, data, args, before + time.monotonic() - began)
    print(out / "several.safetensors")


if __name__ == "__main__":
    main()
