"""Label spaces: the meaning of the values of a label file.

Behind the readers a label is a uint8 map of class ids 0..n-1, and `IGNORE` where a pixel has none.
A label space converts the file values of a data set to these ids, and names and colours classes.
"""

import colorsys
import dataclasses
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

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
        ValueError: names, colours or values are missing, repeated or out of range.
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
        flat = [*(color for colors in self.colors for color in colors), *self.void_colors]
        if self.colors and (len(self.colors) != count or not all(self.colors)):
            raise ValueError(
                f"`colors` must have one or more colours for each of the {count} classes. "
                f"Received: {[len(colors) for colors in self.colors]} colours"
            )
        if twice := sorted({color for color in flat if flat.count(color) > 1}):
            raise ValueError(f"`colors` and `void_colors` must differ. Received twice: {twice}")
        first = tuple(colors[0] for colors in self.colors)
        object.__setattr__(self, "palette", self.palette or first or default_palette(count))
        object.__setattr__(self, "ids", self.ids or tuple(range(count)))
        if not 1 <= count <= MAX_CLASSES:
            raise ValueError(f"`classes` must have 1 to {MAX_CLASSES} names. Received: {count}")
        if len(set(self.classes)) != count:
            raise ValueError(f"`classes` must differ. Received: {self.classes}")
        for name in self.classes:
            if problem := _name_problem(name):
                raise ValueError(f"the class name {name!a} {problem}")
        if len(self.palette) != count:
            raise ValueError(
                f"`palette` must have one [r, g, b] for each of the {count} classes. "
                f"Received: {len(self.palette)} colours"
            )
        for what, colors in (("colors", flat), ("palette", self.palette)):
            if any(len(c) != 3 or not all(0 <= x <= 255 for x in c) for c in colors):
                raise ValueError(f"`{what}` must be [r, g, b] of 0..255. Received: {colors}")
        values = (*self.ids, self.void)
        received = f"Received: ids={self.ids}, void={self.void}"
        if len(self.ids) != count or len(set(values)) != count + 1:
            raise ValueError(
                f"The file values of {count} classes and of void must all differ. {received}"
            )
        if any(not 0 <= value <= 255 for value in values):
            raise ValueError(f"File values must be 0..255. {received}")

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Convert file values to class ids and `IGNORE`.

        Args:
            values: uint8 [H, W], or [H, W, 3] if the label space has `colors`.

        Returns:
            uint8 [H, W].

        Raises:
            ValueError: values are neither a class nor void; the message lists them.
        """
        if self.colors:
            return self._encode_colors(values)
        table = np.full(256, IGNORE, np.uint8)
        table[list(self.ids)] = np.arange(self.num_classes)
        if not self.ignore_unlisted:
            found = np.flatnonzero(np.bincount(values.ravel(), minlength=256))
            unknown = sorted(set(found.tolist()) - {*self.ids, self.void})
            if unknown:
                raise ValueError(
                    f"unknown label values {unknown}: the {self.num_classes} classes have "
                    f"{_ranges(self.ids)}, void is {self.void}"
                )
        return table[values]

    def decode(self, class_map: np.ndarray) -> np.ndarray:
        """Convert class ids and `IGNORE` to file values, the inverse of `encode`.

        Args:
            class_map: uint8 [H, W], classes 0..n-1 and `IGNORE`.

        Returns:
            uint8 [H, W]; if the label space has `colors`, [H, W, 3], the first of each class.

        Raises:
            ValueError: there are other ids, or `IGNORE` without `void_colors`.
        """
        count = self.num_classes
        found = set(np.unique(class_map).tolist())
        if unknown := sorted(found - {*range(count), IGNORE}):
            raise ValueError(
                f"`class_map` must hold 0..{count - 1} and {IGNORE}. Received: {unknown}"
            )
        values: list[Any] = list(self.ids)
        void: Any = self.void
        if self.colors:
            if IGNORE in found and not self.void_colors:
                raise ValueError(f"`class_map` holds {IGNORE}, but there are no `void_colors`")
            values = [colors[0] for colors in self.colors]
            void = self.void_colors[0] if self.void_colors else (0, 0, 0)
        table = np.array(values + (256 - count) * [void], np.uint8)
        return table[class_map]

    def _encode_colors(self, values: np.ndarray) -> np.ndarray:
        class_of = {color: i for i, colors in enumerate(self.colors) for color in colors}
        class_of |= dict.fromkeys(self.void_colors, IGNORE)
        known = sorted(class_of)  # as their 24-bit numbers
        numbers = np.array([_color_number(np.array(color)) for color in known])
        ids = np.array([class_of[color] for color in known], np.uint8)
        found = _color_number(values)
        place = np.minimum(np.searchsorted(numbers, found), len(known) - 1)
        unknown = numbers[place] != found
        if unknown.any() and not self.ignore_unlisted:
            colors = np.unique(values[unknown], axis=0)
            shown = [tuple(color) for color in colors[:5].tolist()]
            raise ValueError(
                f"unknown label colours {shown}"
                + (f" and {len(colors) - 5} more" if len(colors) > 5 else "")
                + f", in {int(unknown.sum())} pixels: the {self.num_classes} classes have "
                f"{len(known)} colours, void ones included"
            )
        return np.where(unknown, np.uint8(IGNORE), ids[place])

    def to_dict(self) -> dict[str, Any]:
        """Return `classes` and `palette` as plain lists, which a trained model keeps."""
        return {
            "classes": list(self.classes),
            "palette": [list(color) for color in self.palette],
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], source: str = "label space") -> "LabelSpace":
        """Build from the content of a `classes.json`; errors name `source`.

        Keys: `classes` (required), `palette`, `void`, `ids`, `ignore_unlisted`, or `colors` (one
        colour or a list of colours per class) and `void_colors`. Keys of `ABOUT` are ignored.

        Raises:
            ValueError: a key is missing, unknown, or has an unexpected value.
        """
        names = content.get("classes") if isinstance(content, Mapping) else None
        if not _is_list(names) or not names or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{source}: expected an object with a list of names under 'classes'")
        known = [field.name for field in dataclasses.fields(cls)]
        if unknown := sorted(set(content) - {*known, *ABOUT}):
            raise ValueError(
                f"{source}: unknown keys {', '.join(map(ascii, unknown))}; expected 'classes', any "
                f"of {known[1:]}, or 'label_space' alone; about the data, any of {list(ABOUT)}"
            )
        try:
            values = {key: _READ[key](content[key], key) for key in content if key in _READ}
            return cls(tuple(names), **values)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error


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
    colors = read_labelmap(text, str(path))
    void = () if _VOC_VOID in colors.values() else (_VOC_VOID,)
    try:
        return LabelSpace(
            tuple(colors), colors=tuple((c,) for c in colors.values()), void_colors=void
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_labelmap(text: str, source: str) -> dict[str, Color]:
    """Read the lines `label:red,green,blue:parts:actions` of CVAT; errors name `source`.

    Raises:
        ValueError: a line has another form, or a label or colour is repeated.
    """
    colors: dict[str, Color] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, rest = line.strip().partition(":")
        try:
            red, green, blue = (int(value) for value in rest.split(":")[0].split(","))
        except ValueError as error:
            raise ValueError(
                f"{source}, line {number}: expected label:red,green,blue:parts:actions. "
                f"Received: {line!r}"
            ) from error
        color = (red, green, blue)
        if name in colors or color in colors.values():
            raise ValueError(f"{source}, line {number}: {name!r} or {color} is there twice")
        colors[name] = color
    return colors


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _integer(value: Any, key: str) -> int:
    """Return a whole number; 2.0 is one."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value % 1 != 0:
        raise ValueError(f"'{key}' must hold whole numbers. Received: {value!r}")
    return int(value)


def _boolean(value: Any, key: str) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"'{key}' must be true or false. Received: {value!r}")
    return value


def _tuple_of(read: Callable[[Any, str], Any], what: str) -> Callable[[Any, str], Any]:
    """Return a function that reads each item of a list."""

    def read_list(value: Any, key: str) -> tuple[Any, ...]:
        if not _is_list(value):
            raise ValueError(f"'{key}' must be a list of {what}. Received: {value!r}")
        return tuple(read(item, key) for item in value)

    return read_list


def _color(value: Any, key: str) -> Color:
    if not _is_list(value) or len(value) != 3:
        raise ValueError(f"'{key}' must hold colours [r, g, b] of 0..255. Received: {value!r}")
    red, green, blue = (_integer(item, key) for item in value)
    return red, green, blue


def _one_or_more_colors(value: Any, key: str) -> tuple[Color, ...]:
    is_one = _is_list(value) and len(value) > 0 and not isinstance(value[0], Sequence)
    return (_color(value, key),) if is_one else _COLORS(value, key)


_COLORS = _tuple_of(_color, "colours [r, g, b]")
_READ: dict[str, Callable[[Any, str], Any]] = {
    "palette": _COLORS,
    "void": _integer,
    "ids": _tuple_of(_integer, "whole numbers"),
    "colors": _tuple_of(_one_or_more_colors, "colours [r, g, b], or lists of them"),
    "void_colors": _COLORS,
    "ignore_unlisted": _boolean,
}


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
