"""Write a data set of TensorFlow Datasets once as a folder of images and labels.

The encoded images that TFDS stores are written unchanged.
"""

import dataclasses
import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from alignseg_tf.data.datasets.catalog import LABEL_SPACES
from alignseg_tf.data.datasets.written_once import FolderWrittenOnce
from alignseg_tf.data.label_space import LabelSpace
from alignseg_tf.data.listing import DataError, expect, naming
from alignseg_tf.system.files import write_bytes, write_text
from alignseg_tf.system.fingerprints import FileFingerprints
from alignseg_tf.system.progress import progress_bar

# Key of LABEL_SPACES by name and label feature of known data sets.
KNOWN_LABELS = {
    ("oxford_iiit_pet", "segmentation_mask"): "oxford_iiit_pet",
    ("cityscapes", "segmentation_label"): "cityscapes",
}
LABEL_WORDS = ("mask", "label", "seg", "annotation")
VAL_SPLITS = ("validation", "val", "test")
# First bytes of a file -> suffix.
SIGNATURES = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"BM": ".bmp"}
ONE_CHANNEL = ("1", "L", "P", "I", "I;16", "I;16B")


@dataclass(frozen=True)
class TfdsOptions:
    """The part of a TFDS data set to read; None to infer it.

    Attributes:
        image_key: the feature that holds the images.
        label_key: the feature that holds the labels.
        train_split: TFDS split expression of the training images; `train`.
        val_split: of the validation images; the first of validation, val, test.
    """

    image_key: str | None = None
    label_key: str | None = None
    train_split: str | None = None
    val_split: str | None = None


def write_folder(
    name: str,
    cache: str | Path,
    options: TfdsOptions | None = None,
    label_space: LabelSpace | None = None,
) -> tuple[Path, LabelSpace]:
    """Write a prepared TFDS data set as a folder, or keep a complete one; return its classes too.

    The folder holds `images/{train,val}/000000.*`, `labels/{train,val}/000000.*`, numbered in the
    order of TFDS without shuffling, and `classes.json`. `tfds.json` records the source and whether
    the folder is complete. A killed call is resumed.

    Args:
        name: `NAME`, `NAME/CONFIG` or `NAME/CONFIG:VERSION`, as TFDS takes it.
        cache: the parent of the folder, which is `NAME-CONFIG-VERSION-HASH`.
        options: features and splits.
        label_space: None for known data sets, or if TFDS names the classes.

    Raises:
        DataError: there is no such data set, it is not prepared, or its features, splits or
            classes are ambiguous.
    """
    import tensorflow_datasets as tfds  # takes seconds

    options = options or TfdsOptions()
    builder = _prepared_builder(name, tfds)
    image_key, label_key = _feature_keys(name, builder.info.features, options, tfds)
    splits = _split_expressions(name, builder.info.splits, options)
    label_space = label_space or _label_space_of(name, builder, label_key)
    record = {
        "data_set": builder.info.full_name,
        "image_key": image_key,
        "label_key": label_key,
        "splits": {part: expression for part, (expression, _) in splits.items()},
        # Another preparation, with other files, makes another folder.
        "prepared": {
            split: [list(info.shard_lengths), info.num_bytes]
            for split, info in sorted(builder.info.splits.items())
        },
    }
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:8]
    root = Path(cache) / f"{builder.info.full_name.replace('/', '-')}-{digest}"
    fingerprints = FileFingerprints(root.with_name(f".{root.name}.fingerprints.json"))
    folder = FolderWrittenOnce(root, "tfds.json", record, fingerprints)
    if not folder.is_complete():
        records = _records(name, builder, record["splits"], (image_key, label_key), tfds)
        count = sum(count for _, count in splits.values())
        with folder.writing() as written:
            for pair in progress_bar(records, f"unpacking {name}", count):
                for path, content, where in pair:
                    _write_or_compare(root / path, content, where)
                    written.append(path)
    _write_classes(root / "classes.json", label_space)
    return root, label_space


def _write_or_compare(path: Path, content: bytes, where: str) -> None:
    """Write a file, or check the one that an interrupted call wrote."""
    if not path.exists():
        write_bytes(path, content)
    elif path.read_bytes() != content:
        raise DataError(
            f"{path}: another file than {where} holds. Remove it to write it again, or move the "
            "folder to keep it"
        )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _prepared_builder(name: str, tfds: Any) -> Any:
    try:
        builder = tfds.builder(name)
    except Exception as error:  # TFDS raises many kinds, with long lists of all its data sets
        raise DataError(f"tfds:{name}: TFDS has no such data set ({_first_line(error)})") from error
    if not builder.is_prepared():
        text = (
            f"tfds:{name}: not prepared: {builder.data_path} is not there. With a network "
            'connection run\n    python -c "import tensorflow_datasets as tfds; '
            f"tfds.builder('{name}').download_and_prepare()\"\nor copy the folder from a machine "
            "where it is prepared. The environment variable TFDS_DATA_DIR says where TFDS looks."
        )
        if manual := (builder.MANUAL_DOWNLOAD_INSTRUCTIONS or "").split():
            text += "\nIt must be downloaded by hand, into downloads/manual there:\n    "
            text += " ".join(manual)
        raise DataError(text)
    return builder


def _feature_keys(name: str, features: Any, options: TfdsOptions, tfds: Any) -> tuple[str, str]:
    """Return the keys of the images and of the labels."""
    is_dict = isinstance(features, tfds.features.FeaturesDict)
    expect(is_dict, f"tfds:{name}", "a dictionary of features", features)
    listed = "".join(
        f"\n  {key}: {type(feature).__name__} {feature.shape}" for key, feature in features.items()
    )
    of_images = {k: f for k, f in features.items() if isinstance(f, tfds.features.Image)}
    images = [key for key, feature in of_images.items() if feature.shape[-1] == 3]
    labels = [
        key
        for key, feature in of_images.items()
        if isinstance(feature, tfds.features.LabeledImage)
        or (feature.shape[-1] == 1 and any(word in key.lower() for word in LABEL_WORDS))
    ]

    def choose(given: str | None, option: str, found: list[str], preferred: set[str]) -> str:
        if given is not None and (
            given not in features or len(features[given].shape) not in (2, 3)
        ):
            raise DataError(
                f"tfds:{name}: {option} must be one of the features that are images. "
                f"Received: {given!r}; its features are:{listed}"
            )
        best = [given] if given else sorted(preferred & set(found)) or found
        if len(best) != 1:
            raise DataError(
                f"tfds:{name}: {'several features' if best else 'no feature'} may be meant; say "
                f"which one with {option}. Its features are:{listed}"
            )
        return best[0]

    preferred = {"segmentation_mask", "segmentation_label"}
    return (
        choose(options.image_key, "--image-key", images, {"image"}),
        choose(options.label_key, "--label-key", labels, preferred),
    )


def _split_expressions(
    name: str, splits: Mapping[str, Any], options: TfdsOptions
) -> dict[str, tuple[str, int]]:
    """Return the split expressions of train and val, each with its number of images."""
    val = options.val_split or next((split for split in VAL_SPLITS if split in splits), None)
    if val is None:
        raise DataError(
            f"tfds:{name}: has none of the splits {', '.join(VAL_SPLITS)}; take a part of another, "
            "as in --train-split 'train[:80%]' --val-split 'train[80%:]'. "
            f"Its splits are: {', '.join(splits)}"
        )
    found = {}
    for part, expression in (("train", options.train_split or "train"), ("val", val)):
        try:
            count = splits[expression].num_examples
        except (KeyError, ValueError) as error:
            raise DataError(
                f"tfds:{name}: --{part}-split must be a split of TFDS, as train or train[:80%]. "
                f"Received: {expression!r} ({_first_line(error)}); its splits are: "
                f"{', '.join(splits)}"
            ) from error
        expect(count > 0, f"tfds:{name}", f"images in --{part}-split", expression)
        found[part] = (expression, count)
    return found


def _label_space_of(name: str, builder: Any, label_key: str) -> LabelSpace:
    if known := KNOWN_LABELS.get((builder.name, label_key)):
        return LABEL_SPACES[known]
    classes: tuple[str, ...] = ()
    with suppress(AttributeError, ValueError):  # no labelled image, or its names are not known
        classes = tuple(builder.info.features[label_key].names)
    # Where TFDS knows only the number of classes, it calls them 0, 1, ...
    if not classes or classes == tuple(map(str, range(len(classes)))):
        raise DataError(
            f"tfds:{name}: TFDS does not name the classes of {label_key!r}; give --label-space, "
            f"one of {', '.join(LABEL_SPACES)}, or a file classes.json"
        )
    with naming(f"tfds:{name}"):
        return LabelSpace(classes)


def _records(
    name: str, builder: Any, splits: Mapping[str, str], keys: tuple[str, str], tfds: Any
) -> Iterator[list[tuple[str, bytes, str]]]:
    """Yield image and label of each record as (path below the root, content, description)."""
    features = builder.info.features
    skipped = {
        key: tfds.decode.SkipDecoding()
        for key in keys
        if isinstance(features[key], tfds.features.Image)
    }
    for part, expression in splits.items():
        records = builder.as_dataset(
            split=expression,
            shuffle_files=False,
            decoders=tfds.decode.PartialDecoding(dict.fromkeys(keys, True), skipped),
            read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False),
        )
        iterator = enumerate(tfds.as_numpy(records))
        while True:
            try:
                index, record = next(iterator)
            except StopIteration:
                break
            except Exception as error:  # TensorFlow's errors have no common Python class
                raise DataError(
                    f"tfds:{name}: the split {expression!r} in {builder.data_path} cannot be read "
                    f"({_first_line(error)})"
                ) from error
            pair = []
            for kind, key in zip(("images", "labels"), keys, strict=True):
                where = f"tfds:{name}, split {expression!r}, record {index}, feature {key!r}"
                content, suffix = _as_file(record[key], features[key], kind == "labels", where)
                pair.append((f"{kind}/{part}/{index:06d}{suffix}", content, where))
            yield pair


def _as_file(
    stored: bytes | np.ndarray, feature: Any, is_label: bool, where: str
) -> tuple[bytes, str]:
    """Return content and suffix of the file of a stored feature."""
    if not isinstance(stored, bytes):
        return _png(stored, where), ".png"
    suffix = next((s for start, s in SIGNATURES.items() if stored.startswith(start)), None)
    if suffix is None:
        raise DataError(f"{where}: expected PNG, JPEG or BMP. Received: {stored[:8]!r}...")
    if not is_label:
        return stored, suffix
    expect(suffix != ".jpg", where, "a lossless label", "JPEG")
    with Image.open(io.BytesIO(stored)) as image:
        mode = image.mode
    if feature.shape[-1] == 1 and mode not in ONE_CHANNEL:
        # A colour image with class ids in all channels, which TFDS reduces to one.
        return _png(feature.decode_example(stored).numpy(), where), ".png"
    return stored, suffix


def _png(values: np.ndarray, where: str) -> bytes:
    if values.ndim == 3 and values.shape[-1] == 1:
        values = values[..., 0]
    expect(values.dtype == np.uint8, where, "uint8", values.dtype)
    content = io.BytesIO()
    Image.fromarray(values).save(content, "PNG")
    return content.getvalue()


def _write_classes(path: Path, label_space: LabelSpace) -> None:
    """Write `classes.json`, for opening the folder by its path."""
    named = next((key for key, space in LABEL_SPACES.items() if space == label_space), None)
    content = {"label_space": named} if named else dataclasses.asdict(label_space)
    text = json.dumps(content, indent=1)
    if not path.exists() or path.read_text() != text:
        write_text(path, text)
