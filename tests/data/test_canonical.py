"""The content digest, the canonical order, and imported copies."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from lsexp.config import DataConfig
from lsexp.data import load, sources
from lsexp.data.canonical import Arrays, canonical, order_and_digest

RNG = np.random.RandomState(0)
IMAGES = RNG.randint(0, 256, (40, 3, 4, 3)).astype(np.uint8)
LABELS = np.arange(40) % 4


def make(images=IMAGES, labels=LABELS, classes="abcd", name="toy"):
    """A data set whose test set is its first four training images."""
    arrays = Arrays(images, labels, images[:4], labels[:4], tuple(classes))
    return canonical(name, arrays)


def sha(content):
    return hashlib.sha256(content).digest()


# Digest and order.


def test_digest_and_order_of_three_pixels():
    one, two, three = (sha(bytes([pixel, label])) for pixel, label in ((7, 0), (0, 1), (255, 1)))
    images = np.array([7, 0, 255], np.uint8).reshape(3, 1, 1, 1)
    order, digest = order_and_digest(images, np.array([0, 1, 1]))
    hashes = [one, two, three]
    assert [hashes[i] for i in order] == sorted(hashes)
    assert digest == hashlib.sha256(b"".join(sorted(hashes))).hexdigest()


def test_digest_of_nothing():
    order, digest = order_and_digest(IMAGES[:0], LABELS[:0])
    assert order.tolist() == []
    assert digest == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_images_and_labels_stay_together():
    arrays = make().arrays
    pairs = {image.tobytes(): label for image, label in zip(IMAGES, LABELS, strict=True)}
    assert len(pairs) == len(arrays.train_labels)
    for image, label in zip(arrays.train_images, arrays.train_labels, strict=True):
        assert pairs[image.tobytes()] == label


def test_order_as_found_does_not_matter():
    shuffle = RNG.permutation(40)
    test = np.array([3, 0, 2, 1])
    shuffled = Arrays(
        IMAGES[shuffle], LABELS[shuffle], IMAGES[:4][test], LABELS[:4][test], tuple("abcd")
    )
    ours, theirs = canonical("toy", shuffled), make()
    assert ours.digest == theirs.digest
    for one, other in zip(ours.arrays, theirs.arrays, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_data_set_in_canonical_order_stays_as_it_is():
    once = make()
    twice = canonical("toy", once.arrays)
    assert twice.digest == once.digest
    np.testing.assert_array_equal(twice.arrays.train_images, once.arrays.train_images)


def test_images_that_occur_twice_are_kept():
    doubled = make(np.concatenate([IMAGES, IMAGES]), np.concatenate([LABELS, LABELS]))
    assert len(doubled.arrays.train_labels) == 80
    assert doubled.train_digest != make().train_digest


def test_one_pixel_or_one_label_changes_the_digest():
    pixel, label = IMAGES.copy(), LABELS.copy()
    pixel[39, 2, 3, 2] ^= 1
    label[39] = 0
    digests = {make().train_digest, make(pixel).train_digest, make(labels=label).train_digest}
    assert len(digests) == 3


def test_swapping_two_labels_changes_the_digest():
    swapped = LABELS.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    assert make(labels=swapped).train_digest != make().train_digest


def test_the_test_set_has_a_digest_of_its_own():
    arrays = Arrays(IMAGES, LABELS, IMAGES[:5], LABELS[:5], tuple("abcd"))
    other = canonical("toy", arrays)
    assert other.train_digest == make().train_digest
    assert other.test_digest != make().test_digest
    assert other.digest != make().digest


def test_the_same_bytes_in_another_shape_are_other_data():
    turned = make(IMAGES.reshape(40, 4, 3, 3))
    assert turned.train_digest == make().train_digest
    assert turned.digest != make().digest


def test_a_class_more_is_other_data_but_names_do_not_count():
    assert make(classes="wxyz", name="other").digest == make().digest
    assert make(classes="abcde").digest != make().digest


@pytest.mark.parametrize("number", [257, 300])
def test_more_than_256_classes_take_eight_bytes_a_label(number):
    images = np.zeros((600, 1, 1, 1), np.uint8)
    labels = np.arange(600) % number
    dataset = make(images, labels, classes=[str(k) for k in range(number)])
    hashes = sorted(sha(bytes(1) + int(label).to_bytes(8, "little")) for label in labels)
    assert dataset.train_digest == hashlib.sha256(b"".join(hashes)).hexdigest()
    assert sorted(dataset.arrays.train_labels.tolist()) == sorted(labels.tolist())


def test_256_classes_still_fit_one_byte():
    labels = np.arange(256)
    dataset = make(np.zeros((256, 1, 1, 1), np.uint8), labels, classes=[str(k) for k in labels])
    hashes = sorted(sha(bytes([0, label])) for label in range(256))
    assert dataset.train_digest == hashlib.sha256(b"".join(hashes)).hexdigest()


# Imported copies.


@pytest.fixture
def source(tmp_path):
    return write(tmp_path / "own.npz", IMAGES)


def write(path, images):
    path.parent.mkdir(exist_ok=True)
    classes = np.array(["a", "ß", "犬", "d"])
    np.savez(
        path, x_train=images, y_train=LABELS, x_test=images[:4], y_test=LABELS[:4], classes=classes
    )
    return path


def get(source, data_dir=None):
    config = DataConfig(name="npz", path=str(source))
    return load(config, str(data_dir or source.parent / "data"))


def copies(source):
    return sorted((source.parent / "data" / "imported").iterdir())


@pytest.fixture
def reads(monkeypatch):
    """The files that were read, as a list that grows."""
    found = []

    def read(path, real=sources.read_npz):
        found.append(path)
        return real(path)

    monkeypatch.setattr(sources, "read_npz", read)
    return found


def same(one, other):
    assert (one.name, one.digest) == (other.name, other.digest)
    for ours, theirs in zip(one.arrays, other.arrays, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_second_load_maps_the_copy_and_does_not_read_the_source(source, reads):
    first = get(source)
    second = get(source)
    assert reads == [source]
    same(second, first)
    for array in second.arrays[:4]:
        assert isinstance(array, np.memmap)
        assert not array.flags.writeable


def test_the_copy_is_in_canonical_order(source):
    get(source)
    copy = get(source)
    again = canonical("own", copy.arrays)
    assert (again.train_digest, again.test_digest) == (copy.train_digest, copy.test_digest)
    np.testing.assert_array_equal(again.arrays.train_images, copy.arrays.train_images)


def test_a_copy_serves_every_way_to_name_its_source(source, reads, monkeypatch):
    get(source)
    monkeypatch.chdir(source.parent)
    (source.parent / "link").symlink_to(source.parent)
    data = source.parent / "data"
    get("own.npz", data)
    get("./link/own.npz", data)
    assert reads == [source]


def test_a_changed_source_is_imported_anew_and_the_old_copy_removed(source, reads):
    old = get(source)
    (before,) = copies(source)
    write(source, 255 - IMAGES)
    os.utime(source, ns=(0, 0))  # whatever the clock's resolution
    new = get(source)
    (after,) = copies(source)
    assert len(reads) == 2
    assert before != after
    assert new.digest != old.digest
    same(get(source), new)


def test_a_source_of_another_size_at_the_same_time_is_imported_anew(source, reads):
    get(source)
    times = source.stat()
    write(source, np.concatenate([IMAGES, IMAGES], axis=1))
    os.utime(source, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert get(source).image_shape == (6, 4, 3)
    assert len(copies(source)) == 1


def shorten(path, by):
    path.write_bytes(path.read_bytes()[:-by])


DAMAGES = {
    "pixels cut off": lambda copy: shorten(copy / "train_images.npy", 1),
    "labels cut off": lambda copy: shorten(copy / "test_labels.npy", 8),
    "header cut off": lambda copy: (copy / "train_labels.npy").write_bytes(b"\x93NUMPY\x01"),
    "zeros": lambda copy: (copy / "test_images.npy").write_bytes(bytes(500)),
    "array missing": lambda copy: (copy / "test_images.npy").unlink(),
    "folder missing": lambda copy: shutil.rmtree(copy),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_copy_is_made_again(source, reads, damage):
    first = get(source)
    (copy,) = copies(source)
    DAMAGES[damage](copy)
    same(get(source), first)
    assert len(reads) == 2
    same(get(source), first)
    assert len(reads) == 2
    assert len(copies(source)) == 1


def test_a_copy_without_its_meta_file_is_not_used(source, reads):
    first = get(source)
    (copy,) = copies(source)
    (copy / "meta.json").unlink()
    same(get(source), first)
    assert len(reads) == 2


def test_without_write_access_there_is_no_copy(source, reads, monkeypatch, tmp_path):
    file = tmp_path / "file"
    file.touch()
    first = get(source, file / "data")

    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    same(get(source), first)
    assert len(reads) == 2
    assert not (source.parent / "data").exists()


def test_a_full_disk_leaves_no_half_copy(source, reads, monkeypatch):
    def save(file, array, real=np.save):
        if "test" in file.name:
            raise OSError(28, "No space left on device")
        real(file, array)

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", save)
        first = get(source)
    assert copies(source) == []
    same(get(source), first)
    assert len(copies(source)) == 1


def test_two_imports_at_once_leave_one_copy(source, monkeypatch):
    def read(path, real=sources.read_npz):
        monkeypatch.setattr(sources, "read_npz", real)
        get(source)  # another process is faster
        return real(path)

    monkeypatch.setattr(sources, "read_npz", read)
    first = get(source)
    assert len(copies(source)) == 1
    same(get(source), first)
    assert isinstance(get(source).arrays.train_images, np.memmap)


def test_two_sources_of_the_same_name_do_not_mix(tmp_path, reads):
    data = tmp_path / "data"
    one = write(tmp_path / "one" / "own.npz", IMAGES)
    other = write(tmp_path / "other" / "own.npz", 255 - IMAGES)
    times = one.stat()
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    firsts = [get(one, data), get(other, data)]
    assert firsts[0].name == firsts[1].name == "own"
    assert firsts[0].digest != firsts[1].digest
    for path, first in zip((one, other), firsts, strict=True):
        same(get(path, data), first)
    assert reads == [one, other]


def test_the_copy_names_its_source(source):
    get(source)
    (copy,) = copies(source)
    assert json.loads((copy / "meta.json").read_text())["source"] == str(source.resolve())


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", "null", '{"source": 1}', "\udcff"])
def test_a_damaged_note_of_any_import_harms_no_other(tmp_path, content):
    def source(name):
        path = tmp_path / name / "own.npz"
        path.parent.mkdir()
        images = np.arange(40, dtype=np.uint8).reshape(10, 2, 2)
        labels = np.arange(10) % 2
        np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels)
        return DataConfig(name="npz", path=str(path))

    data_dir = tmp_path / "data"
    first, second = source("a"), source("b")
    digest = load(first, str(data_dir)).digest
    (note,) = data_dir.glob("imported/*/meta.json")
    note.write_bytes(content.encode(errors="surrogateescape"))
    assert load(second, str(data_dir)).digest == digest
    assert load(first, str(data_dir)).digest == digest
    again = load(first, str(data_dir))  # from the copy, which was made anew
    assert isinstance(again.arrays.train_images, np.memmap)
