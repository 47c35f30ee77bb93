"""An evaluation as files: numbers for programs, and one page with images for people."""

import base64
import io
import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from alignseg_tf import visualization
from alignseg_tf.data.label_space import LabelSpace
from alignseg_tf.data.listing import Sample
from alignseg_tf.data.readers import load_sample
from alignseg_tf.evaluation.counts import BOUNDARY_DISTANCES, CALIBRATION_BINS
from alignseg_tf.evaluation.report import Report, percent
from alignseg_tf.system.files import Output, check_file, check_replaceable, has_keys, write_files
from alignseg_tf.system.fonts import names_in_figures

Segmenter = Callable[[np.ndarray], np.ndarray]

# So many of the best images, and of the worst, are shown, each part of them at most so wide.
SHOWN, SHOWN_WIDTH = 4, 420
# Up to so many classes the cells of a confusion matrix have their share written into them.
LABELLED_CLASSES = 24


# In the folder of a report.
REPORT_FILES = (
    "evaluation.json", "classes.csv", "images.csv", "confusion.png", "report.html"
)  # fmt: skip


def is_evaluation(path: Path) -> bool:
    """Whether a file has the numbers of an evaluation, as `Report.to_dict` gives them."""
    return has_keys(path, "mean_iou", "confusion", "protocol")


EVALUATION = Output(
    "evaluate", lambda folder: is_evaluation(folder / REPORT_FILES[0]), REPORT_FILES
)


def check_record(path: Path, overwrite: bool = False) -> None:
    """Refuse to append the counts of an evaluation to a file that is none of its records.

    Raises:
        ForeignFileError: the file is there and is something else; with `overwrite` it is removed.
    """
    check_file(path, "evaluate", _is_record, overwrite)
    if path.exists() and not _is_record(path):
        path.unlink()


def _is_record(path: Path) -> bool:
    with path.open("rb") as file:
        first = file.readline()
    return not first or (first.startswith(b"{") and b'"protocol"' in first)


def write_report(
    report: Report,
    folder: Path,
    label_space: LabelSpace,
    samples: Sequence[Sample],
    class_map: Segmenter,
    title: str = "Evaluation",
    overwrite: bool = False,
) -> list[Path]:
    """Write `evaluation.json`, `classes.csv`, `images.csv`, `confusion.png` and `report.html`.

    Args:
        report: the numbers.
        folder: where to.
        label_space: names and colours of the classes.
        samples: the images of the report, in its order.
        class_map: uint8 RGB image -> class ids; called for the few images that are shown.
        title: of the page.
        overwrite: replace files of these names even if no evaluation wrote them.

    Returns:
        The paths. `confusion.png` is missing if drawing it fails, with a warning.

    Raises:
        ForeignFileError: there is such a file.
    """
    contents = {
        "evaluation.json": json.dumps(report.to_dict(), indent=1).encode(),
        "classes.csv": report.classes_csv().encode(),
        "images.csv": report.images_csv().encode(),
    }
    check_replaceable(folder, EVALUATION, (*contents, "confusion.png", "report.html"), overwrite)
    written = write_files(folder, EVALUATION, contents, True)  # before anything is drawn
    confusion = _png(confusion_figure, report.confusion, report.classes)
    page = report_page(report, label_space, samples, class_map, title, confusion)
    drawn = {"confusion.png": confusion, "report.html": page.encode()}
    shown = {name: content for name, content in drawn.items() if content is not None}
    return written + write_files(folder, EVALUATION, shown, True)


def report_page(
    report: Report,
    label_space: LabelSpace,
    samples: Sequence[Sample],
    class_map: Segmenter,
    title: str,
    confusion: bytes | None,
) -> str:
    """Return the page of a report, HTML that needs no other file; see `write_report`."""
    intervals = report.intervals()
    share = report.confusion.sum(1) / max(1, report.confusion.sum())
    classes = []
    for i, name in enumerate(report.classes):
        low, high = intervals["iou"].low[i], intervals["iou"].high[i]
        values = [report.iou[i], report.precision[i], report.recall[i], *report.boundary_f[:, i]]
        cells = [percent(value) for value in values]
        cells.insert(1, span(low, high))
        classes.append(
            {
                "name": name,
                "color": label_space.palette[i],
                "bar": _bar(report.iou[i]),
                "low": _bar(low),
                "high": _bar(high),
                "cells": [*cells, percent(share[i])],
            }
        )
    mean = intervals["mean_iou"]
    error = report.expected_calibration_error
    tiles = [
        _tile("mean IoU", report.mean_iou, f"95 %: {span(mean.low, mean.high)}"),
        _tile("pixel accuracy", report.pixel_accuracy, "of the labelled pixels"),
        _tile("fw. IoU", report.frequency_weighted_iou, "weighted by frequency"),
        *(
            _tile(f"boundary F, {d} px", report.mean_boundary_f[i], "mean over classes")
            for i, d in enumerate(BOUNDARY_DISTANCES)
            if d in (1, 3)
        ),
    ]
    if error is not None:
        tiles.append(_tile("ECE", error, "distance of confidence and accuracy"))
    order = np.argsort(report.image_iou, kind="stable")
    ranked = [int(i) for i in order if not np.isnan(report.image_iou[i])]
    count = min(SHOWN, -(-len(ranked) // 2))

    def shown(indices: Iterable[int]) -> list[dict[str, str]]:
        return [_image_row(report, label_space, samples[i], i, class_map) for i in indices]

    groups = [
        {
            "title": heading,
            "note": "Image; truth; prediction; mistakes in red, unlabelled pixels dark.",
            "images": shown(indices),
        }
        for heading, indices in (
            ("The worst images", ranked[:count]),
            ("The best images", ranked[::-1][: len(ranked) - count][:count]),
        )
        if indices
    ]
    return render(
        "report.html",
        title=title,
        report=report,
        tiles=tiles,
        classes=classes,
        distances=BOUNDARY_DISTANCES,
        borders=[
            {"name": "boundary F %", "cells": [percent(x) for x in report.mean_boundary_f]},
            {"name": "trimap IoU %", "cells": [percent(x) for x in report.mean_trimap_iou]},
        ],
        confusion=_png_url(confusion),
        calibration=None
        if report.calibration is None
        else _png_url(_png(calibration_figure, report.calibration)),
        groups=groups,
        legend=legend_url(label_space),
    )


def _image_row(
    report: Report, label_space: LabelSpace, sample: Sample, index: int, class_map: Segmenter
) -> dict[str, str]:
    image, truth = load_sample(sample, label_space)
    predicted = class_map(image)
    palette = label_space.palette
    return {
        "data": row_url(
            image,
            visualization.overlay(image, truth, palette),
            visualization.overlay(image, predicted, palette),
            visualization.mistakes(image, truth, predicted),
        ),
        "alt": f"{sample.image.name} with truth, prediction and mistakes",
        "caption": f"{sample.image.name}: mean IoU {percent(report.image_iou[index])} %",
    }


def render(template: str, **values: Any) -> str:
    """Fill one of the package's page templates; what is filled in is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("alignseg_tf.evaluation"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(template).render(**values)


def row_url(*images: np.ndarray) -> str:
    """Put images of one size beside each other, no wider than they are shown, as a data URL."""
    height, width = images[0].shape[:2]
    scale = min(1.0, SHOWN_WIDTH / width)
    size = max(1, round(scale * width)), max(1, round(scale * height))
    small = [
        np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
        for image in images
    ]
    content = io.BytesIO()
    Image.fromarray(visualization.side_by_side(*small)).save(content, "JPEG", quality=88)
    return data_url(content.getvalue(), "jpeg")


def legend_url(label_space: LabelSpace) -> str:
    """Return the legend of the classes as a data URL."""
    content = io.BytesIO()
    Image.fromarray(visualization.legend(label_space, 4 * SHOWN_WIDTH)).save(content, "PNG")
    return data_url(content.getvalue(), "png")


def data_url(content: bytes, kind: str) -> str:
    """Return an image's file as a URL that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def confusion_figure(confusion: np.ndarray, classes: Sequence[str]) -> Figure:
    """Draw a confusion matrix: shares of each true class (row), on a scale that shows small ones.

    Args:
        confusion: pixels, int64 [n, n], rows are the truth.
        classes: n names.
    """
    total = confusion.sum(1, keepdims=True)
    share = np.divide(confusion, total, out=np.full(confusion.shape, np.nan), where=total > 0)
    count = len(classes)
    side = min(24.0, max(4.5, 0.5 * count if count <= LABELLED_CLASSES else 0.15 * count))
    figure = Figure(figsize=(side + 1.5, side + 0.8), dpi=110, layout="constrained")
    axes = figure.subplots()
    # The square root lets a share of 1 % be seen beside one of 100 %.
    axes.imshow(np.sqrt(share), cmap="Blues", vmin=0, vmax=1)
    font = 9 if count <= LABELLED_CLASSES else 5
    axes.set_xticks(range(count), classes, rotation=90, fontsize=font)
    axes.set_yticks(range(count), classes, fontsize=font)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if count <= LABELLED_CLASSES:
        for (row, column), value in np.ndenumerate(share):
            if value >= 0.005:
                axes.text(
                    column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=7,
                    color="white" if value > 0.35 else "black",
                )  # fmt: skip
    return figure


def calibration_figure(calibration: np.ndarray) -> Figure:
    """Draw accuracy against confidence, and how many pixels are in each bin.

    Args:
        calibration: pixels, right ones, summed confidence; float64 [bins, 3].
    """
    pixels, right, confidence = calibration.T
    there = pixels > 0
    figure = Figure(figsize=(5, 4.2), dpi=110, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    upper.plot(confidence[there] / pixels[there], right[there] / pixels[there], marker="o")
    upper.set_ylabel("accuracy")
    upper.set_ylim(0, 1)
    edges = (np.arange(CALIBRATION_BINS) + 0.5) / CALIBRATION_BINS
    lower.bar(edges, 100 * pixels / max(1.0, pixels.sum()), width=0.9 / CALIBRATION_BINS)
    lower.set_ylabel("% of pixels")
    lower.set_xlabel("confidence")
    lower.set_xlim(0, 1)
    return figure


def _png(
    draw: Callable[..., Figure], values: np.ndarray, names: Sequence[str] = ()
) -> bytes | None:
    """Draw a figure as a PNG file; None, with a warning, if Matplotlib fails."""
    content = io.BytesIO()
    try:
        with names_in_figures(names):
            figure = draw(values, names) if names else draw(values)
            figure.savefig(content, format="png")
    except Exception as error:  # of many kinds; numbers and page are written all the same
        warnings.warn(f"{draw.__name__} failed: {error}", stacklevel=2)
        return None
    return content.getvalue()


def _png_url(content: bytes | None) -> str | None:
    return None if content is None else data_url(content, "png")


def span(low: float, high: float) -> str:
    """Return an interval of shares in %; a dash where there is none."""
    return "-" if np.isnan(low) else f"{percent(low)} to {percent(high)}"


def _bar(share: float) -> float | None:
    return None if np.isnan(share) else round(100 * float(share), 2)


def _tile(name: str, share: float, note: str) -> dict[str, str]:
    return {"name": name, "value": f"{percent(share)} %", "note": note}
