import sys
from contextlib import closing
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest

from alignseg_tf.prediction.video import Video, VideoWriter, is_video

av = pytest.importorskip("av")


def test_what_is_a_video():
    assert is_video("camera:0")
    assert is_video("a/b.MP4")
    assert not is_video("a/b.png")
    assert not is_video("mp4")


def test_frames_come_back_in_order(tmp_path):
    writer = VideoWriter(tmp_path / "a.mp4", Fraction(30000, 1001))
    for index in range(12):
        frame = np.zeros((65, 97, 3), np.uint8)  # odd sides
        frame[:, 8 * index : 8 * index + 8] = (255, 0, 0)
        writer.write(frame)
    writer.close()
    with closing(Video(tmp_path / "a.mp4")) as video:
        assert video.frames == 12
        assert float(video.rate) == pytest.approx(29.97, abs=0.01)
        frames = list(video)
    assert len(frames) == 12
    for index, frame in enumerate(frames):
        assert frame.shape == (64, 96, 3)
        assert frame.dtype == np.uint8
        bright = frame[32].astype(int)
        assert bright[8 * index + 4, 0] > 150 > 100 > bright[8 * index + 4, 2]  # red, not blue
        assert bright[(8 * index + 52) % 96, 0] < 60


def test_frames_are_turned_as_the_video_says(tmp_path):
    """A phone's portrait film is stored on its side."""
    stored = np.zeros((32, 64, 3), np.uint8)
    stored[:8, :16] = 255  # the upper left corner
    writer = VideoWriter(tmp_path / "a.mp4", Fraction(10))
    writer.write(stored)
    writer.close()
    video = Video(tmp_path / "a.mp4")
    frame = SimpleNamespace(rotation=-90, to_ndarray=lambda format: stored)  # clockwise
    video._container = SimpleNamespace(decode=lambda video: iter([frame]))
    (turned,) = video
    assert turned.shape == (64, 32, 3)
    assert turned[:16, 24:].min() == 255  # the upper right one
    assert turned.sum() == stored.sum()


def test_what_cannot_be_opened(tmp_path, monkeypatch):
    with av.open(str(tmp_path / "sound.wav"), "w") as sound:
        stream = sound.add_stream("pcm_s16le", rate=8000)
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        samples.rate = 8000
        sound.mux(stream.encode(samples))
    with pytest.raises(ValueError, match=r"sound\.wav: expected a video"):
        Video(tmp_path / "sound.wav")
    monkeypatch.setattr(sys, "platform", "plan9")
    with pytest.raises(ValueError, match="cameras of plan9 are not known"):
        Video("camera:0")


def test_without_pyav_the_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match="pip install av"):
        Video("a.mp4")
