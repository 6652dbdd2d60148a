"""What docs/auction.md says of the live auction is there: the places it names, the options, the examples."""

from __future__ import annotations

import re
from pathlib import Path

from controlplane import registry
from controlplane.simulation.runs import execute, jobs_of
from controlplane.simulation.scenario_file import load

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "auction.md").read_text()


def test_the_files_that_the_page_names_are_there():
    named = set(re.findall(r"`((?:controlplane|dataplane|benchmarks|examples)/[\w/.-]+\.\w+)`", PAGE))
    assert len(named) > 5
    assert not [path for path in named if not (ROOT / path).exists()]


def test_the_functions_of_the_equations_are_in_the_rule():
    rule = (ROOT / "dataplane" / "core" / "classic.c").read_text()
    for name in ("classic_rekey", "ask", "classic_dispatch", "hand_off"):
        assert f"`{name}`" in PAGE
        assert re.search(rf"\b{name}\(", rule)


def test_every_option_of_the_policy_stands_in_the_example():
    example = (ROOT / "examples" / "auction-live.yaml").read_text()
    missing = [name for name in registry.options("auction") if f"{name}:" not in example]
    assert missing == ["neural_rate", "seed"]  # of the network and of its random numbers
    assert "ledger:" in example
    assert "ledger_sample:" in example


def test_the_simulated_example_runs():
    scenario = load(str(ROOT / "examples" / "auction-sim.yaml"))
    small = scenario.model_copy(update={"flows": 2000, "seeds": (1,)})
    for job in jobs_of(small):
        assert 0 < execute(job).figures["mean"] < 10
