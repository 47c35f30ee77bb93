"""Names in any script, drawn into images and figures.

Matplotlib's DejaVu Sans has Latin, Greek, Cyrillic and more; other letters come from the fonts of
the system.
"""

import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import groupby
from pathlib import Path

import matplotlib
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font
from PIL import ImageDraw, ImageFont

MAIN_FONT = str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")

_STYLES = re.compile("Bold|Italic|Oblique")
_warned: set[str] = set()


@cache
def system_fonts() -> tuple[str, ...]:
    """Return the font files of the system, upright and light ones first."""
    # A last resort has a box for every letter.
    files = sorted(path for path in font_manager.findSystemFonts() if "LastResort" not in path)
    return tuple(sorted(files, key=lambda path: bool(_STYLES.search(Path(path).stem))))


@cache
def _letters(path: str) -> frozenset[int]:
    """Return the code points that a font has; none for one that cannot be drawn with."""
    try:
        ImageFont.truetype(path, 12)
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


@cache
def font_of(letter: str) -> str | None:
    """Return the file of the first font that has a letter, or None."""
    if ord(letter) in _letters(MAIN_FONT):
        return MAIN_FONT
    return next((path for path in system_fonts() if ord(letter) in _letters(path)), None)


def warn_of_missing_letters(texts: Iterable[str]) -> None:
    """Warn once of the letters that no font has; they are drawn as boxes."""
    missing = {x for x in "".join(texts) if font_of(x) is None} - _warned
    if missing:
        _warned.update(missing)
        warnings.warn(
            f"no font of this system has {' '.join(sorted(missing))}: boxes are drawn instead; "
            "install a font with these letters, such as Noto",
            stacklevel=3,
        )


def _runs(text: str, size: float) -> Iterator[tuple[str, ImageFont.FreeTypeFont]]:
    """Split a text into parts that have one font each."""
    warn_of_missing_letters([text])
    for path, letters in groupby(text, lambda letter: font_of(letter) or MAIN_FONT):
        yield "".join(letters), ImageFont.truetype(path, size)


def text_length(text: str, size: float) -> float:
    """Return the width of a text in pixels, for a font size in pixels."""
    return sum(font.getlength(part) for part, font in _runs(text, size))


def draw_text(
    draw: ImageDraw.ImageDraw,
    place: tuple[float, float],
    text: str,
    size: float,
    color: str | tuple[int, int, int] = "black",
    centred: bool = False,
) -> None:
    """Draw a line of text of a font size in pixels.

    Its left end, or its middle if it is `centred`, is at `place[0]`, its middle line at `place[1]`.
    """
    ascent, descent = ImageFont.truetype(MAIN_FONT, size).getmetrics()
    left = place[0] - (text_length(text, size) / 2 if centred else 0)
    baseline = place[1] + (ascent - descent) / 2
    for part, font in _runs(text, size):
        draw.text((left, baseline), part, color, font, anchor="ls")
        left += font.getlength(part)


@contextmanager
def names_in_figures(names: Iterable[str]) -> Iterator[None]:
    """Let Matplotlib draw names without mathematics, in fonts that have the letters.

    Create and save the figure within the block.
    """
    names = list(names)
    warn_of_missing_letters(names)
    families = ["DejaVu Sans"]
    for path in dict.fromkeys(font_of(x) for x in "".join(names)):
        if path not in (None, MAIN_FONT):
            font_manager.fontManager.addfont(path)
            families.append(font_manager.FontProperties(fname=path).get_name())
    with warnings.catch_warnings(), matplotlib.rc_context():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        matplotlib.rcParams.update({"font.family": families, "text.parse_math": False})
        yield
