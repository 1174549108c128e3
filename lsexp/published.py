"""Numbers that others have published, each with its table: what ours are put beside.

Accuracies are fractions. The paper's CIFAR numbers are of the 10,000 images held out from
training; it does not say what its +- is, nor over how many seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Published(NamedTuple):
    """One number. spread: the +- beside it, None without one; where: table or section; split: of
    which images."""

    value: float
    spread: float | None
    where: str
    split: str = "val"


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

_EPS = (0.0, 0.05, 0.1, 0.15, 0.3)
_MEASURED_ON = {
    "mnist_mlp": "test",
    "cifar10_alexnet": "test",
    "cifar10_resnet56": "test",
    "cifar100_resnet56": "val",
}
REPRODUCTION_ACCURACY: dict[str, dict[float, Published]] = {
    recipe: {
        eps: Published(value, None, f"one seed, on {_MEASURED_ON[recipe]}", _MEASURED_ON[recipe])
        for eps, value in zip(_EPS, values, strict=True)
    }
    for recipe, values in {
        "mnist_mlp": (0.9906, 0.9933, 0.9931, 0.9924, 0.9913),
        "cifar10_alexnet": (0.8501, 0.8513, 0.8547, 0.8483, 0.8602),
        "cifar10_resnet56": (0.9359, 0.9362, 0.9333, 0.9355, 0.9353),
        "cifar100_resnet56": (0.7161, 0.7199, 0.7207, 0.7174, 0.7175),
    }.items()
}
"""The same of the one public reproduction (ReScience, sdwagner/re-labelsmoothing)."""

PAPER_CLASSES: dict[str, tuple[str, str, str]] = {
    "cifar10": ("airplane", "automobile", "bird"),
    "cifar100": ("beaver", "dolphin", "otter"),
}
"""Data set to the three classes of Figure 1."""


PAPER_PAIR: dict[str, tuple[str, str]] = {"cifar10": ("airplane", "dog")}
"""Data set to the two classes of Figure 6."""


class PublishedECE(NamedTuple):
    """ECE (fraction, 15 bins) on the images held out.

    hard: without smoothing; scaled: the same networks at `temperature`; smoothed: eps to that of
    smoothed networks, T = 1.
    """

    hard: float
    scaled: float
    temperature: float
    smoothed: dict[float, float]
    where: str
    split: str = "val"


PAPER_ECE: dict[str, PublishedECE] = {
    "cifar100_resnet56": PublishedECE(0.150, 0.021, 1.9, {0.05: 0.024}, "Table 3"),
}
"""Recipe to its row in the paper."""

REPRODUCTION_ECE: dict[str, PublishedECE] = {
    recipe: PublishedECE(
        values[0], scaled, temperature, dict(zip(_EPS[1:], values[1:], strict=True)),
        f"one seed, on {_MEASURED_ON[recipe]}", _MEASURED_ON[recipe],
    )
    for recipe, scaled, temperature, values in (
        ("mnist_mlp", 0.001, 1.06, (0.002, 0.056, 0.102, 0.147, 0.281)),
        ("cifar10_alexnet", 0.012, 2.5, (0.097, 0.026, 0.048, 0.087, 0.221)),
        ("cifar10_resnet56", 0.006, 3.1, (0.049, 0.028, 0.065, 0.102, 0.222)),
        ("cifar100_resnet56", 0.029, 2.9, (0.207, 0.053, 0.043, 0.045, 0.120)),
    )
}  # fmt: skip
"""The same of the one public reproduction (ReScience, sdwagner/re-labelsmoothing)."""


class ToyError(NamedTuple):
    """A network of the paper's MNIST toy: test errors in percent, of the paper (section 4, a single
    number each) and of the public reproduction (one seed; its students match their logits with
    their teachers' probabilities).

    role: teacher or student; eps: of the teacher.
    """

    role: str
    eps: float
    paper: float
    reproduction: float


TOY_ERRORS: dict[str, tuple[ToyError, ...]] = {
    "mnist_toy": (
        ToyError("teacher", 0.0, 0.67, 0.81),
        ToyError("teacher", 0.1, 0.59, 0.69),
        ToyError("student", 0.0, 0.74, 0.93),
        ToyError("student", 0.1, 0.91, 1.05),
    )
}
"""By recipe."""

PAPER_STUDENT: dict[str, Published] = {
    "cifar10_distill": PAPER_ACCURACY["cifar10_alexnet"][0.0],
}
"""Recipe to the accuracy of its students without a teacher, on hard labels: trained as the AlexNet
of Table 2 is. The text gives no other number of Figure 5."""

REPRODUCTION_STUDENTS: dict[str, dict[str, tuple[tuple[float, float], ...]]] = {
    "cifar10_distill": {
        "no teacher": ((0.0, 0.854), (0.15, 0.863), (0.3, 0.861), (0.45, 0.867), (0.6, 0.867)),
        "hard teacher": ((0.02, 0.851), (0.08, 0.860), (0.335, 0.877), (0.565, 0.867)),
        "smoothed teachers": (
            *((0.0, 0.850), (0.15, 0.853), (0.3, 0.854)),
            *((0.45, 0.854), (0.6, 0.856), (0.75, 0.847)),
        ),
    }
}
"""Recipe to curve to (gamma, test accuracy), read off the plot of the public reproduction: a seed,
+- 0.001, 50,000 training images; gamma of smoothed teachers is their eps."""

DEFECTS: dict[str, str] = {
    "mnist_mlp": "one seed",
    "cifar10_alexnet": "one seed; decay by the norm of the weights instead of its square, an LRN "
    "eight times too weak, all weights of the last layer drawn alike; trained on 50,000 images",
    "cifar10_resnet56": "one seed; decay by the norm of the weights instead of its square; crops "
    "of 24 pixels; trained on 50,000 images",
    "cifar100_resnet56": "one seed; decay by the norm of the weights instead of its square; a "
    "first convolution of 7 x 7",
    "mnist_toy": "one seed; students' logits are matched with teachers' probabilities",
    "cifar10_distill": "one seed, read off its plot; the teacher is trained on crops of 24 pixels "
    "and T = 3 is missing",
}
"""Recipe to what is known of the public reproduction's numbers of it."""
BY_HAND = "temperatures were chosen by hand on the images reported"
"""Of its ECE too."""

_MLP = {"data.name": "mnist", "model.name": "mlp"}
_ALEXNET = {"data.name": "cifar10", "model.name": "alexnet"}
_RESNET = {"model.name": "resnet56", "model.widths": [32, 64, 128]}
NETWORKS: dict[str, dict[str, Any]] = {
    "mnist_mlp": _MLP | {"model.widths": [1200, 1200]},
    "mnist_toy_teacher": _MLP | {"model.widths": [1200, 1200]},
    "mnist_toy": _MLP | {"model.widths": [800, 800]},
    "mnist_distill": _MLP | {"model.widths": [800, 800]},
    "cifar10_alexnet": _ALEXNET,
    "cifar10_distill": _ALEXNET,
    "cifar10_resnet56": _RESNET | {"data.name": "cifar10"},
    "cifar100_resnet56": _RESNET | {"data.name": "cifar100"},
}
"""Recipes of networks that the paper has: what makes them so."""
TEACHERS = {
    "mnist_toy": "mnist_toy_teacher",
    "mnist_distill": "mnist_toy_teacher",
    "cifar10_distill": "cifar10_resnet56",
}
"""Recipe of students to that of the teachers that they have in the paper."""


def papers(recipe: str, config: Mapping[str, Any]) -> str:
    """The recipe, if a run of it has data and network of the paper; "" if keys that were typed
    have made another of it, or the paper has none such.

    >>> papers("cifar10_alexnet", {"data.name": "cifar10", "model.name": "alexnet"})
    'cifar10_alexnet'
    >>> papers("cifar10_alexnet", {"data.name": "digits", "model.name": "alexnet"})
    ''
    """
    network = NETWORKS.get(recipe)
    same = network and all(config.get(key, value) == value for key, value in network.items())
    return recipe if same else ""
