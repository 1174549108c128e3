"""What the studies share in which networks teach others."""

from __future__ import annotations

from lsexp.config import DistillationConfig, LossConfig

TEACHER, BASELINE, STUDENT = "teacher", "baseline", "student"
"""Roles of runs; a baseline is a network like the students, without a teacher."""
DISPUTED = "Shen et al. 2021 (2104.00676); Chandrasegaran et al. 2022 (2206.14532)"
STUDENTS = {
    "digits_mlp": "digits_distill",
    "digits_shifted": "digits_distill",
    "mnist_mlp": "mnist_distill",
    "mnist_toy_teacher": "mnist_toy",
    "cifar10_resnet56": "cifar10_distill",
    "cifar10_resnet56_thin": "cifar10_distill_thin",
}
"""Recipe of teachers to that of their students; others are taught to networks of their own kind."""


def protocol_of(loss: LossConfig) -> DistillationConfig:
    """How students are taught: as typed, else as the paper does."""
    if isinstance(loss, DistillationConfig):
        return loss
    return DistillationConfig(scale=loss.scale, teacher="of the sweep")


def labels_of(loss: LossConfig) -> LossConfig:
    """The loss of those without a teacher."""
    return LossConfig(spread=loss.spread, scale=loss.scale)
