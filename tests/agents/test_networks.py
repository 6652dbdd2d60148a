"""The network in torch and its twin in numpy: the same outputs, whatever the number and order of the servers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="needs vickrey[rl]: torch is not installed")

from controlplane.agents.batch import tensors  # noqa: E402
from controlplane.agents.networks import RowNetwork  # noqa: E402
from controlplane.learned.encoding import GLOBAL_COLUMNS, SERVER_COLUMNS, Inputs  # noqa: E402
from controlplane.learned.network import Network  # noqa: E402
from controlplane.learned.schema import ActionSchema  # noqa: E402

torch.set_num_threads(1)

SCHEMAS = (
    ActionSchema(),
    ActionSchema("choice"),
    ActionSchema("discrete", levels=(1.0, 1.5, 2.0)),
    ActionSchema(row_heads=(), global_heads=("scale",)),
    ActionSchema(row_heads=("mu",), global_heads=()),
)


def some(rng: np.random.Generator, rows: int, servers: int, share: float = 0.8) -> Inputs:
    """Return inputs of which at least one server of each row is active."""
    active = rng.random((rows, servers)) < share
    active[:, rng.integers(servers)] = True
    return Inputs(
        rng.normal(size=(rows, servers, len(SERVER_COLUMNS))).astype(np.float32) * active[:, :, None],
        rng.normal(size=(rows, len(GLOBAL_COLUMNS))).astype(np.float32),
        active,
    )


@settings(max_examples=40)
@given(
    schema=st.sampled_from(SCHEMAS),
    hidden=st.integers(1, 40),
    servers=st.integers(1, 70),
    rows=st.integers(1, 4),
    seed=st.integers(0, 2**16),
)
def test_both_networks_say_the_same_for_any_size_and_mask(schema, hidden, servers, rows, seed):
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    network = RowNetwork(schema, hidden)
    twin = Network(network.parameters_numpy(), schema)
    inputs, state = some(rng, rows, servers), rng.normal(size=(rows, servers, hidden)).astype(np.float32)
    with torch.no_grad():
        ours = network(*tensors(inputs), torch.from_numpy(state))
    for theirs, mine in zip(twin.forward(inputs, state), ours, strict=True):
        np.testing.assert_allclose(mine.numpy(), theirs, rtol=1e-4, atol=2e-5)


@settings(max_examples=20)
@given(schema=st.sampled_from(SCHEMAS), servers=st.integers(2, 30), seed=st.integers(0, 2**16))
def test_outputs_move_with_the_servers(schema, servers, seed):
    rng = np.random.default_rng(seed)
    network = RowNetwork(schema, 16)
    inputs, state = some(rng, 2, servers), rng.normal(size=(2, servers, 16)).astype(np.float32)
    order = rng.permutation(servers)
    moved = Inputs(inputs.rows[:, order], inputs.whole, inputs.active[:, order])
    with torch.no_grad():
        rows, whole, after = network(*tensors(inputs), torch.from_numpy(state))
        rows_moved, whole_moved, after_moved = network(*tensors(moved), torch.from_numpy(state[:, order]))
    torch.testing.assert_close(rows_moved, rows[:, order], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(after_moved, after[:, order], rtol=1e-4, atol=1e-5)
    wanted = whole[:, :, order] if schema.kind == "choice" else whole
    torch.testing.assert_close(whole_moved, wanted, rtol=1e-4, atol=1e-5)


def test_slots_without_a_server_change_nothing():
    rng = np.random.default_rng(1)
    network = RowNetwork(ActionSchema(), 16)
    inputs, state = some(rng, 2, 5, share=1.0), rng.normal(size=(2, 5, 16)).astype(np.float32)
    wide = Inputs(
        np.concatenate([inputs.rows, np.full((2, 3, len(SERVER_COLUMNS)), 9.0, np.float32)], axis=1),
        inputs.whole,
        np.concatenate([inputs.active, np.zeros((2, 3), np.bool_)], axis=1),
    )
    with torch.no_grad():
        rows, whole, after = network(*tensors(inputs), torch.from_numpy(state))
        padded = torch.cat([torch.from_numpy(state), torch.ones(2, 3, 16)], 1)
        rows_wide, whole_wide, after_wide = network(*tensors(wide), padded)
    torch.testing.assert_close(rows_wide[:, :5], rows)
    torch.testing.assert_close(whole_wide, whole)
    torch.testing.assert_close(after_wide[:, :5], after)
    assert not after_wide[:, 5:].any()


def test_running_over_time_is_running_step_by_step_and_forgets_where_an_episode_begins():
    rng = np.random.default_rng(2)
    network = RowNetwork(ActionSchema(), 8)
    steps = [some(rng, 3, 4) for _ in range(6)]
    fresh = torch.zeros(3, 6, dtype=torch.bool)
    fresh[1, 3] = True
    state = torch.from_numpy(rng.normal(size=(3, 4, 8)).astype(np.float32))
    rows, whole, active = (torch.stack(parts, 1) for parts in zip(*map(tensors, steps), strict=True))
    with torch.no_grad():
        out_rows, out_whole, after = network.unroll(rows, whole, active, state, fresh)
        for t in range(6):
            state = state * ~fresh[:, t, None, None]
            logits, logits_all, state = network(rows[:, t], whole[:, t], active[:, t], state)
            torch.testing.assert_close(out_rows[:, t], logits, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(out_whole[:, t], logits_all, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(after, state, rtol=1e-5, atol=1e-6)


def test_the_burn_in_gives_the_same_states_and_no_gradient():
    rng = np.random.default_rng(3)
    network = RowNetwork(ActionSchema(), 8)
    steps = [some(rng, 2, 4) for _ in range(5)]
    rows, whole, active = (torch.stack(parts, 1) for parts in zip(*map(tensors, steps), strict=True))
    rows.requires_grad_(True)
    plain = network.states(rows, whole, active, network.initial(2, 4))
    warmed = network.states(rows, whole, active, network.initial(2, 4), burn_in=3)
    torch.testing.assert_close(warmed, plain)
    (gradient,) = torch.autograd.grad(warmed.square().sum(), rows)
    assert not gradient[:, :3].any()
    assert gradient[:, 3:].any()


def test_a_neutral_actor_begins_at_the_action_that_does_nothing():
    rng = np.random.default_rng(4)
    schema = ActionSchema()
    network = RowNetwork(schema, 32, neutral=True)
    with torch.no_grad():
        rows, whole, _ = network(*tensors(some(rng, 5, 7)), network.initial(5, 7))
    assert (rows.argmax(-1) == schema.zero).all()
    assert (whole.argmax(-1) == schema.zero).all()
