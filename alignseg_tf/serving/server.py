"""Start, signals and stop of the server."""

import asyncio
import contextlib
import ipaddress
import logging
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from typing import Any

import hypercorn.asyncio
from hypercorn.config import Config

from alignseg_tf.serving.app import create_app
from alignseg_tf.serving.service import Service
from alignseg_tf.serving.settings import Settings

log = logging.getLogger("alignseg_tf.serving")
# Seconds for TensorFlow to finish its work after the last answer.
STOP_SECONDS = 5.0
LOOPBACK_NAMES = {"localhost", "127.0.0.1", "::1"}
# Connections that wait to be accepted.
BACKLOG = 512
# Maximum number of open files, and so of connections; an idle connection takes some 50 KiB.
MOST_FILES = 8192


def serve(service: Service, host: str, port: int, more_hosts: Sequence[str] = ()) -> int:
    """Serve until a signal ends it.

    Args:
        service: what the routes share; it is stopped at the end.
        host: address to listen at.
        port: 0 for a free one.
        more_hosts: names in the header `Host` that are answered too, `*` for any.

    Returns:
        0, or 1 if requests were cut off because they took too long.

    Raises:
        ValueError: no version loads, or the port is taken.
    """
    _set_up_logs()
    _allow_many_files()
    models = service.models
    with listening_socket(host, port, service.settings.send_seconds) as taken:
        for number in (signal.SIGTERM, signal.SIGINT):  # until the event loop handles them
            signal.signal(number, lambda *_: sys.exit(0))
        starting = threading.Thread(target=service.decoders.start, daemon=True)
        starting.start()
        models.update()
        greeting = _greeting(taken, service)
        starting.join()
        if service.token is None and not is_loopback(host):
            log.warning("%s is open to other machines without a token; see --token-file", host)
        models.watch(service.settings.poll_seconds)
        print(greeting, flush=True)
        log.info("started")
        hosts = allowed_hosts(host, taken, more_hosts)
        log.info("answers to the hosts %s", ", ".join(hosts))
        asyncio.run(_run(service, taken, hosts))
    done = service.stop(STOP_SECONDS)
    log.info("stopped%s", f"; {service.cut_off} requests were cut off" if service.cut_off else "")
    if service.cut_off or not done:
        # Python would wait for threads, and tear down TensorFlow under the one that is inside it.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
    return 0


def _set_up_logs() -> None:
    logging.basicConfig(
        stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING
    )
    log.setLevel(logging.INFO)
    # Clients are told what they send wrong.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    # It would print a traceback for each connection that is cut.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    logging.getLogger("hypercorn.error").setLevel(logging.ERROR)


def _greeting(taken: socket.socket, service: Service) -> str:
    """Return a line with the address and the served version."""
    host, port = taken.getsockname()[:2]
    version = service.models.active
    return (
        f"http://{f'[{host}]' if ':' in host else host}:{port}  {service.models.name}, version "
        f"{version.number}, {version.label_space.num_classes} classes, signatures "
        f"{', '.join(sorted(version.signatures))}{'; a token is needed' if service.token else ''}"
    )


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
    config.errorlog = logging.getLogger("hypercorn.error")
    return config


async def _run(service: Service, taken: socket.socket, hosts: Sequence[str]) -> None:
    """Serve until a signal comes, and then until accepted requests are answered.

    The first signal makes the server not ready, refuses new requests and closes the listener. A
    second one, or the end of `drain_seconds`, ends without waiting.
    """
    loop, stopping = asyncio.get_running_loop(), asyncio.Event()
    app: Any = create_app(service, hosts)  # Hypercorn types messages more narrowly
    config = configuration(taken, service.settings)
    serving = asyncio.ensure_future(
        hypercorn.asyncio.serve(app, config, shutdown_trigger=stopping.wait)
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
    """Take a port, 0 for a free one.

    The system cuts a connection whose client stops reading for `send_seconds`, where it can.

    Raises:
        ValueError: the port is taken, or the address is none of this machine.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"`port` must be 0 to 65535. Received: {port}")
    is_ipv6 = ":" in host
    try:
        taken = socket.create_server(
            (host, port), family=socket.AF_INET6 if is_ipv6 else socket.AF_INET, backlog=BACKLOG,
            dualstack_ipv6=is_ipv6 and socket.has_dualstack_ipv6(),
        )  # fmt: skip
    except OSError as error:
        reason = error.strerror or str(error)
        raise ValueError(f"cannot listen at {host}, port {port}: {reason}") from error
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # accepted connections inherit it
        taken.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1000 * send_seconds))
    return taken


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def allowed_hosts(host: str, taken: socket.socket, more: Sequence[str]) -> list[str]:
    """Return the names in the header `Host` that are answered: own ones, and `more`."""
    address = taken.getsockname()[0]
    names = {host, address, *more}
    if is_loopback(host):
        names |= LOOPBACK_NAMES
    elif ipaddress.ip_address(address).is_unspecified:
        names |= {*LOOPBACK_NAMES, socket.gethostname(), socket.getfqdn(), *_own_addresses()}
    return sorted(f"[{name}]" if ":" in name and name[0] != "[" else name for name in names)


def _own_addresses() -> set[str]:
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


def _allow_many_files() -> None:
    """Raise the limit of open files, so that silent connections do not use them up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
