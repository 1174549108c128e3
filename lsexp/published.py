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

REPRODUCTION_ACCURACY: dict[str, dict[float, Published]] = {
    recipe: {eps: Published(value, None, "one seed, on test") for eps, value in numbers.items()}
    for recipe, numbers in {
        "cifar10_alexnet": {0.0: 0.8501, 0.05: 0.8513, 0.1: 0.8547, 0.15: 0.8483, 0.3: 0.8602},
        "cifar10_resnet56": {0.0: 0.9359, 0.05: 0.9362, 0.1: 0.9333, 0.15: 0.9355, 0.3: 0.9353},
        "cifar100_resnet56": {0.0: 0.7161, 0.05: 0.7199, 0.1: 0.7207, 0.15: 0.7174, 0.3: 0.7175},
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
    """A row of Table 3: ECE (fraction, 15 bins) on the images held out.

    hard: without smoothing; scaled: the same networks at `temperature`; smoothed: at `eps`, T = 1.
    """

    hard: float
    scaled: float
    temperature: float
    smoothed: float
    eps: float
    where: str


PAPER_ECE: dict[str, PublishedECE] = {
    "cifar100_resnet56": PublishedECE(0.150, 0.021, 1.9, 0.024, 0.05, "Table 3"),
}
"""Recipe to its row in the paper. Networks of other recipes are not the paper's."""

REPRODUCTION_ECE: dict[str, PublishedECE] = {
    "mnist_mlp": PublishedECE(0.002, 0.001, 1.06, 0.056, 0.05, "one seed, on test"),
    "cifar10_alexnet": PublishedECE(0.097, 0.012, 2.5, 0.026, 0.05, "one seed, on test"),
    "cifar10_resnet56": PublishedECE(
        0.049, 0.006, 3.1, 0.028, 0.05, "one seed, on test, 24 x 24 crops"
    ),
    "cifar100_resnet56": PublishedECE(0.207, 0.029, 2.9, 0.053, 0.05, "one seed"),
}
"""The same of the one public reproduction (ReScience, sdwagner/re-labelsmoothing), whose
temperatures were chosen by hand on the images reported."""


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

PAPER_RECIPES: tuple[str, ...] = (
    *("mnist_mlp", "mnist_toy", "mnist_toy_teacher", "cifar10_alexnet", "cifar10_resnet56"),
    *("cifar10_distill", "cifar100_resnet56"),
)
"""Recipes of networks that the paper has."""
