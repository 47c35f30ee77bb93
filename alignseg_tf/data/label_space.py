"""Label spaces: what the values of a label file mean.

Everywhere behind the readers a label is a uint8 map of class ids 0..n-1, and `IGNORE` where a
pixel has none. A label space says how a data set's files become that, and how classes are called
and coloured.
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
# Keys of a `classes.json` that tell people about the data, and are not read.
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
    """Return the column of each class in a table that has other columns too.

    It is the name of the class, with " (class)" after it where another column has that name.
    """
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
        classes: names; a class's place is its id.
        palette: RGB colours 0..255, one a class; made up when empty.
        void: file value of pixels without a class, which are ignored.
        ids: file value of each class; 0..n-1 when empty.
        ignore_unlisted: other file values mean "no class" instead of being an error.
        colors: where label files hold RGB colours instead of values, those of each class, one or
            several a class; `void` and `ids` have no meaning then.
        void_colors: colours of pixels without a class.
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
        if self.colors:
            self._check_colors()
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
        if len(self.palette) != count or any(len(color) != 3 for color in self.palette):
            raise ValueError(
                f"`palette` must have one [r, g, b] for each of the {count} classes. "
                f"Received: {len(self.palette)} colours"
            )
        if any(not 0 <= value <= 255 for color in self.palette for value in color):
            raise ValueError(f"`palette` must hold values 0..255. Received: {self.palette}")
        values = (*self.ids, self.void)
        if len(self.ids) != count or len(set(values)) != count + 1:
            raise ValueError(
                f"The file values of {count} classes and of void must all differ. "
                f"Received: ids={self.ids}, void={self.void}"
            )
        if any(not 0 <= value <= 255 for value in values):
            raise ValueError(
                f"File values must be 0..255. Received: ids={self.ids}, void={self.void}"
            )

    def _check_colors(self) -> None:
        if len(self.colors) != len(self.classes) or not all(self.colors):
            raise ValueError(
                f"`colors` must have one or more colours for each of the {len(self.classes)} "
                f"classes. Received: {[len(colors) for colors in self.colors]} colours"
            )
        flat = [*(color for colors in self.colors for color in colors), *self.void_colors]
        twice = sorted({color for color in flat if flat.count(color) > 1})
        if twice:
            raise ValueError(f"`colors` and `void_colors` must differ. Received twice: {twice}")
        if any(len(color) != 3 or not all(0 <= x <= 255 for x in color) for color in flat):
            raise ValueError(f"`colors` must be [r, g, b] of 0..255. Received: {flat}")

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Turn what a label file holds into class ids and `IGNORE`.

        Args:
            values: uint8 [H, W], or [H, W, 3] where the label space has `colors`.

        Returns:
            uint8 [H, W].

        Raises:
            ValueError: values that are neither a class nor void; they are named.
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
        """Turn class ids into what a label file holds: what `encode` takes.

        Args:
            class_map: uint8 [H, W], classes 0..n-1 and `IGNORE`.

        Returns:
            uint8 [H, W]; where the label space has `colors`, [H, W, 3], the first of each class.

        Raises:
            ValueError: there are other ids, or `IGNORE` where nothing in a file stands for it.
        """
        count = self.num_classes
        found = set(np.unique(class_map).tolist())
        if unknown := sorted(found - {*range(count), IGNORE}):
            raise ValueError(
                f"`class_map` must hold 0..{count - 1} and {IGNORE}. Received: {unknown}"
            )
        if not self.colors:
            table = np.full(256, self.void, np.uint8)
            table[:count] = self.ids
            return table[class_map]
        if IGNORE in found and not self.void_colors:
            raise ValueError(f"`class_map` holds {IGNORE}, but there are no `void_colors`")
        table = np.zeros((256, 3), np.uint8)
        table[:count] = [colors[0] for colors in self.colors]
        if self.void_colors:
            table[IGNORE] = self.void_colors[0]
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
        """Return `classes` and `palette` as plain lists: what a trained model keeps."""
        return {
            "classes": list(self.classes),
            "palette": [list(color) for color in self.palette],
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], source: str = "label space") -> "LabelSpace":
        """Build from the content of a `classes.json`; `source` is named in errors.

        Keys: `classes` (required), `palette`, `void`, `ids`, `ignore_unlisted`, or `colors` (one
        colour a class, or a list of colours) and `void_colors`. Keys of `ABOUT` are not read.

        Raises:
            ValueError: a key is missing, unknown, or holds something else than expected.
        """
        if not isinstance(content, Mapping) or not _is_list_of(content.get("classes"), str):
            raise ValueError(f"{source}: expected an object with a list of names under 'classes'")
        known = [field.name for field in dataclasses.fields(cls)]
        if unknown := sorted(set(content) - {*known, *ABOUT}):
            raise ValueError(
                f"{source}: unknown keys {', '.join(map(ascii, unknown))}; expected 'classes', any "
                f"of {known[1:]}, or 'label_space' alone; about the data, any of {list(ABOUT)}"
            )
        read: dict[str, Callable[[Any, str], Any]]
        read = {"palette": _palette, "void": _integer, "ids": _integers, "colors": _colors,
                "void_colors": _palette, "ignore_unlisted": _boolean}  # fmt: skip
        try:
            values = {key: read[key](content[key], key) for key in content if key in read}
            return cls(tuple(content["classes"]), **values)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error


def _name_problem(name: str) -> str | None:
    """Return what keeps a class name from being shown anywhere, or None.

    Other letters and marks are data: whoever prints them escapes what the target needs.
    """
    if not name.strip():
        return "is blank"
    # Control characters, halves of a surrogate pair, line and paragraph separators.
    bad = next((c for c in name if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")), None)
    return None if bad is None else f"has the character U+{ord(bad):04X}, which cannot be shown"


# The border of a PASCAL VOC label.
_VOC_VOID: Color = (224, 224, 192)


def label_space_of_labelmap(text: str, path: Path) -> LabelSpace:
    """Return the label space of the text of a CVAT `labelmap.txt`; `path` is named in errors."""
    colors = read_labelmap(text, str(path))
    void = () if _VOC_VOID in colors.values() else (_VOC_VOID,)
    try:
        return LabelSpace(
            tuple(colors), colors=tuple((c,) for c in colors.values()), void_colors=void
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_labelmap(text: str, source: str) -> dict[str, Color]:
    """Read the lines `label:red,green,blue:parts:actions` of CVAT; `source` is named in errors.

    Raises:
        ValueError: a line has another form, or a label or colour is there twice.
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


def _integer(value: Any, key: str) -> int:
    """Return a whole number; 2.0 is one."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value % 1 != 0:
        raise ValueError(f"'{key}' must hold whole numbers. Received: {value!r}")
    return int(value)


def _boolean(value: Any, key: str) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"'{key}' must be true or false. Received: {value!r}")
    return value


def _list(value: Any, key: str, what: str) -> Sequence[Any]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ValueError(f"'{key}' must be a list of {what}. Received: {value!r}")
    return value


def _integers(values: Any, key: str) -> tuple[int, ...]:
    return tuple(_integer(value, key) for value in _list(values, key, "whole numbers"))


def _color(values: Any, key: str) -> Color:
    if isinstance(values, str) or not isinstance(values, Sequence) or len(values) != 3:
        raise ValueError(f"'{key}' must hold colours [r, g, b] of 0..255. Received: {values!r}")
    red, green, blue = (_integer(value, key) for value in values)
    return red, green, blue


def _palette(values: Any, key: str) -> tuple[Color, ...]:
    return tuple(_color(color, key) for color in _list(values, key, "colours [r, g, b]"))


def _colors(values: Any, key: str) -> tuple[tuple[Color, ...], ...]:
    """For each class one colour, or a list of colours."""
    found = []
    for colors in _list(values, key, "colours [r, g, b], or lists of them"):
        several = _list(colors, key, "colours [r, g, b], or lists of them")
        is_one = several and not isinstance(several[0], Sequence)
        found.append((_color(several, key),) if is_one else _palette(several, key))
    return tuple(found)


def _color_number(values: np.ndarray) -> np.ndarray:
    """[..., 3] -> [...]: a colour as a number of 24 bits."""
    red, green, blue = np.moveaxis(values.astype(np.int32), -1, 0)
    return (red << 16) + (green << 8) + blue


def _is_list_of(value: Any, kind: type) -> bool:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and bool(value)
        and all(isinstance(item, kind) for item in value)
    )


def _ranges(ids: tuple[int, ...]) -> str:
    if ids == tuple(range(ids[0], ids[0] + len(ids))):
        return f"{ids[0]}..{ids[-1]}"
    return str(list(ids))


def voc_palette(num_colors: int) -> tuple[Color, ...]:
    """Return the colours of the PASCAL VOC development kit.

    The bits of a number are dealt out to red, green and blue in turn, lowest first; what a
    channel gets fills it from its highest bit down. 0 is black, 1 (128, 0, 0), 2 (0, 128, 0).
    """
    colors = []
    for number in range(num_colors):
        channels = [0, 0, 0]
        for bit in range(24):
            channels[bit % 3] |= (number >> bit & 1) << (7 - bit // 3)
        colors.append((channels[0], channels[1], channels[2]))
    return tuple(colors)
