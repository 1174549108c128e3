"""Numbers that others have published, each with its table: what ours are put beside.

Accuracies are fractions. The paper's CIFAR numbers are of the 10,000 images held out from
training; it does not say what its +- is, nor over how many seeds.
"""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """One number. spread: the +- beside it, None without one; where: table or section."""

    value: float
    spread: float | None
    where: str


PAPER_ACCURACY: dict[str, dict[float, Published]] = {
    "cifar10_alexnet": {
        0.0: Published(0.868, 0.002, "Table 2"),
        0.1: Published(0.867, 0.003, "Table 2"),
    },
    "cifar100_resnet56": {
        0.0: Published(0.721, 0.003, "Table 2"),
        0.1: Published(0.727, 0.003, "Table 2"),
    },
}
"""Recipe to eps to accuracy (arXiv 1906.02629 v3)."""
