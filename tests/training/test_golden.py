"""The first steps of the recipes give the numbers that are stored: results stay what they were.

LSEXP_GOLDEN=write stores what comes out now.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from lsexp.compose import train_configs
from lsexp.config import DistillationConfig, check
from lsexp.data import Dataset, draw_splits, load
from lsexp.data.batches import Images
from lsexp.data.canonical import Arrays, canonical
from lsexp.training.member import Member, step
from lsexp.training.teacher import Table

STEPS = 5
GOLDEN = Path(__file__).parent / "golden"
ADVICE = (
    "the same config gives other weights: raise RESULT_VERSION in lsexp/training/__init__.py "
    "(and regenerate with LSEXP_GOLDEN=write), or mend"
)


def made_up(name: str, size: int, channels: int, num_classes: int) -> Dataset:
    """2,500 images of a set's shape from a formula; labels in turn."""
    i, y, x, c = np.ogrid[:2500, :size, :size, :channels]
    images = ((i * 31 + y * 7 + x * 13 + c * 57) % 256).astype(np.uint8)
    labels = np.arange(2500) % num_classes
    classes = tuple(str(k) for k in range(num_classes))
    return canonical(name, Arrays(images, labels, images[:10], labels[:10], classes))


MADE_UP = {
    "mnist": lambda: made_up("mnist", 28, 1, 10),
    "cifar10": lambda: made_up("cifar10", 32, 3, 10),
    "cifar100": lambda: made_up("cifar100", 32, 3, 100),
}


def made_up_teacher(images: int, num_classes: int) -> Table:
    """Logits from a formula, of each image as it is and mirrored."""
    v, n, k = np.ogrid[:2, :images, :num_classes]
    return Table(torch.from_numpy((v * 5 + n * 7 + k * 13) % 17 / 4).float())


def bernoulli(self, p, *, generator):
    """In the place of torch's, which draws otherwise on Intel's CPUs than on others."""
    return self.copy_(torch.rand(self.shape, generator=generator) < p)


def first_steps(recipe: str, *words: str) -> dict[str, dict[str, float]]:
    """Losses of the first steps and norms of the weights after them."""
    [(config, _)] = train_configs([f"recipe={recipe}", "budget=smoke", "precision=fp32", *words])
    check(config)
    made = MADE_UP.get(config.data.name)
    dataset = load(config.data, None) if made is None else made()
    splits = draw_splits(dataset, config.data)
    arrays = dataset.arrays
    train = Images.on(torch.device("cpu"), arrays.train_images, arrays.train_labels, splits.train)
    taught = None
    if isinstance(config.loss, DistillationConfig):
        taught = made_up_teacher(len(splits.train), dataset.num_classes)
    member = Member(config, train, dataset.num_classes, taught)
    for _ in range(STEPS):
        step(member)
    return {
        "losses": {f"step {n + 1}": float(member.losses_S[n]) for n in range(STEPS)},
        "norms": {
            name: weight.double().norm().item()
            for name, weight in member.model.state_dict().items()
            if weight.is_floating_point()
        },
    }


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("digits_mlp", ["digits_mlp"]),
        ("digits_mlp_smoothed", ["digits_mlp", "loss.eps=0.1", "seed=1"]),
        ("digits_mlp_dropout", ["digits_mlp", "model.dropout=0.5"]),
        ("digits_shifted", ["digits_shifted"]),
        (
            "digits_student",
            [
                *("digits_mlp", "loss=distillation", "loss.teacher=made-up", "augment.flip=true"),
                *("loss.temperature=2", "loss.t_squared=true", "loss.beta=0.7", "loss.eps=0.1"),
            ],
        ),
        ("mnist_mlp", ["mnist_mlp"]),
        ("mnist_toy", ["mnist_toy", "loss.teacher=made-up"]),
        ("cifar10_alexnet", ["cifar10_alexnet", "loss.eps=0.1"]),
        ("cifar100_resnet56_thin", ["cifar100_resnet56_thin", "loss.eps=0.1"]),
    ],
)
def test_the_first_steps_of_a_recipe_are_what_they_were(name, words, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "bernoulli_", bernoulli)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = first_steps(*words)
    finally:
        torch.set_num_threads(before)
    path = GOLDEN / f"{name}.json"
    if os.environ.get("LSEXP_GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + "\n")
    stored = json.loads(path.read_text())
    assert found.keys() == stored.keys()
    for kind, expected in stored.items():
        # Rounding, which differs between CPUs, grows with the depth.
        rel = 1e-3 if "resnet" in name else 1e-4
        assert found[kind] == pytest.approx(expected, rel=rel, abs=1e-6), ADVICE
