"""Teachers: logits for the images of a batch, looked up or computed.

Shape letters: B examples in a batch, N training images, K classes, V views.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from lsexp.data.batches import Batches, Epoch, Preprocess


class Teacher(Protocol):
    """What gives the teacher's logits [B, K] of a step of the student's.

    own: where it sees an augmentation of its own, what draws that.

    Args:
        pixels_BHWC: as the student sees them, not preprocessed.
        draws: what was drawn for them.
        own: what was drawn for the teacher, where it has an augmentation of its own.
    """

    own: Batches | None

    def __call__(self, pixels_BHWC: Tensor, draws: Epoch, own: Epoch | None) -> Tensor: ...


@dataclass
class Table:
    """Of images that it sees in one way, or mirrored too: computed once.

    logits_VNK: float32, by view (as it is, mirrored) and place among the training images.
    """

    logits_VNK: Tensor
    own: Batches | None = None

    def __call__(self, pixels_BHWC: Tensor, draws: Epoch, own: Epoch | None) -> Tensor:
        if len(self.logits_VNK) == 1:
            return self.logits_VNK[0, draws.order_N]
        return self.logits_VNK[draws.flip_N.long(), draws.order_N]


@dataclass
class Network:
    """A forward pass for every step, in evaluation mode.

    own: its own augmentation of the same images; None: it sees the student's pixels.
    """

    model: nn.Module
    preprocess: Preprocess
    precision: str
    own: Batches | None = None

    def __post_init__(self) -> None:
        self.model.eval()

    def __call__(self, pixels_BHWC: Tensor, draws: Epoch, own: Epoch | None) -> Tensor:
        if self.own is not None:
            assert own is not None
            pixels_BHWC = self.own.pixels(own)
        bf16 = self.precision == "bf16"
        with torch.no_grad(), torch.autocast(pixels_BHWC.device.type, torch.bfloat16, enabled=bf16):
            logits_BK: Tensor = self.model(self.preprocess(pixels_BHWC))[0]
        return logits_BK
