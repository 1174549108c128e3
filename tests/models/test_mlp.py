"""The fully connected network and its dropout."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from lsexp.config import MLPConfig
from lsexp.models import MLP, build_model
from lsexp.models.mlp import Dropout


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def mlp(widths=(5, 4), *, dropout=0.0, init_std=None, init=0, masks=0):
    config = MLPConfig(widths=list(widths), dropout=dropout, init_std=init_std)
    return build_model(config, (2, 3, 2), 3, init=seeded(init), dropout=seeded(masks))


def images(count=6):
    return torch.randn(count, 2, 2, 3, generator=seeded(9))


def test_the_papers_network_has_2395210_parameters_in_three_layers():
    config = MLPConfig(widths=[1200, 1200], init_std=0.03)
    model = build_model(config, (28, 28, 1), 10, init=seeded(0), dropout=seeded(0))
    linear = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    sizes = [(layer.in_features, layer.out_features) for layer in linear]
    assert sizes == [(784, 1200), (1200, 1200), (1200, 10)]
    assert sum(parameter.numel() for parameter in model.parameters()) == 2_395_210


def test_forward_is_plain_arithmetic():
    model = mlp()
    with torch.no_grad():
        for layer in (model.hidden[0], model.hidden[3], model.fc):
            layer.bias.normal_(generator=seeded(1))
    x = images().numpy().reshape(6, 12)
    for layer in (model.hidden[0], model.hidden[3]):
        weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
        x = np.maximum(x @ weight.T + bias, 0)
    expected = x @ model.fc.weight.detach().numpy().T + model.fc.bias.detach().numpy()
    logits, features = model(images())
    np.testing.assert_allclose(features.detach().numpy(), x, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(logits.detach().numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("training", [False, True])
def test_features_are_what_the_module_named_head_takes_in(training):
    model = mlp(dropout=0.5).train(training)
    taken = []
    head = model.get_submodule(model.head_name)
    head.register_forward_hook(lambda _module, inputs, output: taken.append((inputs[0], output)))
    logits, features = model(images())
    [(head_input, head_output)] = taken
    assert torch.equal(features, head_input)
    assert torch.equal(logits, head_output)
    assert features.shape == (6, 4)


@pytest.mark.parametrize("init_std", [0.03, None])
def test_weights_are_drawn_with_the_std_asked_for_and_biases_are_0(init_std):
    config = MLPConfig(widths=[600, 400], init_std=init_std)
    model = build_model(config, (28, 28, 1), 10, init=seeded(0), dropout=seeded(0))
    for layer in (layer for layer in model.modules() if isinstance(layer, nn.Linear)):
        std = init_std or math.sqrt(2 / layer.in_features)
        count = layer.weight.numel()
        assert layer.weight.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * count))
        assert layer.weight.mean().item() == pytest.approx(0, abs=5 * std / math.sqrt(count))
        assert not layer.bias.any()


def test_the_init_generator_alone_decides_the_weights():
    torch.manual_seed(1)
    first = mlp(init=3, masks=1)
    torch.manual_seed(2)
    second = mlp(init=3, masks=2, dropout=0.5)
    other = mlp(init=4, masks=1)
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name])
        assert name.endswith("bias") or not torch.equal(weight, other.state_dict()[name])


def test_dropout_is_off_in_evaluation():
    plain, dropping = mlp().eval(), mlp(dropout=0.7).eval()
    assert torch.equal(plain(images())[0], dropping(images())[0])
    assert not torch.equal(dropping.train()(images())[0], plain(images())[0])


@pytest.mark.parametrize("p", [0.2, 0.5])
def test_dropout_drops_at_its_rate_and_keeps_the_expectation(p):
    dropout, count = Dropout(p, seeded(0)).train(), 100_000
    found = dropout(torch.full((count,), 3.0))
    rate = (found == 0).double().mean().item()
    assert rate == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / count))
    torch.testing.assert_close(found[found != 0].unique(), torch.tensor([3 / (1 - p)]))
    assert found.mean().item() == pytest.approx(3, rel=5 * math.sqrt(p / (1 - p) / count))


def test_dropout_lets_the_gradient_through_where_it_keeps():
    x = torch.ones(1000, requires_grad=True)
    y = Dropout(0.5, seeded(0)).train()(x)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_dropout_masks_are_fresh_each_time_and_from_their_own_generator():
    model = mlp(dropout=0.5, masks=7).train()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, second = model(images())[0], model(images())[0]
    assert not torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)

    again = mlp(dropout=0.5, masks=7).train()
    torch.manual_seed(2)
    assert torch.equal(again(images())[0], first)
    assert torch.equal(again(images())[0], second)
    assert not torch.equal(mlp(dropout=0.5, masks=8).train()(images())[0], first)


def test_without_dropout_the_mask_generator_is_not_touched():
    masks = seeded(0)
    before = masks.get_state()
    assert isinstance(Dropout(0.0, masks).train()(images()), torch.Tensor)
    assert torch.equal(masks.get_state(), before)


def test_mlp_takes_any_number_of_hidden_layers():
    for widths in ([7], [7, 6, 5]):
        model = mlp(widths)
        assert isinstance(model, MLP)
        assert model(images())[1].shape == (6, widths[-1])
