"""Hyper-parameters: a file for every agent, and mistakes named with their place."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, get_args, get_type_hints

import pytest

from controlplane.agents import AGENTS
from controlplane.cli import main
from controlplane.command import CommandError
from controlplane.training.config import CONFIGS, agent_class, load
from tests.training.small import TORCH

pytest.importorskip("torch", reason=TORCH)


@pytest.mark.parametrize("name", sorted(AGENTS))
def test_every_agent_has_a_file_that_loads(name):
    config = load(name)
    assert (CONFIGS / f"{name}.yaml").is_file()
    assert config.as_json()["agent"]["hidden"] == config.agent.hidden
    assert config.schema.kind == "curves"


def test_the_papers_action_sets_are_a_word_each():
    discrete, weights = load("sac", None, ["action.kind=discrete"]), load("sac", None, ["action.kind=weights"])
    assert discrete.schema.levels == (1.0, 1.5, 2.0)
    assert weights.action.limits == {"low": 1.0, "high": 2.0, "method": "clip"}
    own = load("sac", None, ["action.kind=weights", "action.limits={low: 0.5}"])
    assert own.action.limits == {"low": 0.5}


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


def numbers() -> list[tuple[str, str, bool]]:
    """Return agent, hyper-parameter and whether it is a whole number, of all that are numbers."""
    found = []
    for name in sorted(AGENTS):
        kind = agent_class(name).config_class
        hints: dict[str, Any] = get_type_hints(kind)
        for field in dataclasses.fields(kind):
            types = set(get_args(hints[field.name]) or [hints[field.name]])
            if types & {int, float}:
                found.append((name, field.name, float not in types))
    return found


@pytest.mark.parametrize(("agent", "key", "whole"), numbers())
def test_every_number_of_every_agent_has_bounds_on_both_sides(agent, key, whole):
    for value in ("-1000", "1" + "0" * 18) if whole else ("-1000.0", "1.0e+300", ".inf", ".nan"):
        with pytest.raises(CommandError) as raised:
            load(agent, None, [f"agent.{key}={value}"])
        assert str(raised.value).startswith(f"--set agent.{key}={value}: agent.{key}: expected ")
        assert raised.value.status == 2


@pytest.mark.parametrize(
    ("agent", "change", "said"),
    [
        ("sac", "steps_per_update=0", "agent.steps_per_update: expected at least 1, not 0"),
        ("sac", "batch=0", "agent.batch: expected at least 1, not 0"),
        ("sac", "capacity=0", "agent.capacity: expected at least 1, not 0"),
        ("sac", "capacity=100", "expected warmup of at most capacity, 100, not 2000"),
        ("sac", "target_rate=5", "agent.target_rate: expected at most 1.0, not 5"),
        ("sac", "gamma=2", "agent.gamma: expected at most 1.0, not 2"),
        ("sac", "learning_rate=-1", "agent.learning_rate: expected more than 0, not -1"),
        ("dqn", "epsilon=-1", "agent.epsilon: expected at least 0.0, not -1"),
        ("dqn", "epsilon=7", "agent.epsilon: expected at most 4.0, not 7"),
        ("ppo", "minibatches=0", "agent.minibatches: expected at least 1, not 0"),
        ("ppo", "length=0", "agent.length: expected at least 1, not 0"),
        ("ppo", "epochs=0", "agent.epochs: expected at least 1, not 0"),
        ("es", "beta2=1", "agent.beta2: expected less than 1.0, not 1"),
        ("sac", "training.replicas=5", "training.lanes: expected a divisor of replicas, 5"),
        ("ppo", "episode=30", "agent.horizon: expected training.episode - 1, 29"),
    ],
)
def test_a_mistake_on_the_command_line_is_told_of_the_option_and_no_file(agent, change, said):
    with pytest.raises(CommandError) as raised:
        load(agent, None, [change, "training.keep=4"])
    assert str(raised.value).startswith(f"--set {change}: ")
    assert said in str(raised.value)
    assert ".yaml" not in str(raised.value)


def test_a_mistake_in_a_file_keeps_its_place_beside_one_on_the_command_line(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("agent:\n  gamma: 2\n")
    with pytest.raises(CommandError) as raised:
        load("sac", str(path), ["hidden=0", "training.base={name: gsed}"])
    assert str(raised.value).splitlines() == [
        "--set hidden=0: agent.hidden: expected at least 1, not 0",
        f"{path}:2:3: agent.gamma: expected at most 1.0, not 2",
    ]


def test_a_change_that_another_one_needs_is_not_blamed_for_a_third():
    # Without the first change the second has nowhere to stand, which is not what is wrong.
    with pytest.raises(CommandError) as raised:
        load("sac", None, ["training.base={name: gsed}", "training.base.c=2.0", "training.replicas=5"])
    assert str(raised.value) == "--set training.replicas=5: training.lanes: expected a divisor of replicas, 5"


@pytest.mark.parametrize("name", sorted(AGENTS))
def test_what_is_shown_is_everything_and_a_file_that_means_the_same(name, tmp_path, capsys):
    assert main(["train", name, "--show", "--set", "hidden=7", "--set", "bounds={mu: 0.5}", "--steps", "77"]) == 0
    text = capsys.readouterr().out
    path = tmp_path / "shown.yaml"
    path.write_text(text)
    shown = load(name, str(path))
    wanted = load(name, None, ["hidden=7", "bounds={mu: 0.5}", "training.steps=77"])
    assert (shown.training, shown.agent, shown.schema) == (wanted.training, wanted.agent, wanted.schema)
    assert shown.complete() == wanted.complete()
    assert main(["train", name, "--show", "--config", str(path)]) == 0
    assert capsys.readouterr().out == text
    for section in ("action", "training", "agent"):
        for key, value in wanted.as_json()[section].items():
            assert value is None or f"\n  {key}:" in text, key
    assert "\n    window: " in text  # a bound that nothing said
    assert math.isclose(shown.schema.bounds["mu"], 0.5)
