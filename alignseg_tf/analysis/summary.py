"""What each block of a model costs: parameters, multiply-adds, size of its output, and time."""

import inspect
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from alignseg_tf.model import MIN_IMAGE_SIZE, AlignSeg
from alignseg_tf.system.environment import cores
from alignseg_tf.system.progress import progress_bar

# The layers that inference can do without: the second head, and what brings it to full size.
AUXILIARY_LAYERS = ("auxiliary_head", "auxiliary")
BYTES_PER_VALUE = 4


@dataclass(frozen=True)
class Block:
    """One block of a model, or the sum of several.

    Attributes:
        name: the layer's name.
        output_shapes: (H, W, C) of each output; none for a sum.
        parameters: number of weights, also of those that training leaves alone.
        convolution_macs: multiply-adds of convolutions, which the literature counts.
        matmul_macs: multiply-adds of matrix products. Here these resize and pool.
        seconds: median time of the block alone, None where it was not measured.
        auxiliary: whether the block serves the auxiliary head only.
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
        """Return the numbers that blocks can be summed by, as plain values for JSON."""
        return {
            "parameters": self.parameters,
            "convolution_macs": self.convolution_macs,
            "matmul_macs": self.matmul_macs,
            "seconds": self.seconds,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers as plain values for JSON."""
        return {
            "name": self.name,
            "auxiliary": self.auxiliary,
            "output_shapes": [list(shape) for shape in self.output_shapes],
            "output_bytes": self.output_bytes,
            **self.costs(),
        }


@dataclass(frozen=True)
class ModelSummary:
    """What the blocks of a model cost for one image.

    Attributes:
        size: (height, width) of the image in pixels.
        runs: how often each block was timed; 0 for not at all.
        blocks: the layers of the model, in the order of `model.summary()`.
        graph_seconds: median time of the model in one graph, without the auxiliary head; None
            where it was not measured.
        device: what it was measured on.
        tensorflow: version of TensorFlow.
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
        """Return the numbers as plain values for JSON; a time that was not measured is None."""
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
        """Return a table with a row for each block, its sums, and what its columns mean."""
        head = ["block", "output", "MB", "parameters", "conv GMAC", "matmul GMAC"]
        rows = []
        for block in self.blocks:
            name = f"{block.name} *" if block.auxiliary else block.name
            outputs = [
                ["x".join(map(str, shape)), f"{BYTES_PER_VALUE * math.prod(shape) / 1e6:.1f}"]
                for shape in block.output_shapes
            ]
            rows.append([name, *outputs[0], *self._numbers(block)])
            rows += [["", *output, *[""] * len(self._numbers(block))] for output in outputs[1:]]
        sums = [self.total, self.inference] if self._has_auxiliary() else [self.total]
        ends = [[block.name, "", "", *self._numbers(block)] for block in sums]
        if self.graph_seconds is not None:
            head += ["ms", "share"]
            ends.append(["in one graph", *[""] * 5, f"{1e3 * self.graph_seconds:.1f}", ""])
        widths = [max(map(len, column)) for column in zip(head, *rows, *ends, strict=True)]
        rule = ["-" * width for width in widths]
        lines = [
            "  ".join(
                cell.ljust(width) if column < 2 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in [head, rule, *rows, rule, *ends]
        ]
        return "\n".join([*lines, "", *self._notes()])

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
            notes.append("*: for the auxiliary head, which inference leaves away.")
        if self.graph_seconds is not None:
            whole = "what inference needs" if self._has_auxiliary() else "the whole"
            notes += [
                f"ms: median of {self.runs} runs, of each block by itself in turn, then of {whole}",
                "in one graph. Share: of the total.",
                f"TensorFlow {self.tensorflow}, {self.device}.",
            ]
        return notes


def summarize(
    model: AlignSeg,
    size: Sequence[int] = (512, 1024),
    runs: int = 5,
) -> ModelSummary:
    """Count and time what a model does in inference with one image, block by block.

    Every layer of the model is traced by itself, at the shapes that it has for an image of this
    size. What is counted is in these graphs: a convolution that runs at a coarse size, since it
    commutes with resizing, counts as it runs. Times are of noise with the model's own weights,
    and every block reads what the one before it has made. Each round runs all blocks once, then
    the whole model, so that what else the machine does hits all alike.

    Args:
        model: the model; it is left as it is.
        size: (height, width) of the image in pixels, each at least 32.
        runs: rounds that are timed, after one that is not. With 0 nothing is executed.

    Returns:
        A block for each layer. A linear activation, which only casts, is left out.

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
    if min(height, width) < MIN_IMAGE_SIZE:
        raise ValueError(
            f"`size` must be at least {MIN_IMAGE_SIZE} x {MIN_IMAGE_SIZE} pixels. "
            f"Received: size={tuple(size)}"
        )
    if runs < 0:
        raise ValueError(f"`runs` must be 0 or more. Received: runs={runs}")
    if keras.config.backend() != "tensorflow":
        raise ValueError(
            "A summary is made of TensorFlow's graphs and needs it as the backend of Keras. "
            f"Received: the backend {keras.config.backend()!r}"
        )
    _check_backbone_size(model, (height, width))

    images = tf.TensorSpec((1, height, width, 3), tf.float32)
    if runs:
        noise = np.random.default_rng(0).uniform(0, 255, images.shape)
        images = tf.constant(noise, tf.float32)
    traced: dict[str, _Traced] = {}

    def execute(layer: keras.layers.Layer) -> Callable[..., Any]:
        def call(*inputs: Any, **options: Any) -> Any:
            traced[layer.name] = block = _trace(layer, inputs, options)
            return block.function(*inputs) if runs else block.output_specs

        return call

    model._run_through_graph([images], execute)
    seconds: dict[str, float | None] = dict.fromkeys(traced)
    graph_seconds = None
    if runs:
        whole = _trace(lambda x: model(x, training=False)["segmentation"], (images,), {})
        medians = _median_seconds([*traced.values(), whole], runs)
        *block_seconds, graph_seconds = medians
        seconds = dict(zip(traced, block_seconds, strict=True))

    blocks = []
    for layer in model.layers:
        if layer.name not in traced or isinstance(layer, keras.layers.Activation):
            continue
        outputs = keras.tree.flatten(traced[layer.name].output_specs)
        convolution_macs, matmul_macs = count_macs(traced[layer.name].function.graph)
        blocks.append(
            Block(
                name=layer.name,
                output_shapes=tuple(tuple(output.shape[1:]) for output in outputs),
                parameters=layer.count_params(),
                convolution_macs=convolution_macs,
                matmul_macs=matmul_macs,
                seconds=seconds[layer.name],
                auxiliary=layer.name in AUXILIARY_LAYERS,
            )
        )
    return ModelSummary(
        size=(height, width),
        runs=runs,
        blocks=tuple(blocks),
        graph_seconds=graph_seconds,
        device=_device(),
        tensorflow=tf.__version__,
    )


def count_macs(graph: Any) -> tuple[int, int]:
    """Count the multiply-adds of a TensorFlow graph whose shapes are static.

    Args:
        graph: for instance `tf.function(...).get_concrete_function(...).graph`.

    Returns:
        Those of convolutions, also grouped and depthwise ones, and those of matrix products, also
        of einsum.
    """
    macs = [operation_macs(operation) for operation in graph.get_operations()]
    return sum(convolutions for convolutions, _ in macs), sum(products for _, products in macs)


def operation_macs(operation: Any) -> tuple[int, int]:
    """Count the multiply-adds of one operation of a graph, as `count_macs` does."""
    if operation.type.endswith("PartitionedCall"):  # Keras compiles grouped convolutions
        name = operation.get_attr("f").name
        return count_macs(operation.graph._get_function(name).graph)
    length = _sum_length(operation)
    macs = length * operation.outputs[0].shape.num_elements() if length else 0
    return (macs, 0) if "Conv" in operation.type else (0, macs)


def _sum_length(operation: Any) -> int:
    """Return how many products make one value of the result, 0 for what is not counted."""
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


@dataclass(frozen=True)
class _Traced:
    """A graph, what it is run with, and the `tf.TensorSpec`s of what it returns."""

    function: Any
    inputs: tuple[Any, ...]
    output_specs: Any


def _trace(call: Callable[..., Any], inputs: tuple[Any, ...], options: dict[str, Any]) -> _Traced:
    """Trace a layer, in inference, or a function, at the shapes of tensors or of their specs."""
    if isinstance(call, keras.layers.Layer) and (
        "training" in inspect.signature(call.call).parameters
    ):
        options = {**options, "training": False}
    # The inputs are arguments: of constants TensorFlow would compute the result beforehand.
    function = tf.function(lambda *x: call(*x, **options), autograph=False)
    specs = [tf.TensorSpec(x.shape, x.dtype) for x in inputs]
    concrete = function.get_concrete_function(*specs)
    output_specs = keras.tree.map_structure(
        lambda x: tf.TensorSpec(x.shape, x.dtype), concrete.structured_outputs
    )
    return _Traced(concrete, inputs, output_specs)


def _median_seconds(blocks: Sequence[_Traced], runs: int) -> list[float]:
    """Run all blocks once, then in turns, and return the median time of each."""
    seconds: list[list[float]] = [[] for _ in blocks]
    for _ in progress_bar(range(runs + 1), "timing", unit="round"):
        for block, times in zip(blocks, seconds, strict=True):
            start = time.perf_counter()
            block.function(*block.inputs)
            tf.test.experimental.sync_devices()  # a GPU has only been given orders so far
            times.append(time.perf_counter() - start)
    return [statistics.median(times[1:]) for times in seconds]


def _check_backbone_size(model: AlignSeg, size: tuple[int, int]) -> None:
    expected = tuple(model.backbone.inputs[0].shape[1:3])
    if any(side not in (None, n) for side, n in zip(expected, size, strict=True)):
        raise ValueError(
            f"The backbone takes images of {expected[0]} x {expected[1]} pixels only. "
            f"Received: size={size}"
        )


def _sum(name: str, blocks: Iterable[Block]) -> Block:
    blocks = list(blocks)
    seconds = [block.seconds for block in blocks if block.seconds is not None]
    return Block(
        name=name,
        output_shapes=(),
        parameters=sum(block.parameters for block in blocks),
        convolution_macs=sum(block.convolution_macs for block in blocks),
        matmul_macs=sum(block.matmul_macs for block in blocks),
        seconds=sum(seconds) if seconds else None,
    )


def _device() -> str:
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        return tf.config.experimental.get_device_details(gpus[0]).get("device_name", gpus[0].name)
    threads = tf.config.threading.get_intra_op_parallelism_threads() or cores()
    return f"{cores()} CPU cores, {threads} threads"
