"""PyTorch's forms of a task, for `timing.py`: the network of `torch_alignseg.py`.

PyTorch chooses the number of threads; nothing here imports TensorFlow. `eager` is the code as its
authors run it. Names tell what differs: layout (`channels_last`), `compile`, `freeze` (weights as
constants, norms folded) and `bfloat16`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from training.benchmark.timing import Task
from training.benchmark.torch_alignseg import EfficientNetLite0, ResNet, TorchAlignSeg, warp

BLOCKS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}


def network(task: Task) -> TorchAlignSeg:
    """Return the network with offsets that are not zero."""
    torch.manual_seed(task.seed)
    name = task.backbone
    backbone = EfficientNetLite0() if name == "efficientnet_lite0" else ResNet(BLOCKS[name])
    model = TorchAlignSeg(backbone, task.classes, task.channels, align=task.align)
    for name, parameter in model.named_parameters():
        if "delta_gen" in name and parameter.shape[0] == 2:
            torch.nn.init.normal_(parameter, std=0.01)
    return model


def sampling(task: Task, channels_last: bool) -> Callable[[], Any]:
    """Return a function that samples a map, for `sampling_training` with gradients."""
    features, offsets = (torch.from_numpy(x).permute(0, 3, 1, 2) for x in task.map_and_offsets())
    if not channels_last:
        features = features.contiguous()
    backward = task.work == "sampling_training"
    features, offsets = features.requires_grad_(backward), offsets.requires_grad_(backward)

    def run() -> None:
        with torch.set_grad_enabled(backward):
            sampled = warp(features, offsets)
        if backward:
            torch.autograd.grad(sampled, (features, offsets), torch.ones_like(sampled))

    return run


def prepare(options: list[str], task: Task) -> Callable[[], Any]:
    """Return the function that does a task with some options."""
    if task.work.startswith("sampling"):
        return sampling(task, "channels_last" in options)
    model = network(task)
    images = torch.from_numpy(task.images()).permute(0, 3, 1, 2).contiguous() / 128 - 1
    if "channels_last" in options:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        images = images.contiguous(memory_format=torch.channels_last)
    if task.work == "training":
        return training(model, images, torch.from_numpy(task.labels()), options)
    model.eval()
    if "freeze" in options:
        from torch._inductor import config

        config.freezing = True
    run = torch.compile(model) if "compile" in options else model

    def infer() -> Any:
        with torch.no_grad(), autocast(options):
            return run(images)

    return infer


def autocast(options: list[str]) -> Any:
    """Return the context in which a form computes."""
    return torch.autocast("cpu", torch.bfloat16, enabled="bfloat16" in options)


def training(
    model: TorchAlignSeg, images: torch.Tensor, labels: torch.Tensor, options: list[str]
) -> Callable[[], Any]:
    """Return a step: forward, backward, update; cross-entropy of both heads, SGD."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, 0.9, weight_decay=5e-4)
    forward = torch.compile(model) if "compile" in options else model

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with autocast(options):
            logits, auxiliary = forward(images)
        loss = F.cross_entropy(logits.float(), labels, ignore_index=255)
        loss = loss + 0.1 * F.cross_entropy(auxiliary.float(), labels, ignore_index=255)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


OPTIONS = {
    "eager": "",
    "channels_last": "channels_last",
    "compile": "compile",
    "compile_channels_last": "compile channels_last",
    "compile_channels_last_freeze": "compile channels_last freeze",
    "bfloat16": "channels_last bfloat16",
    "compile_bfloat16": "compile channels_last bfloat16",
    "compile_bfloat16_freeze": "compile channels_last bfloat16 freeze",
}
FORMS = {name: partial(prepare, options.split()) for name, options in OPTIONS.items()}
