"""Weights of the official PyTorch code, read into Keras models and layers.

Only here and in the docs' paper map occur the official names: CAB, CAM, RRB and dsn. A state dict
is a mapping from name to NumPy array in PyTorch's layout; nothing here needs PyTorch.

Every tensor is used exactly once, and nothing is assigned before all of them were found to fit.
"""

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

from alignseg_tf import backbones
from alignseg_tf.layers import (
    AlignedContextModeling,
    AlignedFeatureAggregation,
    ConvNormAct,
    OffsetPrediction,
    ResidualRefinement,
    SegmentationHead,
)
from alignseg_tf.model import AlignSeg

StateDict = Mapping[str, np.ndarray]

# The official norm multiplies by |gamma| + eps; a plain batch norm multiplies by gamma.
GAMMA_EPSILON = 1e-5
# The comment of a converted `.keras` file, which is a zip archive.
CONVERTED = b"alignseg_tf convert"

# Layer of the model -> official module.
DECODER_MODULES = {
    "refinement_p2": "RRB1a",
    "refinement_p3": "RRB2a",
    "aggregation_p3": "CAB2",
    "refinement_d2": "RRB2b",
    "refinement_p4": "RRB3a",
    "aggregation_p4": "CAB3",
    "refinement_d3": "RRB3b",
    "refinement_p5": "RRB4a",
    "aggregation_p5": "CAB4",
    "refinement_d4": "RRB4b",
    "context_modeling": "CAM",
    "refinement_context": "RRB5a",
    "aggregation_context": "CAB5",
    "refinement_d5": "RRB5b",
    "segmentation_head": "head",
    "auxiliary_head": "dsn",
}
# Part of a layer -> official modules within its own: a convolution, a norm, both, or the branches
# of the offsets.
PARTS: dict[type, dict[str, tuple[str, ...]]] = {
    ResidualRefinement: {
        "unify": ("unify",),
        "reduce": ("residual.0", "residual.1"),
        "expand": ("residual.2",),
        "norm": ("norm",),
    },
    AlignedFeatureAggregation: {"offset_prediction": ("delta_gen1", "delta_gen2")},
    AlignedContextModeling: {
        "context_transform": ("pool.1", "pool.2"),
        "context_projection": ("pool.3", "pool.4"),
        "local_transform": ("adapt.0", "adapt.1"),
        "local_projection": ("adapt.2", "adapt.3"),
        "offset_prediction": ("delta_gen",),
    },
    SegmentationHead: {"block": ("0", "1"), "classifier": ("3",)},
}


class _Slot(NamedTuple):
    """A variable, the official tensors that make its value, and how they do."""

    variable: Any
    names: tuple[str, ...]
    combine: Callable[..., np.ndarray]


def _kernel(*tensors: np.ndarray) -> np.ndarray:
    """(out, in, kh, kw) tensors -> one (kh, kw, in, out) kernel."""
    return np.concatenate(tensors).transpose(2, 3, 1, 0)


def _fine_half(*tensors: np.ndarray) -> np.ndarray:
    return _kernel(*(np.split(tensor, 2, axis=1)[0] for tensor in tensors))


def _coarse_half(*tensors: np.ndarray) -> np.ndarray:
    return _kernel(*(np.split(tensor, 2, axis=1)[1] for tensor in tensors))


def _vector(*tensors: np.ndarray) -> np.ndarray:
    return np.concatenate(tensors)


def _gamma(*tensors: np.ndarray) -> np.ndarray:
    return np.abs(np.concatenate(tensors)) + GAMMA_EPSILON


def _slots(part: Any, *modules: str) -> list[_Slot]:
    """Return the slots of a convolution, a norm, a block of both, or an offset prediction."""
    if isinstance(part, ConvNormAct):
        return _slots(part.conv, modules[0]) + _slots(part.norm, modules[1])
    if isinstance(part, OffsetPrediction):
        # Several official branches are one here, and each 1x1 kernel is split into its two inputs.
        names = tuple(f"{module}.0.weight" for module in modules)
        slots = [
            _Slot(part.fine_projection.kernel, names, _fine_half),
            _Slot(part.coarse_projection.kernel, names, _coarse_half),
            *_slots(part.norm, *(f"{module}.1" for module in modules)),
        ]
        for field, module in zip(part.fields, modules, strict=True):
            slots += _slots(field, f"{module}.2")
        return slots
    if isinstance(part, keras.layers.Conv2D):
        values = [(part.kernel, "weight", _kernel), (part.bias, "bias", _vector)]
    elif isinstance(part, keras.layers.BatchNormalization):
        values = [
            (part.gamma, "weight", _gamma),
            (part.beta, "bias", _vector),
            (part.moving_mean, "running_mean", _vector),
            (part.moving_variance, "running_var", _vector),
        ]
    else:
        return []
    return [
        _Slot(variable, tuple(f"{module}.{name}" for module in modules), combine)
        for variable, name, combine in values
        if variable is not None
    ]


def _layer_slots(layer: keras.layers.Layer, prefix: str = "") -> list[_Slot]:
    """Return the slots of one layer of the decoder, whose official names begin with a prefix."""
    aligns = getattr(layer, "mode", "align") == getattr(layer, "context", "align") == "align"
    if type(layer) not in PARTS or not aligns:
        raise ValueError(
            "Official weights fit AlignSeg(aggregation='align', context='align') and its layers. "
            f"Received: {layer.name!r}, a {type(layer).__name__} with config {layer.get_config()}"
        )
    slots = []
    for name, modules in PARTS[type(layer)].items():
        slots += _slots(getattr(layer, name), *(prefix + module for module in modules))
    return slots


def _backbone_slots(backbone: keras.Model) -> list[_Slot]:
    return [
        slot
        for layer in backbone.layers
        for slot in _slots(layer, _official_backbone_name(layer.name))
    ]


def _model_slots(model: AlignSeg) -> list[_Slot]:
    slots = _backbone_slots(model.backbone)
    for name, module in DECODER_MODULES.items():
        if name != "auxiliary_head" or model.auxiliary_head:
            slots += _layer_slots(model.get_layer(name), f"{module}.")
    return slots


def _official_backbone_name(name: str) -> str:
    """layer3_0_conv2 -> layer3.0.conv2; norm2 -> bn2; ..._downsample_norm -> ....downsample.1."""
    for part, index in (("conv", "0"), ("norm", "1")):
        name = name.replace(f"downsample_{part}", f"downsample_{index}")
    return name.replace("norm", "bn").replace("_", ".")


def _normalize(state_dict: StateDict) -> dict[str, np.ndarray]:
    """Strip the `module.` of DataParallel and the counters that Keras has no use for."""
    stripped = {name.removeprefix("module."): value for name, value in state_dict.items()}
    return {
        name: np.asarray(value)
        for name, value in stripped.items()
        if not name.endswith("num_batches_tracked")
    }


def _some(names: set[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:8]) + (f" and {len(listed) - 8} more" if len(listed) > 8 else "")


def _assign(slots: list[_Slot], state_dict: StateDict, unused: tuple[str, ...] = ()) -> None:
    """Fill every slot, or raise and fill none; tensors whose names begin with `unused` may stay."""
    tensors = _normalize(state_dict)
    wanted = {name for slot in slots for name in slot.names}
    if missing := wanted - tensors.keys():
        raise ValueError(f"The state dict lacks {len(missing)} tensors: {_some(missing)}")
    if extra := {name for name in tensors.keys() - wanted if not name.startswith(unused)}:
        raise ValueError(f"The state dict has {len(extra)} tensors of no use: {_some(extra)}")
    values = []
    for slot in slots:
        names = _some(set(slot.names))
        try:
            value = slot.combine(*(tensors[name] for name in slot.names))
        except ValueError as error:
            shapes = [tensors[name].shape for name in slot.names]
            raise ValueError(f"{names}: unfit shapes {shapes}") from error
        if value.shape != tuple(slot.variable.shape):
            raise ValueError(
                f"{names}: expected a value of Keras shape {tuple(slot.variable.shape)}. "
                f"Received: {value.shape}"
            )
        values.append(value)
    for slot, value in zip(slots, values, strict=True):
        slot.variable.assign(value.astype("float32"))


def load_official_state_dict(
    model_or_layer: AlignSeg | keras.layers.Layer, state_dict: StateDict
) -> None:
    """Load the official AlignSeg weights into a model, or one module's into a layer.

    Args:
        model_or_layer: an `AlignSeg` on `backbones.resnet` with `aggregation="align"` and
            `context="align"`, or a built `ResidualRefinement`, `AlignedFeatureAggregation`,
            `AlignedContextModeling` or `SegmentationHead`.
        state_dict: official names, relative to the module for a layer; float arrays in
            PyTorch's layout. A `module.` prefix is stripped. `dsn.*` may be left over when the
            model has no auxiliary head.

    Raises:
        ValueError: a tensor is missing, of no use or misshapen; it is named, and nothing was
            changed.
    """
    if not isinstance(model_or_layer, AlignSeg):
        _assign(_layer_slots(model_or_layer), state_dict)
        return
    unused = () if model_or_layer.auxiliary_head else ("dsn.",)
    _assign(_model_slots(model_or_layer), state_dict, unused)


def load_official_backbone(model: AlignSeg | keras.Model, state_dict: StateDict) -> None:
    """Load ImageNet weights of the official deep-stem ResNet; `fc.*` is ignored.

    Args:
        model: a `backbones.resnet`, or an `AlignSeg` on one.
        state_dict: official names; float arrays in PyTorch's layout.

    Raises:
        ValueError: a tensor is missing, of no use or misshapen; it is named, and nothing was
            changed.
    """
    backbone = model.backbone if isinstance(model, AlignSeg) else model
    _assign(_backbone_slots(backbone), state_dict, ("fc.",))


def model_from_official(state_dict: StateDict, sampling: str = "released") -> AlignSeg:
    """Build the model that an official state dict describes, and load it.

    The depth of the ResNet, the number of classes and channels and the auxiliary head are read
    off the tensors; the normalization is the official one, BGR minus the mean.

    Args:
        state_dict: official names; float arrays in PyTorch's layout.
        sampling: the convention that the weights were trained under. The published checkpoints
            are older than the official fix: `released`, or `released_align_corners` if trained
            with PyTorch < 1.3.

    Raises:
        ValueError: this is no state dict of AlignSeg.
    """
    tensors = _normalize(state_dict)
    if "head.3.weight" not in tensors or "head.0.weight" not in tensors:
        raise ValueError(
            "The state dict is not AlignSeg's: 'head.0.weight' and 'head.3.weight' expected. "
            f"Received: {_some(set(tensors)) or 'no tensors'}"
        )

    blocks = {tuple(name.split(".")[:2]) for name in tensors if name.startswith("layer")}
    stages = [stage for stage, _ in blocks]
    model = AlignSeg(
        backbones.resnet(tuple(stages.count(f"layer{number}") for number in (1, 2, 3, 4))),
        num_classes=tensors["head.3.weight"].shape[0],
        channels=tensors["head.0.weight"].shape[0],
        sampling=sampling,
        auxiliary_head="dsn.3.weight" in tensors,
    )
    load_official_state_dict(model, tensors)
    return model


def mark_as_converted(path: Path) -> None:
    """Note in a `.keras` file, which is a zip archive, that it was converted."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = CONVERTED


def is_converted(path: Path) -> bool:
    """Return whether `mark_as_converted` was called with a file."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return archive.comment == CONVERTED


def read_state_dict(path: str | Path) -> dict[str, np.ndarray]:
    """Read a `.npz`, or a PyTorch file with tensors only (needs PyTorch).

    A PyTorch file may hold the state dict itself or under the key `state_dict` or `model`.

    Raises:
        ValueError: the file is unreadable or holds something else.
        ImportError: a PyTorch file, and PyTorch is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if path.suffix == ".npz":
        try:
            with np.load(path, allow_pickle=False) as archive:
                return dict(archive)
        except Exception as error:
            raise ValueError(f"{path}: not a .npz file of plain arrays ({error})") from error
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"{path}: reading a PyTorch checkpoint needs PyTorch: "
            "pip install 'alignseg_tf[parity]', or save the state dict as .npz elsewhere"
        ) from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path}: not a PyTorch file of plain tensors ({error})") from error
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a state dict. Received: {type(content).__name__}")
    return {
        name: tensor.float().numpy() for name, tensor in content.items() if hasattr(tensor, "numpy")
    }
