"""One step of a member, against plain PyTorch; its state; what eps and the seed decide."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lsexp.config import (
    AugmentConfig,
    LossConfig,
    MLPConfig,
    OptimConfig,
    StepsConfig,
    TrainConfig,
)
from lsexp.data.batches import Images
from lsexp.training.checkpoint import pack, unpack
from lsexp.training.member import Member, step

CONFIG = TrainConfig(
    augment=AugmentConfig(shift=1),
    model=MLPConfig(widths=[8, 8]),
    loss=LossConfig(eps=0.1),
    optim=OptimConfig(lr=0.2, momentum=0.9, dampening=0.9, schedule="linear"),
    train=StepsConfig(steps=20, batch_size=4),
    precision="fp32",
)

PASS_ENDS = (3, 5, 8)  # 10 images in batches of 4


def make(config=CONFIG, **changes):
    """A member on ten images of 4 x 4 pixels in three classes."""
    pixels = np.random.RandomState(0).randint(0, 256, (10, 4, 4, 1)).astype(np.uint8)
    train = Images.on(torch.device("cpu"), pixels, np.arange(10) % 3, np.arange(10))
    return Member(replace(config, **changes), train, 3)


def with_dropout(p):
    return MLPConfig(widths=[8, 8], dropout=p)


def plain_copy(member):
    """The same network out of PyTorch's own parts."""
    layers = [nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)]
    network = nn.Sequential(nn.Flatten(), *layers)
    with torch.no_grad():
        for mine, theirs in zip(network.parameters(), member.model.parameters(), strict=True):
            mine.copy_(theirs)
    return network


def weights(member):
    return [parameter.detach().clone() for parameter in member.model.parameters()]


def advance(*members, steps=1):
    """Steps past the end of a pass, where the loop would reset the sums."""
    for _ in range(steps):
        for member in members:
            member.reset_sums()
            step(member)


def moved(member):
    """By how much one step moves each parameter."""
    before = weights(member)
    step(member)
    return [after - b for after, b in zip(weights(member), before, strict=True)]


def equal(some, others):
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


@pytest.mark.parametrize("eps", [0.0, 0.1])
@pytest.mark.parametrize(
    ("optim", "clip"),
    [
        (OptimConfig(lr=0.3), None),
        (OptimConfig(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01, decay=["*"]), None),
        (OptimConfig(lr=0.3, momentum=0.5, schedule="linear", clip_norm=0.5), 0.5),
    ],
)
def test_twenty_steps_are_those_of_a_plain_pytorch_loop(optim, clip, eps):
    member = make(optim=optim, loss=LossConfig(eps=eps, scale=2.0))
    network = plain_copy(member)
    sgd = torch.optim.SGD(
        network.parameters(),
        lr=optim.lr,
        momentum=optim.momentum,
        nesterov=optim.nesterov,
        weight_decay=optim.weight_decay,
    )
    for number in range(20):
        images, labels = member.batches(number)
        loss = F.cross_entropy(network(images), labels, label_smoothing=eps)
        sgd.zero_grad()
        (2 * loss).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(network.parameters(), clip)
        if optim.schedule == "linear":
            sgd.param_groups[0]["lr"] = optim.lr * (20 - number) / 20
        sgd.step()
        advance(member)
        assert member.losses_S[0].item() == pytest.approx(loss.item(), rel=1e-5)
    for mine, theirs in zip(weights(member), network.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs.detach(), rtol=1e-5, atol=1e-6)


def test_twenty_steps_of_the_papers_mnist_recipe_by_hand():
    optim = replace(CONFIG.optim, lr=1.0, lr_scale={"head": 0.1})
    member = make(optim=optim)
    network = plain_copy(member)
    parameters = list(network.parameters())
    averages = [torch.zeros_like(parameter) for parameter in parameters]
    for number in range(20):
        images, labels = member.batches(number)
        logp = network(images).log_softmax(1)
        targets = 0.9 * F.one_hot(labels, 3) + 0.1 / 3
        gradients = torch.autograd.grad(-(targets * logp).sum(1).mean(), parameters)
        rates = [1 - number / 20] * 4 + [0.1 * (1 - number / 20)] * 2
        with torch.no_grad():
            for p, average, g, lr in zip(parameters, averages, gradients, rates, strict=True):
                average.mul_(0.9).add_(0.1 * g)
                p.sub_(lr * average)
        advance(member)
    for mine, theirs in zip(weights(member), parameters, strict=True):
        torch.testing.assert_close(mine, theirs.detach(), rtol=1e-5, atol=1e-6)


def test_reported_loss_and_right_answers_are_those_before_the_update():
    member = make()
    losses, right = [], 0
    for number in range(3):
        images, labels = member.batches(number)
        with torch.no_grad():
            logits, _ = member.model(images)
        losses.append(F.cross_entropy(logits, labels, label_smoothing=0.1).item())
        right += int((logits.argmax(1) == labels).sum())
        step(member)
    assert (member.step, member.since_reset) == (3, 3)
    assert member.losses_S[:3].tolist() == pytest.approx(losses)
    assert int(member.correct) == right

    member.reset_sums()
    assert (member.step, member.since_reset, int(member.correct)) == (3, 0, 0)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_going_on_from_a_saved_state_is_bitwise_the_undisturbed_run(momentum):
    optim = OptimConfig(lr=0.2, momentum=momentum, schedule="linear", weight_decay=1e-3)
    changes = {"optim": optim, "model": with_dropout(0.3), "train": StepsConfig(10, batch_size=4)}
    undisturbed = make(**changes)
    saved = [pack(undisturbed.state())]
    for number in range(10):
        if number in PASS_ENDS:
            undisturbed.reset_sums()
        step(undisturbed)
        saved.append(pack(undisturbed.state()))
    for begun, state in enumerate(saved):
        member = make(**changes)
        member.load(unpack(state))
        assert member.step == begun
        for number in range(begun, 10):
            if number in PASS_ENDS:
                member.reset_sums()
            step(member)
        assert equal(weights(member), weights(undisturbed))
        assert torch.equal(member.losses_S[:2], undisturbed.losses_S[:2])
        assert int(member.correct) == int(undisturbed.correct)
        assert torch.equal(member.masks.get_state(), undisturbed.masks.get_state())


def test_a_saved_state_does_not_move_with_the_member():
    member = make(model=with_dropout(0.3))
    step(member)
    state = member.state()
    before = pack(state)
    step(member)
    assert pack(state) == before


def test_runs_that_differ_only_in_eps_share_init_batches_and_dropout():
    model = with_dropout(0.5)
    hard, smooth = make(model=model, loss=LossConfig(eps=0.0)), make(model=model)
    assert equal(weights(hard), weights(smooth))
    for number in range(6):
        assert equal(hard.batches(number), smooth.batches(number))
        advance(hard, smooth)
        assert torch.equal(hard.masks.get_state(), smooth.masks.get_state())
    assert not equal(weights(hard), weights(smooth))


def test_spread_others_trains_as_uniform_with_the_eps_that_gives_the_same_targets():
    others = make(loss=LossConfig(eps=0.2, spread="others"))
    uniform = make(loss=LossConfig(eps=0.3))  # .2 * 3 / 2
    advance(others, uniform, steps=5)
    for one, other in zip(weights(others), weights(uniform), strict=True):
        torch.testing.assert_close(one, other)


def test_a_seed_decides_init_order_and_dropout_whatever_the_global_seed_is():
    model = with_dropout(0.5)
    torch.manual_seed(1)
    one = make(model=model, seed=1)
    torch.manual_seed(2)
    same, other = make(model=model, seed=1), make(model=model, seed=2)
    assert not equal(weights(one)[::2], weights(other)[::2])
    assert not torch.equal(one.batches.epoch(0).order_N, other.batches.epoch(0).order_N)
    assert not torch.equal(one.masks.get_state(), other.masks.get_state())
    advance(one, same, steps=3)
    assert equal(weights(one), weights(same))


def test_scale_multiplies_the_gradient_and_not_the_reported_loss():
    optim = OptimConfig(lr=0.1)
    one, three = make(optim=optim), make(optim=optim, loss=LossConfig(eps=0.1, scale=3.0))
    for a, b in zip(moved(one), moved(three), strict=True):
        torch.testing.assert_close(3 * a, b, rtol=1e-4, atol=1e-7)
    assert one.losses_S[0] == three.losses_S[0]


def test_four_times_the_scale_at_a_quarter_of_the_rate_is_the_same_run():
    one = make()
    optim = replace(CONFIG.optim, lr=CONFIG.optim.lr / 4)
    other = make(optim=optim, loss=replace(CONFIG.loss, scale=4.0))
    advance(one, other, steps=10)
    assert equal(weights(one), weights(other))


def test_a_layers_rate_factor_scales_its_steps_only():
    plain = moved(make(optim=OptimConfig(lr=0.5)))
    scaled = moved(make(optim=OptimConfig(lr=0.5, lr_scale={"head": 0.1, "hidden.0": 2.0})))
    for factor, a, b in zip([2, 2, 1, 1, 0.1, 0.1], plain, scaled, strict=True):
        torch.testing.assert_close(factor * a, b, rtol=1e-4, atol=1e-7)


def test_clip_norm_shortens_the_gradient_of_all_parameters_together():
    free = torch.cat([d.flatten() for d in moved(make(optim=OptimConfig(lr=1.0)))])
    limit = free.norm().item() / 3
    clipped = make(optim=OptimConfig(lr=1.0, clip_norm=limit))
    short = torch.cat([d.flatten() for d in moved(clipped)])
    assert short.norm().item() == pytest.approx(limit, rel=1e-3)
    torch.testing.assert_close(3 * short, free, rtol=1e-3, atol=1e-6)


def test_a_gradient_within_clip_norm_is_left_alone():
    free, clipped = make(), make(optim=replace(CONFIG.optim, clip_norm=1e3))
    advance(free, clipped, steps=5)
    assert equal(weights(free), weights(clipped))


def test_every_step_uses_the_rate_of_the_schedule_with_the_layers_factor():
    optim = OptimConfig(
        lr=1.0, schedule="step", milestones=[0.5], decay_factor=0.5, lr_scale={"head": 0.25}
    )
    member = make(optim=optim, train=StepsConfig(4, batch_size=4))
    rates = []
    for _ in range(4):
        step(member)
        rates.append(sorted(group["lr"] for group in member.optimizer.param_groups))
    assert rates == [[0.25, 1.0], [0.25, 1.0], [0.125, 0.5], [0.125, 0.5]]


def test_bf16_keeps_weights_and_loss_in_float32_and_rounds_the_network():
    exact, rough = make(), make(precision="bf16")
    step(exact)
    step(rough)
    assert {weight.dtype for weight in weights(rough)} == {torch.float32}
    assert rough.losses_S.dtype == torch.float32
    assert rough.losses_S[0] != exact.losses_S[0]
    assert rough.losses_S[0].item() == pytest.approx(exact.losses_S[0].item(), rel=0.02)


def test_a_loaded_state_is_not_trained_along():
    member = make()
    step(member)
    state = member.state()
    before = state["optimizer"]["state"][0]["momentum_buffer"].clone()
    member.load(state)
    step(member)
    assert torch.equal(state["optimizer"]["state"][0]["momentum_buffer"], before)
