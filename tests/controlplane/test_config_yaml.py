"""Reading YAML: what is not YAML is named in one line, and nothing a file holds makes reading it cost much."""

import os
import random
import re
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controlplane.commands.check import as_yaml
from controlplane.config import Config, ConfigError
from controlplane.config_checks import validate
from controlplane.config_errors import Problem
from controlplane.config_yaml import VALUES_MAX, parse_yaml
from tests.controlplane.config_text import problems, read, resolve, service

LINE = re.compile(r"f\.yaml(:\d+:\d+)?: \S.*")


def values(text: str) -> Any:
    document = parse_yaml(text, "f.yaml")
    assert document.problems == []
    return document.root


def test_values_are_those_of_yaml_1_2() -> None:
    text = "a: off\nb: yes\nc: 010\nd: 0o17\ne: 0x1f\nf: 1e3\ng: true\nh: 1_000\ni: 2001-01-01\nj: '5'\nk: 12:30\nl: -3"
    assert values(text) == {
        "a": "off", "b": "yes", "c": 10, "d": 15, "e": 31, "f": 1000.0, "g": True, "h": 1000, "i": "2001-01-01",
        "j": "5", "k": "12:30", "l": -3,
    }  # fmt: skip


def test_each_key_and_element_knows_its_line_and_column() -> None:
    document = parse_yaml("a:\n  b: [x,  {c: 1}]\n  d:\n    - y\n", "f.yaml")
    assert document.positions == {
        (): (1, 1), ("a",): (1, 1), ("a", "b"): (2, 3), ("a", "b", 0): (2, 7), ("a", "b", 1): (2, 11),
        ("a", "b", 1, "c"): (2, 12), ("a", "d"): (3, 3), ("a", "d", 0): (4, 7),
    }  # fmt: skip


def test_aliases_and_merged_keys_save_repeating_oneself() -> None:
    text = "a: &a {x: 1, y: {z: 2}}\nb: {<<: *a, x: 3}\nc: {<<: [{x: 4}, *a], w: 5}\nd: *a\n"
    assert values(text) == {
        "a": {"x": 1, "y": {"z": 2}},
        "b": {"x": 3, "y": {"z": 2}},
        "c": {"x": 4, "y": {"z": 2}, "w": 5},
        "d": {"x": 1, "y": {"z": 2}},
    }


def test_a_problem_in_a_merged_service_is_placed_where_its_text_stands(tmp_path: Path) -> None:
    text = """service:
  a: &a
    listen: :81
    mode: htp
    servers: [192.0.2.1:80]
  b:
    <<: *a
    listen: :82
    workers: -1
"""
    assert [line.split(": expected")[0] for line in problems(tmp_path, text)] == [
        "web.yaml:4:5: service.a.mode",
        "web.yaml:4:5: service.b.mode",
        "web.yaml:9:5: service.b.workers",
    ]


NOT_YAML = [
    ("", "empty: expected at least 'service:'"),
    ("# only a comment\n", "empty: expected at least 'service:'"),
    ("a: b: c", ":1:5: mapping values are not allowed here"),
    ("service:\n\tweb: 1", ":2:1: a tab cannot indent: use spaces"),
    ("service: [1, 2", ":1:15: expected ',' or ']', but got '<stream end>'"),
    ('a: "b', ":1:6: found unexpected end of stream"),
    ("a: *b", ":1:4: found undefined alias 'b'"),
    ("--- 1\n--- 2", ":2:1: expected one document, found another"),
    (b"a: \xff", ":1:4: not UTF-8 text: byte 0xff"),
    (b"\x7fELF\x02\x01\x01\x00", ":1:1: a character that YAML does not allow: U+007F"),
    (b"a: 1\nb: \x00", ":2:4: a character that YAML does not allow: U+0000"),
    ("[" * 5000, ""),
    ("- " * 5000, ""),
    ("? [a]\n: b\n", ":1:3: expected a key that is plain text"),
    ("~: 1\n", ":1:1: expected a key that is plain text"),
    ("a: &a [*a]\n", ""),
    ("a: " + "9" * 5000, ""),
    ("17", ":1:1: expected a mapping, not 17"),
    ("[1]", ":1:1: expected a mapping, not a list"),
    ("service: 3", ":1:1: service: expected a mapping, not 3"),
    ("service: {}", ":1:1: service: expected at least 1 of them, not 0"),
    ("service: {web: }", ":1:11: service.web: no value"),
    ("{}", ":1:1: service: this key is missing"),
    ("%YAML 9.9\n--- a", ""),
    ("a: !!binary x", ":1:1: a: the tag 'tag:yaml.org,2002:binary' is not used here"),
]


@pytest.mark.parametrize(("text", "complaint"), NOT_YAML, ids=[repr(t[0][:12]) for t in NOT_YAML])
def test_what_cannot_be_read_is_named_in_one_line(text: str | bytes, complaint: str, tmp_path: Path) -> None:
    found = problems(tmp_path, text)
    assert found
    assert any(line.removeprefix("web.yaml").removeprefix(": ").startswith(complaint) for line in found)
    assert all(re.fullmatch(r"web\.yaml(:\d+:\d+)?: \S.*", line) for line in found)


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    assert problems(tmp_path, b"\xef\xbb\xbf" + service().encode()) == []


def test_a_bomb_of_aliases_is_refused_at_once(tmp_path: Path) -> None:
    lines = ["a0: &a0 [" + ", ".join(["x"] * 10) + "]"]
    lines += [f"a{i}: &a{i} [" + ", ".join([f"*a{i - 1}"] * 10) + "]" for i in range(1, 12)]
    start = time.monotonic()
    found = problems(tmp_path, "\n".join(lines))
    assert f"more than {VALUES_MAX} values, aliases expanded" in found[0]
    assert time.monotonic() - start < 20


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    assert problems(tmp_path, b"#" * (5 << 20)) == ["web.yaml: larger than 4 MiB"]


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    from controlplane.config import load

    cases = {tmp_path / "none.yaml": "no such file or directory", tmp_path: "is a directory"}
    for path, what in cases.items():
        with pytest.raises(ConfigError, match=f"^{re.escape(str(path))}: {what}$"):
            load(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    file = tmp_path / "web.yaml"
    file.write_text(service())
    file.chmod(0)
    from controlplane.config import load

    with pytest.raises(ConfigError, match="permission denied"):
        load(file)


# --- properties ---


def check(text: str) -> list[Problem]:
    """Return the problems of a text; any exception but ConfigError fails the test."""
    found: ConfigError | None = None
    try:
        validate(parse_yaml(text, "f.yaml"), instance="i", strict=True, resolve=resolve)
    except ConfigError as error:
        found = error
    if found is None:
        return []
    assert found.problems
    for line in str(found).split("\n"):
        assert LINE.fullmatch(line), line
    return found.problems


KNOWN = [
    "service",
    "web",
    "listen",
    "servers",
    "address",
    "name",
    "weight",
    "maxconn",
    "backup",
    "state",
    "health",
    "path",
    "inter",
    "fall",
    "rise",
    "status",
    "timeout",
    "type",
    "policy",
    "mode",
    "enforcing",
    "fallback",
    "objective",
    "interval",
    "admin",
    "instance",
    "log",
    "access",
    "format",
    "forwarded",
    "trust",
    "connect",
    "http-request",
    "outlier",
    "retries",
    "queue",
    "off",
    "socket",
    "http",
    "tcp",
    "adaptive",
    "lsq",
    "ready",
    "127.0.0.1:80",
    ":81",
    "5s",
    "<<",
]


def words() -> st.SearchStrategy[str]:
    return st.sampled_from(KNOWN) | st.text(max_size=8)


def trees() -> st.SearchStrategy[Any]:
    scalars = words() | st.integers() | st.floats() | st.booleans() | st.none() | st.dates().map(str)
    return st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words(), inner, max_size=5),
        max_leaves=25,
    )


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(trees())
def test_no_tree_makes_a_traceback(tree: Any) -> None:
    check(as_yaml(tree))


@settings(max_examples=300)
@given(st.text() | st.text(alphabet="{}[]:,-&*!|>'\"%@`#?~<= \n\tab01", max_size=60))
def test_no_text_makes_a_traceback(text: str) -> None:
    check(text)


@settings(max_examples=200)
@given(st.integers(0, 2**32), st.binary(min_size=1, max_size=4))
def test_no_damage_to_a_good_file_makes_a_traceback(seed: int, damage: bytes) -> None:
    data = bytearray((Path(__file__).parents[2] / "examples/full.yaml").read_bytes())
    at = random.Random(seed).randrange(len(data))
    data[at : at + len(damage)] = damage
    check(data.decode("utf-8", "replace"))


def keys_in(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every mapping within a tree."""
    found = []
    if isinstance(tree, dict):
        found.append(path)
        for key, value in tree.items():
            found += keys_in(value, (*path, key))
    elif isinstance(tree, list):
        for i, value in enumerate(tree):
            found += keys_in(value, (*path, i))
    return found


def full_tree() -> dict[str, Any]:
    document = parse_yaml((Path(__file__).parents[2] / "examples/full.yaml").read_text(), "f.yaml")
    config = validate(document, instance="i", strict=False, resolve=resolve)
    tree = config.as_tree()
    tree["service"]["web"]["policy"] = {"name": "lsq"}
    return tree


@settings(max_examples=60)
@given(st.data())
def test_an_unknown_key_anywhere_is_the_one_problem_and_is_found_in_its_line(data: st.DataObject) -> None:
    tree = full_tree()
    path = data.draw(st.sampled_from([p for p in keys_in(tree) if p != ("service",)]))
    node: Any = tree
    for part in path:
        node = node[part]
    node["xyzzy"] = 1
    text = as_yaml(tree)
    found = check(text)
    assert len(found) == 1
    line = text.splitlines()[found[0].line - 1]
    assert line[found[0].column - 1 :].startswith("xyzzy:")
    assert found[0].key.endswith("xyzzy")


def test_the_effective_configuration_of_a_file_read_again_is_the_same(tmp_path: Path) -> None:
    config: Config = read(tmp_path, as_yaml(full_tree()))
    assert read(tmp_path, as_yaml(config.as_tree())) == config


def test_a_file_of_the_most_servers_is_read_in_seconds(tmp_path: Path) -> None:
    lines = [f"      - {{address: 10.0.{i >> 8}.{i & 255}:80, name: s{i}, weight: 20}}" for i in range(4096)]
    text = "service:\n  web:\n    listen: :8080\n    servers:\n" + "\n".join(lines) + "\n"
    start = time.monotonic()
    assert len(read(tmp_path, text).service["web"].servers) == 4096
    assert time.monotonic() - start < 30
