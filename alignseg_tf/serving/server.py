"""Start, signals and stop of the server."""

import asyncio
import contextlib
import ipaddress
import logging
import resource
import signal
import socket
from collections.abc import Sequence
from typing import Any

from hypercorn.asyncio import serve
from hypercorn.config import Config

from alignseg_tf.serving.app import create_app
from alignseg_tf.serving.service import Service
from alignseg_tf.serving.settings import Settings

log = logging.getLogger("alignseg_tf.serving")
# For TensorFlow to end what it is at, after the last answer.
STOP_SECONDS = 5.0
LOOPBACK_NAMES = {"localhost", "127.0.0.1", "::1"}
# Connections that wait to be accepted.
BACKLOG = 512
# Open files, and so connections, at most; an idle connection takes some 50 KiB.
MOST_FILES = 8192


def configuration(taken: socket.socket, settings: Settings) -> Config:
    """Return Hypercorn's configuration of a server; the socket is Hypercorn's from then on."""
    config = Config()
    config.bind = [f"fd://{taken.detach()}"]
    config.backlog = BACKLOG
    # From the start of a connection, or the end of an answer, to the end of the next head.
    config.keep_alive_timeout = settings.header_seconds
    config.graceful_timeout = settings.drain_seconds
    config.include_server_header = False
    config.accesslog = None
    errors = logging.getLogger("hypercorn.error")
    errors.setLevel(logging.ERROR)
    config.errorlog = errors
    return config


async def run(service: Service, taken: socket.socket, hosts: Sequence[str]) -> None:
    """Serve until a signal comes, and then until what was accepted is answered.

    The first signal makes the server not ready, refuses new requests and closes the listener. A
    second one, or the end of `drain_seconds`, ends without waiting.
    """
    loop, stopping = asyncio.get_running_loop(), asyncio.Event()
    app: Any = create_app(service, hosts)  # Hypercorn types messages more narrowly
    serving = asyncio.ensure_future(
        serve(app, configuration(taken, service.settings), shutdown_trigger=stopping.wait)
    )

    def on_signal(number: int) -> None:
        if stopping.is_set():
            serving.cancel()
            return
        log.info("%s: no new requests are taken", signal.Signals(number).name)
        service.draining = True
        stopping.set()
        # From Python 3.12 on, Hypercorn waits for connections without its time limit.
        loop.call_later(service.settings.drain_seconds + 1, serving.cancel)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    with contextlib.suppress(asyncio.CancelledError):
        await serving


def listening_socket(host: str, port: int, send_seconds: float) -> socket.socket:
    """Take a port.

    Args:
        host: the address to listen at.
        port: 0 for a free one.
        send_seconds: longest time that a client may stop reading; the system then cuts the
            connection, where it can.

    Raises:
        ValueError: it is taken, or the address is none of this machine.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"`port` must be 0 to 65535. Received: {port}")
    with contextlib.ExitStack() as on_error:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            taken = on_error.enter_context(socket.socket(family, kind, protocol))
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if hasattr(socket, "TCP_USER_TIMEOUT"):  # accepted connections inherit it
                taken.setsockopt(
                    socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1000 * send_seconds)
                )
            taken.bind(address)
            taken.listen(BACKLOG)
        except OSError as error:
            reason = error.strerror or str(error)
            raise ValueError(f"cannot listen at {host}, port {port}: {reason}") from error
        on_error.pop_all()
    return taken


def is_loopback(host: str) -> bool:
    """Whether an address reaches this machine from itself alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def allowed_hosts(host: str, taken: socket.socket, more: Sequence[str]) -> list[str]:
    """Return the names in the header `Host` that are answered, so that no other site's name is.

    Args:
        host: the address to listen at, as it was asked for.
        taken: the socket that listens.
        more: other names, `*` for any.
    """
    address = taken.getsockname()[0]
    names = {host, address, *more}
    if is_loopback(host):
        names |= LOOPBACK_NAMES
    elif ipaddress.ip_address(address).is_unspecified:
        names |= {*LOOPBACK_NAMES, socket.gethostname(), socket.getfqdn(), *own_addresses()}
    return sorted(f"[{name}]" if ":" in name and name[0] != "[" else name for name in names)


def own_addresses() -> set[str]:
    """Return the addresses of this machine, as its own name and its way out tell them."""
    found = set()
    with contextlib.suppress(OSError):
        found |= {str(each[4][0]) for each in socket.getaddrinfo(socket.gethostname(), None)}
    for family, elsewhere in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        # Nothing is sent: this only asks which address would be used.
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as way_out:
            way_out.connect((elsewhere, 9))
            found.add(str(way_out.getsockname()[0]))
    return found


def allow_many_files() -> None:
    """Raise the limit of open files, so that silent connections do not use them up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
