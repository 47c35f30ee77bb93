import json
import os
import threading

import numpy as np
import pytest
from conftest import CLASSES, absent, tiny_model, write_folder
from PIL import Image

from alignseg_tf import Predictor
from alignseg_tf.data.label_space import LabelSpace
from alignseg_tf.data.listing import DataError, read_folder
from alignseg_tf.data.readers import load_label
from alignseg_tf.evaluation.evaluator import evaluate, evaluate_model
from alignseg_tf.prediction.predictor import predictors_on_all_gpus
from alignseg_tf.prediction.protocol import Protocol

SPACE = LabelSpace(CLASSES)


def truth_of(samples):
    """A stand-in for a model that knows the labels; it tells images by their pixels."""
    from alignseg_tf.data.readers import load_image

    known = {load_image(s.image).tobytes(): load_label(s.label, SPACE) for s in samples}
    return lambda image: np.where((x := known[image.tobytes()]) > 2, 0, x).astype(np.uint8)


@pytest.fixture
def many(tmp_path):
    return read_folder(write_folder(tmp_path / "many", 1, 7, ((64, 96), (48, 80))), "val")


def test_the_truth_scores_one(folder):
    samples = read_folder(folder, "val")
    report = evaluate(truth_of(samples), samples, SPACE)
    assert report.mean_iou == 1.0
    assert report.images == 2
    assert report.confusion.sum() == 2 * 63 * 96
    np.testing.assert_array_equal(report.mean_boundary_f, 1.0)
    np.testing.assert_array_equal(report.mean_trimap_iou, 1.0)
    assert report.expected_calibration_error is None


@pytest.mark.parametrize(
    ("predict", "message"),
    [
        (lambda x: np.full(x.shape[:2], 3, np.uint8), r"000\.png: The model predicts class 3"),
        (lambda x: np.zeros((2, 2), np.uint8), r"000\.png: .*label's size \(64, 96\)"),
    ],
)
def test_predictions_that_do_not_fit_are_refused(folder, predict, message):
    with pytest.raises(ValueError, match=message):
        evaluate(predict, read_folder(folder, "val"), SPACE)


def test_blocks_are_checked_first_and_kept(many):
    with pytest.raises(ValueError, match="neighbouring images .* at least 1. Received: 0"):
        evaluate(lambda image: pytest.fail("it predicts"), many, SPACE, block=0)
    assert evaluate(truth_of(many), many, SPACE, block=3).block == 3


def test_an_unreadable_image_is_named(many):
    many[3].image.write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"003\.png: not readable"):
        evaluate(lambda x: np.zeros(x.shape[:2], np.uint8), many, SPACE)


def test_several_devices_share_the_images_and_count_the_same(many):
    one = evaluate(lambda x: x[..., 0] % 3, many, SPACE)
    calls, both, names = [0, 0], threading.Barrier(2, timeout=30), [None, None]

    def segment(which):
        def run(image):
            if calls[which] == 0:
                both.wait()  # neither goes on before the other one has an image too
            calls[which] += 1
            assert names[which] is None  # a device does one image at a time
            names[which] = threading.get_ident()
            found = image[..., 0] % 3
            names[which] = None
            return found

        return run

    two = evaluate([segment(0), segment(1)], many, SPACE)
    assert min(calls) >= 1
    assert sum(calls) == 7
    np.testing.assert_array_equal(one.confusion, two.confusion)
    assert [s.name for s in one.scores] == [s.name for s in two.scores]
    assert one.to_dict() == two.to_dict()


def test_an_interrupted_evaluation_goes_on(many, tmp_path):
    record, calls = tmp_path / "out" / "images.jsonl", []

    def segment(image):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return image[..., 0] % 3

    with pytest.raises(KeyboardInterrupt):
        evaluate(segment, many, SPACE, record=record, identity={"model": "m"})
    done = len(record.read_bytes().splitlines()) - 1
    assert 1 <= done <= 6
    with record.open("ab") as file:
        file.write(b'{"index": 6, "name"')  # what a kill in the middle of a line leaves
    calls[:] = [1] * 10
    report = evaluate(segment, many, SPACE, record=record, identity={"model": "m"})
    assert len(calls) - 10 == 7 - done
    whole = evaluate(lambda x: x[..., 0] % 3, many, SPACE)
    assert report.to_dict() == whole.to_dict()
    assert len(record.read_bytes().splitlines()) == 8
    evaluate(segment, many, SPACE, record=record, identity={"model": "m"})
    assert len(calls) - 10 == 7 - done


@pytest.mark.parametrize("what", ["model", "protocol", "encoding", "file"])
def test_a_record_of_something_else_is_refused(what, many, tmp_path):
    record = tmp_path / "images.jsonl"
    segment = lambda x: np.zeros(x.shape[:2], np.uint8)  # noqa: E731
    evaluate(segment, many, SPACE, record=record, identity={"model": "m"})
    before = record.read_bytes()
    identity, protocol, space = {"model": "m"}, "whole images", SPACE
    if what == "model":
        identity = {"model": "other"}
    if what == "protocol":
        protocol = "windows"
    if what == "encoding":
        space = LabelSpace(CLASSES, ids=(2, 1, 0))
    if what == "file":
        before = b'{"something": "else"}\nnot json\n'
        record.write_bytes(before)
    with pytest.raises(ValueError, match=r"images\.jsonl"):
        evaluate(segment, many, space, protocol=protocol, record=record, identity=identity)
    assert record.read_bytes() == before


def counted(many, record, calls):
    """Evaluate a stand-in for a model that notes how often it is called."""
    return evaluate(lambda x: calls.append(1) or x[..., 0] % 3, many, SPACE, record=record)


@pytest.mark.parametrize("what", ["image", "label"])
def test_what_has_another_content_is_evaluated_again_and_named(what, many, tmp_path, capsys):
    """The corrected file has the name, the size in pixels and the time of the one before."""
    record, calls = tmp_path / "images.jsonl", []
    before = counted(many, record, calls)
    path = getattr(many[2], what)
    time = path.stat().st_mtime_ns
    pixels = np.asarray(Image.open(path))
    Image.fromarray(pixels[::-1].copy()).save(path)
    os.utime(path, ns=(time, time))
    del calls[:]
    after = counted(many, record, calls)
    assert len(calls) == 1
    assert (
        f"1 images or their labels have changed, evaluating them again: {many[2].image.name}"
        in (capsys.readouterr().err)
    )
    assert after.to_dict() == counted(many, None, []).to_dict() != before.to_dict()
    del calls[:]
    assert counted(many, record, calls).to_dict() == after.to_dict()
    assert calls == []
    assert capsys.readouterr().err == ""


def test_added_and_removed_images_change_a_record(many, tmp_path, capsys):
    record, calls = tmp_path / "images.jsonl", []
    counted(many[:4], record, calls)
    report = counted([many[6], *many[2:5]], record, calls)
    assert len(calls) == 4 + 2
    assert report.images == 4
    gone = ", ".join(sample.image.name for sample in many[:2])
    assert f"2 images are no longer in the data: {gone}" in capsys.readouterr().err
    assert [score.name for score in report.scores] == [
        sample.image.name for sample in (many[6], *many[2:5])
    ]


def test_a_record_without_fingerprints_is_made_anew(many, tmp_path, capsys):
    record, calls = tmp_path / "images.jsonl", []
    whole = counted(many, record, calls)
    head, *lines = map(json.loads, record.read_text().splitlines())
    head = {"protocol": head["protocol"], "classes": head["classes"], "images": 7,
            "image names": "0" * 16}  # fmt: skip
    older = [{"index": i} | line for i, line in enumerate(lines)]
    record.write_text("".join(json.dumps(line) + "\n" for line in (head, *older)))
    del calls[:]
    assert counted(many, record, calls).to_dict() == whole.to_dict()
    assert len(calls) == 7
    assert "from an older version" in capsys.readouterr().err
    record.write_text(json.dumps(head | {"protocol": "windows"}) + "\n")
    with pytest.raises(ValueError, match="protocol: 'windows' there"):
        counted(many, record, calls)


def test_a_file_that_is_gone_is_named_before_the_first_image(many, tmp_path):
    many[3].label.unlink()
    with pytest.raises(DataError, match=r"003\.png: not readable"):
        counted(many, tmp_path / "r.jsonl", [])


def test_a_model_is_evaluated_with_confidence_and_windows(many, tmp_path):
    model = tiny_model(label_space=SPACE.to_dict())
    model.save(tmp_path / "m.keras")
    predictors = predictors_on_all_gpus(tmp_path / "m.keras", Protocol(largest_whole=48 * 80))
    report = evaluate_model(tmp_path / "m.keras", predictors, many, SPACE, tmp_path / "r.jsonl")
    assert report.in_windows == 4  # those of 64 x 96
    assert report.calibration[:, 0].sum() == report.confusion.sum()
    assert report.calibration[:, 1].sum() == np.trace(report.confusion)
    assert 0 < report.expected_calibration_error < 1
    assert "4 of them too large for that, in windows" in report.table()
    other = LabelSpace(("ground", "box", "ring"))
    with pytest.raises(ValueError, match=r"same classes. Received: .*disc in the model"):
        evaluate_model(tmp_path / "m.keras", predictors, many, other)
    # A changed model does not go on with the counts of another.
    (tmp_path / "m.keras").write_bytes(b"others")
    with pytest.raises(ValueError, match="holds another evaluation:\n  model:"):
        evaluate_model(tmp_path / "m.keras", predictors, many, SPACE, tmp_path / "r.jsonl")


def test_the_numbers_agree_with_torchmetrics():
    """Random maps with ignored pixels and absent classes."""
    try:
        import torch
        from torchmetrics.functional import classification as independent
    except ImportError:
        absent("torchmetrics is not installed")
    from alignseg_tf.evaluation.counts import score_image
    from alignseg_tf.evaluation.report import Report

    rng = np.random.default_rng(0)
    for _ in range(20):
        n = int(rng.integers(3, 12))
        there = np.flatnonzero(rng.random(n) < 0.7)
        there = there if len(there) else np.array([0])
        truth = rng.choice([*there, 255], (4, 17, 23)).astype(np.uint8)
        predicted = rng.choice(there, (4, 17, 23)).astype(np.uint8)
        pairs = zip(truth, predicted, strict=True)
        scores = [score_image(str(i), t, p, n) for i, (t, p) in enumerate(pairs)]
        report = Report([f"c{i}" for i in range(n)], scores)
        maps = [torch.from_numpy(x.astype(np.int64)) for x in (predicted, truth)]

        def expected(name, average, maps=maps, n=n):
            function = getattr(independent, f"multiclass_{name}")
            return function(*maps, num_classes=n, average=average, ignore_index=255).numpy()

        labels = np.union1d(truth[truth != 255], predicted[truth != 255])
        assert np.isnan(report.iou[np.setdiff1d(np.arange(n), labels)]).all()
        by_class = {
            "jaccard_index": report.iou, "precision": report.precision, "recall": report.recall
        }  # fmt: skip
        for name, found in by_class.items():
            np.testing.assert_allclose(
                np.nan_to_num(found[labels]), expected(name, "none")[labels], rtol=1e-6
            )
        assert report.mean_iou == pytest.approx(expected("jaccard_index", "macro"), rel=1e-6)
        weighted = expected("jaccard_index", "weighted")
        assert report.frequency_weighted_iou == pytest.approx(weighted, rel=1e-6)
        assert report.pixel_accuracy == pytest.approx(expected("accuracy", "micro"), rel=1e-6)


def test_cityscapes_numbers_agree_with_its_scripts(tmp_path):
    """`cityscapesscripts` on files as its server takes them, ours on the same predictions."""
    try:
        from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official  # noqa: N813
    except ImportError:
        absent("cityscapesscripts is not installed")
    from PIL import Image

    from alignseg_tf.data.datasets.cityscapes import CITYSCAPES
    from alignseg_tf.evaluation.counts import score_image
    from alignseg_tf.evaluation.report import Report
    from alignseg_tf.prediction.outputs import Prediction

    rng = np.random.default_rng(0)
    predictions, truths, scores = [], [], []
    for index in range(3):
        name = f"city_{index:06d}_000019"
        ids = rng.integers(0, 34, (8, 16)).astype(np.uint8)  # all labelIds, void ones too
        label = np.kron(ids, np.ones((4, 4), np.uint8))
        truth = CITYSCAPES.encode(label)
        found = np.where(rng.random(label.shape) < 0.6, truth, rng.integers(0, 16, label.shape))
        found = np.where(found == 255, 3, found).astype(np.uint8)
        Image.fromarray(label).save(tmp_path / f"{name}_gtFine_labelIds.png")
        truths.append(str(tmp_path / f"{name}_gtFine_labelIds.png"))
        image = np.zeros((*label.shape, 3), np.uint8)
        prediction = Prediction(image, found, CITYSCAPES)
        predictions += map(str, prediction.save(tmp_path, f"{name}_leftImg8bit", ["cityscapes"]))
        scores.append(score_image(name, truth, found, 19))
    report = Report(CITYSCAPES.classes, scores)

    official.args.evalInstLevelScore = False  # it calls a function that NumPy 2.4 lacks
    official.args.JSONOutput = official.args.quiet = official.args.bold = False
    official.args.quiet = True
    result = official.evaluateImgLists(predictions, truths, official.args)
    for name, iou in zip(CITYSCAPES.classes, report.iou, strict=True):
        expected = result["classScores"][name]
        assert (np.isnan(iou) and np.isnan(expected)) or iou == expected, name
    assert report.mean_iou == pytest.approx(result["averageScoreClasses"], rel=1e-15)


@pytest.mark.slow
def test_two_logical_devices_give_the_same_counts(tmp_path):
    """A model on each of two devices, in a process of its own since devices are fixed at start."""
    import subprocess
    import sys

    data = write_folder(tmp_path / "data", 1, 6)
    tiny_model(label_space=SPACE.to_dict()).save(tmp_path / "m.keras")
    code = (
        "import json, sys\n"
        "from pathlib import Path\n"
        "import numpy as np\n"
        "import tensorflow as tf\n"
        "cpu = tf.config.list_physical_devices('CPU')[0]\n"
        "tf.config.set_logical_device_configuration("
        "cpu, [tf.config.LogicalDeviceConfiguration()] * 2)\n"
        "from alignseg_tf import Predictor\n"
        "from alignseg_tf.data.label_space import LabelSpace\n"
        "from alignseg_tf.data.listing import read_folder\n"
        "from alignseg_tf.evaluation import evaluate\n"
        "folder = Path(sys.argv[1])\n"
        "predictors = [Predictor(folder / 'm.keras', device=f'CPU:{i}') for i in range(2)]\n"
        "for i, predictor in enumerate(predictors):\n"
        "    logits = predictor.network.logits(np.zeros((1, 64, 64, 3), np.uint8))\n"
        "    assert logits.device.endswith(f'CPU:{i}'), logits.device\n"
        "samples = read_folder(folder / 'data', 'val')\n"
        "report = evaluate(predictors, samples, LabelSpace(('ground', 'box', 'disc')))\n"
        "(folder / 'two.json').write_text(json.dumps(report.to_dict()))\n"
    )
    result = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    one = evaluate(Predictor(tmp_path / "m.keras"), read_folder(data, "val"), SPACE)
    assert json.loads((tmp_path / "two.json").read_text()) == json.loads(json.dumps(one.to_dict()))
