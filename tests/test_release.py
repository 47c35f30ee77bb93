"""What a release writes."""

import zipfile

import keras
import numpy as np
import pytest
from conftest import CLASSES, ROOT, random_images, tiny_model

from alignseg_tf import Predictor
from alignseg_tf.data.catalog import LabelSpace
from training import release


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


def test_a_packed_file_is_small_and_loads_as_any_other(tmp_path):
    model = tiny_model()
    model.save(tmp_path / "whole.keras")
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


@pytest.mark.slow
def test_all_forms_are_of_the_packed_model(tmp_path, capsys):
    pytest.importorskip("ai_edge_litert")
    model = tiny_model(aggregation="bilinear", label_space=LabelSpace(CLASSES).to_dict())
    (tmp_path / "run").mkdir()
    model.save(tmp_path / "run" / "best.keras")
    (tmp_path / "run" / "run.json").write_text('{"epochs": 70}')
    pictures = list(random_images(4, 64, 96))
    root = tmp_path / "clone"
    release.release(
        tmp_path / "run" / "best.keras", "boxes", pictures, pictures[:1], (64, 96),
        "Drawn boxes, CC0.", None, root,
    )  # fmt: skip
    folder = root / "savedmodels" / "boxes"
    assert sorted(p.name for p in folder.iterdir()) == [
        "1", "MODEL_CARD.md", "boxes.keras", "boxes.tflite"
    ]  # fmt: skip
    assert (folder / "boxes.keras").readlink().parts[:2] == ("..", "..")
    assert (folder / "boxes.keras").samefile(root / "alignseg_tf" / "weights" / "boxes.keras")
    card = (folder / "MODEL_CARD.md").read_text()
    assert "Drawn boxes, CC0." in card
    assert "| epochs | 70 |" in card
    class_maps = [
        Predictor(folder / name).class_map(pictures[0])
        for name in ("boxes.keras", "1", "boxes.tflite")
    ]
    assert (class_maps[0] == class_maps[1]).mean() > 0.99
    # Random weights are no easy thing for 8 bits.
    assert (class_maps[0] == class_maps[2]).mean() > 0.8


def test_bad_input_is_named(tmp_path, folder, capsys):
    arguments = ["gone.keras", "--name", "boxes", "--size", "64", "96", "--data", str(folder)]
    assert release.main([*arguments, "--about", str(tmp_path / "gone.md")]) == 2
    assert "gone.md" in capsys.readouterr().err
    (tmp_path / "about.md").write_text("Boxes.")
    assert release.main([*arguments, "--about", str(tmp_path / "about.md")]) == 2
    assert "gone.keras: no such file" in capsys.readouterr().err
    assert not (ROOT / "alignseg_tf" / "weights" / "boxes.keras").exists()
