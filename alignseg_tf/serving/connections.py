"""Connections of clients that are slow, silent or many, which uvicorn leaves open."""

import asyncio
from typing import Any

from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol

from alignseg_tf.serving.settings import Settings

TOO_MANY = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n"
    b"connection: close\r\ncontent-length: 33\r\n\r\n"
    b'{"error": "Too many connections"}'
)


def protocol_with_limits(settings: Settings) -> type[H11Protocol]:
    """Return uvicorn's protocol with limits on heads of requests, answers and connections."""

    class Protocol(H11Protocol):
        """A connection."""

        _timer: asyncio.TimerHandle | None = None

        def _within(self, seconds: float) -> None:
            """Cut the connection unless this is called again, or `_in_time`, before that."""
            self._in_time()
            self._timer = self.loop.call_later(seconds, self.transport.abort)

        def _in_time(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > settings.max_connections:
                transport.write(TOO_MANY)
                transport.close()
                self._within(settings.send_seconds)
                return
            self._within(settings.header_seconds)

        def connection_lost(self, exc: Exception | None) -> None:
            self._in_time()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            before = self.cycle
            super().data_received(data)
            if self.cycle is not before:  # the head of a request is there
                self._in_time()
            elif self._timer is None and (before is None or before.response_complete):
                self._within(settings.header_seconds)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._within(settings.send_seconds)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self.cycle.response_complete:  # the rest is still there
                self._within(settings.send_seconds)
            else:
                self._in_time()

        def on_response_complete(self) -> None:
            # What the client does not read stays in memory.
            self._within(settings.send_seconds)
            super().on_response_complete()
            if not self.cycle.response_complete:  # the next request was there already
                self._in_time()

    return Protocol


def config(app: Any, settings: Settings) -> Config:
    """Return uvicorn's configuration of a server."""
    return Config(
        app,
        http=protocol_with_limits(settings),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
        backlog=settings.max_connections,
    )
