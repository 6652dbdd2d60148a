"""Requests as raw bytes, and what becomes of each: a status that refuses it, or the bytes that the origin sees.

One table, two readers: test_http_request.py runs it against the parser and the writer, test_vectors.py end to end
through a balancer. It also seeds the fuzzers. The client is 127.0.0.1 and no trusted proxy.
"""

from dataclasses import dataclass, field

FORWARDED = 0
HOST = b"Host: a.example\r\n"
GET = b"GET / HTTP/1.1\r\n"
POST = b"POST / HTTP/1.1\r\n"
KEY = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"


@dataclass(frozen=True)
class Vector:
    sentence: str
    request: bytes
    status: int = FORWARDED
    origin_head: bytes = b""
    origin_body: bytes = b""  # decoded, where it travels in chunks
    tags: frozenset[str] = field(default_factory=frozenset)

    @property
    def request_head(self) -> bytes:
        """The head without its body, of a forwarded request."""
        return self.request[
            : self.request.index(b"\r\n\r\n", len(self.request) - len(self.request.lstrip(b"\r\n"))) + 4
        ]


def refused(status: int, sentence: str, request: bytes) -> Vector:
    return Vector(sentence, request, status)


def forwarded(
    sentence: str,
    request: bytes,
    line: bytes,
    *fields: bytes,
    body: bytes = b"",
    host: bytes = b"a.example",
    via: bytes = b"1.1",
    tags: tuple[str, ...] = (),
) -> Vector:
    """The origin sees line, Host, the fields, and what every forwarded request is given."""
    added = [b"X-Forwarded-For: 127.0.0.1", b"X-Forwarded-Proto: http"]
    if host:
        added.append(b"X-Forwarded-Host: " + host)
    lines = [line + b" HTTP/1.1", b"Host: " + host, *fields, *added, b"Via: " + via + b" vickrey", b"", b""]
    return Vector(sentence, request, FORWARDED, b"\r\n".join(lines), body, frozenset(tags))


def get(*lines: bytes) -> bytes:
    """A GET with a Host and these field lines, each as it stands."""
    return GET + HOST + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


def head(line: bytes) -> bytes:
    """A request line as it stands, Host, and no more."""
    return line + b"\r\n" + HOST + b"\r\n"


def post(*lines: bytes, body: bytes = b"") -> bytes:
    return POST + HOST + b"".join(line + b"\r\n" for line in lines) + b"\r\n" + body


CHUNKED = b"Transfer-Encoding: chunked"
CHUNKS = b"5\r\nhello\r\n0\r\n\r\n"

REQUEST_LINES = [
    forwarded("a plain GET", GET + HOST + b"\r\n", b"GET /"),
    forwarded("a path with a query", head(b"GET /a/b?c=d&e=%20 HTTP/1.1"), b"GET /a/b?c=d&e=%20"),
    forwarded(
        "bytes that browsers leave unescaped",
        b'GET /a|b?q={"x":[1]}^`<>\\ HTTP/1.1\r\n' + HOST + b"\r\n",
        b'GET /a|b?q={"x":[1]}^`<>\\',
    ),
    forwarded("one empty line before the request", b"\r\n" + get(), b"GET /"),
    forwarded("two empty lines before the request", b"\r\n\r\n" + get(), b"GET /"),
    forwarded("a method of another registry", head(b"PROPFIND /dav HTTP/1.1"), b"PROPFIND /dav"),
    forwarded("methods are case-sensitive: get is another one", head(b"get / HTTP/1.1"), b"get /"),
    forwarded("a higher minor version is taken as 1.1", head(b"GET / HTTP/1.2"), b"GET /"),
    forwarded("HTTP/1.0 goes on as 1.1", head(b"GET / HTTP/1.0"), b"GET /", via=b"1.0"),
    forwarded("OPTIONS *", head(b"OPTIONS * HTTP/1.1"), b"OPTIONS *"),
    forwarded(
        "absolute-form is reduced to origin-form",
        head(b"GET http://a.example/x?y HTTP/1.1"),
        b"GET /x?y",
    ),
    forwarded("absolute-form without a path", head(b"GET http://a.example HTTP/1.1"), b"GET /"),
    forwarded("absolute-form with a query alone", head(b"GET http://a.example?q HTTP/1.1"), b"GET /?q"),
    forwarded("the scheme is case-insensitive", head(b"GET HTTP://a.example/ HTTP/1.1"), b"GET /"),
    forwarded(
        "absolute-form: its authority wins over Host",
        head(b"GET http://b.example:81/ HTTP/1.1"),
        b"GET /",
        host=b"b.example:81",
    ),
    forwarded(
        "OPTIONS in absolute-form without a path",
        head(b"OPTIONS http://a.example HTTP/1.1"),
        b"OPTIONS *",
    ),
    refused(400, "two blanks after the method", head(b"GET  / HTTP/1.1")),
    refused(400, "two blanks before the version", head(b"GET /  HTTP/1.1")),
    refused(400, "a tab between method and target", head(b"GET\t/ HTTP/1.1")),
    refused(400, "a blank before the method", head(b" GET / HTTP/1.1")),
    refused(400, "a blank after the version", head(b"GET / HTTP/1.1 ")),
    refused(400, "a blank inside the target", head(b"GET /a b HTTP/1.1")),
    refused(400, "three empty lines before the request", b"\r\n\r\n\r\n" + get()),
    refused(400, "a bare LF before the request", b"\n" + get()),
    refused(400, "a bare CR before the request", b"\r" + get()),
    refused(400, "a method that is no token", head(b"G(T / HTTP/1.1")),
    refused(400, "no method", head(b"/ HTTP/1.1")),
    refused(501, "a method without end", b"A" * 33 + head(b" / HTTP/1.1")),
    refused(400, "HTTP/0.9", b"GET /\r\n"),
    refused(400, "a lower-case version", head(b"GET / http/1.1")),
    refused(400, "a version without a minor", head(b"GET / HTTP/1")),
    refused(400, "a version with two digits", head(b"GET / HTTP/1.10")),
    refused(400, "another protocol", head(b"GET / ICAP/1.0")),
    refused(505, "HTTP/2.0", head(b"GET / HTTP/2.0")),
    refused(505, "HTTP/0.9 spelled out", head(b"GET / HTTP/0.9")),
    refused(505, "the preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    refused(400, "a TLS client hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    refused(400, "a bare LF after the request line", b"GET / HTTP/1.1\n" + HOST + b"\r\n"),
    refused(400, "a bare CR after the request line", b"GET / HTTP/1.1\r" + HOST + b"\r\n"),
    refused(400, "CR CR LF after the request line", head(b"GET / HTTP/1.1\r")),
    refused(400, "a fragment in the target", head(b"GET /a#b HTTP/1.1")),
    refused(400, "a NUL in the target", head(b"GET /a\0b HTTP/1.1")),
    refused(400, "a control character in the target", head(b"GET /a\x01 HTTP/1.1")),
    refused(400, "DEL in the target", head(b"GET /a\x7f HTTP/1.1")),
    refused(400, "a byte above 0x7f in the target", head(b"GET /\xc3\xa4 HTTP/1.1")),
    refused(400, "a bare CR in the target", head(b"GET /a\rb HTTP/1.1")),
    refused(400, "a target without a slash", head(b"GET a HTTP/1.1")),
    refused(400, "the asterisk is for OPTIONS alone", head(b"GET * HTTP/1.1")),
    refused(400, "an asterisk and more", head(b"OPTIONS *x HTTP/1.1")),
    refused(400, "authority-form is for CONNECT alone", head(b"GET a.example:80 HTTP/1.1")),
    refused(400, "another scheme", head(b"GET ftp://a.example/ HTTP/1.1")),
    refused(400, "absolute-form with user information", head(b"GET http://u:p@a.example/ HTTP/1.1")),
    refused(400, "absolute-form without a host", head(b"GET http:///a HTTP/1.1")),
    refused(400, "absolute-form without Host in 1.1", b"GET http://a.example/ HTTP/1.1\r\n\r\n"),
    refused(501, "CONNECT", head(b"CONNECT a.example:443 HTTP/1.1")),
    refused(414, "a target too long", b"GET /" + b"a" * 8192 + head(b" HTTP/1.1")),
    forwarded("a target just not too long", b"GET /" + b"a" * 8191 + head(b" HTTP/1.1"), b"GET /" + b"a" * 8191),
]

FIELD_LINES = [
    forwarded(
        "fields keep their order and their case", get(b"B: 1", b"a: 2", b"b: 3"), b"GET /", b"B: 1", b"a: 2", b"b: 3"
    ),
    forwarded("blanks around a value go", get(b"A: \t 1 2 \t"), b"GET /", b"A: 1 2"),
    forwarded("no blank after the colon", get(b"A:1", b"B: 2"), b"GET /", b"A: 1", b"B: 2"),
    forwarded("a tab after the colon", get(b"A:\t1"), b"GET /", b"A: 1"),
    forwarded("an empty value", get(b"A:", b"B: "), b"GET /", b"A: ", b"B: "),
    forwarded("a tab inside a value", get(b"A: 1\t2"), b"GET /", b"A: 1\t2"),
    forwarded("bytes above 0x7f in a value", get(b"A: \xc3\xa4\xff"), b"GET /", b"A: \xc3\xa4\xff"),
    forwarded(
        "every byte that a name may have", get(b"!#$%&'*+-.^_`|~09azAZ: 1"), b"GET /", b"!#$%&'*+-.^_`|~09azAZ: 1"
    ),
    forwarded("colons in a value", get(b"A: b: c:"), b"GET /", b"A: b: c:"),
    refused(400, "a blank before the colon", get(b"A : 1")),
    refused(400, "a tab before the colon", get(b"A\t: 1")),
    refused(400, "a line without a colon", get(b"A")),
    refused(400, "an empty name", get(b": 1")),
    refused(400, "a name with a blank in it", get(b"A B: 1")),
    refused(400, "a name that is no token", get(b"A(: 1")),
    refused(400, "a name with a byte above 0x7f", get(b"\xc3\xa4: 1")),
    refused(400, "a name with a NUL", get(b"A\0: 1")),
    refused(400, "a NUL in a value", get(b"A: 1\x002")),
    refused(400, "a control character in a value", get(b"A: 1\x0b2")),
    refused(400, "DEL in a value", get(b"A: 1\x7f")),
    refused(400, "a continued line", get(b"A: 1", b" 2")),
    refused(400, "a line continued with a tab", get(b"A: 1", b"\t2")),
    refused(400, "a blank before the first field", GET + b" " + HOST + b"\r\n"),
    refused(400, "a line of blanks alone", get(b" ")),
    refused(400, "a bare LF after a field", GET + HOST + b"A: 1\nB: 2\r\n\r\n"),
    refused(400, "a bare LF as the empty line", GET + HOST + b"\n"),
    refused(400, "LF LF at the end of the head", GET + b"Host: a.example\n\n"),
    refused(400, "a bare CR in a value", get(b"A: 1\r2")),
    refused(400, "a bare CR at the end of a value", GET + HOST + b"A: 1\rB: 2\r\n\r\n"),
    refused(400, "CR CR LF at the end of a field", GET + HOST + b"A: 1\r\r\n\r\n"),
    refused(400, "a bare CR before the empty line", GET + HOST + b"\r\r\n"),
    refused(431, "a field too many", get(*[b"A: 1"] * 100)),
    forwarded("just not too many", get(*[b"A: 1"] * 99), b"GET /", *[b"A: 1"] * 99),
    refused(431, "a head too long", get(b"A: " + b"a" * 16384)),
]

HOSTS = [
    forwarded("a port", GET + b"Host: a.example:8080\r\n\r\n", b"GET /", host=b"a.example:8080"),
    forwarded("an IPv6 address", GET + b"Host: [::1]:80\r\n\r\n", b"GET /", host=b"[::1]:80"),
    forwarded("Host stands anywhere and comes first", GET + b"A: 1\r\nhOST:a.example\r\n\r\n", b"GET /", b"A: 1"),
    forwarded("no Host in HTTP/1.0", b"GET / HTTP/1.0\r\n\r\n", b"GET /", host=b"", via=b"1.0", tags=("default-host",)),
    forwarded(
        "absolute-form in HTTP/1.0 without Host", b"GET http://a.example/ HTTP/1.0\r\n\r\n", b"GET /", via=b"1.0"
    ),
    refused(400, "no Host", GET + b"\r\n"),
    refused(400, "two Hosts", get(b"Host: b.example")),
    refused(400, "two equal Hosts", get(b"Host: a.example")),
    refused(400, "two Hosts in HTTP/1.0", b"GET / HTTP/1.0\r\n" + HOST + HOST + b"\r\n"),
    refused(400, "an empty Host", GET + b"Host: \r\n\r\n"),
    refused(400, "a list of hosts", GET + b"Host: a.example, b.example\r\n\r\n"),
    refused(400, "a list of hosts without a blank", GET + b"Host: a.example,b.example\r\n\r\n"),
    refused(400, "user information", GET + b"Host: u@a.example\r\n\r\n"),
    refused(400, "a path", GET + b"Host: a.example/b\r\n\r\n"),
    refused(400, "a query", GET + b"Host: a.example?b\r\n\r\n"),
    refused(400, "a scheme", GET + b"Host: http://a.example\r\n\r\n"),
    refused(400, "a blank", GET + b"Host: a.example b\r\n\r\n"),
    refused(400, "a byte above 0x7f", GET + b"Host: \xc3\xa4.example\r\n\r\n"),
    refused(400, "a port that is no number", GET + b"Host: a.example:x\r\n\r\n"),
    refused(400, "two ports", GET + b"Host: a.example:80:81\r\n\r\n"),
    refused(400, "a port too high", GET + b"Host: a.example:65536\r\n\r\n"),
    refused(400, "a port alone", GET + b"Host: :80\r\n\r\n"),
    refused(400, "a bracket that stays open", GET + b"Host: [::1\r\n\r\n"),
    refused(400, "something after the bracket", GET + b"Host: [::1]x\r\n\r\n"),
    refused(400, "brackets around a name", GET + b"Host: [a.example]\r\n\r\n"),
    refused(400, "a host too long", GET + b"Host: " + b"a" * 263 + b"\r\n\r\n"),
    refused(400, "a bad escape", GET + b"Host: a%2.example\r\n\r\n"),
    refused(400, "a backslash", GET + b"Host: a\\b\r\n\r\n"),
]

FRAMING = [
    forwarded("a length", post(b"Content-Length: 5", body=b"hello"), b"POST /", b"Content-Length: 5", body=b"hello"),
    forwarded("a length of zero", post(b"Content-Length: 0"), b"POST /", b"Content-Length: 0"),
    forwarded("no body announced", post(), b"POST /"),
    forwarded(
        "leading zeros", post(b"Content-Length: 005", body=b"hello"), b"POST /", b"Content-Length: 5", body=b"hello"
    ),
    forwarded("a body of a GET", get(b"Content-Length: 5") + b"hello", b"GET /", b"Content-Length: 5", body=b"hello"),
    forwarded("chunks", post(CHUNKED, body=CHUNKS), b"POST /", CHUNKED, body=b"hello"),
    forwarded(
        "Chunked in capitals", post(b"transfer-encoding:CHUNKED ", body=CHUNKS), b"POST /", CHUNKED, body=b"hello"
    ),
    forwarded(
        "chunk extensions are dropped",
        post(CHUNKED, body=b'5;a;b=c;d="e f"\r\nhello\r\n0;x\r\n\r\n'),
        b"POST /",
        CHUNKED,
        body=b"hello",
    ),
    forwarded(
        "chunk sizes with leading zeros",
        post(CHUNKED, body=b"0005\r\nhello\r\n000\r\n\r\n"),
        b"POST /",
        CHUNKED,
        body=b"hello",
    ),
    refused(400, "a body of a GET in HTTP/1.0", b"GET / HTTP/1.0\r\n" + HOST + b"Content-Length: 5\r\n\r\nhello"),
    refused(400, "a length and chunks", post(b"Content-Length: 5", CHUNKED, body=CHUNKS)),
    refused(400, "chunks and a length", post(CHUNKED, b"Content-Length: 15", body=CHUNKS)),
    refused(400, "chunks and a length of zero", post(CHUNKED, b"Content-Length: 0", body=CHUNKS)),
    refused(400, "two lengths that differ", post(b"Content-Length: 5", b"Content-Length: 6", body=b"hello!")),
    refused(400, "two equal lengths", post(b"Content-Length: 5", b"Content-Length: 5", body=b"hello")),
    refused(400, "a list of lengths that differ", post(b"Content-Length: 5, 6", body=b"hello!")),
    refused(400, "a list of equal lengths", post(b"Content-Length: 5, 5", body=b"hello")),
    refused(400, "a sign", post(b"Content-Length: +5", body=b"hello")),
    refused(400, "a negative length", post(b"Content-Length: -5", body=b"hello")),
    refused(400, "an empty length", post(b"Content-Length:", body=b"hello")),
    refused(400, "a hexadecimal length", post(b"Content-Length: 0x5", body=b"hello")),
    refused(400, "a length with a blank in it", post(b"Content-Length: 1 0", body=b"hello")),
    refused(400, "a length with a fraction", post(b"Content-Length: 5.0", body=b"hello")),
    refused(400, "a length beyond 64 bits", post(b"Content-Length: 18446744073709551621", body=b"hello")),
    refused(400, "a length beyond 63 bits", post(b"Content-Length: 9223372036854775808", body=b"hello")),
    refused(400, "chunked twice", post(b"Transfer-Encoding: chunked, chunked", body=CHUNKS)),
    refused(400, "chunked in two fields", post(CHUNKED, CHUNKED, body=CHUNKS)),
    refused(400, "chunked is not the last", post(b"Transfer-Encoding: chunked, gzip", body=CHUNKS)),
    refused(400, "chunked with a parameter", post(b"Transfer-Encoding: chunked;x=1", body=CHUNKS)),
    refused(400, "chunked after a vertical tab", post(b"Transfer-Encoding: \x0bchunked", body=CHUNKS)),
    refused(400, "chunked in quotes", post(b'Transfer-Encoding: "chunked"', body=CHUNKS)),
    refused(400, "chunked before a comma", post(b"Transfer-Encoding: chunked,", body=CHUNKS)),
    refused(400, "chunked after a comma", post(b"Transfer-Encoding: ,chunked", body=CHUNKS)),
    refused(400, "an empty coding", post(b"Transfer-Encoding:", body=CHUNKS)),
    refused(400, "two words", post(b"Transfer-Encoding: chunked chunked", body=CHUNKS)),
    refused(400, "a coding in HTTP/1.0", b"POST / HTTP/1.0\r\n" + HOST + CHUNKED + b"\r\n\r\n" + CHUNKS),
    refused(400, "a blank before the coding's colon", post(b"Transfer-Encoding : chunked", body=CHUNKS)),
    refused(400, "a continued coding", post(b"Transfer-Encoding:", b" chunked", body=CHUNKS)),
    refused(501, "identity", post(b"Transfer-Encoding: identity", body=CHUNKS)),
    refused(501, "gzip below chunked", post(b"Transfer-Encoding: gzip, chunked", body=CHUNKS)),
    refused(501, "an unknown coding", post(b"Transfer-Encoding: xchunked", body=CHUNKS)),
    refused(501, "gzip and then chunked in two fields", post(b"Transfer-Encoding: gzip", CHUNKED, body=CHUNKS)),
]

# The head is forwarded before the body's fault is seen: the connection ends, the origin never gets a whole message.
BAD_CHUNKS = {
    "a size that is no number": b"x\r\nhello\r\n0\r\n\r\n",
    "an empty size": b"\r\nhello\r\n0\r\n\r\n",
    "a size with a prefix": b"0x5\r\nhello\r\n0\r\n\r\n",
    "a size with a sign": b"+5\r\nhello\r\n0\r\n\r\n",
    "a negative size": b"-5\r\nhello\r\n0\r\n\r\n",
    "a blank before the size": b" 5\r\nhello\r\n0\r\n\r\n",
    "a blank after the size": b"5 \r\nhello\r\n0\r\n\r\n",
    "a blank before an extension": b"5 ;a\r\nhello\r\n0\r\n\r\n",
    "an underscore in the size": b"0_5\r\nhello\r\n0\r\n\r\n",
    "a size of 17 digits": b"00000000000000005\r\nhello\r\n0\r\n\r\n",
    "a size beyond 64 bits": b"10000000000000005\r\nhello\r\n0\r\n\r\n",
    "a size beyond 63 bits": b"8000000000000000\r\nhello\r\n0\r\n\r\n",
    "a bare LF after the size": b"5\nhello\r\n0\r\n\r\n",
    "a bare CR after the size": b"5\rhello\r\n0\r\n\r\n",
    "CR CR LF after the size": b"5\r\r\nhello\r\n0\r\n\r\n",
    "a bare LF after the data": b"5\r\nhello\n0\r\n\r\n",
    "nothing after the data": b"5\r\nhello0\r\n\r\n",
    "more data than the size says": b"4\r\nhello\r\n0\r\n\r\n",
    "a bare LF in an extension": b"5;a\nhello\r\n0\r\n\r\n",
    "a bare CR in an extension": b"5;a\rb\r\nhello\r\n0\r\n\r\n",
    "a NUL in an extension": b"5;a\0\r\nhello\r\n0\r\n\r\n",
    "an extension without a name": b"5;\r\nhello\r\n0\r\n\r\n",
    "an extension without a value": b"5;a=\r\nhello\r\n0\r\n\r\n",
    "an extension in quotes that stay open": b'5;a="b\r\nhello\r\n0\r\n\r\n',
    "an extension too long": b"5;" + b"a" * 1024 + b"\r\nhello\r\n0\r\n\r\n",
    "a bare LF at the end": b"5\r\nhello\r\n0\r\n\n",
    "a trailer without a colon": b"5\r\nhello\r\n0\r\nA\r\n\r\n",
    "a trailer with a blank before its colon": b"5\r\nhello\r\n0\r\nA : b\r\n\r\n",
    "a continued trailer": b"5\r\nhello\r\n0\r\nA: b\r\n c\r\n\r\n",
    "a bare LF in a trailer": b"5\r\nhello\r\n0\r\nA: b\nB: c\r\n\r\n",
    "a NUL in a trailer": b"5\r\nhello\r\n0\r\nA: \0\r\n\r\n",
    "trailers too long": b"5\r\nhello\r\n0\r\n" + b"A: " + b"b" * 8192 + b"\r\n\r\n",
}

HOP_BY_HOP = [
    forwarded("Connection itself goes", get(b"Connection: keep-alive", b"A: 1"), b"GET /", b"A: 1"),
    forwarded(
        "so do the fields that it names",
        get(b"Foo: 1", b"Connection: close, foo ,Bar", b"bar: 2", b"A: 3", b"FOO: 4"),
        b"GET /",
        b"A: 3",
    ),
    forwarded(
        "also those of a second one", get(b"Connection: foo", b"Foo: 1", b"Connection: bar", b"Bar: 2"), b"GET /"
    ),
    forwarded("Host cannot be taken away", get(b"Connection: host"), b"GET /"),
    forwarded(
        "nor can the length",
        post(b"Connection: content-length", b"Content-Length: 5", body=b"hello"),
        b"POST /",
        b"Content-Length: 5",
        body=b"hello",
    ),
    forwarded(
        "nor the coding",
        post(b"Connection: Transfer-Encoding", CHUNKED, body=CHUNKS),
        b"POST /",
        CHUNKED,
        body=b"hello",
    ),
    forwarded("nor Via", get(b"Connection: via", b"Via: 1.1 x"), b"GET /", b"Via: 1.1 x"),
    forwarded("options that are no tokens name nothing", get(b"Connection: a;b, (c)", b"a: 1"), b"GET /", b"a: 1"),
    forwarded("Keep-Alive goes", get(b"Keep-Alive: timeout=5"), b"GET /"),
    forwarded("Proxy-Connection goes", get(b"Proxy-Connection: keep-alive"), b"GET /"),
    forwarded("Proxy-Authorization goes", get(b"Proxy-Authorization: Basic eDp5"), b"GET /"),
    forwarded("Authorization stays", get(b"Authorization: Basic eDp5"), b"GET /", b"Authorization: Basic eDp5"),
    forwarded("Trailer goes", post(b"Trailer: A", CHUNKED, body=CHUNKS), b"POST /", CHUNKED, body=b"hello"),
    forwarded("TE goes", get(b"TE: gzip"), b"GET /"),
    forwarded("TE: trailers stays", get(b"TE: gzip, trailers"), b"GET /", b"Connection: TE", b"TE: trailers"),
    forwarded(
        "an upgrade to h2c goes",
        get(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk"),
        b"GET /",
    ),
    forwarded("HTTP2-Settings goes even unnamed", get(b"HTTP2-Settings: AAMAAABk"), b"GET /"),
    forwarded("an upgrade to TLS goes", get(b"Connection: Upgrade", b"Upgrade: TLS/1.0"), b"GET /"),
    forwarded("Upgrade without Connection goes", get(b"Upgrade: websocket", KEY[:-2]), b"GET /", KEY[:-2]),
    forwarded(
        "an upgrade to websocket without a key goes", get(b"Connection: Upgrade", b"Upgrade: websocket"), b"GET /"
    ),
    forwarded(
        "an upgrade to websocket with a bad key goes",
        get(b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Key: x"),
        b"GET /",
        b"Sec-WebSocket-Key: x",
    ),
    forwarded(
        "an upgrade to websocket in HTTP/1.0 goes",
        b"GET / HTTP/1.0\r\n" + HOST + b"Connection: Upgrade\r\nUpgrade: websocket\r\n" + KEY + b"\r\n",
        b"GET /",
        KEY[:-2],
        via=b"1.0",
    ),
    forwarded("an existing Via stays before ours", get(b"Via: 1.0 old"), b"GET /", b"Via: 1.0 old"),
    forwarded(
        "what a client says of itself is not believed",
        get(
            b"X-Forwarded-For: 1.2.3.4",
            b"x-forwarded-proto: https",
            b"X-Forwarded-Host: evil",
            b"X-Forwarded-Port: 1",
            b"X-Real-IP: 1.2.3.4",
            b"Forwarded: for=1.2.3.4",
            b"A: 1",
        ),
        b"GET /",
        b"A: 1",
    ),
    forwarded("X_Forwarded_For is another field", get(b"X_Forwarded_For: x"), b"GET /", b"X_Forwarded_For: x"),
    refused(400, "Connection names fields without end", get(b"Connection: " + b"a," * 101)),
]

EXPECTATIONS = [
    forwarded(
        "Expect: 100-continue",
        post(b"Expect: 100-Continue", b"Content-Length: 5", body=b"hello"),
        b"POST /",
        b"Content-Length: 5",
        b"Expect: 100-continue",
        body=b"hello",
    ),
    forwarded("Expect without a body goes", get(b"Expect: 100-continue"), b"GET /"),
    forwarded(
        "Expect in HTTP/1.0 goes",
        b"POST / HTTP/1.0\r\n" + HOST + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\nhello",
        b"POST /",
        b"Content-Length: 5",
        body=b"hello",
        via=b"1.0",
    ),
    refused(417, "another expectation", post(b"Expect: 200-ok", b"Content-Length: 0")),
    refused(417, "two expectations", post(b"Expect: 100-continue, x", b"Content-Length: 0")),
    forwarded(
        "Max-Forwards counts down",
        b"OPTIONS / HTTP/1.1\r\n" + HOST + b"Max-Forwards: 5\r\n\r\n",
        b"OPTIONS /",
        b"Max-Forwards: 4",
    ),
    forwarded("Max-Forwards means nothing to GET", get(b"Max-Forwards: 0"), b"GET /", b"Max-Forwards: 0"),
    refused(
        200,
        "OPTIONS that may go no further is answered here",
        b"OPTIONS * HTTP/1.1\r\n" + HOST + b"Max-Forwards: 0\r\n\r\n",
    ),
    refused(501, "TRACE that may go no further", b"TRACE / HTTP/1.1\r\n" + HOST + b"Max-Forwards: 0\r\n\r\n"),
    refused(400, "Max-Forwards is no number", b"OPTIONS / HTTP/1.1\r\n" + HOST + b"Max-Forwards: x\r\n\r\n"),
    forwarded("TRACE", head(b"TRACE / HTTP/1.1"), b"TRACE /"),
    refused(400, "TRACE with a body", b"TRACE / HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\n\r\nx"),
]

VECTORS = [*REQUEST_LINES, *FIELD_LINES, *HOSTS, *FRAMING, *HOP_BY_HOP, *EXPECTATIONS]

WEBSOCKET = forwarded(
    "an upgrade to websocket stays",
    get(b"Connection: keep-alive, Upgrade", b"Upgrade: WebSocket", KEY[:-2], b"Sec-WebSocket-Version: 13"),
    b"GET /",
    KEY[:-2],
    b"Sec-WebSocket-Version: 13",
    b"Connection: Upgrade",
    b"Upgrade: websocket",
)
