"""Learning from records: what datasets become, and agents that must beat what was recorded on an exact problem."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch", reason="needs vickrey[rl]: torch is not installed")

from controlplane.agents import agent_class  # noqa: E402
from controlplane.agents.batch import Transition, tensors  # noqa: E402
from controlplane.agents.bcq import BatchConstrainedQ, ConstrainedConfig, allowed  # noqa: E402
from controlplane.agents.cloning import BehaviourCloning  # noqa: E402
from controlplane.agents.cql import ConservativeConfig, ConservativeQ, penalty  # noqa: E402
from controlplane.agents.exact import gap  # noqa: E402
from controlplane.agents.offline import OfflineConfig, levels_of, record, steps  # noqa: E402
from controlplane.env import LoadBalance  # noqa: E402
from controlplane.env.dataset import Buffer, Dataset, DatasetError, Recorder, read_dataset  # noqa: E402
from controlplane.env.routing import Chain, Farm, Routing, RoutingVector  # noqa: E402
from controlplane.learned.encoding import GLOBAL_COLUMNS, SERVER_COLUMNS, Inputs  # noqa: E402
from controlplane.learned.schema import ActionSchema  # noqa: E402

torch.set_num_threads(1)

CHOICE, CURVES = ActionSchema("choice"), ActionSchema()
FARM = Farm(speeds=(4.0, 1.0), load=0.7, room=30)
# The state is all there is to know: nothing to remember.
EXACT = {"hidden": 16, "memory": False, "learning_rate": 2e-3, "batch": 256, "length": 1, "burn_in": 0}


# What datasets become


def raw(n: int, **columns: Any) -> Dataset:
    """Return a dataset of n transitions of two servers, with the inputs themselves: in them all the step's number."""
    rows = np.arange(n, dtype=np.float32)[:, None, None] * np.ones((n, 2, len(SERVER_COLUMNS)), dtype=np.float32)
    whole = np.zeros((n, len(GLOBAL_COLUMNS)), dtype=np.float32)
    seen = {"rows": rows, "whole": whole, "active": np.ones((n, 2), dtype=np.int8)}
    given: dict[str, Any] = {
        **{f"observation.{name}": x for name, x in seen.items()},
        **{f"next_observation.{name}": x + (name == "rows") * 0.5 for name, x in seen.items()},
        "action": np.zeros(n, dtype=np.int64),
        "reward": np.arange(n, dtype=np.float64),
        "terminated": np.zeros(n, dtype=np.bool_),
        "truncated": np.zeros(n, dtype=np.bool_),
        "episode": np.zeros(n, dtype=np.int64),
        "cost": np.ones(n),
    }
    return Dataset(given | columns, {"environment": {"action": "choice"}})


def test_episodes_come_one_after_the_other_each_with_its_last_observation() -> None:
    # Two environments' transitions, as a vector records them; the first one's episode ends by itself.
    data = raw(4, episode=np.array([0, 1, 0, 1]), terminated=np.array([False, False, True, False]))
    taken = list(steps(data, CHOICE, OfflineConfig(hidden=4, cost_weight=10.0)))
    seen = [float(step.inputs.rows[0, 0, 0]) for step in taken]
    assert seen == [0.0, 2.0, 1.0, 3.0, 3.5]  # 3.5: what the last step of the second led to
    assert [bool(step.fresh[0]) for step in taken] == [True, False, True, False, False]
    assert [bool(step.done[0]) for step in taken] == [False, True, False, False, False]
    assert [float(step.reward[0]) for step in taken[:4]] == [-10.0, -8.0, -9.0, -7.0]


def test_a_step_is_learned_from_when_its_successor_is_known_or_none_is_needed() -> None:
    data = raw(4, episode=np.array([0, 1, 0, 1]), terminated=np.array([False, False, True, False]))
    agent = BehaviourCloning(CHOICE, OfflineConfig(hidden=4, length=4, burn_in=0))
    agent.load(data)
    batch = agent.replay.sample(agent.rng, 1)
    assert batch.valid.tolist() == [[True, True, True, True]]


def test_continuous_actions_are_taken_for_the_nearest_levels() -> None:
    # K, c, window, then δμ and δk of two servers; levels −1, −0.5, 0, 0.5, 1.
    action = np.array([[0.9, -0.3, 0.0, 0.2, -1.0, 0.3, 0.74]])
    data = Dataset(raw(1).columns | {"action": action}, {"environment": {"action": "curves"}})
    rows, whole, off = levels_of(data, CURVES, 2)
    assert whole.tolist() == [[4, 1, 2]]
    assert rows.tolist() == [[[2, 0], [3, 3]]]
    assert off == pytest.approx((0.1 + 0.2 + 0.0 + 0.2 + 0.0 + 0.2 + 0.24) / 7)


@pytest.mark.parametrize(
    ("columns", "meta", "schema", "told"),
    [
        ({}, {"environment": {"action": "discrete"}}, CHOICE, "kind discrete"),
        ({"action": np.zeros((3, 5))}, {"environment": {"action": "curves"}}, CURVES, r"shape \(5,\).*shape \(7,\)"),
        ({"action": np.array([0, 1, 2])}, {}, CHOICE, "actions up to 2, expected 0 to 1"),
        ({"observation.rows": None}, {}, CHOICE, "expected columns observation.servers"),
    ],
)
def test_a_dataset_of_another_kind_is_refused(columns: Any, meta: Any, schema: ActionSchema, told: str) -> None:
    given = {key: x for key, x in (raw(3).columns | columns).items() if x is not None}
    with pytest.raises(DatasetError, match=told):
        list(steps(Dataset(given, meta), schema, OfflineConfig(hidden=4)))


def test_a_run_of_an_environment_can_be_learned_from(tmp_path: Path) -> None:
    env = Recorder(LoadBalance(base="gsed", reward="fct_mean"), tmp_path / "run.npz")
    env.reset(seed=1)
    env.action_space.seed(1)
    for _ in range(60):
        env.step(env.action_space.sample())
    env.close()
    agent = ConservativeQ(CURVES, ConservativeConfig(hidden=8, length=4, burn_in=2, batch=8))
    agent.load(read_dataset(tmp_path / "run.npz"))
    assert agent.off_grid == pytest.approx(0.125, abs=0.01)  # of even actions, between levels 0.5 apart
    assert all(np.isfinite(x) for x in agent.learn().values())


def test_a_recorded_routing_environment_has_the_inputs_themselves() -> None:
    env = Recorder(Routing(FARM))
    env.reset(seed=1)
    for i in range(20):
        env.step(np.int64(i % 2))
    data = env.buffer.dataset()
    taken = list(steps(data, CHOICE, OfflineConfig(hidden=4)))
    assert len(taken) == 21
    np.testing.assert_array_equal(taken[3].inputs.rows[0], data.columns["observation.rows"][3])


# Agents


def behaviour(farm: Farm) -> NDArray[np.float64]:
    """Return a mediocre policy's probabilities, (S, n): the shorter queue seven times of ten, else any."""
    states = farm.states
    chances = np.full(states.shape, 0.15)
    chances[np.arange(len(states)), states.argmin(axis=1)] = 0.85
    return chances


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """What that policy did, 19,200 times, through a file."""
    rows, length, rng = 64, 300, np.random.default_rng(1)
    env, chances, buffer = RoutingVector(FARM, rows), behaviour(FARM), Buffer({"environment": {"action": "choice"}})
    env.reset(seed=1)
    none, hidden = np.zeros((rows, 2, 0), dtype=np.int64), np.zeros((rows, 2, 1), dtype=np.float32)
    for step in range(length):
        at, seen = np.ravel_multi_index(tuple(env.in_flight.T), FARM.shape), env.inputs
        action = (rng.random(rows) > chances[at, 0]).astype(np.int64)
        _, reward, done, *_ = env.step(action)
        fresh, costs = np.full(rows, step == 0), np.zeros((rows, 0), dtype=np.float32)
        made = Transition(seen, none, action[:, None], reward.astype(np.float32), costs, done, fresh, hidden)
        record(buffer, made, env.inputs, action, np.arange(rows), policy="shorter queue")
    path = tmp_path_factory.mktemp("offline") / "behaviour.npz"
    buffer.save(path)
    return read_dataset(path)


def trained(name: str, data: Dataset, updates: int, **config: Any) -> Any:
    kind = agent_class(name)
    agent: Any = kind(CHOICE, kind.config_class(**EXACT | config), seed=1)
    agent.load(data)
    for _ in range(updates):
        agent.learn()
    return agent


def test_cloning_does_what_was_recorded_as_often(recorded: Dataset) -> None:
    agent = trained("bc", recorded, 200)
    rows, whole, active = tensors(FARM.inputs)
    with torch.no_grad():
        _, logits, _ = agent.network(rows, whole, active, agent.network.initial(len(rows), 2))
    chances = torch.softmax(logits[:, 0], -1).nan_to_num().numpy()  # NaN where no server has room
    visits = np.zeros(len(chances))
    found = np.rint(np.exp(recorded.columns["observation.rows"][:, :, 0] + 1.0) - 1.0).astype(np.int64)
    np.add.at(visits, np.ravel_multi_index(tuple(found.T), FARM.shape), 1.0 / len(found))
    assert (visits[:, None] * np.abs(chances - behaviour(FARM))).sum() < 0.12
    # Its likeliest choice is the shorter queue, 18.5 % above the optimum.
    chain = Chain(FARM)
    shorter = chain.mean_time(behaviour(FARM).argmax(axis=1).reshape(FARM.shape)) / chain.optimum()[0] - 1.0
    assert shorter == pytest.approx(0.185, abs=0.001)
    assert gap(agent, chain) == pytest.approx(shorter, abs=0.03)


def test_cql_learns_what_is_better_than_the_record(recorded: Dataset) -> None:
    agent = trained("cql", recorded, 300, weight=0.05, target_rate=0.02)
    assert gap(agent, Chain(FARM)) < 0.08  # cloning: 0.185


def test_bcq_learns_what_is_better_than_the_record(recorded: Dataset) -> None:
    # What was done three times of twenty is allowed: 0.15 / 0.85 is above 0.1.
    agent = trained("bcq", recorded, 300, threshold=0.1, target_rate=0.02)
    assert gap(agent, Chain(FARM)) < 0.08


# For choices that end at once, few at a time.
SINGLE: dict[str, Any] = {"normalise_reward": False, "batch": 64, "learning_rate": 5e-3}


def untried() -> Dataset:
    """Return 400 single choices among five servers, of which only the first two were ever chosen. Server i's column
    and its reward are i: whoever extrapolates thinks the most of those that were never tried."""
    n, rng = 400, np.random.default_rng(2)
    rows = np.zeros((n, 5, len(SERVER_COLUMNS)), dtype=np.float32)
    rows[:, :, 0] = np.arange(5)
    whole = np.zeros((n, len(GLOBAL_COLUMNS)), dtype=np.float32)
    seen = {"rows": rows, "whole": whole, "active": np.ones((n, 5), dtype=np.int8)}
    action = rng.integers(0, 2, n)
    return raw(
        n,
        **{f"{prefix}.{name}": x for prefix in ("observation", "next_observation") for name, x in seen.items()},
        action=action,
        reward=action + 0.1 * rng.normal(size=n),
        terminated=np.ones(n, dtype=np.bool_),
        episode=np.arange(n),
    )


def values_of(agent: Any) -> NDArray[np.float32]:
    """Return the values of the five servers."""
    data = untried().columns
    inputs = Inputs(data["observation.rows"][:1], data["observation.whole"][:1], np.ones((1, 5), dtype=np.bool_))
    with torch.no_grad():
        _, whole, _ = agent.actor()(*tensors(inputs), torch.zeros(1, 5, 16))
    found: NDArray[np.float32] = whole[0, 0].numpy()
    return found


def test_cql_thinks_little_of_what_was_never_tried() -> None:
    plain, careful = (values_of(trained("cql", untried(), 150, weight=weight, **SINGLE)) for weight in (0.0, 0.3))
    assert plain[:2] == pytest.approx([0.0, 1.0], abs=0.15)
    assert plain[2:].max() > 1.1  # double Q-learning believes that it goes on like this
    assert careful[2:].max() < careful[1]
    assert careful[1] > careful[0]  # and still knows which of those tried is better
    assert careful[2:].max() < plain[2:].max() - 0.5


def test_bcq_chooses_among_what_was_tried() -> None:
    agent = trained("bcq", untried(), 150, **SINGLE)
    assert values_of(agent).argmax() == 1


def test_what_is_allowed_is_relative_to_the_likeliest() -> None:
    logits = torch.log(torch.tensor([[[0.6, 0.3, 0.1]]]))
    none = torch.zeros(1, 2, 0, 0)
    assert allowed((none, logits), 0.4)[1].tolist() == [[[True, True, False]]]  # 1, 0.5, 0.17
    assert allowed((none, logits), 1.0)[1].tolist() == [[[True, False, False]]]
    shut = logits.clone()
    shut[..., 1] = -torch.inf
    assert allowed((none, shut), 0.0)[1].tolist() == [[[True, False, True]]]


def test_the_penalty_is_how_far_the_recorded_level_is_from_the_softest_greatest() -> None:
    # Values 1, 2, 3 of one head: log(e + e² + e³) = 3.4076; level 1 was recorded: 1.4076.
    q = torch.tensor([[[1.0, 2.0, 3.0]]])
    got = penalty(
        (torch.zeros(1, 1, 0, 3), q),
        (torch.zeros(1, 1, 0, dtype=torch.int64), torch.tensor([[1]])),
        torch.ones(1, 1, dtype=torch.bool),
    )
    assert float(got) == pytest.approx(1.4076, abs=1e-4)


def test_offline_agents_do_not_explore_but_cloning_draws() -> None:
    inputs = FARM.inputs
    for kind, config in ((ConservativeQ, ConservativeConfig), (BatchConstrainedQ, ConstrainedConfig)):
        agent: Any = kind(CHOICE, config(**EXACT))
        hidden = agent.initial(len(inputs.rows), 2)
        np.testing.assert_array_equal(agent.act(inputs, hidden, True)[1], agent.act(inputs, hidden, False)[1])
    cloned = BehaviourCloning(CHOICE, OfflineConfig(**EXACT))
    assert len(np.unique(cloned.act(inputs, cloned.initial(len(inputs.rows), 2), True)[1])) == 2
