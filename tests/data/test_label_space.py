import dataclasses
import json
import os
import zlib

import numpy as np
import pytest
from conftest import SHARED, absent

from alignseg_tf.data.datasets.ade20k import ADE20K
from alignseg_tf.data.datasets.camvid import CAMVID, CAMVID_COLOR, CAMVID_ORIGINAL, SEGNET_CAMVID
from alignseg_tf.data.datasets.catalog import LABEL_SPACES, label_space_from_file
from alignseg_tf.data.datasets.cityscapes import CITYSCAPES, CITYSCAPES_TRAIN_IDS
from alignseg_tf.data.datasets.oxford_iiit_pet import OXFORD_IIIT_PET
from alignseg_tf.data.datasets.pascal_context import PASCAL_CONTEXT
from alignseg_tf.data.datasets.pascal_voc import PASCAL_VOC
from alignseg_tf.data.label_space import (
    IGNORE,
    LabelSpace,
    class_columns,
    default_palette,
    voc_palette,
)


def test_encode_maps_file_values_to_ids():
    space = LabelSpace(("a", "b"), void=9, ids=(3, 5))
    assert space.encode(np.array([[3, 5, 9]], np.uint8)).tolist() == [[0, 1, IGNORE]]
    assert SEGNET_CAMVID.encode(np.array([[0, 10, 11]], np.uint8)).tolist() == [[0, 10, IGNORE]]
    assert OXFORD_IIIT_PET.encode(np.array([[1, 2, 3]], np.uint8)).tolist() == [[0, 1, IGNORE]]
    assert CAMVID_COLOR.decode(np.array([[4, IGNORE]])).tolist() == [[[0, 0, 192], [0, 0, 0]]]
    assert LabelSpace.from_dict(CAMVID.to_dict()) == CAMVID
    assert len(set(default_palette(150))) == 150


def test_cityscapes_train_ids_number_the_evaluated_classes():
    """As cityscapesscripts makes them: trainId 0, 1, ... in the order of the ids, else 255."""
    ids = np.arange(34, dtype=np.uint8)
    train_ids = np.full(34, 255, np.uint8)
    train_ids[[7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33]] = range(19)
    np.testing.assert_array_equal(CITYSCAPES.encode(ids), train_ids)
    np.testing.assert_array_equal(CITYSCAPES_TRAIN_IDS.encode(train_ids), train_ids)
    assert CITYSCAPES.classes == CITYSCAPES_TRAIN_IDS.classes
    assert CITYSCAPES.num_classes == 19
    names = ["road", "building", "sky", "car", "bicycle"]
    assert [CITYSCAPES.classes[i] for i in (0, 2, 10, 13, 18)] == names


@pytest.mark.parametrize("name", LABEL_SPACES)
def test_decode_writes_what_encode_reads(name):
    space = LABEL_SPACES[name]
    ids = np.array([[*range(space.num_classes), IGNORE, 0]], np.uint8)
    values = space.decode(ids)
    assert values.dtype == np.uint8
    assert values.shape == ((*ids.shape, 3) if space.colors else ids.shape)
    np.testing.assert_array_equal(space.encode(values), ids)


def test_unknown_values_and_ids_are_named():
    unknown = r"unknown label values \[19, 27\]: .* 0\.\.18, void is 255"
    with pytest.raises(ValueError, match=unknown):
        CITYSCAPES_TRAIN_IDS.encode(np.array([[0, 19, 27, 255]], np.uint8))
    with pytest.raises(ValueError, match=r"expected 0\.\.18 and, .* 255. Received: \[19, 200\]"):
        CITYSCAPES.decode(np.array([[0, 19, 200]], np.uint8))
    space = LabelSpace(("a",), colors=(((9, 9, 9),),))
    with pytest.raises(ValueError, match=r"if there are `void_colors`, 255. Received: \[255\]"):
        space.decode(np.array([[255]]))
    space = dataclasses.replace(space, void_colors=((1, 2, 3),))
    assert space.decode(np.array([[0, 255]])).tolist() == [[[9, 9, 9], [1, 2, 3]]]


def test_ade20k_is_that_of_gluoncv():
    """File values as in the data set's objectInfo150.txt; sums of GluonCV 0.10.5's lists."""
    assert ADE20K.ids == tuple(range(1, 151))
    assert ADE20K.encode(np.array([[0, 1, 150]], np.uint8)).tolist() == [[IGNORE, 0, 149]]
    assert [ADE20K.classes[i] for i in (0, 12, 20, 149)] == ["wall", "person", "car", "flag"]
    assert zlib.crc32(",".join(ADE20K.classes).encode()) == 3338853938
    assert zlib.crc32(np.array(ADE20K.palette, np.uint8).tobytes()) == 3620555175


def test_voc_palette_is_the_development_kits():
    """The colours that its documentation shows: person, train, and the border of 255."""
    palette = voc_palette(256)
    assert palette[:5] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128))
    assert (palette[15], palette[19]) == ((192, 128, 128), (128, 192, 0))
    assert (palette[20], palette[255]) == ((0, 64, 128), (224, 224, 192))
    assert len(set(palette)) == 256


def test_pascal_classes():
    """The 59 of Context are in alphabetical order; VOC's are among them, the table renamed."""
    voc, context = PASCAL_VOC.classes, PASCAL_CONTEXT.classes
    assert (len(voc), voc[0], voc[15], voc[20]) == (21, "background", "person", "tvmonitor")
    assert list(voc[1:]) == sorted(voc[1:])
    assert PASCAL_VOC.void == 255
    assert (len(context), context[45]) == (59, "sign")
    assert list(context) == sorted(context)
    assert set(voc) - set(context) == {"background", "diningtable"}
    assert PASCAL_CONTEXT.encode(np.array([[0, 1, 59]], np.uint8)).tolist() == [[IGNORE, 0, 58]]


def test_camvid_original_has_32_colours():
    """Each of a pixel's channels is 0, 64, 128 or 192, and no two classes share a colour."""
    assert tuple(CAMVID_ORIGINAL) == CAMVID.classes
    colors = [color for group in CAMVID_ORIGINAL.values() for color in group.values()]
    assert len(colors) == 31
    assert len({*colors, (0, 0, 0)}) == 32
    assert {value for color in colors for value in color} == {0, 64, 128, 192}
    # Where SegNet's legend has the colours of the original, they are the first of the class.
    differ = [i for i, c in enumerate(CAMVID_COLOR.colors) if c[0] != CAMVID.palette[i]]
    assert [CAMVID.classes[i] for i in differ] == ["pavement"]
    assert CAMVID_COLOR.palette == CAMVID.palette


def test_camvid_agrees_with_its_files():
    path = SHARED / "data" / "camvid" / "classes.json"
    if not path.is_file():
        absent("the CamVid images, ../shared/data, are not here")
    assert label_space_from_file(path) == CAMVID


LIST_OF_NAMES = "list of names under 'classes'"
WHOLE_NUMBERS = "'ids': expected a list of whole numbers. Received: "
COLORS = "expected a list of colours .* Received: "


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not readable as JSON"),
        ("[]", LIST_OF_NAMES),
        ({"classes": "road"}, LIST_OF_NAMES),
        ({"classes": ["a", "a"]}, "names that differ"),
        ({"classes": ["a", " "]}, "the class name ' ' is blank"),
        ({"classes": ["a\x1b[31m"]}, r"the class name 'a\\x1b\[31m' has the character U\+001B"),
        ('{"classes": ["\\ud800"]}', r"the class name '\\ud800' has the character U\+D800"),
        ({"classes": ["a\u2028"]}, r"has the character U\+2028"),
        ({"classes": ["a\u200cb", "$x_1$", "=1+1", "👩\u200d🚒"]}, None),
        ({"classes": [str(i) for i in range(256)]}, "1 to 255 names"),
        ({"palette": []}, None),
        ({"palette": [[1, 2]]}, r"`palette`: expected \[r, g, b\] .* Received: \(\(1, 2\),"),
        ({"palette": [[1, 2, 300]]}, "0..255"),
        ({"palette": ["#ff0000"]}, f"'palette': {COLORS}'#ff0000'"),
        ({"palette": ["123"]}, f"'palette': {COLORS}'123'"),
        ({"palette": "red"}, f"'palette': {COLORS}'red'"),
        ({"palette": {"a": [1, 2, 3]}}, "'palette': expected a list of colours"),
        ({"colors": ["#ff0000"]}, f"'colors': {COLORS}'#ff0000'"),
        ({"colors": [[1.5, 0, 0]]}, f"'colors': {COLORS}1.5"),
        ({"colors": [[1, 2, 300]]}, r"`colors`: expected \[r, g, b\] of 0\.\.255"),
        ({"classes": ["a", "b"], "colors": [[1, 2, 3]]}, "one or more colours for each of the 2"),
        (
            {"colors": [[1, 2, 3]], "void_colors": [[1, 2, 3]]},
            r"colours that differ. Received: \[\(1, 2, 3\)\]",
        ),
        ({"void_colors": [7]}, f"'void_colors': {COLORS}7"),
        ({"void": 255.0, "ids": [0.0], "license": "CC0"}, None),
        ({"classes": ["a", "b"], "void": 1}, "`ids` and `void`: expected 3 values that differ"),
        ({"void": 256}, "values of 0..255"),
        ({"void": True}, "'void': expected a whole number. Received: True"),
        ({"ids": [1.5]}, f"{WHOLE_NUMBERS}1.5"),
        ({"ids": [float("nan")]}, f"{WHOLE_NUMBERS}nan"),
        ({"ids": 1}, f"{WHOLE_NUMBERS}1"),
        ({"ignore_unlisted": 1}, "'ignore_unlisted': expected true or false"),
        ({"colours": [], "Void": 1}, "unknown keys 'Void', 'colours'; expected"),
        (
            '{"label_space": "camvid", "void": 0}',
            r"no other key with 'label_space'. Received: \['void'\]",
        ),
        ('{"label_space": ["camvid"]}', r"expected a 'label_space' of .* Received: \['camvid'\]"),
        ('{"label_space": "mars"}', r"of \['street_scenes', .* Received: 'mars'"),
    ],
)
def test_classes_json_is_checked(tmp_path, content, message):
    """A text, or keys in addition to one class."""
    path = tmp_path / "classes.json"
    keys = {"classes": ["a"]} | (content if isinstance(content, dict) else {})
    path.write_text(content if isinstance(content, str) else json.dumps(keys))
    if message is None:
        assert label_space_from_file(path).palette == default_palette(len(keys["classes"]))
        return
    with pytest.raises(ValueError, match=message) as error:
        label_space_from_file(path)
    assert str(path) in str(error.value)


def test_all_keys_that_are_written_are_read(tmp_path):
    space = LabelSpace(("a", "b"), void=9, ids=(3, 4), ignore_unlisted=True)
    colors = (((9, 0, 0),), ((0, 9, 0), (0, 8, 0)))
    for written in (space, dataclasses.replace(space, colors=colors, void_colors=((0, 0, 0),))):
        (tmp_path / "classes.json").write_text(json.dumps(dataclasses.asdict(written)))
        assert label_space_from_file(tmp_path / "classes.json") == written
    (tmp_path / "classes.json").write_text(
        '{"classes": ["a", "b"], "colors": [[9, 0, 0], [[1, 1, 1]]]}'
    )
    assert label_space_from_file(tmp_path / "classes.json").colors == (((9, 0, 0),), ((1, 1, 1),))


def test_a_labelmap_is_read(tmp_path):
    path = tmp_path / "labelmap.txt"
    path.write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:250,50,1::\n\n")
    space = label_space_from_file(path)
    assert space.classes == ("background", "cat")
    assert space.colors == (((0, 0, 0),), ((250, 50, 1),))
    assert space.void_colors == ((224, 224, 192),)
    for text, message in (
        ("cat:1,2::\n", r"labelmap\.txt, line 1: expected label:red,green,blue"),
        ("cat:1,2,3::\ndog:1,2,3::\n", r"labelmap\.txt, line 2: expected another name and colour"),
        ("cat:1,2,300::\n", r"labelmap\.txt: `colors`: expected"),
        ("", r"labelmap\.txt: `classes`: expected"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            label_space_from_file(path)


def test_classes_that_are_no_file_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "classes.json")
    with pytest.raises(ValueError, match=r"classes\.json: expected a file\. Received: a pipe"):
        label_space_from_file(tmp_path / "classes.json")


def test_a_built_in_label_space_by_name(tmp_path):
    (tmp_path / "classes.json").write_text('{"label_space": "cityscapes"}')
    assert label_space_from_file(tmp_path / "classes.json") is CITYSCAPES


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


def test_columns_of_classes_differ_from_others_and_from_each_other():
    assert class_columns(["road", "sky"], ["epoch"]) == ["road", "sky"]
    classes = ["epoch", "road", "epoch (class)"]
    assert class_columns(classes, ["epoch"]) == [
        "epoch (class) (class)", "road", "epoch (class)",
    ]  # fmt: skip
