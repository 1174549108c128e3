"""Training batches from images that live on the device: order, augmentation, preprocessing.

A batch is one gather from the uint8 images and a few batched operations, without per-sample
Python. The order of an epoch and its augmentation come from CPU generators seeded by
(seed, purpose, epoch), so that they are the same on every device, for every eps, and after a
resume, whatever was trained beside.
Shape letters: N images, B images in a batch, H height, W width, C channels.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lsexp.config import AugmentConfig


def generator(seed: int, purpose: str, index: int = 0) -> torch.Generator:
    """A CPU generator for one purpose ("init", "order", "augment", "dropout") of one seed.

    Runs that differ only in eps share every draw (common random numbers).
    """
    digest = hashlib.sha256(f"{seed}/{purpose}/{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def input_shape(image_shape: Sequence[int], augment: AugmentConfig) -> tuple[int, int, int]:
    """(H, W, C) of what the network sees of images of `image_shape`."""
    height, width, channels = image_shape
    return augment.crop or height, augment.crop or width, channels


@dataclass(frozen=True)
class Images:
    """Images of one split on the device.

    On a CPU the pixels stay where they are, perhaps memory-mapped and shared with other
    processes, and are taken by index; a GPU has a copy of the split's own.

    pixels_MHWC: uint8, of M images of which the split is a part; index_N: which they are, int64;
    labels_N: int64, in 0..K-1.
    """

    pixels_MHWC: Tensor
    index_N: Tensor
    labels_N: Tensor

    @staticmethod
    def on(
        device: torch.device, images: np.ndarray, labels: np.ndarray, which: np.ndarray
    ) -> Images:
        """The images at the indices `which`, ready on the device."""
        labels_N = torch.from_numpy(labels[which]).to(device)
        if device.type == "cpu":
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
                return Images(torch.from_numpy(images), torch.from_numpy(which), labels_N)
        pixels_NHWC = torch.from_numpy(np.ascontiguousarray(images[which])).to(device)
        return Images(pixels_NHWC, torch.arange(len(which), device=device), labels_N)

    def __len__(self) -> int:
        return len(self.labels_N)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) in pixels."""
        height, width, channels = self.pixels_MHWC.shape[1:]
        return height, width, channels

    def take(self, positions_B: Tensor) -> Tensor:
        """Pixels uint8 [B, H, W, C] at positions 0..N-1 of the split."""
        # Row by row, each in one piece: index_select copies those, indexing pixel by pixel.
        rows_MX = self.pixels_MHWC.flatten(1)
        index_B = self.index_N.index_select(0, positions_B)
        return rows_MX.index_select(0, index_B).unflatten(1, self.shape)

    def parts(self, size: int) -> Iterator[Tensor]:
        """All pixels in order, at most `size` images at a time."""
        return (self.pixels_MHWC[index] for index in self.index_N.split(size))


class Preprocess(NamedTuple):
    """Pixels to network inputs: the centre, then minus a shift, times a scale.

    crop: side of the central window in pixels, where images are larger; None: whole images.
    shift_C, scale_C: float32, in units of pixel values 0..255; None: each image by itself.
    """

    crop: int | None
    shift_C: Tensor | None
    scale_C: Tensor | None

    @staticmethod
    def fit(how: str, images: Images, crop: int | None = None) -> Preprocess:
        """`data.normalize` for these training images (exact: sums of integers)."""
        if how == "image":
            return Preprocess(crop, None, None)
        height, width, channels = images.shape
        mean, std = torch.zeros(channels), torch.full((channels,), 255.0)
        if how == "channel":
            sums = torch.zeros(2, channels, dtype=torch.int64)
            for part in images.parts(4096):  # squares need a wider type than the pixels
                wide = part.reshape(-1, channels).to(torch.int32)
                sums += torch.stack([(wide**power).sum(0) for power in (1, 2)]).cpu()
            first, second = sums.double() / (len(images) * height * width)
            mean = first.float()
            std = (second - first**2).sqrt().clamp_min(1e-3).float()
        device = images.labels_N.device
        return Preprocess(crop, mean.to(device), (1 / std).to(device))

    def __call__(self, images_BHWC: Tensor) -> Tensor:
        """uint8 or float32 [B, H, W, C] -> float32 [B, C, H, W] (channels last in memory)."""
        if self.crop is not None:
            top, left = ((size - self.crop) // 2 for size in images_BHWC.shape[1:3])
            images_BHWC = images_BHWC[:, top : top + self.crop, left : left + self.crop]
        pixels = images_BHWC.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
        if self.shift_C is not None and self.scale_C is not None:
            pixels = pixels.sub_(self.shift_C).mul_(self.scale_C)
        else:
            # TensorFlow's per_image_standardization: the floor keeps uniform images finite.
            rows_BX = pixels.flatten(1)
            size = rows_BX.shape[1]
            rows_BX -= rows_BX.mean(1, keepdim=True)
            # Of what is centred already; torch.std takes ten times as long.
            std_B1 = torch.linalg.vector_norm(rows_BX, dim=1, keepdim=True) / size**0.5
            rows_BX /= std_B1.clamp_min(size**-0.5)
        return pixels.permute(0, 3, 1, 2)


class Epoch(NamedTuple):
    """What is drawn for one pass over the N training images, by position in that pass.

    order_N: indices into the images, int64; dy_N, dx_N: top left corner of the window in the
    padded image, pixels, int64; flip_N: whether to mirror left and right; brightness_N in -1..1
    and contrast_N in -1..1: float32, shares of what `augment` allows.
    """

    order_N: Tensor
    dy_N: Tensor
    dx_N: Tensor
    flip_N: Tensor
    brightness_N: Tensor
    contrast_N: Tensor


class Batches:
    """Endless batches of one member: pass after pass, always full, addressed by step.

    `purpose` names the draws of the augmentation; the order is the seed's whatever it is.

    Batch `step` holds positions step * B .. (step + 1) * B of the passes laid end to end, so a
    batch may straddle two passes. There is no state to save: any step can be asked for.
    """

    def __init__(
        self,
        train: Images,
        preprocess: Preprocess,
        augment: AugmentConfig,
        *,
        batch_size: int,
        seed: int,
        purpose: str = "augment",
    ):
        self.train = train
        self.purpose = purpose
        self.preprocess = preprocess
        self.batch_size = batch_size
        self.seed = seed
        self.augment = augment
        self.size = input_shape(train.shape, augment)[:2]
        height, width, _ = train.shape
        self.places_y = height + 2 * augment.shift - self.size[0] + 1
        self.places_x = width + 2 * augment.shift - self.size[1] + 1
        self._drawn: dict[int, Epoch] = {}

    def __len__(self) -> int:
        """Images in a pass."""
        return len(self.train)

    def epoch(self, number: int) -> Epoch:
        """The draws of pass `number`, on the device; the last two passes are kept.

        All are drawn, in one order, so that switching one on leaves the others as they are.
        """
        if number not in self._drawn:
            count, device = len(self), self.train.labels_N.device
            rng = generator(self.seed, self.purpose, number)
            drawn = Epoch(
                torch.randperm(count, generator=generator(self.seed, "order", number)),
                torch.randint(0, self.places_y, (count,), generator=rng),
                torch.randint(0, self.places_x, (count,), generator=rng),
                torch.randint(0, 2, (count,), generator=rng).bool(),
                torch.empty(count).uniform_(-1, 1, generator=rng),
                torch.empty(count).uniform_(-1, 1, generator=rng),
            )
            if device.type == "cuda":  # so that the copy waits for nothing
                drawn = Epoch(*(draw.pin_memory() for draw in drawn))
            self._drawn[number] = Epoch(*(draw.to(device, non_blocking=True) for draw in drawn))
            for old in [n for n in self._drawn if n < number - 1]:
                del self._drawn[old]
        return self._drawn[number]

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """Images float32 [B, C, H, W] and labels int64 [B] of a step, from 0."""
        batch = self.draws(step)
        return self.preprocess(self.pixels(batch)), self.labels(batch)

    @property
    def used(self) -> tuple[str, ...]:
        """The fields of `Epoch` that batches depend on."""
        augment, names = self.augment, ["order_N"]
        if self.places_y > 1 or self.places_x > 1:
            names += ["dy_N", "dx_N"]
        if augment.flip:
            names += ["flip_N"]
        if augment.brightness or augment.contrast:
            names += ["brightness_N", "contrast_N"]
        return tuple(names)

    def draws(self, step: int, steps: int = 1) -> Epoch:
        """What is drawn for the images of a step, of which there are B, or of several on end."""
        start, parts = step * self.batch_size, []
        left = steps * self.batch_size
        while left:
            number, position = divmod(start, len(self))
            take = min(left, len(self) - position)
            parts.append([draw[position : position + take] for draw in self.epoch(number)])
            start, left = start + take, left - take
        return Epoch(*(parts[0] if len(parts) == 1 else map(torch.cat, zip(*parts, strict=True))))

    def labels(self, batch: Epoch) -> Tensor:
        """int64 [B]."""
        return self.train.labels_N[batch.order_N]

    def pixels(self, batch: Epoch) -> Tensor:
        """Augmented images of a step, uint8 or float32 [B, H, W, C], not preprocessed yet."""
        return self._altered(self._windows(batch), batch)

    def _windows(self, batch: Epoch) -> Tensor:
        images_BHWC = self.train.take(batch.order_N)
        if self.places_y == self.places_x == 1:
            return images_BHWC
        shift = self.augment.shift
        padded = F.pad(images_BHWC, (0, 0, shift, shift, shift, shift)) if shift else images_BHWC
        # A view of every window: [B, places in y, in x, H, W, C], H and W as the network sees.
        views = padded.unfold(1, self.size[0], 1).unfold(2, self.size[1], 1)
        each = torch.arange(len(padded), device=padded.device)
        return views.permute(0, 1, 2, 4, 5, 3)[each, batch.dy_N, batch.dx_N]

    def _altered(self, images_BHWC: Tensor, batch: Epoch) -> Tensor:
        """Flip, then brightness, then contrast, as TensorFlow's tutorial; nothing is clipped."""
        augment = self.augment
        if augment.flip:
            mirrored = images_BHWC.flip(2)
            images_BHWC = torch.where(batch.flip_N[:, None, None, None], mirrored, images_BHWC)
        if augment.brightness or augment.contrast:
            images_BHWC = images_BHWC.float()
            images_BHWC += augment.brightness * batch.brightness_N[:, None, None, None]
            mean_B11C = images_BHWC.mean((1, 2), keepdim=True)
            factor_B = 1 + augment.contrast * batch.contrast_N
            images_BHWC = torch.lerp(mean_B11C, images_BHWC, factor_B[:, None, None, None])
        return images_BHWC
