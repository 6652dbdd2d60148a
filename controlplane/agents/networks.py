"""The policy network in torch, the twin of controlplane/learned/network.py: same parameters, same outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from controlplane.learned.encoding import GLOBAL_COLUMNS, SERVER_COLUMNS
from controlplane.learned.schema import ActionSchema

# The level that does nothing begins as likely as so many times each other one.
ZERO_BIAS = 2.0


def pool(x: Tensor, active: Tensor) -> Tensor:
    """Return mean and maximum of x (…, n, h) over the active servers (…, n): (…, 2h)."""
    mask = active.unsqueeze(-1)
    number = active.sum(-1, keepdim=True).clamp(min=1)
    greatest = x.masked_fill(~mask, -torch.inf).amax(-2)
    greatest = torch.where(torch.isfinite(greatest), greatest, torch.zeros_like(greatest))
    return torch.cat([(x * mask).sum(-2) / number, greatest], -1)


class Heads(nn.Module):
    """Logits, or values of each level, from the state of every server: what an actor or a critic has upon a body."""

    def __init__(self, schema: ActionSchema, hidden: int = 32, *, neutral: bool = False) -> None:
        """neutral: begin at the action that does nothing (an actor), with small weights in the heads."""
        super().__init__()
        self.schema, self.hidden = schema, hidden
        levels = len(schema.levels)
        self.row = nn.Linear(3 * hidden, len(schema.row_heads) * levels) if schema.row_heads else None
        self.all = nn.Linear(2 * hidden, len(schema.global_heads) * levels) if schema.global_heads else None
        self.choice = nn.Linear(3 * hidden, 1) if schema.kind == "choice" else None
        if neutral:
            for head in (self.row, self.all, self.choice):
                if head is None:
                    continue
                nn.init.uniform_(head.weight, -1e-3, 1e-3)
                nn.init.zeros_(head.bias)
                if head is not self.choice and schema.kind == "curves":
                    with torch.no_grad():
                        head.bias.view(-1, levels)[:, schema.zero] = ZERO_BIAS

    def heads(self, state: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
        """Return (…, n, row heads, levels) and (…, global heads, levels), or (…, 1, n) of kind choice.

        state (…, n, h), active (…, n).
        """
        *before, n = active.shape
        levels = len(self.schema.levels)
        pooled = pool(state, active)
        both = torch.cat([state, pooled.unsqueeze(-2).expand(*before, n, -1)], -1)
        rows = state.new_zeros(*before, n, 0, levels)
        if self.row is not None:
            rows = self.row(both).view(*before, n, -1, levels)
        whole = state.new_zeros(*before, 0, levels)
        if self.all is not None:
            whole = self.all(pooled).view(*before, -1, levels)
        if self.choice is not None:
            whole = self.choice(both).squeeze(-1).masked_fill(~active, -torch.inf).unsqueeze(-2)
        return rows, whole


class RowNetwork(Heads):
    """Body and heads; permutation-equivariant over the servers."""

    def __init__(self, schema: ActionSchema, hidden: int = 32, *, neutral: bool = False) -> None:
        """neutral: begin at the action that does nothing (an actor), with small weights in the heads."""
        super().__init__(schema, hidden, neutral=neutral)
        self.enter = nn.Linear(len(SERVER_COLUMNS) + len(GLOBAL_COLUMNS), hidden)
        self.mix = nn.Linear(3 * hidden, hidden)
        self.cell = nn.GRUCell(hidden, hidden)

    def initial(self, batch: int, servers: int) -> Tensor:
        """Return the hidden state of servers of which nothing is known."""
        return torch.zeros(batch, servers, self.hidden)

    def look(self, rows: Tensor, whole: Tensor, active: Tensor) -> Tensor:
        """Return what goes into the cell, (…, n, h), of rows (…, n, F), whole (…, G), active (…, n)."""
        columns = len(SERVER_COLUMNS)
        own = nn.functional.linear(rows, self.enter.weight[:, :columns])
        common = nn.functional.linear(whole, self.enter.weight[:, columns:], self.enter.bias)
        e = torch.relu(own + common.unsqueeze(-2))
        pooled = nn.functional.linear(pool(e, active), self.mix.weight[:, self.hidden :], self.mix.bias)
        return torch.relu(nn.functional.linear(e, self.mix.weight[:, : self.hidden]) + pooled.unsqueeze(-2))

    def remember(self, x: Tensor, active: Tensor, hidden: Tensor) -> Tensor:
        """Return the new hidden state (B, n, h) of x (B, n, h), what look() gave, and the state before."""
        b, n = active.shape
        state = self.cell(x.reshape(b * n, -1), hidden.reshape(b * n, -1)).view(b, n, -1)
        masked: Tensor = state * active.unsqueeze(-1)
        return masked

    def body(self, rows: Tensor, whole: Tensor, active: Tensor, hidden: Tensor) -> Tensor:
        """Return the new hidden state (B, n, h) of rows (B, n, F), whole (B, G), active (B, n), hidden (B, n, h)."""
        return self.remember(self.look(rows, whole, active), active, hidden)

    def forward(self, rows: Tensor, whole: Tensor, active: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return rows' and all's logits and the new hidden state, as Network.forward does."""
        state = self.body(rows, whole, active, hidden)
        return *self.heads(state, active), state

    def states(
        self,
        rows: Tensor,
        whole: Tensor,
        active: Tensor,
        hidden: Tensor,
        fresh: Tensor | None = None,
        burn_in: int = 0,
    ) -> Tensor:
        """Return the states after each step (B, T, n, h): rows (B, T, n, F), whole (B, T, G), active (B, T, n),
        hidden (B, n, h) before the first.

        fresh (B, T): an episode begins with this step, its state is initial. burn_in: no gradient in so many steps.
        """
        if burn_in:
            with torch.no_grad():
                early = None if fresh is None else fresh[:, :burn_in]
                warm = self.states(rows[:, :burn_in], whole[:, :burn_in], active[:, :burn_in], hidden, early)
            late = None if fresh is None else fresh[:, burn_in:]
            rest = self.states(rows[:, burn_in:], whole[:, burn_in:], active[:, burn_in:], warm[:, -1], late)
            return torch.cat([warm, rest], 1)
        x = self.look(rows, whole, active)
        out = []
        for t in range(rows.shape[1]):
            if fresh is not None:
                hidden = hidden * (~fresh[:, t]).to(hidden.dtype)[:, None, None]
            hidden = self.remember(x[:, t], active[:, t], hidden)
            out.append(hidden)
        return torch.stack(out, 1)

    def unroll(
        self, rows: Tensor, whole: Tensor, active: Tensor, hidden: Tensor, fresh: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run over time, as states() does. Returns logits (B, T, …) and the hidden state after the last step."""
        states = self.states(rows, whole, active, hidden, fresh)
        return *self.heads(states, active), states[:, -1]

    def parameters_numpy(self) -> dict[str, NDArray[np.float32]]:
        """Return what controlplane.learned.network.Network takes."""
        return {name: tensor.detach().cpu().numpy().copy() for name, tensor in self.state_dict().items()}

    def load_numpy(self, parameters: Mapping[str, Any]) -> None:
        """Take over parameters of the numpy twin, e.g. of a shipped policy."""
        self.load_state_dict({name: torch.as_tensor(np.asarray(value)) for name, value in parameters.items()})
