"""Training batches: order, augmentation, normalisation."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest, uniform

from lsexp.config import AugmentConfig
from lsexp.data.batches import Batches, Images, Preprocess, generator, input_shape

CPU = torch.device("cpu")
RNG = np.random.RandomState(0)


def pixels(channels):
    """The normalisation that changes nothing."""
    return Preprocess(None, torch.zeros(channels), torch.ones(channels))


def fit(how, images, crop=None):
    """Preprocess.fit for all of these images, a uint8 tensor."""
    labels = np.arange(len(images))
    return Preprocess.fit(how, Images.on(CPU, images.numpy(), labels, labels), crop)


def batches(images, labels=None, *, batch_size=4, seed=0, preprocess=None, **augment):
    if labels is None:
        labels = np.arange(len(images))
    return Batches(
        Images.on(CPU, images, labels, np.arange(len(images))),
        preprocess or pixels(images.shape[3]),
        AugmentConfig(**augment),
        batch_size=batch_size,
        seed=seed,
    )


def numbered(count):
    """Images of one pixel, each labelled with its index."""
    return np.arange(count, dtype=np.uint8).reshape(count, 1, 1, 1)


def labels_of(drawn, steps):
    return torch.cat([drawn(step)[1] for step in steps]).tolist()


# The order.


def test_every_pass_has_every_image_once_and_batches_straddle_passes():
    drawn = batches(numbered(10), batch_size=4)
    assert len(drawn) == 10
    seen = labels_of(drawn, range(10))
    assert len(seen) == 40
    for start in range(0, 40, 10):
        assert sorted(seen[start : start + 10]) == list(range(10))


def test_a_batch_may_be_larger_than_the_data():
    drawn = batches(numbered(3), batch_size=8)
    assert drawn(0)[0].shape == (8, 1, 1, 1)
    seen = labels_of(drawn, range(3))
    for start in range(0, 24, 3):
        assert sorted(seen[start : start + 3]) == [0, 1, 2]


def test_passes_differ_in_order():
    drawn = batches(numbered(50), batch_size=50)
    assert len({tuple(labels_of(drawn, [step])) for step in range(5)}) == 5


def test_labels_stay_with_their_images():
    images, labels = batches(numbered(200), batch_size=64)(0)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert images.flatten().tolist() == labels.tolist()


def test_any_step_can_be_asked_for_in_any_order():
    images = RNG.randint(0, 256, (7, 5, 5, 1)).astype(np.uint8)
    sequential = batches(images, shift=2)
    expected = [sequential(step) for step in range(20)]
    asked = batches(images, shift=2)
    for step in [19, 0, 7, 7, 1, *reversed(range(20)), 10]:
        for ours, theirs in zip(asked(step), expected[step], strict=True):
            assert torch.equal(ours, theirs)


def test_the_size_of_a_batch_does_not_change_the_order():
    fours, tens = batches(numbered(10), batch_size=4), batches(numbered(10), batch_size=10)
    assert labels_of(fours, range(5)) == labels_of(tens, range(2))


def test_seeds_differ_in_order_and_in_shifts():
    images = numbered(64)
    epochs = [batches(images, shift=2, seed=seed).epoch(0) for seed in range(4)]
    for draws in zip(*epochs, strict=True):
        assert len({tuple(draw.tolist()) for draw in draws}) == 4


def test_torchs_own_random_state_neither_matters_nor_moves():
    drawn = batches(numbered(10), shift=1)(0)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    again = batches(numbered(10), shift=1)(0)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(again[0], drawn[0])
    assert torch.equal(again[1], drawn[1])


def test_the_images_are_not_written_to():
    images = RNG.randint(0, 256, (6, 4, 4, 3)).astype(np.uint8)
    train = Images.on(CPU, images, np.arange(6), np.arange(6))
    for how in ("unit", "channel", "image"):
        preprocess = Preprocess.fit(how, train)
        Batches(train, preprocess, AugmentConfig(), batch_size=6, seed=0)(0)
        preprocess(train.pixels_MHWC)
    np.testing.assert_array_equal(train.pixels_MHWC.numpy(), images)


def test_images_are_taken_by_index_from_arrays_that_cannot_be_written(tmp_path):
    images = RNG.randint(0, 256, (6, 2, 2, 1)).astype(np.uint8)
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    labels = np.arange(6)
    labels.flags.writeable = False
    taken = Images.on(CPU, mapped, labels, np.array([4, 1]))
    np.testing.assert_array_equal(taken.take(torch.tensor([0, 1])).numpy(), images[[4, 1]])
    np.testing.assert_array_equal(torch.cat(list(taken.parts(1))).numpy(), images[[4, 1]])
    assert taken.shape == (2, 2, 1)
    assert taken.labels_N.tolist() == [4, 1]


# Random streams.


def test_generators_differ_by_seed_purpose_and_index():
    keys = [
        (seed, purpose, index)
        for seed in (0, 1, 11, 111)
        for purpose in ("init", "order", "augment", "dropout")
        for index in (0, 1, 11, 111)
    ]
    draws = {torch.randint(2**62, (1,), generator=generator(*key)).item() for key in keys}
    assert len(draws) == len(keys)


def test_the_seeds_of_generators_have_not_changed():
    assert generator(0, "order").initial_seed() == 3955691223199900983


def test_a_pass_draws_order_and_shifts_from_generators_of_their_own():
    drawn = batches(numbered(20), shift=2, seed=5).epoch(3)
    assert torch.equal(drawn.order_N, torch.randperm(20, generator=generator(5, "order", 3)))
    shifts = torch.randint(0, 5, (2, 20), generator=generator(5, "augment", 3))
    assert torch.equal(torch.stack([drawn.dy_N, drawn.dx_N]), shifts)


def test_augmentation_leaves_the_order_alone():
    images = RNG.randint(0, 256, (30, 4, 4, 1)).astype(np.uint8)
    plain, shifted = batches(images), batches(images, shift=1)
    assert labels_of(plain, range(20)) == labels_of(shifted, range(20))


# Shifts.


def shifted_by_hand(image, dy, dx, shift):
    """The window of the padded image whose top left corner is (dy, dx)."""
    height, width, _ = image.shape
    out = np.zeros_like(image)
    for y in range(height):
        for x in range(width):
            from_y, from_x = y + dy - shift, x + dx - shift
            if 0 <= from_y < height and 0 <= from_x < width:
                out[y, x] = image[from_y, from_x]
    return out


@pytest.mark.parametrize("shift", [0, 1, 3])
@pytest.mark.parametrize("channels", [1, 3])
def test_windows_are_those_of_a_loop_over_images(shift, channels):
    images = RNG.randint(1, 256, (11, 5, 6, channels)).astype(np.uint8)
    drawn = batches(images, shift=shift, batch_size=22)
    found, labels = drawn(0)
    first, second = drawn.epoch(0), drawn.epoch(1)
    order, dy, dx, *_ = (torch.cat(draws).tolist() for draws in zip(first, second, strict=True))
    assert labels.tolist() == order
    for i in range(22):
        expected = shifted_by_hand(images[order[i]], dy[i], dx[i], shift)
        np.testing.assert_array_equal(found[i].permute(1, 2, 0).numpy(), expected)


def test_without_shift_images_come_as_they_are():
    images = RNG.randint(0, 256, (8, 5, 6, 3)).astype(np.uint8)
    found, labels = batches(images, batch_size=8)(0)
    np.testing.assert_array_equal(found.permute(0, 2, 3, 1).numpy(), images[labels])


def test_all_shifts_are_about_equally_likely():
    shift, count = 2, 20_000
    images = np.zeros((count, 7, 7, 1), np.uint8)
    images[:, 3, 3] = 1
    found, _ = batches(images, shift=shift, batch_size=count)(0)
    lit = found.reshape(count, 49).argmax(1)
    moved = torch.stack([lit // 7 - 3, lit % 7 - 3])
    assert moved.abs().max() == shift
    cells = torch.bincount((moved[0] + shift) * 5 + moved[1] + shift, minlength=25)
    assert chisquare(cells.numpy()).pvalue > 0.001


def test_zeros_move_in():
    white = np.full((500, 3, 4, 1), 255, np.uint8)
    found, _ = batches(white, shift=1, batch_size=500)(0)
    assert set(found.unique().tolist()) == {0.0, 255.0}
    left = (found > 0).sum((1, 2, 3))
    # 3 x 4 pixels, less a row, a column or both.
    assert set(left.tolist()) == {12, 8, 9, 6}


def test_zeros_move_in_before_the_normalisation():
    white = np.full((50, 3, 3, 1), 200, np.uint8)
    preprocess = Preprocess(None, torch.tensor([100.0]), torch.tensor([0.5]))
    found, _ = batches(white, shift=1, batch_size=50, preprocess=preprocess)(0)
    assert set(found.unique().tolist()) == {-50.0, 50.0}


def test_shifts_of_a_pass_do_not_repeat_in_the_next():
    drawn = batches(numbered(100), shift=2)
    assert not torch.equal(drawn.epoch(0).dy_N, drawn.epoch(1).dy_N)
    assert not torch.equal(drawn.epoch(0).dx_N, drawn.epoch(1).dx_N)
    assert not torch.equal(drawn.epoch(0).dx_N, drawn.epoch(0).dy_N)


# Channels and normalisation.


def test_colours_stay_in_their_channels():
    images = np.zeros((3, 2, 4, 3), np.uint8)
    for channel in range(3):
        images[channel, ..., channel] = 10 + channel
    found, labels = batches(images, batch_size=3)(0)
    assert found.shape == (3, 3, 2, 4)
    for image, label in zip(found, labels.tolist(), strict=True):
        expected = [10.0 + label if channel == label else 0.0 for channel in range(3)]
        assert image.amax((1, 2)).tolist() == expected
        assert image.amin((1, 2)).tolist() == expected


def test_batches_are_channels_last_in_memory():
    images = RNG.randint(0, 256, (6, 5, 4, 3)).astype(np.uint8)
    found, _ = batches(images, shift=1, batch_size=6)(0)
    assert found.is_contiguous(memory_format=torch.channels_last)


COLOURS = RNG.randint(0, 256, (50, 5, 6, 3)).astype(np.uint8) // np.array([1, 2, 5], np.uint8)


def by_hand(how, train, images):
    """In float64; NHWC."""
    train, images = train.astype(np.float64), images.astype(np.float64)
    if how == "unit":
        return images / 255
    if how == "channel":
        return (images - train.mean((0, 1, 2))) / train.std((0, 1, 2))
    size = images[0].size
    mean = images.mean((1, 2, 3), keepdims=True)
    std = images.std((1, 2, 3), keepdims=True)
    return (images - mean) / np.maximum(std, size**-0.5)


@pytest.mark.parametrize("how", ["unit", "channel", "image"])
@pytest.mark.parametrize("channels", [1, 3])
def test_normalisation_is_that_of_numpy(how, channels):
    train, others = COLOURS[:30, ..., :channels], COLOURS[30:, ..., :channels]
    preprocess = fit(how, torch.from_numpy(train.copy()))
    for images in (train, others):
        found = preprocess(torch.from_numpy(images.copy())).permute(0, 2, 3, 1).numpy()
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, by_hand(how, train, images), rtol=1e-5, atol=2e-6)


def test_unit_pixels_end_at_exactly_zero_and_one():
    preprocess = fit("unit", torch.zeros(1, 1, 1, 1, dtype=torch.uint8))
    ends = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1)
    assert preprocess(ends).flatten().tolist() == [0.0, 1.0]


def test_channel_statistics_are_exact():
    images = torch.from_numpy(COLOURS)
    preprocess = fit("channel", images)
    flat = COLOURS.reshape(-1, 3).astype(np.float64)
    np.testing.assert_array_equal(preprocess.shift_C.numpy(), flat.mean(0).astype(np.float32))
    np.testing.assert_allclose(1 / preprocess.scale_C.numpy(), flat.std(0), rtol=2e-7)
    again = fit("channel", images.flip(0))
    assert torch.equal(again.shift_C, preprocess.shift_C)
    assert torch.equal(again.scale_C, preprocess.scale_C)


def test_channel_normalisation_survives_a_constant_channel():
    images = torch.from_numpy(COLOURS.copy())
    images[..., 1] = 77
    found = fit("channel", images)(images)
    assert found.isfinite().all()
    assert found[:, 1].abs().max() == 0


@pytest.mark.parametrize("value", [0, 1, 77, 255])
def test_image_normalisation_of_a_constant_image_is_zero(value):
    images = torch.full((2, 32, 32, 3), value, dtype=torch.uint8)
    found = fit("image", images)(images)
    assert found.isfinite().all()
    assert found.abs().max() == 0


def test_image_normalisation_of_an_almost_constant_image_is_floored():
    images = torch.zeros(1, 5, 5, 4, dtype=torch.uint8)
    images[0, 0, 0, 0] = 1
    found = fit("image", images)(images)
    # Mean 0.01; std sqrt(0.01 x 0.99) is less than the floor 1 / sqrt(100).
    torch.testing.assert_close(found.max(), torch.tensor(9.9))
    torch.testing.assert_close(found.min(), torch.tensor(-0.1))


def test_image_normalisation_does_not_depend_on_the_other_images():
    preprocess = fit("image", torch.from_numpy(COLOURS))
    alone = preprocess(torch.from_numpy(COLOURS[:1]))
    torch.testing.assert_close(preprocess(torch.from_numpy(COLOURS))[:1], alone)


# Crops, flips, brightness and contrast.


def ramp(count, height, width, channels=1):
    """Images in which every pixel of an image has a value of its own."""
    return RNG.randint(0, 256, (count, height, width, channels)).astype(np.uint8)


@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("crop", [1, 4, 5])
def test_crops_are_those_of_a_loop_over_images(shift, crop):
    images = ramp(11, 5, 6, 3)
    drawn = batches(images, shift=shift, crop=crop, batch_size=11)
    found, labels = drawn(0)
    assert found.shape == (11, 3, crop, crop)
    padded = np.pad(images, ((0, 0), (shift, shift), (shift, shift), (0, 0)))
    draws = drawn.epoch(0)
    for i, (y, x) in enumerate(zip(draws.dy_N.tolist(), draws.dx_N.tolist(), strict=True)):
        expected = padded[labels[i], y : y + crop, x : x + crop]
        np.testing.assert_array_equal(found[i].permute(1, 2, 0).numpy(), expected)


def test_the_papers_crops_and_flips_are_about_equally_likely():
    """24 of 32: 81 windows, each mirrored or not."""
    count = 40_000
    images = np.zeros((count, 32, 32, 1), np.uint8)
    images[:, 15, 15] = 1  # in every window, and in another place in each
    images[:, 15, 16] = 2
    found, _ = batches(images, crop=24, flip=True, batch_size=count)(0)
    flat = found.reshape(count, 24 * 24)
    one, two = flat.eq(1).int().argmax(1), flat.eq(2).int().argmax(1)
    assert set((two - one).tolist()) == {1, -1}  # beside each other, in both orders
    flipped = (two < one).int()
    top = 15 - one // 24
    column = one % 24
    left = torch.where(flipped == 1, 15 - (23 - column), 15 - column)
    assert (top.min(), top.max(), left.min(), left.max()) == (0, 8, 0, 8)
    cells = torch.bincount((top * 9 + left) * 2 + flipped, minlength=162)
    assert chisquare(cells.numpy()).pvalue > 0.001


def test_a_flip_mirrors_left_and_right_only():
    images = ramp(50, 3, 4, 3)
    drawn = batches(images, flip=True, batch_size=50)
    found, labels = drawn(0)
    flips = drawn.epoch(0).flip_N.tolist()
    assert 10 < sum(flips) < 40
    for image, label, flipped in zip(found, labels.tolist(), flips, strict=True):
        expected = images[label][:, ::-1] if flipped else images[label]
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), expected)


def test_brightness_and_contrast_are_tensorflows_formula():
    images = ramp(20, 5, 4, 3)
    drawn = batches(images, brightness=63, contrast=0.8, batch_size=20)
    found, labels = drawn(0)
    draws = drawn.epoch(0)
    for i in range(20):
        image = images[labels[i]].astype(np.float64) + 63 * draws.brightness_N[i].item()
        mean = image.mean((0, 1))
        expected = (image - mean) * (1 + 0.8 * draws.contrast_N[i].item()) + mean
        np.testing.assert_allclose(
            found[i].permute(1, 2, 0).numpy(), expected, rtol=1e-5, atol=1e-4
        )


def test_brightness_is_uniform_and_the_same_for_all_pixels_of_an_image():
    grey = np.full((20_000, 2, 2, 3), 100, np.uint8)
    found, _ = batches(grey, brightness=63, batch_size=20_000)(0)
    assert (found.amax((1, 2, 3)) - found.amin((1, 2, 3))).max() < 1e-4
    added = found[:, 0, 0, 0] - 100
    assert kstest(added.numpy(), uniform(-63, 126).cdf).pvalue > 0.001


def test_contrast_is_uniform():
    images = np.zeros((20_000, 1, 2, 1), np.uint8)
    images[:, 0, 1] = 100
    found, _ = batches(images, contrast=0.8, batch_size=20_000)(0)
    factor = (found[:, 0, 0, 1] - found[:, 0, 0, 0]) / 100
    assert kstest(factor.numpy(), uniform(0.2, 1.6).cdf).pvalue > 0.001
    assert found.mean((1, 2, 3)).sub(50).abs().max() < 1e-4


def test_brightness_goes_unseen_where_each_image_is_standardised():
    images = ramp(30, 6, 6, 3)
    image = fit("image", torch.from_numpy(images))
    plain, _ = batches(images, contrast=0.8, batch_size=30, preprocess=image)(0)
    bright, _ = batches(images, contrast=0.8, brightness=63, batch_size=30, preprocess=image)(0)
    torch.testing.assert_close(plain, bright, rtol=1e-4, atol=1e-4)


def test_switching_one_on_leaves_the_draws_of_the_others():
    images = ramp(40, 6, 6)
    shifted = batches(images, shift=1, crop=4).epoch(0)
    all_on = batches(images, shift=1, crop=4, flip=True, brightness=9, contrast=0.5).epoch(0)
    for one, other in zip(shifted, all_on, strict=True):
        assert torch.equal(one, other)


def test_draws_of_a_kind_are_independent_of_each_other():
    draws = batches(numbered(250), shift=40).epoch(0)
    values = torch.stack([draw.double() for draw in draws])
    off_diagonal = torch.corrcoef(values) - torch.eye(len(values))
    assert off_diagonal.abs().max() < 5 / 250**0.5


@pytest.mark.parametrize(("size", "crop", "start"), [(32, 24, 4), (5, 3, 1), (5, 2, 1), (4, 4, 0)])
def test_evaluation_takes_the_centre(size, crop, start):
    images = torch.from_numpy(ramp(3, size, size, 3))
    found = fit("unit", images, crop)(images)
    window = images[:, start : start + crop, start : start + crop]
    torch.testing.assert_close(found, window.permute(0, 3, 1, 2) / 255)


def test_standardisation_is_of_the_window_not_of_the_image():
    images = torch.from_numpy(ramp(4, 32, 32, 3))
    found = fit("image", images, 24)(images)
    torch.testing.assert_close(found.mean((1, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.std((1, 2, 3), correction=0), torch.ones(4))


def test_input_shape():
    assert input_shape((32, 30, 3), AugmentConfig(crop=24)) == (24, 24, 3)
    assert input_shape((28, 28, 1), AugmentConfig(shift=2)) == (28, 28, 1)


@pytest.mark.gpu
def test_a_gpu_trains_on_the_same_batches():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    images, labels = ramp(100, 32, 32, 3), np.arange(100)
    augment = AugmentConfig(shift=4, crop=24, flip=True, brightness=63, contrast=0.8)
    found = []
    for device in ("cpu", "cuda"):
        train = Images.on(torch.device(device), images, labels, labels)
        preprocess = Preprocess.fit("channel", train, 24)
        drawn = Batches(train, preprocess, augment, batch_size=32, seed=3)
        found.append([part.cpu() for step in range(7) for part in drawn(step)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
