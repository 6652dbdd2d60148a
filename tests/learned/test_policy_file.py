"""Policy files: what is written is read, and whatever else a file may be is refused with the key that is wrong."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from safetensors.numpy import save as save_tensors

from controlplane.learned import manifest as manifests
from controlplane.learned import policy_file
from controlplane.learned.policy_file import PolicyFileError, dump, parse, read, write
from controlplane.learned.schema import ActionSchema
from tests.learned.files import CURVES, manifest, neutral, random, ranges, save

# A small one: every byte of it is changed below.
SMALL = dump(random(hidden=2), manifest(hidden=2))
PARAMETERS, MANIFEST = parse(SMALL)


def same(data: bytes) -> bool:
    """Whether the bytes are the very policy of SMALL."""
    parameters, found = parse(data)
    return found == MANIFEST and all(
        parameters[name].tobytes() == PARAMETERS[name].tobytes() for name in PARAMETERS | parameters
    )


# --- what is written is read ---


@pytest.mark.parametrize("kind", ["curves", "discrete", "weights"])
def test_what_is_written_is_read(tmp_path: Path, kind: str) -> None:
    levels = (1.0, 1.5, 2.0) if kind == "discrete" else (-1.0, 0.0, 1.0)
    schema = ActionSchema(kind, levels=levels)
    about = manifest(schema, 16, base={"name": "gsed", "c": 0.2}, evaluation={"gate": "passed", "mean": [1.9, 2.0]})
    parameters = random(schema=schema, hidden=16)
    written = write(tmp_path / "p.safetensors", parameters, about)
    found, read_back = read(tmp_path / "p.safetensors")
    assert read_back == written
    assert read_back.base == {"name": "gsed", "c": 0.2}
    assert read_back.evaluation == {"gate": "passed", "mean": [1.9, 2.0]}
    assert {name: values.tobytes() for name, values in found.items()} == {
        name: values.tobytes() for name, values in parameters.items()
    }


def test_the_same_policy_gives_the_same_bytes_and_other_readers_understand_them(tmp_path: Path) -> None:
    assert dump(random(hidden=2), manifest(hidden=2)) == SMALL
    (tmp_path / "p.safetensors").write_bytes(SMALL)
    assert set(load_file(tmp_path / "p.safetensors")) == set(PARAMETERS)


def test_bounds_left_out_are_those_of_the_environments() -> None:
    gymnasium = pytest.importorskip("gymnasium", reason="the environments need Gymnasium")
    assert gymnasium
    from dataclasses import asdict

    from controlplane.env import Bounds

    assert MANIFEST.schema.bounds == pytest.approx(asdict(Bounds()))
    assert pytest.approx(asdict(Bounds())) == manifests.BOUNDS


def test_ranges_are_those_of_the_inputs() -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(20_000, len(manifests.SERVER_COLUMNS)))
    whole = rng.uniform(-1.0, 1.0, size=(20_000, len(manifests.GLOBAL_COLUMNS)))
    found = manifests.Ranges.measure(rows, whole, (2, 16), (1, 4))
    assert found.rows["fct_mean"].low == pytest.approx(-2.326, abs=0.15)  # the normal distribution's 1 %
    assert found.whole["flows"].high == pytest.approx(0.98, abs=0.01)
    assert (found.servers, found.balancers) == ((2, 16), (1, 4))


def test_writing_leaves_the_old_file_where_the_new_one_would_be_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "p.safetensors")
    before = path.read_bytes()
    with pytest.raises(PolicyFileError, match=r"enter\.bias"):
        write(path, random() | {"enter.bias": np.full(8, np.nan, dtype=np.float32)}, manifest())
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["p.safetensors"]
    with pytest.raises(PolicyFileError, match="cannot be written"):
        write(tmp_path / "nowhere" / "p.safetensors", random(), manifest())


def test_an_evaluation_is_put_into_a_file_that_stays_the_same_policy(tmp_path: Path) -> None:
    path = save(tmp_path / "p.safetensors", evaluation={"gate": "none yet"})
    parameters, before = read(path)
    policy_file.set_evaluation(path, {"gate": "passed", "mean": 1.9})
    again, after = read(path)
    assert after.evaluation == {"gate": "passed", "mean": 1.9}
    assert after.sha256 != before.sha256
    assert all(again[name].tobytes() == parameters[name].tobytes() for name in parameters)


# --- damage ---


def test_every_bit_of_the_file_matters_or_changes_nothing() -> None:
    rng = np.random.default_rng(2)
    for place in range(len(SMALL)):
        damaged = bytearray(SMALL)
        damaged[place] ^= 1 << int(rng.integers(8))
        with contextlib.suppress(PolicyFileError):
            assert same(bytes(damaged)), place


@settings(max_examples=500)
@given(st.integers(0, len(SMALL) - 1), st.integers(0, 255))
def test_any_other_byte_anywhere_is_refused_or_the_same_policy(place: int, byte: int) -> None:
    damaged = bytearray(SMALL)
    damaged[place] = byte
    with contextlib.suppress(PolicyFileError):
        assert same(bytes(damaged))


def test_a_file_cut_short_anywhere_is_refused_and_so_is_one_with_more() -> None:
    for length in range(len(SMALL)):
        with pytest.raises(PolicyFileError):
            parse(SMALL[:length])
    for more in (b"\0", b" ", b"{}", SMALL):
        with pytest.raises(PolicyFileError, match="more than the tensors"):
            parse(SMALL + more)


@settings(max_examples=200)
@given(st.data())
def test_stretches_moved_or_doubled_are_refused(data: st.DataObject) -> None:
    a, b = sorted(data.draw(st.lists(st.integers(0, len(SMALL)), min_size=2, max_size=2)))
    damaged = data.draw(st.sampled_from([SMALL[:a] + SMALL[b:], SMALL[:b] + SMALL[a:], SMALL[b:] + SMALL[:b]]))
    try:
        assert same(damaged)
    except PolicyFileError:
        assert damaged != SMALL


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_garbage_is_refused(garbage: bytes) -> None:
    with pytest.raises(PolicyFileError):
        parse(garbage)
    with pytest.raises(PolicyFileError):
        parse(len(garbage).to_bytes(8, "little") + garbage)


# --- what is whole, and no policy of ours ---


def forged(change: Callable[[dict[str, Any]], None], tensors: dict[str, np.ndarray[Any, Any]] | None = None) -> bytes:
    """Return a file whose manifest was changed and signed anew: what is left to find it is what it says."""
    tree = json.loads(json.dumps(MANIFEST.as_json()))
    change(tree)
    tensors = PARAMETERS if tensors is None else tensors
    singles = {name: np.asarray(value, dtype=np.float32) for name, value in tensors.items()}
    tree["sha256"] = policy_file.digest(singles, tree)
    return bytes(save_tensors(tensors, {"vickrey": json.dumps(tree)}))


def put(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(tree: dict[str, Any]) -> None:
        *outer, last = key.split(".")
        for name in outer:
            tree = tree[name]
        if value is DELETE:
            del tree[last]
        else:
            tree[last] = value

    return change


DELETE = object()


def test_forging_itself_makes_good_files() -> None:
    assert parse(forged(lambda tree: None))[1] == MANIFEST


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("format", 2, "manifest.format: expected 1, not 2"),
        ("format", True, "manifest.format"),
        ("feature_version", 99, "manifest.feature_version: expected 1, not 99"),
        ("server_columns", [*manifests.SERVER_COLUMNS[::-1]], "manifest.server_columns: expected n_flow_on"),
        ("global_columns", ["servers"], "manifest.global_columns"),
        ("schema.kind", "moods", "manifest.schema"),
        ("schema.kind", "choice", "manifest.schema"),
        ("schema.levels", [-1.0, 1.0], "manifest.schema.levels: expected 0"),
        ("schema.levels", [-9.0, 0.0, 9.0], "manifest.schema.levels: expected numbers from -1 to 1"),
        ("schema.levels", [0.0], "manifest.schema: Value error, action levels"),
        ("schema.levels", [0.0] * 65, "manifest.schema.levels: 65 levels"),
        ("schema.levels", [0.0, None], "manifest.schema.levels.1"),
        ("schema.row_heads", ["mu", "mu"], "manifest.schema.row_heads"),
        ("schema.global_heads", ["mood"], "manifest.schema.global_heads: expected some of balancers, scale, window"),
        ("schema.bounds.mu", 50.0, "manifest.schema.bounds.mu: expected 0 … 4.16"),
        ("schema.bounds.mu", -1.0, "manifest.schema.bounds.mu"),
        ("schema.bounds.mu", DELETE, "manifest.schema.bounds"),
        ("schema.bounds.mood", 1.0, "manifest.schema.bounds"),
        ("schema.mood", 1.0, "manifest.schema.mood: unknown key"),
        ("hidden", 4, "expected shape"),
        ("hidden", 0, "manifest.hidden"),
        ("hidden", 10**9, "manifest.hidden"),
        ("hidden", "2", "manifest.hidden"),
        ("decode", "guess", "manifest.decode"),
        ("interval", 0.0, "manifest.interval"),
        ("interval", "0.2", "manifest.interval"),
        ("rule", "classic", "manifest.rule"),
        ("base", "learned", "manifest.base: a learned policy cannot be the base"),
        ("base", {"c": 1}, "manifest.base"),
        ("base", 7, "manifest.base"),
        ("equivariant", False, "manifest.equivariant: a network for exactly 256 servers"),
        ("servers_max", 1, "manifest.servers_max"),
        ("name", "../../etc/passwd", "manifest.name"),
        ("agent", DELETE, "manifest.agent: is missing"),
        ("agent", ["sac"], "manifest.agent"),
        ("moods", 1, "manifest.moods: unknown key"),
        ("evaluation", "good", "manifest.evaluation"),
        ("training.seed", 1.5, "manifest.training.seed"),
        ("training.command", None, "manifest.training.command"),
        ("ranges.servers", [9, 2], "manifest.ranges.servers: expected 1 <= least <= greatest"),
        ("ranges.servers", [2], "manifest.ranges.servers"),
        ("ranges.balancers", [0, 1], "manifest.ranges.balancers"),
        ("ranges.rows.fct_mean", DELETE, "manifest.ranges.rows: expected the columns"),
        ("ranges.rows.fct_mean.low", 200.0, "manifest.ranges.rows.fct_mean: expected low <= high"),
        ("ranges.rows.fct_mean.std", -1.0, "manifest.ranges.rows.fct_mean"),
        ("ranges.whole.fct.mean", "a", "manifest.ranges.whole.fct.mean"),
        ("ranges.whole.fct.mean", 10**400, "manifest"),
        ("sha256", 5, "manifest.sha256"),
    ],
)  # fmt: skip
def test_a_manifest_that_is_wrong_is_refused_by_its_key(key: str, value: Any, expected: str) -> None:
    if key == "sha256":
        tree = MANIFEST.as_json() | {"sha256": value}
        data = bytes(save_tensors(PARAMETERS, {"vickrey": json.dumps(tree)}))
    else:
        data = forged(put(key, value))
    with pytest.raises(PolicyFileError) as error:
        parse(data, "x.safetensors")
    assert str(error.value).startswith("x.safetensors: ")
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ({"enter.weight": np.zeros((2, 3), dtype=np.float32)}, "enter.weight: expected shape [2, 25], not [2, 3]"),
        ({"enter.weight": np.zeros(50, dtype=np.float32)}, "enter.weight: expected shape"),
        ({"enter.bias": np.zeros(2)}, "enter.bias: expected 32-bit floats (F32), not F64"),
        ({"enter.bias": np.zeros(2, dtype=np.int32)}, "enter.bias: expected 32-bit floats (F32), not I32"),
        ({"enter.bias": np.array([0, np.nan], dtype=np.float32)}, "enter.bias: values that are not finite"),
        ({"cell.bias_hh": np.full(6, -np.inf, dtype=np.float32)}, "cell.bias_hh: values that are not finite"),
        ({"row.weight": np.full((10, 6), 1e30, dtype=np.float32)}, "row.weight: expected weights of at most 10000"),
        ({"extra": np.zeros(1, dtype=np.float32)}, "extra: unknown tensor"),
        ({f"t{i}": np.zeros(0, dtype=np.float32) for i in range(99)}, "tensors, expected at most 64"),
        ({"enter.bias": None}, "enter.bias: the tensor is missing"),
    ],
)
def test_tensors_that_are_wrong_are_refused_by_their_name(tensors: dict[str, Any], expected: str) -> None:
    given = {name: values for name, values in (PARAMETERS | tensors).items() if values is not None}
    with pytest.raises(PolicyFileError) as error:
        parse(forged(lambda tree: None, given))
    assert expected in str(error.value)


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        (None, "no Vickrey policy"),
        ({"format": "pt"}, "no Vickrey policy"),
        ({"vickrey": "{"}, "manifest: not JSON"),
        ({"vickrey": "[]"}, "manifest: expected a JSON object"),
        ({"vickrey": "{}"}, "manifest.format"),
        ({"vickrey": '{"format": 1, "format": 1}'}, "a key is there twice"),
        ({"vickrey": '{"format": NaN}'}, "NaN is not a number"),
        ({"vickrey": "[" * 100_000}, "not JSON"),
        ({"vickrey": json.dumps(MANIFEST.as_json()), "other": "x"}, "expected the key vickrey alone"),
    ],
)
def test_a_foreign_file_is_refused(metadata: dict[str, str] | None, expected: str) -> None:
    with pytest.raises(PolicyFileError) as error:
        parse(bytes(save_tensors(PARAMETERS, metadata)))
    assert expected in str(error.value)


def test_a_policy_of_another_network_is_refused_by_its_checksum() -> None:
    tree = MANIFEST.as_json()
    with pytest.raises(PolicyFileError, match=r"manifest\.sha256: the file was changed"):
        parse(bytes(save_tensors(neutral(hidden=2), {"vickrey": json.dumps(tree)})))


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "exploded"),)

    path = tmp_path / "p.safetensors"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(PolicyFileError, match="not a safetensors file"):
        read(path)
    assert not (tmp_path / "exploded").exists()


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"")
    os.truncate(tmp_path / "large", policy_file.FILE_MAX + 1)
    for path, expected in [
        (tmp_path / "pipe", "expected a regular file"),
        (Path("/dev/zero"), "expected a regular file"),
        (tmp_path, "Is a directory|regular file"),
        (tmp_path / "none", "No such file"),
        (tmp_path / "large", "more than the 16 MiB"),
        ("a\0b", "not a file's name"),
    ]:
        with pytest.raises(PolicyFileError, match=expected):
            read(path)


def test_a_header_that_claims_too_much_is_refused_before_it_is_read() -> None:
    for length in (policy_file.HEADER_MAX + 1, 2**63, 2**64 - 1):
        with pytest.raises(PolicyFileError, match="header of"):
            parse(length.to_bytes(8, "little") + SMALL[8:])


def test_ranges_in_a_wide_file_are_the_ones_given() -> None:
    assert manifest().ranges == ranges()
    assert MANIFEST.schema.levels == CURVES.levels


def test_reading_needs_no_torch(tmp_path: Path) -> None:
    path = save(tmp_path / "p.safetensors")
    code = f"""
import sys
sys.modules['torch'] = sys.modules['gymnasium'] = None
from controlplane import registry
registry.create({{'name': 'learned', 'file': {str(path)!r}}})
"""
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
