"""Discrete SAC: values of joint actions by hand and by enumeration, how the reward reaches the actor, memory."""

from __future__ import annotations

import io
import itertools
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs vickrey[rl]: torch is not installed")

from controlplane.agents.batch import Transition, balancers_of  # noqa: E402
from controlplane.agents.sac import (  # noqa: E402
    SacConfig,
    SingleSoftActorCritic,
    SoftActorCritic,
    expectation,
    log_policy,
    of_chosen,
    over_heads,
    td_target,
)
from controlplane.learned.encoding import Inputs  # noqa: E402
from controlplane.learned.schema import ActionSchema  # noqa: E402
from tests.agents.play import Recall, inputs_of, sequences  # noqa: E402

torch.set_num_threads(1)

SMALL = ActionSchema(levels=(-1.0, 0.0, 1.0), row_heads=("mu",), global_heads=("scale",))


def test_a_joint_action_is_worth_the_mean_over_kinds_of_the_mean_over_active_servers():
    # two servers active of three, one row head, two heads for all: mean((1 + 3)/2, 10, 20)
    rows, whole = torch.tensor([[[1.0], [3.0], [99.0]]]), torch.tensor([[10.0, 20.0]])
    assert over_heads((rows, whole), torch.tensor([[True, True, False]])).tolist() == [pytest.approx(32 / 3)]


def test_the_soft_value_is_the_expectation_over_all_joint_actions():
    rng = np.random.default_rng(1)
    logits = (torch.from_numpy(rng.normal(size=(1, 2, 1, 3))), torch.from_numpy(rng.normal(size=(1, 2, 3))))
    q = (torch.from_numpy(rng.normal(size=(1, 2, 1, 3))), torch.from_numpy(rng.normal(size=(1, 2, 3))))
    active, alpha = torch.ones(1, 2, dtype=torch.bool), (torch.tensor([0.3]), torch.tensor([0.2, 0.5]))
    log_pi = log_policy(logits)
    value = float(over_heads(expectation(log_pi, q, alpha), active))
    # 81 joint actions: two servers and two heads for all, with three levels each.
    total = 0.0
    for a in itertools.product(range(3), repeat=4):
        numbers = torch.tensor(a[:2]).reshape(1, 2, 1), torch.tensor(a[2:]).reshape(1, 2)
        chosen, logs = of_chosen(q, numbers), of_chosen(log_pi, numbers)
        bonus = tuple(x - t * p for x, t, p in zip(chosen, alpha, logs, strict=True))
        chance = math.exp(float(logs[0].sum() + logs[1].sum()))
        total += chance * float(over_heads(bonus, active))
    assert value == pytest.approx(total, rel=1e-9)


def test_only_a_terminated_step_does_not_bootstrap():
    target = td_target(torch.tensor([1.0, 1.0]), torch.tensor([False, True]), torch.tensor([10.0, 10.0]), 0.9)
    assert target.tolist() == [pytest.approx(10.0), 1.0]


def test_the_reward_reaches_the_actor():
    # A level that the critics hold for better becomes likelier by the actor's own gradient, at every head.
    agent = SoftActorCritic(SMALL, SacConfig(hidden=16, burn_in=1, length=3, alpha=1e-3), seed=1)
    batch = sequences(SMALL, np.random.default_rng(1), 8, 5, 4, 16, burn_in=1)
    with torch.no_grad():
        for critic in agent.critics:
            for head in (critic.row, critic.all):
                head.weight.zero_()
                head.bias.copy_(torch.tensor([0.0, 0.0, 1.0]))  # one head each, three levels
    agent.losses(batch)["actor"].backward()
    for head in (agent.policy.row, agent.policy.all):
        assert head.bias.grad[2] < 0  # descending raises the logit of the best level
        assert (head.bias.grad[:2] > 0).all()
    assert agent.policy.enter.weight.grad is None  # the body is the critics'


def test_critics_train_the_body_and_targets_only_follow():
    agent = SoftActorCritic(SMALL, SacConfig(hidden=16, burn_in=1, length=3), seed=2)
    batch = sequences(SMALL, np.random.default_rng(2), 8, 5, 4, 16, burn_in=1)
    agent.losses(batch)["critic"].backward()
    assert agent.policy.cell.weight_hh.grad.abs().sum() > 0
    assert agent.policy.row.weight.grad is None
    assert all(p.grad is None for p in agent.target_body.parameters())
    before, moving = agent.target_body.mix.bias.clone(), agent.policy.mix.bias
    with torch.no_grad():
        moving.add_(1.0)
    agent.follow()
    torch.testing.assert_close(agent.target_body.mix.bias, before + agent.config.target_rate)


def test_each_kind_of_head_has_a_temperature_that_holds_its_entropy():
    agent = SoftActorCritic(SMALL, SacConfig(hidden=16, burn_in=0, length=3, target_entropy=0.5), seed=3)
    assert agent.log_alpha.shape == (2,)
    batch = sequences(SMALL, np.random.default_rng(3), 8, 4, 4, 16)
    with torch.no_grad():
        agent.policy.row.bias.copy_(torch.tensor([30.0, 0.0, 0.0]))  # no entropy: its temperature must rise
        agent.policy.all.weight.zero_()
        agent.policy.all.bias.zero_()  # all of it: must fall
    agent.losses(batch)["alpha"].backward()
    assert agent.log_alpha.grad[0] == pytest.approx(-0.5 * math.log(3), rel=1e-4)
    assert agent.log_alpha.grad[1] == pytest.approx(0.5 * math.log(3), rel=1e-4)


def test_a_server_that_is_not_active_is_never_chosen_and_leaves_no_gradient():
    schema = ActionSchema("choice")
    agent = SoftActorCritic(schema, SacConfig(hidden=16, burn_in=0, length=2), seed=4)
    rng = np.random.default_rng(4)
    inputs = inputs_of(rng, 200, 3, idle=True)
    _, chosen, _ = agent.act(inputs, agent.initial(200, 3), explore=True)
    assert set(chosen[:, 0]) == {0, 1}
    batch = sequences(schema, rng, 8, 3, 3, 16)
    batch.active[:, :, 2] = False
    batch.numbers_whole.clamp_(max=1)
    losses = agent.losses(batch)
    (losses["critic"] + losses["actor"] + losses["alpha"]).backward()
    assert all(torch.isfinite(x) for x in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in agent.networks.parameters() if p.grad is not None)


def test_an_untrained_agent_does_nothing_when_it_does_not_explore():
    schema = ActionSchema()
    agent = SoftActorCritic(schema, SacConfig(), seed=5)
    rows, whole, _ = agent.act(inputs_of(np.random.default_rng(5), 4, 6), agent.initial(4, 6), explore=False)
    assert (rows == schema.zero).all()
    assert (whole == schema.zero).all()


RECALL = SacConfig(
    hidden=16,
    gamma=0.9,
    length=4,
    burn_in=2,
    batch=32,
    warmup=500,
    capacity=20_000,
    learning_rate=5e-3,
    target_rate=0.05,
    actor_rate=1e-2,
    target_entropy=0.2,
)


def test_it_remembers_what_was_seen_three_steps_before_and_shares_one_reward_out_to_all_heads():
    agent, game = SoftActorCritic(SMALL, RECALL, seed=1), Recall(32, 3, seed=1)
    assert game.play(agent, 4, explore=False, learn=False) < 0.6
    game.play(agent, 100)
    assert game.play(agent, 4, explore=False, learn=False) > 0.9
    # The same network on another number of servers.
    assert Recall(32, 7, seed=2).play(agent, 4, explore=False, learn=False) > 0.8


def test_an_agent_that_was_saved_goes_on_as_if_it_had_not_been():
    def trained(episodes: int, agent: SoftActorCritic, game: Recall) -> SoftActorCritic:
        game.play(agent, episodes)
        return agent

    agent = trained(12, SoftActorCritic(SMALL, RECALL, seed=6), Recall(32, 3, seed=6))
    file = io.BytesIO()
    torch.save(agent.state_dict(replay=True), file)
    file.seek(0)
    other = SoftActorCritic(SMALL, RECALL, seed=7)
    other.load_state_dict(torch.load(file, weights_only=True))
    trained(4, agent, Recall(32, 3, seed=8))
    trained(4, other, Recall(32, 3, seed=8))
    for ours, theirs in zip(agent.networks.parameters(), other.networks.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert other.updates == agent.updates > 0


def test_a_state_of_another_agent_or_action_is_refused():
    agent = SoftActorCritic(SMALL, SacConfig(), seed=1)
    with pytest.raises(ValueError, match="is of agent sac"):
        SingleSoftActorCritic(SMALL, SacConfig(), seed=1).load_state_dict(agent.state_dict())
    with pytest.raises(ValueError, match="another action schema"):
        SoftActorCritic(ActionSchema(), SacConfig(), seed=1).load_state_dict(agent.state_dict())


def test_the_single_agent_sees_the_mean_and_does_the_same_at_all_balancers_of_a_replica():
    agent = SingleSoftActorCritic(SMALL, SacConfig(hidden=16), seed=1)
    rng = np.random.default_rng(1)
    seen = inputs_of(rng, 6, 4)
    whole = seen.whole.copy()
    whole[:, 1] = math.log2(3) / 2  # three balancers: two replicas
    inputs = Inputs(seen.rows, whole, seen.active)
    assert balancers_of(inputs) == 3
    rows, heads, hidden = agent.act(inputs, agent.initial(6, 4), explore=True)
    for x in (rows, heads, hidden):
        np.testing.assert_array_equal(x[0], x[1])
        np.testing.assert_array_equal(x[0], x[2])
        np.testing.assert_array_equal(x[3], x[5])
    assert (rows[0] != rows[3]).any() or (heads[0] != heads[3]).any()
    reward = np.arange(6, dtype=np.float32)
    never = np.zeros(6, np.bool_)
    agent.observe(
        Transition(inputs, rows, heads, reward, np.zeros((6, 0), np.float32), never, never, hidden, balancers=3)
    )
    stored = agent.replay.arrays
    assert stored["reward"][0].tolist() == [1.0, 4.0]
    np.testing.assert_allclose(stored["rows"][0, 0], inputs.rows[:3].mean(axis=0), rtol=1e-6)
