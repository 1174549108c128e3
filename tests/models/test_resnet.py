"""The pre-activation ResNet against counting by hand and plain code in float64."""

import plain_networks as plain
import pytest
import torch
from torch import nn

from lsexp.config import ResNetConfig
from lsexp.models import build_model
from lsexp.models.resnet import Block

WIDE, THIN = [32, 64, 128], [16, 32, 64]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def resnet(*, depth=8, widths=(4, 6, 8), stem=16, kernel=3, classes=10, channels=3, seed=0):
    config = ResNetConfig(
        name="resnet", depth=depth, widths=list(widths), stem_width=stem, stem_kernel=kernel
    )
    shape = (32, 32, channels)
    return build_model(config, shape, classes, init=seeded(seed), dropout=seeded(1))


def images(count=4, size=32, channels=3, seed=9):
    return torch.randn(count, channels, size, size, generator=seeded(seed))


def count_by_hand(n, stem, widths, classes, kernel=3):
    """Filters of k x k from a to b channels: k k a b; a normalisation of a channels: 2 a."""
    total = kernel * kernel * 3 * stem + 2 * stem
    before = stem
    for width in widths:
        total += 2 * before + 9 * before * width + 2 * width + 9 * width * width  # the first block
        total += before * width + 2 * width  # its shortcut
        total += (n - 1) * (2 * width + 9 * width * width) * 2
        before = width
    return total + before * classes + classes


@pytest.mark.parametrize(
    ("widths", "classes", "expected"),
    [
        (WIDE, 10, 3_407_674),
        (WIDE, 100, 3_419_284),
        (THIN, 10, 855_962),
        (THIN, 100, 861_812),
    ],
)
def test_resnet56_has_as_many_parameters_as_counted_by_hand(widths, classes, expected):
    model = resnet(depth=56, widths=widths, classes=classes)
    found = sum(parameter.numel() for parameter in model.parameters())
    assert found == count_by_hand(9, 16, widths, classes) == expected


@pytest.mark.parametrize(("depth", "n"), [(8, 1), (20, 3), (110, 18)])
def test_any_depth_of_6n_plus_2(depth, n):
    model = resnet(depth=depth)
    assert len(model.blocks) == 3 * n
    assert sum(p.numel() for p in model.parameters()) == count_by_hand(n, 16, (4, 6, 8), 10)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) - 3 == depth  # shortcuts apart


def test_the_stem_keeps_the_resolution_and_the_groups_halve_it():
    model, sizes = resnet(depth=14, kernel=7), []
    for module in (model.stem, *model.blocks):
        module.register_forward_hook(lambda _m, _i, out: sizes.append(tuple(out.shape[1:])))
    model(images())
    assert sizes == [(16, 32, 32), *[(4, 32, 32)] * 2, *[(6, 16, 16)] * 2, *[(8, 8, 8)] * 2]


def test_every_first_block_of_a_group_projects_even_where_shapes_fit():
    model = resnet(depth=20, widths=THIN)
    projecting = [number for number, block in enumerate(model.blocks) if block.project is not None]
    assert projecting == [0, 3, 6]
    assert model.blocks[0].project.weight.shape == (16, 16, 1, 1)
    assert [model.blocks[number].conv1.stride for number in (0, 3, 6)] == [(1, 1), (2, 2), (2, 2)]
    assert [model.blocks[number].project.stride for number in (0, 3, 6)] == [(1, 1), (2, 2), (2, 2)]


def test_a_block_without_its_second_convolution_is_its_shortcut():
    for project in (False, True):
        block = Block(5, 5, stride=1, project=project)
        nn.init.zeros_(block.conv2.weight)
        x = images(channels=5, size=6)
        expected = x
        if project:  # of the activated input, and normalised
            expected = block.project_bn(block.project(torch.relu(block.bn1(x))))
        assert torch.equal(block(x), expected)


@pytest.mark.parametrize("training", [True, False])
def test_forward_gradients_and_statistics_are_those_of_plain_code_in_float64(training):
    model, x = resnet(depth=14, widths=(8, 12, 16)), images(8, size=12)
    with torch.no_grad():  # as after some training
        for name, value in model.state_dict().items():
            if "bn" in name and value.is_floating_point():
                value.add_(torch.rand(value.shape, generator=seeded(len(name))) * 0.3)
    model.train(training)
    weights = plain.copies(model)
    logits, features = model(x)
    expected, expected_features = plain.resnet(
        weights, x.double(), blocks_in_a_group=2, training=training
    )
    torch.testing.assert_close(logits.double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(features.double(), expected_features, rtol=1e-4, atol=1e-4)
    labels = torch.arange(8)
    nn.functional.cross_entropy(logits, labels).backward()
    nn.functional.cross_entropy(expected, labels).backward()
    for name, parameter in model.named_parameters():
        exact = weights[name].grad
        assert exact.isfinite().all()
        error = (parameter.grad.double() - exact).norm()
        assert error <= 2e-4 * exact.norm() + 1e-6, name
    for name, buffer in model.named_buffers():
        if "running" in name:
            torch.testing.assert_close(buffer.double(), weights[name], rtol=1e-5, atol=1e-5)


def test_features_are_the_mean_that_the_head_takes_in_and_may_be_negative():
    model, taken = resnet(), []
    head = model.get_submodule(model.head_name)
    head.register_forward_hook(lambda _module, inputs, output: taken.append((inputs[0], output)))
    model.blocks.register_forward_hook(lambda _module, _inputs, output: taken.append(output))
    logits, features = model(images())
    last, (head_input, head_output) = taken
    assert torch.equal(features, head_input)
    assert torch.equal(logits, head_output)
    torch.testing.assert_close(features, last.mean((2, 3)))  # nothing comes between
    assert features.shape == (4, 8)
    assert features.min() < 0 < features.max()


def test_weights_have_the_variance_of_the_base_code():
    model = resnet(depth=8, widths=WIDE, classes=100)
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d):
            _, inputs, height, width = layer.weight.shape
            variance = 1 / (inputs * height * width)
        elif isinstance(layer, nn.Linear):
            variance = 2 / ((128 + 100) / 2)
            assert not layer.bias.any()
        else:
            continue
        tolerance = 6 / (2 * layer.weight.numel()) ** 0.5
        assert layer.weight.std().item() == pytest.approx(variance**0.5, rel=tolerance), name
        assert layer.weight.abs().max().item() <= 2 * variance**0.5 / 0.8796 * 1.0001


def test_normalisations_are_those_of_the_base_code():
    norms = [m for m in resnet(depth=14).modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 1 + 2 * 6 + 3
    for norm in norms:
        assert (norm.momentum, norm.eps) == (0.1, 1e-5)  # TensorFlow's momentum 0.9
        assert norm.weight.eq(1).all()
        assert not norm.bias.any()


def test_the_init_generator_alone_decides_the_weights():
    torch.manual_seed(1)
    first = resnet(seed=3).state_dict()
    torch.manual_seed(2)
    second, other = resnet(seed=3).state_dict(), resnet(seed=4).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["stem.weight"], other["stem.weight"])


def test_grey_images_and_odd_sizes():
    assert resnet(channels=1)(images(channels=1, size=9))[0].shape == (4, 10)
