"""From a recipe to a model that is ready for `fit`."""

import dataclasses
from typing import Any

import keras
import numpy as np

from alignseg_tf import AlignSeg, backbones, losses, metrics, optimizers
from alignseg_tf.data.augmentation import Augmentation
from alignseg_tf.data.label_space import IGNORE, LabelSpace
from alignseg_tf.layers.nested import nested_layers
from alignseg_tf.model import freeze_batch_norm
from alignseg_tf.official_weights import load_official_backbone, read_state_dict
from alignseg_tf.optimizers import averaged_weights
from alignseg_tf.precision import with_dtype_policy
from alignseg_tf.prediction.saved_networks import load_model
from alignseg_tf.transfer import transfer_weights
from training.recipe import Recipe, RecipeError


def build_backbone(recipe: Recipe) -> keras.Model:
    """Return the backbone of a recipe with its weights."""
    weights = None if recipe.backbone_weights == "none" else recipe.backbone_weights
    if recipe.backbone == "efficientnet_lite0":
        return backbones.efficientnet_lite0(weights)
    backbone = getattr(backbones, recipe.backbone)()
    if weights == "imagenet":
        raise RecipeError(
            f"{recipe.backbone} comes without ImageNet weights: give --backbone-weights FILE, "
            "the official deep-stem ResNet as .pth or .npz, or --backbone-weights none"
        )
    if weights is not None:
        try:
            load_official_backbone(backbone, read_state_dict(weights))
        except (ValueError, ImportError) as error:
            raise RecipeError(f"backbone_weights: {error}") from error
    return backbone


def build_model(recipe: Recipe, label_space: LabelSpace) -> AlignSeg:
    """Return the model that a recipe describes.

    Its logits stay at stride 4: losses and metrics resize them in bands, which saves memory.
    `for_inference` makes the model to keep.

    Raises:
        RecipeError: weights to start from are missing, unreadable or do not fit.
    """
    source = None
    conventions: dict[str, Any] = {}
    if recipe.start_from:
        try:
            source = load_model(recipe.start_from)
        except ValueError as error:
            raise RecipeError(f"start_from: {error}") from error
        # Weights depend on the unit of the offsets and the scale of the pixels.
        conventions = {"sampling": source.sampling, "normalization": source.normalization}
        recipe = dataclasses.replace(recipe, backbone_weights="none")
    model = AlignSeg(
        build_backbone(recipe),
        num_classes=label_space.num_classes,
        channels=recipe.channels,
        aggregation=recipe.aggregation,
        context=None if recipe.context == "none" else recipe.context,
        auxiliary_head=recipe.auxiliary_weight > 0,
        upsample_logits=False,
        label_space=label_space.to_dict(),
        **conventions,
    )
    if source is not None:
        _fine_tune(source, model, recipe)
    return model


def _fine_tune(source: AlignSeg, model: AlignSeg, recipe: Recipe) -> None:
    """Give a model the matching weights of a trained one, and print which match."""
    try:
        transfer = transfer_weights(source, model)
    except ValueError as error:
        raise RecipeError(
            f"start_from: {recipe.start_from} into {recipe.backbone} with --channels "
            f"{recipe.channels}: {error}"
        ) from error
    print(f"From {recipe.start_from}: {transfer}")


def class_weights(recipe: Recipe, pixels: np.ndarray) -> list[float] | None:
    """Return class weights of 1 / sqrt(frequency) with a mean of 1 over pixels, or None."""
    if recipe.class_weights == "none":
        return None
    frequency = np.maximum(pixels, 1) / pixels.sum()
    weights = 1.0 / np.sqrt(frequency)
    weights[pixels == 0] = 0.0
    return (weights / (weights * frequency).sum()).tolist()


def learning_rate_schedule(recipe: Recipe, epoch_steps: int) -> Any:
    """Return the learning rate of each step of a run with `epoch_steps` steps an epoch."""
    warmup = round(recipe.warmup_epochs * epoch_steps)
    decay = epoch_steps * recipe.epochs - warmup
    schedule: Any = keras.optimizers.schedules.CosineDecay(recipe.learning_rate, decay)
    if recipe.schedule == "poly":
        schedule = keras.optimizers.schedules.PolynomialDecay(
            recipe.learning_rate, decay, 0.0, recipe.poly_power
        )
    return optimizers.WarmUp(schedule, warmup) if warmup else schedule


def build_optimizer(
    model: AlignSeg, recipe: Recipe, epoch_steps: int
) -> keras.optimizers.Optimizer:
    """Return the optimizer that a recipe describes."""
    schedule = learning_rate_schedule(recipe, epoch_steps)
    common: dict[str, Any] = {
        "learning_rate_factors": optimizers.layer_factors(
            model, recipe.backbone_rate, recipe.head_rate
        ),
        "decay_norms_and_biases": recipe.decay_norms_and_biases,
        "global_clipnorm": recipe.clip_norm or None,
        "gradient_accumulation_steps": recipe.accumulate if recipe.accumulate > 1 else None,
    }
    if recipe.ema:
        common |= {"use_ema": True, "ema_momentum": recipe.ema}
    if recipe.optimizer == "adamw":
        return optimizers.AdamW(schedule, weight_decay=recipe.weight_decay, **common)
    return optimizers.SGDWithL2(schedule, recipe.momentum, recipe.weight_decay, **common)


def build_loss(recipe: Recipe, weights: list[float] | None) -> keras.losses.Loss:
    """Return the loss of the segmentation head."""
    if recipe.loss == "ohem":
        return losses.OhemCrossEntropy(ignore_class=IGNORE)
    boundary = recipe.loss == "boundary"
    cross_entropy = losses.BoundaryCrossEntropy if boundary else losses.CrossEntropy
    loss: keras.losses.Loss = cross_entropy(
        ignore_class=IGNORE, class_weights=weights, label_smoothing=recipe.label_smoothing
    )
    if recipe.loss == "cross_entropy+lovasz":
        return losses.CombinedLoss([loss, losses.LovaszSoftmax(IGNORE)], [1.0, 0.8])  # as official
    if recipe.loss == "cross_entropy+dice":
        return losses.CombinedLoss([loss, losses.DiceLoss(IGNORE)], [1.0, 1.0])
    return loss


def compile_model(
    model: AlignSeg, recipe: Recipe, label_space: LabelSpace, pixels: np.ndarray, epoch_steps: int
) -> None:
    """Compile a model of `build_model`; `pixels` are the training pixels of each class."""
    if recipe.freeze_batch_norm:
        freeze_batch_norm(model.backbone)
    weights = class_weights(recipe, pixels)
    loss, loss_weights = {"segmentation": build_loss(recipe, weights)}, {"segmentation": 1.0}
    if model.auxiliary_head:
        loss["auxiliary"] = losses.CrossEntropy(IGNORE, weights, recipe.label_smoothing)
        loss_weights["auxiliary"] = recipe.auxiliary_weight
    miou = metrics.MeanIoU(label_space.num_classes, IGNORE, label_space.classes)
    model.compile(
        build_optimizer(model, recipe, epoch_steps),
        loss,
        loss_weights,
        metrics={"segmentation": [miou]},
        jit_compile=recipe.xla,
    )


def build_variables(model: keras.Model, batch: Any) -> None:
    """Create the variables of the optimizer and the metrics before the first step.

    Otherwise the first step creates them, and TensorFlow traces it twice. `batch` is inputs and
    labels, or their specifications.
    """
    model._symbolic_build(data_batch=batch)


def build_augmentation(recipe: Recipe, model: AlignSeg, crop_size: tuple[int, int]) -> Augmentation:
    """Return the augmentation of a recipe."""
    return Augmentation(
        crop_size,
        recipe.scale,
        recipe.scale_distribution,
        recipe.placement,
        max_class_share=recipe.max_class_share,
        color=recipe.color,
        photometric=recipe.photometric,
        fill=mean_color(model),
    )


def mean_color(model: AlignSeg) -> tuple[float, float, float]:
    """Return the RGB colour that the model's normalization maps to zero, or the default fill."""
    if model.normalization is None:
        return Augmentation.fill
    mean = tuple(model.normalization["mean"])
    return mean[::-1] if model.normalization.get("channel_order") == "bgr" else mean  # type: ignore[return-value]


def set_synchronized_batch_norm(model: keras.Model, synchronized: bool) -> None:
    """Set whether batch norms average over all replicas; call it before the first step."""
    for layer in nested_layers(model):
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = synchronized


def for_inference(model: AlignSeg) -> AlignSeg:
    """Return a float32 copy for use: logits at image size, averaged weights if there are any."""
    copy = with_dtype_policy(model, "float32", upsample_logits=True)
    for layer in (copy, *nested_layers(copy)):
        layer.trainable = True
    average = averaged_weights(model)
    if average is not None:
        copy.set_weights(average)
    set_synchronized_batch_norm(copy, False)
    return copy


def check_batch_size(recipe: Recipe, replicas: int) -> None:
    """Raise a `RecipeError` if the devices cannot share a batch."""
    if recipe.batch_size % replicas:
        raise RecipeError(
            f"batch_size {recipe.batch_size} must be a multiple of the {replicas} replicas"
        )
    if recipe.accumulate > 1 and replicas > 1:
        raise RecipeError(
            "accumulate works on one device: Keras cannot accumulate under tf.distribute. "
            f"Received: accumulate {recipe.accumulate} on {replicas} devices"
        )
    if recipe.context == "global" and recipe.batch_size == replicas:
        raise RecipeError(
            "context 'global' needs at least 2 crops on each device: batch norm over the one value "
            f"of a map pooled to 1x1 is undefined. Received: batch_size {recipe.batch_size} on "
            f"{replicas} devices"
        )
