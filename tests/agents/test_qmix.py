"""QMIX: TorchRL's loss beside ours, and games in which choosing well takes both balancers."""

from __future__ import annotations

import copy
import itertools
import warnings
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs vickrey[rl]: torch is not installed")

from torch import Tensor, nn  # noqa: E402

from controlplane.agents.batch import tensors  # noqa: E402
from controlplane.agents.mixing import MonotoneMixer, SumMixer  # noqa: E402
from controlplane.agents.networks import RowNetwork  # noqa: E402
from controlplane.agents.qmix import QMix, QMixConfig, td_loss  # noqa: E402
from controlplane.env.routing import Chain, Farm, RoutingVector  # noqa: E402
from controlplane.learned.encoding import GLOBAL_COLUMNS, SERVER_COLUMNS  # noqa: E402
from controlplane.learned.schema import ActionSchema  # noqa: E402
from tests.agents import dispatchers  # noqa: E402
from tests.agents.two_step import GAME_A, GAME_B, inputs, play, value  # noqa: E402

torch.set_num_threads(1)

CHOICE = ActionSchema("choice")
# Uniform exploration, as in the paper's experiment; nothing to remember but the step before.
TWO_STEP = QMixConfig(
    hidden=16,
    gamma=0.99,
    learning_rate=3e-3,
    target_rate=0.05,
    batch=64,
    length=2,
    burn_in=0,
    warmup=200,
    epsilon_end=1.0,
    normalise_reward=False,
)


class Utilities(nn.Module):
    """Values of K balancers' choices at one step, nothing remembered, in the form that TorchRL takes."""

    def __init__(self, network: RowNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, rows: Tensor, whole: Tensor, active: Tensor) -> Tensor:
        """(…, K, n, F), (…, K, G), (…, K, n) → (…, K, n)."""
        each = active.shape[:-1]
        flat = rows.flatten(0, -3), whole.flatten(0, -2), active.flatten(0, -2)
        _, values, _ = self.network(*flat, self.network.initial(len(flat[2]), active.shape[-1]))
        return values.view(*each, -1)


class Mixed(nn.Module):
    """A mixer in the form that TorchRL takes: chosen values (…, K, 1) → (…, 1)."""

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, q: Tensor, rows: Tensor, whole: Tensor, active: Tensor) -> Tensor:
        return self.mixer(q.new_zeros(*active.shape, 0), q, rows, whole, active).unsqueeze(-1)


def moved(tree: dict[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
    """Move parameters a little, in place, and return them by name."""
    with torch.no_grad():
        for parameter in tree.values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return {name: parameter.detach().clone() for name, parameter in tree.items()}


@pytest.mark.parametrize("mixer_class", [MonotoneMixer, SumMixer], ids=["qmix", "vdn"])
def test_the_loss_agrees_with_torchrl_s(mixer_class: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("torchrl", reason="TorchRL, the oracle, is not installed")
        from tensordict import TensorDict
        from tensordict.nn import TensorDictModule
        from torchrl.modules import QValueModule, SafeSequential
        from torchrl.objectives.multiagent import QMixerLoss

        g = torch.Generator().manual_seed(1)
        torch.manual_seed(1)
        b, k, n, gamma = 9, 3, 4, 0.93
        network, mixer = RowNetwork(CHOICE, 8), mixer_class(CHOICE, 8, 8)
        target, target_mixer = copy.deepcopy(network), copy.deepcopy(mixer)
        seen = [("agents", name) for name in ("rows", "whole", "active")]
        utilities = TensorDictModule(Utilities(network), in_keys=seen, out_keys=[("agents", "action_value")])
        best = QValueModule(
            action_value_key=("agents", "action_value"),
            out_keys=[("agents", "action"), ("agents", "action_value"), ("agents", "chosen_action_value")],
            action_space="categorical",
        )
        mixed = TensorDictModule(
            Mixed(mixer), in_keys=[("agents", "chosen_action_value"), *seen], out_keys=["chosen_action_value"]
        )
        oracle = QMixerLoss(SafeSequential(utilities, best), mixed, action_space="categorical", delay_value=True)
        oracle.make_value_estimator(gamma=gamma)
        # Their networks that learn move away from the targets, and ours follow them.
        theirs = moved(dict(oracle.local_value_network_params.flatten_keys(".").items()), g)
        network.load_state_dict({name.split("network.", 1)[1]: x for name, x in theirs.items()})
        theirs = moved(dict(oracle.mixer_network_params.flatten_keys(".").items()), g)
        mixer.load_state_dict({name.split("mixer.", 1)[1]: x for name, x in theirs.items()})

        active = torch.rand(b, 2, k, n, generator=g) < 0.8
        active[..., 0] = True
        rows = torch.randn(b, 2, k, n, len(SERVER_COLUMNS), generator=g)
        whole = torch.randn(b, 2, k, len(GLOBAL_COLUMNS), generator=g)
        action = torch.zeros(b, k, dtype=torch.int64)
        reward, done = torch.randn(b, generator=g), torch.rand(b, generator=g) < 0.3

        def at(t: int) -> TensorDict:
            return TensorDict({"rows": rows[:, t], "whole": whole[:, t], "active": active[:, t]}, [b, k])

        batch = TensorDict({"agents": at(0), "next": {"agents": at(1)}}, [b])
        batch["agents", "action"] = action
        batch["next", "reward"], batch["next", "done"] = reward[:, None], done[:, None]
        batch["next", "terminated"] = done[:, None]
        expected = oracle(batch)["loss"]

    inputs_ = rows.transpose(1, 2), whole.transpose(1, 2), active.transpose(1, 2)  # (B, K, T, …), as sequences are

    def values(net: RowNetwork) -> tuple[Tensor, Tensor]:
        q = Utilities(net)(*inputs_).unsqueeze(-2)  # (B, K, T, 1, n)
        return q.new_zeros(b, k, 2, n, 0, 0), q

    def total(mix: nn.Module) -> Any:
        return lambda q: torch.stack(
            [mix(q[0][:, :, t], q[1][:, :, t], *(x[:, :, t] for x in inputs_)) for t in (0, 1)], 1
        )

    numbers = action.new_zeros(b, k, 2, n, 0), action[:, :, None, None].expand(b, k, 2, 1)
    loss, _ = td_loss(
        values(network),
        values(target),
        numbers,
        total(mixer),
        total(target_mixer),
        reward[:, None],
        done[:, None],
        torch.ones(b, 1, dtype=torch.bool),
        gamma=gamma,
        double=False,  # TorchRL lets the target network choose as well
    )
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    assert float(loss.detach()) > 0.1


def test_the_learning_network_chooses_and_the_target_network_judges() -> None:
    # One balancer, one head of three levels. The learning network prefers level 2 next, which the target network
    # thinks is worth 5 (it prefers level 0, worth 9). r = 1, γ = 0.5: y = 1 + 0.5 · 5 = 3.5, not 5.5; Q = 2.
    def over(now: list[float], after: list[float]) -> tuple[Tensor, Tensor]:
        q = torch.tensor([now, after]).view(1, 1, 2, 1, 3)
        return torch.zeros(1, 1, 2, 1, 0, 3), q

    def plain(q: tuple[Tensor, Tensor]) -> Tensor:
        return q[1].sum((1, 3))

    arguments: Any = (
        over([2, 0, 0], [0, 1, 2]),
        over([0, 0, 0], [9, 7, 5]),
        (torch.zeros(1, 1, 2, 1, 0, dtype=torch.int64), torch.zeros(1, 1, 2, 1, dtype=torch.int64)),
        plain,
        plain,
        torch.tensor([[1.0]]),
        torch.tensor([[False]]),
        torch.tensor([[True]]),
    )
    assert float(td_loss(*arguments, gamma=0.5, double=True)[0]) == pytest.approx((3.5 - 2) ** 2)
    assert float(td_loss(*arguments, gamma=0.5, double=False)[0]) == pytest.approx((5.5 - 2) ** 2)


def test_the_two_step_game_is_solved() -> None:
    agent = QMix(CHOICE, TWO_STEP, seed=1)
    play(agent, 400)
    assert value(agent) == 8.0
    # Table 3 of the paper (its γ = 0.99): the value of every joint choice of every state is met.
    np.testing.assert_allclose(joint_values(agent), np.stack([[[6.93] * 2, [7.92] * 2], GAME_A, GAME_B]), atol=0.2)


def joint_values(agent: QMix) -> Any:
    """Return Q_tot of every joint choice in the first state, in A and in B, (3, 2, 2)."""
    hidden, found = torch.zeros(2, 2, agent.config.hidden), []
    before = hidden
    with torch.no_grad():
        for state in range(3):
            rows, whole, active = tensors(inputs(np.array([state])))
            _, q, after = agent.utility(rows, whole, active, before)
            before = after if state == 0 else before
            for i, j in itertools.product(range(2), repeat=2):
                utilities = torch.stack([q[0, 0, i], q[1, 0, j]]).view(1, 2, 1)
                found.append(
                    float(agent.mixer(torch.zeros(1, 2, 2, 0), utilities, rows[None], whole[None], active[None]))
                )
    return np.reshape(found, (3, 2, 2))


def test_two_dispatchers_come_within_one_per_cent_of_the_optimum() -> None:
    farm = Farm(speeds=(4.0, 1.0), load=0.7, room=30)
    config = QMixConfig(
        memory=False,
        gamma=0.97,
        learning_rate=5e-3,
        target_rate=0.1,
        embed=16,
        mixer_hidden=16,
        batch=256,
        length=1,
        burn_in=0,
        warmup=4000,
        epsilon=0.5,
        epsilon_updates=200,
    )
    agent, env, rng = QMix(CHOICE, config, seed=1), RoutingVector(farm, 128), np.random.default_rng(1)
    env.reset(seed=1)
    for steps in (250, 50, 100):
        dispatchers.train(agent, env, steps, rng)
        for group in agent.optimizer.param_groups:
            group["lr"] /= 4
    assert dispatchers.gap(agent, Chain(farm)) < 0.01  # shortest expected delay: 0.094


def test_a_few_heads_try_something_else_however_many_there_are() -> None:
    agent = QMix(ActionSchema(), QMixConfig(epsilon=2.0))
    rows = np.zeros((4000, 8, 2, 5), dtype=np.float32)
    whole = np.zeros((4000, 3, 5), dtype=np.float32)
    rows[..., 3] = whole[..., 3] = 1.0
    active = np.ones((4000, 8), dtype=np.bool_)
    tried = agent.choose(rows, whole, active, True)
    # Two of 19 heads on average, of which a fifth draw the best level all the same.
    other = sum((numbers != 3).sum(axis=tuple(range(1, numbers.ndim))) for numbers in tried)
    assert np.mean(other) == pytest.approx(2.0 * 4 / 5, abs=0.1)
    assert all((numbers == 3).all() for numbers in agent.choose(rows, whole, active, False))


def test_what_cannot_be_chosen_is_never_tried() -> None:
    agent = QMix(CHOICE, QMixConfig(epsilon=1.0))
    whole = np.tile(np.array([1.0, -np.inf, 0.0], dtype=np.float32), (500, 1, 1))
    rows, active = np.zeros((500, 3, 0, 0), dtype=np.float32), np.tile([True, False, True], (500, 1))
    _, chosen = agent.choose(rows, whole, active, True)
    assert set(chosen.ravel().tolist()) == {0, 2}
