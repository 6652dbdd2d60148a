"""The policy network in plain numpy: one encoder and one recurrent cell for every server's row, the rows' mean and
maximum for what they have in common.

Every server passes through the same weights, and what is pooled does not depend on their order: the outputs move with
the servers when those change places, and any number of servers will do. controlplane/agents/networks.py is the same in
torch, parameter for parameter; a test holds the two together.

    e  = relu(W_enter [x_i, g])                         h' = GRU(relu(W_mix [e, mean e, max e]), h)   (torch's GRUCell)
    logits of server i: W_row [h'_i, mean h', max h']   of all: W_all [mean h', max h']
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from controlplane.learned.encoding import GLOBAL_COLUMNS, SERVER_COLUMNS, Inputs
from controlplane.learned.schema import ActionSchema

Floats = NDArray[np.float32]
Parameters = Mapping[str, Floats]


def shapes(schema: ActionSchema, hidden: int) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every parameter of a network with so many hidden units."""
    h, levels = hidden, len(schema.levels)
    wanted: dict[str, tuple[int, ...]] = {
        "enter.weight": (h, len(SERVER_COLUMNS) + len(GLOBAL_COLUMNS)),
        "enter.bias": (h,),
        "mix.weight": (h, 3 * h),
        "mix.bias": (h,),
        "cell.weight_ih": (3 * h, h),
        "cell.weight_hh": (3 * h, h),
        "cell.bias_ih": (3 * h,),
        "cell.bias_hh": (3 * h,),
    }
    if schema.row_heads:
        wanted["row.weight"] = (len(schema.row_heads) * levels, 3 * h)
        wanted["row.bias"] = (len(schema.row_heads) * levels,)
    if schema.global_heads:
        wanted["all.weight"] = (len(schema.global_heads) * levels, 2 * h)
        wanted["all.bias"] = (len(schema.global_heads) * levels,)
    if schema.kind == "choice":
        wanted["choice.weight"] = (1, 3 * h)
        wanted["choice.bias"] = (1,)
    return wanted


class Network:
    """Weights, ready to run. Raises ValueError when a parameter is missing or of another shape, or not finite."""

    def __init__(self, parameters: Parameters, schema: ActionSchema) -> None:
        if "enter.bias" not in parameters:
            raise ValueError("network: enter.bias is missing")
        self.schema, self.hidden = schema, len(parameters["enter.bias"])
        wanted = shapes(schema, self.hidden)
        for name, shape in wanted.items():
            if name not in parameters:
                raise ValueError(f"network: {name} is missing")
            if parameters[name].shape != shape:
                raise ValueError(f"network: {name} has shape {parameters[name].shape}, expected {shape}")
            if not np.isfinite(parameters[name]).all():
                raise ValueError(f"network: {name} has values that are not finite")
        if unknown := sorted(set(parameters) - set(wanted)):
            raise ValueError(f"network: unknown parameter {unknown[0]}")
        self.parameters = {name: np.ascontiguousarray(parameters[name], dtype=np.float32) for name in wanted}

    def initial(self, rows: int, servers: int) -> Floats:
        """Return the hidden state of servers of which nothing is known, (R, n, hidden)."""
        return np.zeros((rows, servers, self.hidden), dtype=np.float32)

    def forward(self, inputs: Inputs, hidden: Floats) -> tuple[Floats, Floats, Floats]:
        """Return logits of the rows (R, n, row heads, levels), of all (R, global heads, levels), and the new hidden
        state (R, n, hidden). Of kind `choice`: logits of all are (R, 1, n), −inf where not active."""
        p, schema, h = self.parameters, self.schema, self.hidden
        active = inputs.active
        r, n = active.shape
        columns = len(SERVER_COLUMNS)
        own = inputs.rows @ p["enter.weight"][:, :columns].T
        common = inputs.whole @ p["enter.weight"][:, columns:].T + p["enter.bias"]
        e = np.maximum(own + common[:, None], 0.0)
        mixed = e @ p["mix.weight"][:, :h].T + (_pool(e, active) @ p["mix.weight"][:, h:].T + p["mix.bias"])[:, None]
        state = _gru(np.maximum(mixed, 0.0), hidden, p) * active[:, :, None]
        pooled = _pool(state, active)
        levels = len(schema.levels)
        rows = np.zeros((r, n, 0, levels), dtype=np.float32)
        if schema.row_heads:
            logits = _head(state, pooled, p["row.weight"], p["row.bias"], h)
            rows = logits.reshape(r, n, len(schema.row_heads), levels)
        whole = np.zeros((r, 0, levels), dtype=np.float32)
        if schema.global_heads:
            whole = (pooled @ p["all.weight"].T + p["all.bias"]).reshape(r, len(schema.global_heads), levels)
        if schema.kind == "choice":
            scores = _head(state, pooled, p["choice.weight"], p["choice.bias"], h)
            whole = np.where(active, scores[:, :, 0], -np.inf)[:, None, :]
        return rows, whole, state


def decide(
    schema: ActionSchema, rows: Floats, whole: Floats, decode: str = "mean"
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the values that logits stand for: decode "mode", the likeliest level, or "mean", the expected one."""
    if decode == "mode" or schema.kind in ("choice", "discrete"):
        if schema.kind == "choice":
            return np.zeros((len(whole), 0, 0)), schema.values(whole.argmax(axis=-1))
        return schema.values(rows.argmax(axis=-1)), schema.values(whole.argmax(axis=-1))
    return _softmax(rows) @ schema.grid, _softmax(whole) @ schema.grid


def _softmax(x: Floats) -> NDArray[np.float64]:
    if x.size == 0:
        return x.astype(np.float64)
    e = np.exp((x - x.max(axis=-1, keepdims=True)).astype(np.float64))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def _head(state: Floats, pooled: Floats, weight: Floats, bias: Floats, h: int) -> Floats:
    return np.asarray(state @ weight[:, :h].T + (pooled @ weight[:, h:].T + bias)[:, None])


def _pool(x: Floats, active: NDArray[np.bool_]) -> Floats:
    """Return mean and maximum over the active servers, (R, 2·hidden); zeros where there are none."""
    masked = x * active[:, :, None]
    number = np.maximum(active.sum(axis=1, keepdims=True), 1).astype(np.float32)
    greatest = np.where(active[:, :, None], x, -np.inf).max(axis=1, initial=-np.inf)
    greatest = np.where(np.isfinite(greatest), greatest, np.float32(0.0))
    return np.concatenate([masked.sum(axis=1) / number, greatest], axis=1).astype(np.float32)


def _gru(x: Floats, hidden: Floats, p: Mapping[str, Any]) -> Floats:
    h = hidden.shape[-1]
    gi = x @ p["cell.weight_ih"].T + p["cell.bias_ih"]
    gh = hidden @ p["cell.weight_hh"].T + p["cell.bias_hh"]
    reset = _sigmoid(gi[..., :h] + gh[..., :h])
    update = _sigmoid(gi[..., h : 2 * h] + gh[..., h : 2 * h])
    new = np.tanh(gi[..., 2 * h :] + reset * gh[..., 2 * h :])
    return np.asarray((1.0 - update) * new + update * hidden, dtype=np.float32)


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * x)), dtype=np.float32)
