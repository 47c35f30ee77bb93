"""Limits and times of the server, and its command line."""

import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

TOKEN_VARIABLE = "ALIGNSEG_TOKEN"
# Where `make web` puts the files of LiteRT.js.
DEFAULT_LITERT = Path("web/litert")


def _setting(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Settings:
    """What the server allows; the fields are described in `docs/serving.md`.

    Raises:
        ValueError: a value is not positive, or the largest request would find no room.
    """

    max_bytes: int = _setting(16 * 2**20, "largest body of a request, bytes")
    max_pixels: int = _setting(2048 * 2048, "most pixels of an image")
    max_queue: int = _setting(64, "most images that are decoded or wait for the model at once")
    max_queue_pixels: int = _setting(32 * 2**20, "most pixels of those together")
    max_body_memory: int = _setting(128 * 2**20, "most bytes of bodies in memory at once")
    max_requests: int = _setting(512, "most requests at once")
    address_share: float = _setting(0.5, "share of the limits that one address may use")
    decoders: int = _setting(2, "processes that decode images")
    decode_seconds: float = _setting(5.0, "longest that an image may take to decode")
    request_seconds: float = _setting(60.0, "longest that a request may take")
    read_seconds: float = _setting(30.0, "longest that the body of a request may take to come")
    header_seconds: float = _setting(10.0, "longest that the head of a request may take to come")
    send_seconds: float = _setting(30.0, "longest that a client may stop reading its answer")
    drain_seconds: float = _setting(30.0, "longest that the end may take after SIGTERM")
    poll_seconds: float = _setting(2.0, "time between two looks for a new version")

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if not value > 0:
                raise ValueError(f"`{each.name}` must be positive. Received: {value}")
        if self.address_share > 1:
            raise ValueError(f"`address_share` must be at most 1. Received: {self.address_share}")
        for all_together, one in (
            ("max_queue_pixels", "max_pixels"),
            ("max_body_memory", "max_bytes"),
        ):
            if getattr(self, all_together) < getattr(self, one):
                raise ValueError(
                    f"`{all_together}` must be at least `{one}`, {getattr(self, one)}. Received: "
                    f"{getattr(self, all_together)}"
                )


def token_from(path: Path | None) -> bytes | None:
    """Return the token that clients must send, from a file or the environment; None for none.

    Raises:
        ValueError: the file or the variable holds none.
        OSError: the file is not readable.
    """
    if path is not None:
        text, source = path.read_text(encoding="utf-8"), str(path)
    elif TOKEN_VARIABLE in os.environ:
        text, source = os.environ[TOKEN_VARIABLE], TOKEN_VARIABLE
    else:
        return None
    token = text.strip()
    if not token or not token.isascii() or any(character.isspace() for character in token):
        raise ValueError(
            f"{source}: expected a token of printable ASCII without spaces. Received: "
            f"{len(token)} characters"
        )
    return token.encode()


def litert_folder(path: Path | None) -> Path | None:
    """Return the folder of LiteRT.js to serve, or None where there is none.

    Raises:
        ValueError: the folder that was asked for is not there.
    """
    if path is not None and not path.is_dir():
        raise ValueError(f"{path}: no such folder; expected the files of LiteRT.js")
    return path or (DEFAULT_LITERT if DEFAULT_LITERT.is_dir() else None)
