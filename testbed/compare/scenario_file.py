"""Finds and reads a scenario: a path, or the name of one in testbed/scenarios/. What is wrong has its line and column:

flash.yaml:12:5: events[0].sevrer: unknown key (did you mean 'server'?)
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from controlplane.config_errors import ConfigError, Problem, describe, did_you_mean, locate, nearest
from controlplane.config_values import shown
from controlplane.config_yaml import Document, read_yaml
from testbed.compare.scenario import Scenario, mistakes

LIBRARY = Path(__file__).parent.parent / "scenarios"

Where = tuple[str | int, ...]


def library() -> list[str]:
    """Return the names of the scenarios that come with Vickrey."""
    return sorted(path.stem for path in LIBRARY.glob("*.yaml"))


def find(name: str) -> Path:
    """Return the file of a scenario: a shipped one by its name, else a path. Raises ConfigError."""
    if name in library():
        return LIBRARY / f"{name}.yaml"
    path = Path(name)
    if path.exists() or os.sep in name or path.suffix in (".yaml", ".yml"):
        return path
    what = f"no scenario is called so{did_you_mean(name, library())}; `vickrey compare --list` shows all"
    raise ConfigError([Problem(name, 0, 0, "", what)])


def load(name: str) -> Scenario:
    """Return a scenario by name or path. Raises ConfigError with all that is wrong in it."""
    return validate(read_yaml(find(name), "'title:', 'shows:' and 'servers:'"))


def validate(document: Document) -> Scenario:
    """Return the scenario of a document. Raises ConfigError with all that is wrong in it."""
    problems = list(document.problems)
    scenario = None
    try:
        scenario = Scenario.model_validate(document.root)
    except ValidationError as errors:
        problems += _problems(document, errors)
    if scenario is not None:
        problems += [locate(document.file, document.positions, path, what) for path, what in mistakes(scenario)]
    if problems or scenario is None:
        raise ConfigError(problems)
    return scenario


def _problems(document: Document, errors: ValidationError) -> Iterator[Problem]:
    found = errors.errors()
    misspelt = {
        (error["loc"][:-1], meant)
        for error in found
        if error["type"] == "extra_forbidden"
        for meant in nearest(error["loc"][-1], _keys_at(error["loc"][:-1]))
    }
    for error in found:
        path = error["loc"]
        if error["type"] == "missing" and (path[:-1], path[-1]) in misspelt:
            continue  # it is there, misspelt
        yield locate(document.file, document.positions, path, explain(error))


def explain(error: Any) -> str:
    """Return the text for one of pydantic's errors."""
    kind, path = error["type"], error["loc"]
    if kind == "extra_forbidden":
        return "unknown key" + did_you_mean(path[-1], _keys_at(path[:-1]))
    if kind == "greater_than":
        return f"expected more than {error['ctx']['gt']:g}, not {shown(error['input'])}"
    if kind == "string_pattern_mismatch":
        return f"expected a path like /page?size=100, not {shown(error['input'])}"
    return describe(error)


def _keys_at(path: Where) -> list[str]:
    """Return the keys that the mapping at a path may have."""
    model: type[BaseModel] | None = Scenario
    for part in path:
        if isinstance(part, str) and model is not None:
            field = model.model_fields.get(part)
            model = _model_in(field.annotation) if field else None
    return list(model.model_fields) if model else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)
