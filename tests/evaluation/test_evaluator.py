import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
from conftest import absent, shared_tiny_model, write_folder
from evaluation_fixtures import SPACE
from PIL import Image

from alignseg_tf import Predictor
from alignseg_tf.data.datasets.cityscapes import CITYSCAPES
from alignseg_tf.data.label_space import LabelSpace
from alignseg_tf.data.listing import DataError, read_folder
from alignseg_tf.data.readers import load_sample
from alignseg_tf.evaluation.counts import score_image
from alignseg_tf.evaluation.evaluator import evaluate, evaluate_model
from alignseg_tf.evaluation.report import Report
from alignseg_tf.prediction.outputs import Prediction
from alignseg_tf.prediction.predictor import predictors_on_all_gpus
from alignseg_tf.prediction.protocol import Protocol


@pytest.fixture
def many(tmp_path):
    return read_folder(write_folder(tmp_path / "many", 1, 7, ((64, 96), (48, 80))), "val")


def by_red(image):
    return image[..., 0] % 3


def counted(samples, record=None, calls=None, segment=by_red, **options):
    """Evaluate a stand-in for a model that notes its calls."""
    calls = [] if calls is None else calls
    return evaluate(
        lambda x: calls.append(1) or segment(x), samples, SPACE, record=record, **options
    )


def test_the_truth_scores_one_and_blocks_are_kept(many):
    pairs = [load_sample(sample, SPACE) for sample in many]
    known = {image.tobytes(): np.where(truth > 2, 0, truth) for image, truth in pairs}
    report = evaluate(lambda image: known[image.tobytes()].astype(np.uint8), many, SPACE, block=3)
    assert report.mean_iou == 1.0
    assert (report.images, report.block) == (7, 3)
    assert report.confusion.sum() == sum((truth != 255).sum() for _, truth in pairs)
    np.testing.assert_array_equal(report.mean_boundary_f, 1.0)
    np.testing.assert_array_equal(report.mean_trimap_iou, 1.0)
    assert report.expected_calibration_error is None


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (np.full((64, 96), 3, np.uint8), r"000\.png: The model predicts class 3"),
        (np.zeros((2, 2), np.uint8), r"000\.png: .*label's size \(64, 96\)"),
    ],
)
def test_predictions_that_do_not_fit_are_refused(many, found, message):
    with pytest.raises(ValueError, match=message):
        evaluate(lambda image: found, many[:1], SPACE)


def test_what_is_wrong_is_named_before_the_first_image(many, tmp_path):
    with pytest.raises(ValueError, match="neighbouring images .* at least 1. Received: 0"):
        evaluate(lambda image: pytest.fail("it predicts"), many, SPACE, block=0)
    many[3].label.unlink()
    with pytest.raises(DataError, match=r"003\.png: not readable"):
        counted(many, tmp_path / "r.jsonl", segment=lambda image: pytest.fail("it predicts"))


def test_several_devices_share_the_images_and_count_the_same(many):
    calls, both, names = [0, 0], threading.Barrier(2, timeout=30), [None, None]

    def segment(which):
        def run(image):
            if calls[which] == 0:
                both.wait()  # neither goes on before the other one has an image too
            calls[which] += 1
            assert names[which] is None  # a device does one image at a time
            names[which] = threading.get_ident()
            found = by_red(image)
            names[which] = None
            return found

        return run

    one, two = counted(many), evaluate([segment(0), segment(1)], many, SPACE)
    assert min(calls) >= 1
    assert sum(calls) == 7
    assert [s.name for s in one.scores] == [s.name for s in two.scores]
    assert one.to_dict() == two.to_dict()


def test_an_interrupted_evaluation_goes_on(many, tmp_path):
    record, calls = tmp_path / "out" / "images.jsonl", []

    def interrupted(image):
        if len(calls) == 5:
            raise KeyboardInterrupt
        return by_red(image)

    with pytest.raises(KeyboardInterrupt):
        counted(many, record, calls, interrupted, identity={"model": "m"})
    done = len(record.read_bytes().splitlines()) - 1
    assert 1 <= done <= 6
    with record.open("ab") as file:
        file.write(b'{"index": 6, "name"')  # what a kill in the middle of a line leaves
    calls.clear()
    for _ in range(2):
        report = counted(many, record, calls, identity={"model": "m"})
        assert len(calls) == 7 - done
        assert report.to_dict() == counted(many).to_dict()
        assert len(record.read_bytes().splitlines()) == 8


def test_a_record_of_something_else_is_refused(many, tmp_path):
    record = tmp_path / "images.jsonl"

    def run(model="m", space=SPACE, **options):
        evaluate(by_red, many, space, record=record, identity={"model": model}, **options)

    run()
    whole, other_ids = record.read_bytes(), LabelSpace(SPACE.classes, ids=(2, 1, 0))
    for other in ({"model": "other"}, {"protocol": "windows"}, {"space": other_ids}):
        with pytest.raises(ValueError, match=r"images\.jsonl holds another evaluation"):
            run(**other)
        assert record.read_bytes() == whole
    for content in (b'{"something": "else"}\nnot json\n', b'{"something": "else"}\n'):
        record.write_bytes(content)
        with pytest.raises(ValueError, match=r"images\.jsonl"):
            run()
        assert record.read_bytes() == content


@pytest.mark.parametrize("what", ["image", "label"])
def test_what_has_another_content_is_evaluated_again_and_named(what, many, tmp_path, capsys):
    """The corrected file has the name, the size in pixels and the time of the one before."""
    record, calls = tmp_path / "images.jsonl", []
    before = counted(many, record)
    path = getattr(many[2], what)
    time = path.stat().st_mtime_ns
    pixels = np.asarray(Image.open(path))
    Image.fromarray(pixels[::-1].copy()).save(path)
    os.utime(path, ns=(time, time))
    after = counted(many, record, calls)
    assert len(calls) == 1
    changed = "1 images or their labels have changed, evaluating them again: 002.png"
    assert changed in capsys.readouterr().err
    assert after.to_dict() == counted(many).to_dict() != before.to_dict()
    assert counted(many, record, calls).to_dict() == after.to_dict()
    assert len(calls) == 1
    assert capsys.readouterr().err == ""


def test_added_and_removed_images_change_a_record(many, tmp_path, capsys):
    record, calls = tmp_path / "images.jsonl", []
    counted(many[:4], record, calls)
    report = counted([many[6], *many[2:5]], record, calls)
    assert len(calls) == 4 + 2
    assert "2 images are no longer in the data: 000.png, 001.png" in capsys.readouterr().err
    names = [score.name for score in report.scores]
    assert names == ["006.png", "002.png", "003.png", "004.png"]


def test_a_record_without_fingerprints_is_made_anew(many, tmp_path, capsys):
    record, calls = tmp_path / "images.jsonl", []
    whole = counted(many, record)
    head, *lines = map(json.loads, record.read_text().splitlines())
    head = {"protocol": head["protocol"], "classes": head["classes"], "images": 7}
    older = [{"index": i} | line for i, line in enumerate(lines)]
    record.write_text("".join(json.dumps(line) + "\n" for line in (head, *older)))
    assert counted(many, record, calls).to_dict() == whole.to_dict()
    assert len(calls) == 7
    assert "from an older version" in capsys.readouterr().err
    record.write_text(json.dumps(head | {"protocol": "windows"}) + "\n")
    with pytest.raises(ValueError, match="protocol: 'windows' there"):
        counted(many, record)


def test_a_model_is_evaluated_with_confidence_and_windows(many, keras_file, tmp_path):
    model, record = tmp_path / "m.keras", tmp_path / "r.jsonl"
    model.write_bytes(keras_file.read_bytes())
    predictors = predictors_on_all_gpus(model, Protocol(largest_whole=48 * 80))
    report = evaluate_model(model, predictors, many, SPACE, record)
    assert report.in_windows == 4  # those of 64 x 96
    assert report.calibration[:, 0].sum() == report.confusion.sum()
    assert report.calibration[:, 1].sum() == np.trace(report.confusion)
    assert 0 < report.expected_calibration_error < 1
    assert "4 of them too large for that, in windows" in report.table()
    other = LabelSpace(("ground", "box", "ring"))
    with pytest.raises(ValueError, match=r"same classes. Received: .*disc in the model"):
        evaluate_model(model, predictors, many, other)
    # A changed model does not go on with the counts of another.
    model.write_bytes(b"others")
    with pytest.raises(ValueError, match="holds another evaluation:\n  model:"):
        evaluate_model(model, predictors, many, SPACE, record)


def test_the_numbers_agree_with_torchmetrics():
    """Random maps with ignored pixels and absent classes."""
    try:
        import torch
        from torchmetrics.functional import classification as independent
    except ImportError:
        absent("torchmetrics is not installed")
    rng = np.random.default_rng(0)
    for n in range(3, 12):
        there = np.flatnonzero(rng.random(n) < 0.7)
        there = there if len(there) else np.array([0])
        truth = rng.choice([*there, 255], (4, 17, 23)).astype(np.uint8)
        predicted = rng.choice(there, (4, 17, 23)).astype(np.uint8)
        pairs = zip(truth, predicted, strict=True)
        scores = [score_image(str(i), t, p, n) for i, (t, p) in enumerate(pairs)]
        report = Report([f"c{i}" for i in range(n)], scores)
        maps = [torch.from_numpy(x.astype(np.int64)) for x in (predicted, truth)]
        labels = np.union1d(truth[truth != 255], predicted[truth != 255])
        assert np.isnan(report.iou[np.setdiff1d(np.arange(n), labels)]).all()
        for name, average, found in (
            ("jaccard_index", "none", report.iou),
            ("precision", "none", report.precision),
            ("recall", "none", report.recall),
            ("jaccard_index", "macro", report.mean_iou),
            ("jaccard_index", "weighted", report.frequency_weighted_iou),
            ("accuracy", "micro", report.pixel_accuracy),
        ):
            function = getattr(independent, f"multiclass_{name}")
            expected = function(*maps, num_classes=n, average=average, ignore_index=255).numpy()
            chosen = labels if average == "none" else ()
            np.testing.assert_allclose(np.nan_to_num(found)[chosen], expected[chosen], rtol=1e-6)


def test_cityscapes_numbers_agree_with_its_scripts(tmp_path):
    """`cityscapesscripts` on files as its server takes them, ours on the same predictions."""
    try:
        from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official  # noqa: N813
    except ImportError:
        absent("cityscapesscripts is not installed")
    rng = np.random.default_rng(0)
    predictions, truths, scores = [], [], []
    for index in range(3):
        name = f"city_{index:06d}_000019"
        ids = rng.integers(0, 34, (8, 16)).astype(np.uint8)  # all labelIds, void ones too
        label = np.kron(ids, np.ones((4, 4), np.uint8))
        truth = CITYSCAPES.encode(label)
        found = np.where(rng.random(label.shape) < 0.6, truth, rng.integers(0, 16, label.shape))
        found = np.where(found == 255, 3, found).astype(np.uint8)
        truths.append(str(tmp_path / f"{name}_gtFine_labelIds.png"))
        Image.fromarray(label).save(truths[-1])
        prediction = Prediction(np.zeros((*label.shape, 3), np.uint8), found, CITYSCAPES)
        predictions += map(str, prediction.save(tmp_path, f"{name}_leftImg8bit", ["cityscapes"]))
        scores.append(score_image(name, truth, found, 19))
    report = Report(CITYSCAPES.classes, scores)

    official.args.evalInstLevelScore = False  # it calls a function that NumPy 2.4 lacks
    official.args.JSONOutput = official.args.bold = False
    official.args.quiet = True
    result = official.evaluateImgLists(predictions, truths, official.args)
    expected = [result["classScores"][name] for name in CITYSCAPES.classes]
    np.testing.assert_array_equal(report.iou, expected)
    assert report.mean_iou == pytest.approx(result["averageScoreClasses"], rel=1e-15)


TWO_DEVICES = """
import json, sys
from pathlib import Path
import numpy as np
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from alignseg_tf import Predictor
from alignseg_tf.data.label_space import LabelSpace
from alignseg_tf.data.listing import read_folder
from alignseg_tf.evaluation import evaluate
folder = Path(sys.argv[1])
predictors = [Predictor(folder / "m.keras", device=f"CPU:{i}") for i in range(2)]
for i, predictor in enumerate(predictors):
    logits = predictor.network.logits(np.zeros((1, 64, 64, 3), np.uint8))
    assert logits.device.endswith(f"CPU:{i}"), logits.device
samples = read_folder(folder / "data", "val")
report = evaluate(predictors, samples, LabelSpace(("ground", "box", "disc")))
(folder / "two.json").write_text(json.dumps(report.to_dict()))
"""


@pytest.mark.slow
def test_two_logical_devices_give_the_same_counts(tmp_path):
    """A model on each of two devices, in a new process since devices are fixed at start."""
    data = write_folder(tmp_path / "data", 1, 6)
    shared_tiny_model(label_space=SPACE.to_dict()).save(tmp_path / "m.keras")
    command = [sys.executable, "-c", TWO_DEVICES, tmp_path]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    one = evaluate(Predictor(tmp_path / "m.keras"), read_folder(data, "val"), SPACE)
    assert json.loads((tmp_path / "two.json").read_text()) == json.loads(json.dumps(one.to_dict()))
