"""A suite: the scenarios that a policy is evaluated in, and how often. Reads its file, or makes one of a scenario.

    title: …
    seeds: 10                                   # or a list of them; a number counts from 101 on
    scenarios:
      - {name: speeds-90, family: speeds, base: heterogeneous-4x, load: 0.9, duration: 60s}
      - {name: mine, servers: [{count: 4}], demand: {kind: exponential, mean: 10ms}, load: 0.7, flows: 50000}

`base` is a shipped scenario, or a file beside the suite's; all other keys are a scenario's and stand in place of the
base's. Heuristics are tuned once for each family (without one: for the scenario alone). `recovery` names the phase
that tells how soon a policy recovers. What is wrong is named with file, line and key.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from controlplane.config_errors import ConfigError, Problem, did_you_mean, locate
from controlplane.config_values import shown
from controlplane.config_yaml import Document, read_yaml
from controlplane.simulation import scenario_file
from controlplane.simulation.scenario import FLOWS_DEFAULT, SEEDS_MAX, Exponential, Poisson, Scenario

LIBRARY = Path(__file__).parent / "suites"
DEFAULT = "default"
# Seeds of the evaluation, and those on which heuristics are tuned. `vickrey sim` counts from 1 on: whoever looks at
# runs by hand, or trains, has not looked at these.
FIRST_SEED, SEEDS = 101, 10
TUNING_SEEDS = (9001, 9002)
# Runs in which heuristics are tuned are so much shorter.
TUNING_LENGTH = 0.5

# In a quick look: so many seeds, each run so much shorter (where no event is at a fixed time).
QUICK_SEEDS, QUICK_LENGTH = 4, 0.25

_OWN = ("name", "family", "base", "recovery")
_NOT_HERE = ("policies", "seeds", "reference")
# Of two that mean the same: who gives one takes the other of the base back.
_EITHER = {"load": "rate", "rate": "load", "flows": "duration", "duration": "flows"}


@dataclass(frozen=True)
class Entry:
    """One scenario of a suite. Its policies, seeds and reference are the evaluation's."""

    name: str
    family: str
    scenario: Scenario
    recovery: str | None = None  # name of the phase that tells how soon a policy recovers

    @property
    def references(self) -> tuple[str, ...]:
        """Return the references that make sense in it."""
        scenario = self.scenario
        plain = isinstance(scenario.demand, Exponential) and isinstance(scenario.arrivals, Poisson)
        closed = ("birth-death",) if plain and not scenario.events else ()
        return ("central-queue", "least-work-left", "srpt", *closed)

    def shortened(self, factor: float) -> Entry:
        """Return it with runs so much shorter; as it is where events change the world at fixed times."""
        scenario = self.scenario
        if scenario.events:
            return self
        changes: dict[str, Any] = {}
        if scenario.duration is not None:
            changes["duration"] = scenario.duration * factor
        if scenario.flows is not None:
            changes["flows"] = max(1, round(scenario.flows * factor))
        elif scenario.duration is None:
            changes["flows"] = max(1, round(FLOWS_DEFAULT * factor))
        return replace(self, scenario=scenario.model_copy(update=changes))


@dataclass(frozen=True)
class Suite:
    name: str
    title: str
    entries: tuple[Entry, ...]
    seeds: tuple[int, ...]
    tuning_seeds: tuple[int, ...] = TUNING_SEEDS

    def digest(self) -> str:
        """Return what identifies its scenarios and seeds, in 16 characters."""
        return digest([[e.name, e.family, plain(e.scenario)] for e in self.entries], list(self.seeds))

    def part(self, names: Sequence[str]) -> Suite:
        """Return it with these scenarios only."""
        return replace(self, entries=tuple(entry for entry in self.entries if entry.name in names))

    def quick(self) -> Suite:
        entries = tuple(entry.shortened(QUICK_LENGTH) for entry in self.entries)
        return replace(self, entries=entries, seeds=self.seeds[:QUICK_SEEDS])

    def families(self) -> dict[str, list[Entry]]:
        found: dict[str, list[Entry]] = {}
        for entry in self.entries:
            found.setdefault(entry.family, []).append(entry)
        return found


def plain(scenario: Scenario) -> dict[str, Any]:
    """Return all of a scenario that its runs depend on, as plain values."""
    return scenario.model_dump(mode="json", exclude={"title", "description", *_NOT_HERE})


def digest(*values: Any) -> str:
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def library() -> list[str]:
    """Return the names of the suites that come with Vickrey."""
    return sorted(path.stem for path in LIBRARY.glob("*.yaml"))


def load(name: str) -> Suite:
    """Return a suite: a shipped one, a suite's file, or one of a single scenario. Raises ConfigError."""
    if name in library():
        return _read(read_yaml(LIBRARY / f"{name}.yaml"), name)
    if name not in scenario_file.library() and not _is_path(name):
        known = [*library(), *scenario_file.library()]
        what = f"no suite or scenario is called so{did_you_mean(name, known)}"
        raise ConfigError([Problem(name, 0, 0, "", f"{what}; `vickrey eval --list` shows all")])
    document = read_yaml(scenario_file.find(name), "'servers:', or 'scenarios:' of a suite")
    if isinstance(document.root, dict) and "scenarios" in document.root:
        return _read(document, Path(name).stem)
    scenario = scenario_file.validate(document)
    entry = Entry(Path(name).stem, Path(name).stem, scenario)
    return Suite(entry.name, scenario.title or entry.name, (entry,), _seeds(SEEDS))


def _is_path(name: str) -> bool:
    return Path(name).exists() or "/" in name or name.endswith((".yaml", ".yml"))


def _seeds(number: int, first: int = FIRST_SEED) -> tuple[int, ...]:
    return tuple(range(first, first + number))


def seeds_of(value: Any) -> tuple[int, ...]:
    """Return seeds given as a number of them or as a list. Raises ValueError."""
    if isinstance(value, int) and not isinstance(value, bool):
        if not 1 <= value <= SEEDS_MAX:
            raise ValueError(f"expected a number of seeds from 1 to {SEEDS_MAX}, or a list, not {value}")
        return _seeds(value)
    values = tuple(value) if isinstance(value, (list, tuple)) else ()
    if not values or any(isinstance(v, bool) or not isinstance(v, int) or not 0 <= v < 2**63 for v in values):
        raise ValueError(f"expected a number of seeds, or a list of whole numbers from 0, not {shown(value)}")
    if len(set(values)) < len(values):
        raise ValueError("expected each seed once")
    return values


# Reading a suite's file.


def _read(document: Document, name: str) -> Suite:
    problems = list(document.problems)
    root = document.root if isinstance(document.root, dict) else {}

    def wrong(path: tuple[str | int, ...], what: str) -> None:
        problems.append(locate(document.file, document.positions, path, what))

    known = ("title", "seeds", "tuning_seeds", "scenarios")
    for key in root:
        if key not in known:
            wrong((key,), f"unknown key{did_you_mean(key, known)}")
    seeds = {}
    for key, default in (("seeds", SEEDS), ("tuning_seeds", TUNING_SEEDS)):
        try:
            seeds[key] = seeds_of(root.get(key, default))
        except ValueError as error:
            wrong((key,), str(error))
    if set(seeds.get("seeds", ())) & set(seeds.get("tuning_seeds", ())):
        wrong(
            ("tuning_seeds",), "expected seeds that are not the evaluation's: what is tuned must not be measured there"
        )
    listed = root.get("scenarios")
    if not isinstance(listed, tuple) or not listed:
        wrong(("scenarios",), "expected a list of scenarios")
        listed = ()
    entries = []
    for i, item in enumerate(listed):
        try:
            entries.append(_entry(document, i, item))
        except ConfigError as error:
            problems += error.problems
    for i, entry in enumerate(entries):
        if any(entry.name == other.name for other in entries[:i]):
            wrong(("scenarios", i, "name"), f"a second scenario called {shown(entry.name)}")
    if problems:
        raise ConfigError(problems)
    title = root.get("title")
    return Suite(name, title if isinstance(title, str) else name, tuple(entries), **seeds)


def _entry(document: Document, i: int, item: Any) -> Entry:
    here = ("scenarios", i)

    def wrong(path: tuple[str | int, ...], what: str) -> ConfigError:
        return ConfigError([locate(document.file, document.positions, (*here, *path), what)])

    if not isinstance(item, dict):
        raise wrong((), f"expected a mapping, not {shown(item)}")
    for key in ("name", "family", "base", "recovery"):
        if key in item and not (isinstance(item[key], str) and item[key]):
            raise wrong((key,), f"expected text, not {shown(item[key])}")
    if "name" not in item:
        raise wrong((), "name: this key is missing")
    for key in _NOT_HERE:
        if key in item:
            raise wrong((key,), "not of a suite's scenario: the evaluation chooses policies, seeds and references")
    own = {key: value for key, value in item.items() if key not in _OWN}
    merged = Document(document.file)
    merged.root = _base(document, item, wrong) | own
    for key, other in _EITHER.items():
        if key in own and other not in own:
            merged.root.pop(other, None)
    # `policies` may not be empty, and none is anybody's here.
    merged.root |= {"policies": ("lsq",), "reference": "none"}
    depth = len(here)
    merged.positions = {
        path[depth:]: place for path, place in document.positions.items() if path[:depth] == here and len(path) >= depth
    }
    scenario = scenario_file.validate(merged)
    recovery = item.get("recovery")
    phases = [phase.name for phase in scenario.phases]
    if recovery is not None and recovery not in phases:
        raise wrong(("recovery",), f"no phase is called {shown(recovery)}{did_you_mean(recovery, phases)}")
    return Entry(item["name"], item["family"] if "family" in item else item["name"], scenario, recovery)


def _base(document: Document, item: dict[str, Any], wrong: Any) -> dict[str, Any]:
    """Return the keys of the base's file, {} without a base."""
    if "base" not in item:
        return {}
    name = item["base"]
    beside = Path(document.file).parent / name
    try:
        base = read_yaml(
            beside if name not in scenario_file.library() and beside.exists() else scenario_file.find(name)
        )
    except ConfigError as error:
        raise wrong(("base",), error.problems[0].what) from None
    scenario_file.validate(base)  # what is wrong in it is shown at its own place
    return {key: value for key, value in base.root.items() if key not in _NOT_HERE}
