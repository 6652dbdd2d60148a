"""JSON Lines: one object a line, its members named as the columns of a table would be (columns.py)."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from testbed.traces.columns import DIGITS, DIVISOR, Field, Mapping, key_from, mapping_for
from testbed.traces.digits import Mask, Offsets, Text, scaled_one
from testbed.traces.record import RECORD, U32, U64, Records, Row, TraceError, excerpt
from testbed.traces.rows import checked

_NAN = float("nan")


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

    def parse_many(self, text: Text, start: Offsets, end: Offsets) -> tuple[Records, Mask]:
        """Leave all to parse_row: json is C, and an object is an object."""
        records = np.zeros(len(start), dtype=RECORD)
        ok = np.zeros(len(start), dtype=np.bool_)
        rows, done = [], []
        for i, (low, high) in enumerate(zip(start.tolist(), end.tolist(), strict=True)):
            try:
                rows.append(checked(self.parse_row(text.slice(low, high))))
                done.append(i)
            except ValueError:
                continue
        records[done] = np.array(rows, dtype=RECORD)
        ok[done] = True
        return records, ok


def _object(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line, parse_constant=_refuse, parse_int=_integer)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("is no UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"is no JSON ({error.msg})") from None
    if not isinstance(value, dict):
        raise ValueError("is no JSON object")
    return value


def _integer(digits: str) -> int:
    # Python refuses integers of thousands of digits with an error that speaks of its settings.
    if len(digits) > 64:
        raise ValueError("has a number that is too long")
    return int(digits)


def _refuse(constant: str) -> float:
    raise ValueError(f"has {constant}, which is not JSON")


def _time(value: Any, unit: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("is no number")
    if isinstance(value, int) and unit == "ns":
        return value
    return scaled_one((value if isinstance(value, str) else repr(value)).encode(), DIGITS[unit])


def _real(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("is no number")
    real = float(value)
    if real in (float("inf"), float("-inf")):
        raise ValueError("is out of range")
    return real


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
