"""Networks of the paper. Each maps images to (logits_BK, features_BD) and names its head.

features_BD is the input of the last linear layer, whose dotted name is the attribute `head`.
"""

from __future__ import annotations

import torch
from torch import nn

from lsexp.config import MLPConfig, ModelConfig
from lsexp.errors import UserError
from lsexp.models.mlp import MLP


def build_model(
    config: ModelConfig,
    image_shape: tuple[int, int, int],
    num_classes: int,
    init: torch.Generator,
    dropout: torch.Generator,
) -> nn.Module:
    """The network that `config` describes, freshly initialised.

    Args:
        image_shape: (H, W, C) in pixels.
        init: draws the weights, on the CPU.
        dropout: draws the dropout masks, on the device that the network will train on.
    """
    height, width, channels = image_shape
    if isinstance(config, MLPConfig):
        return MLP(
            height * width * channels,
            num_classes,
            widths=config.widths,
            dropout=config.dropout,
            init_std=config.init_std,
            init=init,
            masks=dropout,
        )
    raise UserError(f"model.name={config.name}: must be mlp; model=mlp chooses it")


__all__ = ["MLP", "build_model"]
