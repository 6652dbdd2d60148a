"""Reads YAML 1.2 into plain values, and remembers where each key stood.

ruamel.yaml scans and composes; the values are built here from its nodes, because it stops at the first duplicate
key, and because what aliases expand to must be bounded: nine lines of aliases of aliases make a billion values.
"""

import io
import os
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from controlplane.config_errors import ConfigError, Path, Problem, key_text

FILE_BYTES_MAX = 4 << 20
DEPTH_MAX = 32
VALUES_MAX = 200_000  # aliases expanded

_TAG = "tag:yaml.org,2002:"


def _tag(node: Node) -> str:
    """Return the name of a node's tag: "str", "int", …; a foreign one whole."""
    return str(node.tag).removeprefix(_TAG)


class Document:
    """A file's values as dicts, tuples and scalars, and the line and column of each key and list element."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.root: Any = None
        self.positions: dict[Path, tuple[int, int]] = {}
        self.problems: list[Problem] = []
        self._values = 0

    def _problem(self, node: Node, path: Path, what: str) -> None:
        line, column = self.positions.get(path, (node.start_mark.line + 1, node.start_mark.column + 1))
        self.problems.append(Problem(self.file, line, column, key_text(path), what))

    def build(self, node: Node, path: Path, within: tuple[int, ...] = ()) -> Any:
        """Return the value of a node; what is wrong is added to the problems."""
        self._values += 1
        if self._values > VALUES_MAX:
            self._problem(node, path, f"more than {VALUES_MAX} values, aliases expanded")
            raise ConfigError(self.problems)
        if id(node) in within:
            self._problem(node, path, "an alias that contains itself")
            return None
        if isinstance(node, MappingNode):
            return self._mapping(node, path, (*within, id(node)))
        if isinstance(node, SequenceNode):
            values = []
            for i, item in enumerate(node.value):
                self.positions[(*path, i)] = (item.start_mark.line + 1, item.start_mark.column + 1)
                values.append(self.build(item, (*path, i), (*within, id(node))))
            return tuple(values)
        return self._scalar(node, path)

    def _mapping(self, node: MappingNode, path: Path, within: tuple[int, ...]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for source in reversed(self._merged(node, path)):  # first, so that own keys and their positions stand above
            values.update(self.build(source, path, within) or {})
        for key, value in node.value:
            if _tag(key) == "merge":
                continue
            place = key.start_mark.line + 1, key.start_mark.column + 1
            if not isinstance(key, ScalarNode) or _tag(key) == "null":
                self.problems.append(Problem(self.file, *place, key_text(path), "expected a key that is plain text"))
                continue
            name: str = key.value
            if name in lines:
                what = f"duplicate key, first given in line {lines[name]}"
                self.problems.append(Problem(self.file, *place, key_text((*path, name)), what))
                continue
            lines[name] = place[0]
            self.positions[(*path, name)] = place
            values[name] = self.build(value, (*path, name), within)
        return values

    def _merged(self, node: MappingNode, path: Path) -> list[MappingNode]:
        """Return what `<<` takes in: a mapping, or a list of them of which the first has precedence."""
        sources: list[MappingNode] = []
        for key, value in node.value:
            if _tag(key) != "merge":
                continue
            for source in value.value if isinstance(value, SequenceNode) else [value]:
                if isinstance(source, MappingNode):
                    sources.append(source)
                else:
                    self._problem(source, path, "expected a mapping, or a list of them, after <<")
        return sources

    def _scalar(self, node: Node, path: Path) -> Any:
        tag, text = _tag(node), str(node.value)
        try:
            match tag:
                case "str" | "timestamp" | "value" | "merge":
                    return text
                case "int":
                    return int(text.replace("_", ""), 0 if text.lstrip("+-")[:2] in ("0x", "0o", "0b") else 10)
                case "float":
                    return float(text.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan"))
                case "bool":
                    return text.lower() in ("true", "yes", "on")
                case "null":
                    self._problem(node, path, "no value: give one, or leave the key out for its default")
                case _:
                    self._problem(node, path, f"the tag {str(node.tag)[:40]!r} is not used here")
        except ValueError:
            self._problem(node, path, f"not a number that can be read: {text[:40]!r}")
        return None


def _place(text: str, position: int) -> tuple[int, int]:
    """Return line and column, from 1, of an index into the text."""
    return text.count("\n", 0, position) + 1, position - (text.rfind("\n", 0, position) + 1) + 1


def _read_text(file: str) -> str:
    def fail(what: str, line: int = 0, column: int = 0) -> ConfigError:
        return ConfigError([Problem(file, line, column, "", what)])

    try:
        with open(file, "rb") as stream:
            data = stream.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise fail((error.strerror or str(error)).lower()) from None
    except ValueError as error:  # a NUL in the name
        raise fail(str(error)) from None
    if len(data) > FILE_BYTES_MAX:
        raise fail(f"larger than {FILE_BYTES_MAX >> 20} MiB")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8", "replace")
        raise fail(f"not UTF-8 text: byte 0x{data[error.start]:02x}", *_place(before, len(before))) from None


def _compose(file: str, text: str) -> Node | None:
    yaml = YAML(typ="safe", pure=True)
    yaml.max_depth = DEPTH_MAX
    try:
        node: Node | None = yaml.compose(io.StringIO(text))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = " ".join(str(error.problem or error.context or "not YAML").split())
        if "\\t" in what:
            what = "a tab cannot indent: use spaces"
        elif what == "but found another document":
            what = "expected one document, found another"
        line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        raise ConfigError([Problem(file, line, column, "", what)]) from None
    except ReaderError as error:
        place = _place(text, error.position)
        raise ConfigError(
            [Problem(file, *place, "", f"a character that YAML does not allow: {_code(error)}")]
        ) from None
    except RecursionError:
        raise ConfigError([Problem(file, 0, 0, "", "nested too deeply")]) from None
    except (YAMLError, ValueError, AttributeError, AssertionError, IndexError, TypeError, KeyError) as error:
        # ruamel.yaml's scanner trips over some malformed input instead of naming it
        raise ConfigError([Problem(file, 0, 0, "", f"not YAML ({' '.join(str(error).split())[:80]})")]) from None
    return node


def _code(error: ReaderError) -> str:
    character = error.character
    return f"U+{character if isinstance(character, int) else ord(str(character)[:1] or chr(0)):04X}"


def parse_yaml(text: str, file: str, keys: str = "'service:'") -> Document:
    """Read YAML text. Raises ConfigError when it is not YAML; lesser problems are in the document.

    keys: what who wrote nothing is told to write.
    """
    document = Document(file)
    node = _compose(file, text)
    if node is None:
        raise ConfigError([Problem(file, 0, 0, "", f"empty: expected at least {keys}")])
    document.positions[()] = (node.start_mark.line + 1, node.start_mark.column + 1)
    document.root = document.build(node, ())
    return document


def read_yaml(path: str | os.PathLike[str], keys: str = "'service:'") -> Document:
    """Read a YAML file; raises ConfigError."""
    file = os.fspath(path)
    return parse_yaml(_read_text(file), file, keys)
