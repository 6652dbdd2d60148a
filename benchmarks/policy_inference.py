"""How long a learned policy takes to decide: its inputs, its network in numpy and in torch, and the correction, a
call.

python benchmarks/policy_inference.py [--servers 8 64 256] [--hidden 32] [--json]     (torch where it is installed)
"""

import controlplane  # noqa: F401  (before numpy: it sets how many threads numpy has)

# isort: split
import argparse
import contextlib
import json
import time
from collections.abc import Callable

import numpy as np

from controlplane.learned import correction
from controlplane.learned.encoding import Inputs, encode
from controlplane.learned.network import Network, decide, shapes
from controlplane.learned.schema import ActionSchema
from shm_layout.features import FEATURES
from shm_layout.layout import CURVE_POINTS


def median_us(call: Callable[[], object], rounds: int) -> float:
    took = []
    for _ in range(rounds + 20):
        begun = time.perf_counter()
        call()
        took.append(time.perf_counter() - begun)
    return float(np.median(took[20:])) * 1e6


def in_torch(
    parameters: dict[str, np.ndarray], schema: ActionSchema, hidden: int, inputs: Inputs
) -> Callable[[], object]:
    """Return a call of the same network in torch, on one thread, from numpy and back to it."""
    import torch

    from controlplane.agents.networks import RowNetwork

    torch.set_num_threads(1)
    network = RowNetwork(schema, hidden)
    network.load_numpy(parameters)
    state = network.initial(1, inputs.active.shape[1])

    def call() -> object:
        with torch.inference_mode():
            out = network(*(torch.as_tensor(x) for x in (inputs.rows, inputs.whole, inputs.active)), state)
        return out[0].numpy(), out[1].numpy()

    return call


def measure(servers: int, hidden: int, rounds: int) -> dict[str, float | None]:
    """Return microseconds."""
    rng, schema = np.random.default_rng(1), ActionSchema()
    parameters = {
        name: rng.normal(0.0, 0.3, shape).astype(np.float32) for name, shape in shapes(schema, hidden).items()
    }
    features, change = rng.gamma(2.0, 0.1, (1, servers, len(FEATURES))), rng.gamma(2.0, 3.0, (1, servers, 4))
    curves = np.cumsum(rng.gamma(2.0, 0.1, (1, servers, CURVE_POINTS)), axis=2).astype(np.float32)
    active, factor = np.ones((1, servers), dtype=bool), np.ones((servers, CURVE_POINTS))
    network = Network(parameters, schema)
    state = network.initial(1, servers)
    inputs = encode(features, active, change, curves, 0.2, 4)
    rows, whole, _ = network.forward(inputs, state)
    logs = rng.uniform(-1.0, 1.0, 2 + 2 * servers)
    base = curves[0].astype(np.float64)

    def corrected() -> object:
        return correction.bounded(base, correction.correct(curves[0], logs).astype(np.float64), factor, 0.25)

    found: dict[str, float | None] = {
        "servers": servers,
        "inputs": median_us(lambda: encode(features, active, change, curves, 0.2, 4), rounds),
        "network": median_us(lambda: network.forward(inputs, state), rounds),
        "outputs": median_us(lambda: decide(schema, rows, whole), rounds),
        "correction": median_us(corrected, rounds),
        "network_in_torch": None,
    }
    with contextlib.suppress(ImportError):
        found["network_in_torch"] = median_us(in_torch(parameters, schema, hidden, inputs), rounds)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servers", type=int, nargs="+", default=[8, 64, 256])
    parser.add_argument("--hidden", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    options = parser.parse_args()
    found = [measure(servers, options.hidden, options.rounds) for servers in options.servers]
    if options.json:
        print(json.dumps(found))
        return
    print(" ".join(f"{name.replace('_', ' '):>16}" for name in found[0]))
    for row in found:
        print(
            " ".join(
                f"{'-' if v is None else f'{v:.0f}':>13} {' ' if k == 'servers' else 'µs'}" for k, v in row.items()
            )
        )


if __name__ == "__main__":
    main()
