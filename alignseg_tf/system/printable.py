"""Names of files and classes as text that is safe to print, whatever they hold."""

import os
from typing import Any

# A spreadsheet takes a cell that starts with one of these for a formula.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
# Parts of words in Persian, Hindi and other languages, though Python calls them not printable.
JOINERS = "\u200c\u200d"


def printable(name: str | os.PathLike[str]) -> str:
    r"""Return a name with everything escaped that a terminal or a UTF-8 file cannot show.

    Args:
        name: any text, also one with control characters, or with the surrogates that Python makes
            of bytes that are not UTF-8.

    Example:
        >>> printable("a\x1b[31m\n.png"), printable("b\udcff.png"), printable("Straße 1.png")
        ('a\\x1b[31m\\n.png', 'b\\xff.png', 'Straße 1.png')
    """
    return "".join(map(_shown, os.fspath(name)))


def _shown(character: str) -> str:
    if character.isprintable() or character in JOINERS:
        return character
    if "\udc80" <= character <= "\udcff":  # Python's form of the byte 0x80 to 0xff
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def csv_cell(value: Any) -> Any:
    """Return a value for a CSV file: text that is no formula to a spreadsheet, or another value.

    Example:
        >>> csv_cell("=1+1"), csv_cell("road"), csv_cell(-1.5)
        ("'=1+1", 'road', -1.5)
    """
    if not isinstance(value, str | os.PathLike):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text
