"""An evaluation as files: JSON, CSV and a page with images."""

import base64
import io
import json
import warnings
from collections.abc import Callable, Sequence
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
from alignseg_tf.evaluation.report import Report, percent, points, span
from alignseg_tf.system.files import Output, check_file, check_replaceable, has_keys, write_files
from alignseg_tf.system.fonts import names_in_figures

Segmenter = Callable[[np.ndarray], np.ndarray]

# Number of images shown of each kind, and their largest width in pixels.
SHOWN, SHOWN_WIDTH = 4, 420
# Largest number of classes for which the cells of a confusion matrix show their shares.
LABELLED_CLASSES = 24
# In the folder of a report.
REPORT_FILES = ("evaluation.json", "classes.csv", "images.csv", "confusion.png", "report.html")


def is_evaluation(path: Path) -> bool:
    """Return whether a file has the numbers of `Report.to_dict`."""
    return has_keys(path, "mean_iou", "confusion", "protocol")


EVALUATION = Output(
    "evaluate", lambda folder: is_evaluation(folder / REPORT_FILES[0]), REPORT_FILES
)


def check_record(path: Path, overwrite: bool = False) -> None:
    """Refuse to append the counts of an evaluation to another file; `overwrite` removes it.

    Raises:
        ForeignFileError: the file is no record of an evaluation.
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
        folder: for the files.
        label_space: names and colours of the classes.
        samples: the images of the report, in its order.
        class_map: uint8 RGB image -> class ids; called for the images shown.
        title: of the page.
        overwrite: replace files of these names even if no evaluation wrote them.

    Returns:
        The paths. `confusion.png` is missing, with a warning, if drawing it fails.

    Raises:
        ForeignFileError: there is a file of these names that no evaluation wrote.
    """
    check_replaceable(folder, EVALUATION, REPORT_FILES, overwrite)
    numbers = {
        "evaluation.json": json.dumps(report.to_dict(), indent=1),
        "classes.csv": report.classes_csv(),
        "images.csv": report.images_csv(),
    }
    written = write_files(folder, EVALUATION, numbers)  # before anything is drawn
    confusion = _png(confusion_figure, report.classes, report.confusion, report.classes)
    has_calibration = report.calibration is not None
    calibration = _png(calibration_figure, (), report.calibration) if has_calibration else None
    page = render(
        "report.html",
        title=title,
        report=report,
        intervals=report.intervals(),
        label_space=label_space,
        distances=BOUNDARY_DISTANCES,
        confusion=confusion and data_url(confusion),
        calibration=calibration and data_url(calibration),
        groups=_worst_and_best(report, label_space, samples, class_map),
        legend=legend_url(label_space),
    )
    drawn = {"confusion.png": confusion, "report.html": page}
    shown = {name: content for name, content in drawn.items() if content is not None}
    return written + write_files(folder, EVALUATION, shown)


def _worst_and_best(
    report: Report, label_space: LabelSpace, samples: Sequence[Sample], class_map: Segmenter
) -> dict[str, list[dict[str, str]]]:
    """Return the images to show under each heading, see `image_row`."""
    order = np.argsort(report.image_iou, kind="stable")
    ranked = [int(i) for i in order if not np.isnan(report.image_iou[i])]
    count = min(SHOWN, -(-len(ranked) // 2))
    shown = {
        "The worst images": ranked[:count],
        "The best images": ranked[::-1][: len(ranked) - count][:count],
    }
    captions = [f"mean IoU {percent(iou)} %" for iou in report.image_iou]
    return {
        title: [image_row(samples[i], label_space, [class_map], captions[i]) for i in places]
        for title, places in shown.items()
    }


def image_row(
    sample: Sample, label_space: LabelSpace, class_maps: Sequence[Segmenter], caption: str
) -> dict[str, str]:
    """Return `data`, a URL, and `caption` of an image beside its truth and its predictions.

    The last part marks the mistakes of one model, or the disagreements of two.
    """
    image, truth = load_sample(sample, label_space)
    found = [class_map(image) for class_map in class_maps]
    painted = [visualization.overlay(image, x, label_space.palette) for x in (truth, *found)]
    mark = visualization.mistakes if len(found) == 1 else visualization.disagreements
    parts = [Image.fromarray(x) for x in (image, *painted, mark(image, truth, *found))]
    for part in parts:
        part.thumbnail((SHOWN_WIDTH, part.height), Image.Resampling.LANCZOS)
    row = visualization.side_by_side(*map(np.asarray, parts))
    return {
        "data": _image_url(row, "jpeg", quality=88),
        "caption": f"{sample.image.name}: {caption}",
    }


def render(template: str, **values: Any) -> str:
    """Fill one of the package's page templates with values, which are escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("alignseg_tf.evaluation"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"percent": percent, "points": points}
    environment.tests["known"] = lambda value: not np.isnan(value)
    return environment.get_template(template).render(span=span, **values)


def legend_url(label_space: LabelSpace) -> str:
    """Return the legend of the classes as a data URL."""
    return _image_url(visualization.legend(label_space, 4 * SHOWN_WIDTH), "png")


def _image_url(image: np.ndarray, kind: str, **options: Any) -> str:
    content = io.BytesIO()
    Image.fromarray(image).save(content, kind, **options)
    return data_url(content.getvalue(), kind)


def data_url(content: bytes, kind: str = "png") -> str:
    """Return an image's file as a data URL."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def confusion_figure(confusion: np.ndarray, classes: Sequence[str]) -> Figure:
    """Draw the shares of each true class, from pixels, int64 [n, n], whose rows are the truth."""
    total = confusion.sum(1, keepdims=True)
    share = np.divide(confusion, total, out=np.full(confusion.shape, np.nan), where=total > 0)
    count = len(classes)
    is_labelled = count <= LABELLED_CLASSES
    side = min(24.0, max(4.5, (0.5 if is_labelled else 0.15) * count))
    figure = Figure(figsize=(side + 1.5, side + 0.8), dpi=110, layout="constrained")
    axes = figure.subplots()
    # The square root shows a share of 1 % beside one of 100 %.
    axes.imshow(np.sqrt(share), cmap="Blues", vmin=0, vmax=1)
    font = 9 if is_labelled else 5
    axes.set_xticks(range(count), classes, rotation=90, fontsize=font)
    axes.set_yticks(range(count), classes, fontsize=font)
    axes.set(xlabel="predicted", ylabel="true")
    if is_labelled:
        for (row, column), value in np.ndenumerate(share):
            if value >= 0.005:
                axes.text(
                    column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=7,
                    color="white" if value > 0.35 else "black",
                )  # fmt: skip
    return figure


def calibration_figure(calibration: np.ndarray) -> Figure:
    """Draw accuracy against confidence, and the share of pixels, of `Report.calibration`."""
    pixels, right, confidence = calibration.T
    there = pixels > 0
    figure = Figure(figsize=(5, 4.2), dpi=110, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    upper.plot(confidence[there] / pixels[there], right[there] / pixels[there], marker="o")
    upper.set(ylabel="accuracy", ylim=(0, 1))
    middles = (np.arange(CALIBRATION_BINS) + 0.5) / CALIBRATION_BINS
    lower.bar(middles, 100 * pixels / max(1.0, pixels.sum()), width=0.9 / CALIBRATION_BINS)
    lower.set(ylabel="% of pixels", xlabel="confidence", xlim=(0, 1))
    return figure


def _png(draw: Callable[..., Figure], names: Sequence[str], *values: Any) -> bytes | None:
    """Draw a figure with `names` as a PNG file; None, with a warning, if Matplotlib fails."""
    content = io.BytesIO()
    try:
        with names_in_figures(names):
            draw(*values).savefig(content, format="png")
    except Exception as error:  # of many kinds; numbers and page are written all the same
        warnings.warn(f"{draw.__name__} failed: {error}", stacklevel=2)
        return None
    return content.getvalue()
