import os
from pathlib import Path

from alignseg_tf.printable import printable


def test_what_is_shown_is_one_line_of_utf8():
    names = [os.fsdecode(b"\xff\xfe.png"), "a\nb\r\t.png", "\x1b[31mred", "\ud800", "\u202egnp.a"]
    shown = [printable(name) for name in names]
    assert shown == [r"\xff\xfe.png", r"a\nb\r\t.png", r"\x1b[31mred", r"\ud800", r"\u202egnp.a"]
    assert all(text.encode("utf-8") and text.isprintable() for text in shown)


def test_plain_names_stay():
    for name in ("Straße 1.png", "日本.jpg", "a\\b.png", ""):
        assert printable(name) == name
    assert printable(Path("x", "y.png")) == str(Path("x/y.png"))
