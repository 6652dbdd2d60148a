"""aiohttp's server, whose connections know when a request came in and when its answer left.

Between the bytes of a request and the call of its handler, and between the handler's return and the bytes of the
answer, lie some tenths of a millisecond. A station that is to be exact counts from the bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import web


class Connection(web.RequestHandler):
    __slots__ = ("_answered", "_received", "_then")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._received = self._answered = 0.0  # when the last bytes came and the last answer left, loop time
        self._then: Callable[[float], None] | None = None
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self._received = asyncio.get_running_loop().time()
        super().data_received(data)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        found = await super().finish_response(request, resp, start_time)
        self._answered = asyncio.get_running_loop().time()
        then, self._then = self._then, None
        if then:
            then(self._answered)
        return found

    def request_came(self) -> float:
        """When the request came that is being handled and has no body: not before the answer to the last one left."""
        return max(self._received, self._answered)

    def once_answered(self, then: Callable[[float], None]) -> None:
        """Call then(loop time) when the answer to the request that is being handled has left."""
        self._then = then


class Server(web.Server):
    def __init__(
        self,
        handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        *,
        handler_cancellation: bool,
        keepalive_timeout: float,
    ) -> None:
        super().__init__(handler, handler_cancellation=handler_cancellation)
        self._keepalive_timeout_s = keepalive_timeout

    def __call__(self) -> Connection:
        return Connection(
            self,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type]  # as aiohttp's documentation turns it off
            keepalive_timeout=self._keepalive_timeout_s,
        )


def connection_of(request: web.BaseRequest) -> Connection:
    connection = request.protocol
    assert isinstance(connection, Connection)
    return connection
