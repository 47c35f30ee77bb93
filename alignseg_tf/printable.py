"""Names of files and classes as text that is safe to print, whatever they hold."""

import os


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
    if character.isprintable():
        return character
    if "\udc80" <= character <= "\udcff":  # Python's form of the byte 0x80 to 0xff
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()
