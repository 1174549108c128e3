"""The paper's AlexNet: its parts against TensorFlow's definitions, the whole against plain code."""

import numpy as np
import plain_networks as plain
import pytest
import torch
from torch import nn

from lsexp.config import AlexNetConfig
from lsexp.models import build_model
from lsexp.models.alexnet import LocalResponseNorm, same_max_pool


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def alexnet(shape=(24, 24, 3), num_classes=10, seed=0):
    return build_model(AlexNetConfig(), shape, num_classes, init=seeded(seed), dropout=seeded(1))


def images(count=4, shape=(24, 24, 3), seed=9):
    height, width, channels = shape
    return torch.randn(count, channels, height, width, generator=seeded(seed))


def test_the_papers_network_has_1068298_parameters():
    by_hand = {
        "conv1.weight": 5 * 5 * 3 * 64,
        "conv1.bias": 64,
        "conv2.weight": 5 * 5 * 64 * 64,
        "conv2.bias": 64,
        "fc1.weight": 6 * 6 * 64 * 384,
        "fc1.bias": 384,
        "fc2.weight": 384 * 192,
        "fc2.bias": 192,
        "fc3.weight": 192 * 10,
        "fc3.bias": 10,
    }
    model = alexnet()
    assert {name: p.numel() for name, p in model.named_parameters()} == by_hand
    assert sum(by_hand.values()) == 1_068_298
    assert set(model.state_dict()) == set(by_hand)


# Local response normalisation.


def test_lrn_is_tensorflows_formula_in_a_loop_over_channels():
    x = np.random.RandomState(0).randn(2, 64, 3, 2) * 40
    expected = np.empty_like(x)
    for c in range(64):
        window = x[:, max(0, c - 4) : c + 5]
        expected[:, c] = x[:, c] / (1 + 0.001 / 9 * (window**2).sum(1)) ** 0.75
    found = LocalResponseNorm(64)(torch.from_numpy(x).float())
    np.testing.assert_allclose(found.numpy(), expected, rtol=2e-6)


@pytest.mark.parametrize("channels", [3, 9, 64])
def test_lrn_and_its_gradient_are_those_of_torch(channels):
    ours = (torch.randn(2, channels, 5, 4, generator=seeded(0)) * 30).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    upstream = torch.randn(2, channels, 5, 4, generator=seeded(1))
    found, expected = LocalResponseNorm(channels)(ours), plain.LRN(theirs)
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=1e-6)
    found.backward(upstream)
    expected.backward(upstream)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=2e-5, atol=1e-6)


def test_lrn_in_bf16_is_within_the_rounding_of_bf16():
    x = torch.randn(4, 64, 6, 6, generator=seeded(0)) * 20
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = LocalResponseNorm(64)(x.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), plain.LRN(x), rtol=0.02, atol=1e-3)


# Pooling.


@pytest.mark.parametrize("height", [2, 3, 5, 12, 24, 25])
@pytest.mark.parametrize("width", [4, 7])
def test_pooling_is_tensorflows_same(height, width):
    x = torch.randn(2, 3, height, width, generator=seeded(0))
    found = same_max_pool(x)
    assert found.shape[2:] == (-(-height // 2), -(-width // 2))
    assert torch.equal(found, plain.tf_same_pool(x))


def test_pooling_of_a_ramp_by_hand():
    ramp = torch.arange(4.0).reshape(1, 1, 1, 4).expand(1, 1, 4, 4)
    # Windows of columns 0..2 and 2..3: an even size is padded behind only.
    assert same_max_pool(ramp)[0, 0, 0].tolist() == [2.0, 3.0]
    ramp = torch.arange(5.0).reshape(1, 1, 1, 5).expand(1, 1, 5, 5)
    # Windows of columns 0..1, 1..3 and 3..4: an odd size is padded on both sides.
    assert same_max_pool(-ramp)[0, 0, 0].tolist() == [0.0, -1.0, -3.0]


# The whole.


@pytest.mark.parametrize("shape", [(24, 24, 3), (28, 28, 1), (9, 6, 3)])
def test_forward_and_gradients_are_those_of_plain_code_in_float64(shape):
    model, x = alexnet(shape), images(shape=shape)
    weights = plain.copies(model)
    logits, features = model(x)
    expected, expected_features = plain.alexnet(weights, x.double())
    torch.testing.assert_close(logits.double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features.double(), expected_features, rtol=1e-4, atol=1e-5)
    labels = torch.arange(4)
    nn.functional.cross_entropy(logits, labels).backward()
    nn.functional.cross_entropy(expected, labels).backward()
    for name, parameter in model.named_parameters():
        exact = weights[name].grad
        assert exact.isfinite().all()
        error = (parameter.grad.double() - exact).norm()
        assert error < 1e-4 * exact.norm(), name


def test_features_are_what_the_head_takes_in_and_not_negative():
    model, taken = alexnet(), []
    head = model.get_submodule(model.head_name)
    head.register_forward_hook(lambda _module, inputs, output: taken.append((inputs[0], output)))
    logits, features = model(images())
    [(head_input, head_output)] = taken
    assert torch.equal(features, head_input)
    assert torch.equal(logits, head_output)
    assert features.shape == (4, 192)
    assert features.min() >= 0


def test_weights_are_truncated_normals_with_the_tutorials_deviations_and_biases():
    model = alexnet()
    for name, std, bias in (
        ("conv1", 0.05, 0.0),
        ("conv2", 0.05, 0.1),
        ("fc1", 0.04, 0.1),
        ("fc2", 0.04, 0.1),
        ("fc3", 1 / 192, 0.0),
    ):
        layer = model.get_submodule(name)
        assert layer.weight.abs().max() <= 2 * std
        # A normal cut at two standard deviations keeps 0.8796 of its standard deviation.
        tolerance = 5 / (2 * layer.weight.numel()) ** 0.5
        assert layer.weight.std().item() == pytest.approx(0.8796 * std, rel=tolerance)
        assert torch.equal(layer.bias, torch.full_like(layer.bias, bias))


def test_the_init_generator_alone_decides_the_weights():
    torch.manual_seed(1)
    first = alexnet(seed=3).state_dict()
    torch.manual_seed(2)
    second, other = alexnet(seed=3).state_dict(), alexnet(seed=4).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


def test_smallest_images():
    assert alexnet((1, 1, 1), 2)(images(shape=(1, 1, 1)))[0].shape == (4, 2)
