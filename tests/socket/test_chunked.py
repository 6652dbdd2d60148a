"""Chunked bodies: strict, the same however they arrive split, trailers only when asked for."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.socket import http_c
from tests.socket.vectors import BAD_CHUNKS

REST = b"GET / HTTP/1.1\r\n"

# sentence, stream, data, trailers
GOOD = [
    ("no data", b"0\r\n\r\n", b"", b""),
    ("one chunk", b"5\r\nhello\r\n0\r\n\r\n", b"hello", b""),
    ("two chunks", b"5\r\nhello\r\n7\r\n, world\r\n0\r\n\r\n", b"hello, world", b""),
    ("digits of both cases", b"a\r\n0123456789\r\nB\r\n0123456789a\r\n0\r\n\r\n", b"01234567890123456789a", b""),
    ("leading zeros", b"0000000000000005\r\nhello\r\n0000\r\n\r\n", b"hello", b""),
    ("data that looks like framing", b"7\r\n0\r\n\r\n5\r\r\n0\r\n\r\n", b"0\r\n\r\n5\r", b""),
    ("extensions", b'5;a;b=c;d="e;\\""\r\nhello\r\n0\r\n\r\n', b"hello", b""),
    ("an extension of the last chunk", b"5\r\nhello\r\n0;a=b\r\n\r\n", b"hello", b""),
    ("a trailer", b"5\r\nhello\r\n0\r\nA: b\r\n\r\n", b"hello", b"A: b\r\n"),
    ("two trailers", b"0\r\nA: b\r\nX-Sum:\xff\r\n\r\n", b"", b"A: b\r\nX-Sum:\xff\r\n"),
    (
        "trailers that may be none",
        b"0\r\nHost: x\r\nA: b\r\nContent-Length: 5\r\ntransfer-encoding: chunked\r\n"
        b"X-Forwarded-For: 1\r\nCookie: a\r\nB: c\r\n\r\n",
        b"",
        b"A: b\r\nB: c\r\n",
    ),
    ("a trailer without room", b"0\r\nA: b\r\nC: " + b"d" * 200 + b"\r\nE: f\r\n\r\n", b"", b"A: b\r\nE: f\r\n"),
]

Good = tuple[str, bytes, bytes, bytes]


@pytest.mark.parametrize("case", GOOD, ids=lambda c: c[0])
def test_each_body_is_read(case: Good) -> None:
    _, stream, data, trailers = case
    assert http_c.read_chunked([stream + REST], trailer_room=100) == http_c.Body("done", data, REST, trailers)
    assert http_c.read_chunked([stream + REST]) == http_c.Body("done", data, REST, b"")


@pytest.mark.parametrize("case", GOOD, ids=lambda c: c[0])
def test_byte_by_byte_is_the_same(case: Good) -> None:
    _, stream, data, trailers = case
    pieces = [stream[i : i + 1] for i in range(len(stream))]
    assert http_c.read_chunked(pieces, trailer_room=100) == http_c.Body("done", data, b"", trailers)
    assert http_c.read_chunked(pieces[:-1]).verdict == "more"


@pytest.mark.parametrize("sentence", BAD_CHUNKS)
def test_each_bad_body_is_refused(sentence: str) -> None:
    stream = BAD_CHUNKS[sentence]
    assert http_c.read_chunked([stream]).verdict == "malformed"
    assert http_c.read_chunked([stream[i : i + 1] for i in range(len(stream))]).verdict == "malformed"


@given(chunks=st.lists(st.binary(min_size=1, max_size=50), max_size=8), cuts=st.lists(st.integers(0, 500), max_size=10))
def test_what_was_written_in_chunks_is_read_back_however_it_is_cut(chunks: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(http_c.write_chunk_size(len(c)) + c + b"\r\n" for c in chunks) + b"0\r\n\r\n"
    at = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    body = http_c.read_chunked([stream[a:b] for a, b in pairwise(at)])
    assert (body.verdict, body.data) == ("done", b"".join(chunks))


@given(
    stream=st.lists(
        st.sampled_from(
            [b"5", b"0", b"a", b"\r\n", b"\r", b"\n", b";", b"=", b'"', b"\\", b":", b" ", b"hello", b"\0", b"x"]
        )
    ).map(b"".join),
    cut=st.integers(0, 60),
)
def test_any_stream_gets_the_same_verdict_however_it_is_cut(stream: bytes, cut: int) -> None:
    whole = http_c.read_chunked([stream], trailer_room=50)
    cut = min(cut, len(stream))
    parts = http_c.read_chunked([stream[:cut], stream[cut:]], trailer_room=50)
    assert parts.verdict == whole.verdict
    if whole.verdict == "done":
        assert parts == whole


@given(st.integers(1, 2**64 - 1))
def test_a_size_is_written_in_plain_hex(n: int) -> None:
    assert http_c.write_chunk_size(n) == b"%x\r\n" % n


def test_a_size_just_below_the_bound_is_taken() -> None:
    body = http_c.read_chunked([b"7fffffffffffffff\r\nhello"])
    assert (body.verdict, body.data) == ("more", b"hello")
