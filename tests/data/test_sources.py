import argparse
import functools
import json

import pytest
from conftest import CLASSES

from alignseg_tf.commands.options import add_data_arguments, data_from_arguments
from alignseg_tf.data.datasets import street_painter
from alignseg_tf.data.datasets.catalog import LABEL_SPACES
from alignseg_tf.data.listing import DataError
from alignseg_tf.data.sources import cache_folder, open_data


def parse(*words, positional=False):
    parser = argparse.ArgumentParser()
    add_data_arguments(parser, positional)
    return parser.parse_args(words)


def test_the_command_line_names_a_folder(folder):
    for arguments in (parse("--data", str(folder)), parse(str(folder), positional=True)):
        data = data_from_arguments(arguments)
        assert data.label_space.classes == CLASSES
        assert [len(data.samples(split)) for split in ("train", "val")] == [6, 2]


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.delenv("ALIGNSEG_TF_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "alignseg_tf"
    monkeypatch.setenv("ALIGNSEG_TF_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"


def test_street_scenes_are_drawn_into_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("ALIGNSEG_TF_CACHE", str(tmp_path))
    few = functools.partial(street_painter.write_folder, train=2, val=1, size=(64, 96))
    monkeypatch.setattr(street_painter, "write_folder", few)
    data = open_data("street_scenes")
    assert data.root == tmp_path / "street_scenes"
    assert data.label_space == LABEL_SPACES["street_scenes"]
    assert len(data.samples("train")) == 2


def test_a_label_space_can_be_given(folder, tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps({"classes": ["a", "b", "c"]}))
    arguments = parse("--data", str(folder), "--label-space", str(tmp_path / "mine.json"))
    assert data_from_arguments(arguments).label_space.classes == ("a", "b", "c")
    (folder / "classes.json").unlink()
    assert open_data(folder, label_space="camvid").label_space == LABEL_SPACES["camvid"]
    with pytest.raises(DataError, match="--label-space: expected one of .*camvid.*'camvit'"):
        open_data(folder, label_space="camvit")
    (tmp_path / "mine.json").write_text("{}")
    with pytest.raises(DataError, match=r"mine\.json: expected an object with a list of names"):
        open_data(folder, label_space=tmp_path / "mine.json")


def test_what_does_not_belong_together_is_refused(folder):
    with pytest.raises(DataError, match=r"--train-split and --val-split: expected data tfds:NAME"):
        data_from_arguments(parse("--data", str(folder), "--val-split", "test"))
    with pytest.raises(DataError, match="no --layout, since it becomes a folder. Received: 'csv'"):
        data_from_arguments(parse("--data", "tfds:anything", "--layout", "csv"))
    with pytest.raises(DataError, match="--layout: expected one of csv.*'cvs'"):
        open_data(folder, layout="cvs")
