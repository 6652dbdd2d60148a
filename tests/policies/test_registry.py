"""Policies by name: aliases, options, errors that help, and third parties' by entry point."""

from __future__ import annotations

import subprocess
import sys

import pytest

from controlplane import registry
from controlplane.policy import Policy
from tests.learned.files import make


@pytest.mark.parametrize("name", sorted(registry.BUILT_IN))
def test_every_policy_is_made_under_its_own_name(name):
    policy = make(name)
    assert isinstance(policy, Policy)
    assert policy.name == name


def test_names_of_haproxy_and_nginx_are_understood():
    for alias, name in [("leastconn", "lsq"), ("roundrobin", "wrr"), ("random", "p2c"), ("least_conn", "lsq")]:
        assert registry.create(alias).name == name


def test_an_unknown_name_is_told_the_nearest():
    with pytest.raises(ValueError, match=r"unknown policy 'adaptve' \(did you mean 'adaptive'\?\)"):
        registry.create("adaptve")


def test_an_unknown_option_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"unknown option 'cc' .*c"):
        registry.create({"name": "gsed", "cc": 1})
    with pytest.raises(ValueError, match="c >= 0"):
        registry.create({"name": "gsed", "c": -1.0})


def test_options_of_the_controller_are_not_the_policy_s():
    assert registry.create({"name": "lsq", "mode": "shadow", "enforcing": 5, "guard": False}).name == "lsq"


def test_a_third_party_registers_by_entry_point(tmp_path, monkeypatch):
    (tmp_path / "their_policy.py").write_text(
        "from controlplane.policies.lsq import LeastConnections\n"
        "class Theirs(LeastConnections):\n    name = 'theirs'\n"
        "    def __init__(self, knob=1):\n        self.knob = knob\n"
    )
    info = tmp_path / "their_policy-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-policy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[vickrey.policies]\ntheirs = their_policy:Theirs\nadaptive = their_policy:Theirs\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert registry.create({"name": "theirs", "knob": 7}).knob == 7
    assert "theirs" in registry.names()
    assert registry.create("adaptive").name == "adaptive"  # ours cannot be replaced


def test_a_third_party_that_cannot_be_imported_is_an_error_of_its_own(tmp_path, monkeypatch):
    (tmp_path / "broken_policy.py").write_text("def (\n")
    info = tmp_path / "broken_policy-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-policy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[vickrey.policies]\nbroken = broken_policy:Broken\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="policy broken cannot be loaded: SyntaxError"):
        registry.create("broken")


def test_listing_names_imports_no_numpy():
    code = "import sys, controlplane.registry as r; r.names(); sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
