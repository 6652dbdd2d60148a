"""The network in numpy: the twin of the one in torch, the same whatever the servers' order, and quick."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.learned.encoding import GLOBAL_COLUMNS, SERVER_COLUMNS, Inputs
from controlplane.learned.network import SILENT, Network, decide
from controlplane.learned.schema import ActionSchema
from tests.learned.files import CURVES, random, save

SCHEMAS = [
    CURVES,
    ActionSchema("curves", row_heads=("mu",), global_heads=()),
    ActionSchema("curves", row_heads=(), global_heads=("window",)),
    ActionSchema("discrete", levels=(1.0, 1.5, 2.0)),
    ActionSchema("weights", levels=(-1.0, 0.0, 1.0)),
    ActionSchema("choice"),
]


def some_inputs(rng: np.random.Generator, rows: int, servers: int, active: float = 0.7) -> Inputs:
    return Inputs(
        rng.normal(size=(rows, servers, len(SERVER_COLUMNS))).astype(np.float32),
        rng.normal(size=(rows, len(GLOBAL_COLUMNS))).astype(np.float32),
        rng.random((rows, servers)) < active,
    )


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda s: f"{s.kind}-{len(s.row_heads)}-{len(s.global_heads)}")
@pytest.mark.parametrize("active", [1.0, 0.6, 0.0])
def test_it_is_the_twin_of_the_one_in_torch(schema: ActionSchema, active: float) -> None:
    torch = pytest.importorskip("torch", reason="the network in torch needs torch")
    from controlplane.agents.networks import RowNetwork

    torch.set_num_threads(1)
    rng = np.random.default_rng(1)
    theirs = RowNetwork(schema, 16)
    theirs.load_numpy(random(3, 0.5, schema, 16))
    ours = Network(theirs.parameters_numpy(), schema)
    hidden = ours.initial(3, 7)
    state = theirs.initial(3, 7)
    for _ in range(4):
        inputs = some_inputs(rng, 3, 7, active)
        rows, whole, hidden = ours.forward(inputs, hidden)
        with torch.no_grad():
            given = [torch.as_tensor(x) for x in (inputs.rows, inputs.whole, inputs.active)]
            t_rows, t_whole, state = theirs(*given, state)
        for mine, other in ((rows, t_rows), (whole, t_whole), (hidden, state)):
            assert mine.dtype == np.float32
            assert np.allclose(mine, other.numpy(), atol=2e-5)


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.sampled_from(SCHEMAS), st.integers(2, 12))
def test_outputs_move_with_the_servers_and_free_rows_change_nothing(seed: int, schema: ActionSchema, n: int) -> None:
    rng = np.random.default_rng(seed)
    network = Network(random(seed % 1000, 0.5, schema), schema)
    inputs = some_inputs(rng, 2, n)
    hidden = rng.normal(size=(2, n, 8)).astype(np.float32)
    rows, whole, state = network.forward(inputs, hidden)
    order = rng.permutation(n)
    moved = Inputs(inputs.rows[:, order], inputs.whole, inputs.active[:, order])
    m_rows, m_whole, m_state = network.forward(moved, hidden[:, order])
    assert np.allclose(m_rows, rows[:, order], atol=1e-5)
    assert np.allclose(m_state, state[:, order], atol=1e-5)
    assert np.allclose(m_whole, whole[..., order] if schema.kind == "choice" else whole, atol=1e-5)
    wide = Inputs(
        np.concatenate([inputs.rows, rng.normal(size=(2, 3, len(SERVER_COLUMNS))).astype(np.float32)], axis=1),
        inputs.whole,
        np.concatenate([inputs.active, np.zeros((2, 3), dtype=bool)], axis=1),
    )
    w_rows, w_whole, w_state = network.forward(wide, np.concatenate([hidden, network.initial(2, 3)], axis=1))
    assert np.allclose(w_rows[:, :n], rows, atol=1e-5)
    assert np.allclose(w_state[:, :n], state, atol=1e-5)
    assert not w_state[:, n:].any()
    assert np.allclose(w_whole[..., : whole.shape[-1]], whole, atol=1e-5)


@pytest.mark.parametrize(("share", "value"), [(0.509, 0.0), (0.511, 0.002 / 0.98), (0.489, -0.002 / 0.98), (1.0, 1.0)])
def test_a_mean_correction_next_to_none_is_none_and_nothing_jumps(share: float, value: float) -> None:
    """Two levels, −1 and 1, so that the mean is 2·share − 1: below 0.02 it is nothing, to the bit."""
    schema = ActionSchema(levels=(-1.0, 1.0), row_heads=("mu",), global_heads=())
    logits = np.log(np.array([[[[1 - share + 1e-30, share]]]], dtype=np.float32))
    found = float(decide(schema, logits, np.zeros((1, 0, 2), dtype=np.float32), "mean")[0].item())
    assert found == pytest.approx(value, abs=1e-5)
    assert (found == 0.0) == (value == 0.0)


def test_levels_and_their_means() -> None:
    rows = np.log(np.array([[[[0.1, 0.2, 0.4, 0.2, 0.1], [1e-9, 1e-9, 1e-9, 0.5, 0.5]]]], dtype=np.float32))
    whole = np.zeros((1, 3, 5), dtype=np.float32)
    mean, of_all = decide(CURVES, rows, whole, "mean")
    assert mean.ravel() == pytest.approx([0.0, (0.75 - SILENT) / (1 - SILENT)], abs=1e-6)
    assert of_all.ravel() == pytest.approx([0.0, 0.0, 0.0], abs=1e-6)
    assert decide(CURVES, rows, whole, "mode")[0].ravel() == pytest.approx([0.0, 0.5])


def test_no_servers_are_no_trouble() -> None:
    network = Network(random(), CURVES)
    rows, whole, state = network.forward(some_inputs(np.random.default_rng(1), 1, 0), network.initial(1, 0))
    assert (rows.shape, whole.shape, state.shape) == ((1, 0, 2, 5), (1, 3, 5), (1, 0, 8))
    assert np.isfinite(whole).all()


def test_a_decision_for_256_servers_takes_well_under_a_millisecond(tmp_path: Path) -> None:
    # In a process of its own: numpy's threads, which other tests may have begun, are not the controller's.
    file = save(tmp_path / "p.safetensors", hidden=32)
    command = [sys.executable, "-m", "controlplane.cli", "policy", "check", str(file), "--json"]
    found = json.loads(subprocess.run(command, capture_output=True, timeout=60, check=True).stdout)
    assert (found["ok"], found["servers"]) == (True, 256)
    assert found["network_ms"] < 1.0
