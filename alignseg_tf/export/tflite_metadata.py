"""What a `.tflite` file says of itself: TFLite metadata, and the files that belong to it.

The metadata is a flatbuffer of the schema `metadata_schema.fbs` 1.5 in the model's buffer
`TFLITE_METADATA`; the files it speaks of are in a zip archive after the model's last byte. Only
the fields used here are written. A field's number is its place in its table.
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
    builder = flatbuffers.Builder(1024)

    def table(fields: dict[int, tuple[str, Any]]) -> int:
        builder.StartObject(max(fields) + 1)
        for slot, (kind, value) in fields.items():
            if kind == "offset":
                builder.PrependUOffsetTRelativeSlot(slot, value, 0)
            else:
                builder.PrependUint8Slot(slot, value, 0)
        return builder.EndObject()

    def string(text: str) -> tuple[str, int]:
        return "offset", builder.CreateString(text)

    def vector(*tables: int) -> tuple[str, int]:
        builder.StartVector(4, len(tables), 4)
        for offset in reversed(tables):
            builder.PrependUOffsetTRelative(offset)
        return "offset", builder.EndVector()

    def associated_file(name: str, text: str, kind: int) -> int:
        return table({0: string(name), 1: string(text), 2: ("byte", kind)})

    image = table({0: ("byte", RGB)})
    content = table({0: ("byte", IMAGE_PROPERTIES), 1: ("offset", image)})
    images = table(
        {
            0: string("images"),
            1: string("RGB image, values 0..255, not normalised."),
            3: ("offset", content),
        }
    )
    kind = TENSOR_VALUE_LABELS if output == "class_map" else TENSOR_AXIS_LABELS
    labels = associated_file(TFLITE_LABELS_FILE, "Names of the classes, a line each.", kind)
    text = {
        "class_map": "Class id of each pixel.",
        "logits": "Logits at a quarter of the image's size; the last axis is the class.",
    }[output]
    result = table({0: string(output), 1: string(text), 6: vector(labels)})
    colors = associated_file(
        TFLITE_LABEL_SPACE_FILE, "Names and RGB colours of the classes, as JSON.", DESCRIPTIONS
    )
    subgraph = table({2: vector(images), 3: vector(result)})
    model = table(
        {
            0: string("AlignSeg"),
            1: string("Semantic segmentation, written by alignseg_tf."),
            2: string(__version__),
            3: vector(subgraph),
            6: vector(colors),
            7: string("1.0.0"),
        }
    )
    builder.Finish(model, file_identifier=FILE_IDENTIFIER)
    return bytes(builder.Output())
