"""Discrete SAC's losses beside TorchRL's DiscreteSACLoss: the same weights, the same batch, the same numbers.

One head (kind `choice`: a server), no memory, sequences of one step. TorchRL's critics are copies of one module: each
gets the weights of the body and of its own head.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs vickrey[rl]: torch is not installed")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    tensordict = pytest.importorskip("tensordict", reason="TorchRL is the oracle here: tensordict is not installed")
    pytest.importorskip("torchrl", reason="TorchRL is the oracle here: torchrl is not installed")
    from tensordict.nn import TensorDictModule
    from torchrl.data import Categorical as CategoricalSpec
    from torchrl.modules import ProbabilisticActor
    from torchrl.objectives import DiscreteSACLoss

from torch import Tensor, nn  # noqa: E402

from controlplane.agents.batch import Sequences  # noqa: E402
from controlplane.agents.networks import Heads, RowNetwork  # noqa: E402
from controlplane.agents.sac import SacConfig, SoftActorCritic  # noqa: E402
from controlplane.learned.encoding import GLOBAL_COLUMNS, SERVER_COLUMNS  # noqa: E402
from controlplane.learned.schema import ActionSchema  # noqa: E402

torch.set_num_threads(1)
pytestmark = pytest.mark.filterwarnings("ignore")  # TorchRL's own

SERVERS, BATCH, GAMMA = 4, 32, 0.9


class Logits(nn.Module):
    """A body and heads upon it as one module from observation to a number a server."""

    def __init__(self, body: RowNetwork, heads: Heads) -> None:
        super().__init__()
        self.body, self.top = body, heads

    def forward(self, rows: Tensor, whole: Tensor) -> Tensor:
        active = torch.ones(rows.shape[:-1], dtype=torch.bool)
        state = self.body.body(rows, whole, active, rows.new_zeros(*rows.shape[:-1], self.body.hidden))
        return self.top.heads(state, active)[1].squeeze(-2)


def batch_of(rng: np.random.Generator) -> tuple[Sequences, Any]:
    """Return the same transitions as our sequences of one step and as a TensorDict."""
    rows = torch.from_numpy(rng.normal(size=(BATCH, 2, SERVERS, len(SERVER_COLUMNS))).astype(np.float32))
    whole = torch.from_numpy(rng.normal(size=(BATCH, 2, len(GLOBAL_COLUMNS))).astype(np.float32))
    action = torch.from_numpy(rng.integers(0, SERVERS, (BATCH, 2, 1)))
    reward = torch.from_numpy(rng.normal(size=(BATCH, 2)).astype(np.float32))
    done = torch.from_numpy(rng.random((BATCH, 2)) < 0.3)
    ours = Sequences(
        rows,
        whole,
        torch.ones(BATCH, 2, SERVERS, dtype=torch.bool),
        torch.zeros(BATCH, 2, SERVERS, 0, dtype=torch.int64),
        action,
        reward,
        torch.zeros(BATCH, 2, 0),
        done,
        torch.zeros(BATCH, 2, dtype=torch.bool),
        torch.zeros(BATCH, SERVERS, 16),
    )
    theirs = tensordict.TensorDict(
        {
            "rows": rows[:, 0],
            "whole": whole[:, 0],
            "action": action[:, 0, 0],
            "next": {
                "rows": rows[:, 1],
                "whole": whole[:, 1],
                "reward": reward[:, 0, None],
                "done": done[:, 0, None],
                "terminated": done[:, 0, None],
            },
        },
        [BATCH],
    )
    return ours, theirs


def oracle(agent: SoftActorCritic) -> Any:
    """Return TorchRL's loss with the agent's weights."""
    actor = ProbabilisticActor(
        TensorDictModule(Logits(agent.policy, agent.policy), in_keys=["rows", "whole"], out_keys=["logits"]),
        spec=CategoricalSpec(SERVERS),
        in_keys=["logits"],
        distribution_class=torch.distributions.Categorical,
    )
    first, second = (Logits(agent.policy, head) for head in agent.critics)
    critic = TensorDictModule(Logits(agent.policy, agent.critics[0]), ["rows", "whole"], ["action_value"])
    loss = DiscreteSACLoss(
        actor,
        critic,
        action_space="categorical",
        num_actions=SERVERS,
        loss_function="l2",
        alpha_init=agent.config.alpha,
        target_entropy=agent.config.target_entropy * float(np.log(SERVERS)),
    )
    loss.make_value_estimator(gamma=GAMMA)
    targets = [Logits(agent.target_body, head) for head in agent.target_critics]
    for parameters, pair in (
        (loss.qvalue_network_params, (first, second)),
        (loss.target_qvalue_network_params, targets),
    ):
        values = [dict(module.named_parameters()) for module in pair]
        flat = parameters.data.flatten_keys(".")
        for name in list(flat.keys()):
            flat[name].copy_(torch.stack([value[name.removeprefix("module.")].detach() for value in values]))
    return loss


@pytest.mark.parametrize("seed", [1, 2])
def test_actor_critic_and_temperature_losses_agree_to_five_digits(seed):
    rng = np.random.default_rng(seed)
    config = SacConfig(
        hidden=16, gamma=GAMMA, alpha=0.2, target_entropy=0.6, memory=False, normalise_reward=False, burn_in=0, length=1
    )
    agent = SoftActorCritic(ActionSchema("choice"), config, seed)
    with torch.no_grad():
        for parameter in agent.networks.parameters():  # targets unlike what they follow, an actor with an opinion
            parameter.add_(0.2 * torch.randn(parameter.shape))
        agent.log_alpha.fill_(float(np.log(config.alpha)))
    ours, theirs = batch_of(rng)
    losses, wanted = agent.losses(ours), oracle(agent)(theirs)
    for mine, yours in (("critic", "loss_qvalue"), ("actor", "loss_actor"), ("alpha", "loss_alpha")):
        assert float(losses[mine].detach()) == pytest.approx(float(wanted[yours].detach()), rel=1e-5, abs=1e-5), mine
        assert abs(float(wanted[yours].detach())) > 1e-3
