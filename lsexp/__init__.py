"""lsexp: a laboratory for label smoothing.

From Python, without the command's configuration: what has been trained (`load_runs` gives a
DataFrame, `load_outputs` a run's logits and labels), and what is computed from arrays: losses of
torch tensors, and NumPy functions for calibration, temperature, selective prediction, projections,
information, neural collapse and statistics. Each has its docstring; all are imported when first
looked at.

>>> import numpy as np
>>> from lsexp import ece, fit_temperature, softmax
>>> logits, labels = np.array([[2.0, 0.0]] * 10), np.array([0] * 7 + [1] * 3)
>>> round(ece(softmax(logits), labels), 3)
0.181
>>> round(fit_temperature(logits, labels).value, 2)  # where it is right in 7 of 10
2.36
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PLACES = {
    "runs.catalog": ("load_outputs", "load_runs"),
    "losses": ("distillation_loss", "smooth_labels", "smoothed_cross_entropy"),
    "analysis.calibration": (
        *("adaptive_ece", "brier", "classwise_ece", "confidence_gap", "debiased_ece", "ece"),
        *("ece_floor", "mce", "nll", "reliability", "sampling_band", "softmax", "top_label"),
    ),
    "analysis.temperature": ("fit_temperature",),
    "analysis.selective": (
        *("aurc", "choose_p", "excess_aurc", "max_probability_score", "normalised_score"),
        *("risk_coverage",),
    ),
    "analysis.projections": ("activations", "plane_of", "project", "scatter", "templates"),
    "analysis.information": ("bounds", "estimate", "nearest_neighbours", "with_own_variances"),
    "analysis.collapse": ("class_separation", "nc1", "nc2", "nc3"),
    "analysis.distillation": ("gamma", "wrong_class_agreement"),
    "analysis.statistics": (
        *("holm", "over_both", "over_examples", "over_seeds", "paired", "verdict"),
    ),
}
_MODULES = {name: module for module, names in _PLACES.items() for name in names}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'lsexp' has no attribute {name!r}")
    return getattr(import_module(f"lsexp.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
