"""Two models on the same images: what differs, and how sure that is."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from alignseg_tf import visualization
from alignseg_tf.data.label_space import LabelSpace
from alignseg_tf.data.listing import Sample
from alignseg_tf.data.readers import load_sample
from alignseg_tf.evaluation.bootstrap import Interval, interval
from alignseg_tf.evaluation.counts import BOUNDARY_DISTANCES
from alignseg_tf.evaluation.page import Segmenter, legend_url, render, row_url
from alignseg_tf.evaluation.report import TABLE_DISTANCE, Report, percent
from alignseg_tf.system.files import (
    Output,
    check_replaceable,
    has_keys,
    write_files,
)
from alignseg_tf.system.printable import csv_cell

# So many images are shown in which each of the models is ahead.
SHOWN = 4
# Points of % at which a bar of the page is full.
FULL_BAR = 10
BORDER_SCORES = (("boundary F", "mean_boundary_f"), ("trimap IoU", "mean_trimap_iou"))


@dataclass(frozen=True)
class Comparison:
    """Two reports on the same images; differences are those of the second, B, less the first, A.

    Attributes:
        first: the report on A.
        second: the report on B.
        names: of the two models.

    Raises:
        ValueError: the reports are on other classes or images, or in other blocks.
    """

    first: Report
    second: Report
    names: tuple[str, str] = ("A", "B")

    def __post_init__(self) -> None:
        for what, of_first, of_second in (
            ("classes", self.first.classes, self.second.classes),
            ("images", *([s.name for s in r.scores] for r in (self.first, self.second))),
            ("blocks", *(range(0, r.images, r.block) for r in (self.first, self.second))),
        ):
            if list(of_first) != list(of_second):
                raise ValueError(
                    f"Both reports must be on the same {what}. Received: {len(of_first)} and "
                    f"{len(of_second)}, or others of the same number"
                )

    @cached_property
    def differences(self) -> dict[str, np.ndarray]:
        """B less A: `iou`, `mean_iou`, `mean_boundary_f`, `mean_trimap_iou`, `boundary_f`."""
        return {
            name: np.asarray(getattr(self.second, name)) - np.asarray(getattr(self.first, name))
            for name in ("iou", "mean_iou", "mean_boundary_f", "mean_trimap_iou", "boundary_f")
        }

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        """95 % bootstrap intervals of `differences`, on the same samples of images for both."""
        first, second = self.first.resampled, self.second.resampled
        return {
            name: interval(getattr(second, name) - getattr(first, name), self.first.blocks)
            for name in self.differences
        }

    @property
    def image_differences(self) -> np.ndarray:
        """Difference in mean IoU of each image, [P]."""
        return self.second.image_iou - self.first.image_iou

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as plain values for JSON; None where there is none."""

        def numbers(name: str, place: Any = ()) -> dict[str, Any]:
            bounds = self.intervals[name]
            values = {
                "a": np.asarray(getattr(self.first, name))[place],
                "b": np.asarray(getattr(self.second, name))[place],
                "difference": self.differences[name][place],
                "low": np.asarray(bounds.low)[place],
                "high": np.asarray(bounds.high)[place],
            }
            return {key: None if np.isnan(x) else float(x) for key, x in values.items()}

        return {
            "a": self.names[0],
            "b": self.names[1],
            "images": self.first.images,
            "protocol": self.first.protocol,
            "block": self.first.block,
            "mean_iou": numbers("mean_iou"),
            "iou": {name: numbers("iou", i) for i, name in enumerate(self.first.classes)},
            "mean_boundary_f": {
                str(d): numbers("mean_boundary_f", i) for i, d in enumerate(BOUNDARY_DISTANCES)
            },
            "mean_trimap_iou": {
                str(d): numbers("mean_trimap_iou", i) for i, d in enumerate(BOUNDARY_DISTANCES)
            },
        }

    def table(self) -> str:
        """Return a table for the terminal, in % and points of %."""
        width = max(15, *(len(name) for name in self.first.classes))
        boundary = self.differences["boundary_f"][BOUNDARY_DISTANCES.index(TABLE_DISTANCE)]
        head = (
            f"{'class':<{width}}  IoU of A  IoU of B    B - A   {'95 % interval':<16}"
            f"  boundary F {TABLE_DISTANCE} px, B - A"
        )
        lines = [f"A: {self.names[0]}", f"B: {self.names[1]}", "", head]
        for i, name in enumerate(self.first.classes):
            lines.append(
                f"{name:<{width}}  {percent(self.first.iou[i]):>8}  "
                f"{percent(self.second.iou[i]):>8}"
                f"  {_aligned(self.difference('iou', i))}  {points(boundary[i]):>22}"
            )
        lines += [
            "-" * len(head),
            f"{'mean IoU':<{width}}  {percent(self.first.mean_iou):>8}  "
            f"{percent(self.second.mean_iou):>8}  {_aligned(self.difference('mean_iou'))}",
        ]
        for title, name in BORDER_SCORES:
            for i, distance in enumerate(BOUNDARY_DISTANCES):
                a, b = (getattr(report, name)[i] for report in (self.first, self.second))
                lines.append(
                    f"{f'{title} {distance} px':<{width}}  {percent(a):>8}  {percent(b):>8}  "
                    f"{_aligned(self.difference(name, i))}"
                )
        lines += [
            "",
            f"{self.first.images} images, {self.first.protocol}"
            + (f", blocks of {self.first.block}" if self.first.block > 1 else "")
            + "; * where the interval leaves out 0",
        ]
        return "\n".join(line.rstrip() for line in lines)

    def difference(self, name: str, place: Any = ()) -> tuple[str, str]:
        """Return a difference, with a star if 0 is outside of its interval, and that interval.

        Both in points of %; dashes where there is none.
        """
        low, high = (
            np.asarray(bound)[place]
            for bound in (self.intervals[name].low, self.intervals[name].high)
        )
        star = "*" if low > 0 or high < 0 else " "
        bounds = "-" if np.isnan(low) else f"{points(low)} to {points(high)}"
        return f"{points(self.differences[name][place])} {star}", bounds

    def csv(self) -> str:
        """Return a table of the classes, shares in 0..1; empty where a class does not occur."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        content = self.to_dict()["iou"]
        writer.writerow(["class", *next(iter(content.values()))])
        for name, numbers in content.items():
            writer.writerow(
                [csv_cell(name), *("" if x is None else f"{x:.6f}" for x in numbers.values())]
            )
        return text.getvalue()


def _aligned(difference: tuple[str, str]) -> str:
    return f"{difference[0]:>9} {difference[1]:<16}"


def points(difference: float) -> str:
    """Return a difference of shares as +1.23; a dash where there is none."""
    return "-" if np.isnan(difference) else f"{100 * difference:+.2f}"


# In the folder of a comparison.
COMPARISON_FILES = ("comparison.json", "comparison.csv", "comparison.html")
COMPARISON = Output(
    "compare", lambda folder: has_keys(folder / COMPARISON_FILES[0], "a", "b"), COMPARISON_FILES
)


def write_comparison(
    comparison: Comparison,
    folder: Path,
    label_space: LabelSpace,
    samples: Sequence[Sample],
    class_maps: tuple[Segmenter, Segmenter],
    overwrite: bool = False,
) -> list[Path]:
    """Write `comparison.json`, `comparison.csv` and the page `comparison.html`.

    Args:
        comparison: the numbers.
        folder: where to.
        label_space: names and colours of the classes.
        samples: the images, in the order of the reports.
        class_maps: of A and B, uint8 RGB image -> class ids; called for the images shown.
        overwrite: replace files of these names even if no comparison wrote them.

    Returns:
        The paths.

    Raises:
        ForeignFileError: there is such a file.
    """
    check_replaceable(folder, COMPARISON, COMPARISON_FILES, overwrite)
    numbers = {
        "comparison.json": json.dumps(comparison.to_dict(), indent=1),
        "comparison.csv": comparison.csv(),
    }
    written = write_files(folder, COMPARISON, numbers, True)  # before anything is drawn
    page = {"comparison.html": _page(comparison, label_space, samples, class_maps)}
    return written + write_files(folder, COMPARISON, page, True)


def _page(
    comparison: Comparison,
    label_space: LabelSpace,
    samples: Sequence[Sample],
    class_maps: tuple[Segmenter, Segmenter],
) -> str:
    first, second = comparison.first, comparison.second
    boundary = comparison.differences["boundary_f"][BOUNDARY_DISTANCES.index(TABLE_DISTANCE)]
    classes = []
    for i, name in enumerate(first.classes):
        change = comparison.differences["iou"][i]
        length = None if np.isnan(change) else min(50.0, abs(100 * change) / FULL_BAR * 50)
        classes.append(
            {
                "name": name,
                "color": label_space.palette[i],
                "side": "better" if change > 0 else "worse",
                "width": length,
                "left": 50 if change > 0 else 50 - (length or 0),
                "cells": [
                    percent(first.iou[i]), percent(second.iou[i]),
                    *comparison.difference("iou", i), points(boundary[i]),
                ],
            }
        )  # fmt: skip
    borders = [
        {
            "name": f"{title} %, {which}",
            "cells": [percent(x) for x in getattr(report, name)],
        }
        for title, name in BORDER_SCORES
        for which, report in (("A", first), ("B", second))
    ]
    borders += [
        {
            "name": f"{title}, B - A",
            "cells": [
                "{} ({})".format(*comparison.difference(name, i))
                for i in range(len(BOUNDARY_DISTANCES))
            ],
        }
        for title, name in BORDER_SCORES
    ]
    tiles = [
        {
            "name": "mean IoU, B - A",
            "value": points(float(comparison.differences["mean_iou"])),
            "note": f"95 %: {comparison.difference('mean_iou')[1]}",
        },
        {"name": "mean IoU of A", "value": f"{percent(first.mean_iou)} %", "note": ""},
        {"name": "mean IoU of B", "value": f"{percent(second.mean_iou)} %", "note": ""},
    ]
    change = comparison.image_differences
    ranked = [int(i) for i in np.argsort(np.nan_to_num(change), kind="stable")]
    groups = [
        {
            "title": f"Where {ahead} is ahead",
            "note": "Image; truth; A; B; blue: only A is right, orange: only B, dark: no label.",
            "images": [
                _image_row(comparison, label_space, samples[i], i, class_maps) for i in indices
            ],
        }
        for ahead, indices in (
            ("B", [i for i in ranked[::-1] if change[i] > 0][:SHOWN]),
            ("A", [i for i in ranked if change[i] < 0][:SHOWN]),
        )
        if indices
    ]
    return render(
        "comparison.html",
        title="Comparison of two models",
        comparison=comparison,
        tiles=tiles,
        classes=classes,
        distance=TABLE_DISTANCE,
        distances=BOUNDARY_DISTANCES,
        full_bar=FULL_BAR,
        borders=borders,
        groups=groups,
        legend=legend_url(label_space),
    )


def _image_row(
    comparison: Comparison,
    label_space: LabelSpace,
    sample: Sample,
    index: int,
    class_maps: tuple[Segmenter, Segmenter],
) -> dict[str, str]:
    image, truth = load_sample(sample, label_space)
    a, b = (class_map(image) for class_map in class_maps)
    painted = [visualization.overlay(image, x, label_space.palette) for x in (truth, a, b)]
    first, second = (
        percent(report.image_iou[index]) for report in (comparison.first, comparison.second)
    )
    return {
        "data": row_url(image, *painted, visualization.disagreements(image, truth, a, b)),
        "alt": f"{sample.image.name} with truth, both predictions and where they differ",
        "caption": f"{sample.image.name}: mean IoU {first} % of A, {second} % of B",
    }
