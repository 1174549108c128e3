"""Logits and scores of a split."""

import math

import numpy as np
import pytest
import torch

from lsexp.config import DataConfig, MLPConfig, StepsConfig, TrainConfig
from lsexp.data.batches import Images
from lsexp.training import evaluate
from lsexp.training.evaluate import accuracy_and_nll, logits_of
from lsexp.training.member import Member, step


@pytest.fixture
def trained():
    """A member that trains in bf16 with dropout, its normalisation and its 10 images."""
    pixels = np.random.RandomState(0).randint(0, 256, (10, 4, 4, 1)).astype(np.uint8)
    images = Images.on(torch.device("cpu"), pixels, np.arange(10) % 3, np.arange(10))
    config = TrainConfig(
        data=DataConfig(normalize="channel"),
        model=MLPConfig(widths=[8], dropout=0.5),
        train=StepsConfig(steps=5, batch_size=4),
        precision="bf16",
    )
    member = Member(config, images, 3)
    step(member)
    return member, member.preprocess, images


def test_logits_are_those_of_the_network_in_float32_without_dropout(trained):
    member, preprocess, images = trained
    found = logits_of(member.model, preprocess, images)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    weights = {name: value.double() for name, value in member.model.state_dict().items()}
    x = preprocess(images.pixels_MHWC).double().flatten(1)
    x = (x @ weights["hidden.0.weight"].T + weights["hidden.0.bias"]).relu()
    expected = x @ weights["fc.weight"].T + weights["fc.bias"]
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(found, member.model.eval()(preprocess(images.pixels_MHWC))[0])


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_network_is_what_it_was(trained, training):
    member, preprocess, images = trained
    member.model.train(training)
    logits_of(member.model, preprocess, images)
    assert {module.training for module in member.model.modules()} == {training}


def test_evaluation_moves_nothing_that_training_uses(trained):
    member, preprocess, images = trained
    masks = member.masks.get_state()
    before = [parameter.detach().clone() for parameter in member.model.parameters()]
    pixels = images.pixels_MHWC.clone()
    logits_of(member.model, preprocess, images)
    assert torch.equal(member.masks.get_state(), masks)
    assert torch.equal(images.pixels_MHWC, pixels)
    for parameter, was in zip(member.model.parameters(), before, strict=True):
        assert torch.equal(parameter, was)


@pytest.mark.parametrize("batch", [1, 3, 10])
def test_logits_come_in_the_order_of_the_images_whatever_the_batch(trained, batch, monkeypatch):
    member, preprocess, images = trained
    expected = logits_of(member.model, preprocess, images)
    monkeypatch.setitem(evaluate.BATCH, "cpu", batch)
    torch.testing.assert_close(logits_of(member.model, preprocess, images), expected)


def test_accuracy_and_nll_by_hand():
    probabilities = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.6, 0.3, 0.1]])
    labels = torch.tensor([0, 1, 2])
    accuracy, nll = accuracy_and_nll(probabilities.log() + 7, labels)
    assert accuracy == pytest.approx(2 / 3)
    assert nll == pytest.approx(-(math.log(0.5) + math.log(0.8) + math.log(0.1)) / 3)
