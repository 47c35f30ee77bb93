import dataclasses
import json

import numpy as np
import pytest

from alignseg_tf.data.catalog import CAMVID, CITYSCAPES, IGNORE, LabelSpace, default_palette


def test_encode_maps_file_values_to_ids():
    space = LabelSpace(("a", "b"), void=9, ids=(3, 5))
    values = np.array([[3, 5, 9]], np.uint8)
    np.testing.assert_array_equal(space.encode(values), [[0, 1, IGNORE]])
    assert space.encode(values).dtype == np.uint8


def test_encode_names_unknown_values():
    space = LabelSpace(("a", "b"))
    with pytest.raises(ValueError, match=r"unknown label values \[2, 7\]: .* 0\.\.1, void is 255"):
        space.encode(np.array([[0, 2, 7, 255]], np.uint8))


def test_cityscapes_ids_are_the_evaluated_classes():
    """As the data set's own table of labels has it: e.g. road 7, car 26, bicycle 33."""
    values = np.array([[0, 6, 7, 8, 9, 26, 29, 33, 255]], np.uint8)
    np.testing.assert_array_equal(
        CITYSCAPES.encode(values), [[255, 255, 0, 1, 255, 13, 255, 18, 255]]
    )
    assert CITYSCAPES.classes[13] == "car"
    assert CITYSCAPES.num_classes == 19


def test_camvid_agrees_with_its_files():
    from conftest import SHARED

    path = SHARED / "data" / "camvid" / "classes.json"
    if not path.is_file():
        pytest.skip("the CamVid pictures, ../shared/data, are not here")
    assert LabelSpace.from_file(path) == CAMVID


def test_palettes_differ():
    assert len(set(default_palette(150))) == 150


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not readable as JSON"),
        ("[]", "list of names under 'classes'"),
        ({"classes": []}, "list of names under 'classes'"),
        ({"classes": "road"}, "list of names under 'classes'"),
        ({"classes": ["a", "a"]}, "must differ"),
        ({"classes": ["a"], "palette": []}, None),
        ({"classes": ["a"], "palette": [[1, 2]]}, "not enough values to unpack"),
        ({"classes": ["a"], "palette": [[1, 2, 300]]}, "0..255"),
        ({"classes": ["a", "b"], "void": 1}, "must all differ"),
        ({"classes": ["a"], "void": 256}, "must be 0..255"),
        ({"classes": ["a"], "void": "x"}, "invalid literal"),
        ({"classes": [str(i) for i in range(256)]}, "1 to 255 names"),
    ],
)
def test_classes_json_is_checked(tmp_path, content, message):
    path = tmp_path / "classes.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    if message is None:
        assert LabelSpace.from_file(path).palette == default_palette(1)
        return
    with pytest.raises(ValueError, match=message) as error:
        LabelSpace.from_file(path)
    assert str(path) in str(error.value)


def test_a_built_in_label_space_by_name(tmp_path):
    path = tmp_path / "classes.json"
    path.write_text('{"label_space": "cityscapes"}')
    assert LabelSpace.from_file(path) is CITYSCAPES
    path.write_text('{"label_space": "mars"}')
    with pytest.raises(ValueError, match=r"one of \['street_scenes', .* Received: 'mars'"):
        LabelSpace.from_file(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere.json: no such file"):
        LabelSpace.from_file(tmp_path / "nowhere.json")


def test_round_trip():
    assert LabelSpace.from_dict(CAMVID.to_dict()) == CAMVID


def test_colours_become_ids():
    space = LabelSpace(
        ("a", "b"), colors=(((255, 0, 0), (250, 0, 0)), ((0, 0, 255),)), void_colors=((0, 0, 0),)
    )
    assert space.palette == ((255, 0, 0), (0, 0, 255))
    image = np.array([[[250, 0, 0], [255, 0, 0]], [[0, 0, 255], [0, 0, 0]]], np.uint8)
    assert space.encode(image).tolist() == [[0, 0], [1, IGNORE]]
    image[1, 0] = (0, 1, 255)
    with pytest.raises(ValueError, match=r"unknown label colours \[\(0, 1, 255\)\], in 1 pixels"):
        space.encode(image)
    lenient = dataclasses.replace(space, ignore_unlisted=True)
    assert lenient.encode(image).tolist() == [[0, 0], [IGNORE, IGNORE]]


def test_bad_colours_are_refused():
    with pytest.raises(ValueError, match="one or more colours for each of the 2 classes"):
        LabelSpace(("a", "b"), colors=(((1, 2, 3),),))
    with pytest.raises(ValueError, match=r"Received twice: \[\(1, 2, 3\)\]"):
        LabelSpace(("a",), colors=(((1, 2, 3),),), void_colors=((1, 2, 3),))
    with pytest.raises(ValueError, match="must be \\[r, g, b\\] of 0..255"):
        LabelSpace(("a",), colors=(((1, 2, 300),),))


def test_colours_in_a_file(tmp_path):
    (tmp_path / "classes.json").write_text(
        '{"classes": ["a", "b"], "colors": [[9, 0, 0], [[0, 9, 0], [0, 8, 0]]],'
        ' "void_colors": [[0, 0, 0]]}'
    )
    space = LabelSpace.from_file(tmp_path / "classes.json")
    assert space.colors == (((9, 0, 0),), ((0, 9, 0), (0, 8, 0)))
