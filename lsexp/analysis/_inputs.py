"""What all functions of logits or probabilities and labels accept, checked in one place.

Shape letters: N examples, K classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def array(values: Any, dtype: Any = None) -> np.ndarray:
    """`np.asarray`, also of tensors with gradients, on a GPU, or in bfloat16 (as float32)."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        if str(values.dtype) == "torch.bfloat16":
            values = values.float()
    return np.asarray(values, dtype)


def labelled(
    values_NK: np.ndarray, labels_N: np.ndarray, what: str
) -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays: values [N, K] of their own type, labels int64 [N].

    Args:
        values_NK: a row for each example.
        labels_N: class indices, of any type of whole numbers.
        what: the values' name in errors, in the plural.

    Raises:
        ValueError: values that are not [N, K], no examples, other than one label for each, or a
            label that is no class.
    """
    values_NK, labels_N = array(values_NK), array(labels_N)
    if values_NK.ndim != 2 or labels_N.shape != values_NK.shape[:1]:
        raise ValueError(
            f"{what} must be [N, K] and labels [N], not {values_NK.shape} and {labels_N.shape}"
        )
    if not values_NK.size:
        raise ValueError(f"no examples: {what} are {values_NK.shape}")
    if labels_N.dtype.kind not in "iub":
        raise ValueError(f"labels must be whole numbers, not {labels_N.dtype}")
    if not 0 <= labels_N.min() <= labels_N.max() < values_NK.shape[1]:
        raise ValueError(
            f"labels must be in 0..{values_NK.shape[1] - 1}, not {labels_N.min()}..{labels_N.max()}"
        )
    return values_NK, labels_N.astype(np.int64, copy=False)


def of_label(values_NK: np.ndarray, labels_N: np.ndarray) -> np.ndarray:
    """Each example's value of its label, [N]; of what `labelled` gives."""
    return np.take_along_axis(values_NK, labels_N[:, None], axis=1)[:, 0]


def below_max(logits_NK: np.ndarray) -> np.ndarray:
    """Logits less the largest of their example, float64 [N, K].

    Raises:
        ValueError: logits that are not [N, K], a logit that is NaN or +inf, or an example with
            nothing but -inf.
    """
    logits_NK = array(logits_NK)
    if logits_NK.ndim != 2 or not logits_NK.shape[1]:
        raise ValueError(f"logits must be [N, K], not {logits_NK.shape}")
    largest_N1 = logits_NK.max(axis=1, keepdims=True)
    if not np.isfinite(largest_N1).all():
        raise ValueError("logits that are not finite: leave diverged runs out first")
    below_NK: np.ndarray = logits_NK.astype(np.float64) - largest_N1
    return below_NK
