"""Transitions to files and back: what went in comes out, and the same run gives the same bytes."""

import importlib.util
import json
import zipfile

import gymnasium
import numpy as np
import pytest

from controlplane.env import LoadBalance, LoadBalanceVector
from controlplane.env.dataset import VERSION, Buffer, DatasetError, Recorder, VectorRecorder, read_dataset
from controlplane.learned.encoding import SERVER_COLUMNS
from tests.env.worlds import INTERVAL, farm

NO_PYARROW = importlib.util.find_spec("pyarrow") is None
FORMATS = [
    "npz",
    pytest.param(
        "parquet", marks=pytest.mark.skipif(NO_PYARROW, reason="pyarrow, which is optional, is not installed")
    ),
]


def record(path, steps=25, **settings):
    env = gymnasium.wrappers.TimeLimit(LoadBalance(world=farm(), interval=INTERVAL, base="gsed", **settings), 10)
    env = Recorder(env, path)
    env.action_space.seed(1)
    observation, _ = env.reset(seed=1)
    seen = []
    for i in range(steps):
        action = env.action_space.sample()
        after, reward, terminated, truncated, info = env.step(action, propensity=0.25 + i / 100)
        seen.append((observation, action, reward, after, terminated, truncated, info["time"], 0.25 + i / 100))
        observation = after
        if truncated:
            observation, _ = env.reset()
    env.close()
    return seen


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("action", ["curves", "discrete"])
def test_what_was_recorded_is_read_back(tmp_path, suffix, action):
    path = tmp_path / f"run.{suffix}"
    seen = record(path, action=action)
    data = read_dataset(path)
    assert len(data) == len(seen)
    for i, (before, chosen, reward, after, terminated, truncated, time, propensity) in enumerate(seen):
        row = {name: column[i] for name, column in data.columns.items()}
        assert (row["observation.servers"] == before["servers"]).all()
        assert (row["observation.active"] == before["active"]).all()
        assert (row["next_observation.servers"] == after["servers"]).all()
        assert (row["action"] == chosen).all()
        assert (row["reward"], row["time"], row["propensity"]) == (reward, time, propensity)
        assert (row["terminated"], row["truncated"]) == (terminated, truncated)
    assert data.columns["episode"].tolist() == [0] * 10 + [1] * 10 + [2] * 5
    assert data.columns["action"].dtype == chosen.dtype
    assert data.columns["observation.servers"].dtype == np.float32
    assert data.meta["policies"] == ([f"env.{action}:gsed"] if action == "curves" else [f"env.{action}"])
    assert data.meta["environment"]["action"] == action
    assert data.meta["version"] == VERSION


def test_a_networks_inputs_are_recorded_where_the_base_policy_bids(tmp_path):
    record(tmp_path / "run.npz", action="curves")
    columns = read_dataset(tmp_path / "run.npz").columns
    rows, active = columns["next_observation.rows"], columns["next_observation.active"].astype(bool)
    share = rows[:, :, SERVER_COLUMNS.index("flows_share")]
    assert (np.abs(share[active]) > 0).mean() > 0.5, "counters of what was dispatched in the step"
    assert (rows[:, :, SERVER_COLUMNS.index("bid_idle")][active] > -4).all(), "the base policy's bids"
    assert (columns["observation.rows"][1:10] == rows[:9]).all(), "within an episode what follows is what was before"
    assert not columns["observation.rows"][10, :, SERVER_COLUMNS.index("flows_share")].any(), "an episode begins anew"
    record(tmp_path / "weights.npz", action="discrete")
    assert "observation.rows" not in read_dataset(tmp_path / "weights.npz").columns


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_same_run_gives_the_same_bytes(tmp_path, suffix):
    for name in ("a", "b"):
        record(tmp_path / f"{name}.{suffix}")
    assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


def test_a_flat_observation_is_recorded_too(tmp_path):
    env = Recorder(gymnasium.wrappers.FlattenObservation(LoadBalance(world=farm(), base="gsed")), tmp_path / "flat.npz")
    env.reset(seed=1)
    env.step(env.action_space.sample())
    env.close()
    assert read_dataset(tmp_path / "flat.npz").columns["observation.value"].shape == (1, 4 * 12)


def test_a_vector_is_recorded_without_its_resets(tmp_path):
    envs = VectorRecorder(
        LoadBalanceVector(3, world=farm(), interval=INTERVAL, base="gsed", max_episode_steps=4), tmp_path / "v.npz"
    )
    envs.reset(seed=1)
    envs.action_space.seed(1)
    for _ in range(12):
        envs.step(envs.action_space.sample(), propensity=np.full(3, 0.5))
    envs.close()
    data = read_dataset(tmp_path / "v.npz")
    # Of 12 steps two are resets of each: 4 + 1 + 4 + 1 + 2.
    assert len(data) == 3 * 10
    for episode in range(9):
        rows = np.flatnonzero(data.columns["episode"] == episode)
        after = data.columns["next_observation.servers"][rows[:-1]]
        assert (data.columns["observation.servers"][rows[1:]] == after).all()
        assert data.columns["time"][rows] == pytest.approx(INTERVAL * np.arange(1, len(rows) + 1))
    assert (data.columns["propensity"] == 0.5).all()


def test_buffers_grow():
    buffer = Buffer()
    for i in range(3000):
        buffer.add(np.array([i]), i, i, np.array([i + 1]), False, False)
    data = buffer.dataset()
    assert len(data) == 3000
    assert (data.columns["next_observation.value"][:, 0] == np.arange(1, 3001)).all()
    assert np.isnan(data.columns["propensity"]).all()


def test_another_shape_of_transition_is_refused():
    buffer = Buffer()
    buffer.add(np.zeros(2), 0, 0, np.zeros(2), False, False)
    with pytest.raises(DatasetError, match="a transition with"):
        buffer.add({"servers": np.zeros(2)}, 0, 0, {"servers": np.zeros(2)}, False, False)


def test_files_of_others_are_refused(tmp_path):
    np.savez(tmp_path / "other.npz", reward=np.zeros(3))
    (tmp_path / "text.npz").write_text("no zip")
    for name in ("other.npz", "text.npz"):
        with pytest.raises(DatasetError, match=name):
            read_dataset(tmp_path / name)


def test_a_newer_version_is_refused(tmp_path):
    path = tmp_path / "run.npz"
    record(path, steps=3)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "new.npz", "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "meta.json":
                content = json.dumps(json.loads(content) | {"version": VERSION + 1}).encode()
            new.writestr(name, content)
    with pytest.raises(DatasetError, match=f"version {VERSION + 1}"):
        read_dataset(tmp_path / "new.npz")


def test_an_unknown_suffix_is_refused(tmp_path):
    with pytest.raises(DatasetError, match=r"\.npz or \.parquet"):
        record(tmp_path / "run.csv", steps=1)


@pytest.mark.skipif(not NO_PYARROW, reason="pyarrow is installed")
def test_parquet_without_pyarrow_says_what_to_install(tmp_path):
    with pytest.raises(DatasetError, match="pip install pyarrow"):
        record(tmp_path / "run.parquet", steps=1)


def test_recording_changes_nothing_of_what_is_recorded():
    """The action's window is the memory of a base that learns: whoever looks at its bids first must not shift it."""

    def rewards(*, recorded: bool) -> list[float]:
        env = LoadBalance(world=farm(), interval=INTERVAL, base="adaptive", action="curves")
        made = Recorder(env) if recorded else env
        made.reset(seed=1)
        action = np.zeros(made.action_space.shape, dtype=np.float32)
        found = []
        for i in range(60):
            action[2] = (-1.0) ** i
            found.append(float(made.step(action)[1]))
        made.close()
        return found

    assert rewards(recorded=True) == rewards(recorded=False)
