"""The fully connected networks of the paper's MNIST experiments (section 4): 784-1200-1200-10.

Shape letters: B examples, C channels, H height, W width, D features, K classes.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Dropout(nn.Module):
    """Dropout whose masks come from a generator of its own, so that a seed decides them."""

    def __init__(self, p: float, masks: torch.Generator):
        super().__init__()
        self.p = p
        self.masks = masks

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        keep = torch.empty_like(x).bernoulli_(1 - self.p, generator=self.masks)
        return x * keep / (1 - self.p)


class MLP(nn.Module):
    """Linear layers with ReLU and dropout between them; biases start at 0.

    Args:
        inputs: C * H * W.
        num_classes: K.
        widths: of the hidden layers; the last is D.
        dropout: probability of dropping a hidden activation.
        init_std: of the Gaussian that draws the weights; None: sqrt(2 / inputs of the layer).
            The paper says "variance 0.03" for MNIST; as a standard deviation 0.03 is close to
            He's 0.041, as a variance it would be four times that.
        init, masks: generators of weights and dropout masks.
    """

    head_name = "fc"

    def __init__(
        self,
        inputs: int,
        num_classes: int,
        *,
        widths: Sequence[int],
        dropout: float,
        init_std: float | None,
        init: torch.Generator,
        masks: torch.Generator,
    ):
        super().__init__()
        sizes = [inputs, *widths]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU(), Dropout(dropout, masks)]
        self.hidden = nn.Sequential(*layers)
        self.fc = nn.Linear(sizes[-1], num_classes)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                std = init_std if init_std is not None else (2 / layer.in_features) ** 0.5
                nn.init.normal_(layer.weight, std=std, generator=init)
                nn.init.zeros_(layer.bias)

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        features_BD = self.hidden(images_BCHW.flatten(1))
        return self.fc(features_BD), features_BD
