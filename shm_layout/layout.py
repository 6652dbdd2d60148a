"""The layout of segment.h for Python: constants, and numpy dtypes built from what the compiler says of each struct.

There is no second list of offsets here. cffi compares a struct with the compiled header at its first use only, so each
one is used once, below, when this module is imported: a header that does not fit fails here, not in mid-run.
"""

from typing import Any, Final

import numpy as np

try:
    from shm_layout._segment import ffi, lib
except ImportError as error:
    raise ImportError("shm_layout._segment is not built: run `python -m shm_layout.build_ffi`") from error

LAYOUT_VERSION: Final[int] = lib.LAYOUT_VERSION
LAYOUT_HASH: Final[int] = lib.segment_layout_hash()
CURVE_EXACT: Final[int] = lib.CURVE_EXACT
CURVE_POINTS: Final[int] = lib.CURVE_POINTS
IN_FLIGHT_MAX: Final[int] = lib.IN_FLIGHT_MAX
HISTOGRAM_BUCKETS: Final[int] = lib.HISTOGRAM_BUCKETS
SERVERS_LIMIT: Final[int] = lib.SERVERS_LIMIT
WORKERS_LIMIT: Final[int] = lib.WORKERS_LIMIT
NO_SERVER: Final[int] = lib.NO_SERVER
NAME_BYTES: Final[int] = lib.NAME_BYTES
ADDRESS_BYTES: Final[int] = lib.ADDRESS_BYTES
TRUSTED_MAX: Final[int] = lib.TRUSTED_MAX
ROUTES_MAX: Final[int] = lib.ROUTES_MAX
PREFIX_BYTES: Final[int] = lib.PREFIX_BYTES
HEADER_BYTES: Final[int] = lib.HEADER_BYTES
METRIC_FCT: Final[int] = lib.METRIC_FCT
METRIC_DURATION: Final[int] = lib.METRIC_DURATION


def names_of(enum: str, prefix: str) -> tuple[str, ...]:
    """Return the names of a C enum in order of value, prefix removed, in lower case; its closing count is left out."""
    elements: dict[int, str] = ffi.typeof(f"enum {enum}").elements
    return tuple(name.removeprefix(prefix).lower() for _, name in sorted(elements.items()) if name.startswith(prefix))


RULES: Final = names_of("rule_id", "RULE_")
SERVER_STATES: Final = names_of("server_state", "SERVER_")
SERVER_HEALTH: Final = names_of("server_health", "HEALTH_")
OUTCOMES: Final = names_of("outcome", "OUTCOME_")
SLA_CLASSES: Final = names_of("sla_class", "SLA_")[: lib.SLA_CLASSES]  # its closing count begins like the others
REJECTS: Final = names_of("reject", "REJECT_")
FALLBACK_CURVES: Final = names_of("fallback_curve", "FALLBACK_")


def dtype_of(struct: str, of: Any = ffi) -> np.dtype[Any]:
    """Return the structured dtype of a C struct that `of` declares: offsets, sizes and holes as compiled."""
    return _dtype(of.typeof(f"struct {struct}"))


def _dtype(ctype: Any) -> np.dtype[Any]:
    if ctype.kind == "primitive":
        size = ffi.sizeof(ctype)
        if ctype.cname == "char":
            return np.dtype("S1")
        kind = "f" if ctype.cname in ("float", "double") else "i" if int(ffi.cast(ctype, -1)) < 0 else "u"
        return np.dtype(f"{kind}{size}")
    if ctype.kind == "array":
        if ctype.item.cname == "char":  # text that ends in NUL
            return np.dtype(f"S{ctype.length}")
        return np.dtype((_dtype(ctype.item), (ctype.length,)))
    fields = ctype.fields
    return np.dtype(
        {
            "names": [name for name, _ in fields],
            "formats": [_dtype(field.type) for _, field in fields],
            "offsets": [field.offset for _, field in fields],
            "itemsize": ffi.sizeof(ctype),
        }
    )


HEADER: Final = dtype_of("segment_header")
BLOCK: Final = dtype_of("block")
BLOCK_BUFFER: Final = dtype_of("block_buffer")
SERVER_ENTRY: Final = dtype_of("server_entry")
CIDR: Final = dtype_of("cidr")
SETTINGS: Final = dtype_of("settings")
CLASSIC_SERVER: Final = dtype_of("classic_server")
DIRECTIVE: Final = dtype_of("directive")
CONTROLLER: Final = dtype_of("controller")
SERVER_WORD: Final = dtype_of("server_word")
WORKER: Final = dtype_of("worker")
SERVER_STATS: Final = dtype_of("server_stats")
SAMPLE: Final = dtype_of("sample")
RESERVOIR: Final = dtype_of("reservoir")
FLOW_RECORD: Final = dtype_of("flow_record")

# Least number of flows of each bin of a curve, (CURVE_POINTS,).
CURVE_LOW: Final = np.array([lib.curve_bin_low(b) for b in range(CURVE_POINTS)], dtype=np.int64)
# Least duration of each bucket of the FCT histogram, seconds, (HISTOGRAM_BUCKETS,); bucket 0 holds all below it too.
HISTOGRAM_LOW: Final = np.array([lib.histogram_bucket_low(b) for b in range(HISTOGRAM_BUCKETS)], dtype=np.float64) / 1e9
