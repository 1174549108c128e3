"""The plane of three templates: by hand, by invariance, against scikit-learn and SciPy."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA

from lsexp.analysis import projections as geometry

RNG = np.random.default_rng(0)
THREE = RNG.normal(size=(3, 20))
POINTS = RNG.normal(size=(60, 20)) * np.geomspace(5, 0.1, 20)
LABELS = np.arange(60) % 3


def test_templates_and_activations_give_the_logits():
    weight, bias = RNG.normal(size=(10, 7)), RNG.normal(size=10)
    features = RNG.normal(size=(5, 7))
    logits = geometry.activations(features) @ geometry.templates(weight, bias).T
    np.testing.assert_allclose(logits, features @ weight.T + bias, rtol=1e-12)


def test_templates_keep_their_distances_and_are_centred_in_their_plane():
    corners = geometry.project(geometry.plane_of(THREE), THREE)
    np.testing.assert_allclose(corners.mean(0), 0, atol=1e-12)
    flat = [np.linalg.norm(corners[i] - corners[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    np.testing.assert_allclose(flat, geometry.sides(THREE), rtol=1e-12)
    assert corners[0, 1] == pytest.approx(corners[1, 1])  # the first side lies along x
    assert corners[1, 0] > corners[0, 0]
    assert corners[2, 1] > corners[0, 1]


def test_the_basis_is_orthonormal_and_lies_in_the_plane():
    plane = geometry.plane_of(THREE)
    np.testing.assert_allclose(plane.basis_E2.T @ plane.basis_E2, np.eye(2), atol=1e-12)
    sides = (THREE[1:] - THREE[0]).T
    np.testing.assert_allclose(plane.basis_E2 @ (plane.basis_E2.T @ sides), sides, atol=1e-12)


def test_turning_or_moving_everything_changes_no_picture():
    turn, _ = np.linalg.qr(RNG.normal(size=(20, 20)))
    shift = RNG.normal(size=20)
    before = geometry.project(geometry.plane_of(THREE), POINTS)
    plane = geometry.plane_of(THREE @ turn + shift)
    np.testing.assert_allclose(geometry.project(plane, POINTS @ turn + shift), before, atol=1e-9)


def test_a_projection_is_the_nearest_point_of_the_plane():
    plane = geometry.plane_of(THREE)
    coordinates = geometry.project(plane, POINTS)
    # Least squares over the two sides of the triangle instead of a basis.
    sides = (THREE[1:] - THREE[0]).T
    solved = np.linalg.lstsq(sides, (POINTS - THREE[0]).T, rcond=None)[0]
    nearest = THREE[0] + (sides @ solved).T
    np.testing.assert_allclose(plane.origin_E + coordinates @ plane.basis_E2.T, nearest, atol=1e-10)


@pytest.mark.parametrize(
    "three",
    [np.zeros((3, 5)), np.outer([0.0, 1.0, 3.0], np.ones(5)), np.ones((3, 5)) * [[1], [1], [2]]],
)
def test_templates_on_a_line_have_no_plane(three):
    with pytest.raises(ValueError, match="on a line"):
        geometry.plane_of(three)


def test_the_principal_plane_is_pca_within_the_span():
    span, _ = np.linalg.qr(THREE.T)
    plane = geometry.principal_plane(THREE, POINTS)
    theirs = PCA(2).fit_transform(POINTS @ span)
    ours = geometry.project(plane, POINTS)
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), atol=1e-9)
    corners = geometry.project(plane, THREE)
    assert corners[1, 0] > corners[0, 0]
    assert corners[2, 1] > (corners[0, 1] + corners[1, 1]) / 2


def test_the_principal_plane_needs_three_dimensions():
    with pytest.raises(ValueError, match="less than three"):
        geometry.principal_plane(np.eye(20)[[0, 1, 1]], POINTS)
    with pytest.raises(ValueError, match="less than three"):
        geometry.principal_plane(np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]), POINTS[:, :2])


def test_of_a_regular_simplex_the_sides_are_equal():
    simplex = np.eye(10)[[2, 5, 7]] - 0.1
    np.testing.assert_allclose(geometry.sides(simplex), np.sqrt(2), rtol=1e-12)


def test_scatter_adds_up_to_the_variance():
    within, between = geometry.scatter(POINTS, LABELS)
    assert within + between == pytest.approx(POINTS.var(0).sum())  # classes of equal size


def test_scatter_counts_classes_alike_and_collapses_to_zero():
    points = np.array([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [4.0, 0.0]])
    assert geometry.scatter(points, np.array([0, 0, 0, 1])) == (0, 4)


def test_scatter_is_invariant_to_turning_and_scales_with_the_square():
    turn, _ = np.linalg.qr(RNG.normal(size=(20, 20)))
    before = geometry.scatter(POINTS, LABELS)
    np.testing.assert_allclose(geometry.scatter(POINTS @ turn + 3, LABELS), before)
    np.testing.assert_allclose(geometry.scatter(5 * POINTS, LABELS), 25 * np.array(before))


def test_distances_are_scipys():
    np.testing.assert_allclose(geometry.distances(POINTS, THREE), cdist(POINTS, THREE), rtol=1e-9)
    assert geometry.distances(THREE, THREE).diagonal().max() < 1e-6


def test_the_share_of_variance_kept():
    plane = geometry.plane_of(THREE)
    flat = geometry.project(plane, POINTS) @ plane.basis_E2.T + plane.origin_E
    assert geometry.kept(plane, flat) == pytest.approx(1)
    assert 0 < geometry.kept(plane, POINTS) < 1
    assert geometry.kept(plane, np.ones((4, 20))) == 0


def test_tsne_is_repeatable_and_separates_far_clusters():
    features = np.concatenate([RNG.normal(size=(20, 8)) + 50 * k for k in range(3)])
    labels = np.repeat(np.arange(3), 20)
    found = geometry.tsne(features)
    np.testing.assert_array_equal(found, geometry.tsne(features))
    within, between = geometry.scatter(found, labels)
    assert within < between


@pytest.mark.parametrize("features", [np.zeros((24, 6)), RNG.normal(size=(3, 6))])
def test_tsne_of_nothing_is_refused(features):
    with pytest.raises(ValueError, match="t-SNE needs"):
        geometry.tsne(features)


def test_tsne_of_a_single_feature():
    assert np.isfinite(geometry.tsne(RNG.normal(size=(24, 1)))).all()


def test_shapes_that_do_not_fit_are_refused():
    plane = geometry.plane_of(THREE)
    for call in (
        lambda: geometry.templates(np.ones((3, 5)), np.ones(2)),
        lambda: geometry.templates(np.ones(3), np.ones(3)),
        lambda: geometry.activations(np.ones(3)),
        lambda: geometry.plane_of(POINTS[:4]),
        lambda: geometry.plane_of(POINTS[0]),
        lambda: geometry.project(plane, POINTS[0]),
        lambda: geometry.project(plane, POINTS[:, :5]),
        lambda: geometry.scatter(POINTS, LABELS[:1]),
        lambda: geometry.scatter(POINTS[:, 0], LABELS),
        lambda: geometry.scatter(POINTS[:0], LABELS[:0]),
    ):
        with pytest.raises(ValueError, match="must be"):
            call()


def test_lists_give_what_arrays_give():
    plane = geometry.plane_of(THREE.tolist())
    expected = geometry.project(geometry.plane_of(THREE), POINTS)
    np.testing.assert_array_equal(geometry.project(plane, POINTS.tolist()), expected)
    found = geometry.scatter(POINTS.tolist(), LABELS.tolist())
    assert found == geometry.scatter(POINTS, LABELS)
    assert geometry.templates([[1, 2]], [3]).dtype == np.float64
