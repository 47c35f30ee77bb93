"""Start, signals and stop of the server."""

import asyncio
import contextlib
import ipaddress
import logging
import os
import signal
import socket
import sys
import warnings
from argparse import Namespace
from collections.abc import Iterator

import uvicorn
from PIL import Image

from alignseg_tf.serving import connections
from alignseg_tf.serving.app import create_app
from alignseg_tf.serving.models import Models
from alignseg_tf.serving.service import Service
from alignseg_tf.serving.settings import litert_folder, settings_from_arguments, token_from

log = logging.getLogger("alignseg_tf.serving")
# For TensorFlow to end what it is at, after the last answer.
STOP_SECONDS = 5.0


class Server(uvicorn.Server):
    """Uvicorn, with what SIGTERM means here.

    The first signal makes the server not ready, refuses new requests and closes the listener;
    what was accepted is answered. A second one ends without that.
    """

    def __init__(self, config: uvicorn.Config, service: Service):
        super().__init__(config)
        self._service = service

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals by the event loop, and end with the status 0 after them."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        yield

    def _on_signal(self, number: int) -> None:
        if self.should_exit:
            self.force_exit = True
            return
        log.info("%s: no new requests are taken", signal.Signals(number).name)
        self._service.draining = True
        self.should_exit = True


def listening_socket(host: str, port: int) -> socket.socket:
    """Take a port.

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
            taken.bind(address)
            taken.listen()
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


def serve_from_arguments(arguments: Namespace) -> int:
    """Run the command `serve` until a signal ends it.

    Returns:
        0, or 1 if requests were cut off because they took too long.

    Raises:
        ValueError: there is no such model, none of its versions loads, or the port is taken.
    """
    logging.basicConfig(
        stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING
    )
    log.setLevel(logging.INFO)
    # What clients send wrong is no warning of ours, and is told to them.
    for name in ("uvicorn.error", "python_multipart"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"PIL\.")
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

    settings = settings_from_arguments(arguments)
    token = token_from(arguments.token_file)
    litert = litert_folder(arguments.litert)
    models = Models(arguments.folder)
    with listening_socket(arguments.host, arguments.port) as taken:
        for number in (signal.SIGTERM, signal.SIGINT):  # until the event loop handles them
            signal.signal(number, lambda *_: sys.exit(0))
        models.update()
        if not models.ready:
            raise ValueError(f"{arguments.folder}: none of its versions loads")
        service = Service(models, settings, token, litert, arguments.verbose)
        if token is None and not is_loopback(arguments.host):
            log.warning(
                "%s is open to other machines and no token is asked for; see --token-file",
                arguments.host,
            )
        models.watch(settings.poll_seconds)
        print(greeting(taken, service), flush=True)
        log.info("started")
        configuration = connections.config(create_app(service), settings)
        asyncio.run(Server(configuration, service).serve(sockets=[taken]))
    done = service.stop(STOP_SECONDS)
    log.info("stopped%s", f"; {service.cut_off} requests were cut off" if service.cut_off else "")
    if not done:  # a thread inside TensorFlow would be torn down under it
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
    return 1 if service.cut_off else 0


def greeting(taken: socket.socket, service: Service) -> str:
    """Say at which address what is served."""
    host, port = taken.getsockname()[:2]
    version = service.models.active
    return (
        f"http://{f'[{host}]' if ':' in host else host}:{port}  {service.models.name}, version "
        f"{version.number}, {version.label_space.num_classes} classes, signatures "
        f"{', '.join(sorted(version.signatures))}{'; a token is needed' if service.token else ''}"
    )
