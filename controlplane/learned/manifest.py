"""What a file says of the policy in it: actions, inputs, the ranges that it was trained on, how it came about."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, TypeAdapter

from controlplane.learned.encoding import FEATURE_VERSION, GLOBAL_COLUMNS, SERVER_COLUMNS
from controlplane.learned.schema import ActionSchema

FORMAT: Final = 1
HIDDEN_MAX, LEVELS_MAX = 512, 64
# Greatest corrections that a file may ask for, as logarithms; and those of a policy that does not say (env.Bounds).
BOUND_MAX: Final = float(np.log(64.0))
BOUNDS: Final = {
    "mu": float(np.log(4.0)),
    "k": float(np.log(4.0)),
    "balancers": float(np.log(4.0)),
    "scale": float(np.log(4.0)),
    "window": float(np.log(8.0)),
}


_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Range:
    """One input column in training. low, high: its 1 % and 99 % quantiles."""

    __pydantic_config__ = _STRICT
    mean: float
    std: float
    low: float
    high: float


@dataclass(frozen=True)
class Ranges:
    """What the policy saw in training. servers, balancers: least and greatest number."""

    __pydantic_config__ = _STRICT
    rows: dict[str, Range]  # by SERVER_COLUMNS
    whole: dict[str, Range]  # by GLOBAL_COLUMNS
    servers: tuple[int, int]
    balancers: tuple[int, int]

    @classmethod
    def measure(
        cls,
        rows: NDArray[np.floating[Any]],
        whole: NDArray[np.floating[Any]],
        servers: tuple[int, int],
        balancers: tuple[int, int],
    ) -> Ranges:
        """Return the ranges of encoded inputs: rows (N, SERVER_COLUMNS) of active servers only, whole (M,
        GLOBAL_COLUMNS)."""
        return cls(
            {name: _range(rows[:, i]) for i, name in enumerate(SERVER_COLUMNS)},
            {name: _range(whole[:, i]) for i, name in enumerate(GLOBAL_COLUMNS)},
            servers,
            balancers,
        )


def _range(x: NDArray[np.floating[Any]]) -> Range:
    x = np.asarray(x, dtype=np.float64)
    low, high = np.quantile(x, [0.01, 0.99])
    return Range(round(float(x.mean()), 6), round(float(x.std()), 6), round(float(low), 6), round(float(high), 6))


@dataclass(frozen=True)
class Training:
    """How the policy came about. seconds: wall time."""

    __pydantic_config__ = _STRICT
    command: str
    commit: str = ""
    seed: int = 0
    steps: int = 0
    scenario: str = ""
    seconds: float = 0.0
    hyper_parameters: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Manifest:
    """Everything about a policy but its weights. Of the actions, `rule` and `limits` belong to the kinds discrete and
    weights: how a directive is made of weights, and what these are brought to (env.WeightLimits)."""

    __pydantic_config__ = _STRICT
    name: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._-]+$")]
    agent: Annotated[str, Field(max_length=64)]
    schema: ActionSchema
    ranges: Ranges
    training: Training
    description: str = ""
    hidden: Annotated[int, Field(ge=1, le=HIDDEN_MAX)] = 32
    decode: Literal["mode", "mean"] = "mean"
    base: str | dict[str, Any] = "adaptive"
    interval: Annotated[float, Field(gt=0.0, le=3600.0)] = 0.2  # seconds between decisions in training
    rule: Literal["sed", "gsed", "alias", "wrr"] = "sed"
    limits: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, Any] | None = None
    equivariant: bool = True  # the servers' order means nothing to it, and any number will do
    servers_max: Annotated[int, Field(ge=2, le=65536)] = 256  # with more it is not asked
    feature_version: int = FEATURE_VERSION
    server_columns: tuple[str, ...] = SERVER_COLUMNS
    global_columns: tuple[str, ...] = GLOBAL_COLUMNS
    format: int = FORMAT
    sha256: str = ""  # over the tensors and all of the above; write() fills it in

    def as_json(self) -> dict[str, Any]:
        """Return the manifest as JSON takes it."""
        tree: dict[str, Any] = json.loads(json.dumps(asdict(replace(self, schema=ActionSchema())), allow_nan=False))
        return tree | {"schema": json.loads(json.dumps(self.schema.as_json(), allow_nan=False))}

    @property
    def base_name(self) -> str:
        return self.base if isinstance(self.base, str) else str(self.base["name"])


# Reads it from JSON; raises pydantic.ValidationError.
MANIFEST: Final[TypeAdapter[Manifest]] = TypeAdapter(Manifest)


def problems(m: Manifest) -> Iterator[tuple[str, str]]:
    """Yield key and problem of all that has the right type and makes no sense."""
    for key, found, expected in (
        ("server_columns", m.server_columns, SERVER_COLUMNS),
        ("global_columns", m.global_columns, GLOBAL_COLUMNS),
    ):
        if found != expected:
            yield key, f"expected {', '.join(expected)}"
    if not m.equivariant:
        yield "equivariant", f"a network for exactly {m.servers_max} servers: expected one for any number (true)"
    if not isinstance(m.base, str) and not isinstance(m.base.get("name"), str):
        yield "base", "expected a policy's name, or a mapping with one"
    elif m.base_name == "learned":
        yield "base", "a learned policy cannot be the base of another"
    yield from _schema_problems(m.schema)
    for key, ranges, columns in (
        ("rows", m.ranges.rows, SERVER_COLUMNS),
        ("whole", m.ranges.whole, GLOBAL_COLUMNS),
    ):
        if set(ranges) != set(columns):
            yield f"ranges.{key}", f"expected the columns {', '.join(columns)}"
        for column, r in ranges.items():
            if not (r.low <= r.high and r.std >= 0):
                yield f"ranges.{key}.{column}", f"expected low <= high and std >= 0, not {r.low}, {r.high} and {r.std}"
    for key, pair in (("servers", m.ranges.servers), ("balancers", m.ranges.balancers)):
        if not 1 <= pair[0] <= pair[1] <= 65536:
            yield f"ranges.{key}", f"expected 1 <= least <= greatest, not {pair[0]} and {pair[1]}"


def _schema_problems(schema: ActionSchema) -> Iterator[tuple[str, str]]:
    if schema.kind == "choice":
        yield "schema.kind", "choice: one server for one flow, which no directive can say"
    if len(schema.levels) > LEVELS_MAX:
        yield "schema.levels", f"{len(schema.levels)} levels, expected at most {LEVELS_MAX}"
    low, high = (0.0, 1e3) if schema.kind == "discrete" else (-1.0, 1.0)
    if not all(low <= level <= high for level in schema.levels):
        yield "schema.levels", f"expected numbers from {low:g} to {high:g}, not {list(schema.levels)}"
    if schema.kind == "discrete" and not any(level > 0 for level in schema.levels):
        yield "schema.levels", "expected a weight above 0"
    known = {"row_heads": ("mu", "k"), "global_heads": ("balancers", "scale", "window")}
    if schema.kind == "curves":
        if 0.0 not in schema.levels:
            yield "schema.levels", "expected 0, the base policy itself, among them"
        for key, names in known.items():
            heads = getattr(schema, key)
            if len(set(heads)) != len(heads) or not set(heads) <= set(names):
                yield f"schema.{key}", f"expected some of {', '.join(names)}, each once, not {list(heads)}"
        if set(schema.bounds) != set(BOUNDS):
            yield "schema.bounds", f"expected {', '.join(BOUNDS)}"
    for key, bound in schema.bounds.items():
        if not 0 <= bound <= BOUND_MAX:
            yield f"schema.bounds.{key}", f"expected 0 … {BOUND_MAX:.2f} (a factor of 64), not {bound}"
