import json
import re

import numpy as np
import pytest
from conftest import CLASSES, write_folder
from evaluation_fixtures import SPACE, by_color, images

from alignseg_tf.__main__ import main
from alignseg_tf.data.listing import read_folder
from alignseg_tf.data.sources import open_data
from alignseg_tf.evaluation.comparison import Comparison, write_comparison
from alignseg_tf.evaluation.evaluator import evaluate
from alignseg_tf.evaluation.report import Report
from alignseg_tf.system.fingerprints import names_hash


def blind(image):
    """A model that never sees a disc."""
    found = by_color(image)
    found[found == 2] = 0
    return found


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison")
    samples = read_folder(write_folder(folder / "data", 1, 9), "val")
    reports = [evaluate(segment, samples, SPACE) for segment in (blind, by_color)]
    return Comparison(*reports, names=("blind", "seeing")), samples


def test_differences_and_their_paired_intervals(compared):
    comparison, _ = compared
    first, second = comparison.first, comparison.second
    np.testing.assert_allclose(comparison.differences["iou"], second.iou - first.iou)
    assert comparison.differences["iou"][2] > 0.2
    assert comparison.differences["iou"][1] == 0
    bounds = comparison.intervals["mean_iou"]
    changes = second.resampled.mean_iou - first.resampled.mean_iou
    np.testing.assert_allclose(bounds, np.quantile(changes, (0.025, 0.975)))
    # Paired: no wider than what two independent samples would give.
    apart = first.intervals()["mean_iou"], second.intervals()["mean_iou"]
    assert bounds.high - bounds.low < sum(x.high - x.low for x in apart)


def test_the_table_has_stars_where_zero_is_outside(compared):
    lines = compared[0].table().splitlines()
    assert lines[:2] == ["A: blind", "B: seeing"]
    box, disc = lines[5], lines[6]
    assert box.startswith("box") and "+0.00  " in box
    assert "*" not in box and "*" in disc
    assert max(map(len, lines)) <= 100


def test_files(compared, tmp_path):
    comparison, samples = compared
    paths = write_comparison(comparison, tmp_path, SPACE, samples, (blind, by_color))
    content = json.loads(paths[0].read_text())
    assert content["iou"]["disc"]["difference"] == pytest.approx(comparison.differences["iou"][2])
    assert content["mean_boundary_f"]["3"]["b"] == comparison.second.mean_boundary_f[2]
    assert paths[1].read_text().startswith("class,a,b,difference,low,high\nground,")
    page = paths[2].read_text()
    assert "Where B is ahead" in page
    assert "Where A is ahead" not in page
    names = re.findall(r"<figcaption>(\d+\.png)", page)
    change = comparison.second.image_iou - comparison.first.image_iou
    shown = [change[int(name.removesuffix(".png"))] for name in names]
    assert shown == sorted(change, reverse=True)[:4]
    marked = images(page)[0].astype(int)[:, -96:]
    warm = marked[..., 0] - marked[..., 2]
    assert (warm > 100).sum() > 20, "orange"
    assert (warm < -60).sum() < 5, "blue"


def test_a_comparison_replaces_only_a_comparison(compared, tmp_path):
    comparison, samples = compared
    arguments = comparison, tmp_path, SPACE, samples, (blind, by_color)
    for _ in range(2):
        write_comparison(*arguments)
    (tmp_path / "comparison.csv").write_text("with my notes")
    with pytest.raises(ValueError, match=r"comparison\.csv \(changed since\).*--overwrite"):
        write_comparison(*arguments)
    assert (tmp_path / "comparison.csv").read_text() == "with my notes"
    write_comparison(*arguments, overwrite=True)


def test_reports_on_other_images_or_classes_are_refused(compared):
    first = compared[0].first
    with pytest.raises(ValueError, match="same images"):
        Comparison(first, Report(CLASSES, first.scores[::-1]))
    with pytest.raises(ValueError, match="same classes"):
        Comparison(first, Report(("ground", "box", "ring"), first.scores))


def test_the_command_compares_and_goes_on(tmp_path, capsys, monkeypatch):
    data = write_folder(tmp_path / "data", 1, 3)
    models = {}
    for name, segment in (("a", blind), ("b", by_color)):
        path = tmp_path / f"{name}.keras"
        path.write_text(name)
        models[path] = segment

    monkeypatch.setattr(
        "alignseg_tf.commands.compare.predictors_on_all_gpus",
        lambda path, protocol: [StandIn(models[path], protocol)],
    )
    arguments = ["compare", *map(str, models), "--data", str(data)]
    arguments += ["--output", str(tmp_path / "out")]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "mean IoU" in out
    assert out.rstrip().endswith("comparison.html")
    records = [(tmp_path / "out" / f"{name}.jsonl") for name in "ab"]
    before = [record.read_bytes() for record in records]
    assert main(arguments) == 0
    assert [record.read_bytes() for record in records] == before
    names = [s.image.name for part in ("train", "val") for s in open_data(data).samples(part)]
    run = {"train_on": "train+val", "training_image_names": names_hash(names)}
    (tmp_path / "b.run.json").write_text(json.dumps(run))
    assert main([*arguments, "--flip"]) == 2
    err = capsys.readouterr().err
    assert "a.jsonl holds another evaluation:\n  protocol" in err
    assert "b.keras was trained on these images" in err
    assert "a.keras was trained" not in err
    (tmp_path / "data" / "classes.json").write_text('{"classes": ["x", "y", "z"]}')
    assert main(arguments) == 2
    assert "must have the same classes" in capsys.readouterr().err


class StandIn:
    """A predictor by a function."""

    label_space = SPACE

    def __init__(self, segment, protocol):
        self.class_map, self.protocol = segment, protocol

    def __call__(self, image):
        return self.class_map(image)
