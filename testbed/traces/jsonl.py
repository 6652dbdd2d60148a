"""JSON Lines: one object a line, its members named as the columns of a table would be (columns.py)."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import numpy as np

from testbed.traces.columns import DIGITS, DIVISOR, Field, Mapping, key_from, mapping_for
from testbed.traces.digits import Mask, Offsets, Text, scaled_one
from testbed.traces.record import RECORD, U32, U64, Records, Row, TraceError, excerpt, records_from

_NAN = float("nan")
_REAL_MOST = 10**30


class JsonLines:
    name = "jsonl"

    def __init__(self, told: dict[str, Field] | None = None) -> None:
        self._told = told or {}
        self._mapping = Mapping({})

    @property
    def work_unit(self) -> str:
        return self._mapping.work_unit

    def recognizes(self, line: bytes) -> bool:
        try:
            self.takes_header(line)
        except TraceError:
            return False
        return True

    def takes_header(self, line: bytes) -> bool:
        """Take the names from the first object, which is a row all the same; later ones may lack some."""
        try:
            row = _object(line)
        except ValueError as error:
            raise TraceError(f"no JSON Lines: line 1: {error}: {excerpt(line)}") from None
        mapping = mapping_for(list(row), self._told)
        if mapping is None:
            raise TraceError(
                f"the first line names no time: {excerpt(line)}: say which member it is, with --column t=NAME:UNIT"
            )
        # Members that the first object lacks may come later.
        every = mapping_for([*row, *(f for f in ("work", "bytes", "key", "balancer") if f not in row)], self._told)
        self._mapping = every or mapping
        return False

    def parse_row(self, line: bytes) -> Row:
        values, fields = _object(line), self._mapping.fields
        out: dict[str, Any] = {}
        for name, field in fields.items():
            value = values.get(field.column)
            try:
                if name == "t":
                    out[name] = _time(value, field.unit)
                elif value is None or value == "":
                    continue
                elif name == "work":
                    out[name] = _real(value) / DIVISOR[field.unit]
                elif name == "key":
                    out[name] = _key(value)
                else:
                    out[name] = _whole(value, U32 if name == "balancer" else U64)
            except ValueError as error:
                raise ValueError(f"{field.column} {error}") from None
        return out["t"], out.get("work", _NAN), *(out.get(name, 0) for name in ("bytes", "key", "balancer"))

    @property
    def key_column(self) -> str:
        """The member that is the key; empty: none is."""
        key = self._mapping.fields.get("key")
        return key.column if key else ""

    def key_text(self, line: bytes) -> bytes:
        """Return the key of this row as it was written."""
        return str(_object(line).get(self.key_column, "")).encode("utf-8", "surrogatepass")

    def parse_many(self, text: Text, start: Offsets, end: Offsets) -> tuple[Records, Mask]:
        """Read the objects, and take each member of all of them at once, where they are of the plain types."""
        records = np.zeros(len(start), dtype=RECORD)
        ok = np.zeros(len(start), dtype=np.bool_)
        objects, at = [], []
        for i, (low, high) in enumerate(zip(start.tolist(), end.tolist(), strict=True)):
            try:
                objects.append(_object(text.slice(low, high)))
                at.append(i)
            except ValueError:
                continue
        with contextlib.suppress(OverflowError, TypeError):
            records[at] = self._plain(objects)
            ok[at] = True
        return records, ok

    def _plain(self, objects: list[dict[str, Any]]) -> Records:
        """Return the records of objects whose members are numbers or missing; TypeError, OverflowError otherwise."""
        columns: dict[str, Any] = {"t": 0, "work": _NAN, "bytes": 0, "key": 0, "balancer": 0}
        for name, field in self._mapping.fields.items():
            values = [row.get(field.column) for row in objects]
            types = set(map(type, values))
            if name == "t" and (field.unit != "ns" or types - {int}):
                raise TypeError
            if types - ({int, float, type(None)} if name == "work" else {int, type(None)}):
                raise TypeError
            if type(None) in types:
                missing = _NAN if name == "work" else 0
                values = [missing if value is None else value for value in values]
            columns[name] = np.array(values, dtype=_DTYPES[name])
            if name == "work":
                columns[name] /= DIVISOR[field.unit]
        return records_from(*columns.values(), n=len(objects))


_DTYPES = {"t": np.int64, "work": np.float64, "bytes": np.uint64, "key": np.uint64, "balancer": np.uint32}


def _object(line: bytes) -> dict[str, Any]:
    try:
        value = _DECODER.decode(line.decode())
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("is no UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"is no JSON ({error.msg})") from None
    except _ConstantError:
        raise
    except ValueError:  # Python's own limit of digits
        raise ValueError("has a number that is too long") from None
    if not isinstance(value, dict):
        raise ValueError("is no JSON object")
    return value


class _ConstantError(ValueError):
    pass


def _refuse(constant: str) -> float:
    raise _ConstantError(f"has {constant}, which is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse)


def _time(value: Any, unit: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("is no number")
    if isinstance(value, int) and unit == "ns":
        return value
    return scaled_one((value if isinstance(value, str) else repr(value)).encode(), DIGITS[unit])


def _real(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("is no number")
    if abs(value) > _REAL_MOST:
        raise ValueError("is out of range")
    return float(value)


def _whole(value: Any, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("is no whole number")
    if not 0 <= value <= most:
        raise ValueError("is out of range")
    return value


def _key(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= U64:
        return value
    if isinstance(value, str):
        return key_from(value.encode("utf-8", "surrogatepass"))
    raise ValueError("is neither text nor a number of 64 bits")
