"""Frames of videos and cameras, decoded and encoded by PyAV."""

import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from alignseg_tf.data.listing import special_kind

VIDEO_SUFFIXES = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")
CAMERA = "camera:"
# FFmpeg's format and name of camera number `n` on each system.
_CAMERAS = {
    "linux": ("v4l2", "/dev/video{n}"),
    "darwin": ("avfoundation", "{n}:none"),
    "win32": ("dshow", "video={n}"),
}
# Frames per second of a written video whose source gives no rate.
DEFAULT_RATE = Fraction(25)


def is_video(source: str | Path) -> bool:
    """Return whether a source is a video or, as `camera:0`, a camera."""
    return str(source).startswith(CAMERA) or Path(source).suffix.lower() in VIDEO_SUFFIXES


def _import_av() -> Any:
    try:
        import av
    except ImportError as error:
        raise ImportError("videos and cameras need PyAV: pip install av") from error
    return av


class Video:
    """The frames of a video or a camera.

    Args:
        source: path of a video, or `camera:N` for the N-th camera (on Windows, its name).

    Attributes:
        frames: number of frames, or None where it is not known.
        rate: frames a second.

    Raises:
        ValueError: it cannot be opened, or has no images.
        ImportError: PyAV is not installed.
    """

    def __init__(self, source: str | Path):
        self._av = av = _import_av()
        self.source = str(source)
        options: dict[str, Any] = {}
        name = self.source
        if name.startswith(CAMERA):
            if sys.platform not in _CAMERAS:
                raise ValueError(f"{source}: cameras of {sys.platform} are not known")
            options["format"], device = _CAMERAS[sys.platform]
            name = device.format(n=name.removeprefix(CAMERA))
        elif kind := special_kind(name):
            raise ValueError(f"{source}: expected a video. Received: {kind}")
        try:
            self._container = av.open(name, **options)
        except (OSError, ValueError, av.error.FFmpegError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ValueError(f"{source}: not readable as a video ({reason})") from error
        if not self._container.streams.video:
            self._container.close()
            raise ValueError(f"{source}: expected a video. Received: a file without images")
        stream = self._container.streams.video[0]
        stream.thread_type = "AUTO"
        self.rate = stream.average_rate or DEFAULT_RATE
        self.frames = stream.frames or None

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the frames, uint8 RGB [H, W, 3], turned as the video's metadata says.

        Raises:
            ValueError: the video is damaged after these frames.
        """
        number = 0
        try:
            for frame in self._container.decode(video=0):
                number += 1
                # FFmpeg counts degrees counterclockwise, as `rot90` does.
                yield np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)
        except self._av.error.FFmpegError as error:
            reason = error.strerror or error
            raise ValueError(f"{self.source}: damaged after frame {number} ({reason})") from error

    def close(self) -> None:
        """Release the file or the camera."""
        self._container.close()


class VideoWriter:
    """Write an H.264 video (MP4) of `rate` frames a second."""

    def __init__(self, path: Path, rate: Fraction):
        self._av = _import_av()
        self._container = self._av.open(str(path), "w", format="mp4")
        self._rate = rate
        self._stream: Any = None

    def write(self, frame: np.ndarray) -> None:
        """Append a frame, uint8 RGB [H, W, 3]; an odd last row or column is dropped."""
        frame = np.ascontiguousarray(frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2])
        if self._stream is None:
            self._stream = self._container.add_stream("libx264", rate=self._rate)
            self._stream.height, self._stream.width = frame.shape[:2]
            self._stream.pix_fmt = "yuv420p"
        encoded = self._stream.encode(self._av.VideoFrame.from_ndarray(frame, format="rgb24"))
        self._container.mux(encoded)

    def close(self) -> None:
        """Write the remaining frames."""
        if self._stream is not None:
            self._container.mux(self._stream.encode())
        self._container.close()
