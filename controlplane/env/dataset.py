"""Transitions to files and back, for offline learning: NPZ with numpy alone, Parquet where pyarrow is installed.

    with Recorder(LoadBalance(base="gsed"), "run.npz") as env:      any environment or wrapper with one agent
        …
        env.step(action, propensity=p)

    data = read_dataset("run.npz")                                  data.columns["reward"], data.meta["policies"]

One row is one transition. Columns, in order of time, episodes one after the other:

    observation.KEY, next_observation.KEY   as the space has them; a plain Box is KEY "value"
    action, reward, terminated, truncated
    propensity    probability (or density) with which the recorded policy chose the action; NaN: not told
    cost          of the constraints, weighted
    time          seconds since the episode began, at the end of the interval
    episode       number from 0
    policy        index into meta["policies"]

The same run gives the same bytes. `version` is raised when columns change their meaning; readers refuse newer ones.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from numpy.typing import NDArray

from controlplane.learned.encoding import SLOPE_N, encode
from shm_layout.features import FEATURES

VERSION: Final = 1
FORMAT: Final = "vickrey transitions"
# Rows that a buffer makes room for at first.
ROOM = 1024
_META = "meta.json"
# A zip file carries times; this one is the same for all.
_DATE = (1980, 1, 1, 0, 0, 0)


class DatasetError(ValueError):
    """A file that is not a dataset of ours, or needs what is not installed."""


@dataclass(frozen=True)
class Dataset:
    """Transitions, one row each in every column."""

    columns: dict[str, NDArray[Any]]
    meta: dict[str, Any]

    def __len__(self) -> int:
        return len(self.columns["reward"])


def _parts(observation: Any) -> dict[str, NDArray[Any]]:
    if isinstance(observation, Mapping):
        return {str(key): np.asarray(value) for key, value in observation.items()}
    return {"value": np.asarray(observation)}


class Buffer:
    """Transitions that are being collected, in columns that grow."""

    def __init__(self, meta: Mapping[str, Any] | None = None) -> None:
        self.meta: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "features": list(FEATURES),
            "policies": [],
            **(meta or {}),
        }
        self._columns: dict[str, NDArray[Any]] = {}
        self._rows = 0

    def __len__(self) -> int:
        return self._rows

    def policy(self, name: str) -> int:
        """Return the index of a policy's name."""
        policies: list[str] = self.meta["policies"]
        if name not in policies:
            policies.append(name)
        return policies.index(name)

    def add(
        self,
        observation: Any,
        action: Any,
        reward: float,
        next_observation: Any,
        terminated: bool,
        truncated: bool,
        *,
        propensity: float = np.nan,
        cost: float = 0.0,
        time: float = np.nan,
        episode: int = 0,
        policy: str = "",
    ) -> None:
        """Append one transition."""
        row: dict[str, Any] = {
            **{f"observation.{key}": value for key, value in _parts(observation).items()},
            "action": np.asarray(action),
            "reward": np.float64(reward),
            "propensity": np.float64(propensity),
            **{f"next_observation.{key}": value for key, value in _parts(next_observation).items()},
            "terminated": np.bool_(terminated),
            "truncated": np.bool_(truncated),
            "cost": np.float64(cost),
            "time": np.float64(time),
            "episode": np.int64(episode),
            "policy": np.int32(self.policy(policy)),
        }
        if not self._columns:
            self._columns = {key: np.zeros((ROOM, *np.shape(v)), np.asarray(v).dtype) for key, v in row.items()}
        if row.keys() != self._columns.keys():
            raise DatasetError(f"a transition with {sorted(row)} after some with {sorted(self._columns)}")
        if self._rows == len(next(iter(self._columns.values()))):
            self._columns = {key: np.concatenate([v, np.zeros_like(v)]) for key, v in self._columns.items()}
        for key, value in row.items():
            self._columns[key][self._rows] = value
        self._rows += 1

    def dataset(self) -> Dataset:
        """Return what was collected so far: views."""
        return Dataset({key: column[: self._rows] for key, column in self._columns.items()}, self.meta)

    def save(self, path: str | Path) -> None:
        """Write it; .npz or .parquet."""
        write_dataset(self.dataset(), path)


# --- files ------------------------------------------------------------------------------------------------------------


def write_dataset(data: Dataset, path: str | Path) -> None:
    """Write a dataset in the format that the path's suffix names."""
    path = Path(path)
    if not data.columns:
        raise DatasetError(f"{path}: no transitions to write")
    if path.suffix == ".npz":
        _write_npz(data, path)
    elif path.suffix == ".parquet":
        _write_parquet(data, path)
    else:
        raise DatasetError(f"{path}: expected a name that ends in .npz or .parquet")


def read_dataset(path: str | Path) -> Dataset:
    """Read a dataset; DatasetError: it is none, or newer than this program."""
    path = Path(path)
    data = _read_parquet(path) if path.suffix == ".parquet" else _read_npz(path)
    if data.meta.get("format") != FORMAT:
        raise DatasetError(f"{path}: not a file of {FORMAT}")
    if data.meta.get("version", 0) > VERSION:
        raise DatasetError(f"{path}: version {data.meta['version']}, this program reads up to {VERSION}")
    lengths = {len(column) for column in data.columns.values()}
    if len(lengths) != 1 or "reward" not in data.columns:
        raise DatasetError(f"{path}: columns of different lengths, or without a reward")
    return data


def _write_npz(data: Dataset, path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:

        def put(name: str, content: bytes) -> None:
            entry = zipfile.ZipInfo(name, _DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)

        put(_META, json.dumps(data.meta, sort_keys=True).encode())
        for name, column in data.columns.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, np.ascontiguousarray(column), allow_pickle=False)
            put(f"{name}.npy", content.getvalue())


def _read_npz(path: Path) -> Dataset:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if _META not in names:
                raise DatasetError(f"{path}: not a file of {FORMAT}")
            meta: dict[str, Any] = json.loads(archive.read(_META))
            columns = {
                name.removesuffix(".npy"): np.lib.format.read_array(io.BytesIO(archive.read(name)), allow_pickle=False)
                for name in names
                if name.endswith(".npy")
            }
    except (zipfile.BadZipFile, json.JSONDecodeError, ValueError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{path}: {error}") from error
    return Dataset(columns, meta)


def _parquet() -> tuple[Any, Any]:
    try:
        import pyarrow  # type: ignore[import-not-found, import-untyped, unused-ignore]
        from pyarrow import parquet  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError as error:
        raise DatasetError("Parquet needs pyarrow (pip install pyarrow); .npz needs nothing more") from error
    return pyarrow, parquet


def _write_parquet(data: Dataset, path: Path) -> None:
    arrow, parquet = _parquet()
    arrays, shapes = [], {}
    for name, column in data.columns.items():
        if column.ndim == 1:
            arrays.append(arrow.array(column))
        else:
            shapes[name] = list(column.shape[1:])
            flat = arrow.array(np.ascontiguousarray(column).ravel())
            arrays.append(arrow.FixedSizeListArray.from_arrays(flat, int(np.prod(column.shape[1:]))))
    meta = {b"vickrey": json.dumps({**data.meta, "shapes": shapes}, sort_keys=True).encode()}
    fields = [arrow.field(name, array.type) for name, array in zip(data.columns, arrays, strict=True)]
    table = arrow.Table.from_arrays(arrays, schema=arrow.schema(fields, metadata=meta))
    parquet.write_table(table, path, compression="zstd")


def _read_parquet(path: Path) -> Dataset:
    arrow, parquet = _parquet()
    try:
        table = parquet.read_table(path)
    except arrow.ArrowInvalid as error:
        raise DatasetError(f"{path}: {error}") from error
    stored = (table.schema.metadata or {}).get(b"vickrey")
    if stored is None:
        raise DatasetError(f"{path}: not a file of {FORMAT}")
    meta: dict[str, Any] = json.loads(stored)
    shapes = meta.pop("shapes")
    columns = {}
    for name in table.column_names:
        chunks = table.column(name).combine_chunks()
        if name in shapes:
            columns[name] = chunks.flatten().to_numpy(zero_copy_only=False).reshape(-1, *shapes[name])
        else:
            columns[name] = chunks.to_numpy(zero_copy_only=False)
    return Dataset(columns, meta)


# --- recording --------------------------------------------------------------------------------------------------------


class Recorder(gym.Wrapper[Any, Any, Any, Any]):
    """Records every transition of an environment; `close` writes them when a path was given.

    Where the base policy bids (actions of kind curves) it records all of a network's inputs besides the observation:
    `rows` (servers, SERVER_COLUMNS) and `whole` (GLOBAL_COLUMNS), as a policy file meets them in service.
    Of a live balancer that is only watched, the action recorded is the directive in force where that has weights (as
    `info["weights"]`), for nothing else acted.
    """

    def __init__(self, env: gym.Env[Any, Any], path: str | Path | None = None, **meta: Any) -> None:
        super().__init__(env)
        self.path = None if path is None else Path(path)
        self.buffer = Buffer({"environment": _describe(env), **meta})
        self._observation: Any = None
        self._episode = -1
        self._core: Any = getattr(env.unwrapped, "core", None)
        self._watching = bool(self._core is not None and self._core.is_watching)
        self._counters = np.zeros(0)

    def _seen(self, observation: Any, *, first: bool) -> Any:
        """Return the observation, with a network's inputs where the environment has them."""
        core = self._core
        if core is None or core.base_curves is None or not isinstance(observation, dict):
            return observation
        core.prepare()
        reading = core.reading
        before = reading.counters[:1] if first else self._counters
        change = np.maximum(reading.counters[:1] - before, 0.0)
        self._counters = reading.counters[:1].copy()
        curves = core.base_curves[:1, :, : SLOPE_N + 1]
        active = reading.active[:1].copy()
        inputs = encode(reading.features[:1], active, change, curves, core.settings.interval, core.balancers)
        return {**observation, "rows": inputs.rows[0], "whole": inputs.whole[0]}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        self._observation, self._episode = self._seen(observation, first=True), self._episode + 1
        return observation, info

    def step(self, action: Any, *, propensity: float = np.nan) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step, and record; propensity: with what probability (or density) the policy chose this action."""
        before = self._observation
        observation, reward, terminated, truncated, info = self.env.step(action)
        after = self._seen(observation, first=False)
        self.buffer.add(
            before,
            info["weights"] if self._watching and "weights" in info else action,
            float(reward),
            after,
            terminated,
            truncated,
            propensity=propensity,
            cost=info.get("cost", 0.0),
            time=info.get("time", np.nan),
            episode=self._episode,
            policy=info.get("policy", ""),
        )
        self._observation = after
        return observation, reward, terminated, truncated, info

    def close(self) -> None:
        if self.path is not None and len(self.buffer):
            self.buffer.save(self.path)
        super().close()


class VectorRecorder(VectorWrapper[Any, Any, Any, Any, Any]):
    """Records every transition of a vector environment with next-step autoreset; resets are no transitions."""

    def __init__(self, env: VectorEnv[Any, Any, Any], path: str | Path | None = None, **meta: Any) -> None:
        super().__init__(env)
        if env.metadata.get("autoreset_mode") is not AutoresetMode.NEXT_STEP:
            raise DatasetError("VectorRecorder needs an environment with autoreset NextStep")
        self.path = None if path is None else Path(path)
        self.buffer = Buffer({"environment": _describe(env), **meta})
        self._observation: dict[str, NDArray[Any]] = {}
        self._ended = np.zeros(env.num_envs, dtype=np.bool_)
        self._episode = np.arange(env.num_envs)
        self._policy = str(getattr(env.unwrapped, "policy", ""))

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]
        self._observation = {key: value.copy() for key, value in _parts(observation).items()}
        self._ended[:] = False
        return observation, info

    def step(
        self, actions: Any, *, propensity: NDArray[Any] | None = None
    ) -> tuple[Any, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Step, and record; propensity: (num_envs,)."""
        before = self._observation
        observation, reward, terminated, truncated, info = self.env.step(actions)
        after = {key: value.copy() for key, value in _parts(observation).items()}
        for i in np.flatnonzero(~self._ended):
            self.buffer.add(
                {key: value[i] for key, value in before.items()},
                np.asarray(actions)[i],
                float(reward[i]),
                {key: value[i] for key, value in after.items()},
                bool(terminated[i]),
                bool(truncated[i]),
                propensity=np.nan if propensity is None else float(propensity[i]),
                cost=float(info["cost"][i]) if "cost" in info else 0.0,
                time=float(info["time"][i]) if "time" in info else np.nan,
                episode=int(self._episode[i]),
                policy=self._policy,
            )
        # Environment i's episodes are i, i + num_envs, …: numbers that no two share.
        self._episode[self._ended] += self.num_envs
        self._ended = np.asarray(terminated | truncated)
        self._observation = after
        return observation, reward, terminated, truncated, info

    def close(self, **kwargs: Any) -> None:
        if self.path is not None and len(self.buffer):
            self.buffer.save(self.path)
        super().close(**kwargs)


def _describe(env: Any) -> dict[str, Any]:
    """What is worth knowing of the environment later: its class, id and plain settings."""
    core = getattr(env.unwrapped, "core", None)
    described: dict[str, Any] = {"class": type(env.unwrapped).__name__, "id": env.spec.id if env.spec else None}
    if core is not None:
        s = core.settings
        described.update(
            source=s.source, action=core.kind.name, base=core.base.name, interval=s.interval, servers=core.servers
        )
    return described
