"""Parameter groups, updates and schedules, against hand-worked updates and torch's own SGD."""

import pytest
import torch
from torch import nn

from lsexp.config import OptimConfig
from lsexp.errors import UserError
from lsexp.training.optimizer import build_optimizer, clip, rate

NAMES = ("hidden.weight", "hidden.bias", "fc.weight", "fc.bias")


class Tiny(nn.Module):
    head_name = "fc"

    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(2, 2)
        self.fc = nn.Linear(2, 1)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.fill_(1.0)


def update(model, optimizer, gradient):
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, gradient)
    optimizer.step()


def by_name(model, optimizer, key):
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [
        (names[id(parameter)], group[key])
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]
    assert len(found) == len(names)
    return dict(found)


def test_plain_sgd_by_hand():
    model = Tiny()
    update(model, build_optimizer(model, OptimConfig(lr=0.5)), 0.4)
    torch.testing.assert_close(model.fc.weight.detach(), torch.full((1, 2), 0.8))


def test_dampened_momentum_averages_the_gradient_from_the_first_update_on():
    model = Tiny()
    optimizer = build_optimizer(model, OptimConfig(lr=1.0, momentum=0.9, dampening=0.9))
    average, expected = 0.0, 1.0
    for gradient in (2.0, 2.0, -1.0):
        update(model, optimizer, gradient)
        average = 0.9 * average + 0.1 * gradient
        expected -= average
        for parameter in model.parameters():
            torch.testing.assert_close(
                parameter.detach(), torch.full_like(parameter.detach(), expected)
            )
    # By hand: averages .2, .38, .242.
    assert expected == pytest.approx(1 - 0.2 - 0.38 - 0.242)


def test_dampening_and_momentum_may_differ():
    model = Tiny()
    optimizer = build_optimizer(model, OptimConfig(lr=1.0, momentum=0.5, dampening=0.75))
    update(model, optimizer, 2.0)  # buffer .5
    update(model, optimizer, 2.0)  # buffer .25 + .5
    torch.testing.assert_close(model.fc.bias.detach(), torch.tensor([1 - 0.5 - 0.75]))


@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_without_dampening_it_is_torchs_sgd(momentum, nesterov, weight_decay):
    ours, theirs = Tiny(), Tiny()
    config = OptimConfig(
        lr=0.1, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, decay=["*"]
    )
    optimizer = build_optimizer(ours, config)
    plain = torch.optim.SGD(
        theirs.parameters(),
        lr=0.1,
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
        foreach=False,
        fused=False,
    )
    rng = torch.Generator().manual_seed(0)
    for _ in range(6):
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            one.grad = torch.randn(one.shape, generator=rng)
            other.grad = one.grad.clone()
        optimizer.step()
        plain.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("lr_scale", "expected"),
    [
        ({}, (1, 1, 1, 1)),
        ({"head": 0.1}, (1, 1, 0.1, 0.1)),
        ({"fc": 0.1}, (1, 1, 0.1, 0.1)),
        ({"hidden": 2.0, "head": 0.1}, (2, 2, 0.1, 0.1)),
        ({"hidden.bias": 3.0}, (1, 3, 1, 1)),
    ],
)
def test_lr_scale_goes_to_the_layer_named_and_to_no_other(lr_scale, expected):
    model = Tiny()
    optimizer = build_optimizer(model, OptimConfig(lr_scale=lr_scale))
    assert by_name(model, optimizer, "lr_scale") == dict(zip(NAMES, expected, strict=True))


@pytest.mark.parametrize(
    ("decay", "decaying"),
    [
        (["*.weight"], {"hidden.weight", "fc.weight"}),
        (["fc.*"], {"fc.weight", "fc.bias"}),
        (["fc.bias", "hidden.w*"], {"fc.bias", "hidden.weight"}),
        (["*"], set(NAMES)),
        ([], set()),
    ],
)
def test_weight_decay_shrinks_only_the_parameters_named(decay, decaying):
    model = Tiny()
    config = OptimConfig(lr=0.5, weight_decay=0.2, decay=decay, lr_scale={"head": 0.1})
    update(model, build_optimizer(model, config), 0.0)
    for name, parameter in model.named_parameters():
        expected = torch.full_like(parameter, 0.9 if name in decaying else 1.0)
        torch.testing.assert_close(parameter.detach(), expected)


@pytest.mark.parametrize(
    ("config", "words", "example"),
    [
        (OptimConfig(lr_scale={"conv1": 0.1}), r"optim\.lr_scale=conv1: ", r"lr_scale=\{head:"),
        (OptimConfig(lr_scale={"hid": 0.1}), r"optim\.lr_scale=hid: ", r"lr_scale=\{head:"),
        (
            OptimConfig(weight_decay=0.1, decay=["*.weights"]),
            r"optim\.decay=\*\.weights: ",
            r"decay=\[",
        ),
        (OptimConfig(weight_decay=0.1, decay=["*.weight", "x"]), r"optim\.decay=x: ", r"decay=\["),
    ],
)
def test_a_name_that_matches_nothing_is_refused_with_the_names_there_are(config, words, example):
    names = ", ".join(NAMES)
    with pytest.raises(UserError, match=f"{words}.*{names}.*e.g. 'optim.{example}"):
        build_optimizer(Tiny(), config)


def test_constant_rate_stays():
    config = OptimConfig(lr=0.3, schedule="constant", milestones=[0.5])
    assert {rate(config, step, 10) for step in range(10)} == {0.3}


def test_linear_rate_falls_evenly_and_would_be_0_after_the_last_step():
    config = OptimConfig(lr=2.0, schedule="linear")
    rates = [rate(config, step, 8) for step in range(9)]
    assert rates == pytest.approx([2, 1.75, 1.5, 1.25, 1, 0.75, 0.5, 0.25, 0])


@pytest.mark.parametrize("steps", [10, 1000])
def test_step_rate_falls_at_fractions_of_the_steps(steps):
    config = OptimConfig(lr=1.0, schedule="step", milestones=[0.3, 0.6], decay_factor=0.1)
    rates = [rate(config, step, steps) for step in range(steps)]
    tenth = steps // 10
    expected = [1.0] * 3 * tenth + [0.1] * 3 * tenth + [0.01] * 4 * tenth
    assert rates == pytest.approx(expected)


def test_step_rate_does_not_depend_on_the_order_of_the_milestones():
    ordered = OptimConfig(schedule="step", milestones=[0.2, 0.7])
    swapped = OptimConfig(schedule="step", milestones=[0.7, 0.2])
    assert [rate(ordered, s, 10) for s in range(10)] == [rate(swapped, s, 10) for s in range(10)]


def test_a_layer_has_one_factor_whatever_the_order_of_the_names():
    for lr_scale in ({"head": 0.1, "fc": 0.5}, {"fc": 0.5, "head": 0.1}, {"fc": 1, "fc.bias": 2}):
        with pytest.raises(UserError, match=r"fc\.\w+ has a factor by another name too"):
            build_optimizer(Tiny(), OptimConfig(lr_scale=lr_scale))


def test_decaying_names_must_exist_even_where_nothing_decays():
    with pytest.raises(UserError, match=r"optim\.decay=nonsense: matches no parameter"):
        build_optimizer(Tiny(), OptimConfig(decay=["nonsense"], weight_decay=0.0))


def test_milestones_fall_between_steps_and_on_them():
    config = OptimConfig(lr=1.0, schedule="step", milestones=[0.01, 2 / 3], decay_factor=0.5)
    assert rate(config, 0, 40) == 1.0
    assert rate(config, 1, 40) == 0.5
    assert [rate(config, step, 390_000) for step in (259_999, 260_000)] == [0.5, 0.25]


# Clipping.


def one_step(optim, loss_of, gradient_scale=1.0):
    """Weights of a small network after a step on `loss_of(model)` with these settings."""
    model = Tiny()
    optimizer = build_optimizer(model, optim)
    (gradient_scale * loss_of(model)).backward()
    clip(optimizer, optim)
    optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


def output(model):
    return model.fc(model.hidden(torch.tensor([[1.0, 2.0]]))).sum()


@pytest.mark.parametrize("gradient_scale", [0.001, 1.0])
def test_clipping_with_the_decay_in_it_is_clipping_of_a_loss_that_holds_the_decay(gradient_scale):
    decay = 0.05
    optim = OptimConfig(
        lr=0.5, weight_decay=decay, decay=["*.weight"], clip_norm=1.0, clip_decay=True
    )
    found = one_step(optim, output, gradient_scale)
    model = Tiny()
    squares = sum((p**2).sum() for name, p in model.named_parameters() if "weight" in name)
    (gradient_scale * output(model) + decay / 2 * squares).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for ours, theirs in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs.detach() - 0.5 * theirs.grad)


def test_clipping_without_it_leaves_the_decay_whole():
    optim = OptimConfig(lr=0.5, weight_decay=0.05, decay=["*.weight"], clip_norm=1.0)
    found = one_step(optim, output)
    model = Tiny()
    output(model).backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    assert norm > 1
    for ours, (name, theirs) in zip(found, model.named_parameters(), strict=True):
        decay = 0.05 if "weight" in name else 0.0
        torch.testing.assert_close(ours, theirs.detach() * (1 - 0.5 * decay) - 0.5 * theirs.grad)


def test_a_gradient_below_the_norm_is_left_as_it_is():
    small = OptimConfig(lr=0.5, clip_norm=1e6)
    for ours, theirs in zip(
        one_step(small, output), one_step(OptimConfig(lr=0.5), output), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_parameters_without_a_gradient_stay():
    optim = OptimConfig(lr=0.5, weight_decay=0.1, clip_norm=1.0, clip_decay=True, decay=["*"])
    hidden_weight, *_ = one_step(optim, lambda model: model.fc.weight.sum())
    torch.testing.assert_close(hidden_weight, torch.ones(2, 2))
