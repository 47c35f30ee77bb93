"""EfficientNet-Lite0 with ImageNet weights."""

from pathlib import Path
from typing import Any

import keras

from alignseg_tf.layers.tensorflow_kernels import BatchNormalization, DepthwiseConv2D

WEIGHTS_DIR = Path(__file__).parents[1] / "weights"


def efficientnet_lite0(
    weights: str | Path | None = "imagenet",
    dtype: Any = None,
    name: str = "efficientnet_lite0",
) -> keras.Model:
    """Return EfficientNet-Lite0 up to its last map of stride 32, from keras-cv's layers.

    Args:
        weights: "imagenet" for the weights that come with this package, None for random
            ones, or the path of a `.weights.h5` file.
        dtype: dtype or dtype policy of every layer; None for the global policy.
        name: name of the model.

    Shape:
        [B, H, W, 3], pixels normalised as the attribute `pixel_normalization` says ->
        [B, ceil(H / 32), ceil(W / 32), 320].

    Raises:
        ValueError: `weights` is none of these.
        ImportError: keras-cv cannot be imported.
    """
    path = WEIGHTS_DIR / "efficientnet_lite0.weights.h5" if weights == "imagenet" else weights
    if path is not None and not (str(path).endswith(".weights.h5") and Path(path).is_file()):
        raise ValueError(
            '`weights` must be "imagenet", None or the path of an existing `.weights.h5` file. '
            f"Received: weights={weights!r}"
        )
    backbone = _keras_cv_backbone()
    # keras-cv names the last layer before each stride; its P5 is the 1280-channel map made
    # for the classifier. The last map before that one has the same stride and 320 channels.
    pyramid = {level: backbone.pyramid_level_inputs[level] for level in ("P2", "P3", "P4")}
    pyramid["P5"] = "block7a_project_bn"
    trunk = keras.Model(backbone.input, backbone.get_layer(pyramid["P5"]).output)
    model = _with_own_layers(trunk, dtype, name)
    model.pyramid_level_inputs = pyramid
    model.pixel_normalization = {
        "mean": [127.0, 127.0, 127.0],
        "std": [128.0, 128.0, 128.0],
        "channel_order": "rgb",
    }
    if path is not None:
        model.load_weights(path)
    return model


def _keras_cv_backbone() -> keras.Model:
    try:
        import keras_cv
    except ImportError as error:
        raise ImportError(
            "efficientnet_lite0() is built from keras-cv, which could not be imported: "
            "`pip install keras-cv keras-core tensorflow`. A `.keras` file of a model with this "
            "backbone loads without keras-cv, on any Keras backend. "
            f"Received: {error}"
        ) from error
    return keras_cv.models.EfficientNetLiteBackbone(
        include_rescaling=False,
        width_coefficient=1.0,
        depth_coefficient=1.0,
        stackwise_kernel_sizes=[3, 3, 5, 3, 5, 5, 3],
        stackwise_num_repeats=[1, 2, 2, 3, 3, 4, 1],
        stackwise_input_filters=[32, 16, 24, 40, 80, 112, 192],
        stackwise_output_filters=[16, 24, 40, 80, 112, 192, 320],
        stackwise_expansion_ratios=[1, 6, 6, 6, 6, 6, 6],
        stackwise_strides=[1, 2, 2, 2, 1, 2, 1],
    )


def _with_own_layers(trunk: keras.Model, dtype: Any, name: str) -> keras.Model:
    """Return the same network, with "same" padding and the layers of `tensorflow_kernels`.

    keras-cv pads dynamic sizes as if they were even: a map of 45 cells became 22, not 23, and lay
    half a cell off. "same" padding is the reference's at every size.
    """

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        config = layer.get_config()
        if "strides" in config:
            config["padding"] = "same"
        if dtype is not None:
            config["dtype"] = dtype
        if isinstance(layer, keras.layers.BatchNormalization):
            return BatchNormalization.from_config(config)
        if isinstance(layer, keras.layers.DepthwiseConv2D):
            return DepthwiseConv2D.from_config(config)
        return type(layer).from_config(config)

    def call(layer: keras.layers.Layer, inputs: Any, **kwargs: Any) -> Any:
        return inputs if isinstance(layer, keras.layers.ZeroPadding2D) else layer(inputs, **kwargs)

    images = keras.Input((None, None, 3), name="images")
    trunk = keras.models.clone_model(trunk, images, clone_function=clone, call_function=call)
    return keras.Model(images, trunk.output, name=name)
