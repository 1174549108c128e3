"""The "AlexNet" of the paper (A.1): the two-convolution network of TensorFlow's CIFAR-10 tutorial.

Shape letters: B examples, C channels, H height, W width, D features, K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lsexp.models import kernels

ALPHA = 1e-3 / 9  # on the sum over the window, as TensorFlow counts; torch divides by its size


class LocalResponseNorm(nn.Module):
    """Divide each activation by (1 + ALPHA * sum of squares of 9 neighbouring channels) ** 0.75.

    It is `tf.nn.lrn(x, depth_radius=4, bias=1, alpha=0.001 / 9, beta=0.75)` and
    `torch.nn.LocalResponseNorm(9, alpha=0.001, beta=0.75, k=1)`. Where no kernel fits, the sum is
    one product with a banded matrix of C x C, several times faster than torch's pooling over a
    fifth dimension; the root is taken in float32 whatever the precision.
    """

    band: Tensor

    def __init__(self, channels: int):
        super().__init__()
        at = torch.arange(channels)
        band = ALPHA * ((at[:, None] - at[None, :]).abs() <= kernels.RADIUS).float()
        self.register_buffer("band", band[:, :, None, None], persistent=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if kernels.fits(x_BCHW):
            return kernels.local_response_norm(x_BCHW, ALPHA)
        sums = F.conv2d(x_BCHW * x_BCHW, self.band)
        root = torch.rsqrt(1 + (sums.float() if sums.dtype == torch.bfloat16 else sums))
        return x_BCHW * (root * torch.sqrt(root)).to(x_BCHW.dtype)


def same_max_pool(x_BCHW: Tensor) -> Tensor:
    """Max over 3 x 3 with stride 2, padded as TensorFlow's SAME does: H to ceil(H / 2).

    SAME pads an even size by one behind, an odd one by one on each side.
    """
    odd = (x_BCHW.shape[2] % 2, x_BCHW.shape[3] % 2)
    return F.max_pool2d(x_BCHW, 3, stride=2, padding=odd, ceil_mode=True)


class AlexNet(nn.Module):
    """Two convolutions of 5 x 5 x 64 with pooling and normalisation, then 384, 192, K.

    Pooling comes before the first normalisation and after the second. Convolutions and hidden
    layers end in a ReLU, so features are not negative. Weights are normal, truncated at two
    standard deviations; these, and the biases, are the tutorial's.

    Args:
        image_shape: (H, W, C) that the network sees, 24 x 24 x 3 in the paper.
        num_classes: K.
        init: generator of the weights.
    """

    head_name = "fc3"

    def __init__(
        self, image_shape: tuple[int, int, int], num_classes: int, *, init: torch.Generator
    ):
        super().__init__()
        height, width, channels = image_shape
        inputs = 64 * -(-height // 4) * -(-width // 4)  # halved twice, rounded up
        self.conv1 = nn.Conv2d(channels, 64, 5, padding=2)
        self.norm1 = LocalResponseNorm(64)
        self.conv2 = nn.Conv2d(64, 64, 5, padding=2)
        self.norm2 = LocalResponseNorm(64)
        self.fc1 = nn.Linear(inputs, 384)
        self.fc2 = nn.Linear(384, 192)
        self.fc3 = nn.Linear(192, num_classes)
        for layer, std, bias in (
            (self.conv1, 0.05, 0.0),
            (self.conv2, 0.05, 0.1),
            (self.fc1, 0.04, 0.1),
            (self.fc2, 0.04, 0.1),
            (self.fc3, 1 / 192, 0.0),
        ):
            nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std, generator=init)
            nn.init.constant_(layer.get_parameter("bias"), bias)

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        x = self._convolved(images_BCHW)
        x = F.relu(self.fc1(x.flatten(1)))
        features_BD = F.relu(self.fc2(x))
        return self.fc3(features_BD), features_BD

    def _convolved(self, images_BCHW: Tensor) -> Tensor:
        if images_BCHW.is_cuda:
            x = F.conv2d(images_BCHW, self.conv1.weight, padding=2)
            if (gpu := kernels.of_gpu(x)) is not None:
                x = gpu.local_response_norm(gpu.max_pool(x, self.conv1.bias), ALPHA)
                x = F.conv2d(x, self.conv2.weight, padding=2)
                pooled: Tensor = gpu.max_pool(gpu.local_response_norm(x, ALPHA, self.conv2.bias))
                return pooled
            x = x + self.conv1.get_parameter("bias")[:, None, None].to(x.dtype)
        else:
            x = self.conv1(images_BCHW)
        # Pooled first: the ReLU of a maximum is the maximum of the ReLUs, with a quarter to do.
        x = self.norm1(F.relu(same_max_pool(x)))
        return same_max_pool(self.norm2(F.relu(self.conv2(x))))
