"""Training batches from images that live on the device: order, augmentation, normalisation.

A batch is one gather from the uint8 images and a few batched operations, without per-sample
Python. The order of an epoch and its augmentation come from CPU generators seeded by
(seed, purpose, epoch), so that they are the same on every device, for every eps, and after a
resume, whatever was trained beside.
Shape letters: N images, B images in a batch, H height, W width, C channels.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lsexp.config import AugmentConfig


def generator(seed: int, purpose: str, index: int = 0) -> torch.Generator:
    """A CPU generator for one purpose ("init", "order", "augment", "dropout") of one seed.

    Runs that differ only in eps share every draw (common random numbers).
    """
    digest = hashlib.sha256(f"{seed}/{purpose}/{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


class Images(NamedTuple):
    """Images of one split on the device.

    images_NHWC: uint8; labels_N: int64, in 0..K-1.
    """

    images_NHWC: Tensor
    labels_N: Tensor

    @staticmethod
    def on(
        device: torch.device, images: np.ndarray, labels: np.ndarray, which: np.ndarray
    ) -> Images:
        """Take the images at the indices `which` onto the device."""
        return Images(
            torch.from_numpy(np.ascontiguousarray(images[which])).to(device),
            torch.from_numpy(np.ascontiguousarray(labels[which])).to(device),
        )


class Normalize(NamedTuple):
    """Pixels to network inputs: subtract, then multiply; or each image by itself.

    shift_C, scale_C: float32, in units of pixel values 0..255; None: per image.
    """

    shift_C: Tensor | None
    scale_C: Tensor | None

    @staticmethod
    def fit(how: str, images_NHWC: Tensor) -> Normalize:
        """`data.normalize` for these training images (exact: sums of integers)."""
        if how == "image":
            return Normalize(None, None)
        channels = images_NHWC.shape[3]
        mean, std = torch.zeros(channels), torch.full((channels,), 255.0)
        if how == "channel":
            flat = images_NHWC.reshape(-1, channels)
            count = len(flat)
            first = flat.sum(0, dtype=torch.int64).cpu().double() / count
            second = sum(  # in parts: squares need a wider type than the pixels
                part.to(torch.int32).square().sum(0, dtype=torch.int64).cpu().double()
                for part in flat.split(1 << 24)
            )
            mean = first.float()
            std = (second / count - first**2).sqrt().clamp_min(1e-3).float()
        device = images_NHWC.device
        return Normalize(mean.to(device), (1 / std).to(device))

    def __call__(self, images_BHWC: Tensor) -> Tensor:
        """uint8 [B, H, W, C] -> float32 [B, C, H, W] (channels last in memory)."""
        pixels = images_BHWC.float()
        if self.shift_C is not None and self.scale_C is not None:
            pixels = pixels.sub_(self.shift_C).mul_(self.scale_C)
        else:
            # TensorFlow's per_image_standardization: the floor keeps uniform images finite.
            dims = (1, 2, 3)
            size = pixels[0].numel()
            mean = pixels.mean(dims, keepdim=True)
            std = pixels.std(dims, correction=0, keepdim=True).clamp_min(size**-0.5)
            pixels = pixels.sub_(mean).div_(std)
        return pixels.permute(0, 3, 1, 2)


class Epoch(NamedTuple):
    """What is drawn for one pass over the N training images, by position in that pass.

    order_N: indices into the images, int64; dy_N, dx_N: top left corner of the window, pixels.
    """

    order_N: Tensor
    dy_N: Tensor
    dx_N: Tensor


class Batches:
    """Endless batches of one member: pass after pass, always full, addressed by step.

    Batch `step` holds positions step * B .. (step + 1) * B of the passes laid end to end, so a
    batch may straddle two passes. There is no state to save: any step can be asked for.
    """

    def __init__(
        self,
        train: Images,
        normalize: Normalize,
        augment: AugmentConfig,
        *,
        batch_size: int,
        seed: int,
    ):
        self.labels_N = train.labels_N
        self.normalize = normalize
        self.batch_size = batch_size
        self.seed = seed
        self.shift = augment.shift
        _, height, width, _ = train.images_NHWC.shape
        padded = train.images_NHWC
        if self.shift:
            pad = (0, 0, self.shift, self.shift, self.shift, self.shift)
            padded = torch.nn.functional.pad(padded, pad)
        # A view of every window of the original size: [N, 2 shift + 1, 2 shift + 1, H, W, C].
        windows = padded.unfold(1, height, 1).unfold(2, width, 1)
        self.windows = windows.permute(0, 1, 2, 4, 5, 3)
        self._drawn: dict[int, Epoch] = {}

    def __len__(self) -> int:
        """Images in a pass."""
        return len(self.labels_N)

    def epoch(self, number: int) -> Epoch:
        """The draws of pass `number`, on the device; the last two passes are kept."""
        if number not in self._drawn:
            count, device = len(self), self.labels_N.device
            order = torch.randperm(count, generator=generator(self.seed, "order", number))
            rng = generator(self.seed, "augment", number)
            shifts = torch.randint(0, 2 * self.shift + 1, (2, count), generator=rng)
            if device.type == "cuda":  # so that the copy waits for nothing
                order, shifts = order.pin_memory(), shifts.pin_memory()
            self._drawn[number] = Epoch(
                order.to(device, non_blocking=True), *shifts.to(device, non_blocking=True)
            )
            for old in [n for n in self._drawn if n < number - 1]:
                del self._drawn[old]
        return self._drawn[number]

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """Images float32 [B, C, H, W] and labels int64 [B] of a step, from 0."""
        start, parts = step * self.batch_size, []
        left = self.batch_size
        while left:
            number, position = divmod(start, len(self))
            take = min(left, len(self) - position)
            parts.append([draw[position : position + take] for draw in self.epoch(number)])
            start, left = start + take, left - take
        order_B, dy_B, dx_B = (
            parts[0]
            if len(parts) == 1
            else [torch.cat(draws) for draws in zip(*parts, strict=True)]
        )
        return self.normalize(self.windows[order_B, dy_B, dx_B]), self.labels_N[order_B]
