"""Networks. Each maps images to (logits_BK, features_BD) and names its head.

features_BD is the input of the last linear layer, whose dotted name is the attribute `head_name`.
mlp.py, alexnet.py and resnet.py are those of the paper, foreign.py takes in torchvision's and the
user's own. kernels.py and gpu_kernels.py have their layers fused, for a CPU and for a GPU.
"""

from __future__ import annotations

import torch
from torch import nn

from lsexp.config import (
    AlexNetConfig,
    CustomConfig,
    MLPConfig,
    ModelConfig,
    ResNetConfig,
    TorchvisionConfig,
)
from lsexp.models.alexnet import AlexNet
from lsexp.models.foreign import custom, evaluating, torchvision_classifier
from lsexp.models.mlp import MLP
from lsexp.models.resnet import ResNet


def build_model(
    config: ModelConfig,
    image_shape: tuple[int, int, int],
    num_classes: int,
    init: torch.Generator,
    dropout: torch.Generator,
) -> nn.Module:
    """The network that `config` describes, freshly initialised, channels last in memory.

    Args:
        image_shape: (H, W, C) that it will see, in pixels.
        init: draws the weights, on the CPU.
        dropout: draws the dropout masks of the paper's networks, on the device that the network
            will train on; others draw from torch's own generator.

    Raises:
        UserError: a network of the user's, or of torchvision, that cannot be had or used.
    """
    height, width, channels = image_shape
    match config:
        case MLPConfig():
            return MLP(
                height * width * channels,
                num_classes,
                widths=config.widths,
                dropout=config.dropout,
                init_std=config.init_std,
                init=init,
                masks=dropout,
            )
        case AlexNetConfig():
            model: nn.Module = AlexNet(image_shape, num_classes, init=init)
        case ResNetConfig():
            model = ResNet(
                channels,
                num_classes,
                depth=config.depth,
                stem_width=config.stem_width,
                stem_kernel=config.stem_kernel,
                widths=config.widths,
                init=init,
            )
        case TorchvisionConfig():
            return torchvision_classifier(config, image_shape, num_classes, init)
        case CustomConfig():
            return custom(config, image_shape, num_classes, init)
        case _:
            raise AssertionError(f"no network for {type(config).__name__}")
    return model.to(memory_format=torch.channels_last)


__all__ = ["MLP", "AlexNet", "ResNet", "build_model", "evaluating"]
