"""The fused layers of a GPU against PyTorch's; where there is no GPU, in Triton's interpreter."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from lsexp.models.alexnet import ALPHA, same_max_pool
from lsexp.models.resnet import BatchNormReLU

pytest.importorskip("triton")
GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
DTYPES = [torch.float32, torch.bfloat16] if GPU else [torch.float32]
INTERPRETED = "TRITON_INTERPRET"  # must be set before Triton is imported


@pytest.mark.skipif(GPU or INTERPRETED in os.environ, reason="there is a GPU, or it is running")
def test_all_of_these_in_the_interpreter():
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    env = {**os.environ, INTERPRETED: "1"}
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout


@pytest.fixture(scope="module")
def ours():
    if not GPU and INTERPRETED not in os.environ:
        pytest.skip("run by the test of the interpreter")
    from lsexp.models import gpu_kernels

    return gpu_kernels


def activation(shape, dtype, shift=0.0):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 2 + shift
    return x.to(DEVICE, dtype, memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "shift"), [((2, 4, 3, 3), 0), ((4, 16, 24, 24), 50), ((5, 64, 7, 7), 0)]
)
def test_batch_norm_relu_is_torchs(shape, shift, dtype, ours):
    x = activation(shape, dtype, shift)
    layer = BatchNormReLU(shape[1]).to(DEVICE)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(-0.5, 1.5, shape[1]))
        layer.bias.copy_(torch.linspace(-1, 1, shape[1]))
    moments = [layer.running_mean.double(), layer.running_var.double()]
    found_x, exact_x = (x.detach().to(kind).requires_grad_() for kind in (dtype, torch.float64))
    found = ours.batch_norm_relu(
        found_x,
        layer.weight,
        layer.bias,
        layer.running_mean,
        layer.running_var,
        layer.num_batches_tracked,
        0.1,
        1e-5,
    )
    weight, bias = (each.detach().double().requires_grad_() for each in (layer.weight, layer.bias))
    exact = F.relu(F.batch_norm(exact_x, *moments, weight, bias, True, 0.1, 1e-5))
    slope = activation(shape, dtype)
    slopes = torch.autograd.grad(found, [found_x, layer.weight, layer.bias], slope)
    expected = torch.autograd.grad(exact, [exact_x, weight, bias], slope.double())
    rough = dtype == torch.bfloat16 or shift
    for one, other in zip(
        [found, *slopes, layer.running_mean, layer.running_var],
        [exact, *expected, *moments],
        strict=True,
    ):
        within = (2e-2 if rough else 2e-5) * max(1.0, other.abs().max().item())
        assert (one.double() - other).abs().max() < within
    assert found.dtype == slopes[0].dtype == dtype
    assert layer.num_batches_tracked == 1


def behind_a_convolution(ours, exact, shape, dtype, biased):
    """Compare a layer with another; `biased`: of the ReLU of x and a bias."""
    x = activation(shape, dtype) * 20
    bias = torch.linspace(-20, 20, shape[1], device=DEVICE).to(dtype)
    found_x, exact_x = (x.detach().to(kind).requires_grad_() for kind in (dtype, torch.float64))
    found_b, exact_b = (bias.detach().to(kind).requires_grad_() for kind in (dtype, torch.float64))
    found = ours(found_x, found_b if biased else None)
    # In bfloat16 rounding makes equals of neighbours: let both see the same ones.
    given = (found_x + found_b[:, None, None]).relu() if biased else found_x
    given = exact_x + (given - found_x).double() if dtype == torch.bfloat16 else exact_x
    if biased and dtype != torch.bfloat16:
        given = F.relu(exact_x + exact_b[:, None, None])
    expected = exact(given)
    slope = activation(tuple(found.shape), dtype)
    inputs = [found_x, found_b] if biased else [found_x]
    slopes = torch.autograd.grad(found, inputs, slope)
    pairs = [(found, expected)]
    if dtype != torch.bfloat16:
        wide = [exact_x, exact_b] if biased else [exact_x]
        pairs += zip(slopes, torch.autograd.grad(expected, wide, slope.double()), strict=True)
    for one, other in pairs:
        within = (1e-2 if dtype == torch.bfloat16 else 1e-5) * other.abs().max()
        assert (one.double() - other).abs().max() < within


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 64, 5, 5), (1, 16, 3, 1), (3, 128, 6, 6)])
def test_local_response_norm_is_torchs(shape, dtype, biased, ours):
    exact = torch.nn.LocalResponseNorm(9, alpha=9 * ALPHA, beta=0.75, k=1)
    behind_a_convolution(
        lambda x, bias: ours.local_response_norm(x, ALPHA, bias), exact, shape, dtype, biased
    )


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 16, 6, 6), (2, 64, 5, 7), (1, 16, 1, 1), (1, 32, 12, 12)])
def test_pooling_is_torchs(shape, dtype, biased, ours):
    behind_a_convolution(ours.max_pool, same_max_pool, shape, dtype, biased)


def test_of_equal_maxima_the_first_has_the_slope(ours):
    x = torch.ones(1, 16, 4, 4, device=DEVICE).contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    ours.max_pool(x).sum().backward()
    expected = x.detach().clone().requires_grad_()
    same_max_pool(expected).sum().backward()
    assert torch.equal(x.grad, expected.grad)


def test_a_nan_stays_one_and_is_not_hidden_by_relu(ours):
    x = activation((2, 4, 3, 3), torch.float32)
    x[0, 1, 0, 0] = float("nan")
    layer = BatchNormReLU(4).to(DEVICE)
    running = layer.running_mean, layer.running_var, layer.num_batches_tracked
    y = ours.batch_norm_relu(x, layer.weight, layer.bias, *running, 0.1, 1e-5)
    assert y[:, 1].isnan().all()
    assert y[:, [0, 2, 3]].isfinite().all()


def test_what_does_not_fit_is_told(ours):
    x = torch.zeros(2, 4, 3, 3, device=DEVICE).contiguous(memory_format=torch.channels_last)
    assert ours.fits(x) is GPU
    for other in (x[:, :3], x.double(), x[0], x.new_zeros(0, 4, 3, 3), x.contiguous()):
        assert not ours.fits(other)
