"""Limits and times of the server, its token and its files."""

import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

TOKEN_VARIABLE = "ALIGNSEG_TOKEN"
# `make web` puts the files of LiteRT.js there.
DEFAULT_LITERT = Path("web/litert")


def _setting(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Settings:
    """Limits of the server, see `docs/serving.md`.

    Raises:
        ValueError: a value is not positive, or the largest request would find no room.
    """

    max_bytes: int = _setting(16 * 2**20, "maximum bytes of a request's body")
    max_pixels: int = _setting(2048 * 2048, "maximum pixels of an image")
    max_queue: int = _setting(64, "maximum images that are decoded or wait for the model at once")
    max_queue_pixels: int = _setting(32 * 2**20, "maximum pixels of those together")
    max_body_memory: int = _setting(128 * 2**20, "maximum bytes of all bodies in memory")
    max_requests: int = _setting(512, "maximum requests at once")
    address_share: float = _setting(0.5, "share of the limits that one address may use")
    decoders: int = _setting(2, "processes that decode images")
    decode_seconds: float = _setting(5.0, "longest time to decode an image")
    request_seconds: float = _setting(60.0, "longest time for a request")
    read_seconds: float = _setting(30.0, "longest time to receive the body of a request")
    header_seconds: float = _setting(10.0, "longest time to receive the head of a request")
    send_seconds: float = _setting(30.0, "longest time that a client may stop reading its answer")
    drain_seconds: float = _setting(30.0, "longest time to stop after SIGTERM")
    poll_seconds: float = _setting(2.0, "interval of checks for a new version")

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if not value > 0:
                raise ValueError(f"`{each.name}` must be positive. Received: {value}")
        if self.address_share > 1:
            raise ValueError(f"`address_share` must be at most 1. Received: {self.address_share}")
        for total, one in (("max_queue_pixels", "max_pixels"), ("max_body_memory", "max_bytes")):
            least, value = getattr(self, one), getattr(self, total)
            if value < least:
                raise ValueError(f"`{total}` must be at least `{one}`, {least}. Received: {value}")


def token_from(path: Path | None) -> bytes | None:
    """Return the token that clients must send, from a file or the environment, or None.

    Raises:
        ValueError: the file or the variable has no token.
    """
    text = os.environ.get(TOKEN_VARIABLE) if path is None else path.read_text(encoding="utf-8")
    if text is None:
        return None
    token = text.strip()
    if not token or not token.isascii() or token.split() != [token]:
        raise ValueError(
            f"{path or TOKEN_VARIABLE}: expected a token of printable ASCII without spaces. "
            f"Received: {len(token)} characters"
        )
    return token.encode()


def litert_folder(path: Path | None) -> Path | None:
    """Return the folder of LiteRT.js to serve, or None where there is none.

    Raises:
        ValueError: `path` is not there.
    """
    if path is not None and not path.is_dir():
        raise ValueError(f"{path}: no such folder; expected the files of LiteRT.js")
    return path or (DEFAULT_LITERT if DEFAULT_LITERT.is_dir() else None)
