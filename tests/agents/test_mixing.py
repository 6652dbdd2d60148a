"""The monotone mixer: what it must be whatever its weights are, and TorchRL's mixers beside it."""

from __future__ import annotations

import warnings

import pytest

torch = pytest.importorskip("torch", reason="needs vickrey[rl]: torch is not installed")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import Tensor  # noqa: E402

from controlplane.agents.mixing import MonotoneMixer, SumMixer, mix, shares  # noqa: E402
from controlplane.learned.encoding import GLOBAL_COLUMNS, SERVER_COLUMNS  # noqa: E402
from controlplane.learned.schema import ActionSchema  # noqa: E402

torch.set_num_threads(1)

CURVES, CHOICE = ActionSchema(), ActionSchema("choice")


def joint(schema: ActionSchema, batch: int, balancers: int, servers: int, seed: int) -> tuple[Tensor, ...]:
    """Return utilities of rows and of all, and inputs of all balancers; the first server of each is active."""
    g = torch.Generator().manual_seed(seed)
    heads = 1 if schema.kind == "choice" else len(schema.global_heads)
    active = torch.rand(batch, balancers, servers, generator=g) < 0.7
    active[:, :, 0] = True
    rows = torch.randn(batch, balancers, servers, len(SERVER_COLUMNS), generator=g) * active.unsqueeze(-1)
    return (
        3 * torch.randn(batch, balancers, servers, len(schema.row_heads), generator=g),
        3 * torch.randn(batch, balancers, heads, generator=g),
        rows,
        torch.randn(batch, balancers, len(GLOBAL_COLUMNS), generator=g),
        active,
    )


@given(
    kind=st.sampled_from([CURVES, CHOICE]),
    balancers=st.integers(1, 8),
    servers=st.integers(1, 12),
    seed=st.integers(0, 2**31),
    spread=st.floats(0.1, 10.0),
)
@settings(max_examples=40)
def test_no_utility_lowers_the_value_of_all(
    kind: ActionSchema, balancers: int, servers: int, seed: int, spread: float
) -> None:
    torch.manual_seed(seed)
    mixer = MonotoneMixer(kind, embed=8, hidden=8)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.mul_(spread)
    q_rows, q_whole, rows, whole, active = joint(kind, 3, balancers, servers, seed)
    q_rows.requires_grad_()
    q_whole.requires_grad_()
    total = mixer(q_rows, q_whole, rows, whole, active).sum()
    gradients = torch.autograd.grad(total, [q_rows, q_whole], allow_unused=True)
    for gradient in gradients:
        assert gradient is None or (gradient >= 0).all()
    if gradients[0] is not None:
        assert (gradients[0][~active] == 0).all()


@pytest.mark.parametrize("kind", [CURVES, CHOICE], ids=["curves", "choice"])
def test_the_order_of_servers_and_of_balancers_is_nothing_to_the_mixer(kind: ActionSchema) -> None:
    torch.manual_seed(1)
    mixer = MonotoneMixer(kind)
    q_rows, q_whole, rows, whole, active = joint(kind, 5, 3, 6, 2)
    servers, balancers = torch.randperm(6), torch.randperm(3)
    total = mixer(q_rows, q_whole, rows, whole, active)
    moved = mixer(
        q_rows[:, balancers][:, :, servers],
        q_whole[:, balancers],
        rows[:, balancers][:, :, servers],
        whole[:, balancers],
        active[:, balancers][:, :, servers],
    )
    torch.testing.assert_close(total, moved)


def test_a_balancer_s_heads_count_together_as_one_utility() -> None:
    # Two heads a server and three for all: five kinds, a fifth each; two active servers of three halve theirs.
    rows, whole = shares(torch.zeros(3, 2), torch.zeros(3), torch.tensor([True, False, True]))
    torch.testing.assert_close(rows, torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 1.0]]) / 10)
    torch.testing.assert_close(whole, torch.ones(3) / 5)
    # VDN: Σ over two balancers of the mean over their heads: 1 + 2 = 3.
    q = torch.tensor([1.0, 2.0])[None, :, None, None]
    active = torch.tensor([True, False, True]).expand(1, 2, 3)
    total = SumMixer(CURVES)(q.expand(1, 2, 3, 2), q[..., 0].expand(1, 2, 3), torch.empty(0), torch.empty(0), active)
    torch.testing.assert_close(total, torch.tensor([3.0]))


def test_mixing_agrees_with_torchrl_s_mixers_given_the_same_weights() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        multiagent = pytest.importorskip(
            "torchrl.modules.models.multiagent", reason="TorchRL, the oracle, is not installed"
        )
    torch.manual_seed(3)
    theirs = multiagent.QMixer(state_shape=(5,), mixing_embed_dim=16, n_agents=4, device="cpu")
    state, q = torch.randn(7, 5), torch.randn(7, 4)
    w1 = theirs.hyper_w_1(state).view(7, 4, 16)
    ours = mix(q, w1, theirs.hyper_b_1(state), theirs.hyper_w_final(state), theirs.V(state).squeeze(-1))
    torch.testing.assert_close(ours, theirs(q.unsqueeze(-1), state).squeeze(-1), rtol=1e-5, atol=1e-5)
    empty = torch.zeros(7, 4, 3, 0)
    ours = SumMixer(CHOICE)(empty, q.unsqueeze(-1), torch.empty(0), torch.empty(0), torch.ones(7, 4, 3, dtype=bool))
    theirs = multiagent.VDNMixer(n_agents=4, device="cpu")
    torch.testing.assert_close(ours, theirs(q.unsqueeze(-1)).squeeze(-1), rtol=1e-5, atol=1e-5)
