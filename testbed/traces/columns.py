"""Which column of a table is which field of the record: by the names that are usual, or as one says.

`t=arrival:ms` reads field t from the column `arrival`, which is in milliseconds. Fields are t, work, bytes, key and
balancer; units (of t and work) are s, ms, us and ns. Without a unit t is in seconds and work is taken as it stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from testbed.traces.digits import hashed_one, real_one, scaled_one, unsigned_one
from testbed.traces.record import U32, U64, Row, TraceError

# How many decimal digits of t make a nanosecond, and what work is divided by to be seconds.
DIGITS = {"s": 9, "ms": 6, "us": 3, "ns": 0}
DIVISOR = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9, "": 1.0}
NAMES = ("t", "work", "bytes", "key", "balancer")

# Names that are understood without being told, in the order in which they are looked for.
USUAL: dict[str, tuple[tuple[str, str], ...]] = {
    "t": (
        *(("t_ns", "ns"), ("t_us", "us"), ("t_ms", "ms"), ("t_s", "s"), ("arrival_s", "s"), ("arrival_ns", "ns")),
        *(("time", "s"), ("timestamp", "s"), ("t", "s")),
    ),
    "work": (
        *(("work", ""), ("work_s", "s"), ("work_ms", "ms"), ("work_ns", "ns"), ("demand_s", "s"), ("demand_ms", "ms")),
        *(("duration", "s"), ("duration_s", "s"), ("duration_ms", "ms")),
    ),
    "bytes": (("bytes", ""), ("size_bytes", ""), ("body_bytes", ""), ("size", "")),
    "key": (("key", ""), ("client", ""), ("url", "")),
    "balancer": (("balancer", ""),),
}


@dataclass(frozen=True)
class Field:
    column: str
    unit: str


@dataclass(frozen=True)
class Mapping:
    """The columns of the fields that the file has; t is always there."""

    fields: dict[str, Field]

    @property
    def work_unit(self) -> str:
        """ "s" when the name or the user says that work is a time; "" when it is taken as it stands."""
        work = self.fields.get("work")
        return "s" if work is not None and work.unit else ""

    def row(self, values: dict[str, bytes]) -> Row:
        """Read one row of texts; ValueError names the column that is wrong. What is empty is not known, but t."""
        out: dict[str, float] = {}
        for name, field in self.fields.items():
            value = values.get(field.column, b"")
            try:
                if name == "t":
                    out[name] = scaled_one(value, DIGITS[field.unit])
                elif not value:
                    continue
                elif name == "work":
                    out[name] = real_one(value) / DIVISOR[field.unit]
                elif name == "key":
                    out[name] = key_from(value)
                else:
                    out[name] = unsigned_one(value, U32 if name == "balancer" else U64)
            except ValueError as error:
                raise ValueError(f"{field.column} {error}") from None
        return (
            int(out["t"]),
            float(out.get("work", float("nan"))),
            *(int(out.get(name, 0)) for name in ("bytes", "key", "balancer")),
        )  # type: ignore[return-value]


def key_from(value: bytes) -> int:
    """A whole number of 64 bits is the key itself; anything else is hashed."""
    try:
        return unsigned_one(value)
    except ValueError:
        return hashed_one(value)


def parse_columns(pairs: Sequence[str]) -> dict[str, Field]:
    """Read `FIELD=COLUMN[:UNIT]`; TraceError says what is wrong."""
    found = {}
    for pair in pairs:
        name, equals, rest = pair.partition("=")
        column, _, unit = rest.rpartition(":") if rest.rpartition(":")[2] in DIGITS else (rest, "", "")
        if not equals or not column:
            raise TraceError(f"column '{pair}': expected FIELD=COLUMN or FIELD=COLUMN:UNIT")
        if name not in NAMES:
            raise TraceError(f"column '{pair}': no field is called '{name}': there are {', '.join(NAMES)}")
        if unit and name not in ("t", "work"):
            raise TraceError(f"column '{pair}': {name} has no unit")
        found[name] = Field(column, unit or ("s" if name == "t" else ""))
    return found


def mapping_for(columns: Sequence[str], told: dict[str, Field]) -> Mapping | None:
    """Return the mapping for a table with these columns: what was told, and the usual names; None without a time."""
    for name, field in told.items():
        if field.column not in columns:
            raise TraceError(f"no column is called '{field.column}' ({name}): there are {', '.join(columns) or 'none'}")
    taken = {field.column for field in told.values()}
    fields = dict(told)
    for name, usual in USUAL.items():
        for column, unit in usual:
            if name not in fields and column in columns and column not in taken:
                fields[name] = Field(column, unit)
    return Mapping(fields) if "t" in fields else None
