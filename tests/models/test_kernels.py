"""The fused layers against torch's own, in float64, and by what must not change them."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lsexp.models import kernels
from lsexp.models.resnet import BatchNormReLU

SHAPES = [(8, 16, 6, 6), (3, 5, 7, 2), (2, 64, 4, 4), (1, 300, 3, 3), (130, 1, 1, 1), (5, 96, 5, 5)]
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 3e-3}
"""Relative error in the 2-norm: of float32 sums, and of one rounding to eight bits."""


def activation(shape, dtype, seed=0, shift=1.0):
    rng = torch.Generator().manual_seed(seed)
    x = 2 * torch.randn(shape, generator=rng) + shift
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def gradients(function, slope, *inputs):
    """Outputs and gradients of all inputs of `function`, slope going in at its first output."""
    inputs = [each.detach().clone().requires_grad_() for each in inputs]
    found = function(*inputs)
    first = found[0] if isinstance(found, tuple) else found
    first.backward(slope.to(first.dtype))
    return first.detach(), [each.grad for each in inputs]


def assert_close(ours, exact, tolerance):
    error = (ours.double() - exact).norm() / exact.norm().clamp_min(1e-30)
    assert error < tolerance, float(error)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
def test_batch_norm_and_relu_are_torchs_in_float64(shape, dtype):
    x, slope = activation(shape, dtype), activation(shape, dtype, seed=1)
    torch.manual_seed(0)
    weight, bias = torch.rand(shape[1]) + 0.5, torch.randn(shape[1])

    def exact(x, weight, bias):
        return F.relu(F.batch_norm(x, None, None, weight, bias, training=True, eps=1e-5))

    def ours(x, weight, bias):
        return kernels.batch_norm_relu(x, weight, bias, 1e-5)

    y, (dx, dw, db) = gradients(ours, slope, x, weight, bias)
    wide = [each.double() for each in (slope, x, weight, bias)]
    y64, (dx64, dw64, db64) = gradients(exact, *wide)
    assert y.dtype == dx.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_close(y, y64, TOLERANCE[dtype])
    # In bfloat16 an output next to zero may round to it, and lose its gradient.
    assert_close(dx, dx64, 5 * TOLERANCE[dtype])
    assert_close(dw, dw64, 5 * TOLERANCE[dtype])
    assert_close(db, db64, 5 * TOLERANCE[dtype])
    _, mean, var = kernels.batch_norm_relu(x, weight, bias, 1e-5)
    dims = (0, 2, 3)
    assert_close(mean, x.double().mean(dims), 1e-6)
    assert_close(var, x.double().var(dims, correction=0), 1e-6)


def test_the_variance_survives_a_mean_a_thousand_times_larger():
    x = activation((64, 4, 8, 8), torch.float32, shift=2000.0)
    _, mean, var = kernels.batch_norm_relu(x, torch.ones(4), torch.zeros(4), 1e-5)
    assert_close(mean, x.double().mean((0, 2, 3)), 1e-6)
    assert_close(var, x.double().var((0, 2, 3), correction=0), 1e-5)


def test_equal_values_have_the_variance_zero_and_the_output_of_the_bias():
    x = torch.full((4, 2, 3, 3), 7.0).contiguous(memory_format=torch.channels_last)
    bias = torch.tensor([0.5, -0.5])
    y, mean, var = kernels.batch_norm_relu(x, torch.ones(2), bias, 1e-5)
    assert mean.tolist() == [7, 7]
    assert var.tolist() == [0, 0]
    assert y[:, 0].unique().tolist() == [0.5]
    assert y[:, 1].unique().tolist() == [0]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
def test_local_response_norm_is_torchs_in_float64(shape, dtype):
    x, slope = activation(shape, dtype), activation(shape, dtype, seed=1)
    alpha = 0.05  # much more than the paper's, so that the window matters

    y, (dx,) = gradients(lambda x: kernels.local_response_norm(x, alpha), slope, x)
    size = kernels.WINDOW
    y64, (dx64,) = gradients(
        lambda x: F.local_response_norm(x, size, alpha * size, beta=0.75, k=1.0),
        slope.double(),
        x.double(),
    )
    assert y.dtype == dx.dtype == dtype
    assert_close(y, y64, TOLERANCE[dtype])
    assert_close(dx, dx64, TOLERANCE[dtype])


def test_local_response_norm_by_hand():
    x = torch.zeros(1, 10, 1, 1).contiguous(memory_format=torch.channels_last)
    x[0, 0], x[0, 4], x[0, 9] = 3.0, 4.0, 5.0
    y = kernels.local_response_norm(x, 1.0).flatten()
    # Channel 0 sees 0..4, channel 4 sees 0..8, channel 9 sees 5..9.
    np.testing.assert_allclose(y[[0, 4, 9]], [3 / 26**0.75, 4 / 26**0.75, 5 / 26**0.75], rtol=1e-6)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_nan_stays_one_and_reaches_every_gradient(dtype):
    x = activation((4, 16, 3, 3), dtype)
    for bad in (float("nan"), -float("nan"), float("inf")):
        x[1, 2, 0, 0] = bad
        y, (dx, _, _) = gradients(
            lambda *args: kernels.batch_norm_relu(*args, 1e-5),
            torch.ones_like(x),
            x,
            torch.ones(16),
            torch.zeros(16),
        )
        assert y[:, 2].isnan().all()
        assert dx[:, 2].isnan().all()
        assert not y[:, 3].isnan().any()
        if bad != float("inf"):
            assert kernels.local_response_norm(x, 0.1)[1, 2, 0, 0].isnan()


def test_rounding_to_bfloat16_is_torchs_for_every_kind_of_number():
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 200_000, dtype=np.uint32)
    special = [0, 0x80000000, 0x3F808000, 0x3F818000, 0x7F7FFFFF, 0x7F800000, 0xFFFFFFFF, 1]
    values = np.concatenate([bits, np.array(special, np.uint32)]).view(np.float32)
    x = torch.from_numpy(values)
    y = np.empty(len(values), np.uint16)

    @kernels.numba.njit
    def narrow(values, like, out):
        for i in range(len(values)):
            out[i] = kernels._as(like[0], values[i])

    narrow(values, np.zeros(1, np.uint16), y)
    ours = torch.from_numpy(y).view(torch.bfloat16)
    assert torch.equal(ours.nan_to_num(nan=-1.5), x.bfloat16().nan_to_num(nan=-1.5))


def test_the_number_of_threads_moves_nothing_but_the_last_bits():
    x = activation((64, 32, 24, 24), torch.float32)
    weight, bias = torch.rand(32) + 0.5, torch.randn(32)
    slope = activation(x.shape, torch.float32, seed=1)
    found = {}
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            args = (lambda *a: kernels.batch_norm_relu(*a, 1e-5), slope, x, weight, bias)
            found[threads], again = gradients(*args), gradients(*args)
            assert torch.equal(found[threads][0], again[0])
            assert all(map(torch.equal, found[threads][1], again[1]))
    finally:
        torch.set_num_threads(before)
    for threads in (2, 3):
        torch.testing.assert_close(found[threads], found[1], rtol=1e-5, atol=1e-4)


def test_the_layer_keeps_torchs_state_and_its_running_statistics():
    ours, theirs = BatchNormReLU(6), nn.BatchNorm2d(6)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for seed in range(3):
        x = activation((4, 6, 5, 5), torch.float32, seed=seed)
        torch.testing.assert_close(ours(x), F.relu(theirs(x)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-5, atol=1e-6)
    x = activation((4, 6, 5, 5), torch.float32, seed=9)
    ours.eval(), theirs.eval()
    with torch.no_grad():
        torch.testing.assert_close(ours(x), F.relu(theirs(x)), rtol=1e-5, atol=1e-6)
    x.requires_grad_()
    ours(x).sum().backward()  # where a gradient is wanted, torch's own layer works
    assert x.grad is not None


def test_a_single_value_a_channel_is_refused_as_torch_does():
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        BatchNormReLU(3)(activation((1, 3, 1, 1), torch.float32))


@pytest.mark.parametrize(
    ("x", "fits"),
    [
        (activation((2, 3, 4, 4), torch.float32), True),
        (activation((2, 3, 4, 4), torch.bfloat16), True),
        (activation((2, 3, 4, 4), torch.float64), False),
        (torch.zeros(2, 3, 4, 4), False),  # channels first
        (torch.zeros(2, 3), False),
        (activation((0, 3, 4, 4), torch.float32), False),
    ],
)
def test_what_fits(x, fits):
    assert kernels.fits(x) == fits


def test_they_compile_where_nothing_can_be_cached(tmp_path):
    """As for a package of the system's, used by somebody without a home."""
    program = (
        "import numba.core.caching as c\n"
        "for l in c.CacheImpl._locator_classes: l.from_function = classmethod(lambda *a: None)\n"
        "import torch\nfrom lsexp.models import kernels\n"
        "x = torch.ones(1, 4, 1, 1).contiguous(memory_format=torch.channels_last)\n"
        "print(kernels.local_response_norm(x, 0.0).sum().item())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.split() == ["4.0"]
