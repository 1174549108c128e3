"""Three classes in the plane of their templates, as the paper's Figure 1 shows them (section 2).

With a 1 appended to the penultimate activations x and the bias to the weights w_k, the logits are
x^T w_k; w_k is the template of class k. ||x - w_k||^2 = x^T x - 2 x^T w_k + w_k^T w_k: smoothing
asks that x be close to the template of its class and equally far from all others.
Shape letters: N examples, D features, E = D + 1 with what is appended, K classes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lsexp.analysis._inputs import array


class Plane(NamedTuple):
    """A plane in the space of activations, arrays float64.

    Attributes:
        origin_E: where its coordinates are 0.
        basis_E2: its axes x and y, orthonormal columns.
    """

    origin_E: np.ndarray
    basis_E2: np.ndarray


def templates(weight_KD: np.ndarray, bias_K: np.ndarray) -> np.ndarray:
    """Weights and bias of each class in one row, as section 2 of the paper has them.

    Args:
        weight_KD: of the last layer, a row for each class.
        bias_K: of the last layer; zeros where it has none.

    Returns:
        float64 [K, E]: `activations(x) @ templates(weight, bias).T` are the logits.

    Raises:
        ValueError: not a row of weights for each bias.

    >>> templates(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([5.0, 6.0])).tolist()
    [[1.0, 2.0, 5.0], [3.0, 4.0, 6.0]]
    """
    weight_KD, bias_K = array(weight_KD, np.float64), array(bias_K, np.float64)
    if weight_KD.ndim != 2 or bias_K.shape != weight_KD.shape[:1]:
        raise ValueError(
            f"weights must be [K, D] and biases [K], not {weight_KD.shape} and {bias_K.shape}"
        )
    return np.column_stack([weight_KD, bias_K])


def activations(features_ND: np.ndarray) -> np.ndarray:
    """Inputs of the last layer with the 1 that meets the bias, as section 2 of the paper has them.

    Args:
        features_ND: penultimate activations, what the last layer is given.

    Returns:
        float64 [N, E].

    Raises:
        ValueError: features that are not [N, D].

    >>> activations(np.array([[1.0, 2.0]])).tolist()
    [[1.0, 2.0, 1.0]]
    """
    features_ND = array(features_ND, np.float64)
    if features_ND.ndim != 2:
        raise ValueError(f"features must be [N, D], not {features_ND.shape}")
    return np.column_stack([features_ND, np.ones(len(features_ND))])


def plane_of(templates_3E: np.ndarray) -> Plane:
    """The plane through three templates, as in section 2 of the paper.

    1. The paper gives neither an origin nor axes; a picture of the same shape may be turned,
       mirrored and moved. Here the origin is the templates' mean, the first axis points from the
       first template to the second, and the third lies on the side of positive y, whatever signs
       a QR factorisation happens to give.
    2. Distances in the plane are those in the space of activations: two pictures can be compared.

    Args:
        templates_3E: rows of what `templates` gives, for three classes; their order sets the axes.

    Returns:
        The origin [E] and the basis [E, 2], for `project`.

    Raises:
        ValueError: not three templates, or three that lie on a line, as those of an untrained
            layer of zeros do.

    >>> plane = plane_of(np.array([[0.0, 0.0, 0.0], [2.0, 0.0, 0.0], [1.0, 0.0, -3.0]]))
    >>> project(plane, np.array([[2.0, 5.0, 0.0], [1.0, 7.0, -3.0]])).round(6).tolist()
    [[1.0, -1.0], [0.0, 2.0]]
    """
    templates_3E = array(templates_3E, np.float64)
    if templates_3E.ndim != 2 or len(templates_3E) != 3:
        raise ValueError(f"templates must be [3, E], not {templates_3E.shape}")
    sides_E2 = (templates_3E[1:] - templates_3E[0]).T
    basis_E2, triangle_22 = np.linalg.qr(sides_E2)
    diagonal = np.diag(triangle_22)
    if not np.abs(diagonal).min() > 1e-9 * np.abs(triangle_22).max():
        raise ValueError("the three templates lie on a line: there is no plane through them")
    return Plane(templates_3E.mean(0), basis_E2 * np.sign(diagonal))


def principal_plane(templates_3E: np.ndarray, points_NE: np.ndarray) -> Plane:
    """The two directions of most variance of some points, within the span of three templates.

    The picture of LuoJiaji's and of Chandrasegaran et al.'s code (ICML 2022), which is another
    than the paper's: the span has three dimensions, and what is seen of it depends on the points.
    The first axis points from the first template towards the second, the other towards the third,
    so that pictures of several networks are turned alike.

    Args:
        points_NE: activations of the training images of the three classes; their mean is the
            origin.

    Raises:
        ValueError: the templates span less than three dimensions.
    """
    span_E3, triangle_33 = np.linalg.qr(templates_3E.T)
    diagonal = np.abs(np.diag(triangle_33))
    if len(diagonal) < 3 or not diagonal.min() > 1e-9 * np.abs(triangle_33).max():
        raise ValueError("the three templates span less than three dimensions")
    center_E = points_NE.mean(0)
    within_N3 = (points_NE - center_E) @ span_E3
    _, directions_33 = np.linalg.eigh(within_N3.T @ within_N3)
    basis_E2 = span_E3 @ directions_33[:, [2, 1]]
    first_E, second_E, third_E = templates_3E
    towards_2 = np.array([second_E - first_E, third_E - (first_E + second_E) / 2])
    turned_2 = (towards_2 * basis_E2.T).sum(axis=1) < 0
    return Plane(center_E, basis_E2 * np.where(turned_2, -1.0, 1.0))


def project(plane: Plane, points_NE: np.ndarray) -> np.ndarray:
    """Coordinates of points in a plane: of each the nearest point of the plane.

    Args:
        plane: as `plane_of` gives it.
        points_NE: rows of what `activations` or `templates` gives.

    Returns:
        x and y, float64 [N, 2], in the unit of the activations.

    Raises:
        ValueError: points that are not [N, E] with the plane's E.

    >>> plane = plane_of(np.array([[0.0, 0.0, 9.0], [2.0, 0.0, 9.0], [1.0, 3.0, 9.0]]))
    >>> project(plane, np.array([[1.0, 1.0, 0.0], [1.0, 2.0, 7.0]])).round(6).tolist()
    [[0.0, 0.0], [0.0, 1.0]]
    """
    points_NE = array(points_NE, np.float64)
    if points_NE.ndim != 2 or points_NE.shape[1] != len(plane.origin_E):
        raise ValueError(f"points must be [N, {len(plane.origin_E)}], not {points_NE.shape}")
    coordinates_N2: np.ndarray = (points_NE - plane.origin_E) @ plane.basis_E2
    return coordinates_N2


def tsne(features_ND: np.ndarray) -> np.ndarray:
    """t-SNE of features (van der Maaten and Hinton 2008), float64 [N, 2]; scikit-learn's.

    Distances in it mean little and its scale nothing: no number is taken from it.

    Raises:
        ValueError: the features are all alike, or there are fewer than four.
    """
    from sklearn.manifold import TSNE

    features_ND = array(features_ND, np.float64)
    if len(features_ND) < 4 or not np.ptp(features_ND, axis=0).max() > 0:
        raise ValueError("t-SNE needs four images or more whose features are not all alike")
    largest = np.abs(features_ND).max()
    if not 1e-12 < largest < 1e12:
        # Squares of distances must fit float32 there; scale means nothing.
        features_ND = features_ND / largest
    perplexity = min(30.0, (len(features_ND) - 1) / 3)
    init = "pca" if features_ND.shape[1] > 1 else "random"
    picture = TSNE(init=init, perplexity=perplexity, random_state=0)
    found: np.ndarray = picture.fit_transform(features_ND)
    return found.astype(np.float64)


def scatter(points_ND: np.ndarray, labels_N: np.ndarray) -> tuple[float, float]:
    """Mean squared distances: of examples to the mean of their class, of these to their mean.

    1. Classes count alike, however many examples each has.
    2. Their ratio has no unit; 0 is the collapse of every class to a point.

    Args:
        points_ND: any finite numbers.
        labels_N: class indices; only the classes that have examples count.

    Returns:
        (within, between), in squared units of the points, at least 0; of one class between is 0.

    Raises:
        ValueError: points that are not [N, D], no examples, or other than one label for each.

    >>> scatter(np.array([[0.0], [2.0], [10.0], [10.0]]), np.array([0, 0, 1, 1]))
    (0.5, 20.25)
    """
    points_ND, labels_N = array(points_ND, np.float64), array(labels_N)
    if points_ND.ndim != 2 or not points_ND.size or labels_N.shape != points_ND.shape[:1]:
        raise ValueError(
            f"points must be [N, D] and labels [N], none empty, not {points_ND.shape} and "
            f"{labels_N.shape}"
        )
    classes = np.unique(labels_N)
    means, within = [], []
    for k in classes:
        members = points_ND[labels_N == k]
        means.append(members.mean(0))
        within.append(((members - means[-1]) ** 2).sum(1).mean())
    means_KD = np.stack(means)
    between = ((means_KD - means_KD.mean(0)) ** 2).sum(1).mean()
    return float(np.mean(within)), float(between)


def sides(templates_3E: np.ndarray) -> np.ndarray:
    """Lengths of the triangle's sides, float64 [3]: first to second, first to third, second to
    third template. Equal for a regular one."""
    first, second, third = templates_3E
    pairs = ((first, second), (first, third), (second, third))
    return np.array([float(np.linalg.norm(a - b)) for a, b in pairs])


def distances(points_NE: np.ndarray, templates_KE: np.ndarray) -> np.ndarray:
    """Distance of each example to each template, float64 [N, K].

    By ||x||^2 - 2 x^T w + ||w||^2, as in section 2, without N x K x E numbers at once; below some
    1e-8 of the norms a distance is lost to rounding.

    >>> distances(np.array([[3.0, 4.0]]), np.array([[0.0, 0.0], [3.0, 3.0]])).tolist()
    [[5.0, 1.0]]
    """
    points_NE, templates_KE = (
        array(points_NE, np.float64),
        array(templates_KE, np.float64),
    )
    squared_NK = (
        (points_NE**2).sum(1)[:, None]
        - 2 * points_NE @ templates_KE.T
        + (templates_KE**2).sum(1)[None, :]
    )
    found: np.ndarray = np.sqrt(np.maximum(squared_NK, 0))
    return found


def kept(plane: Plane, points_NE: np.ndarray) -> float:
    """Share of the points' variance that a plane shows, 0..1; 0 where they do not vary."""
    whole = float(points_NE.var(0).sum())
    seen = float(project(plane, points_NE).var(0).sum())
    return min(seen / whole, 1.0) if whole > 0 else 0.0
