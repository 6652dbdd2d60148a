"""Train the policy for several balancers from whole episodes of constant corrections, every one of them on every farm.

    python benchmarks/several_training.py --seed 1 --time 12m --out runs/several
    python benchmarks/several_training.py --from runs/several/episodes.npz --out runs/again   # learn from those

What corrections of K and c are worth depends on the farm, and hardly changes within an episode. So for each farm that
is drawn, an episode is run for each of ARMS, all on the same arrivals and demands, and what each comes to beside the
base policy is known for all of them: no exploration, no credit to be assigned. The network (GRU over what a balancer
sees, as in service) then learns the corrections that have the least mean of

    y(farm, K, c) = log of the mean completion time over the base policy's: a quadratic surface through the arms

over the farms, by its gradient. A fifth of the farms is held out, and the network that is kept is the best on those.

What came of it is in docs/learning.md: nothing that holds on other farms.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from controlplane.agents.networks import RowNetwork
from controlplane.config_values import duration
from controlplane.learned.manifest import BOUNDS, Manifest, Ranges, Training
from controlplane.learned.policy_file import write
from controlplane.learned.schema import FIVE, ActionSchema
from controlplane.training.episodes import Episodes, Setup, Tally
from controlplane.training.start import commit
from controlplane.training.tasks import tasks_of

SCENARIOS = Path(__file__).parent / "scenarios"
TASKS = (
    "random:servers=4-16,balancers=3-8,load=0.5-0.95",
    "random:servers=4-16,balancers=2,load=0.5-0.95",
    "balancers-4",
    "random:servers=4-16,balancers=3-8,load=0.5-0.9",
    "balancers-2",
    "random:servers=4-16,balancers=2,load=0.5-0.9",
    str(SCENARIOS / "four-balancers-moderate.yaml"),
    "random:servers=4-16,balancers=3-8,load=0.5-0.85",
    str(SCENARIOS / "capacity-swap-by-two.yaml"),
    "marllb-2",
)
SCHEMA = ActionSchema(
    row_heads=(), global_heads=("balancers", "scale"), bounds=BOUNDS | {"balancers": 0.7, "scale": 0.8}
)
# Levels of K and of c: factors 0.5, 0.7, 1, 1.4 and 0.7, 1, 1.5, 2.2.
ARMS = (
    *((k, 0.0) for k in (-1.0, -0.5, 0.0, 0.5)),
    *((0.0, c) for c in (-0.5, 0.5, 1.0)),
    (-0.5, 0.5),
    (-0.5, 1.0),
    (0.5, 0.5),
)
BASE = ARMS.index((0.0, 0.0))
# What arms that are not tried are taken for, so that nobody goes there for nothing.
PRIOR = (((-0.5, -0.5), 0.0), ((-1.0, -1.0), 0.04), ((0.5, -0.5), 0.03), ((1.0, -1.0), 0.04), ((1.0, 1.0), 0.03))
# The most that one episode may count, as a logarithm.
MOST = 0.04
# What a correction of a whole level must be worth.
CAUTION = 0.001
HIDDEN, STEPS, BASE_EVERY = 16, 250, 8
WIDTH = 16
# Share of an episode that does not count: `adaptive` has come to know its farm then, as it has in service.
WARMUP = 0.4


def episodes_of(task: Any, seed: list[int], balancers: int) -> dict[str, Any]:
    """Return log mean completion times (arms,), and what one balancer saw under the base policy and another arm."""
    setup = Setup(SCHEMA, steps=STEPS, base_every=BASE_EVERY, width=WIDTH, warmup=WARMUP)
    episodes = Episodes(setup, task, balancers, len(ARMS), twins=False, width=WIDTH)
    generator = np.random.default_rng([*seed, 1])
    watched = [BASE * balancers, int(generator.integers(len(ARMS))) * balancers + int(generator.integers(balancers))]
    whole = np.repeat(np.array(ARMS), balancers, axis=0)
    rows = np.zeros((len(whole), WIDTH, 0))
    tally, seen = Tally(setup, len(ARMS)), []
    try:
        episodes.begin([seed] * len(ARMS))
        for _ in range(STEPS):
            inputs = episodes.inputs()
            seen.append((inputs.rows[watched], inputs.whole[watched], inputs.active[watched]))
            tally.add(episodes.step(rows, whole))
    finally:
        episodes.close()
    y = np.log(np.where(tally.complete, tally.fct, np.nan))
    stacked = [np.stack(part, axis=1) for part in zip(*seen, strict=True)]
    return {"y": y, "rows": stacked[0], "whole": stacked[1], "active": stacked[2]}


def collect(seed: int, seconds: float, path: Path) -> dict[str, Any]:
    """Run farms for so long; what was found is kept in a file, which grows."""
    tasks = tasks_of(TASKS, 0.2, hide_weights=True)
    began, found, number = time.monotonic(), [], 0
    while time.monotonic() - began < seconds:
        which = number % len(tasks)
        low, high = tasks[which].balancers
        balancers = int(np.random.default_rng([seed, number]).integers(low, high + 1))
        one = episodes_of(tasks[which], [seed, number, 7], balancers)
        if np.isfinite(one["y"]).all():
            found.append(one | {"task": which, "balancers": balancers})
        number += 1
        if number % 20 == 0:
            np.savez_compressed(path, **_stacked(found))
            print(f"{number} farms, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    data = _stacked(found)
    np.savez_compressed(path, **data)
    return data


def _stacked(found: list[dict[str, Any]]) -> dict[str, Any]:
    return {key: np.stack([one[key] for one in found]) for key in found[0]}


def surfaces(y: np.ndarray[Any, Any]) -> torch.Tensor:
    """Return the five coefficients of each farm's quadratic surface through the base policy, (farms, 5); y (farms,
    arms) relative to it. It evens out what one episode has by chance."""
    near = [i for i, (k, c) in enumerate(ARMS) if abs(k) + abs(c) <= 1.0]
    terms = np.array([_terms(*ARMS[i]) for i in near] + [_terms(*arm) for arm, _ in PRIOR])
    prior = np.tile([value for _, value in PRIOR], (len(y), 1))
    found = np.linalg.lstsq(terms, np.hstack([MOST * np.tanh(y[:, near] / MOST), prior]).T, rcond=None)[0]
    return torch.tensor(found.T, dtype=torch.float32)


def _terms(k: Any, c: Any) -> tuple[Any, ...]:
    return k, c, k * k, c * c, k * c


def value_of(surface: torch.Tensor, k: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """Return y at K and c (B, T) in [−1, 1]."""
    return sum(surface[:, i, None] * term for i, term in enumerate(_terms(k, c)))  # type: ignore[return-value]


def learn(data: dict[str, Any], seed: int, epochs: int) -> tuple[RowNetwork, dict[str, Any]]:
    """Return the network that is best on held-out farms, and what it is worth there, by task."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    n = len(data["y"])
    table = surfaces(data["y"] - data["y"][:, [BASE]])
    parts = [torch.tensor(data[key]) for key in ("rows", "whole", "active")]
    held = np.random.default_rng(seed).permutation(n)[: n // 5]
    train = np.setdiff1d(np.arange(n), held)
    network = RowNetwork(SCHEMA, HIDDEN, neutral=True)
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=5e-2)
    generator = np.random.default_rng([seed, 2])
    levels = torch.tensor(FIVE)
    best: tuple[float, Any, dict[str, Any]] = (float("inf"), None, {})

    def act(which: Any, side: Any) -> tuple[torch.Tensor, torch.Tensor]:
        rows, whole, active = (part[which, side] for part in parts)
        logits = network.unroll(rows, whole, active, network.initial(len(rows), rows.shape[2]))[1]
        mean = logits[:, round(0.5 * WARMUP * STEPS) :: 2].softmax(-1) @ levels
        return mean[:, :, 0], mean[:, :, 1]

    for epoch in range(epochs):
        for batch in np.array_split(generator.permutation(train), max(1, len(train) // 32)):
            k, c = act(batch, generator.integers(2, size=len(batch)))
            loss = (value_of(table[batch], k, c) + CAUTION * (k.abs() + c.abs())).mean()
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
        with torch.no_grad():
            worth = {}
            for name, which in (("train", train), ("held", held)):
                k, c = act(which, np.ones(len(which), dtype=np.int64))
                worth[name] = value_of(table[which], k, c).mean(1), k.mean(1), c.mean(1)
        score = float(worth["held"][0].mean())
        if epoch % 3 == 0 or score < best[0]:
            print(f"epoch {epoch}: {float(worth['train'][0].mean()):+.4f} held out {score:+.4f}", file=sys.stderr)
        if score < best[0]:
            by_task = {}
            for task in range(len(TASKS)):
                mine = torch.tensor(data["task"][held] == task)
                by_task[_short(TASKS[task])] = [round(float(x[mine].mean()), 4) for x in worth["held"]]
            best = score, {k: v.clone() for k, v in network.state_dict().items()}, by_task
    network.load_state_dict(best[1])
    return network, best[2] | {"all": round(best[0], 4)}


def _short(task: str) -> str:
    return Path(task).stem if task.endswith(".yaml") else task


def save(path: Path, network: RowNetwork, data: dict[str, Any], args: Any, seconds: float) -> None:
    generator = np.random.default_rng(args.seed)
    active = data["active"]
    rows, whole = data["rows"][active], data["whole"].reshape(-1, data["whole"].shape[-1])
    rows, whole = (x[generator.permutation(len(x))[:20_000]] for x in (rows, whole))
    count = active.sum(axis=-1)
    ranges = Ranges.measure(
        rows,
        whole,
        (int(count.min()), int(count.max())),
        (int(data["balancers"].min()), int(data["balancers"].max())),
    )
    training = Training(
        command=f"python benchmarks/several_training.py --seed {args.seed} --time {args.time}",
        commit=commit(),
        seed=args.seed,
        steps=len(data["y"]) * len(ARMS) * STEPS,
        scenario=" + ".join(_short(task) for task in TASKS),
        seconds=round(seconds, 1),
        hyper_parameters={
            "farms": len(data["y"]),
            "arms": len(ARMS),
            "episode": STEPS,
            "base_every": BASE_EVERY,
            "epochs": args.epochs,
            "caution": CAUTION,
        },
    )
    about = Manifest(
        "several",
        "arms",
        SCHEMA,
        ranges,
        training,
        description="Corrects adaptive's bids where two to eight balancers each see their own flows alone; "
        "one balancer it leaves alone.",
        hidden=HIDDEN,
        decode="mean",
        base="adaptive",
    )
    write(path, network.parameters_numpy(), about)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--time", default="12m", help="for the episodes; learning comes after")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--from", dest="episodes", help="learn from these episodes instead of new ones")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    began = time.monotonic()
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    if args.episodes:
        with np.load(args.episodes) as file:
            data = dict(file)
    else:
        data = collect(args.seed, duration(1.0)(args.time), out / "episodes.npz")
    network, worth = learn(data, args.seed, args.epochs)
    for name, value in worth.items():
        print(name, value)
    save(out / "several.safetensors", network, data, args, time.monotonic() - began)
    print(out / "several.safetensors")


if __name__ == "__main__":
    main()
