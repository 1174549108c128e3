"""The pre-activation ResNet of the paper (A.2): tensor2tensor's for CIFAR, of any depth 6n + 2.

Shape letters: B examples, C channels, H height, W width, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsexp.models import kernels

TRUNCATED = 0.87962566103423978
"""Standard deviation of a standard normal truncated at 2."""


class BatchNormReLU(nn.BatchNorm2d):
    """Batch normalisation and a ReLU."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def forward(self, x_BCHW: Tensor) -> Tensor:
        count = x_BCHW.numel() // x_BCHW.shape[1]
        slopes = torch.is_grad_enabled() and not self.training
        gpu = kernels.of_gpu(x_BCHW) if self.training and count > 1 else None
        if gpu is not None:
            running = (self.running_mean, self.running_var, self.num_batches_tracked)
            y_BCHW: Tensor = gpu.batch_norm_relu(
                x_BCHW, self.weight, self.bias, *running, self.momentum, self.eps
            )
            return y_BCHW
        if slopes or count == 1 or not kernels.fits(x_BCHW):  # torch refuses a batch of one value
            return F.relu(super().forward(x_BCHW))
        if not self.training:
            scale_C = self.weight * torch.rsqrt(self.running_var + self.eps)
            return kernels.normalise_relu(x_BCHW, self.running_mean, scale_C, self.bias)
        y_BCHW, mean_C, var_C = kernels.batch_norm_relu(x_BCHW, self.weight, self.bias, self.eps)
        self.running_mean.lerp_(mean_C, self.momentum)
        self.running_var.lerp_(var_C * (count / (count - 1)), self.momentum)
        self.num_batches_tracked += 1
        return y_BCHW


class Block(nn.Module):
    """Two convolutions of 3 x 3, each behind batch normalisation and ReLU, beside a shortcut.

    The first block of a group (`project`) has a 1 x 1 convolution and a normalisation as its
    shortcut, of the activated input, even where the shapes would do without.
    """

    def __init__(self, inputs: int, outputs: int, *, stride: int, project: bool):
        super().__init__()
        self.bn1 = BatchNormReLU(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn2 = BatchNormReLU(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.project: nn.Module | None = None
        if project:
            self.project = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            self.project_bn = nn.BatchNorm2d(outputs)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        active = self.bn1(x_BCHW)
        shortcut = x_BCHW if self.project is None else self.project_bn(self.project(active))
        x = self.conv1(active)
        x = self.conv2(self.bn2(x))
        return x + shortcut


class ResNet(nn.Module):
    """A stem, three groups of n blocks, each at half the resolution, a mean, a linear layer.

    As in the base code the stem is followed by a normalisation and a ReLU of its own, and nothing
    comes between the last block and the mean: features may be negative. torch's defaults for
    batch normalisation (momentum 0.1, eps 1e-5) are the base code's 0.9 and 1e-5.

    Args:
        channels: C of the images.
        num_classes: K.
        depth: 6n + 2.
        stem_width, stem_kernel: filters of the first convolution and their size (odd), pixels.
        widths: filters of the three groups; the last is D.
        init: generator of the weights. Convolutions have the variance 1 / inputs of a filter, the
            last layer 4 / (D + K) (the base code's gain of 2 over the mean of inputs and
            outputs); both are normal, truncated at two standard deviations.
    """

    head_name = "fc"

    def __init__(
        self,
        channels: int,
        num_classes: int,
        *,
        depth: int,
        stem_width: int,
        stem_kernel: int,
        widths: Sequence[int],
        init: torch.Generator,
    ):
        super().__init__()
        self.stem = nn.Conv2d(
            channels, stem_width, stem_kernel, padding=stem_kernel // 2, bias=False
        )
        self.stem_bn = BatchNormReLU(stem_width)
        blocks, inputs = [], stem_width
        for group, outputs in enumerate(widths):
            for number in range((depth - 2) // 6):
                first = number == 0
                stride = 2 if first and group > 0 else 1
                blocks.append(Block(inputs, outputs, stride=stride, project=first))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(inputs, num_classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                _truncated_normal(layer.weight, 1 / layer.weight[0].numel(), init)
        _truncated_normal(self.fc.weight, 4 / (inputs + num_classes), init)
        nn.init.zeros_(self.fc.bias)

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem_bn(self.stem(images_BCHW))
        features_BD = self.blocks(x).mean((2, 3))
        return self.fc(features_BD), features_BD


def _truncated_normal(weight: Tensor, variance: float, init: torch.Generator) -> None:
    std = variance**0.5 / TRUNCATED
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std, generator=init)
