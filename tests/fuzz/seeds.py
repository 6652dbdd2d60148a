"""Seeds of the fuzz targets: every message of the test tables, one file each, written when they are needed."""

from pathlib import Path

from tests.socket.test_chunked import GOOD
from tests.socket.test_http_response import FRAMED, REFUSED
from tests.socket.vectors import BAD_CHUNKS, VECTORS, WEBSOCKET

# Pieces that the tables are made of, in libFuzzer's dictionary form.
WORDS = [
    *("GET ", "POST ", "OPTIONS * ", "HTTP/1.1\r\n", "HTTP/1.0\r\n", "http://", "Host: a\r\n", "\r\n\r\n"),
    *("\n", "\r", "\0", "Content-Length: ", "Transfer-Encoding: ", "chunked", "Connection: ", "close", "keep-alive"),
    *("upgrade", "Upgrade: ", "websocket", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", "Sec-WebSocket-Accept: "),
    *("TE: trailers\r\n", "Expect: 100-continue\r\n", "Via: ", "X-Forwarded-For: ", "X-Forwarded-Host: "),
    *("Forwarded: ", "Max-Forwards: ", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 101 x\r\n", "HTTP/1.1 304 x\r\n"),
    *("0\r\n\r\n", "1\r\na\r\n", ";a=b", ' ;a="', "ffffffffffffffff"),
]


def seeds() -> dict[str, list[bytes]]:
    """Inputs by target."""
    bodies = [*BAD_CHUNKS.values(), *(stream for _, stream, _, _ in GOOD)]
    return {
        "fuzz_request": [vector.request for vector in [*VECTORS, WEBSOCKET]],
        "fuzz_response": [case[1] for case in [*FRAMED, *REFUSED]],
        # The first byte is the size of the pieces.
        "fuzz_chunked": [bytes([step]) + body for body in bodies for step in (0, 6)],
    }


def write_seeds(folder: Path) -> dict[str, list[Path]]:
    """Write every seed below folder/<target>; returns the files by target."""
    written: dict[str, list[Path]] = {}
    for target, inputs in seeds().items():
        (folder / target).mkdir(parents=True, exist_ok=True)
        written[target] = [folder / target / f"seed-{i:03}" for i in range(len(inputs))]
        for path, data in zip(written[target], inputs, strict=True):
            path.write_bytes(data)
    return written


def write_dictionary(path: Path) -> None:
    lines = ['"' + "".join(f"\\x{byte:02x}" for byte in word.encode()) + '"' for word in WORDS]
    path.write_text("\n".join(lines) + "\n")
