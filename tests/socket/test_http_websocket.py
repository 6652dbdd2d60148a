"""The websocket handshake's proof."""

import base64
import hashlib
import os

from tests.socket.http_c import websocket_agrees

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455, 1.3


def test_the_example_of_the_rfc() -> None:
    assert websocket_agrees(KEY, ACCEPT)


def test_random_keys_against_hashlib() -> None:
    for _ in range(200):
        key = base64.b64encode(os.urandom(16))
        accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        assert websocket_agrees(key, accept)
        assert not websocket_agrees(key, accept[::-1])


def test_anything_else_is_refused() -> None:
    assert not websocket_agrees(KEY, ACCEPT[:-1])
    assert not websocket_agrees(KEY, ACCEPT + b"=")
    assert not websocket_agrees(KEY, b"")
    assert not websocket_agrees(KEY[:-1], ACCEPT)
    assert not websocket_agrees(b"", ACCEPT)
