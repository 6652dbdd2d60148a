"""Finds and reads a scenario: a path, or the name of one in scenarios/. What is wrong has its line and column:

bursts.yaml:7:3: balancers.cuont: unknown key (did you mean 'count'?)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from controlplane.config_errors import ConfigError, Problem, describe, did_you_mean, either, locate, nearest
from controlplane.config_values import shown
from controlplane.config_yaml import Document, read_yaml
from controlplane.simulation.scenario import Scenario, mistakes

LIBRARY = Path(__file__).parent / "scenarios"

Where = tuple[str | int, ...]
M = TypeVar("M", bound=BaseModel)


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
    what = f"no scenario is called so{did_you_mean(name, library())}; `vickrey sim --list` shows all"
    raise ConfigError([Problem(name, 0, 0, "", what)])


def load(name: str) -> Scenario:
    """Return a scenario by name or path. Raises ConfigError with all that is wrong in it."""
    return validate(read_yaml(find(name), "'servers:'"))


def validate(document: Document) -> Scenario:
    """Return the scenario of a document. Raises ConfigError with all that is wrong in it."""
    return validate_as(Scenario, document, mistakes)


def validate_as(model: type[M], document: Document, mistakes: Callable[[M], Iterable[tuple[Where, str]]]) -> M:
    """Return a document as a model; `mistakes` finds what no type can tell. Raises ConfigError with all that is bad."""
    problems = list(document.problems)
    valid = None
    try:
        valid = model.model_validate(document.root)
    except ValidationError as errors:
        problems += _problems(document, errors, model)
    if valid is not None:
        problems += [locate(document.file, document.positions, path, what) for path, what in mistakes(valid)]
    if problems or valid is None:
        raise ConfigError(problems)
    return valid


def _problems(document: Document, errors: ValidationError, model: type[BaseModel]) -> Iterator[Problem]:
    found = [(_path(error["loc"], document.root), error) for error in errors.errors()]
    misspelt = {
        (path[:-1], meant)
        for path, error in found
        if error["type"] == "extra_forbidden"
        for meant in nearest(path[-1], _keys_at(path[:-1], document.root, model))
    }
    places = {locate(document.file, document.positions, path, "").key for path, _ in found}
    complained = {problem.key for problem in document.problems}
    for path, error in found:
        problem = locate(document.file, document.positions, path, explain(error, path, document.root, model))
        if error["type"] == "missing" and (path[:-1], path[-1]) in misspelt:
            continue  # it is there, misspelt
        if error["input"] is None and problem.key in complained:
            continue  # the reader has said what is wrong with this value
        if error["type"] == "too_short" and any(p.startswith(problem.key + "[") for p in places):
            continue  # only because its elements are bad
        yield problem


def explain(error: Any, path: Where, root: Any, model: type[BaseModel] = Scenario) -> str:
    """Return the text for one of pydantic's errors at a path in a document."""
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    if kind == "extra_forbidden":
        return "unknown key" + did_you_mean(path[-1], _keys_at(path[:-1], root, model))
    if kind == "union_tag_not_found":
        return "expected a mapping with a 'kind'" if isinstance(value, dict) else "expected a mapping"
    if kind == "union_tag_invalid":
        kinds = [word.strip(" '") for word in context["expected_tags"].split(",")]
        return f"expected the kind {either(kinds)}, not {shown(context['tag'])}{did_you_mean(context['tag'], kinds)}"
    if kind == "greater_than":
        return f"expected more than {context['gt']:g}, not {shown(value)}"
    if path[:1] == ("events",) and path[2:3] == ("server",) and kind != "missing":
        return f"expected a server's slot, a list of slots, or the name of a group, not {shown(value)}"
    return describe(error)


def _path(loc: tuple[int | str, ...], root: Any) -> Where:
    """Return pydantic's location without the tags of unions, which stand in no file."""
    path: list[str | int] = []
    node = root
    for i, part in enumerate(loc):
        inside = part in node if isinstance(node, dict) else isinstance(node, tuple) and part in range(len(node))
        if inside:
            node = node[part]
        elif part == "options":
            continue
        elif i < len(loc) - 1 or not isinstance(node, dict):
            continue  # a tag, or the shorthand of one value
        path.append(part)
    return tuple(path)


def _keys_at(path: Where, root: Any, model: type[BaseModel]) -> list[str]:
    """Return the keys that the mapping at a path may have."""
    models: list[type[BaseModel]] = [model]
    node = root
    for part in path:
        node = node[part]
        if isinstance(part, str):
            fields = [model.model_fields[part] for model in models if part in model.model_fields]
            models = [inner for field in fields for inner in _models_in(field.annotation)]
    if isinstance(node, dict) and "kind" in node:
        models = [m for m in models if node["kind"] in get_args(m.model_fields["kind"].annotation)] or models
    return [key for model in models for key in model.model_fields if key != "options"]


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)
