import os
import sys
from pathlib import Path

from alignseg_tf.system.console import command_output
from alignseg_tf.system.printable import csv_cell, printable


def test_what_is_shown_is_one_line_of_utf8():
    names = [os.fsdecode(b"\xff\xfe.png"), "a\nb\r\t.png", "\x1b[31mred", "\ud800", "\u202egnp.a"]
    shown = [printable(name) for name in names]
    assert shown == [r"\xff\xfe.png", r"a\nb\r\t.png", r"\x1b[31mred", r"\ud800", r"\u202egnp.a"]
    words = ("क्\u200dष", "\u0645\u06cc\u200c\u062e")  # joiners are parts of words
    for name in ("Straße 1.png", "日本.jpg", "a\\b.png", "", *words):
        assert printable(name) == name
    assert printable(Path("x", "y.png")) == str(Path("x/y.png"))


def test_a_spreadsheet_sees_no_formula():
    assert [csv_cell(x) for x in ("=1+1", "+1", "-1", "@x")] == ["'=1+1", "'+1", "'-1", "'@x"]
    assert csv_cell(csv_cell("=1+1")) == "'=1+1"  # also when a table is read and written again
    assert csv_cell(Path("=a") / "\ud800.png") == r"'=a/\ud800.png"
    assert [csv_cell(x) for x in ("road = 1", -1, None, -0.5)] == ["road = 1", -1, None, -0.5]


def test_what_is_printed_drives_no_terminal(capsys):
    @command_output()
    def command():
        print("\x1b]0;title\x07", "Straße")
        print("\r1/2", end="\r", file=sys.stderr)
        print("\ud800\x9b2J", file=sys.stderr)

    command()
    out, err = capsys.readouterr()
    assert out == "\\x1b]0;title\\x07 Straße\n"
    assert err == "\r1/2\r\\ud800\\x9b2J\n"
    print("\x1b[0m", end="")
    assert capsys.readouterr().out == "\x1b[0m"
