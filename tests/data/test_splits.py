"""Train and val by index."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsexp.config import DataConfig
from lsexp.data import Dataset, draw_splits
from lsexp.data.canonical import Arrays
from lsexp.data.splits import stratified_order
from lsexp.errors import UserError


def labelled(labels):
    """A data set of which only the training labels matter."""
    labels = np.asarray(labels, dtype=np.int64)
    nothing = np.zeros((len(labels), 1, 1, 1), np.uint8)
    classes = tuple(str(k) for k in range(labels.max() + 1))
    return Dataset("toy", Arrays(nothing, labels, nothing[:1], labels[:1], classes), "", "")


def balanced(size, classes=10):
    return labelled(np.arange(size) % classes)


def of_each(dataset, which):
    return np.bincount(dataset.arrays.train_labels[which], minlength=dataset.num_classes)


UNEVEN = labelled(np.random.RandomState(1).permutation(np.repeat([0, 1, 2, 3], [301, 97, 50, 9])))


# Sizes.


@pytest.mark.parametrize(
    ("size", "train", "val"),
    [
        (60_000, 50_000, 10_000),
        (50_000, 40_000, 10_000),
        (200_000, 190_000, 10_000),
        (1_000, 800, 200),
        (1_438, 1_150, 288),
        (20, 16, 4),
    ],
)
def test_val_is_a_fifth_and_at_most_ten_thousand(size, train, val):
    splits = draw_splits(balanced(size), DataConfig())
    assert (len(splits.train), len(splits.val)) == (train, val)


def test_full_trains_on_everything():
    train, val = draw_splits(UNEVEN, DataConfig(split="full"))
    np.testing.assert_array_equal(train, np.arange(457))
    assert len(val) == 0
    assert val.dtype == np.int64


@pytest.mark.parametrize(("split", "most"), [("holdout", 366), ("full", 457)])
def test_train_size_may_be_everything_and_no_more(split, most):
    splits = draw_splits(UNEVEN, DataConfig(split=split, train_size=most))
    assert len(splits.train) == most
    with pytest.raises(UserError, match=rf"data\.train_size={most + 1}: must be at most {most}"):
        draw_splits(UNEVEN, DataConfig(split=split, train_size=most + 1))


# What is drawn.


def test_train_and_val_share_no_image_and_leave_none_out():
    train, val = draw_splits(UNEVEN, DataConfig())
    np.testing.assert_array_equal(np.sort(np.concatenate([train, val])), np.arange(457))


def test_indices_ascend():
    for indices in draw_splits(UNEVEN, DataConfig(train_size=100)):
        assert (np.diff(indices) > 0).all()
        assert indices.dtype == np.int64


def test_both_are_stratified():
    train, val = draw_splits(UNEVEN, DataConfig(train_size=100))
    # 91 of 457: 59.94, 19.32, 9.96, 1.79.
    assert of_each(UNEVEN, val).tolist() == [60, 19, 10, 2]
    # 100 of the remaining 241, 78, 40, 7: 65.8, 21.3, 10.9, 1.9.
    assert of_each(UNEVEN, train).tolist() == [66, 21, 11, 2]


def test_val_does_not_depend_on_train_size():
    whole = draw_splits(UNEVEN, DataConfig()).val
    for size in (60, 100, 366):
        np.testing.assert_array_equal(draw_splits(UNEVEN, DataConfig(train_size=size)).val, whole)


@pytest.mark.parametrize("split", ["holdout", "full"])
def test_smaller_train_sizes_are_subsets_of_larger_ones(split):
    dataset, smaller = UNEVEN, set()
    for size in [*range(60, 120), 200, 366]:
        train = set(draw_splits(dataset, DataConfig(split=split, train_size=size)).train.tolist())
        assert len(train) == size
        assert smaller <= train
        smaller = train


def test_split_seed_moves_the_split_and_only_it_does():
    first = draw_splits(UNEVEN, DataConfig())
    np.random.seed(1)
    for one, other in zip(first, draw_splits(UNEVEN, DataConfig()), strict=True):
        np.testing.assert_array_equal(one, other)
    others = [draw_splits(UNEVEN, DataConfig(split_seed=seed)) for seed in (1, 2, 2**32 - 1)]
    assert len({tuple(splits.val) for splits in [first, *others]}) == 4


def test_another_subset_comes_with_another_split_seed_in_full_too():
    first, second = (
        draw_splits(UNEVEN, DataConfig(split="full", train_size=50, split_seed=seed)).train
        for seed in (0, 1)
    )
    assert first.tolist() != second.tolist()


def test_every_image_is_held_out_about_as_often():
    dataset = balanced(20, classes=2)
    held = [draw_splits(dataset, DataConfig(split_seed=seed)).val for seed in range(500)]
    # Binomial(500, .2): mean 100, standard deviation 9.
    assert np.abs(np.bincount(np.concatenate(held), minlength=20) - 100).max() < 4 * 9


def test_the_random_stream_has_not_changed():
    dataset = balanced(30, classes=3)
    train, val = draw_splits(dataset, DataConfig(train_size=9))
    assert train.tolist() == [3, 4, 7, 12, 14, 17, 26, 27, 28]
    assert val.tolist() == [6, 8, 10, 11, 16, 24]
    assert draw_splits(dataset, DataConfig(split_seed=1)).val.tolist() == [6, 11, 16, 26, 27, 28]


# Tiny sets.


def test_a_class_with_a_single_image_keeps_it_for_training():
    dataset = labelled([0] * 50 + [1] * 50 + [2])
    train, val = draw_splits(dataset, DataConfig())
    assert of_each(dataset, val).tolist() == [10, 10, 0]
    assert of_each(dataset, train).tolist() == [40, 40, 1]


def test_two_images_are_both_for_training():
    train, val = draw_splits(labelled([0, 1]), DataConfig())
    assert (train.tolist(), val.tolist()) == ([0, 1], [])


def test_a_class_without_a_training_image_is_refused_by_name():
    with pytest.raises(UserError, match=r"data\.train_size=5: leaves no training image of class 3"):
        draw_splits(UNEVEN, DataConfig(train_size=5))
    with pytest.raises(UserError, match=r"leaves no training image of class 0 .* data\.split=full"):
        draw_splits(labelled([0, 1, 2, 3, 4]), DataConfig())


# The order behind it.


@settings(deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=300), st.integers(0, 2**32 - 1))
def test_every_stretch_of_the_order_holds_the_classes_in_proportion(labels, seed):
    labels = np.array(labels)
    order = stratified_order(labels, seed)
    assert sorted(order.tolist()) == list(range(len(labels)))
    counts = np.cumsum(labels[order][:, None] == np.arange(7), axis=0)
    exact = np.arange(1, len(labels) + 1)[:, None] * (
        np.bincount(labels, minlength=7) / len(labels)
    )
    # Rounding of seven classes: half an image each, shared by size.
    assert np.abs(counts - exact).max() <= 1 + 7 / 2


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(2, 9), st.integers(0, 2**32 - 1))
def test_classes_of_equal_size_differ_by_one_at_most(size, classes, seed):
    labels = np.arange(size * classes) % classes
    order = stratified_order(labels, seed)
    counts = np.cumsum(labels[order][:, None] == np.arange(classes), axis=0)
    assert (counts.max(axis=1) - counts.min(axis=1)).max() <= 1


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=80),
    st.sampled_from(["holdout", "full"]),
    st.integers(0, 2**32 - 1),
    st.data(),
)
def test_splits_of_anything_are_disjoint_and_as_large_as_asked(labels, split, seed, data):
    dataset = labelled(labels)
    held = 0 if split == "full" else round(len(labels) / 5)
    size = data.draw(st.integers(1, len(labels) - held))
    config = DataConfig(split=split, split_seed=seed, train_size=size)
    try:
        train, val = draw_splits(dataset, config)
    except UserError:  # a class without a training image: see above
        return
    assert (len(train), len(val)) == (size, held)
    assert len(set(train.tolist()) | set(val.tolist())) == size + held
    assert set(train.tolist()) | set(val.tolist()) <= set(range(len(labels)))
    assert of_each(dataset, train).min() >= 1
