"""Hyper-parameters of a training: one YAML file an agent in configs/, a file of one's own, and single keys over it.

    action:    what the policy may do (controlplane/learned/schema.py)
    training:  how it is trained: episodes, rewards, evaluations
    agent:     the agent's own (the fields of its Config in controlplane/agents)

A mistake is named with its place: `mine.yaml:7:3: agent.learning_rat: unknown key (did you mean 'learning_rate'?)`.
"""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator
from ruamel.yaml import YAML

from controlplane import registry
from controlplane.agents import AGENTS, surfaces
from controlplane.command import CommandError
from controlplane.config_errors import ConfigError, Problem, did_you_mean, key_text
from controlplane.config_yaml import Document, parse_yaml, read_yaml
from controlplane.env.actions import Bounds
from controlplane.env.objective import METRICS, Reward
from controlplane.learned.schema import CORRECTIONS, FIVE, GLOBALS, ActionSchema
from controlplane.simulation.scenario import Interval
from controlplane.simulation.scenario_file import validate_as
from controlplane.training.episodes import PAIRED
from controlplane.weights import WeightLimits

CONFIGS = Path(__file__).parent / "configs"
SECTIONS = ("action", "training", "agent")
# The action sets of MARLLB and of the Markov-potential-game paper.
DISCRETE, WEIGHTS = (1.0, 1.5, 2.0), {"low": 1.0, "high": 2.0, "method": "clip"}

Where = tuple[str | int, ...]


class Model(BaseModel):
    """Unknown keys are errors, nothing is converted silently, and nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Action(Model):
    """Heads and levels of the policy."""

    kind: Literal["curves", "discrete", "weights"] = "curves"
    levels: tuple[float, ...] = Field(default=FIVE, min_length=2, max_length=64)
    row_heads: tuple[Literal["mu", "k"], ...] = CORRECTIONS
    global_heads: tuple[Literal["balancers", "scale", "window"], ...] = GLOBALS
    bounds: dict[str, float] = Field(default_factory=dict)  # of env.Bounds
    rule: Literal["sed", "gsed", "alias", "wrr"] = "sed"  # of kinds discrete and weights
    limits: dict[str, Any] = Field(default_factory=dict)  # of env.WeightLimits

    @model_validator(mode="before")
    @classmethod
    def _published(cls, given: Any) -> Any:
        """Let the papers' kinds have the papers' sets unless others are given: {1, 1.5, 2}, and 1.0 to 2.0."""
        usual: dict[str, dict[str, Any]] = {"discrete": {"levels": DISCRETE}, "weights": {"limits": WEIGHTS}}
        kind = given.get("kind") if isinstance(given, dict) else None
        return usual.get(kind, {}) | given if isinstance(kind, str) else given

    @property
    def schema_(self) -> ActionSchema:
        """Return what networks and files take."""
        bounds = {f.name: float(getattr(Bounds(), f.name)) for f in dataclasses.fields(Bounds)} | dict(self.bounds)
        return ActionSchema(
            self.kind, self.levels, self.row_heads, self.global_heads, bounds if self.kind == "curves" else {}
        )


class Training(Model):
    """How any agent is trained. A step is one control interval of one farm."""

    steps: int = Field(default=500_000, ge=1)  # of all farms together; --steps
    replicas: int = Field(default=16, ge=1, le=4096)  # episodes side by side, of a round
    lanes: int = Field(default=4, ge=1, le=256)  # parts of a round that run apart: what workers share out
    episode: int = Field(default=100, ge=2, le=1_000_000)  # steps of an episode
    interval: Interval = 0.2
    base: str | dict[str, Any] = "adaptive"  # the policy underneath
    base_every: int = Field(default=1, ge=1)  # steps from one of its decisions to the next
    reward: str | dict[str, Any] = "fct"
    shared_reward: bool = True  # the balancers of a farm are rewarded alike
    settle: float = Field(default=0.2, ge=0, lt=1)  # share of an episode that evaluations leave out
    evaluate_every: int = Field(default=50_000, ge=1)  # steps
    evaluate_episodes: int = Field(default=16, ge=2, le=10_000)  # of each scenario
    checkpoint_every: int = Field(default=50_000, ge=1)  # steps
    keep: int = Field(default=3, ge=1)  # checkpoints that stay


@dataclasses.dataclass(frozen=True)
class Config:
    """All of it, checked."""

    name: str  # of the agent
    action: Action
    training: Training
    agent: Any  # the agent's Config

    @property
    def schema(self) -> ActionSchema:
        return self.action.schema_

    def as_json(self) -> dict[str, Any]:
        """Return plain values, in the file's order."""
        return {
            "action": _plain(self.action.model_dump()),
            "training": _plain(self.training.model_dump()),
            "agent": _plain(dataclasses.asdict(self.agent)),
        }

    def complete(self) -> dict[str, Any]:
        """Return plain values, those of bounds and limits that are not said included."""
        bounds, limits = Bounds(**self.action.bounds), WeightLimits(**self.action.limits)
        tree = self.as_json()
        tree["action"] |= {"bounds": dataclasses.asdict(bounds), "limits": dataclasses.asdict(limits)}
        return tree

    def as_yaml(self) -> str:
        """Return all of it as text that `load` takes for a file."""
        yaml = YAML(typ="safe", pure=True)
        yaml.default_flow_style = False
        yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
        text = io.StringIO()
        yaml.dump(_without_none(self.complete()), text)
        return text.getvalue()


def _without_none(value: Any) -> Any:
    """Return a value without the keys that have none, which a file leaves out."""
    return {k: _without_none(v) for k, v in value.items() if v is not None} if isinstance(value, dict) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(v) for key, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def agents() -> list[str]:
    """Return the names of the agents that can be trained."""
    return sorted(AGENTS)


def agent_class(name: str) -> Any:
    """Return an agent's class. Raises CommandError for an unknown one, or when torch is missing."""
    if name not in AGENTS:
        what = f"no agent is called {name!r}{did_you_mean(name, AGENTS)}; there are {', '.join(agents())}"
        raise CommandError(what, status=2)
    from controlplane.agents import agent_class as find

    try:
        return find(name)
    except ImportError as error:
        raise CommandError(str(error)) from None


@functools.cache
def model_of(name: str) -> type[Model]:
    """Return the model of an agent's file; the section `agent` has the fields of its Config."""
    config_class = agent_class(name).config_class
    hints = get_type_hints(config_class, include_extras=True)  # with their bounds
    fields: dict[str, Any] = {f.name: (hints[f.name], f.default) for f in dataclasses.fields(config_class) if f.init}
    agent = create_model("Agent", __base__=Model, **fields)
    return create_model(
        "File",
        __base__=Model,
        action=(Action, Action()),
        training=(Training, Training()),
        agent=(agent, agent()),
    )


def load(name: str, file: str | None = None, changes: Sequence[str] = ()) -> Config:
    """Return an agent's configuration: from its shipped file or `file`, with `key=value` changes over it.

    Raises CommandError with all that is wrong in it.
    """
    try:
        valid = _validated(name, file, changes)
    except ConfigError as error:
        told = ConfigError(_on_the_command_line(problem, name, file, changes) for problem in error.problems)
        raise CommandError(str(told), status=2, details={"problems": told.as_json()}) from None
    return Config(name, valid.action, valid.training, agent_class(name).config_class(**valid.agent.model_dump()))


def _validated(name: str, file: str | None, changes: Sequence[str]) -> Any:
    model = model_of(name)
    document = read_yaml(CONFIGS / f"{name}.yaml" if file is None else file, "'training:'")
    if file is not None:
        _fill_in(document, read_yaml(CONFIGS / f"{name}.yaml"))
    for change in changes:
        _change(document, name, change)
    return validate_as(model, document, functools.partial(_mistakes, name))


def _on_the_command_line(problem: Problem, name: str, file: str | None, changes: Sequence[str]) -> Problem:
    """Return a problem with the change as its place that gave its key, or without which it would not be there."""
    for change in reversed(changes):
        key = key_text(path_of(name, change))
        if problem.key == key or problem.key.startswith((f"{key}.", f"{key}[")):
            return dataclasses.replace(problem, file=f"--set {change}", line=0, column=0)
    guilty = []
    for i, change in enumerate(changes):
        try:
            _validated(name, file, [*changes[:i], *changes[i + 1 :]])
            left = []
        except ConfigError as error:
            left = [other.key for other in error.problems]
        except CommandError:
            continue  # a later change needs this one: what would be wrong without it cannot be told
        if problem.key not in left:
            guilty.append(f"--set {change}")
    return dataclasses.replace(problem, file=" ".join(guilty), line=0, column=0) if guilty else problem


def _fill_in(document: Document, shipped: Document) -> None:
    """Take what a file leaves out from the agent's shipped one."""
    if not isinstance(document.root, dict):
        return
    for section, values in shipped.root.items():
        own = document.root.setdefault(section, {})
        if isinstance(own, dict):
            for key, value in values.items():
                own.setdefault(key, value)


def path_of(name: str, change: str) -> tuple[str, ...]:
    """Return where the key of a `--set key=value` stands; it may leave its section out. Raises CommandError."""
    model = model_of(name)
    key, equals, _ = change.partition("=")
    path = tuple(key.strip().split("."))
    if not equals or not all(path):
        raise CommandError(f"--set {change}: expected KEY=VALUE", status=2)
    known = {s: list(model.model_fields[s].annotation.model_fields) for s in SECTIONS}  # type: ignore[union-attr]
    if path[0] in SECTIONS:
        return path
    homes = [s for s in SECTIONS if path[0] in known[s]]
    if not homes:
        every = [k for keys in known.values() for k in keys]
        near = did_you_mean(path[0], every)
        raise CommandError(f"--set {change}: unknown key{near or '; keys: ' + ', '.join(every)}", status=2)
    if len(homes) > 1:
        places = " or ".join(f"{s}.{path[0]}" for s in homes)
        raise CommandError(f"--set {change}: which one, {places}?", status=2)
    return (homes[0], *path)


def _change(document: Document, name: str, change: str) -> None:
    """Apply one `--set key=value`."""
    path = path_of(name, change)
    key, _, text = change.partition("=")
    try:
        value = parse_yaml(text, f"--set {key}").root
    except ConfigError as error:
        raise CommandError(str(error), status=2) from None
    node = document.root
    for part in path[:-1]:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise CommandError(f"--set {change}: {part} holds no keys", status=2)
    node[path[-1]] = value
    # What is wrong with it is wrong on the command line, not in the file.
    for place in [p for p in document.positions if p[: len(path)] == path]:
        del document.positions[place]
    document.positions[path] = (0, 0)


def _mistakes(name: str, valid: Any) -> Iterator[tuple[Where, str]]:
    """Yield what no type can tell."""
    action, training = valid.action, valid.training
    try:
        Bounds(**action.bounds)
    except (TypeError, ValueError) as error:
        unknown = [key for key in action.bounds if key not in {f.name for f in dataclasses.fields(Bounds)}]
        yield (
            (("action", "bounds", unknown[0]), "unknown key" + did_you_mean(unknown[0], [*CORRECTIONS, *GLOBALS]))
            if unknown
            else (("action", "bounds"), str(error))
        )
    try:
        WeightLimits(**action.limits)
    except (TypeError, ValueError) as error:
        yield ("action", "limits"), str(error)
    if action.kind == "curves":
        if 0.0 not in action.levels:
            yield ("action", "levels"), "expected 0, the base policy itself, among them"
        if not all(-1 <= level <= 1 for level in action.levels):
            yield ("action", "levels"), "expected levels from -1 to 1"
    elif action.kind == "discrete" and not (all(x >= 0 for x in action.levels) and any(action.levels)):
        yield ("action", "levels"), "expected weights of at least 0, and one above it"
    if not action.row_heads and not action.global_heads:
        yield ("action", "row_heads"), "expected a head, here or in global_heads"
    try:
        if registry.create(training.base).name == "learned":
            yield ("training", "base"), "a learned policy cannot be the base of another; --from begins with one"
    except Exception as error:  # whatever a policy's constructor raises
        yield ("training", "base"), " ".join(str(error).split()) or type(error).__name__
    if isinstance(training.reward, str) and training.reward not in (*PAIRED, *METRICS):
        what = f"no reward is called {training.reward!r}{did_you_mean(training.reward, [*PAIRED, *METRICS])}"
        yield ("training", "reward"), f"{what}; there are {', '.join([*PAIRED, *METRICS])}"
    elif not isinstance(training.reward, str):
        try:
            Reward.of(training.reward)
        except (TypeError, ValueError) as error:
            yield ("training", "reward"), str(error)
    if training.replicas % training.lanes:
        yield ("training", "lanes"), f"expected a divisor of replicas, {training.replicas}"
    found = agent_class(name)
    try:
        own = found.config_class(**valid.agent.model_dump())
    except (TypeError, ValueError) as error:
        yield ("agent",), str(error)
        return
    if found.name == "arms":
        try:
            surfaces.units_of(action.schema_)
        except ValueError as error:
            yield ("action",), f"{error}: what agent arms corrects"
    horizon = getattr(own, "horizon", None)
    if found.on_policy and horizon is not None and horizon + 1 != training.episode:
        yield (
            ("agent", "horizon"),
            f"expected training.episode - 1, {training.episode - 1}: {name} learns once from each round, whose last "
            "step is only looked at",
        )
