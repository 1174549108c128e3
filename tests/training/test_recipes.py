"""The recipes of CIFAR are the paper's: settings, decay, and twenty steps against plain code."""

from dataclasses import replace

import numpy as np
import plain_networks as plain
import pytest
import torch
import torch.nn.functional as F

from lsexp.compose import train_configs
from lsexp.config import ResNetConfig, check, walk
from lsexp.data.batches import Images
from lsexp.training.checkpoint import pack, unpack
from lsexp.training.member import Member, step
from lsexp.training.optimizer import rate

RESNETS = [f"cifar{k}_resnet56{thin}" for k in (10, 100) for thin in ("", "_thin")]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def config_of(recipe, budget="paper", *words):
    [(config, _)] = train_configs(
        [f"recipe={recipe}", f"budget={budget}", "precision=fp32", *words]
    )
    check(config)
    return config


def values_of(config):
    return {name: value for name, _, value in walk(config)}


def images(count=48, size=32, classes=10):
    pixels = np.random.RandomState(0).randint(0, 256, (count, size, size, 3)).astype(np.uint8)
    labels = np.arange(count) % classes
    return Images.on(torch.device("cpu"), pixels, labels, np.arange(count))


def decaying(member):
    """Names of the parameters that the optimiser shrinks, by its groups."""
    names = {id(parameter): name for name, parameter in member.model.named_parameters()}
    return {
        names[id(parameter)]: group["weight_decay"] + group["clipped_decay"]
        for group in member.optimizer.param_groups
        for parameter in group["params"]
        if group["weight_decay"] + group["clipped_decay"] > 0
    }


def test_alexnet_has_the_papers_settings():
    values = values_of(config_of("cifar10_alexnet"))
    expected = {
        "train.steps": 390_000,
        "train.batch_size": 128,
        "data.train_size": None,
        "data.normalize": "image",
        "loss.scale": 3.0,
        "optim.lr": 0.1,
        "optim.momentum": 0.0,
        "optim.weight_decay": 0.04,
        "optim.clip_norm": None,
        "augment.crop": 24,
        "augment.shift": 0,
        "augment.flip": True,
        "augment.brightness": 63.0,
        "augment.contrast": 0.8,
    }
    assert {name: values[name] for name in expected} == expected


def test_alexnets_rate_falls_by_ten_every_130_000_steps():
    optim = config_of("cifar10_alexnet").optim
    for number, lr in (
        (0, 0.1),
        (129_999, 0.1),
        (130_000, 0.01),
        (259_999, 0.01),
        (260_000, 0.001),
    ):
        assert rate(optim, number, 390_000) == pytest.approx(lr)


def test_alexnet_decays_the_two_hidden_layers_only():
    member = Member(config_of("cifar10_alexnet"), images(), 10)
    assert decaying(member) == {"fc1.weight": 0.04, "fc2.weight": 0.04}


@pytest.mark.parametrize("recipe", RESNETS)
def test_resnets_have_the_papers_settings(recipe):
    values = values_of(config_of(recipe))
    expected = {
        "data.name": recipe.partition("_")[0],
        "data.normalize": "image",
        "model.depth": 56,
        "model.stem_kernel": 3,
        "model.stem_width": 16,
        "model.widths": [16, 32, 64] if recipe.endswith("thin") else [32, 64, 128],
        "model.name": recipe.partition("_")[2],
        "train.steps": 64_000,
        "train.batch_size": 128,
        "loss.scale": 3.0,
        "optim.lr": 0.1,
        "optim.momentum": 0.9,
        "optim.dampening": 0.0,
        "optim.nesterov": True,
        "optim.weight_decay": 1e-4,
        "optim.clip_norm": 1.0,
        "augment.crop": None,
        "augment.shift": 4,
        "augment.flip": True,
        "augment.brightness": 0.0,
        "augment.contrast": 0.0,
    }
    assert {name: values[name] for name in expected} == expected


def test_resnets_rate_falls_by_ten_at_32_000_and_48_000_steps():
    optim = config_of("cifar10_resnet56").optim
    for number, lr in ((0, 0.1), (31_999, 0.1), (32_000, 0.01), (47_999, 0.01), (48_000, 0.001)):
        assert rate(optim, number, 64_000) == pytest.approx(lr)


def test_resnets_decay_all_kernels_and_normalisations_but_no_bias_of_the_head():
    member = Member(config_of("cifar10_resnet56_thin"), images(), 10)
    everything = {name for name, _ in member.model.named_parameters()}
    assert decaying(member) == dict.fromkeys(everything - {"fc.bias"}, 1e-4)


@pytest.mark.parametrize("recipe", RESNETS)
def test_the_cpu_budget_of_resnets_is_80_passes_over_10_000_images_or_112_with_100_classes(recipe):
    config = config_of(recipe, "cpu")
    assert config.data.train_size == 10_000
    passes = 112 if "cifar100" in recipe else 80
    assert config.train.steps * config.train.batch_size / 10_000 == passes


# Twenty steps against plain code.


def small(recipe, *words, **model):
    """The recipe with batches of 16 and 20 steps, so that all its rates come up."""
    config = config_of(recipe, "paper", "loss.eps=0.1", *words)
    train = replace(config.train, steps=20, batch_size=16)
    return replace(config, train=train, model=replace(config.model, **model))


def by_hand(config, weights, names, forward, batches):
    """Twenty steps of SGD on `weights` by the formulas; the losses."""
    optim, losses = config.optim, []
    momenta = {name: torch.zeros_like(weights[name]) for name in names}
    for number in range(20):
        images, labels = batches(number)
        log_probabilities = forward(images).log_softmax(1)
        targets = 0.9 * F.one_hot(labels, 10) + 0.01
        loss = -(targets * log_probabilities).sum(1).mean()
        losses.append(loss.item())
        gradients = torch.autograd.grad(3 * loss, [weights[name] for name in names])
        with torch.no_grad():
            decayed = [
                g + (optim.weight_decay * weights[name] if decays(config, name) else 0)
                for name, g in zip(names, gradients, strict=True)
            ]
            if optim.clip_norm is not None:
                norm = torch.cat([g.flatten() for g in decayed]).norm()
                decayed = [g * min(1, optim.clip_norm / norm) for g in decayed]
            lr = optim.lr * 0.1 ** sum(number >= m * 20 for m in optim.milestones)
            for name, g in zip(names, decayed, strict=True):
                momenta[name] = optim.momentum * momenta[name] + g
                ahead = g + optim.momentum * momenta[name]  # without momentum: the gradient
                weights[name] -= lr * ahead
    return losses


def decays(config, name):
    if isinstance(config.model, ResNetConfig):
        return name != "fc.bias"
    return name in ("fc1.weight", "fc2.weight")


def compare(config, forward, *, rtol):
    member = Member(config, images(), 10)
    weights = plain.copies(member.model, torch.float32)
    names = [name for name, _ in member.model.named_parameters()]
    losses = by_hand(config, weights, names, lambda x: forward(weights, x), member.batches)
    for number in range(20):
        member.reset_sums()
        step(member)
        assert member.losses_S[0].item() == pytest.approx(losses[number], rel=rtol)
    begun = Member(config, images(), 10).model.state_dict()
    for name, value in member.model.state_dict().items():
        if value.is_floating_point():
            moved, error = (value - begun[name]).norm(), (value - weights[name]).norm()
            assert error < 0.1 * moved + 1e-6, name


def test_twenty_steps_of_alexnet_are_those_of_plain_code():
    # At the recipe's rate rounding grows ten thousandfold.
    config = small("cifar10_alexnet", "optim.lr=0.02")
    compare(config, lambda weights, x: plain.alexnet(weights, x)[0], rtol=1e-4)


def test_twenty_steps_of_a_resnet_are_those_of_plain_code():
    def forward(weights, x):
        return plain.resnet(weights, x, blocks_in_a_group=2, training=True)[0]

    # Rounding grows a thousandfold at the recipe's rate; its decay alone would hardly be seen.
    words = ["optim.lr=0.01", "optim.weight_decay=0.05"]
    config = small("cifar10_resnet56", *words, depth=14, widths=[8, 16, 32])
    compare(config, forward, rtol=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("recipe", ["cifar10_alexnet", "cifar10_resnet56"])
def test_going_on_from_a_saved_state_is_bitwise_the_undisturbed_run(recipe, precision):
    model = {"depth": 8, "widths": [8, 8, 8]} if "resnet" in recipe else {}
    config = replace(small(recipe, **model), precision=precision)
    undisturbed = Member(config, images(), 10)
    for _ in range(3):
        step(undisturbed)
    resumed = Member(config, images(), 10)
    resumed.load(unpack(pack(undisturbed.state())))
    for member in (undisturbed, resumed):
        member.reset_sums()
        for _ in range(3):
            step(member)
    ours, theirs = undisturbed.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(undisturbed.losses_S, resumed.losses_S)
