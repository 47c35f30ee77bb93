"""The cost of each block of a model: parameters, multiply-adds, output size and time."""

import inspect
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from alignseg_tf.model import MIN_IMAGE_SIZE, AlignSeg
from alignseg_tf.system.environment import cores, machine
from alignseg_tf.system.progress import progress_bar
from alignseg_tf.system.tables import text_table

# Layers that inference does not need: the second head and its upsampling.
AUXILIARY_LAYERS = ("auxiliary_head", "auxiliary")
BYTES_PER_VALUE = 4


@dataclass(frozen=True)
class Block:
    """One block of a model, or the sum of several.

    Attributes:
        name: the layer's name.
        output_shapes: (H, W, C) of each output; none for a sum.
        parameters: number of weights, trainable or not.
        convolution_macs: multiply-adds of convolutions, which the literature counts.
        matmul_macs: multiply-adds of matrix products, which resize and pool here.
        seconds: median time of the block, None where it was not measured.
        auxiliary: whether only the auxiliary head needs the block.
    """

    name: str
    output_shapes: tuple[tuple[int, ...], ...]
    parameters: int
    convolution_macs: int
    matmul_macs: int
    seconds: float | None
    auxiliary: bool = False

    @property
    def macs(self) -> int:
        """All multiply-adds that were counted."""
        return self.convolution_macs + self.matmul_macs

    @property
    def output_bytes(self) -> int:
        """Size of all outputs in float32."""
        return sum(BYTES_PER_VALUE * math.prod(shape) for shape in self.output_shapes)

    def costs(self) -> dict[str, Any]:
        """Return the numbers that add up over blocks, for JSON."""
        names = ("parameters", "convolution_macs", "matmul_macs", "seconds")
        return {name: getattr(self, name) for name in names}

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers, for JSON."""
        return {**asdict(self), "output_bytes": self.output_bytes}


@dataclass(frozen=True)
class ModelSummary:
    """The cost of a model's blocks for one image.

    Attributes:
        size: (height, width) of the image in pixels.
        runs: timed runs of each block; 0 for none.
        blocks: the layers of the model, in the order of `model.summary()`.
        graph_seconds: median time of inference in one graph; None where it was not measured.
        device: the processor or GPU.
        tensorflow: its version.
    """

    size: tuple[int, int]
    runs: int
    blocks: tuple[Block, ...]
    graph_seconds: float | None
    device: str
    tensorflow: str

    @property
    def total(self) -> Block:
        """The sum of all blocks."""
        return _sum("total", self.blocks)

    @property
    def inference(self) -> Block:
        """The sum of the blocks that inference needs: all but those of the auxiliary head."""
        return _sum("inference", [block for block in self.blocks if not block.auxiliary])

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers for JSON; a time that was not measured is None."""
        return {
            "height_pixels": self.size[0],
            "width_pixels": self.size[1],
            "runs": self.runs,
            "device": self.device,
            "tensorflow": self.tensorflow,
            "blocks": [block.to_dict() for block in self.blocks],
            "total": self.total.costs(),
            "inference": self.inference.costs(),
            "graph_seconds": self.graph_seconds,
        }

    def table(self) -> str:
        """Return a table with a row for each block, the sums, and notes on the columns."""
        head = ["block", "output", "MB", "parameters", "conv GMAC", "matmul GMAC"]
        rows: list[Sequence[str] | None] = []
        for block in self.blocks:
            first, *others = [
                ("x".join(map(str, shape)), f"{BYTES_PER_VALUE * math.prod(shape) / 1e6:.1f}")
                for shape in block.output_shapes
            ]
            rows.append((block.name + " *" * block.auxiliary, *first, *self._numbers(block)))
            rows += [("", *other) for other in others]
        sums = [self.total, self.inference] if self._has_auxiliary() else [self.total]
        rows += [None, *((block.name, "", "", *self._numbers(block)) for block in sums)]
        if self.graph_seconds is not None:
            head += ["ms", "share"]
            rows.append(("in one graph", *[""] * 5, f"{1e3 * self.graph_seconds:.1f}"))
        return "\n".join([text_table([head, None, *rows], left=2), "", *self._notes()])

    def _has_auxiliary(self) -> bool:
        return any(block.auxiliary for block in self.blocks)

    def _numbers(self, block: Block) -> list[str]:
        numbers = [
            f"{block.parameters:,}",
            f"{block.convolution_macs / 1e9:.3f}",
            f"{block.matmul_macs / 1e9:.3f}",
        ]
        if block.seconds is not None and self.total.seconds is not None:
            share = block.seconds / self.total.seconds
            numbers += [f"{1e3 * block.seconds:.1f}", f"{share:.1%}"]
        return numbers

    def _notes(self) -> list[str]:
        height, width = self.size
        notes = [
            f"One image of {height} x {width} pixels. MB: 1e6 bytes of output, in float32.",
            "GMAC: 1e9 multiply-adds, zeros of padding included: of convolutions (conv), which the",
            "literature counts, and of matrix products (matmul), which resize and pool here.",
            "Norms, activations and sampling by offsets are not counted.",
        ]
        if self._has_auxiliary():
            notes.append("*: for the auxiliary head, which inference omits.")
        if self.graph_seconds is not None:
            notes += [
                f"ms: median of {self.runs} runs of each block, and of inference in one graph.",
                f"Share: of the total. TensorFlow {self.tensorflow}, {self.device}.",
            ]
        return notes


def summarize(model: AlignSeg, size: Sequence[int] = (512, 1024), runs: int = 5) -> ModelSummary:
    """Count and time what a model does in inference with one image, block by block.

    Count the operations in the graph of each layer. A convolution that commutes with resizing
    counts at the coarse size at which it runs. Time each block on noise that went through the
    blocks before it. A round runs all blocks and then the whole model, so that other load on the
    machine affects all alike.

    Args:
        model: the model; it is not changed.
        size: (height, width) of the image in pixels, each at least 32.
        runs: timed rounds, after one that is not. With 0 nothing is executed.

    Returns:
        A block for each layer, except linear activations, which only cast.

    Raises:
        ValueError: an argument out of its range, a backbone for another size, or a Keras
            backend other than TensorFlow.

    Example:
        >>> from alignseg_tf import AlignSeg, backbones
        >>> model = AlignSeg(backbones.resnet((1, 1, 1, 1), width=8), num_classes=7, channels=16)
        >>> summary = summarize(model, size=(64, 96), runs=0)
        >>> summary.total.parameters == model.count_params()
        True
        >>> [block.name for block in summary.blocks if block.auxiliary]
        ['auxiliary_head', 'auxiliary']
    """
    height, width = (int(side) for side in size)
    _check_arguments(model, (height, width), runs)
    images = tf.TensorSpec((1, height, width, 3), tf.float32)
    if runs:
        noise = np.random.default_rng(0).uniform(0, 255, images.shape)
        images = tf.constant(noise, tf.float32)
    traced = _trace_layers(model, images, runs > 0)
    seconds: dict[str, float | None] = dict.fromkeys(traced)
    graph_seconds = None
    if runs:
        whole = _trace(lambda x: model(x, training=False)["segmentation"], (images,), {})
        *medians, graph_seconds = _median_seconds([*traced.values(), whole], runs)
        seconds = dict(zip(traced, medians, strict=True))
    blocks = tuple(
        _block(layer, traced[layer.name].function, seconds[layer.name])
        for layer in model.layers
        if layer.name in traced and not isinstance(layer, keras.layers.Activation)
    )
    return ModelSummary((height, width), runs, blocks, graph_seconds, _device(), tf.__version__)


def _check_arguments(model: AlignSeg, size: tuple[int, int], runs: int) -> None:
    if min(size) < MIN_IMAGE_SIZE:
        raise ValueError(
            f"`size` must be at least {MIN_IMAGE_SIZE} x {MIN_IMAGE_SIZE} pixels. "
            f"Received: size={size}"
        )
    if runs < 0:
        raise ValueError(f"`runs` must be 0 or more. Received: runs={runs}")
    if (backend := keras.config.backend()) != "tensorflow":
        raise ValueError(f"A summary needs Keras' backend 'tensorflow'. Received: {backend!r}")
    expected = model.backbone.inputs[0].shape[1:3]
    if any(side not in (None, n) for side, n in zip(expected, size, strict=True)):
        raise ValueError(
            f"The backbone takes only images of {expected[0]} x {expected[1]} pixels. "
            f"Received: size={size}"
        )


class _Traced(NamedTuple):
    """A graph and its inputs, tensors or their specs."""

    function: Any
    inputs: tuple[Any, ...]


def _trace_layers(model: AlignSeg, images: Any, execute: bool) -> dict[str, _Traced]:
    """Trace the layers of a model by name, each on the results of those before it."""
    traced: dict[str, _Traced] = {}

    def tracer(layer: keras.layers.Layer) -> Callable[..., Any]:
        def call(*inputs: Any, **options: Any) -> Any:
            traced[layer.name] = block = _trace(layer, inputs, options)
            return block.function(*inputs) if execute else block.function.structured_outputs

        return call

    model._run_through_graph([images], tracer)
    return traced


def _trace(call: Callable[..., Any], inputs: tuple[Any, ...], options: dict[str, Any]) -> _Traced:
    """Trace a function, or a layer in inference, at the shapes of its inputs."""
    if isinstance(call, keras.layers.Layer) and (
        "training" in inspect.signature(call.call).parameters
    ):
        options = {**options, "training": False}
    # The inputs are arguments: of constants TensorFlow would compute the result beforehand.
    function = tf.function(lambda *x: call(*x, **options), autograph=False)
    specs = [tf.TensorSpec(x.shape, x.dtype) for x in inputs]
    return _Traced(function.get_concrete_function(*specs), inputs)


def _block(layer: keras.layers.Layer, function: Any, seconds: float | None) -> Block:
    outputs = keras.tree.flatten(function.structured_outputs)
    return Block(
        layer.name,
        tuple(tuple(output.shape[1:]) for output in outputs),
        layer.count_params(),
        *count_macs(function.graph),
        seconds,
        layer.name in AUXILIARY_LAYERS,
    )


def count_macs(graph: Any) -> tuple[int, int]:
    """Count the multiply-adds of a `tf.Graph` of static shapes: of convolutions, of products."""
    convolutions = products = 0
    for operation in graph.get_operations():
        if operation.type.endswith("PartitionedCall"):  # Keras compiles grouped convolutions
            name = operation.get_attr("f").name
            inner = count_macs(graph._get_function(name).graph)
            convolutions, products = convolutions + inner[0], products + inner[1]
        elif length := _sum_length(operation):
            macs = length * operation.outputs[0].shape.num_elements()
            if "Conv" in operation.type:
                convolutions += macs
            else:
                products += macs
    return convolutions, products


def _sum_length(operation: Any) -> int:
    """Return the number of products summed in each value of the result; 0 if not counted."""
    shapes = [tensor.shape for tensor in operation.inputs]
    match operation.type:
        case "Conv2D":  # kernel [h, w, channels of one group, filters]
            return math.prod(shapes[1][:3])
        case "DepthwiseConv2dNative":  # kernel [h, w, channels, multiplier]
            return math.prod(shapes[1][:2])
        case "MatMul":
            return shapes[0][0 if operation.get_attr("transpose_a") else 1]
        case "BatchMatMulV2":
            return shapes[0][-2 if operation.get_attr("adj_x") else -1]
        case "Einsum":
            terms, result = operation.get_attr("equation").decode().split("->")
            sizes: dict[str, int] = {}
            for term, shape in zip(terms.split(","), shapes, strict=True):
                before, _, after = term.partition("...")  # axes without letters are in the result
                sizes.update(zip(before, shape, strict=False))
                sizes.update(zip(reversed(after), reversed(shape), strict=False))
            return math.prod(size for axis, size in sizes.items() if axis not in result)
    return 0


def _median_seconds(blocks: Sequence[_Traced], runs: int) -> list[float]:
    """Run all blocks alternately and return the median time of each, without the first round."""
    seconds: list[list[float]] = [[] for _ in blocks]
    for _ in progress_bar(range(runs + 1), "timing", unit="round"):
        for block, times in zip(blocks, seconds, strict=True):
            start = time.perf_counter()
            block.function(*block.inputs)
            tf.test.experimental.sync_devices()  # wait for the GPU
            times.append(time.perf_counter() - start)
    return [statistics.median(times[1:]) for times in seconds]


def _sum(name: str, blocks: Iterable[Block]) -> Block:
    costs = [tuple(block.costs().values()) for block in blocks]
    parameters, convolutions, products, seconds = zip(*costs, strict=True)
    measured = [time for time in seconds if time is not None]
    return Block(name, (), sum(parameters), sum(convolutions), sum(products), sum(measured) or None)


def _device() -> str:
    if gpus := machine()["gpus"]:
        return gpus[0]
    threads = tf.config.threading.get_intra_op_parallelism_threads() or cores()
    return f"{cores()} CPU cores, {threads} threads"
