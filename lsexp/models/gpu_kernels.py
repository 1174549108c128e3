"""Layers whose passes over memory are fused, for training on a GPU: compiled by Triton.

What kernels.py is for a CPU. PyTorch runs batch normalisation and the ReLU behind it as eight
operations and local response normalisation as thirty, each of which the device starts anew; with
batches of 128 small images that, not arithmetic, is what a step costs. The functions compute what
PyTorch's do: float32 inside, one rounding at the end; sums are in one order always. They take
tensors on a GPU whose channels come last in memory, float32 or bfloat16; `fits` tells.
Shape letters: B examples, C channels, H height, W width; R rows of the matrix [B * H * W, C] that
an activation is seen as; P parts that rows are summed in.
"""

# Triton reads no annotations of its kernels but its own, so there are no future ones here.
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from lsexp.models.kernels import RADIUS
from lsexp.text import say

TILE = 8192
"""Elements of an activation that a program holds at once."""
SUMS = 4096
"""Elements of the partial sums, at most, which each program of the second pass adds up."""
WARPS = 8


def fits(x_BCHW: Tensor) -> bool:
    """Whether the functions here take this tensor."""
    channels = x_BCHW.shape[1] if x_BCHW.dim() == 4 else 0
    return (
        x_BCHW.is_cuda
        and x_BCHW.dtype in (torch.float32, torch.bfloat16)
        and 0 < channels <= 512
        and channels & (channels - 1) == 0
        and 0 < x_BCHW.numel() < 2**31
        and x_BCHW.is_contiguous(memory_format=torch.channels_last)
        and _compiles(x_BCHW.device)
    )


@cache
def _compiles(device: torch.device) -> bool:
    """Whether Triton can compile here: it needs a C compiler."""
    try:
        x = torch.ones(8, device=device)
        _double[(1,)](x, SIZE=8)
        return bool((x == 2).all())
    except Exception as error:  # of a compiler, of a driver: many kinds
        reason = str(error).strip().splitlines() or [type(error).__name__]
        say(f"Triton compiles nothing here ({reason[0]}): torch's own layers are used, slower")
        return False


@triton.jit
def _double(x, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(x + at, 2 * tl.load(x + at))


# Batch normalisation and ReLU.


@triton.jit
def _moments(x, sums, rows, share, C: tl.constexpr, ROWS: tl.constexpr):
    """Sums of a part of the rows, less the first row, and of their squares; sums [P, 2, C]."""
    part = tl.program_id(0)
    column = tl.arange(0, C)[None, :]
    shift = tl.load(x + column).to(tl.float32)
    total = tl.zeros((ROWS, C), tl.float32)
    square = tl.zeros((ROWS, C), tl.float32)
    end = tl.minimum((part + 1) * share, rows)
    for first in range(part * share, end, ROWS):
        row = first + tl.arange(0, ROWS)[:, None]
        here = row < end
        value = tl.load(x + row * C + column, here, 0.0).to(tl.float32) - shift
        value = tl.where(here, value, 0.0)
        total += value
        square += value * value
    at = sums + part * 2 * C + tl.arange(0, C)
    tl.store(at, tl.sum(total, 0))
    tl.store(at + C, tl.sum(square, 0))


@triton.jit
def _normalise_relu(
    x,
    y,
    weight,
    bias,
    sums,
    saved,
    running_mean,
    running_var,
    tracked,
    rows,
    eps,
    momentum,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    P: tl.constexpr,
):
    """y of a tile of rows; the first program keeps mean and 1 / deviation in saved [2, C]."""
    channel = tl.arange(0, C)
    parts = tl.arange(0, P)[:, None] * 2 * C + channel[None, :]
    shifted = tl.sum(tl.load(sums + parts), 0) / rows
    squares = tl.sum(tl.load(sums + parts + C), 0) / rows
    mean = tl.load(x + channel).to(tl.float32) + shifted
    # Written so that a NaN stays one.
    var = squares - shifted * shifted
    var = tl.where(var < 0, 0.0, var)
    inverse = 1 / tl.sqrt(var + eps)
    if tl.program_id(0) == 0:
        tl.store(saved + channel, mean)
        tl.store(saved + C + channel, inverse)
        before = tl.load(running_mean + channel)
        tl.store(running_mean + channel, before + momentum * (mean - before))
        before = tl.load(running_var + channel)
        wide = var * (rows / (rows - 1))
        tl.store(running_var + channel, before + momentum * (wide - before))
        tl.store(tracked, tl.load(tracked) + 1)
    scale = tl.load(weight + channel) * inverse
    offset = tl.load(bias + channel)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    at = row * C + channel[None, :]
    value = tl.load(x + at, row < rows, 0.0).to(tl.float32)
    value = (value - mean[None, :]) * scale[None, :] + offset[None, :]
    value = tl.where(value < 0, 0.0, value)
    tl.store(y + at, value.to(y.dtype.element_ty), row < rows)


@triton.jit
def _slope(x, dy, at, here, mean, scale, offset):
    """Slope of what ReLU was given, and x less the mean; zero outside."""
    centred = tl.load(x + at, here, 0.0).to(tl.float32) - mean[None, :]
    slope = tl.load(dy + at, here, 0.0).to(tl.float32)
    zero = (centred * scale[None, :] + offset[None, :]) <= 0
    return tl.where(zero | (here == 0), 0.0, slope), centred


@triton.jit
def _slope_sums(x, dy, weight, bias, saved, sums, rows, share, C: tl.constexpr, ROWS: tl.constexpr):
    """Sums over a part of the rows of the slope, and of its products with x less the mean."""
    part = tl.program_id(0)
    channel = tl.arange(0, C)
    mean = tl.load(saved + channel)
    scale = tl.load(weight + channel) * tl.load(saved + C + channel)
    offset = tl.load(bias + channel)
    total = tl.zeros((ROWS, C), tl.float32)
    product = tl.zeros((ROWS, C), tl.float32)
    end = tl.minimum((part + 1) * share, rows)
    for first in range(part * share, end, ROWS):
        row = first + tl.arange(0, ROWS)[:, None]
        slope, centred = _slope(x, dy, row * C + channel[None, :], row < end, mean, scale, offset)
        total += slope
        product += slope * centred
    at = sums + part * 2 * C + channel
    tl.store(at, tl.sum(total, 0))
    tl.store(at + C, tl.sum(product, 0))


@triton.jit
def _input_slope(
    x,
    dy,
    dx,
    weight,
    bias,
    saved,
    sums,
    slopes,
    rows,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    P: tl.constexpr,
):
    """dx of a tile of rows; the first program keeps those of weight and bias in slopes [2, C]."""
    channel = tl.arange(0, C)
    parts = tl.arange(0, P)[:, None] * 2 * C + channel[None, :]
    total = tl.sum(tl.load(sums + parts), 0)
    product = tl.sum(tl.load(sums + parts + C), 0)
    mean = tl.load(saved + channel)
    inverse = tl.load(saved + C + channel)
    if tl.program_id(0) == 0:
        tl.store(slopes + channel, product * inverse)
        tl.store(slopes + C + channel, total)
    scale = tl.load(weight + channel) * inverse
    offset = tl.load(bias + channel)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    at = row * C + channel[None, :]
    slope, centred = _slope(x, dy, at, row < rows, mean, scale, offset)
    # dx = scale * (slope - mean(slope) - (x - mean) * inverse**2 * mean(slope * (x - mean)))
    along = inverse * inverse * product / rows
    value = scale[None, :] * (slope - (total / rows)[None, :] - centred * along[None, :])
    tl.store(dx + at, value.to(dx.dtype.element_ty), row < rows)


def _sizes(x_BCHW: Tensor) -> tuple[int, int, int, int, int]:
    """Channels, rows, rows in a tile, parts, and rows in a part."""
    channels = x_BCHW.shape[1]
    rows = x_BCHW.numel() // channels
    tile = min(TILE // channels, triton.next_power_of_2(rows))
    most = max(1, min(SUMS // channels, rows // tile))
    parts = 1 << (most.bit_length() - 1)
    share = tile * triton.cdiv(rows, tile * parts)
    return channels, rows, tile, parts, share


class _BatchNormReLU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, x_BCHW, weight_C, bias_C, running_mean_C, running_var_C, tracked, momentum, eps
    ):
        channels, rows, tile, parts, share = _sizes(x_BCHW)
        y_BCHW = torch.empty_like(x_BCHW)
        sums_P2C = x_BCHW.new_empty((parts, 2, channels), dtype=torch.float32)
        saved_2C = x_BCHW.new_empty((2, channels), dtype=torch.float32)
        fixed = {"C": channels, "ROWS": tile, "num_warps": WARPS}
        _moments[(parts,)](x_BCHW, sums_P2C, rows, share, **fixed)
        _normalise_relu[(triton.cdiv(rows, tile),)](
            x_BCHW,
            y_BCHW,
            weight_C,
            bias_C,
            sums_P2C,
            saved_2C,
            running_mean_C,
            running_var_C,
            tracked,
            rows,
            eps,
            momentum,
            P=parts,
            **fixed,
        )
        ctx.save_for_backward(x_BCHW, weight_C, bias_C, saved_2C)
        return y_BCHW

    @staticmethod
    @once_differentiable
    def backward(ctx, dy_BCHW):
        x_BCHW, weight_C, bias_C, saved_2C = ctx.saved_tensors
        channels, rows, tile, parts, share = _sizes(x_BCHW)
        dy_BCHW = dy_BCHW.contiguous(memory_format=torch.channels_last)
        dx_BCHW = torch.empty_like(x_BCHW)
        sums_P2C = x_BCHW.new_empty((parts, 2, channels), dtype=torch.float32)
        slopes_2C = x_BCHW.new_empty((2, channels), dtype=torch.float32)
        fixed = {"C": channels, "ROWS": tile, "num_warps": WARPS}
        known = (weight_C, bias_C, saved_2C, sums_P2C)
        _slope_sums[(parts,)](x_BCHW, dy_BCHW, *known, rows, share, **fixed)
        _input_slope[(triton.cdiv(rows, tile),)](
            x_BCHW, dy_BCHW, dx_BCHW, *known, slopes_2C, rows, P=parts, **fixed
        )
        return dx_BCHW, slopes_2C[0], slopes_2C[1], None, None, None, None, None


def batch_norm_relu(
    x_BCHW: Tensor,
    weight_C: Tensor,
    bias_C: Tensor,
    running_mean_C: Tensor,
    running_var_C: Tensor,
    tracked: Tensor,
    momentum: float,
    eps: float,
) -> Tensor:
    """ReLU of batch normalisation in training; updates the running moments, and `tracked` by one.

    What `F.relu(F.batch_norm(x, running_mean, running_var, weight, bias, True, momentum, eps))` is.
    """
    found: Tensor = _BatchNormReLU.apply(
        x_BCHW, weight_C, bias_C, running_mean_C, running_var_C, tracked, momentum, eps
    )
    return found


# Local response normalisation.


@triton.jit
def _lrn(x, y, whole, size, alpha, C: tl.constexpr, N: tl.constexpr, RADIUS: tl.constexpr):
    """y, and what is raised to the power -0.75."""
    at = tl.program_id(0) * N + tl.arange(0, N)
    channel = at % C
    total = tl.zeros((N,), tl.float32)
    for j in tl.static_range(-RADIUS, RADIUS + 1):
        here = (at < size) & (channel + j >= 0) & (channel + j < C)
        value = tl.load(x + at + j, here, 0.0).to(tl.float32)
        total += value * value
    base = 1 + alpha * total
    root = tl.sqrt(base)
    value = tl.load(x + at, at < size, 0.0).to(tl.float32) / (root * tl.sqrt(root))
    tl.store(y + at, value.to(y.dtype.element_ty), at < size)
    tl.store(whole + at, base, at < size)


@triton.jit
def _lrn_slope(
    x, dy, dx, whole, size, alpha, C: tl.constexpr, N: tl.constexpr, RADIUS: tl.constexpr
):
    at = tl.program_id(0) * N + tl.arange(0, N)
    channel = at % C
    total = tl.zeros((N,), tl.float32)
    own = tl.zeros((N,), tl.float32)
    for j in tl.static_range(-RADIUS, RADIUS + 1):
        here = (at < size) & (channel + j >= 0) & (channel + j < C)
        base = tl.load(whole + at + j, here, 1.0)
        root = tl.sqrt(base)
        power = tl.load(dy + at + j, here, 0.0).to(tl.float32) / (root * tl.sqrt(root))
        total += power * tl.load(x + at + j, here, 0.0).to(tl.float32) / base
        if j == 0:
            own = power
    value = tl.load(x + at, at < size, 0.0).to(tl.float32)
    value = own - 1.5 * alpha * value * total
    tl.store(dx + at, value.to(dx.dtype.element_ty), at < size)


class _LocalResponseNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_BCHW, alpha):
        y_BCHW = torch.empty_like(x_BCHW)
        whole = torch.empty_like(x_BCHW, dtype=torch.float32)
        size, fixed = x_BCHW.numel(), {"C": x_BCHW.shape[1], "N": 1024, "RADIUS": RADIUS}
        _lrn[(triton.cdiv(size, 1024),)](x_BCHW, y_BCHW, whole, size, alpha, **fixed)
        ctx.save_for_backward(x_BCHW, whole)
        ctx.alpha = alpha
        return y_BCHW

    @staticmethod
    @once_differentiable
    def backward(ctx, dy_BCHW):
        x_BCHW, whole = ctx.saved_tensors
        dy_BCHW = dy_BCHW.contiguous(memory_format=torch.channels_last)
        dx_BCHW = torch.empty_like(x_BCHW)
        size, fixed = x_BCHW.numel(), {"C": x_BCHW.shape[1], "N": 1024, "RADIUS": RADIUS}
        grid = (triton.cdiv(size, 1024),)
        _lrn_slope[grid](x_BCHW, dy_BCHW, dx_BCHW, whole, size, ctx.alpha, **fixed)
        return dx_BCHW, None


def local_response_norm(x_BCHW: Tensor, alpha: float) -> Tensor:
    """Each activation by (1 + alpha * sum of squares of 9 channels around it) ** 0.75."""
    y_BCHW: Any = _LocalResponseNorm.apply(x_BCHW, alpha)
    return y_BCHW
