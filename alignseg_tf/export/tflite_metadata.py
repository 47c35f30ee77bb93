"""TFLite metadata: names of the classes in a `.tflite` file.

The metadata is a flatbuffer of the schema `metadata_schema.fbs` 1.5 in the model's buffer
`TFLITE_METADATA`. The files that it names are in a zip archive after the model's last byte. A
field's number is its place in its table.
"""

import io
import json
import zipfile
from typing import Any

import flatbuffers

from alignseg_tf.data.label_space import LabelSpace
from alignseg_tf.prediction.saved_networks import TFLITE_LABEL_SPACE_FILE, TFLITE_LABELS_FILE
from alignseg_tf.version import __version__

BUFFER_NAME = "TFLITE_METADATA"
FILE_IDENTIFIER = b"M001"
DESCRIPTIONS, TENSOR_AXIS_LABELS, TENSOR_VALUE_LABELS = 1, 2, 3
IMAGE_PROPERTIES, RGB = 2, 1


def with_metadata(content: bytes, label_space: LabelSpace, output: str) -> bytes:
    """Return a `.tflite` file that names its classes.

    Args:
        content: the file's bytes.
        label_space: names and colours.
        output: `class_map` or `logits`.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content))
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = list(_metadata(output))
    entry.name, entry.buffer = BUFFER_NAME, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or []), entry]
    builder = flatbuffers.Builder(len(content))
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")

    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as files:
        _add(files, TFLITE_LABEL_SPACE_FILE, json.dumps(label_space.to_dict(), indent=1))
        _add(files, TFLITE_LABELS_FILE, "".join(f"{name}\n" for name in label_space.classes))
    return bytes(builder.Output()) + archive.getvalue()


def _add(files: zipfile.ZipFile, name: str, text: str) -> None:
    files.writestr(zipfile.ZipInfo(name), text)  # the same bytes at any time


def _metadata(output: str) -> bytes:
    """Return the metadata of a file with one input and one output."""
    kind, text = {
        "class_map": (TENSOR_VALUE_LABELS, "Class id of each pixel."),
        "logits": (
            TENSOR_AXIS_LABELS,
            "Logits at a quarter of the image's size; the last axis is the class.",
        ),
    }[output]
    labels = {0: TFLITE_LABELS_FILE, 1: "Names of the classes, a line each.", 2: kind}
    colors = {
        0: TFLITE_LABEL_SPACE_FILE,
        1: "Names and RGB colours of the classes, as JSON.",
        2: DESCRIPTIONS,
    }
    images = {
        0: "images",
        1: "RGB image, values 0..255, not normalised.",
        3: {0: IMAGE_PROPERTIES, 1: {0: RGB}},
    }
    model = {
        0: "AlignSeg",
        1: "Semantic segmentation, written by alignseg_tf.",
        2: __version__,
        3: [{2: [images], 3: [{0: output, 1: text, 6: [labels]}]}],
        6: [colors],
        7: "1.0.0",
    }
    builder = flatbuffers.Builder(1024)
    builder.Finish(_packed(builder, model), file_identifier=FILE_IDENTIFIER)
    return bytes(builder.Output())


def _packed(builder: flatbuffers.Builder, value: str | list | dict[int, Any]) -> int:
    """Write a text, a vector of tables or a table of texts, vectors, tables and bytes (int)."""
    if isinstance(value, str):
        return builder.CreateString(value)
    if isinstance(value, list):
        tables = [_packed(builder, table) for table in value]
        builder.StartVector(4, len(tables), 4)
        for offset in reversed(tables):
            builder.PrependUOffsetTRelative(offset)
        return builder.EndVector()
    offsets = {n: _packed(builder, x) for n, x in value.items() if not isinstance(x, int)}
    builder.StartObject(max(value) + 1)
    for number, field in value.items():
        if number in offsets:
            builder.PrependUOffsetTRelativeSlot(number, offsets[number], 0)
        else:
            builder.PrependUint8Slot(number, field, 0)
    return builder.EndObject()
