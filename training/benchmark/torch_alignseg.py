"""AlignSeg in PyTorch, which benchmarks time this library against.

It follows the paper and the official conventions, independently of the Keras layers. Parameters
have the official names: official weights load, and outputs equal the official ones. Maps are NCHW.
The official norm multiplies by |gamma| + eps, in a compiled extension; `load_official` writes that
into gamma.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPSILON = 1e-5
SLOPE = 0.01


def conv(inputs: int, filters: int, side: int, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    """Return a convolution that keeps the size at stride 1."""
    return nn.Conv2d(inputs, filters, side, stride, side // 2, bias=bias)


class NormAct(nn.BatchNorm2d):
    """Batch norm and leaky ReLU in one module."""

    def __init__(self, channels: int):
        super().__init__(channels, eps=EPSILON, momentum=0.1)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu_(super().forward(x), SLOPE)


def warp(x: Tensor, offsets: Tensor) -> Tensor:
    """Sample a map [B, C, h, w] at a regular grid plus offsets (x, y) in its cells [B, 2, H, W]."""
    sides = offsets.shape[3], offsets.shape[2]
    xs, ys = (torch.linspace(-1, 1, n, device=x.device, dtype=offsets.dtype) for n in sides)
    grid = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), -1)
    cells = torch.tensor([max(n - 1, 1) / 2 for n in sides], device=x.device, dtype=offsets.dtype)
    grid = grid + offsets.permute(0, 2, 3, 1) / cells
    return F.grid_sample(x, grid, "bilinear", "zeros", align_corners=True)


def resize(x: Tensor, size: Any) -> Tensor:
    """Resize with aligned corners."""
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)


class Refinement(nn.Module):
    """The refinement block, RRB."""

    def __init__(self, inputs: int, channels: int):
        super().__init__()
        self.unify = conv(inputs, channels, 1)
        self.residual = nn.Sequential(
            conv(channels, channels // 4, 3),
            NormAct(channels // 4),
            conv(channels // 4, channels, 3),
        )
        self.norm = NormAct(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.unify(x)
        return self.norm(x + self.residual(x))


def offset_branch(channels: int) -> nn.Sequential:
    """Two maps in, one offset field out; starts at zero."""
    field = conv(channels, 2, 3)
    nn.init.zeros_(field.weight)
    return nn.Sequential(conv(2 * channels, channels, 1), NormAct(channels), field)


class Aggregation(nn.Module):
    """AlignFA, CAB: both maps are moved, then added; `align=False` resizes and adds."""

    def __init__(self, channels: int, align: bool = True):
        super().__init__()
        self.align = align
        if align:
            self.delta_gen1, self.delta_gen2 = offset_branch(channels), offset_branch(channels)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        high = resize(high, low.shape[2:])
        if not self.align:
            return low + high
        both = torch.cat([low, high], 1)
        return warp(high, self.delta_gen1(both)) + warp(low, self.delta_gen2(both))


class Context(nn.Module):
    """AlignCM, CAM: each pixel reads a context map of 3x3 cells; `align=False` resizes it."""

    def __init__(self, inputs: int, channels: int, align: bool = True):
        super().__init__()
        self.align = align

        def branch() -> list[nn.Module]:
            return [
                conv(inputs, inputs, 1), NormAct(inputs),
                conv(inputs, channels, 3), NormAct(channels),
            ]  # fmt: skip

        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(3 if align else 1), *branch())
        self.adapt = nn.Sequential(*branch())
        if align:
            self.delta_gen = offset_branch(channels)

    def forward(self, x: Tensor) -> Tensor:
        context, local = self.pool(x), self.adapt(x)
        if not self.align:
            return local + context
        both = torch.cat([local, resize(context, local.shape[2:])], 1)
        return local + warp(context, self.delta_gen(both))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolution and a shortcut."""

    def __init__(self, inputs: int, filters: int, stride: int, first: bool):
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, filters, 1), nn.BatchNorm2d(filters)
        self.conv2, self.bn2 = conv(filters, filters, 3, stride), nn.BatchNorm2d(filters)
        self.conv3, self.bn3 = conv(filters, 4 * filters, 1), nn.BatchNorm2d(4 * filters)
        self.downsample: nn.Module = nn.Identity()
        if first:
            self.downsample = nn.Sequential(
                conv(inputs, 4 * filters, 1, stride), nn.BatchNorm2d(4 * filters)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu_(self.bn1(self.conv1(x)))
        out = F.relu_(self.bn2(self.conv2(out)))
        return F.relu_(self.bn3(self.conv3(out)) + self.downsample(x))


class ResNet(nn.Module):
    """The deep-stem ResNet: a pyramid of strides 4, 8, 16, 32. Takes BGR minus the mean."""

    def __init__(self, blocks: tuple[int, int, int, int], width: int = 64):
        super().__init__()
        self.conv1, self.bn1 = conv(3, width, 3, 2), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = conv(width, 2 * width, 3), nn.BatchNorm2d(2 * width)
        self.maxpool = nn.MaxPool2d(3, 2, 1, ceil_mode=True)
        self.widths = [4 * width * 2**stage for stage in range(4)]
        inputs = [2 * width, *self.widths]
        for stage, repeats in enumerate(blocks):
            filters, end = width * 2**stage, self.widths[stage]
            first = Bottleneck(inputs[stage], filters, 2 if stage else 1, first=True)
            others = [Bottleneck(end, filters, 1, first=False) for _ in range(1, repeats)]
            setattr(self, f"layer{stage + 1}", nn.Sequential(first, *others))

    def forward(self, x: Tensor) -> list[Tensor]:
        for i in (1, 2, 3):
            x = F.relu_(getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x)))
        maps = [self.maxpool(x)]
        for stage in (1, 2, 3, 4):
            maps.append(getattr(self, f"layer{stage}")(maps[-1]))
        return maps[1:]


class SameConv(nn.Conv2d):
    """A convolution that pads as TensorFlow's "same": at stride 2 more behind than before."""

    def forward(self, x: Tensor) -> Tensor:
        side, stride = self.kernel_size[0], self.stride[0]
        height, width = (max((-(-n // stride) - 1) * stride + side - n, 0) for n in x.shape[2:])
        if height or width:
            x = F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
        return F.conv2d(x, self.weight, None, self.stride, 0, 1, self.groups)


class InvertedBottleneck(nn.Module):
    """EfficientNet-Lite's block; its names are those of the published weights."""

    def __init__(self, inputs: int, filters: int, side: int, stride: int, expansion: int):
        super().__init__()
        width = inputs * expansion
        self.expands, self.adds = expansion > 1, stride == 1 and inputs == filters
        if self.expands:
            self._expand_conv, self._bn0 = conv(inputs, width, 1), nn.BatchNorm2d(width, 1e-3)
        self._depthwise_conv = SameConv(width, width, side, stride, groups=width, bias=False)
        self._bn1 = nn.BatchNorm2d(width, 1e-3)
        self._project_conv, self._bn2 = conv(width, filters, 1), nn.BatchNorm2d(filters, 1e-3)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu6(self._bn0(self._expand_conv(x)), inplace=True) if self.expands else x
        out = F.relu6(self._bn1(self._depthwise_conv(out)), inplace=True)
        out = self._bn2(self._project_conv(out))
        return out + x if self.adds else out


# Of each stage: repeats, kernel size, stride, expansion, filters.
LITE0_STAGES = (
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192), (1, 3, 1, 6, 320),
)  # fmt: skip


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0: a pyramid of strides 4, 8, 16, 32. Takes (RGB - 127) / 128."""

    widths = (24, 40, 112, 320)

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = SameConv(3, 32, 3, 2, bias=False), nn.BatchNorm2d(32, 1e-3)
        self._blocks = nn.ModuleList()
        self.taps, inputs = [], 32
        for repeats, side, stride, expansion, filters in LITE0_STAGES:
            for i in range(repeats):
                block = InvertedBottleneck(inputs, filters, side, 1 if i else stride, expansion)
                self._blocks.append(block)
                inputs = filters
            if filters in self.widths:
                self.taps.append(len(self._blocks) - 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.relu6(self._bn0(self._conv_stem(x)), inplace=True)
        maps = []
        for number, block in enumerate(self._blocks):
            x = block(x)
            if number in self.taps:
                maps.append(x)
        return maps


def head(channels: int, classes: int) -> nn.Sequential:
    """Return a head: features to logits."""
    features, logits = conv(channels, channels, 3, bias=True), conv(channels, classes, 1, bias=True)
    return nn.Sequential(features, NormAct(channels), nn.Dropout2d(0.1), logits)


class TorchAlignSeg(nn.Module):
    """Images [B, 3, H, W], normalised for the backbone -> logits at image size.

    In training it returns a pair with the auxiliary head's logits. `align=False` resizes plainly
    and uses a global context.
    """

    def __init__(self, backbone: Any, classes: int, channels: int = 256, align: bool = True):
        super().__init__()
        self.backbone = backbone
        widths = backbone.widths
        self.CAM = Context(widths[3], channels, align)
        for level, width in enumerate([*widths, channels], start=1):
            setattr(self, f"RRB{level}a", Refinement(width, channels))
            if level > 1:
                setattr(self, f"RRB{level}b", Refinement(channels, channels))
                setattr(self, f"CAB{level}", Aggregation(channels, align))
        self.head, self.dsn = head(channels, classes), head(channels, classes)

    def stride_4_logits(self, x: Tensor, auxiliary_head: bool) -> list[Tensor]:
        """Return the logits at stride 4 of the main head and of the auxiliary head, if wanted."""
        maps = self.backbone(x)
        d = self.get_submodule("RRB1a")(maps[0])
        auxiliary = []
        for level, high in enumerate([*maps[1:], self.CAM(maps[3])], start=2):
            refine, align, fuse = (getattr(self, f"{x}{level}{y}") for x, y in
                                   (("RRB", "a"), ("CAB", ""), ("RRB", "b")))  # fmt: skip
            d = fuse(align(d, refine(high)))
            if level == 3 and auxiliary_head:
                auxiliary = [self.dsn(d)]
        return [self.head(d), *auxiliary]

    def forward(self, x: Tensor) -> Any:
        logits = [resize(y, x.shape[2:]) for y in self.stride_4_logits(x, self.training)]
        return tuple(logits) if self.training else logits[0]


def load_official(model: nn.Module, state_dict: Mapping[str, np.ndarray]) -> None:
    """Load the weights of an official state dict into a model or one of its blocks.

    Raises:
        RuntimeError: names or shapes differ.
    """
    names = set(model.state_dict())
    values = {name: torch.tensor(0) for name in names if name.endswith(".num_batches_tracked")}
    for name, value in state_dict.items():
        tensor = torch.from_numpy(np.array(value))
        if tensor.ndim == 1 and name.endswith(".weight"):  # of a norm
            tensor = tensor.abs() + EPSILON
        values[name if name in names else f"backbone.{name}"] = tensor
    model.load_state_dict(values)
