"""Constant corrections: what they are worth by regression, and what the network learns of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.agents import surfaces
from controlplane.agents.surfaces import LEAST, MOST, ORDERED, QUEUES, SUM_LEAST, SUM_MOST, Arms, Farm, Judge
from controlplane.learned.encoding import GLOBAL_COLUMNS, SERVER_COLUMNS
from controlplane.learned.schema import ActionSchema

torch = pytest.importorskip("torch", reason="agents need torch: pip install 'vickrey[rl]'")
torch.set_num_threads(1)

BOUNDS = {"mu": 0.5, "k": 1.0, "balancers": 0.5, "scale": 0.6, "window": 1.0}
SCHEMA = ActionSchema(row_heads=("mu",), global_heads=("balancers", "scale"), bounds=BOUNDS)
SERVERS, STEPS = 4, 4
TELLS = GLOBAL_COLUMNS.index("fct")  # an input by which the network may know the regime


MEAN = Judge(tail=0.0, worst=10.0, noise=0.015)


def farms(truth, number=60, noise=0.0, seed=1, arms=7, tail=None):
    """Farms of two regimes, half of each; truth: regime → function of u that gives y of the mean; tail: of u alone, of
    the p99, which is as the mean unless given."""
    generator, found = np.random.default_rng(seed), []
    for i in range(number):
        kind = (ORDERED, QUEUES)[i % 2]
        u = surfaces.draw(generator, arms)
        y = np.array([[truth(kind)(one), (tail or truth(kind))(one)] for one in u])
        y += noise * generator.standard_normal((arms, 2))
        load = float(generator.uniform(0.5, 0.95))
        whole = np.zeros((2, STEPS, len(GLOBAL_COLUMNS)), np.float32)
        whole[:, :, TELLS] = 1.0 if kind == ORDERED else -1.0
        rows = generator.standard_normal((2, STEPS, SERVERS, len(SERVER_COLUMNS))).astype(np.float16)
        speeds = generator.choice([1.0, 2.0, 4.0], SERVERS)
        active = np.ones(SERVERS, dtype=np.bool_)
        relative = np.broadcast_to(surfaces.relative_of(speeds, active), (2, STEPS, SERVERS)).astype(np.float16)
        active = np.broadcast_to(active, (2, STEPS, SERVERS))
        found.append(Farm(Arms(u, y, surfaces.regime_of(kind, 2), 2, load), rows, whole, active, relative))
    return found


def bowl(centre, depth=0.05):
    """y that is least at the centre."""
    return lambda u: depth * float(((u - centre) ** 2).sum() - (np.asarray(centre) ** 2).sum())


def learned(found, **settings):
    """Return the mean correction (3,) that the network makes on farms of each kind at its last look."""
    from controlplane.agents.arms import ArmsConfig, ConstantArms

    agent = ConstantArms(SCHEMA, ArmsConfig(hidden=8, **({"tail": 0.0} | settings)), 3)
    agent.take(found)
    agent.learn()
    means = {}
    for kind in (ORDERED, QUEUES):
        mine = [farm for farm in found if farm.arms.regime == surfaces.regime_of(kind, 2)]
        parts = [torch.from_numpy(np.stack([getattr(f, k)[0] for f in mine])) for k in ("rows", "whole", "active")]
        relative = torch.from_numpy(np.stack([farm.relative[0] for farm in mine])).float()
        with torch.no_grad():
            u, _ = agent._acts(agent.network, parts[0].float(), parts[1], parts[2], relative)
        means[kind] = u[:, -1].mean(0).numpy()
    return means


@given(st.integers(0, 2**32 - 1), st.integers(0, 20))
def test_what_is_tried_lies_in_the_box(seed, number):
    u = surfaces.draw(np.random.default_rng(seed), number)
    assert u.shape == (number, 3)
    assert ((u >= LEAST) & (u <= MOST)).all()
    total = -u[:, 0] + u[:, 1] + u[:, 2]
    assert ((total > SUM_LEAST) & (total < SUM_MOST)).all()


def test_a_surface_of_second_degree_is_found_again_from_many_farms():
    found = [farm.arms for farm in farms(lambda kind: bowl([-0.2, 0.3, 0.1]), number=400, noise=0.002)]
    table = surfaces.surfaces(found, np.arange(400), MEAN)
    # 0.05·|u − u₀|² − 0.05·|u₀|², term by term
    np.testing.assert_allclose(table.mean(axis=0), [0.02, -0.03, -0.01, 0.05, 0.05, 0.05, 0, 0, 0], atol=0.004)


def test_the_base_policys_chance_which_all_ratios_share_is_not_taken_for_worth():
    """y is a ratio to one episode of the base policy: an unlucky one makes every correction look good."""
    truth, generator, found = bowl([-0.2, 0.3, 0.1]), np.random.default_rng(7), []
    for farm in farms(lambda kind: truth, noise=0.002):
        found.append(replace(farm.arms, y=farm.arms.y + 0.1 * generator.standard_normal()))
    u = surfaces.draw(np.random.default_rng(5), 200)
    worth = surfaces.surfaces(found, np.arange(60), MEAN) @ surfaces.terms(u).T
    # 0.02 to 0.03 if the ratios counted each for itself
    assert np.sqrt(np.mean((worth - [truth(one) for one in u]) ** 2)) < 0.01


def test_where_nothing_is_known_every_correction_costs():
    found = [farm.arms for farm in farms(lambda kind: bowl([0.3, 0, 0]), number=2)]
    table = surfaces.surfaces(found, np.array([], dtype=np.intp), MEAN)
    worth = table @ surfaces.terms(surfaces.draw(np.random.default_rng(5), 50)).T
    assert (worth > 0).all()


def test_more_episodes_leave_less_doubt():
    def doubt(number):
        found = [farm.arms for farm in farms(lambda kind: bowl([0.2, 0.2, 0.2]), number=number, noise=0.05)]
        drawn = surfaces.doubted(found, np.random.default_rng(1), 40, MEAN)
        return float((drawn @ surfaces.terms(np.array([0.3, 0.3, 0.3]))).std(axis=0).mean())

    assert doubt(400) < 0.5 * doubt(40)


def test_the_network_learns_each_regimes_own_correction_where_it_can_tell_them_apart():
    best = {ORDERED: [-0.5, 0.3, 0.2], QUEUES: [0.3, -0.2, 0.0]}
    means = learned(
        farms(lambda kind: bowl(best[kind], depth=0.1)), worst=1.0, epochs=120, learning_rate=0.01, doubt=0.0
    )
    for kind, centre in best.items():
        np.testing.assert_allclose(means[kind], centre, atol=0.15)


def test_what_the_episodes_leave_in_doubt_is_not_done():
    """What costs as much in one regime as it gains in the other, and episodes of pure chance."""
    truth = bowl([0.0, 0.4, 0.0], depth=0.03)

    def done(noise, doubt):
        found = farms(lambda kind: truth, number=80, noise=noise)
        return learned(found, epochs=60, learning_rate=0.01, doubt=doubt)[ORDERED]

    assert done(0.002, 6.0)[1] > 0.25
    assert abs(done(0.5, 6.0)).max() < 0.1
    assert abs(done(0.5, 0.0)).max() > 0.3


def test_the_p99_counts_beside_the_mean():
    """What is good for the mean and bad for the tail is done by half when both count alike."""
    found = farms(lambda kind: bowl([0.0, 0.6, 0.0], depth=0.1), tail=bowl([0.0, 0.0, 0.0], depth=0.1))

    def done(tail):
        return learned(found, worst=1.0, epochs=60, learning_rate=0.01, doubt=0.0, tail=tail)[ORDERED][1]

    assert done(0.0) > 0.5
    assert 0.2 < done(1.0) < 0.4


def test_bids_lean_towards_fast_servers_no_more_than_they_may():
    found = farms(lambda kind: bowl([0.0, 0.0, 0.8], depth=0.1))

    def lean(**settings):
        return learned(found, worst=1.0, epochs=60, learning_rate=0.01, doubt=0.0, **settings)[ORDERED][2]

    assert lean(lean=1.0) > 0.6
    assert 0.1 < lean(lean=0.2) < 0.3


def test_no_correction_is_where_it_begins():
    from controlplane.agents.arms import ConstantArms
    from controlplane.learned.encoding import Inputs
    from controlplane.learned.network import Network, decide

    network = Network(ConstantArms(SCHEMA, seed=4).parameters(), SCHEMA)
    generator = np.random.default_rng(1)
    inputs = Inputs(
        generator.standard_normal((2, 5, len(SERVER_COLUMNS))).astype(np.float32),
        generator.standard_normal((2, len(GLOBAL_COLUMNS))).astype(np.float32),
        np.ones((2, 5), dtype=np.bool_),
    )
    rows, whole, _ = network.forward(inputs, network.initial(2, 5))
    action = SCHEMA.to_action(*decide(SCHEMA, rows, whole, "mean"))
    np.testing.assert_allclose(action, 0.0, atol=1e-7)


def test_corrections_are_what_the_environments_take_for_them():
    """K, c and δμ = m · log(capacity / geometric mean), in parts of their bounds."""
    u = np.array([[-1.0, 0.5, 0.5]])
    active = np.array([True, True, False])
    relative = surfaces.relative_of(np.array([4.0, 1.0, 9.0]), active)
    np.testing.assert_allclose(relative, [np.log(2.0), -np.log(2.0), 0.0])
    rows, whole = surfaces.corrections(SCHEMA, u, relative[None])
    np.testing.assert_allclose(whole, [[-1.0, 0.5]])
    np.testing.assert_allclose(rows[0, :, 0], 0.5 * surfaces.PART * relative)


def test_farms_where_no_flow_ended_tell_nothing():
    from controlplane.agents.arms import ArmsConfig, ConstantArms

    found = farms(lambda kind: bowl([0.2, 0, 0]), number=8)
    dead = farms(lambda kind: lambda u: float("nan"), number=4, seed=2)
    one, other = (ConstantArms(SCHEMA, ArmsConfig(hidden=4, epochs=2), 1) for _ in range(2))
    one.take([*found, *dead])
    other.take(found)
    assert one.learn() == other.learn() != {}
    for name, value in one.parameters().items():
        np.testing.assert_array_equal(value, other.parameters()[name])


def test_the_network_is_learned_where_it_is_asked_for_and_from_farms_that_came_since():
    from controlplane.agents.arms import ArmsConfig, ConstantArms

    def agent():
        return ConstantArms(SCHEMA, ArmsConfig(hidden=4, epochs=2), 1)

    found, one = farms(lambda kind: bowl([0.2, 0, 0]), number=24), agent()
    before = one.parameters()
    one.take(found[:16])
    np.testing.assert_equal(one.parameters(), before)
    assert one.learn() != {}
    between = one.parameters()
    assert one.learn() == {}  # nothing new
    one.take(found[16:])
    np.testing.assert_equal(one.parameters(), between)

    # A checkpoint that was written before the network was learned goes on as if there had been none.
    again = agent()
    again.load_state_dict(one.state_dict())
    np.testing.assert_equal(again.parameters(), between)
    assert again.learn() == one.learn() != {}
    np.testing.assert_equal(again.parameters(), one.parameters())
    with pytest.raises(AssertionError):
        np.testing.assert_equal(one.parameters(), between)


def test_of_a_few_farms_nothing_is_learned():
    """Drawn with replacement, a few farms look surer than they are."""
    found = [farm.arms for farm in farms(lambda kind: bowl([0.4, 0.4, 0.4]), number=14, noise=0.05)]
    drawn = surfaces.doubted(found, np.random.default_rng(1), 10, replace(MEAN, worst=0.15))
    worth = drawn @ surfaces.terms(surfaces.draw(np.random.default_rng(5), 50)).T
    assert (worth > 0).all()


@pytest.mark.parametrize(
    "changed",
    [
        {"row_heads": ("mu", "mu")},
        {"row_heads": ("mu", "k")},
        {"global_heads": ("balancers", "scale", "window")},
        {"kind": "weights"},
        {"bounds": BOUNDS | {"mu": 0.0}},
    ],
)
def test_other_heads_are_refused(changed):
    with pytest.raises(ValueError, match="expected"):
        surfaces.units_of(
            ActionSchema(
                **({"row_heads": ("mu",), "global_heads": ("balancers", "scale")} | {"bounds": BOUNDS} | changed)
            )
        )
