"""Neural collapse and class separation: features that shrink to a point a class, on other meters.

NC1 to NC3 of Papyan, Han and Donoho 2020 (arXiv 2008.08186), as used for smoothed networks by Guo
et al. 2024 (arXiv 2402.03979); class separation R^2 of Kornblith et al. 2021 (arXiv 2010.16402).
All are 0 (R^2: 1) at full collapse and do not change when features are scaled.
Shape letters: N examples, D features, K classes.
"""

from __future__ import annotations

import numpy as np

from lsexp.analysis._inputs import array, labelled, of_label


class Degenerate(ValueError):
    """Features of which the question makes no sense: all alike, as before training. Features that
    are not finite are another ValueError."""


def nc1(features_ND: np.ndarray, labels_N: np.ndarray) -> float:
    """Variability within classes by that between: tr(S_W S_B^+) / K.

    1. S_W and S_B are the covariances of the examples around their class's mean, and of the K
       class means around theirs; classes count alike, however many examples each has.
    2. S_B has rank K - 1: only what lies in the span of the class means is counted, so that noise
       in other directions, which the last layer may not see, is not. `projections.scatter` counts
       all.

    Args:
        features_ND: of the penultimate layer.
        labels_N: class indices; only the classes that have examples count.

    Returns:
        A number of at least 0, without unit.

    Raises:
        ValueError: fewer than two classes, other than one label for each example, or a feature
            that is not finite.
        Degenerate: class means that are all alike.

    Two classes at 0 and 4, each +-1: S_W = 1, S_B = 4.

    >>> round(nc1(np.array([[-1.0], [1.0], [3.0], [5.0]]), np.array([0, 0, 1, 1])), 9)
    0.125
    """
    means_KD, centred_ND, weight_N = _classes(features_ND, labels_N)
    between_KD = _centred(means_KD)
    # In an orthonormal basis of the class means' span: D may be thousands, K is not.
    _, size_R, basis_RD = np.linalg.svd(between_KD, full_matrices=False)
    seen = size_R > 1e-9 * size_R.max()
    inside_NR = centred_ND @ basis_RD[seen].T
    variance_R = (weight_N[:, None] * inside_NR**2).sum(axis=0)
    num_classes = len(means_KD)
    return float((variance_R / (size_R[seen] ** 2 / num_classes)).sum() / num_classes)


def nc2(features_ND: np.ndarray, labels_N: np.ndarray) -> float:
    """How far the class means are from a simplex of equal angles and lengths.

    || G / ||G|| - (I - 1/K) / sqrt(K - 1) || with G the K x K products of the centred class means,
    Frobenius norms; 0 for an equiangular tight frame.

    Args:
        features_ND: of the penultimate layer.
        labels_N: class indices; only the classes that have examples count.

    Returns:
        A number of at least 0, without unit.

    Raises:
        ValueError: fewer than two classes, other than one label for each example, or a feature
            that is not finite.
        Degenerate: class means that are all alike.

    >>> round(nc2(np.eye(4), np.arange(4)), 9)
    0.0
    """
    means_KD, _, _ = _classes(features_ND, labels_N)
    products_KK = _centred(means_KD) @ _centred(means_KD).T
    num_classes = len(products_KK)
    simplex_KK = (np.eye(num_classes) - 1 / num_classes) / np.sqrt(num_classes - 1)
    return float(np.linalg.norm(products_KK / np.linalg.norm(products_KK) - simplex_KK))


def nc3(features_ND: np.ndarray, labels_N: np.ndarray, weight_KD: np.ndarray) -> float:
    """How far the last layer's weights are from the class means: || W / ||W|| - M / ||M|| ||.

    Both centred over classes, which softmax does not see; Frobenius norms; 0 to 2.

    Args:
        features_ND: of the penultimate layer.
        labels_N: class indices.
        weight_KD: of the last layer, a row for each class; those that have no example are left out.

    Returns:
        A number in 0..2, without unit.

    Raises:
        ValueError: fewer than two classes, other than one label for each example, a label without
            weights, or a feature that is not finite.
        Degenerate: weights or class means that are all alike.

    >>> round(nc3(np.eye(3), np.arange(3), 5 * np.eye(3)), 9)
    0.0
    """
    means_KD, _, _ = _classes(features_ND, labels_N)
    weight_KD, classes = array(weight_KD, np.float64), np.unique(labels_N)
    if not 0 <= classes[0] <= classes[-1] < len(weight_KD):
        raise ValueError(
            f"labels must be in 0..{len(weight_KD) - 1}, not {classes[0]}..{classes[-1]}"
        )
    parts = []
    for rows_KD in (weight_KD[classes], means_KD):
        centred_KD = _centred(rows_KD)
        parts.append(centred_KD / np.linalg.norm(centred_KD))
    return float(np.linalg.norm(parts[0] - parts[1]))


def class_separation(features_ND: np.ndarray, labels_N: np.ndarray) -> float:
    """R^2 = 1 - d_within / d_total of cosine distances, 0 to 1.

    1. d_within is the mean distance of two examples of a class, averaged over classes; d_total
       that of two examples of any two classes, all pairs of classes alike. An example is paired
       with itself too, as in the paper, so that means of unit vectors are enough: O(N D).
    2. Features of length 0 have no direction and count as 0.

    Args:
        features_ND: of the penultimate layer.
        labels_N: class indices; only the classes that have examples count.

    Returns:
        A number in 0..1.

    Raises:
        ValueError: fewer than two classes, other than one label for each example, or a feature
            that is not finite.
        Degenerate: features that all point one way.

    >>> class_separation(np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]]), np.array([0, 0, 1]))
    1.0
    """
    features_ND = _finite(features_ND)
    length_N1 = np.linalg.norm(features_ND, axis=1, keepdims=True)
    unit_ND = features_ND / np.where(length_N1 > 0, length_N1, 1)
    means_KD, _, _ = _classes(unit_ND, labels_N)
    within = 1 - (means_KD**2).sum(axis=1).mean()
    total = 1 - (means_KD.mean(axis=0) ** 2).sum()
    if not total > 1e-12:
        raise Degenerate("features that all point one way")
    return float(1 - within / total)


def effective_smoothing(probabilities_NK: np.ndarray, labels_N: np.ndarray) -> float:
    """gamma of the paper's Figure 5: the smoothing whose labels are as soft as these probabilities.

    K / (K - 1) times the mean probability that is not on the label. Labels smoothed by eps (eps /
    K to each class) give eps, uniform probabilities give 1; more than 1 is worse than uniform.

    Args:
        probabilities_NK: rows sum to one.
        labels_N: class indices.

    Returns:
        A number in 0..K / (K - 1).

    Raises:
        ValueError: one class, no examples, other than one label for each, or a label that is no
            class.

    >>> effective_smoothing(np.array([[0.925, 0.025, 0.025, 0.025]]), np.array([0])).__round__(9)
    0.1
    """
    probabilities_NK, labels_N = labelled(probabilities_NK, labels_N, "probabilities")
    num_classes = probabilities_NK.shape[1]
    if num_classes < 2:
        raise ValueError("one class: two are needed")
    on_label_N = of_label(probabilities_NK, labels_N)
    return float((1 - on_label_N.astype(np.float64)).mean() * num_classes / (num_classes - 1))


def _classes(
    features_ND: np.ndarray, labels_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Class means, features less those of their class, and weights with which classes count alike
    (summing to 1)."""
    features_ND, labels_N = _finite(features_ND), array(labels_N)
    if features_ND.ndim != 2 or labels_N.shape != features_ND.shape[:1]:
        raise ValueError(
            f"features must be [N, D] and labels [N], not {features_ND.shape} and {labels_N.shape}"
        )
    classes, index_N, count_K = np.unique(labels_N, return_inverse=True, return_counts=True)
    if len(classes) < 2:
        raise ValueError(f"{len(classes)} classes: two are needed")
    means_KD = np.zeros((len(classes), features_ND.shape[1]))
    np.add.at(means_KD, index_N, features_ND)
    means_KD /= count_K[:, None]
    return means_KD, features_ND - means_KD[index_N], 1 / (len(classes) * count_K[index_N])


def _finite(features_ND: np.ndarray) -> np.ndarray:
    features_ND = array(features_ND, np.float64)
    if not np.isfinite(features_ND).all():
        raise ValueError("features that are not finite")
    return features_ND


def _centred(rows_KD: np.ndarray) -> np.ndarray:
    """Less their mean; Degenerate where rounding is all that is left."""
    centred_KD: np.ndarray = rows_KD - rows_KD.mean(axis=0)
    if not np.abs(centred_KD).max() > 1e-7 * np.abs(rows_KD).max():
        raise Degenerate("weights or class means that are all alike")
    return centred_KD
