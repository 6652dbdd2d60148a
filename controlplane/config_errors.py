"""What is wrong in a configuration, one line each:

    web.yaml:4:5: service.web.wieght: unknown key (did you mean 'weight'?)

Problem     one thing that is wrong, and where
ConfigError all that was found in one reading; its text is one line a problem
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from controlplane.config_values import shown

Path = tuple[str | int, ...]
"""Of a value in the file: ("service", "web", "servers", 0, "weight")."""
Positions = Mapping[Path, tuple[int, int]]
"""Line and column, from 1, of each key (or, in a list, each element)."""

_PLAIN_KEY = re.compile(r"[\w.:<-]{1,80}", re.ASCII)


def key_text(path: Path) -> str:
    """Return a path as a reader writes it: service.web.servers[0].weight."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (part if _PLAIN_KEY.fullmatch(part) else shown(part))
    return text


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that is wrong. line and column count from 1; 0: the file as a whole. key may be empty."""

    file: str
    line: int
    column: int
    key: str
    what: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return ": ".join(part for part in (where, self.key, self.what) if part)


class ConfigError(Exception):
    """A configuration that cannot be used, with everything that is wrong in it."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = sorted(set(problems))
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def as_json(self) -> list[dict[str, Any]]:
        return [asdict(problem) for problem in self.problems]


def locate(file: str, positions: Positions, path: Path, what: str) -> Problem:
    """Return a problem at a path, placed at the nearest part of it that stands in the file."""
    for length in range(len(path), -1, -1):
        if path[:length] in positions:
            return Problem(file, *positions[path[:length]], key_text(path), what)
    return Problem(file, 0, 0, key_text(path), what)


def nearest(word: object, known: Iterable[str]) -> list[str]:
    """Return the known word that is meant by a misspelt one; [] when none is near."""
    return difflib.get_close_matches(str(word)[:80].lower(), list(known), n=1, cutoff=0.6)


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """Return " (did you mean 'weight'?)", or nothing when no known word is near."""
    near = nearest(word, known)
    return f" (did you mean '{near[0]}'?)" if near else ""


def either(words: Sequence[str]) -> str:
    """Return "'a', 'b' or 'c'"."""
    quoted = [f"'{word}'" for word in words]
    return quoted[0] if len(quoted) == 1 else ", ".join(quoted[:-1]) + " or " + quoted[-1]


_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}


def describe(error: Mapping[str, Any]) -> str:
    """Return the text for one of pydantic's errors."""
    kind, value, context = error["type"], error.get("input"), error.get("ctx", {})
    if kind == "missing":
        return "this key is missing"
    if kind == "value_error":
        return str(context.get("error", error["msg"]))
    if kind == "literal_error":
        words = re.findall(r"'([^']*)'", context["expected"])
        return f"expected {either(words)}, not {shown(value)}" + did_you_mean(value, words)
    if kind in _EXPECTED:
        return f"expected {_EXPECTED[kind]}, not {shown(value)}"
    bounds = {
        "greater_than_equal": ("at least", "ge"),
        "less_than_equal": ("at most", "le"),
        "less_than": ("less than", "lt"),
    }
    if kind in bounds:
        word, bound = bounds[kind]
        return f"expected {word} {context[bound]}, not {shown(value)}"
    if kind == "too_short":
        return f"expected at least {context['min_length']} of them, not {context['actual_length']}"
    if kind == "too_long":
        return f"expected at most {context['max_length']} of them, not {context['actual_length']}"
    return f"{error['msg']}, not {shown(value)}"
