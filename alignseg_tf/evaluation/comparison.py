"""Two models on the same images: the differences and their intervals."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from alignseg_tf.data.label_space import LabelSpace
from alignseg_tf.data.listing import Sample
from alignseg_tf.evaluation.bootstrap import Interval
from alignseg_tf.evaluation.counts import BOUNDARY_DISTANCES
from alignseg_tf.evaluation.page import SHOWN, Segmenter, image_row, legend_url, render
from alignseg_tf.evaluation.report import INTERVALS, TABLE_DISTANCE, Report, named, percent, points
from alignseg_tf.system.files import Output, check_replaceable, has_keys, write_files
from alignseg_tf.system.tables import csv_text, text_table

# Difference in points of % at which a bar of the page is full.
FULL_BAR = 10
BORDER_SCORES = (("boundary F", "mean_boundary_f"), ("trimap IoU", "mean_trimap_iou"))
# Values of each score in files.
VALUES = ("a", "b", "difference", "low", "high")


@dataclass(frozen=True)
class Comparison:
    """Two reports on the same images; differences are of the second, B, less the first, A.

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
        """B less A: `boundary_f`, and the scores that have intervals."""
        return {
            name: np.asarray(getattr(self.second, name) - getattr(self.first, name))
            for name in (*INTERVALS, "boundary_f")
        }

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        """95 % bootstrap intervals of `differences`, on the same samples of images for both."""
        first, second = self.first.resampled, self.second.resampled
        return {
            name: self.first.interval_of(getattr(second, name) - getattr(first, name))
            for name in INTERVALS
        }

    def values(self, name: str) -> np.ndarray:
        """Return a score of A and of B, their difference and its bounds, [..., 5]."""
        scores = [getattr(report, name) for report in (self.first, self.second)]
        return np.stack([*scores, self.differences[name], *self.intervals[name]], -1)

    def cells(self, name: str, place: Any = ()) -> list[str]:
        """Return a score of A and B in %, the difference and its interval in points, as text.

        A star marks a difference whose interval excludes 0. Missing values are dashes.
        """
        a, b, difference, low, high = self.values(name)[place]
        star = "*" if low > 0 or high < 0 else " "
        bounds = "-" if np.isnan(low) else f"{points(low)} to {points(high)}"
        return [percent(a), percent(b), f"{points(difference)} {star}", bounds]

    @property
    def boundary_differences(self) -> np.ndarray:
        """Difference in the boundary F-score of each class at `TABLE_DISTANCE`, [n]."""
        return self.differences["boundary_f"][BOUNDARY_DISTANCES.index(TABLE_DISTANCE)]

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers for JSON; None where there is none."""
        return {
            "a": self.names[0],
            "b": self.names[1],
            "images": self.first.images,
            "protocol": self.first.protocol,
            "block": self.first.block,
            "mean_iou": named(self.values("mean_iou"), VALUES),
            "iou": named(self.values("iou"), self.first.classes, VALUES),
            **{
                name: named(self.values(name), BOUNDARY_DISTANCES, VALUES)
                for _, name in BORDER_SCORES
            },
        }

    def table(self) -> str:
        """Return a table for the terminal, in % and points of %."""
        boundary_name = f"boundary F {TABLE_DISTANCE} px, B - A"
        rows: list[Sequence[str] | None] = [
            ("class", "IoU of A", "IoU of B", "B - A  ", "95 % interval", boundary_name)
        ]
        for i, name in enumerate(self.first.classes):
            rows.append((name, *self.cells("iou", i), points(self.boundary_differences[i])))
        rows += [None, ("mean IoU", *self.cells("mean_iou"))]
        for title, name in BORDER_SCORES:
            for i, distance in enumerate(BOUNDARY_DISTANCES):
                rows.append((f"{title} {distance} px", *self.cells(name, i)))
        blocks = f", blocks of {self.first.block}" if self.first.block > 1 else ""
        return (
            f"A: {self.names[0]}\nB: {self.names[1]}\n\n{text_table(rows)}\n\n"
            f"{self.first.images} images, {self.first.protocol}{blocks}; "
            "* where the interval excludes 0"
        )

    def csv(self) -> str:
        """Return a table of the classes, shares in 0..1; empty where a class does not occur."""
        rows = zip(self.first.classes, self.values("iou"), strict=True)
        return csv_text([("class", *VALUES), *((name, *values) for name, values in rows)])


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
    """Write `comparison.json`, `comparison.csv` and `comparison.html`; return their paths.

    The arguments are those of `write_report`, with one of `class_maps` for A and one for B.

    Raises:
        ForeignFileError: there is a file of these names that no comparison wrote.
    """
    check_replaceable(folder, COMPARISON, COMPARISON_FILES, overwrite)
    numbers = {
        "comparison.json": json.dumps(comparison.to_dict(), indent=1),
        "comparison.csv": comparison.csv(),
    }
    written = write_files(folder, COMPARISON, numbers)  # before anything is drawn
    page = {"comparison.html": _page(comparison, label_space, samples, class_maps)}
    return written + write_files(folder, COMPARISON, page)


def _page(
    comparison: Comparison,
    label_space: LabelSpace,
    samples: Sequence[Sample],
    class_maps: tuple[Segmenter, Segmenter],
) -> str:
    first, second = comparison.first, comparison.second
    change = second.image_iou - first.image_iou
    ranked = np.argsort(np.nan_to_num(change), kind="stable").tolist()
    shown = {
        "Where B is ahead": [i for i in ranked[::-1] if change[i] > 0][:SHOWN],
        "Where A is ahead": [i for i in ranked if change[i] < 0][:SHOWN],
    }

    captions = [
        f"mean IoU {percent(a)} % of A, {percent(b)} % of B"
        for a, b in zip(first.image_iou, second.image_iou, strict=True)
    ]
    borders = []
    for title, name in BORDER_SCORES:
        of_a, of_b, change, bounds = zip(
            *(comparison.cells(name, i) for i in range(len(BOUNDARY_DISTANCES))), strict=True
        )
        both = [f"{x} ({y})" for x, y in zip(change, bounds, strict=True)]
        borders += [(f"{title} %, A", of_a), (f"{title} %, B", of_b), (f"{title}, B - A", both)]
    return render(
        "comparison.html",
        comparison=comparison,
        label_space=label_space,
        boundary=comparison.boundary_differences,
        distance=TABLE_DISTANCE,
        distances=BOUNDARY_DISTANCES,
        full_bar=FULL_BAR,
        borders=borders,
        groups={
            title: [image_row(samples[i], label_space, class_maps, captions[i]) for i in places]
            for title, places in shown.items()
        },
        legend=legend_url(label_space),
    )
