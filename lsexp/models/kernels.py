"""Layers whose passes over memory are fused, for training on a CPU: compiled by Numba.

PyTorch runs a normalisation and the ReLU behind it as several operations, each of which reads and
writes the whole activation, most of them slowly in bfloat16. Here a layer is one pass or two. The
functions compute what PyTorch's do: float32 inside, one rounding at the end. They take tensors on
the CPU whose channels come last in memory, float32 or bfloat16; `fits` tells.

Work is split over torch's number of threads.
Shape letters: B examples, C channels, H height, W width; R rows of a matrix that spans the
activation, L its columns, a multiple of C.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from torch import Tensor
from torch.autograd.function import once_differentiable

LEAST = 2**18
"""Elements for which another thread is worth while."""
BLOCK = 128
"""Rows that are summed in float32 before they go into a float64 sum."""
RADIUS = 4
WINDOW = 2 * RADIUS + 1
"""Of local response normalisation, channels."""
COLUMNS = 256
"""About how long a row is made, so that a sum does not wait for the one before."""


def _load_float(_context, value):
    """float32 of a float32, or of the bits of a bfloat16 (uint16)."""
    if value == types.float32:
        return types.float32(value), lambda _c, _b, _s, args: args[0]

    def widen(_context, builder, _signature, args):
        word = ir.IntType(32)
        bits = builder.shl(builder.zext(args[0], word), ir.Constant(word, 16))
        return builder.bitcast(bits, ir.FloatType())

    return types.float32(types.uint16), widen


def _store_float(_context, like, value):
    """`value`, a float32, as what `like` is; to the nearest bfloat16, ties to even."""
    if like == types.float32:
        return types.float32(like, types.float32), lambda _c, _b, _s, args: args[1]

    def narrow(_context, builder, _signature, args):
        word = ir.IntType(32)
        bits = builder.bitcast(args[1], word)
        odd = builder.and_(builder.lshr(bits, ir.Constant(word, 16)), ir.Constant(word, 1))
        up = builder.add(bits, builder.add(odd, ir.Constant(word, 0x7FFF)))
        # Carried up, a NaN of all ones would become a zero: it keeps its upper half.
        nan = builder.fcmp_unordered("uno", args[1], args[1])
        kept = builder.select(nan, builder.or_(bits, ir.Constant(word, 0x400000)), up)
        return builder.trunc(builder.lshr(kept, ir.Constant(word, 16)), ir.IntType(16))

    return types.uint16(types.uint16, types.float32), narrow


# A function of numbers within the compiled ones.
_load: Any = intrinsic(_load_float)
_as: Any = intrinsic(_store_float)


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # Products and sums may contract; nothing else may be reordered, and NaN stays NaN.
    options: Any = {"nogil": True, "fastmath": {"contract"}, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # neither our folder nor the user's can be written: compiled each time
        return numba.njit(**options)(function)


def fits(x_BCHW: Tensor) -> bool:
    """Whether the functions here take this tensor."""
    return (
        x_BCHW.device.type == "cpu"
        and x_BCHW.dtype in (torch.float32, torch.bfloat16)
        and x_BCHW.dim() == 4
        and x_BCHW.numel() > 0
        and x_BCHW.is_contiguous(memory_format=torch.channels_last)
    )


def of_gpu(x_BCHW: Tensor) -> Any:
    """The module with the same functions for this tensor on a GPU; None where there is none."""
    module = _gpu_kernels() if x_BCHW.is_cuda else None
    return module if module is not None and module.fits(x_BCHW) else None


def fused(device: torch.device) -> bool:
    """Whether layers are fused on this GPU."""
    module = _gpu_kernels()
    return module is not None and module.compiles(device)


@cache
def _gpu_kernels() -> Any:
    try:
        from lsexp.models import gpu_kernels
    except ImportError:  # PyTorch brings Triton, but not everywhere
        return None
    return gpu_kernels


def _array(x_BCHW: Tensor) -> np.ndarray:
    """The memory of a tensor: float32, or uint16 that are the bits of bfloat16; [B * H * W * C]."""
    flat = x_BCHW.detach().permute(0, 2, 3, 1).reshape(-1)
    return (flat.view(torch.uint16) if flat.dtype == torch.bfloat16 else flat).numpy()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="kernels")


def _over(x_RL: np.ndarray, kernel: Callable[..., None], *args: Any) -> None:
    """`kernel(part, first, last, *args)` for the rows of x (its first dimension) of each thread."""
    rows = len(x_RL)
    threads = max(1, min(torch.get_num_threads(), x_RL.size // LEAST, rows))
    if threads == 1:
        kernel(0, 0, rows, *args)
        return
    edges = [rows * part // threads for part in range(threads + 1)]
    parts = [
        _pool(threads).submit(kernel, part, edges[part], edges[part + 1], *args)
        for part in range(threads)
    ]
    for part in parts:
        part.result()


def _columns(channels: int, pixels: int) -> int:
    """Columns of the matrix that an activation is seen as: `channels` times a power of two."""
    times = 1
    while channels * times * 2 <= COLUMNS and pixels % (times * 2) == 0:
        times *= 2
    return channels * times


# Batch normalisation and ReLU.


@_compiled
def _moments(part, first, last, x_RL, shift_L, sums_P2L):
    columns = x_RL.shape[1]
    sum_L, square_L = np.empty(columns, np.float32), np.empty(columns, np.float32)
    for block in range(first, last, BLOCK):
        sum_L[:] = 0
        square_L[:] = 0
        for r in range(block, min(block + BLOCK, last)):
            for c in range(columns):
                value = _load(x_RL[r, c]) - shift_L[c]
                sum_L[c] += value
                square_L[c] += value * value
        for c in range(columns):
            sums_P2L[part, 0, c] += sum_L[c]
            sums_P2L[part, 1, c] += square_L[c]


@_compiled
def _normalise_relu(part, first, last, x_RL, y_RL, mean_L, scale_L, bias_L):
    for r in range(first, last):
        for c in range(x_RL.shape[1]):
            value = (_load(x_RL[r, c]) - mean_L[c]) * scale_L[c] + bias_L[c]
            # Written so that a NaN stays one.
            y_RL[r, c] = _as(x_RL[r, c], np.float32(0) if value < 0 else value)


@_compiled
def _gradient_sums(part, first, last, dy_RL, x_RL, mean_L, scale_L, bias_L, sums_P2L):
    columns = x_RL.shape[1]
    sum_L, product_L = np.empty(columns, np.float32), np.empty(columns, np.float32)
    for block in range(first, last, BLOCK):
        sum_L[:] = 0
        product_L[:] = 0
        for r in range(block, min(block + BLOCK, last)):
            for c in range(columns):
                apart = _load(x_RL[r, c]) - mean_L[c]
                # The sign of what came out: cheaper than reading that.
                zero = apart * scale_L[c] + bias_L[c] <= 0
                slope = np.float32(0) if zero else _load(dy_RL[r, c])
                sum_L[c] += slope
                product_L[c] += slope * apart
        for c in range(columns):
            sums_P2L[part, 0, c] += sum_L[c]
            sums_P2L[part, 1, c] += product_L[c]


@_compiled
def _gradient(part, first, last, dy_RL, x_RL, dx_RL, mean_L, scale_L, bias_L, slope_L, shift_L):
    for r in range(first, last):
        for c in range(x_RL.shape[1]):
            x = _load(x_RL[r, c])
            zero = (x - mean_L[c]) * scale_L[c] + bias_L[c] <= 0
            slope = np.float32(0) if zero else _load(dy_RL[r, c])
            dx_RL[r, c] = _as(dy_RL[r, c], slope * scale_L[c] + x * slope_L[c] + shift_L[c])


def _sums(columns: int) -> np.ndarray:
    return np.zeros((max(1, torch.get_num_threads()), 2, columns))


def _by_channel(sums_P2L: np.ndarray, channels: int) -> np.ndarray:
    """float64 [2, C]: over threads and the copies of a channel in a row."""
    return sums_P2L.sum(0).reshape(2, -1, channels).sum(1)


def normalise_relu(x_BCHW: Tensor, mean_C: Tensor, scale_C: Tensor, bias_C: Tensor) -> Tensor:
    """`F.relu((x - mean) * scale + bias)` by channel, these float32; has no gradient."""
    channels = x_BCHW.shape[1]
    columns = _columns(channels, x_BCHW.numel() // channels)
    y_BCHW = torch.empty_like(x_BCHW)
    x_RL, y_RL = (_array(each).reshape(-1, columns) for each in (x_BCHW, y_BCHW))
    terms = [
        each.detach().repeat(columns // channels).numpy() for each in (mean_C, scale_C, bias_C)
    ]
    _over(x_RL, _normalise_relu, x_RL, y_RL, *terms)
    return y_BCHW


class _BatchNormReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_BCHW, weight_C, bias_C, eps):
        channels = x_BCHW.shape[1]
        count = x_BCHW.numel() // channels
        columns = _columns(channels, count)
        copies = columns // channels
        x_RL = _array(x_BCHW).reshape(-1, columns)
        # About any value of the channel the squares do not cancel.
        first_C = x_BCHW[0, :, 0, 0].float().numpy()
        sums = _sums(columns)
        _over(x_RL, _moments, x_RL, np.tile(first_C, copies), sums)
        with np.errstate(invalid="ignore"):  # a NaN is told where the loss is looked at
            shifted, squares = _by_channel(sums, channels) / count
            mean = first_C + shifted
            var = np.maximum(squares - shifted**2, 0)
            inverse = 1 / np.sqrt(var + eps)
        scale = weight_C.detach().numpy() * inverse
        mean_C, var_C, scale_C = (
            torch.from_numpy(each.astype(np.float32)) for each in (mean, var, scale)
        )
        y_BCHW = normalise_relu(x_BCHW, mean_C, scale_C, bias_C)
        ctx.save_for_backward(x_BCHW, weight_C, bias_C)
        ctx.moments = mean, inverse
        ctx.mark_non_differentiable(mean_C, var_C)
        return y_BCHW, mean_C, var_C

    @staticmethod
    @once_differentiable
    def backward(ctx, dy_BCHW, _mean, _var):
        x_BCHW, weight_C, bias_C = ctx.saved_tensors
        mean, inverse = ctx.moments
        channels = x_BCHW.shape[1]
        count = x_BCHW.numel() // channels
        columns = _columns(channels, count)
        copies = columns // channels
        dy_BCHW = dy_BCHW.contiguous(memory_format=torch.channels_last)
        dx_BCHW = torch.empty_like(x_BCHW)
        dy_RL, x_RL, dx_RL = (
            _array(each).reshape(-1, columns) for each in (dy_BCHW, x_BCHW, dx_BCHW)
        )
        sums = _sums(columns)
        scale = weight_C.detach().numpy() * inverse
        forward = [
            np.tile(each.astype(np.float32), copies)
            for each in (mean, scale, bias_C.detach().numpy())
        ]
        _over(x_RL, _gradient_sums, dy_RL, x_RL, *forward, sums)
        bias_slope, products = _by_channel(sums, channels)
        # dx = scale * (dy - mean(dy) - (x - mean) * inverse**2 * mean(dy * (x - mean)))
        slope = -scale * inverse**2 * products / count
        shift = -scale * bias_slope / count - slope * mean
        terms = [np.tile(each.astype(np.float32), copies) for each in (slope, shift)]
        _over(x_RL, _gradient, dy_RL, x_RL, dx_RL, *forward, *terms)
        weight_slope = torch.from_numpy((products * inverse).astype(np.float32))
        return dx_BCHW, weight_slope, torch.from_numpy(bias_slope.astype(np.float32)), None


def batch_norm_relu(
    x_BCHW: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """ReLU of batch normalisation in training.

    Returns:
        What `F.relu(F.batch_norm(x, None, None, weight, bias, training=True, eps=eps))` is; and
        mean and variance of the batch, float32 [C] (over its size, not less one).
    """
    found: tuple[Tensor, Tensor, Tensor] = _BatchNormReLU.apply(x_BCHW, weight_C, bias_C, eps)
    return found


# Local response normalisation.


@_compiled
def _around(padded, c):
    """Sum of the window around channel c."""
    total = padded[c]
    for j in range(1, WINDOW):
        total += padded[c + j]
    return total


@_compiled
def _lrn(part, first, last, x_RC, y_RC, alpha):
    channels = x_RC.shape[1]
    value = np.zeros(channels, np.float32)
    square = np.zeros(channels + WINDOW - 1, np.float32)
    for r in range(first, last):
        for c in range(channels):
            value[c] = _load(x_RC[r, c])
            square[c + RADIUS] = value[c] * value[c]
        for c in range(channels):
            root = np.sqrt(np.float32(1) + alpha * _around(square, c))
            y_RC[r, c] = _as(x_RC[r, c], value[c] / (root * np.sqrt(root)))


@_compiled
def _lrn_gradient(part, first, last, dy_RC, x_RC, dx_RC, alpha):
    channels = x_RC.shape[1]
    value, power = np.zeros(channels, np.float32), np.zeros(channels, np.float32)
    square = np.zeros(channels + WINDOW - 1, np.float32)
    slope = np.zeros(channels + WINDOW - 1, np.float32)
    for r in range(first, last):
        for c in range(channels):
            value[c] = _load(x_RC[r, c])
            square[c + RADIUS] = value[c] * value[c]
        for c in range(channels):
            whole = np.float32(1) + alpha * _around(square, c)
            root = np.sqrt(whole)
            power[c] = _load(dy_RC[r, c]) / (root * np.sqrt(root))
            slope[c + RADIUS] = power[c] * value[c] / whole
        for c in range(channels):
            dx = power[c] - np.float32(1.5) * alpha * value[c] * _around(slope, c)
            dx_RC[r, c] = _as(x_RC[r, c], dx)


class _LocalResponseNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_BCHW, alpha):
        channels = x_BCHW.shape[1]
        y_BCHW = torch.empty_like(x_BCHW)
        x_RC, y_RC = (_array(each).reshape(-1, channels) for each in (x_BCHW, y_BCHW))
        _over(x_RC, _lrn, x_RC, y_RC, np.float32(alpha))
        ctx.save_for_backward(x_BCHW)
        ctx.alpha = alpha
        return y_BCHW

    @staticmethod
    @once_differentiable
    def backward(ctx, dy_BCHW):
        (x_BCHW,) = ctx.saved_tensors
        channels = x_BCHW.shape[1]
        dy_BCHW = dy_BCHW.contiguous(memory_format=torch.channels_last)
        dx_BCHW = torch.empty_like(x_BCHW)
        arrays = [_array(each).reshape(-1, channels) for each in (dy_BCHW, x_BCHW, dx_BCHW)]
        _over(arrays[0], _lrn_gradient, *arrays, np.float32(ctx.alpha))
        return dx_BCHW, None


def local_response_norm(x_BCHW: Tensor, alpha: float) -> Tensor:
    """Each activation by (1 + alpha * sum of squares of WINDOW channels around it) ** 0.75."""
    y_BCHW: Tensor = _LocalResponseNorm.apply(x_BCHW, alpha)
    return y_BCHW
