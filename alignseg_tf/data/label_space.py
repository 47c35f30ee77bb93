"""Label spaces: the meaning of the values of a label file.

Behind the readers a label is a uint8 map of class ids 0..n-1, and `IGNORE` where a pixel has none.
A label space converts the file values of a data set to these ids, and names and colours classes.
"""

import colorsys
import dataclasses
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from alignseg_tf.data.listing import DataError, expect, naming

IGNORE = 255
MAX_CLASSES = 255
# Keys of a `classes.json` that describe the data for people; the program ignores them.
ABOUT = (
    "name", "description", "comment", "version", "date", "author", "url", "source", "commit",
    "licence", "license", "citation", "size", "split_rule", "images_with_class", "dup_images",
)  # fmt: skip

Color = tuple[int, int, int]


def default_palette(num_classes: int) -> tuple[Color, ...]:
    """Return distinguishable colours: hues a golden angle apart, in three lightnesses."""
    colors = []
    for index in range(num_classes):
        lightness = (0.5, 0.35, 0.7)[index % 3]
        red, green, blue = colorsys.hls_to_rgb((index * 0.381966) % 1.0, lightness, 0.7)
        colors.append((round(255 * red), round(255 * green), round(255 * blue)))
    return tuple(colors)


def hex_palette(colors: str) -> tuple[Color, ...]:
    """Return the colours of a text such as "ff0000 00ff00"."""
    return tuple((r, g, b) for r, g, b in map(bytes.fromhex, colors.split()))


def class_columns(classes: Sequence[str], taken: Iterable[str]) -> list[str]:
    """Return the column of each class in a table: its name, plus " (class)" if that is taken."""
    taken = set(taken)
    columns: list[str] = []
    for name in classes:
        column = name
        while column in taken or (column != name and column in classes):
            column += " (class)"
        columns.append(column)
    return columns


@dataclass(frozen=True)
class LabelSpace:
    """Names, colours and file values of the classes of a data set.

    Attributes:
        classes: names; the position of a class is its id.
        palette: RGB colours 0..255, one per class; made up when empty.
        void: file value of pixels without a class, which are ignored.
        ids: file value of each class; 0..n-1 when empty.
        ignore_unlisted: treat other file values as pixels without a class, not as an error.
        colors: one or several colours per class, if label files hold RGB colours instead of
            values; `void` and `ids` are unused then.
        void_colors: colours of pixels without a class.

    Raises:
        DataError: names, colours or values are missing, repeated or out of range.
    """

    classes: tuple[str, ...]
    palette: tuple[Color, ...] = ()
    void: int = IGNORE
    ids: tuple[int, ...] = ()
    ignore_unlisted: bool = False
    colors: tuple[tuple[Color, ...], ...] = ()
    void_colors: tuple[Color, ...] = ()

    def __post_init__(self) -> None:
        count = len(self.classes)
        first = tuple(colors[0] for colors in self.colors if colors)
        object.__setattr__(self, "palette", self.palette or first or default_palette(count))
        object.__setattr__(self, "ids", self.ids or tuple(range(count)))
        colors = [*(color for group in self.colors for color in group), *self.void_colors]
        twice = sorted({color for color in colors if colors.count(color) > 1})
        values, numbers = (*self.ids, self.void), [len(group) for group in self.colors]
        expect(1 <= count <= MAX_CLASSES, "`classes`", f"1 to {MAX_CLASSES} names", count)
        expect(len(set(self.classes)) == count, "`classes`", "names that differ", self.classes)
        for name in self.classes:
            if problem := _name_problem(name):
                raise DataError(f"the class name {name!a} {problem}")
        each = f"for each of the {count} classes"
        fits = not numbers or (len(numbers) == count and all(numbers))
        expect(fits, "`colors`", f"one or more colours {each}", numbers)
        expect(not twice, "`colors` and `void_colors`", "colours that differ", twice)
        expect(len(self.palette) == count, "`palette`", f"one colour {each}", len(self.palette))
        for what, given in (("`colors`", colors), ("`palette`", self.palette)):
            fits = all(len(c) == 3 and all(0 <= x <= 255 for x in c) for c in given)
            expect(fits, what, "[r, g, b] of 0..255", given)
        fits = len(self.ids) == count and len(set(values)) == count + 1
        expect(fits, "`ids` and `void`", f"{count + 1} values that differ", values)
        fits = all(0 <= value <= 255 for value in values)
        expect(fits, "`ids` and `void`", "values of 0..255", values)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Convert file values, uint8 [H, W], or [H, W, 3] with `colors`, to ids, uint8 [H, W].

        Raises:
            DataError: values are neither a class nor void; the message lists them.
        """
        if self.colors:
            return self._encode_colors(values)
        table = np.full(256, IGNORE, np.uint8)
        table[list(self.ids)] = np.arange(self.num_classes)
        if not self.ignore_unlisted:
            found = np.flatnonzero(np.bincount(values.ravel(), minlength=256))
            if unknown := sorted(set(found.tolist()) - {*self.ids, self.void}):
                raise DataError(
                    f"unknown label values {unknown}: the {self.num_classes} classes have "
                    f"{_ranges(self.ids)}, void is {self.void}"
                )
        return table[values]

    def decode(self, class_map: np.ndarray) -> np.ndarray:
        """Convert ids to file values, the inverse of `encode`; the first colour of each class.

        Raises:
            DataError: there are other ids, or `IGNORE` without `void_colors`.
        """
        count = self.num_classes
        found = set(np.unique(class_map).tolist())
        has_void = not self.colors or bool(self.void_colors)
        unknown = sorted(found - {*range(count), *([IGNORE] * has_void)})
        what = f"0..{count - 1} and, if there are `void_colors`, {IGNORE}"
        expect(not unknown, "`class_map`", what, unknown)
        values: list[Any] = [*self.ids, self.void]
        if self.colors:
            values = [colors[0] for colors in (*self.colors, self.void_colors or ((0, 0, 0),))]
        return np.array(values, np.uint8)[np.minimum(class_map, count)]

    def _encode_colors(self, values: np.ndarray) -> np.ndarray:
        class_of = {color: i for i, colors in enumerate(self.colors) for color in colors}
        class_of |= dict.fromkeys(self.void_colors, IGNORE)
        known = sorted(class_of)  # as their 24-bit numbers
        numbers = _color_number(np.array(known))
        ids = np.array([class_of[color] for color in known], np.uint8)
        found = _color_number(values)
        place = np.minimum(np.searchsorted(numbers, found), len(known) - 1)
        unknown = numbers[place] != found
        if unknown.any() and not self.ignore_unlisted:
            colors = list(map(tuple, np.unique(values[unknown], axis=0).tolist()))
            more = f" and {len(colors) - 5} more" if len(colors) > 5 else ""
            raise DataError(
                f"unknown label colours {colors[:5]}{more}, in {int(unknown.sum())} pixels: the "
                f"{self.num_classes} classes have {len(known)} colours, void ones included"
            )
        return np.where(unknown, np.uint8(IGNORE), ids[place])

    def to_dict(self) -> dict[str, Any]:
        """Return `classes` and `palette` as plain lists, which a trained model keeps."""
        return {"classes": list(self.classes), "palette": list(map(list, self.palette))}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], source: str = "label space") -> "LabelSpace":
        """Build from the content of a `classes.json`; errors name `source`.

        Keys: `classes` (required), `palette`, `void`, `ids`, `ignore_unlisted`, or `colors` (one
        colour or a list of colours per class) and `void_colors`. Keys of `ABOUT` are ignored.

        Raises:
            DataError: a key is missing, unknown, or has an unexpected value.
        """
        names = content.get("classes") if isinstance(content, Mapping) else None
        if not _is_list(names) or not names or not all(isinstance(name, str) for name in names):
            raise DataError(f"{source}: expected an object with a list of names under 'classes'")
        known = [field.name for field in dataclasses.fields(cls)]
        if unknown := sorted(set(content) - {*known, *ABOUT}):
            raise DataError(
                f"{source}: unknown keys {', '.join(map(ascii, unknown))}; expected 'classes', any "
                f"of {known[1:]}, or 'label_space' alone; about the data, any of {list(ABOUT)}"
            )
        with naming(source):
            values = {key: _read(content[key], key) for key in content if key in known[1:]}
            return cls(tuple(names), **values)


def _name_problem(name: str) -> str | None:
    """Return why a class name cannot be shown, or None."""
    if not name.strip():
        return "is blank"
    # Control characters, surrogates, line and paragraph separators.
    bad = next((c for c in name if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")), None)
    return None if bad is None else f"has the character U+{ord(bad):04X}, which cannot be shown"


# The border of a PASCAL VOC label.
_VOC_VOID: Color = (224, 224, 192)


def label_space_of_labelmap(text: str, path: Path) -> LabelSpace:
    """Return the label space of a CVAT `labelmap.txt`; errors name `path`."""
    colors = read_labelmap(text, path)
    void = () if _VOC_VOID in colors.values() else (_VOC_VOID,)
    of_classes = tuple((color,) for color in colors.values())
    with naming(path):
        return LabelSpace(tuple(colors), colors=of_classes, void_colors=void)


def read_labelmap(text: str, path: Path) -> dict[str, Color]:
    """Read the lines `label:red,green,blue:parts:actions` of CVAT; errors name `path`."""
    colors: dict[str, Color] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        where = f"{path}, line {number}"
        name, _, rest = line.strip().partition(":")
        values = rest.split(":")[0].split(",")
        fits = len(values) == 3 and all(value.strip().isdecimal() for value in values)
        expect(fits, where, "label:red,green,blue:parts:actions", line)
        red, green, blue = map(int, values)
        is_new = name not in colors and (red, green, blue) not in colors.values()
        expect(is_new, where, "another name and colour than before", line)
        colors[name] = (red, green, blue)
    return colors


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


# How deep lists of whole numbers are nested under a key, and the name of this form.
_FORMS = {
    "void": (0, "a whole number"),
    "ids": (1, "a list of whole numbers"),
    "palette": (2, "a list of colours [r, g, b]"),
    "void_colors": (2, "a list of colours [r, g, b]"),
    "colors": (3, "a list of colours [r, g, b], or of lists of them"),
}


def _read(value: Any, key: str) -> Any:
    """Return a value of `classes.json` with tuples for lists."""
    if key == "ignore_unlisted":
        expect(isinstance(value, bool), f"'{key}'", "true or false", value)
        return value
    depth, form = _FORMS[key]
    if key == "colors" and _is_list(value):
        is_one = [_is_list(item) and not any(map(_is_list, item)) for item in value]
        value = [[item] if one else item for item, one in zip(value, is_one, strict=True)]

    def read(part: Any, depth: int) -> Any:
        if depth and _is_list(part):
            return tuple(read(item, depth - 1) for item in part)
        is_number = isinstance(part, int | float) and not isinstance(part, bool)
        fits = not depth and is_number and part % 1 == 0  # 2.0 is a whole number
        expect(fits, f"'{key}'", form, part)
        return int(part)

    return read(value, depth)


def _color_number(values: np.ndarray) -> np.ndarray:
    """[..., 3] -> [...]: a colour as a number of 24 bits."""
    red, green, blue = np.moveaxis(values.astype(np.int32), -1, 0)
    return (red << 16) + (green << 8) + blue


def _ranges(ids: tuple[int, ...]) -> str:
    if ids == tuple(range(ids[0], ids[0] + len(ids))):
        return f"{ids[0]}..{ids[-1]}"
    return str(list(ids))


def voc_palette(num_colors: int) -> tuple[Color, ...]:
    """Return the colours of the PASCAL VOC development kit.

    Bits 3i, 3i + 1 and 3i + 2 of a number are bit 7 - i of red, green and blue. 0 is black,
    1 (128, 0, 0), 2 (0, 128, 0).
    """

    def channel(number: int, start: int) -> int:
        return sum((number >> (3 * i + start) & 1) << (7 - i) for i in range(8))

    return tuple((channel(n, 0), channel(n, 1), channel(n, 2)) for n in range(num_colors))
