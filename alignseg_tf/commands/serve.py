"""`alignseg serve`: serve SavedModels over HTTP."""

import argparse
from dataclasses import fields
from pathlib import Path

from alignseg_tf.serving.settings import (
    DEFAULT_LITERT,
    TOKEN_VARIABLE,
    Settings,
    litert_folder,
    token_from,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `serve`."""
    parser.add_argument(
        "folder", type=Path, metavar="savedmodels/NAME",
        help="folder of a model, with a numbered folder for each version",
    )  # fmt: skip
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at (%(default)s: this machine only)"
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
    parser.add_argument("--verbose", action="store_true", help="log each request")
    # Of versions with batching; a request is one image now.
    parser.add_argument("--max-batch", help=argparse.SUPPRESS)
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


def run(arguments: argparse.Namespace) -> int:
    """Serve a SavedModel over HTTP until a signal ends it."""
    try:
        from alignseg_tf.serving.models import Models
        from alignseg_tf.serving.server import serve
        from alignseg_tf.serving.service import Service
    except ModuleNotFoundError as error:
        raise ImportError(
            f"the server needs {error.name}: pip install 'alignseg_tf[serve]'"
        ) from error
    settings, token = settings_from_arguments(arguments), token_from(arguments.token_file)
    litert = litert_folder(arguments.litert)
    models = Models(arguments.folder)
    service = Service(models, settings, token, litert, arguments.verbose)
    return serve(service, arguments.host, arguments.port, arguments.allowed_host)
