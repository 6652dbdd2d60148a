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

# A mean correction of less, in parts of its bound, is none.
SILENT = 0.02


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
    """Weights, ready to run. Raises ValueError when a parameter is missing or of another shape, or not finite.

    Weights are taken apart and transposed once, here: those of the rows' own part and those of what is common to all,
    which needs to be multiplied once for all rows. Everything stays in 32-bit floats.
    """

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
        p, h = self.parameters, self.hidden
        self._enter = _split(p["enter.weight"], len(SERVER_COLUMNS))
        self._mix = _split(p["mix.weight"], h)
        self._gates = np.ascontiguousarray(p["cell.weight_ih"].T), np.ascontiguousarray(p["cell.weight_hh"].T)
        self._gate_bias = p["cell.bias_ih"].copy()
        self._gate_bias[: 2 * h] += p["cell.bias_hh"][: 2 * h]  # the new state's own is multiplied by the reset
        self._head = {name: _split(p[f"{name}.weight"], h) for name in ("row", "choice") if f"{name}.weight" in p}

    def initial(self, rows: int, servers: int) -> Floats:
        """Return the hidden state of servers of which nothing is known, (R, n, hidden)."""
        return np.zeros((rows, servers, self.hidden), dtype=np.float32)

    def forward(self, inputs: Inputs, hidden: Floats) -> tuple[Floats, Floats, Floats]:
        """Return logits of the rows (R, n, row heads, levels), of all (R, global heads, levels), and the new hidden
        state (R, n, hidden). Of kind `choice`: logits of all are (R, 1, n), −inf where not active."""
        p, schema = self.parameters, self.schema
        active = inputs.active
        r, n = active.shape
        mask = None if active.all() else active[:, :, None].astype(np.float32)
        own, common = self._enter
        e = inputs.rows @ own
        e += (inputs.whole @ common + p["enter.bias"])[:, None]
        np.maximum(e, 0.0, out=e)
        own, common = self._mix
        x = e @ own
        x += (_pool(e, mask, active) @ common + p["mix.bias"])[:, None]
        np.maximum(x, 0.0, out=x)
        state = self._gru(x, hidden)
        if mask is not None:
            state *= mask
        pooled = _pool(state, mask, active)
        levels = len(schema.levels)
        rows = np.zeros((r, n, 0, levels), dtype=np.float32)
        if schema.row_heads:
            rows = self._heads("row", state, pooled).reshape(r, n, len(schema.row_heads), levels)
        whole = np.zeros((r, 0, levels), dtype=np.float32)
        if schema.global_heads:
            whole = (pooled @ p["all.weight"].T + p["all.bias"]).reshape(r, len(schema.global_heads), levels)
        if schema.kind == "choice":
            whole = np.where(active, self._heads("choice", state, pooled)[:, :, 0], -np.inf)[:, None, :]
        return rows, whole, state

    def _heads(self, name: str, state: Floats, pooled: Floats) -> Floats:
        own, common = self._head[name]
        logits = state @ own
        logits += (pooled @ common + self.parameters[f"{name}.bias"])[:, None]
        return np.asarray(logits)

    def _gru(self, x: Any, hidden: Floats) -> Floats:
        """Return the new hidden state, as torch's GRUCell: σ(a) is (1 + tanh(a/2))/2."""
        h = self.hidden
        gates, from_hidden = x @ self._gates[0], hidden @ self._gates[1]
        gates += self._gate_bias
        both = gates[..., : 2 * h] + from_hidden[..., : 2 * h]  # reset and update
        both *= 0.5
        np.tanh(both, out=both)
        both += 1.0
        both *= 0.5
        new = from_hidden[..., 2 * h :] + self.parameters["cell.bias_hh"][2 * h :]
        new *= both[..., :h]
        new += gates[..., 2 * h :]
        np.tanh(new, out=new)
        # (1 − update) · new + update · hidden
        state = hidden - new
        state *= both[..., h:]
        state += new
        return np.asarray(state)


def _split(weight: Floats, own: int) -> tuple[Floats, Floats]:
    """Return a layer's weights on a row's own part and on what is common, each (inputs, outputs)."""
    return np.ascontiguousarray(weight[:, :own].T), np.ascontiguousarray(weight[:, own:].T)


def _pool(x: Floats, mask: Floats | None, active: NDArray[np.bool_]) -> Floats:
    """Return mean and maximum of x (R, n, hidden) over the active servers, (R, 2·hidden); zeros where there are none.

    mask: active as (R, n, 1) floats; None: all are. x is finite, so that masking is multiplying.
    """
    r, n, h = x.shape
    out = np.zeros((r, 2 * h), dtype=np.float32)
    if mask is None:
        if n:
            np.divide(x.sum(axis=1), n, out=out[:, :h])
            x.max(axis=1, out=out[:, h:])
        return out
    some = active.any(axis=1)
    number = np.maximum(active.sum(axis=1, keepdims=True), 1).astype(np.float32)
    np.divide((x * mask).sum(axis=1), number, out=out[:, :h])
    greatest = (x + np.where(mask > 0, np.float32(0.0), np.float32(-np.inf))).max(axis=1, initial=-np.inf)
    out[some, h:] = greatest[some]
    return out


def decide(
    schema: ActionSchema, rows: Floats, whole: Floats, decode: str = "mean"
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the values that logits stand for: decode "mode", the likeliest level, or "mean", the expected one.

    Of means that are corrections (kind curves) SILENT is taken off, and less is none: then the base policy decides to
    the bit. Whatever a network of floats has to say, it never says exactly nothing; and of decisions that differ in the
    seventh digit a run takes another course, now and then a worse one (4 % once in ten, farm-by-two-85).
    """
    if decode == "mode" or schema.kind in ("choice", "discrete"):
        if schema.kind == "choice":
            return np.zeros((len(whole), 0, 0)), schema.values(whole.argmax(axis=-1))
        return schema.values(rows.argmax(axis=-1)), schema.values(whole.argmax(axis=-1))
    values = _expected(rows, schema.grid), _expected(whole, schema.grid)
    return (_audible(values[0]), _audible(values[1])) if schema.kind == "curves" else values


def _audible(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return means (…) in [−1, 1] less SILENT, in the same range, without a jump."""
    return np.asarray(np.copysign(np.maximum(np.abs(x) - SILENT, 0.0) / (1.0 - SILENT), x))


def _expected(logits: Floats, grid: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean level (…) under the softmax of logits (…, levels)."""
    levels = len(grid)
    # Levels come first: sums over the first axis are quick.
    x = np.ascontiguousarray(logits.reshape(-1, levels).T)
    x -= x.max(axis=0, initial=-np.inf)
    np.exp(x, out=x)
    mean = (grid.astype(np.float32) @ x) / x.sum(axis=0)
    return np.asarray(mean, dtype=np.float64).reshape(logits.shape[:-1])
