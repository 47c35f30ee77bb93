import dataclasses
import json
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import shared_tiny_model

from alignseg_tf import AlignSeg, backbones
from alignseg_tf.analysis.summary import (
    Block,
    ModelSummary,
    _median_seconds,
    _Traced,
    count_macs,
    summarize,
)

# The tiny model on an image of 64 x 96: 8 channels in the decoder, 3 classes, and a backbone
# whose stem has 32 x 48 cells, its four levels these, with 32, 64, 128 and 256 channels.
SIZE = (64, 96)
P2, P3, P4, P5 = 17 * 25, 9 * 13, 5 * 7, 3 * 4


def refinement(cells, channels):
    """conv1x1 to 8, conv3x3 8 -> 2, norm of 2, conv3x3 2 -> 8, norm of 8."""
    weights = channels * 8 + 9 * 8 * 2 + 9 * 2 * 8
    return weights + 4 * (2 + 8), cells * weights, 0


def resizing(h, w, height, width, channels):
    """[width, w] times [h, w, channels], then [height, h] times [h, width * channels]."""
    return h * width * w * channels + height * h * width * channels


def aggregation(h, w):
    """conv1x1 of both maps to 2 x 8, at their own sizes; norm; two conv3x3 8 -> 2.

    The last two run as a conv1x1 16 -> 9 x 4 and a fixed conv3x3 9 x 4 -> 4.
    """
    parameters = 2 * 8 * 16 + 4 * 16 + 2 * 9 * 8 * 2
    convolutions = (P2 + h * w) * 8 * 16 + P2 * (16 * 36 + 9 * 36 * 4)
    return parameters, convolutions, resizing(h, w, 17, 25, 16) + resizing(h, w, 17, 25, 8)


HEAD = (9 * 8 * 8 + 8 + 4 * 8 + 8 * 3 + 3, P2 * (9 * 8 * 8 + 8 * 3), 0)
FULL_SIZE = (0, 0, resizing(17, 25, 64, 96, 3))
# Name: parameters, multiply-adds of convolutions, of matrix products.
BY_HAND = {
    "normalization": (0, 0, 0),
    "backbone": (
        9 * (3 * 8 + 8 * 8 + 8 * 16) + 4 * (8 + 8 + 16)
        + 16 * 8 + 9 * 8 * 8 + 8 * 32 + 16 * 32 + 4 * (8 + 8 + 32 + 32)
        + 32 * 16 + 9 * 16 * 16 + 16 * 64 + 32 * 64 + 4 * (16 + 16 + 64 + 64)
        + 64 * 32 + 9 * 32 * 32 + 32 * 128 + 64 * 128 + 4 * (32 + 32 + 128 + 128)
        + 128 * 64 + 9 * 64 * 64 + 64 * 256 + 128 * 256 + 4 * (64 + 64 + 256 + 256),
        32 * 48 * 9 * (3 * 8 + 8 * 8 + 8 * 16)
        + P2 * (16 * 8 + 9 * 8 * 8 + 8 * 32 + 16 * 32)
        + P2 * 32 * 16 + P3 * (9 * 16 * 16 + 16 * 64 + 32 * 64)
        + P3 * 64 * 32 + P4 * (9 * 32 * 32 + 32 * 128 + 64 * 128)
        + P4 * 128 * 64 + P5 * (9 * 64 * 64 + 64 * 256 + 128 * 256),
        0,
    ),
    "refinement_p2": refinement(P2, 32),
    "refinement_p3": refinement(P3, 64),
    "aggregation_p3": aggregation(9, 13),
    "refinement_d2": refinement(P2, 8),
    "refinement_p4": refinement(P4, 128),
    "aggregation_p4": aggregation(5, 7),
    "refinement_d3": refinement(P2, 8),
    "refinement_p5": refinement(P5, 256),
    "aggregation_p5": aggregation(3, 4),
    "context_modeling": (
        2 * (256 * 256 + 4 * 256 + 9 * 256 * 8 + 4 * 8) + 2 * 8 * 8 + 4 * 8 + 9 * 8 * 2,
        (P5 + 3 * 3) * (256 * 256 + 9 * 256 * 8 + 8 * 8) + P5 * (8 * 18 + 9 * 18 * 2),
        # Pooling is a product with [3, 4] and one with [3, 3].
        3 * 3 * 4 * 256 + 3 * 3 * 3 * 256 + resizing(3, 3, 3, 4, 8),
    ),
    "refinement_d4": refinement(P2, 8),
    "refinement_context": refinement(P5, 8),
    "aggregation_context": aggregation(3, 4),
    "refinement_d5": refinement(P2, 8),
    "auxiliary_head": HEAD,
    "segmentation_head": HEAD,
    "auxiliary": FULL_SIZE,
    "segmentation": FULL_SIZE,
}  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return shared_tiny_model()


@pytest.fixture(scope="module")
def summary(model):
    return summarize(model, SIZE, runs=0)


def macs_of_whole(model):
    """The multiply-adds of the model traced as a whole."""
    function = tf.function(lambda x: model(x, training=False))
    spec = tf.TensorSpec((1, *SIZE, 3), tf.float32)
    return count_macs(function.get_concrete_function(spec).graph)


def macs(block):
    return block.convolution_macs, block.matmul_macs


def test_every_block_has_the_numbers_computed_by_hand(model, summary):
    found = {block.name: (block.parameters, *macs(block)) for block in summary.blocks}
    assert found == BY_HAND
    assert list(found) == [layer.name for layer in model.layers[1:]]
    total, inference = summary.total, summary.inference
    assert total.parameters == model.count_params()
    by_hand = np.array(list(BY_HAND.values())).sum(0)
    np.testing.assert_array_equal((total.parameters, *macs(total)), by_hand)
    assert total.macs == by_hand[1:].sum()
    by_hand -= np.array([BY_HAND["auxiliary_head"], BY_HAND["auxiliary"]]).sum(0)
    np.testing.assert_array_equal((inference.parameters, *macs(inference)), by_hand)
    blocks = {block.name: block for block in summary.blocks}
    shapes = ((17, 25, 32), (9, 13, 64), (5, 7, 128), (3, 4, 256))
    assert blocks["backbone"].output_shapes == shapes
    assert blocks["backbone"].output_bytes == 4 * (P2 * 32 + P3 * 64 + P4 * 128 + P5 * 256)
    assert blocks["segmentation"].output_shapes == ((64, 96, 3),)


def attention(size=(None, None)):
    """A pyramid with attention over all cells of stride 32; training does it twice."""

    class Attention(keras.layers.Layer):
        def build(self, shape):
            self.attention = keras.layers.MultiHeadAttention(2, 4, attention_axes=(1, 2))
            self.attention.build(shape, shape)

        def call(self, x, training=True):
            x = self.attention(x, x)
            return self.attention(x, x) if training else x

        def compute_output_shape(self, shape):
            return shape

    x = images = keras.Input((*size, 3))
    for level, stride in enumerate((4, 2, 2, 2), start=2):
        x = keras.layers.Conv2D(8, stride, stride, name=f"P{level}")(x)
    backbone = keras.Model(images, Attention(name="attention")(x))
    pyramid = {"P2": "P2", "P3": "P3", "P4": "P4", "P5": "attention"}
    return AlignSeg(backbone, 3, channels=8, pyramid=pyramid)


def test_the_blocks_add_up_to_the_whole():
    model = shared_tiny_model(
        aggregation="bilinear", context="global", normalization=None, auxiliary_head=False,
        upsample_logits=False, dtype="mixed_bfloat16",
    )  # fmt: skip
    summary = summarize(model, SIZE, runs=0)
    assert macs(summary.total) == macs_of_whole(model)
    assert all(block.macs for block in summary.blocks)
    assert summary.total.parameters == model.count_params()


def test_attention_of_a_backbone_counts_as_in_inference():
    model = attention()
    summary = summarize(model, SIZE, runs=0)
    assert macs(summary.total) == macs_of_whole(model)
    backbone = summary.blocks[0]
    cells = 2 * 3
    convolutions = sum(
        (64 * 96 // stride**2) * kernel**2 * channels * 8
        for stride, kernel, channels in ((4, 4, 3), (8, 2, 8), (16, 2, 8), (32, 2, 8))
    )
    # Query, key, value and result are 8 channels of 8; then each cell meets each, twice.
    assert backbone.name == "backbone"
    assert macs(backbone) == (convolutions, 4 * cells * 8 * 8 + 2 * cells * cells * 8)


@pytest.mark.parametrize(
    ("layer", "shapes", "expected"),
    [
        (keras.layers.Conv2D(4, (3, 5), groups=2), [(1, 9, 9, 6)], (7 * 5 * 4 * 15 * 3, 0)),
        (keras.layers.DepthwiseConv2D(3, depth_multiplier=2), [(1, 9, 9, 4)], (49 * 8 * 9, 0)),
        (keras.layers.SeparableConv2D(5, 3), [(1, 9, 9, 4)], (49 * 4 * 9 + 49 * 4 * 5, 0)),
        (keras.layers.Dense(5), [(7, 8)], (0, 7 * 8 * 5)),
        (keras.layers.Dot((1, 1)), [(1, 6, 4), (1, 6, 5)], (0, 6 * 4 * 5)),
        (keras.layers.Dot((2, 2)), [(1, 4, 6), (1, 5, 6)], (0, 6 * 4 * 5)),
        (keras.layers.EinsumDense("...d,de->...e", 5), [(1, 4, 6, 8)], (0, 24 * 8 * 5)),
        (keras.layers.EinsumDense("bd...,de->be...", (5, None)), [(2, 8, 6)], (0, 12 * 8 * 5)),
    ],
)  # fmt: skip
def test_count_macs(layer, shapes, expected):
    inputs = [tf.zeros(shape) for shape in shapes]
    inputs = inputs[0] if len(inputs) == 1 else inputs
    layer(inputs)
    specs = tf.nest.map_structure(lambda x: tf.TensorSpec(x.shape, x.dtype), inputs)
    assert count_macs(tf.function(layer).get_concrete_function(specs).graph) == expected


def test_transposed_products_count_alike():
    def products(a, b):
        tf.linalg.matmul(a, b, transpose_a=True)
        tf.linalg.matmul(a[None], b[None], adjoint_a=True)
        return tf.einsum("dc,...d->...c", b, tf.zeros((7, 4, 6)))

    specs = tf.TensorSpec((6, 4)), tf.TensorSpec((6, 5))
    graph = tf.function(products).get_concrete_function(*specs).graph
    assert count_macs(graph) == (0, 2 * 6 * 4 * 5 + 7 * 4 * 5 * 6)


def test_times(model, summary):
    weights = model.get_weights()
    outputs = [layer.output for layer in model.layers]
    timed = summarize(model, SIZE, runs=2)
    assert all(block.seconds > 0 for block in timed.blocks) and timed.graph_seconds > 0
    assert timed.total.seconds == pytest.approx(sum(block.seconds for block in timed.blocks))
    assert timed.inference.seconds < timed.total.seconds
    for untimed, block in zip(summary.blocks, timed.blocks, strict=True):
        assert dataclasses.replace(block, seconds=None) == untimed
    assert summary.graph_seconds is summary.total.seconds is None
    # The model is left as it is.
    assert all(np.array_equal(*pair) for pair in zip(weights, model.get_weights(), strict=True))
    # A layer that was called on symbolic tensors again would refuse to name its one output.
    assert all(a is layer.output for a, layer in zip(outputs, model.layers, strict=True))


def test_a_block_is_timed_on_what_the_one_before_it_made(model, monkeypatch):
    """So the last ones, run by themselves, give the model's own logits."""
    timed = []

    def median_seconds(blocks, runs):
        timed.extend(blocks)
        return [1.0] * len(blocks)

    monkeypatch.setattr("alignseg_tf.analysis.summary._median_seconds", median_seconds)
    summarize(model, SIZE, runs=1)
    *blocks, whole = timed
    (images,) = whole.inputs
    expected = model(images, training=False)
    # Both are about 10; what is fused where rounds differently.
    np.testing.assert_allclose(whole.function(images), expected["segmentation"], atol=0.02)
    results = [block.function(*block.inputs) for block in blocks[-2:]]
    for logits in expected.values():
        assert min(np.abs(logits - result).max() for result in results) < 0.02


def test_the_median_is_of_turns_and_leaves_out_the_first(monkeypatch):
    """A clock that runs with the work: first 100 s and 200 s, then 1, 2, 6 s and 4, 3, 5 s."""
    now, order = [0.0], []

    def block(name, seconds):
        seconds = iter(seconds)

        def run():
            order.append(name)
            now[0] += next(seconds)

        return _Traced(run, ())

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    blocks = [block("a", [100, 1, 2, 6]), block("b", [200, 4, 3, 5])]
    assert _median_seconds(blocks, 3) == [2, 4]
    assert order == ["a", "b"] * 4


def example(seconds=None):
    """Two blocks, of which the second is auxiliary."""
    blocks = (
        Block("first", ((10, 20, 30), (5, 10, 60)), 12_345, 2 * 10**9, 10**6, seconds),
        Block("auxiliary", ((100, 200, 5),), 0, 0, 5 * 10**8, seconds and 3 * seconds, True),
    )
    runs = 3 if seconds else 0
    return ModelSummary((100, 200), runs, blocks, seconds and 0.5, "2 CPU cores", "2.21.0")


def test_table():
    lines = example(0.0125).table().splitlines()
    assert [line.split() for line in lines[:9]] == [
        ["block", "output", "MB", "parameters", "conv", "GMAC", "matmul", "GMAC", "ms", "share"],
        ["------------", "---------", "---", "----------", "---------", "-----------", "-----",
         "------"],
        ["first", "10x20x30", "0.0", "12,345", "2.000", "0.001", "12.5", "25.0%"],
        ["5x10x60", "0.0"],
        ["auxiliary", "*", "100x200x5", "0.4", "0", "0.000", "0.500", "37.5", "75.0%"],
        lines[1].split(),
        ["total", "12,345", "2.000", "0.501", "50.0", "100.0%"],
        ["inference", "12,345", "2.000", "0.001", "12.5", "25.0%"],
        ["in", "one", "graph", "500.0"],
    ]  # fmt: skip
    assert all(lines[7].index(word) == lines[2].index(word) for word in ("12,345", "25.0%"))
    notes = "\n".join(lines[9:])
    for fact in ("100 x 200 pixels", "median of 3 runs", "TensorFlow 2.21.0, 2 CPU cores", "*: "):
        assert fact in notes


def test_table_without_times_or_auxiliary_head(summary):
    table = summary.table()
    assert max(map(len, table.splitlines())) <= 110
    assert "inference omits" in table
    assert "median" not in table and "share" not in table and "one graph" not in table
    table = dataclasses.replace(example(), blocks=example().blocks[:1]).table()
    assert "*" not in table and "inference" not in table


def test_to_dict(summary):
    content = json.loads(json.dumps(example(0.0125).to_dict()))
    costs = {"parameters": 12345, "convolution_macs": 2 * 10**9}
    assert content == {
        "height_pixels": 100, "width_pixels": 200, "runs": 3, "device": "2 CPU cores",
        "tensorflow": "2.21.0",
        "blocks": [
            {"name": "first", "auxiliary": False, "output_shapes": [[10, 20, 30], [5, 10, 60]],
             "output_bytes": 36_000, **costs, "matmul_macs": 10**6, "seconds": 0.0125},
            {"name": "auxiliary", "auxiliary": True, "output_shapes": [[100, 200, 5]],
             "output_bytes": 400_000, "parameters": 0, "convolution_macs": 0,
             "matmul_macs": 5 * 10**8, "seconds": pytest.approx(0.0375)},
        ],
        "total": {**costs, "matmul_macs": 501 * 10**6, "seconds": pytest.approx(0.05)},
        "inference": {**costs, "matmul_macs": 10**6, "seconds": 0.0125},
        "graph_seconds": 0.5,
    }  # fmt: skip
    content = summary.to_dict()
    json.dumps(content)  # plain values
    assert content["total"]["seconds"] is content["graph_seconds"] is None


def test_errors(model, monkeypatch):
    with pytest.raises(ValueError, match=r"at least 32 x 32 pixels. Received: size=\(64, 31\)"):
        summarize(model, (64, 31))
    with pytest.raises(ValueError, match=r"`runs` must be 0 or more. Received: runs=-1"):
        summarize(model, SIZE, runs=-1)
    with pytest.raises(ValueError, match=r"only images of 64 x 96 .*Received: size=\(64, 64\)"):
        summarize(attention(SIZE), (64, 64))
    monkeypatch.setattr(keras.config, "backend", lambda: "jax")
    with pytest.raises(ValueError, match="backend 'tensorflow'. Received: 'jax'"):
        summarize(model, SIZE)


@pytest.mark.slow
@pytest.mark.parametrize(("side", "expected"), [(512, 103), (872, 294)])
def test_resnet50_against_the_literature(side, expected):
    """The official code counts 103 and 294 GMAC, with the auxiliary head, but computes more.

    Its 1x1 convolutions of the offset branches read the coarse map after resizing; here they read
    it before. The coarse map has 2 x 256 filters in an AlignFA, 256 in AlignCM. The narrow
    convolutions multiply more here, by zeros and ones.
    """
    summary = summarize(AlignSeg(backbones.resnet50(), 19), (side, side), runs=0)
    blocks = {block.name: block for block in summary.blocks}
    cells = [height * width for height, width, _ in blocks["backbone"].output_shapes]
    # Of p3, p4, p5, and of the context, which is at stride 32 too.
    saved = sum(cells[0] - coarse for coarse in (*cells[1:], cells[3])) * 256 * 2 * 256
    saved += (cells[3] - 3 * 3) * 256 * 256
    saved -= 4 * cells[0] * (512 * 36 + 9 * 36 * 4 - 2 * 9 * 256 * 2) + cells[3] * 9 * 18 * 2
    assert round((summary.total.convolution_macs + saved) / 1e9) == expected
    trainable = 47_871_126  # what torch counts as parameters, without the norms' statistics
    assert summary.total.parameters == trainable + 57_168
