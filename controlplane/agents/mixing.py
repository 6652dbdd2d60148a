"""How the utilities of several balancers become one value of all: the monotone mixer of QMIX and the sum of VDN.

Sources     Rashid et al., "QMIX: Monotonic Value Function Factorisation for Deep Multi-Agent Reinforcement Learning",
            ICML 2018, section 4.1 and equations 4–6
            Sunehag et al., "Value-Decomposition Networks For Cooperative Multi-Agent Learning", AAMAS 2018, equation 1

    QMIX    Q_tot = |w2(s)|ᵀ elu( Σ_u |W1_u(s)| q_u + b1(s) ) + b2(s)          ∂Q_tot/∂q_u ≥ 0 for every utility u
    VDN     Q_tot = Σ_u q_u

so that each balancer's own best levels are together the best joint ones (the paper's equation 4), and no balancer needs
another to choose.

A utility q_u is what one head of one balancer expects of the level that it chose: heads of every server's row, and
heads for all. The weights W1, w2, b1, b2 come from networks that see the joint state (hypernetworks). The state is
what all balancers see together:

    e_ki = relu(enter [x_ki, g_k])                     server i, as balancer k sees it
    t_i  = mean_k e_ki                                 server i, as all of them see it
    z    = relu(mix [mean_i t_i, max_i t_i])           the farm; neither servers' nor balancers' order matters
    W1 of a server's head = rows_weight [e_ki, t_i, z], of a head for all = all_weight [mean_i e_ki, max_i e_ki, z]
    b1, w2 = linear in z                               b2 = two layers, as in the paper

Departures  The paper has one action an agent and a fixed number of agents, and one output of W1 for each. Here the
            number of utilities changes from farm to farm, so the weights of a utility are made from what the balancer
            sees there, by the same network for all, and a balancer's heads count together as one utility: W1 (and
            VDN's sum) take the mean ⟨·⟩ over a balancer's heads that the critics of sac.py take. With one head per
            balancer both are the papers' equations.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import elu

from controlplane.agents.networks import pool
from controlplane.learned.encoding import GLOBAL_COLUMNS, SERVER_COLUMNS
from controlplane.learned.schema import ActionSchema


def mix(utilities: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """Return Q_tot (…,) of utilities (…, U), w1 (…, U, E), b1 (…, E), w2 (…, E), b2 (…,).  QMIX, figure 2a.

    Only the weights are made non-negative, not the biases.
    """
    hidden = elu((utilities.unsqueeze(-1) * w1.abs()).sum(-2) + b1)
    return (hidden * w2.abs()).sum(-1) + b2


def shares(rows: Tensor, whole: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
    """Return what each utility counts among its balancer's, (…, n, HR) and (…, HG), which add up to 1.

    Each kind of head counts alike, and so does each active server within one. rows: (…, n, HR). whole: (…, HG).
    """
    kinds = rows.shape[-1] + whole.shape[-1]
    there = active.unsqueeze(-1).expand(rows.shape).to(rows.dtype)
    servers = active.sum(-1).clamp(min=1)[..., None, None]
    return there / (servers * kinds), torch.full_like(whole, 1.0 / kinds)


class SumMixer(nn.Module):
    """VDN: the sum over balancers of the mean over their heads. It has no parameters and looks at no state."""

    def __init__(self, schema: ActionSchema, embed: int = 0, hidden: int = 0) -> None:
        super().__init__()

    def forward(self, q_rows: Tensor, q_whole: Tensor, rows: Tensor, whole: Tensor, active: Tensor) -> Tensor:
        """Return Q_tot (N,); arguments as MonotoneMixer's."""
        share_rows, share_whole = shares(q_rows, q_whole, active)
        return (q_rows * share_rows).sum((-1, -2, -3)) + (q_whole * share_whole).sum((-1, -2))


class MonotoneMixer(nn.Module):
    """QMIX: a mixing network whose weights a network makes from the joint state."""

    def __init__(self, schema: ActionSchema, embed: int = 32, hidden: int = 32) -> None:
        """embed: width E of the mixing network. hidden: width of what encodes the state."""
        super().__init__()
        self.embed = embed
        self.row_heads = len(schema.row_heads)
        self.all_heads = 1 if schema.kind == "choice" else len(schema.global_heads)
        self.enter = nn.Linear(len(SERVER_COLUMNS) + len(GLOBAL_COLUMNS), hidden)
        self.mix = nn.Linear(2 * hidden, hidden)
        self.rows_weight = nn.Linear(3 * hidden, self.row_heads * embed) if self.row_heads else None
        self.all_weight = nn.Linear(3 * hidden, self.all_heads * embed) if self.all_heads else None
        self.b1 = nn.Linear(hidden, embed)
        self.w2 = nn.Linear(hidden, embed)
        self.b2 = nn.Sequential(nn.Linear(hidden, embed), nn.ReLU(), nn.Linear(embed, 1))

    def hyper(self, rows: Tensor, whole: Tensor, active: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return W1 of the rows' heads (N, K, n, HR, E) and of all's (N, K, HG, E), b1 (N, E), w2 (N, E), b2 (N,).

        rows: (N, K, n, F). whole: (N, K, G). active: (N, K, n).
        """
        n_, k, n = active.shape
        e = torch.relu(self.enter(torch.cat([rows, whole.unsqueeze(2).expand(n_, k, n, -1)], -1)))
        mask = active.unsqueeze(-1).to(e.dtype)
        seen = (e * mask).sum(1) / mask.sum(1).clamp(min=1.0)  # (N, n, h): t_i, over the balancers that have it
        z = torch.relu(self.mix(pool(seen, active.any(1))))  # (N, h)
        farm = z[:, None, :].expand(n_, k, -1)
        w1_rows = e.new_zeros(n_, k, n, 0, self.embed)
        if self.rows_weight is not None:
            token = torch.cat([e, seen[:, None].expand_as(e), farm.unsqueeze(2).expand(n_, k, n, -1)], -1)
            w1_rows = self.rows_weight(token).view(n_, k, n, self.row_heads, self.embed)
        w1_all = e.new_zeros(n_, k, 0, self.embed)
        if self.all_weight is not None:
            w1_all = self.all_weight(torch.cat([pool(e, active), farm], -1)).view(n_, k, self.all_heads, self.embed)
        return w1_rows, w1_all, self.b1(z), self.w2(z), self.b2(z).squeeze(-1)

    def forward(self, q_rows: Tensor, q_whole: Tensor, rows: Tensor, whole: Tensor, active: Tensor) -> Tensor:
        """Return Q_tot (N,) of utilities q_rows (N, K, n, HR) and q_whole (N, K, HG) in the state that the inputs
        rows (N, K, n, F), whole (N, K, G), active (N, K, n) of all K balancers make."""
        w1_rows, w1_all, b1, w2, b2 = self.hyper(rows, whole, active)
        share_rows, share_whole = shares(q_rows, q_whole, active)
        utilities = torch.cat([(q_rows * share_rows).flatten(1), (q_whole * share_whole).flatten(1)], 1)
        w1 = torch.cat([w1_rows.flatten(1, 3), w1_all.flatten(1, 2)], 1)
        return mix(utilities, w1, b1, w2, b2)
