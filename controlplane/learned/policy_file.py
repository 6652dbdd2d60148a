"""Files of learned policies: the network's weights as safetensors, and a manifest that says what they are.

Nothing in such a file is executed, and nothing in it is believed: sizes, names, shapes, numbers and a SHA-256 over
all of it are checked before a policy is made of it, so that a damaged or foreign file is refused with its reason. The
checksum finds accidents; it is no signature.

    8 bytes     length of the header (safetensors, https://huggingface.co/docs/safetensors)
    header      JSON: names, shapes and places of the tensors, and {"__metadata__": {"vickrey": the manifest as JSON}}
    data        32-bit floats
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from controlplane.learned.encoding import FEATURE_VERSION
from controlplane.learned.manifest import BOUNDS, FORMAT, MANIFEST, Manifest, Range, Ranges, Training, problems
from controlplane.learned.network import shapes

__all__ = [
    "Manifest",
    "PolicyFileError",
    "Range",
    "Ranges",
    "Training",
    "dump",
    "parse",
    "read",
    "set_evaluation",
    "write",
]

# Greatest sizes that are looked at: a network of 512 hidden units has 8 MB.
FILE_MAX, HEADER_MAX, TENSORS_MAX = 16 << 20, 1 << 20, 64
# Greatest weight: greater ones overflow the arithmetic and come from no training.
WEIGHT_MAX: Final = 1e4

Parameters = dict[str, NDArray[np.float32]]


class PolicyFileError(ValueError):
    """A file that is no policy, or not one of ours: names the file, the key, and what was expected."""


# --- writing ----------------------------------------------------------------------------------------------------------


def write(path: str | os.PathLike[str], parameters: Mapping[str, NDArray[Any]], manifest: Manifest) -> Manifest:
    """Write a policy, whole or not at all, and return the manifest as written, checksum and bounds filled in.

    Raises PolicyFileError when it would be refused in reading.
    """
    data = dump(parameters, manifest)
    written = parse(data, os.fspath(path))[1]
    target = Path(path)
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    except OSError as error:
        raise PolicyFileError(f"{target}: cannot be written: {error.strerror}") from None
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except OSError as error:
        with suppress(OSError):
            os.unlink(temporary)
        raise PolicyFileError(f"{target}: cannot be written: {error.strerror}") from None
    return written


def dump(parameters: Mapping[str, NDArray[Any]], manifest: Manifest) -> bytes:
    """Return the bytes of a file; the same ones for the same policy. PolicyFileError: a manifest that JSON cannot
    hold."""
    from safetensors.numpy import save

    tensors = {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in parameters.items()}
    try:
        tree = manifest.as_json()
    except (TypeError, ValueError) as error:
        raise PolicyFileError(f"manifest: not JSON: {error}") from None
    if manifest.schema.kind == "curves":
        tree["schema"]["bounds"] = BOUNDS | tree["schema"]["bounds"]
    tree["sha256"] = digest(tensors, tree)
    # Keys stay in the order that people are to read them in.
    return bytes(save(tensors, {"vickrey": json.dumps(tree, separators=(",", ":"), allow_nan=False)}))


def digest(tensors: Mapping[str, NDArray[np.float32]], tree: Mapping[str, Any]) -> str:
    """Return the SHA-256 over names, shapes and values of all tensors and over the rest of the manifest."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        sha.update(json.dumps([name, list(tensors[name].shape)]).encode())
        sha.update(tensors[name].astype("<f4").tobytes())
    sha.update(_canonical({key: value for key, value in tree.items() if key != "sha256"}).encode())
    return sha.hexdigest()


def _canonical(tree: Mapping[str, Any]) -> str:
    return json.dumps(tree, sort_keys=True, separators=(",", ":"), allow_nan=False)


def set_evaluation(path: str | os.PathLike[str], evaluation: dict[str, Any] | None) -> Manifest:
    """Put the summary of an evaluation into a file, and return its manifest. PolicyFileError: it is not right."""
    parameters, manifest = read(path)
    return write(path, parameters, replace(manifest, evaluation=evaluation))


# --- reading ----------------------------------------------------------------------------------------------------------


def read(path: str | os.PathLike[str]) -> tuple[Parameters, Manifest]:
    """Return the weights and the manifest of a file. Raises PolicyFileError naming what is wrong with it."""
    return parse(_bytes(path), os.fspath(path))


def _bytes(path: str | os.PathLike[str]) -> bytes:
    name = os.fspath(path)
    try:
        # A pipe must not make the controller wait, nor a device fill its memory.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise PolicyFileError(f"{name}: expected a regular file")
            data = file.read(FILE_MAX + 1)
    except OSError as error:
        raise PolicyFileError(f"{name}: cannot be read: {error.strerror}") from None
    except ValueError as error:  # a null byte in the name
        if isinstance(error, PolicyFileError):
            raise
        raise PolicyFileError(f"{name!r}: not a file's name") from None
    if len(data) > FILE_MAX:
        raise PolicyFileError(f"{name}: more than the {FILE_MAX >> 20} MiB that a policy may have")
    return data


def parse(data: bytes, name: str = "policy") -> tuple[Parameters, Manifest]:
    """Return what the bytes of a file hold; name: of the file, for errors."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    header, begin = _header(data, name)
    tree = _manifest_tree(header.pop("__metadata__", None), name)
    manifest = _manifest(tree, name)
    _check_manifest(manifest, name)
    wanted = shapes(manifest.schema, manifest.hidden)
    _check_header(header, wanted, len(data) - begin, name)
    try:
        tensors: Parameters = load(data)
    except (SafetensorError, ValueError) as error:
        raise PolicyFileError(f"{name}: {error}") from None
    for key, values in tensors.items():
        if not np.isfinite(values).all():
            raise PolicyFileError(f"{name}: {key}: values that are not finite")
        if float(np.abs(values).max(initial=0.0)) > WEIGHT_MAX:
            raise PolicyFileError(f"{name}: {key}: expected weights of at most {WEIGHT_MAX:g}")
    found = digest(tensors, tree)
    if found != manifest.sha256:
        raise PolicyFileError(f"{name}: manifest.sha256: the file was changed: its checksum is {found}")
    return tensors, manifest


def _header(data: bytes, name: str) -> tuple[dict[str, Any], int]:
    """Return the safetensors header and where the data begin."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length < 2 or data[8:9] != b"{":
        raise PolicyFileError(f"{name}: not a safetensors file")
    if length > HEADER_MAX:
        raise PolicyFileError(f"{name}: a header of {length} bytes, expected at most {HEADER_MAX}")
    if len(data) < 8 + length:
        raise PolicyFileError(f"{name}: truncated: the header has {length} bytes, {len(data) - 8} are there")
    header = _json(data[8 : 8 + length], f"{name}: header")
    if len(header) > TENSORS_MAX + 1:
        raise PolicyFileError(f"{name}: {len(header)} tensors, expected at most {TENSORS_MAX}")
    return header, 8 + length


def _json(text: str | bytes, where: str) -> dict[str, Any]:
    """Return a JSON object; the same key twice, NaN and deep nesting are errors."""

    def no_constant(value: str) -> None:
        raise ValueError(f"{value} is not a number")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key is there twice")
        return found

    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        tree = json.loads(text, object_pairs_hook=once, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        raise PolicyFileError(f"{where}: not JSON: {error}") from None
    if not isinstance(tree, dict):
        raise PolicyFileError(f"{where}: expected a JSON object")
    return tree


def _manifest_tree(metadata: Any, name: str) -> dict[str, Any]:
    if not isinstance(metadata, dict) or not isinstance(metadata.get("vickrey"), str):
        raise PolicyFileError(f"{name}: __metadata__.vickrey: a safetensors file, but no Vickrey policy: no manifest")
    if len(metadata) != 1:
        raise PolicyFileError(f"{name}: __metadata__: expected the key vickrey alone, not {len(metadata)}")
    return _json(metadata["vickrey"], f"{name}: manifest")


def _manifest(tree: dict[str, Any], name: str) -> Manifest:
    # What it would be read as comes first: a later format may have any keys.
    for key, expected in (("format", FORMAT), ("feature_version", FEATURE_VERSION)):
        found = tree.get(key)
        if isinstance(found, bool) or found != expected:
            raise PolicyFileError(f"{name}: manifest.{key}: expected {expected}, not {found!r}")
    try:
        # Once more through text: JSON's lists are tuples then, and its numbers are checked as JSON's.
        return MANIFEST.validate_json(json.dumps(tree, allow_nan=False))
    except ValidationError as error:
        raise PolicyFileError(f"{name}: {_first(error)}") from None
    except (ValueError, TypeError, OverflowError) as error:
        raise PolicyFileError(f"{name}: manifest: {error}") from None


def _first(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    key = ".".join(["manifest", *(str(part) for part in problem["loc"])])
    given = problem.get("input")
    shown = "" if isinstance(given, dict) else f", not {str(given)[:60]!r}"
    match problem["type"]:
        case "missing":
            return f"{key}: is missing"
        case "extra_forbidden" | "unexpected_keyword_argument":
            return f"{key}: unknown key"
    return f"{key}: {problem['msg']}{shown}"


def _check_manifest(m: Manifest, name: str) -> None:
    """Raise PolicyFileError for what has the right type and makes no sense."""
    for key, problem in problems(m):
        raise PolicyFileError(f"{name}: manifest.{key}: {problem}")


def _check_header(header: dict[str, Any], wanted: Mapping[str, tuple[int, ...]], size: int, name: str) -> None:
    """Raise PolicyFileError unless the header has these tensors, one after the other, and they fill the data."""
    for key in sorted(set(header) - set(wanted)):
        raise PolicyFileError(f"{name}: {key[:60]}: unknown tensor; the schema has {', '.join(wanted)}")
    places = []
    for key, shape in wanted.items():
        if key not in header:
            raise PolicyFileError(f"{name}: {key}: the tensor is missing")
        entry = header[key]
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise PolicyFileError(f"{name}: {key}: expected dtype, shape and data_offsets")
        if entry["dtype"] != "F32":
            raise PolicyFileError(f"{name}: {key}: expected 32-bit floats (F32), not {str(entry['dtype'])[:20]}")
        if not _is_ints(entry["shape"]) or tuple(entry["shape"]) != shape:
            raise PolicyFileError(f"{name}: {key}: expected shape {list(shape)}, not {str(entry['shape'])[:60]}")
        if not _is_ints(entry["data_offsets"]) or len(entry["data_offsets"]) != 2:
            raise PolicyFileError(f"{name}: {key}.data_offsets: expected two whole numbers")
        places.append((*entry["data_offsets"], 4 * int(np.prod(shape)), key))
    end = 0
    for first, last, length, key in sorted(places):
        if first != end or last - first != length:
            raise PolicyFileError(
                f"{name}: {key}.data_offsets: expected {end} to {end + length}, not {first} to {last}"
            )
        end = last
    if size != end:
        what = "truncated" if size < end else "more than the tensors"
        raise PolicyFileError(f"{name}: {what}: {end} bytes of data expected, {size} are there")


def _is_ints(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(x, int) and not isinstance(x, bool) for x in value)
