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
POINTS = 1024
"""Elements that a program of pooling works on."""
LRN_ROWS = 32


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
        and compiles(x_BCHW.device)
    )


@cache
def compiles(device: torch.device) -> bool:
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


# What follows the convolutions of AlexNet: bias and ReLU, with pooling or with normalisation.


@triton.jit
def _active(value, bias, like: tl.constexpr):
    """ReLU of a rounded sum, as of tensors of that type."""
    value = (value + bias.to(like).to(tl.float32)).to(like).to(tl.float32)
    return tl.where(value < 0, 0.0, value)


@triton.jit
def _pool(
    x,
    bias,
    y,
    place,
    size,
    H,
    W,
    OUT_H,
    OUT_W,
    pad_h,
    pad_w,
    C: tl.constexpr,
    N: tl.constexpr,
    ACTIVE: tl.constexpr,
):
    """Maxima of 3 x 3 with stride 2, and which of the nine each is."""
    at = tl.program_id(0) * N + tl.arange(0, N)
    inside = at < size
    channel = at % C
    pixel = at // C
    column = (pixel % OUT_W) * 2 - pad_w
    row = ((pixel // OUT_W) % OUT_H) * 2 - pad_h
    image = pixel // (OUT_W * OUT_H)
    best = tl.full((N,), float("-inf"), tl.float32)
    found = tl.zeros((N,), tl.int32)
    for i in tl.static_range(9):
        h = row + i // 3
        w = column + i % 3
        here = inside & (h >= 0) & (h < H) & (w >= 0) & (w < W)
        value = tl.load(x + ((image * H + h) * W + w) * C + channel, here, float("-inf"))
        value = value.to(tl.float32)
        better = (value > best) | (value != value)
        best = tl.where(better, value, best)
        found = tl.where(better, i, found)
    if ACTIVE:
        best = _active(best, tl.load(bias + channel), y.dtype.element_ty)
    tl.store(y + at, best.to(y.dtype.element_ty), inside)
    tl.store(place + at, found.to(tl.int8), inside)


@triton.jit
def _pool_slope(
    y,
    dy,
    place,
    dx,
    size,
    H,
    W,
    OUT_H,
    OUT_W,
    pad_h,
    pad_w,
    C: tl.constexpr,
    N: tl.constexpr,
    ACTIVE: tl.constexpr,
):
    """Each input gathers from the windows, four at most, whose maximum it is."""
    at = tl.program_id(0) * N + tl.arange(0, N)
    inside = at < size
    channel = at % C
    pixel = at // C
    w = pixel % W + pad_w
    h = (pixel // W) % H + pad_h
    image = pixel // (W * H)
    total = tl.zeros((N,), tl.float32)
    for i in tl.static_range(4):
        row = h // 2 - i // 2
        column = w // 2 - i % 2
        number = (h - 2 * row) * 3 + (w - 2 * column)
        here = inside & (row >= 0) & (row < OUT_H) & (column >= 0) & (column < OUT_W)
        here = here & (h - 2 * row < 3) & (w - 2 * column < 3)
        out = ((image * OUT_H + row) * OUT_W + column) * C + channel
        slope = tl.load(dy + out, here, 0.0).to(tl.float32)
        if ACTIVE:
            slope = tl.where(tl.load(y + out, here, 0.0) > 0, slope, 0.0)
        total += tl.where(tl.load(place + out, here, -1).to(tl.int32) == number, slope, 0.0)
    tl.store(dx + at, total.to(dx.dtype.element_ty), inside)


@triton.jit
def _column_sums(
    y, dy, sums, rows, share, C: tl.constexpr, ROWS: tl.constexpr, MASKED: tl.constexpr
):
    """Sums of dy, where y is positive (MASKED), over a part of the rows; sums [P, C]."""
    part = tl.program_id(0)
    channel = tl.arange(0, C)
    total = tl.zeros((ROWS, C), tl.float32)
    end = tl.minimum((part + 1) * share, rows)
    for first in range(part * share, end, ROWS):
        row = first + tl.arange(0, ROWS)[:, None]
        at = row * C + channel[None, :]
        here = row < end
        slope = tl.load(dy + at, here, 0.0).to(tl.float32)
        if MASKED:
            slope = tl.where(tl.load(y + at, here, 0.0) > 0, slope, 0.0)
        total += slope
    tl.store(sums + part * C + channel, tl.sum(total, 0))


def _bias_slope(dy_BCHW: Tensor, y_BCHW: Tensor | None = None) -> Tensor:
    """Of a bias behind which y, if given, is that of a ReLU; float32 [C]."""
    channels, rows, tile, parts, share = _sizes(dy_BCHW)
    sums_PC = dy_BCHW.new_empty((parts, channels), dtype=torch.float32)
    fixed = {"C": channels, "ROWS": tile, "MASKED": y_BCHW is not None, "num_warps": WARPS}
    y = dy_BCHW if y_BCHW is None else y_BCHW  # in the first case it is not read
    _column_sums[(parts,)](y, dy_BCHW, sums_PC, rows, share, **fixed)
    return sums_PC.sum(0)


def _empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    return torch.empty(
        shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_BCHW, bias_C):
        batch, channels, height, width = x_BCHW.shape
        out = batch, channels, -(-height // 2), -(-width // 2)
        y_BCHW = _empty(out, x_BCHW)
        place_BCHW = torch.empty_like(y_BCHW, dtype=torch.int8)
        shape = (height, width, *out[2:], height % 2, width % 2)
        size = y_BCHW.numel()
        fixed = {"C": channels, "N": POINTS, "ACTIVE": bias_C is not None}
        grid = (triton.cdiv(size, POINTS),)
        bias = y_BCHW if bias_C is None else bias_C  # in the first case it is not read
        _pool[grid](x_BCHW, bias, y_BCHW, place_BCHW, size, *shape, **fixed)
        ctx.save_for_backward(y_BCHW, place_BCHW)
        ctx.shape, ctx.fixed, ctx.of = shape, fixed, x_BCHW.shape
        return y_BCHW

    @staticmethod
    @once_differentiable
    def backward(ctx, dy_BCHW):
        y_BCHW, place_BCHW = ctx.saved_tensors
        dy_BCHW = dy_BCHW.contiguous(memory_format=torch.channels_last)
        dx_BCHW = _empty(ctx.of, y_BCHW)
        size = dx_BCHW.numel()
        _pool_slope[(triton.cdiv(size, POINTS),)](
            y_BCHW, dy_BCHW, place_BCHW, dx_BCHW, size, *ctx.shape, **ctx.fixed
        )
        return dx_BCHW, _bias_slope(dy_BCHW, y_BCHW) if ctx.fixed["ACTIVE"] else None


def max_pool(x_BCHW: Tensor, bias_C: Tensor | None = None) -> Tensor:
    """Maximum over 3 x 3 with stride 2, padded as TensorFlow's SAME; with a bias, the ReLU of the
    maximum and it."""
    y_BCHW: Any = _MaxPool.apply(x_BCHW, bias_C)
    return y_BCHW


@triton.jit
def _around(value, C: tl.constexpr, RADIUS: tl.constexpr):
    """Sums over the window of channels around each: a product with a band."""
    one = tl.arange(0, C)[:, None]
    other = tl.arange(0, C)[None, :]
    band = tl.where((one - other <= RADIUS) & (other - one <= RADIUS), 1.0, 0.0)
    return tl.dot(value, band, input_precision="ieee")


@triton.jit
def _lrn(
    x,
    bias,
    y,
    whole,
    rows,
    alpha,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    RADIUS: tl.constexpr,
    ACTIVE: tl.constexpr,
):
    """y, and what is raised to the power -0.75."""
    channel = tl.arange(0, C)[None, :]
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    at = row * C + channel
    value = tl.load(x + at, row < rows, 0.0).to(tl.float32)
    if ACTIVE:
        value = _active(value, tl.load(bias + channel), y.dtype.element_ty)
    base = 1 + alpha * _around(value * value, C, RADIUS)
    root = tl.sqrt(base)
    tl.store(y + at, (value / (root * tl.sqrt(root))).to(y.dtype.element_ty), row < rows)
    tl.store(whole + at, base, row < rows)


@triton.jit
def _lrn_slope(
    x,
    bias,
    dy,
    dx,
    whole,
    rows,
    alpha,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    RADIUS: tl.constexpr,
    ACTIVE: tl.constexpr,
):
    channel = tl.arange(0, C)[None, :]
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    at = row * C + channel
    value = tl.load(x + at, row < rows, 0.0).to(tl.float32)
    if ACTIVE:
        value = _active(value, tl.load(bias + channel), dx.dtype.element_ty)
    base = tl.load(whole + at, row < rows, 1.0)
    root = tl.sqrt(base)
    power = tl.load(dy + at, row < rows, 0.0).to(tl.float32) / (root * tl.sqrt(root))
    slope = power - 1.5 * alpha * value * _around(power * value / base, C, RADIUS)
    if ACTIVE:
        slope = tl.where(value > 0, slope, 0.0)
    tl.store(dx + at, slope.to(dx.dtype.element_ty), row < rows)


class _LocalResponseNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_BCHW, alpha, bias_C):
        y_BCHW = torch.empty_like(x_BCHW)
        whole = torch.empty_like(x_BCHW, dtype=torch.float32)
        channels = x_BCHW.shape[1]
        rows = x_BCHW.numel() // channels
        fixed = {"C": channels, "ROWS": LRN_ROWS, "RADIUS": RADIUS, "ACTIVE": bias_C is not None}
        bias = whole if bias_C is None else bias_C  # in the first case it is not read
        grid = (triton.cdiv(rows, LRN_ROWS),)
        _lrn[grid](x_BCHW, bias, y_BCHW, whole, rows, alpha, **fixed)
        ctx.save_for_backward(x_BCHW, bias, whole)
        ctx.rows, ctx.alpha, ctx.fixed = rows, alpha, fixed
        return y_BCHW

    @staticmethod
    @once_differentiable
    def backward(ctx, dy_BCHW):
        x_BCHW, bias, whole = ctx.saved_tensors
        dy_BCHW = dy_BCHW.contiguous(memory_format=torch.channels_last)
        dx_BCHW = torch.empty_like(x_BCHW)
        grid = (triton.cdiv(ctx.rows, LRN_ROWS),)
        _lrn_slope[grid](x_BCHW, bias, dy_BCHW, dx_BCHW, whole, ctx.rows, ctx.alpha, **ctx.fixed)
        if not ctx.fixed["ACTIVE"]:
            return dx_BCHW, None, None
        return dx_BCHW, None, _bias_slope(dx_BCHW)


def local_response_norm(x_BCHW: Tensor, alpha: float, bias_C: Tensor | None = None) -> Tensor:
    """Each activation by (1 + alpha * sum of squares of 9 channels around it) ** 0.75; with a bias,
    of the ReLU of x and it. Channels must be 16 at least."""
    y_BCHW: Any = _LocalResponseNorm.apply(x_BCHW, alpha, bias_C)
    return y_BCHW
