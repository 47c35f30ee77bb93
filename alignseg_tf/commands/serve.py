"""`alignseg serve`: serve SavedModels over HTTP."""

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
import threading
from argparse import Namespace
from dataclasses import fields
from pathlib import Path

from alignseg_tf.serving.models import Models
from alignseg_tf.serving.server import (
    STOP_SECONDS,
    allow_many_files,
    allowed_hosts,
    is_loopback,
    listening_socket,
    log,
    run,
)
from alignseg_tf.serving.service import Service
from alignseg_tf.serving.settings import (
    DEFAULT_LITERT,
    TOKEN_VARIABLE,
    Settings,
    litert_folder,
    token_from,
)


def serve(arguments: argparse.Namespace) -> int:
    """Serve a SavedModel over HTTP until a signal ends it."""
    try:
        pass
    except ModuleNotFoundError as error:
        raise ImportError(
            f"the server needs {error.name}: pip install 'alignseg_tf[serve]'"
        ) from error
    return serve_from_arguments(arguments)


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
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    # It would print a traceback for each connection that is cut.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)

    settings = settings_from_arguments(arguments)
    token = token_from(arguments.token_file)
    litert = litert_folder(arguments.litert)
    models = Models(arguments.folder)
    allow_many_files()
    with listening_socket(arguments.host, arguments.port, settings.send_seconds) as taken:
        for number in (signal.SIGTERM, signal.SIGINT):  # until the event loop handles them
            signal.signal(number, lambda *_: sys.exit(0))
        service = Service(models, settings, token, litert, arguments.verbose)
        starting = threading.Thread(target=service.decoders.start, daemon=True)
        starting.start()
        models.update()
        if not models.ready:
            raise ValueError(f"{arguments.folder}: none of its versions loads")
        starting.join()
        if token is None and not is_loopback(arguments.host):
            log.warning(
                "%s is open to other machines and no token is asked for; see --token-file",
                arguments.host,
            )
        models.watch(settings.poll_seconds)
        print(greeting(taken, service), flush=True)
        log.info("started")
        hosts = allowed_hosts(arguments.host, taken, arguments.allowed_host)
        log.info("answers to the hosts %s", ", ".join(hosts))
        asyncio.run(run(service, taken, hosts))
    done = service.stop(STOP_SECONDS)
    log.info("stopped%s", f"; {service.cut_off} requests were cut off" if service.cut_off else "")
    if service.cut_off or not done:
        # Python would wait for threads, and one inside TensorFlow would be torn down under it.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
    return 0


def greeting(taken: socket.socket, service: Service) -> str:
    """Say at which address what is served."""
    host, port = taken.getsockname()[:2]
    version = service.models.active
    return (
        f"http://{f'[{host}]' if ':' in host else host}:{port}  {service.models.name}, version "
        f"{version.number}, {version.label_space.num_classes} classes, signatures "
        f"{', '.join(sorted(version.signatures))}{'; a token is needed' if service.token else ''}"
    )


def add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `serve`."""
    parser.add_argument(
        "folder", type=Path, metavar="savedmodels/NAME",
        help="folder of a model, which holds a numbered folder a version",
    )  # fmt: skip
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at (%(default)s: this machine alone)"
    )
    parser.add_argument(
        "--allowed-host", action="append", default=[], metavar="NAME",
        help="another name by which clients reach the server, such as that of a proxy; * for any",
    )  # fmt: skip
    parser.add_argument("--port", type=int, default=8080, help="0 for a free one (%(default)s)")
    parser.add_argument(
        "--token-file", type=Path,
        help=f"file with a token that clients must send; or the variable {TOKEN_VARIABLE}",
    )  # fmt: skip
    parser.add_argument(
        "--litert", type=Path,
        help=f"folder of LiteRT.js to serve below /litert/ ({DEFAULT_LITERT}, if it is there)",
    )  # fmt: skip
    parser.add_argument("--verbose", action="store_true", help="a line of log a request")
    limits = parser.add_argument_group("limits")
    for each in fields(Settings):
        limits.add_argument(
            f"--{each.name.replace('_', '-')}",
            type=type(each.default), default=each.default, metavar="N",
            help=f"{each.metadata['help']} (%(default)s)",
        )  # fmt: skip


def settings_from_arguments(arguments: argparse.Namespace) -> Settings:
    """Return the limits of a command line."""
    return Settings(**{each.name: getattr(arguments, each.name) for each in fields(Settings)})
