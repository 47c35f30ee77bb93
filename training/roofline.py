"""What a processor can do at most, and how much of that each block of the inference graph does.

An operation needs its multiply-adds and its bytes. At the speed of a large 3x3 convolution and of
a copy on the same machine, measured in the same minute, it would take

    floor = max(2 MAC / convolution ceiling, bytes / copy ceiling)

and its share of the roofline is the floor over its time. Small maps, kernels of few channels and
passes that another operation could have done on its way keep it below 1; a map that stays in the
cache can lift it above.
"""

import dataclasses
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np

from alignseg_tf.progress import counter
from training.contest import Task

# Names of layers in the inference graph begin with that of their block.
BLOCKS = (
    "normalization", "backbone", "refinement", "aggregation", "context_modeling",
    "segmentation_head", "segmentation",
)  # fmt: skip


def ceilings(rounds: int) -> dict[str, float]:
    """Measure what the machine can do.

    Returns:
        `flops`: a second, in a 3x3 convolution of 256 channels over 64 x 128 cells; `bytes`: a
        second, read and written, in a copy of 256 MiB.
    """
    import tensorflow as tf

    rng = np.random.default_rng(0)
    x = tf.constant(rng.standard_normal((1, 64, 128, 256)), tf.float32)
    kernel = rng.standard_normal((3, 3, 256, 256)).astype(np.float32)
    convolve = tf.function(lambda x: tf.nn.conv2d(x, kernel, 1, "SAME"))
    source = tf.zeros(2**26)
    copy = tf.function(lambda x: x + 1.0)
    flops = 2 * 64 * 128 * 9 * 256 * 256 / _median(lambda: convolve(x), rounds)
    return {"flops": flops, "bytes": 2 * 2**28 / _median(lambda: copy(source), rounds)}


def _median(run: Callable[[], Any], rounds: int) -> float:
    seconds = []
    for number in range(rounds + 2):
        start = time.perf_counter()
        run()
        if number >= 2:
            seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def measure_blocks(task: Task, rounds: int) -> dict[str, Any]:
    """Time every operation of the frozen inference graph, one after another.

    Returns:
        `ceilings`, `parameters` of the trained model, and `blocks`: for each its MACs, bytes,
        seconds, floor and share; the last block is the whole.
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    from alignseg_tf.export import inference_model
    from training.forms import build

    v1 = tf.compat.v1
    model = build(task)
    network = inference_model(model)
    shape = (task.batch, task.height, task.width, 3)
    traced = tf.function(lambda images: network(images)["segmentation"])
    frozen = convert_variables_to_constants_v2(
        traced.get_concrete_function(tf.TensorSpec(shape, tf.float32))
    )
    best = ceilings(rounds)
    options = v1.RunOptions(trace_level=v1.RunOptions.FULL_TRACE)
    seconds: dict[str, list[float]] = defaultdict(list)
    with tf.Graph().as_default() as graph:
        v1.import_graph_def(frozen.graph.as_graph_def(), name="")
        config = v1.ConfigProto(inter_op_parallelism_threads=1)  # one operation at a time
        feed = {frozen.inputs[0].name: task.pictures()}
        fetch = frozen.outputs[0].name
        show = counter("rounds")
        with v1.Session(graph=graph, config=config) as session:
            session.run(fetch, feed)
            for done in range(rounds):
                record = v1.RunMetadata()
                session.run(fetch, feed, options=options, run_metadata=record)
                for name, value in _seconds_of_blocks(record.step_stats).items():
                    seconds[name].append(value)
                show(done + 1, rounds)
        work = _work_of_blocks(graph)
    blocks = []
    for name in [name for name in BLOCKS if name in seconds]:
        macs, moved = work[name]
        blocks.append(_block(name, macs, moved, float(np.median(seconds[name])), best))
    total = [sum(block[key] for block in blocks) for key in ("macs", "bytes", "seconds")]
    floor = sum(block["floor_seconds"] for block in blocks)
    whole = _block("all", int(total[0]), int(total[1]), total[2], best)
    whole |= {"floor_seconds": floor, "share": floor / total[2]}
    return {
        "task": dataclasses.asdict(task),
        "ceilings": best,
        "parameters": model.count_params(),
        "blocks": [*blocks, whole],
    }


def _block(
    name: str, macs: int, moved: int, seconds: float, best: dict[str, float]
) -> dict[str, Any]:
    floor = max(2 * macs / best["flops"], moved / best["bytes"])
    return {
        "name": name,
        "macs": macs,
        "bytes": moved,
        "seconds": seconds,
        "floor_seconds": floor,
        "share": floor / seconds,
    }


def _block_of(operation: str) -> str | None:
    """Return the block that an operation belongs to, by its name."""
    parts = operation.split("/")
    for part in parts[1:2] or parts:
        for block in BLOCKS:
            if part.startswith(block):
                return block
    return None


def _seconds_of_blocks(statistics: Any) -> dict[str, float]:
    found: dict[str, float] = defaultdict(float)
    for device in statistics.dev_stats:
        for node in device.node_stats:
            block = _block_of(node.node_name) or "segmentation"
            found[block] += 1e-6 * (node.op_end_rel_micros - node.op_start_rel_micros)
    return found


def _work_of_blocks(graph: Any) -> dict[str, tuple[int, int]]:
    """Return multiply-adds, and bytes of the maps that convolutions read and blocks write."""
    from alignseg_tf.summary import operation_macs

    found: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for operation in graph.get_operations():
        block = _block_of(operation.name)
        if block is None or operation.type in ("Const", "Identity", "Shape"):
            continue
        macs = sum(operation_macs(operation))
        tensors = [*operation.inputs, *operation.outputs] if macs else ()
        moved = sum(4 * (tensor.shape.num_elements() or 0) for tensor in tensors)
        before = found[block]
        found[block] = (before[0] + macs, before[1] + moved)
    return found


def blocks_table(result: dict[str, Any]) -> str:
    """Return what `measure_blocks` found as a table."""
    best = result["ceilings"]
    lines = [f"{'':18}  {'GMAC':>8}  {'MB':>8}  {'ms':>8}  {'floor ms':>8}  {'share':>6}"]
    for block in result["blocks"]:
        lines.append(
            f"{block['name']:18}  {block['macs'] / 1e9:8.2f}  {block['bytes'] / 1e6:8.0f}  "
            f"{1e3 * block['seconds']:8.1f}  {1e3 * block['floor_seconds']:8.1f}  "
            f"{block['share']:6.0%}"
        )
    lines.append(
        f"{result['parameters'] / 1e6:.2f} M parameters; ceilings: {best['flops'] / 1e9:.0f} "
        f"GFLOP/s in a 3x3 convolution of 256 channels, {best['bytes'] / 1e9:.1f} GB/s in a copy"
    )
    return "\n".join(lines)
