"""A model with its weights as constants, which a CPU's kernels lay out once for all runs."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.core.framework.graph_pb2 import GraphDef
from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

# Constants of fewer values, biases for instance, stay in float32: they take little space.
LEAST_HALVED = 1024


def freeze(
    model: keras.Model, size: tuple[int | None, int | None], kept_as: str = "float32"
) -> Callable[[Any], Any]:
    """Return a model's inference as a function with constants in place of variables.

    Later changes of the model do not reach it.

    Args:
        model: of one input, images [B, H, W, 3]; its outputs may be of any structure.
        size: height and width of the images, None where they are free.
        kept_as: dtype of the weights in the graph. With `float16` and `bfloat16` a written graph
            takes half the space. TensorFlow casts them to float32 once, when it loads the graph.

    Returns:
        A function from float32 images [B, H, W, 3] to the model's outputs. It may be called within
        a `tf.function` and written into a SavedModel.
    """
    spec = tf.TensorSpec((None, *size, 3), tf.float32)
    traced = tf.function(lambda images: model(images, training=False)).get_concrete_function(spec)
    constant = convert_variables_to_constants_v2(traced)
    if kept_as != "float32":
        graph = _with_halves(constant.graph.as_graph_def(), tf.as_dtype(kept_as))
        imported = tf.compat.v1.wrap_function(lambda: tf.import_graph_def(graph, name=""), [])
        names = ([tensor.name for tensor in x] for x in (constant.inputs, constant.outputs))
        constant = imported.prune(*names)

    def run(images: Any) -> Any:
        return tf.nest.pack_sequence_as(traced.structured_outputs, constant(images))

    return run


def _with_halves(graph: GraphDef, half: tf.DType) -> GraphDef:
    """Return a graph whose large float32 constants are casts of shorter ones."""
    changed = GraphDef()
    changed.CopyFrom(graph)
    del changed.node[:]
    for node in graph.node:
        if node.op == "Const" and node.attr["dtype"].type == tf.float32.as_datatype_enum:
            values = tf.make_ndarray(node.attr["value"].tensor)
            if values.size >= LEAST_HALVED and np.abs(values).max() <= half.max:
                changed.node.extend(_cast_of_half(node, values.astype(half.as_numpy_dtype)))
                continue
        changed.node.append(node)
    return changed


def _cast_of_half(node: NodeDef, values: np.ndarray) -> tuple[NodeDef, NodeDef]:
    """Return a short constant, and the cast of it that takes the place of a float32 one."""
    half, full = tf.as_dtype(values.dtype).as_datatype_enum, tf.float32.as_datatype_enum
    constant = NodeDef(op="Const", name=f"{node.name}/half")
    constant.attr["dtype"].type = half
    constant.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(values))
    cast = NodeDef(op="Cast", name=node.name, input=[constant.name])
    cast.attr["SrcT"].type, cast.attr["DstT"].type = half, full
    return constant, cast
