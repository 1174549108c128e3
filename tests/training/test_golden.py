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
from lsexp.config import check
from lsexp.data import Dataset, draw_splits, load
from lsexp.data.batches import Images, Normalize
from lsexp.data.canonical import Arrays, canonical
from lsexp.training.member import Member, step

STEPS = 5
GOLDEN = Path(__file__).parent / "golden"
ADVICE = (
    "the same config gives other weights: raise RESULT_VERSION in lsexp/training/__init__.py "
    "(and regenerate with LSEXP_GOLDEN=write), or mend"
)


def made_up_mnist() -> Dataset:
    """2,500 images of MNIST's shape from a formula; labels 0..9 in turn."""
    i, y, x = np.ogrid[:2500, :28, :28]
    images = ((i * 31 + y * 7 + x * 13) % 256).astype(np.uint8)[..., None]
    labels = np.arange(2500) % 10
    classes = tuple(str(k) for k in range(10))
    return canonical("mnist", Arrays(images, labels, images[:10], labels[:10], classes))


def first_steps(recipe: str, *words: str) -> dict[str, dict[str, float]]:
    """Losses of the first steps and norms of the weights after them."""
    [(config, _)] = train_configs([f"recipe={recipe}", "budget=smoke", "precision=fp32", *words])
    check(config)
    dataset = load(config.data, None) if recipe == "digits_mlp" else made_up_mnist()
    splits = draw_splits(dataset, config.data)
    arrays = dataset.arrays
    train = Images.on(torch.device("cpu"), arrays.train_images, arrays.train_labels, splits.train)
    normalize = Normalize.fit(config.data.normalize, train.images_NHWC)
    member = Member(config, train, normalize, dataset.image_shape, dataset.num_classes)
    for _ in range(STEPS):
        step(member)
    return {
        "losses": {f"step {n + 1}": float(member.losses_S[n]) for n in range(STEPS)},
        "norms": {
            name: weight.double().norm().item()
            for name, weight in member.model.state_dict().items()
        },
    }


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("digits_mlp", ["digits_mlp"]),
        ("digits_mlp_smoothed", ["digits_mlp", "loss.eps=0.1", "seed=1"]),
        ("mnist_mlp", ["mnist_mlp"]),
    ],
)
def test_the_first_steps_of_a_recipe_are_what_they_were(name, words):
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
        assert found[kind] == pytest.approx(expected, rel=1e-4), ADVICE
