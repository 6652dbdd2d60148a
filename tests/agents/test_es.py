"""The evolution strategy: its ranks, its networks side by side, and that it finds an optimum."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.agents.es import (
    EvolutionConfig,
    EvolutionStrategy,
    Members,
    centred_ranks,
    initial,
    scales,
    unpack,
)
from controlplane.learned.encoding import GLOBAL_COLUMNS, SERVER_COLUMNS, Inputs
from controlplane.learned.network import Network, decide
from controlplane.learned.schema import ActionSchema


def inputs_of(rng, rows, servers):
    active = rng.random((rows, servers)) < 0.8
    active[:, 0] = True
    x = rng.normal(size=(rows, servers, len(SERVER_COLUMNS))).astype(np.float32) * active[:, :, None]
    return Inputs(x, rng.normal(size=(rows, len(GLOBAL_COLUMNS))).astype(np.float32), active)


SCHEMAS = [
    ActionSchema(),
    ActionSchema(row_heads=(), global_heads=("scale",)),
    ActionSchema("weights"),
    ActionSchema("choice"),
]


@settings(max_examples=20)
@given(
    schema=st.sampled_from(SCHEMAS),
    members=st.integers(1, 4),
    each=st.integers(1, 3),
    servers=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
def test_members_side_by_side_do_what_each_network_does_alone(schema, members, each, servers, seed):
    rng = np.random.default_rng(seed)
    vectors = np.stack([initial(schema, 6, rng) for _ in range(members)])
    vectors += rng.normal(size=vectors.shape).astype(np.float32) * 0.3
    inputs = inputs_of(rng, members * each, servers)
    hidden = rng.normal(size=(members * each, servers, 6)).astype(np.float32)
    together = Members(vectors, schema, 6).forward(inputs, hidden)
    for m in range(members):
        own = slice(m * each, (m + 1) * each)
        network = Network(unpack(vectors[m], schema, 6), schema)
        alone = network.forward(Inputs(inputs.rows[own], inputs.whole[own], inputs.active[own]), hidden[own])
        for one, all_ in zip(alone, together, strict=True):
            np.testing.assert_allclose(all_[own], one, rtol=1e-4, atol=1e-5)


def test_it_begins_at_the_action_that_does_nothing():
    schema, rng = ActionSchema(), np.random.default_rng(1)
    network = Network(unpack(initial(schema, 8, rng), schema, 8), schema)
    rows, whole, _ = network.forward(inputs_of(rng, 3, 4), network.initial(3, 4))
    for values in decide(schema, rows, whole, "mean"):
        np.testing.assert_allclose(values, 0.0, atol=1e-6)


def test_ranks_are_centred_and_what_is_not_finite_is_last():
    # four values: ranks 0, 1, 2, 3 of 3, less a half
    np.testing.assert_allclose(centred_ranks(np.array([3.0, -1.0, np.nan, 0.5])), [0.5, -1 / 6, -0.5, 1 / 6])
    np.testing.assert_allclose(centred_ranks(np.array([1.0, 1.0])), [0.0, 0.0])


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=20))
def test_ranks_do_not_depend_on_the_fitness_unit(values):
    x = np.array(values)
    np.testing.assert_array_equal(centred_ranks(x), centred_ranks(4.0 * x))  # exact: a power of two


def test_it_finds_the_optimum_of_a_quadratic_under_noise():
    # fitness −|θ − θ*|² in units of each parameter's scale: from distance 1 a parameter to a tenth of it
    strategy = EvolutionStrategy(
        ActionSchema(row_heads=(), global_heads=("scale",)), EvolutionConfig(hidden=2, pairs=24, sigma=0.1), seed=3
    )
    rng = np.random.default_rng(4)
    scale = scales(strategy.schema, 2)
    goal = strategy.centre + scale * rng.choice([-1.0, 1.0], len(scale)).astype(np.float32)

    def distance(x):
        return np.square((x - goal) / scale).mean(axis=-1)

    for _ in range(150):
        strategy.tell(-distance(strategy.ask()) + 0.003 * rng.normal(size=48))
    assert distance(strategy.centre) < 0.1


def test_heads_alone_learn_over_features_that_stay():
    schema = ActionSchema(levels=(-1.0, 0.0, 1.0), row_heads=("mu",), global_heads=("scale",))
    strategy = EvolutionStrategy(schema, EvolutionConfig(hidden=4, pairs=4, learns="heads", weight_decay=0.01), seed=2)
    before = strategy.parameters()
    members = strategy.ask()
    figures = strategy.tell(-np.square(members - 0.3).sum(axis=1).astype(np.float64))
    assert all(np.isfinite(value) for value in figures.values())
    after = strategy.parameters()
    for name in before:
        head = name.partition(".")[0] in ("row", "all")
        assert (before[name] != after[name]).any() == head, name
        tried = [unpack(member, schema, 4)[name] for member in members]
        assert all((one != before[name]).any() == head for one in tried), name
    with pytest.raises(ValueError, match="all or heads"):
        EvolutionConfig(learns="some")  # type: ignore[arg-type]


def test_it_goes_on_from_a_state_to_the_bit():
    def fitness(members):
        return -np.square(members - 0.3).sum(axis=1).astype(np.float64)

    config = EvolutionConfig(hidden=2, pairs=3)
    one = EvolutionStrategy(ActionSchema(), config, seed=5)
    for _ in range(3):
        one.tell(fitness(one.ask()))
    two = EvolutionStrategy(ActionSchema(), config, seed=0)
    two.load_state_dict(one.state_dict())
    for strategy in (one, two):
        for _ in range(2):
            strategy.tell(fitness(strategy.ask()))
    np.testing.assert_array_equal(one.centre, two.centre)


def test_a_state_of_another_agent_or_size_is_refused():
    one = EvolutionStrategy(ActionSchema(), EvolutionConfig(hidden=2))
    with pytest.raises(ValueError, match="another size"):
        EvolutionStrategy(ActionSchema(), EvolutionConfig(hidden=3)).load_state_dict(one.state_dict())
    with pytest.raises(ValueError, match="another action schema"):
        EvolutionStrategy(ActionSchema("weights"), EvolutionConfig(hidden=2)).load_state_dict(one.state_dict())
    with pytest.raises(ValueError, match="of agent sac"):
        one.load_state_dict(one.state_dict() | {"agent": "sac"})


def test_it_begins_from_an_exported_network():
    one = EvolutionStrategy(ActionSchema(), EvolutionConfig(hidden=2), seed=1)
    two = EvolutionStrategy(ActionSchema(), EvolutionConfig(hidden=2), seed=2)
    two.load_actor(one.parameters())
    np.testing.assert_array_equal(two.centre, one.centre)
    with pytest.raises(ValueError, match=r"row\.weight is missing or not of shape"):
        two.load_actor(EvolutionStrategy(ActionSchema(row_heads=("mu",)), EvolutionConfig(hidden=2)).parameters())
