"""Each data set in its own layout, from the command line to an evaluated model."""

import pytest
from data_fixtures import FIXTURES, train_and_evaluate

from alignseg_tf.data.sources import open_data


@pytest.mark.slow
@pytest.mark.parametrize("layout", sorted(FIXTURES))
def test_a_data_set_trains_and_evaluates(layout, tmp_path):
    data = FIXTURES[layout](tmp_path / "data")
    report = train_and_evaluate(["--data", str(data), "--layout", layout], tmp_path)
    source = open_data(data)
    assert source.layout.name == layout
    assert list(report["iou"]) == list(source.label_space.classes)
    assert report["images"] == len(source.samples("val"))
