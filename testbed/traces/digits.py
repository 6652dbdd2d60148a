"""Numbers and hashes from text, thousands of fields in one numpy call: what makes the readers fast.

A field is [start, end) in a buffer of bytes. Eight bytes at any offset are one 64-bit word, and eight digits become a
number in nine operations on such words (Lemire, "Quickly parsing eight digits", 2018). Each function returns the values
and a mask of the fields that it understood; the others are the business of the one-row functions below, which define
what a number is. Where both understand a field they agree: the tests hold them against each other.
"""

from __future__ import annotations

import re
from decimal import ROUND_HALF_UP, Context, Decimal
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from testbed.traces.record import T_NS_LIMIT, U64

Words: TypeAlias = NDArray[np.uint64]
Offsets: TypeAlias = NDArray[np.intp]
Mask: TypeAlias = NDArray[np.bool_]

PAD = 64  # zero bytes on either side of the text, so that words around a field can be loaded
NUMBER_MOST = 64  # no number is longer
NUMBER = re.compile(rb"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
INTEGER = re.compile(rb"[0-9]{1,20}")

_ZEROS = np.uint64(0x3030303030303030)
_HIGH = np.uint64(0x8080808080808080)
_ABOVE_NINE = np.uint64(0x7676767676767676)
# The last k bytes of a word, and the first k.
_LAST = np.array([(U64 << 8 * (8 - k)) & U64 for k in range(9)], dtype=np.uint64)
_FIRST = np.array([(1 << 8 * k) - 1 for k in range(9)], dtype=np.uint64)
_TENS = 10 ** np.arange(20, dtype=np.uint64)
_FLOAT_TENS = np.array([float(10**k) for k in range(23)])


class Text:
    """A buffer of text, and the words at each of its offsets."""

    def __init__(self, data: bytes) -> None:
        self.data = bytes(PAD) + data + bytes(PAD)
        self.bytes: NDArray[np.uint8] = np.frombuffer(self.data, dtype=np.uint8)
        # numpy indexes an unaligned array at nearly the speed of an aligned one; take() would copy it first.
        self.words: Words = np.ndarray((len(self.data) - 7,), dtype="<u8", buffer=self.data, strides=(1,))
        self._found: dict[int, Offsets] = {}

    def find(self, byte: int) -> Offsets:
        """Return where this byte stands, and twice the end of the buffer."""
        if byte not in self._found:
            at = np.flatnonzero(self.bytes == byte)
            self._found[byte] = np.append(at, [len(self.data), len(self.data)])
        return self._found[byte]

    def next(self, byte: int, start: Offsets, end: Offsets) -> Offsets:
        """Return where this byte stands first in each field, or the field's end."""
        at = self.find(byte)
        if len(at) == 2:
            return end
        return np.minimum(at[np.searchsorted(at, start)], end)

    def slice(self, start: int, end: int) -> bytes:
        return self.data[start:end]


def _digits(x: Words) -> tuple[Words, Mask]:
    """Return the number that eight digit values a byte make, most significant first, and whether all are digits."""
    ok = (((x + _ABOVE_NINE) | x) & _HIGH) == 0
    x = (x * np.uint64(10) + (x >> np.uint64(8))) & np.uint64(0x00FF00FF00FF00FF)
    x = (x * np.uint64(100) + (x >> np.uint64(16))) & np.uint64(0x0000FFFF0000FFFF)
    return (x * np.uint64(10000) + (x >> np.uint64(32))) & np.uint64(0xFFFFFFFF), ok


def _ending(text: Text, end: Offsets, count: Offsets) -> tuple[Words, Mask]:
    """The number in the last `count` (0 to 8) bytes before end."""
    return _digits((text.words[end - 8] ^ _ZEROS) & _LAST[count])


def _beginning(text: Text, start: Offsets, count: Offsets) -> tuple[Words, Mask]:
    """The number in the first `count` (0 to 8) bytes from start, as if zeros followed up to eight."""
    return _digits((text.words[start] ^ _ZEROS) & _FIRST[count])


def unsigned(text: Text, start: Offsets, end: Offsets) -> tuple[Words, Mask]:
    """Read integers from 0 to 2^64 - 1."""
    length = end - start
    if len(start) == 0:
        return np.empty(0, dtype=np.uint64), np.empty(0, dtype=np.bool_)
    longest = int(length.max())
    value, ok = _ending(text, end, np.clip(length, 0, 8))
    ok &= (length >= 1) & (length <= 20)
    if longest > 8:
        high, high_ok = _ending(text, end - 8, np.clip(length - 8, 0, 8))
        value, ok = value + high * np.uint64(10**8), ok & high_ok
    if longest > 16:
        top, top_ok = _ending(text, end - 16, np.clip(length - 16, 0, 8))
        fits = (top < 1844) | ((top == 1844) & (value <= np.uint64(U64 - 1844 * 10**16)))
        value, ok = value + top * np.uint64(10**16), ok & top_ok & fits
    return value, ok


def scaled(text: Text, start: Offsets, end: Offsets, digits: int) -> tuple[NDArray[np.int64], Mask]:
    """Read decimals as integers of 10^-digits (digits at most 9), halves away from zero: seconds to ns is 9."""
    if len(start) == 0:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.bool_)
    negative = text.bytes[start] == ord("-")
    start = start + negative
    point = text.next(ord("."), start, end)
    whole, ok = unsigned(text, start, point)
    ok &= whole < np.uint64(T_NS_LIMIT // 10**digits - 1)
    value = whole * np.uint64(10**digits)
    fraction = point + 1
    length = end - fraction
    longest = int(length.max())
    if longest >= 0:  # -1: no point
        ok &= (length != 0) & (length <= 24)
        first, first_ok = _beginning(text, np.minimum(fraction, end), np.clip(length, 0, 8))
        sixteen = first * np.uint64(10**8)
        ok &= first_ok
        if longest > 8:
            second, second_ok = _beginning(text, np.minimum(fraction + 8, end), np.clip(length - 8, 0, 8))
            sixteen, ok = sixteen + second, ok & second_ok
        if longest > 16:
            _, third_ok = _beginning(text, np.minimum(fraction + 16, end), np.clip(length - 16, 0, 8))
            ok &= third_ok
        unit = 10 ** (16 - digits)
        value = value + (sixteen + np.uint64(unit // 2)) // np.uint64(unit)
    signed = value.astype(np.int64)
    return np.where(negative, -signed, signed), ok


def scaled_one(field: bytes, digits: int) -> int:
    """Read one decimal as an integer of 10^-digits; ValueError says what is wrong."""
    value = Decimal(_number(field).decode())
    if value.adjusted() > 30:
        raise ValueError("is out of range")
    context = Context(prec=150)  # more than NUMBER_MOST digits and a shift: nothing is rounded but at the end
    number = int(value.scaleb(digits, context).to_integral_value(ROUND_HALF_UP, context))
    if abs(number) >= T_NS_LIMIT:
        raise ValueError("is out of range")
    return number


def real(text: Text, start: Offsets, end: Offsets) -> tuple[NDArray[np.float64], Mask]:
    """Read decimals as the nearest float64."""
    if len(start) == 0:
        return np.empty(0), np.empty(0, dtype=np.bool_)
    point = text.next(ord("."), start, end)
    whole, ok = unsigned(text, start, point)
    length = np.maximum(end - point - 1, 0)
    mantissa, total = whole, (point - start) + length
    ok &= (total <= 15) & ((length > 0) | (point == end))  # "5." is left to float()
    if int(length.max()) > 0:
        part, part_ok = unsigned(text, np.minimum(point + 1, end), end)
        mantissa = whole * _TENS[np.minimum(length, 15)] + part
        ok &= part_ok | (length == 0)
    # Both are exact, so the quotient is the nearest float64 (Clinger 1990).
    value = mantissa.astype(np.float64) / _FLOAT_TENS[np.minimum(length, 15)]
    for i in np.flatnonzero(~ok).tolist():
        field = text.slice(int(start[i]), int(end[i]))
        if len(field) <= NUMBER_MOST and NUMBER.fullmatch(field):
            value[i] = float(field)
            ok[i] = np.isfinite(value[i])
    return value, ok


def real_one(field: bytes) -> float:
    """Read one decimal; ValueError says what is wrong."""
    value = float(_number(field))
    if value in (float("inf"), float("-inf")):
        raise ValueError("is out of range")
    return value


def unsigned_one(field: bytes, most: int = U64) -> int:
    """Read one integer from 0 to `most`; ValueError says what is wrong."""
    if not INTEGER.fullmatch(field):
        raise ValueError("is no whole number" if field else "is empty")
    if int(field) > most:
        raise ValueError("is out of range")
    return int(field)


def _number(field: bytes) -> bytes:
    if not field:
        raise ValueError("is empty")
    if len(field) > NUMBER_MOST or not NUMBER.fullmatch(field):
        raise ValueError("is no number")
    return field


# A hash that takes eight bytes at a step: it must be the same in every release, since keys are part of checksums.

_STEP = 0x9E3779B97F4A7C15
_MIX_A = 0xBF58476D1CE4E5B9
_MIX_B = 0x94D049BB133111EB
_LONGEST_HASHED = 512  # longer fields, which are few, one by one


def mixed(x: Words) -> Words:
    """Return 64 well mixed bits of each word (the finaliser of splitmix64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_MIX_A)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_MIX_B)
    return x ^ (x >> np.uint64(31))


def hashed(text: Text, start: Offsets, end: Offsets, chain: Words | None = None) -> Words:
    """Hash fields; chain: the hashes of the fields before, to hash several as one."""
    length = end - start
    h: Words = length.astype(np.uint64) * np.uint64(_STEP)
    if chain is not None:
        h ^= chain
    active = np.arange(len(start))
    at = 0
    while len(active := active[length[active] > at]):
        if at >= _LONGEST_HASHED:
            for i in active.tolist():
                before = 0 if chain is None else int(chain[i])
                h[i] = _unmixed(text.slice(int(start[i]), int(end[i])), before)
            break
        keep = _FIRST[np.minimum(length[active] - at, 8)]
        x = (h[active] ^ (text.words[start[active] + at] & keep)) * np.uint64(_MIX_A)
        h[active] = x ^ (x >> np.uint64(32))
        at += 8
    return mixed(h)


def hashed_one(field: bytes, chain: int = 0) -> int:
    return int(mixed(np.array([_unmixed(field, chain)], dtype=np.uint64))[0])


def _unmixed(field: bytes, chain: int) -> int:
    h = (len(field) * _STEP & U64) ^ chain
    for at in range(0, len(field), 8):
        h = (h ^ int.from_bytes(field[at : at + 8], "little")) * _MIX_A & U64
        h ^= h >> 32
    return h
