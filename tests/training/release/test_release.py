"""What a release writes."""

import zipfile

import keras
import numpy as np
import pytest
from conftest import CLASSES, ROOT, tiny_model

from alignseg_tf import Predictor
from alignseg_tf.data.label_space import LabelSpace
from alignseg_tf.data.readers import load_image
from alignseg_tf.data.sources import open_data
from alignseg_tf.evaluation.evaluator import evaluate
from alignseg_tf.evaluation.provenance import known_facts
from alignseg_tf.export.model_card import model_card
from alignseg_tf.prediction.protocol import Protocol
from alignseg_tf.system.files import RECORD_FILE, write_text
from training.release import __main__ as release


def test_values_are_rounded_to_significant_bits():
    values = np.array([1.0, 1.0 + 2**-8, 1.0 + 2**-9, 1 + 3 * 2**-9, -3e-30, 0.0], "float32")
    rounded = release.rounded(values, 9)
    assert rounded.dtype == np.float32
    # 9 bits: steps of 2 ** -8 from 1 to 2; halves go to the even neighbour.
    np.testing.assert_array_equal(rounded[:4], [1.0, 1 + 2**-8, 1.0, 1 + 2**-7])
    assert rounded[4] == pytest.approx(-3e-30, rel=2**-9)
    noise = np.random.default_rng(0).normal(size=10_000).astype("float32")
    error = np.abs(release.rounded(noise, 9) / noise - 1)
    assert 2**-10 < error.max() <= 2**-9


def test_a_packed_file_is_small_and_loads_as_any_other(model, tmp_path):
    model.save(tmp_path / "whole.keras")
    model = keras.saving.load_model(tmp_path / "whole.keras")
    before = {weight.path: weight.numpy() for weight in model.weights}
    release.save_packed(model, tmp_path / "packed.keras")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["packed.keras", "whole.keras"]
    with zipfile.ZipFile(tmp_path / "packed.keras") as archive:
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_LZMA}
    sizes = [(tmp_path / f"{name}.keras").stat().st_size for name in ("packed", "whole")]
    assert sizes[0] < 0.6 * sizes[1]
    changed = 0
    for weight in keras.saving.load_model(tmp_path / "packed.keras").weights:
        old, new = before[weight.path], weight.numpy()
        np.testing.assert_allclose(new, old, rtol=2**-9)
        large = old.ndim > 1 and old.size >= 1024
        changed += large
        assert large or (new == old).all()
    assert changed > 5


@pytest.fixture(scope="module")
def model():
    return tiny_model(aggregation="bilinear", label_space=LabelSpace(CLASSES).to_dict())


@pytest.fixture
def trained(model, folder, tmp_path):
    """The file of a training run, its data, and a clone with an older release."""
    (tmp_path / "run").mkdir()
    model.save(tmp_path / "run" / "best.keras")
    (tmp_path / "run" / "run.json").write_text('{"epochs": 70}')
    root = tmp_path / "clone"
    older = {
        "alignseg_tf/weights/boxes.keras": "older",
        "alignseg_tf/weights/boxes.about.md": "Older boxes.",
        "alignseg_tf/weights/boxes.evaluation.json": '{"mean_iou": 0, "protocol": "whole"}',
        "savedmodels/boxes/1/saved_model.pb": "older",
        "savedmodels/boxes/MODEL_CARD.md": model_card(model, "boxes", None),
    }
    for file, content in older.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(content)
    return tmp_path / "run" / "best.keras", open_data(folder), root


def files_in(root):
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if not p.is_dir())


@pytest.mark.slow
def test_all_forms_are_of_the_packed_model(trained):
    pytest.importorskip("ai_edge_litert")
    source, data, root = trained
    flip = Protocol(flip=True)
    release.release(source, "boxes", data, "Drawn boxes, CC0.", (64, 96), flip, root=root)
    folder = root / "savedmodels" / "boxes"
    assert sorted(p.name for p in root.iterdir()) == ["alignseg_tf", "savedmodels"]
    assert sorted(p.name for p in folder.iterdir()) == [
        RECORD_FILE, "1", "MODEL_CARD.md", "boxes.keras", "boxes.tflite"
    ]  # fmt: skip
    assert (folder / "boxes.keras").readlink().parts[:2] == ("..", "..")
    packed = root / "alignseg_tf" / "weights" / "boxes.keras"
    assert (folder / "boxes.keras").samefile(packed)
    card = (folder / "MODEL_CARD.md").read_text()
    for said in ("# boxes\n", "Drawn boxes, CC0.", "| epochs | 70 |", "computation in float32"):
        assert said in card
    # The quality is that of the packed file.
    report = evaluate(Predictor(packed, flip), data.samples("val"), data.label_space)
    assert f"Mean IoU {100 * report.mean_iou:.2f} %" in card
    image = load_image(data.samples("train")[0].image)
    class_maps = [
        Predictor(folder / name).class_map(image) for name in ("boxes.keras", "1", "boxes.tflite")
    ]
    assert (class_maps[0] == class_maps[1]).mean() > 0.99
    # Random weights are no easy thing for 8 bits.
    assert (class_maps[0] == class_maps[2]).mean() > 0.8


def test_a_release_of_the_file_alone(trained):
    source, data, root = trained
    release.release(source, "boxes", data, "Drawn boxes, CC0.", root=root)
    assert files_in(root) == [
        "alignseg_tf/weights/boxes.about.md", "alignseg_tf/weights/boxes.evaluation.json",
        "alignseg_tf/weights/boxes.keras", "alignseg_tf/weights/boxes.run.json",
        f"savedmodels/boxes/{RECORD_FILE}", "savedmodels/boxes/MODEL_CARD.md",
        "savedmodels/boxes/boxes.keras",
    ]  # fmt: skip
    facts = known_facts(root / "savedmodels" / "boxes" / "boxes.keras")  # a link, as users have it
    assert facts["run"] == {"epochs": 70}
    assert facts["about"] == "Drawn boxes, CC0."
    assert 0 <= facts["quality"]["mean_iou"] <= 1
    card = (root / "savedmodels" / "boxes" / "MODEL_CARD.md").read_text()
    assert "serve_bytes" not in card
    assert "alignseg_tf export" in card


def test_an_unpackaged_release_leaves_the_package_alone(trained):
    source, data, root = trained
    with pytest.raises(ValueError, match="boxes is in the package"):
        release.release(source, "boxes", data, "Boxes.", packaged=False, root=root)
    before = files_in(root)
    written = release.release(source, "twin", data, "Boxes.", packaged=False, root=root)
    folder = root / "savedmodels" / "twin"
    names = [
        "MODEL_CARD.md",
        *(f"twin.{x}" for x in ("about.md", "evaluation.json", "keras", "run.json")),
    ]
    assert written == [folder / name for name in names]
    names = [RECORD_FILE, *names]
    assert files_in(root) == before + [f"savedmodels/twin/{name}" for name in names]
    assert (root / "alignseg_tf" / "weights" / "boxes.keras").read_text() == "older"
    assert not (folder / "twin.keras").is_symlink()
    assert known_facts(folder / "twin.keras")["run"] == {"epochs": 70}


def test_a_release_that_fails_leaves_the_older_one(trained, monkeypatch):
    source, data, root = trained
    before = files_in(root)

    def fails(*arguments, **options):
        raise ValueError("does not agree")

    monkeypatch.setattr(release, "export_saved_model", fails)
    with pytest.raises(ValueError, match="does not agree"):
        release.release(source, "boxes", data, "Boxes.", (64, 96), root=root)
    source.with_name("run.json").write_text("{half")
    with pytest.raises(ValueError, match="run.json: expected the values of a training run"):
        release.release(source, "boxes", data, "Boxes.", root=root)
    assert files_in(root) == before
    assert (root / "alignseg_tf" / "weights" / "boxes.keras").read_text() == "older"


@pytest.mark.parametrize("file", ["2/saved_model.pb", "boxes.keras"])
def test_a_release_replaces_only_a_release(trained, file):
    source, data, root = trained
    if file == "boxes.keras":  # in the package, without what a release writes beside it
        (root / "alignseg_tf" / "weights" / "boxes.about.md").unlink()
    else:
        write_text(root / "savedmodels" / "boxes" / file, "mine")
    before = files_in(root)
    with pytest.raises(ValueError, match=f"Received: {file}"):
        release.release(source, "boxes", data, "Boxes.", root=root)
    assert files_in(root) == before
    assert (root / "alignseg_tf" / "weights" / "boxes.keras").read_text() == "older"
    if file == "boxes.keras":
        return
    release.release(source, "boxes", data, "Boxes.", root=root, overwrite=True)
    assert known_facts(root / "savedmodels/boxes/boxes.keras")["run"] == {"epochs": 70}
    source.with_name("run.json").unlink()  # nothing remains of the run of an older model
    release.release(source, "boxes", data, "Boxes.", root=root)
    assert known_facts(root / "savedmodels/boxes/boxes.keras")["run"] is None


def test_bad_input_is_named(tmp_path, folder, capsys):
    arguments = ["gone.keras", "--name", "boxes", "--data", str(folder)]
    assert release.main([*arguments, "--about", str(tmp_path / "gone.md")]) == 2
    assert "gone.md" in capsys.readouterr().err
    (tmp_path / "about.md").write_text("Boxes.")
    assert release.main([*arguments, "--about", str(tmp_path / "about.md")]) == 2
    assert "gone.keras: no such file" in capsys.readouterr().err
    assert not (ROOT / "alignseg_tf" / "weights" / "boxes.keras").exists()
