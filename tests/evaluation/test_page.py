import json
import re

import numpy as np
import pytest
from conftest import write_folder
from evaluation_fixtures import SPACE, by_color, images
from PIL import Image

from alignseg_tf.data.label_space import LabelSpace
from alignseg_tf.data.listing import read_folder
from alignseg_tf.data.readers import load_sample
from alignseg_tf.evaluation.evaluator import evaluate
from alignseg_tf.evaluation.page import check_record, confusion_figure, render, write_report
from alignseg_tf.system.files import RECORD_FILE


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    samples = read_folder(write_folder(folder / "data", 1, 11), "val")
    report = evaluate(by_color, samples, SPACE)
    paths = write_report(report, folder / "out", SPACE, samples, by_color, "<b>Model & co</b>")
    return report, samples, paths


def test_all_files_are_there(evaluated):
    report, _, paths = evaluated
    assert [path.name for path in paths] == [
        "evaluation.json", "classes.csv", "images.csv", "confusion.png", "report.html",
    ]  # fmt: skip
    assert all(path.stat().st_size > 100 for path in paths)
    assert json.loads(paths[0].read_text())["mean_iou"] == report.mean_iou
    assert 0.5 < report.mean_iou < 0.999
    with Image.open(paths[3]) as image:
        assert min(image.size) > 300


def test_a_report_replaces_only_a_report(evaluated, tmp_path):
    report, samples, _ = evaluated
    (tmp_path / "classes.csv").write_text("mine")
    arguments = report, tmp_path, SPACE, samples, by_color
    with pytest.raises(ValueError, match=r"only files that evaluate wrote.*classes\.csv;"):
        write_report(*arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["classes.csv"]
    (tmp_path / "classes.csv").unlink()
    write_report(*arguments)
    (tmp_path / RECORD_FILE).unlink()  # as an older version leaves it
    write_report(*arguments)
    write_report(*arguments)


def test_counts_are_appended_only_to_a_record(tmp_path):
    path = tmp_path / "images.jsonl"
    check_record(path)
    for content, own in (('{"protocol":"whole"}\n', True), ("", True), ('{"my": "notes"}', False)):
        path.write_text(content)
        if own:
            check_record(path)
            continue
        with pytest.raises(ValueError, match=r"images\.jsonl: expected a new file, or one that"):
            check_record(path)
        assert path.read_text() == content
        check_record(path, overwrite=True)
        assert not path.exists()


def test_the_page_stands_alone_and_escapes(evaluated):
    report, _, paths = evaluated
    page = paths[-1].read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert "http" not in page.replace("http-equiv", "")
    assert "&lt;b&gt;Model &amp; co&lt;/b&gt;" in page
    assert "<b>Model" not in page
    for value in (*report.iou, report.pixel_accuracy, *report.mean_boundary_f):
        assert f"{100 * value:.2f}" in page
    assert "Does it know when it is wrong" not in page  # no confidence was given


def test_the_worst_and_the_best_images_are_shown(evaluated):
    report, samples, paths = evaluated
    page = paths[-1].read_text()
    order = np.argsort(report.image_iou, kind="stable")
    names = re.findall(r"<figcaption>(\d+\.png): mean IoU", page)
    expected = [samples[i].image.name for i in [*order[:4], *order[::-1][:4]]]
    assert names == expected
    row = images(page)[1]  # the first is the confusion matrix
    assert row.shape == (64, 4 * 96 + 3 * 4, 3)
    # The last part has mistakes in red, and only there.
    image, truth = load_sample(samples[order[0]], SPACE)
    wrong = (by_color(image) != truth) & (truth != 255)
    red = row[:, -96:, 0].astype(int) - row[:, -96:, 1] > 70
    assert (red == wrong)[1:].mean() > 0.97
    assert wrong.sum() > 5


@pytest.mark.parametrize("count", [1, 2])
def test_few_images_are_shown_once(count, tmp_path):
    samples = read_folder(write_folder(tmp_path / "data", 1, count), "val")
    report = evaluate(by_color, samples, SPACE)
    page = write_report(report, tmp_path / "out", SPACE, samples, by_color)[-1].read_text()
    assert len(re.findall(r"<figcaption>\d+\.png", page)) == count


def test_a_confusion_matrix_of_many_classes_has_no_numbers():
    few, many = (
        confusion_figure(np.eye(n, dtype=np.int64), [f"class {i}" for i in range(n)])
        for n in (5, 150)
    )
    assert [text.get_text() for text in few.axes[0].texts] == ["100"] * 5
    assert not many.axes[0].texts
    assert many.get_size_inches()[0] <= 26


def test_a_template_with_a_hole_is_an_error():
    with pytest.raises(Exception, match="undefined"):
        render("report.html", title="x")


def test_names_are_data_and_numbers_come_before_drawings(tmp_path, monkeypatch):
    space = LabelSpace(("$\\frac{$", "=1+1", "<b>é</b>"))
    samples = read_folder(write_folder(tmp_path / "data", 1, 3), "val")
    report = evaluate(by_color, samples, space)
    write_report(report, tmp_path / "out", space, samples, by_color)
    lines = (tmp_path / "out" / "classes.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines[1:]] == ["$\\frac{$", "'=1+1", "<b>é</b>"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "&lt;b&gt;é&lt;/b&gt;" in page

    def fail(*args):
        raise RuntimeError("no ink")

    fail.__name__ = "confusion_figure"
    monkeypatch.setattr("alignseg_tf.evaluation.page.confusion_figure", fail)
    with pytest.warns(UserWarning, match="confusion_figure failed: no ink"):
        paths = write_report(report, tmp_path / "again", space, samples, by_color)
    assert [path.name for path in paths] == [
        "evaluation.json", "classes.csv", "images.csv", "report.html",
    ]  # fmt: skip
    assert all(path.is_file() for path in paths)
    assert "What is taken for what" not in paths[-1].read_text()
