"""Hyper-parameters: a file for every agent, and mistakes named with their place."""

from __future__ import annotations

import pytest

from controlplane.agents import AGENTS
from controlplane.command import CommandError
from controlplane.training.config import CONFIGS, load
from tests.training.small import TORCH

pytest.importorskip("torch", reason=TORCH)


@pytest.mark.parametrize("name", sorted(AGENTS))
def test_every_agent_has_a_file_that_loads(name):
    config = load(name)
    assert (CONFIGS / f"{name}.yaml").is_file()
    assert config.as_json()["agent"]["hidden"] == config.agent.hidden
    assert config.schema.kind == "curves"


def test_keys_on_the_command_line_stand_above_the_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("agent: {hidden: 8, gamma: 0.5}\n")
    config = load("sac", str(path), ["gamma=0.7", "training.episode=50", "levels=[-1, 0, 1]"])
    assert (config.agent.hidden, config.agent.gamma, config.training.episode) == (8, 0.7, 50)
    assert config.schema.levels == (-1.0, 0.0, 1.0)
    assert config.training.replicas == load("sac").training.replicas  # what the file leaves out is the agent's own


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("agent:\n  hiden: 8\n", "mine.yaml:2:3: agent.hiden: unknown key (did you mean 'hidden'?)"),
        ("agent:\n  hidden: x\n", "mine.yaml:2:3: agent.hidden: expected a whole number, not 'x'"),
        ("training:\n  lanes: 3\n  replicas: 4\n", "mine.yaml:2:3: training.lanes: expected a divisor of replicas, 4"),
        ("training: {reward: fct_man}\n", "training.reward: no reward is called 'fct_man' (did you mean 'fct_mean'?)"),
        ("training: {base: adaptiv}\n", "training.base"),
        ("training: {interval: 5}\n", "has no unit"),
        ("action: {levels: [0.5, 1]}\n", "action.levels: expected 0, the base policy itself, among them"),
        ("action: {bounds: {nu: 1.0}}\n", "action.bounds.nu: unknown key"),
        ("action: {kind: curve}\n", "action.kind: expected"),
        ("nothing\n", "mine.yaml"),
        ("agent: [1, 2]\n", "agent: expected a mapping"),
    ],
)
def test_a_mistake_in_a_file_is_named_with_its_place(tmp_path, text, said):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(CommandError) as raised:
        load("sac", str(path))
    assert said in str(raised.value)
    assert raised.value.status == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("hiden=8", "did you mean 'hidden'"),
        ("hidden", "expected KEY=VALUE"),
        ("agent.hiden=8", "agent.hiden: unknown key (did you mean 'hidden'?)"),
        ("hidden=[", "--set hidden"),
        ("hidden=many", "agent.hidden: expected a whole number, not 'many'"),
    ],
)
def test_a_mistake_on_the_command_line_is_named(change, said):
    with pytest.raises(CommandError) as raised:
        load("sac", None, [change])
    assert said in str(raised.value)
    assert raised.value.status == 2


def test_an_agent_that_does_not_exist_is_named_with_the_one_that_was_meant():
    with pytest.raises(CommandError, match="did you mean 'sac'"):
        load("sacc")


def test_an_on_policy_agent_learns_from_whole_rounds():
    with pytest.raises(CommandError, match=r"agent\.horizon: expected training\.episode - 1, 29"):
        load("ppo", None, ["training.episode=30"])
