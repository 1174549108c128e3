"""Files and named sets: what is read, what is refused, and in which words."""

import contextlib
import gzip
import hashlib
import json
import pickle
import shutil
import socket
import struct
import sys
import urllib.request
import zipfile
from collections import Counter
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
from sklearn.datasets import load_digits

from lsexp.config import DataConfig
from lsexp.data import draw_splits, load, sources
from lsexp.data.canonical import order_and_digest
from lsexp.data.sources import PUBLIC, data_folder, read_npz
from lsexp.errors import UserError

RNG = np.random.RandomState(0)
GREY = {
    "x_train": RNG.randint(0, 256, (10, 4, 5)).astype(np.uint8),
    "y_train": np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0]),
    "x_test": RNG.randint(0, 256, (3, 4, 5)).astype(np.uint8),
    "y_test": np.array([2, 1, 0]),
}


def write(path, **changes):
    """An .npz like GREY but for `changes`; None leaves an array out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {key: value for key, value in {**GREY, **changes}.items() if value is not None}
    np.savez(path, **arrays)
    return path


def load_npz(path):
    return load(DataConfig(name="npz", path=str(path)), str(path.parent / "data"))


def refusal(path):
    """The one line with which a file is refused."""
    with pytest.raises(UserError) as caught:
        load_npz(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    assert caught.value.exit_code == 2
    return message


def rows(images, labels):
    """Images with their labels as a multiset, whatever their order."""
    return Counter(zip((image.tobytes() for image in images), labels.tolist(), strict=True))


# Files that can be read.


def test_grey_images_get_one_channel(tmp_path):
    arrays = read_npz(write(tmp_path / "own.npz"))
    assert arrays.train_images.shape == (10, 4, 5, 1)
    assert arrays.test_images.shape == (3, 4, 5, 1)
    np.testing.assert_array_equal(arrays.train_images[..., 0], GREY["x_train"])
    np.testing.assert_array_equal(arrays.test_labels, GREY["y_test"])


def test_grey_images_with_a_channel_are_the_same_data(tmp_path):
    plain = load_npz(write(tmp_path / "plain.npz"))
    channel = {key: GREY[key][..., None] for key in ("x_train", "x_test")}
    assert load_npz(write(tmp_path / "channel.npz", **channel)).digest == plain.digest


def test_colour_images_keep_their_channels(tmp_path):
    colour = RNG.randint(0, 256, (10, 4, 5, 3)).astype(np.uint8)
    arrays = read_npz(write(tmp_path / "own.npz", x_train=colour, x_test=colour[:3]))
    np.testing.assert_array_equal(arrays.train_images, colour)


@pytest.mark.parametrize("dtype", ["uint8", "int32", ">i8", "uint64"])
def test_labels_of_every_integer_type_are_the_same_data(tmp_path, dtype):
    plain = load_npz(write(tmp_path / "plain.npz"))
    typed = {key: GREY[key].astype(dtype) for key in ("y_train", "y_test")}
    found = load_npz(write(tmp_path / "typed.npz", **typed))
    assert found.digest == plain.digest
    assert found.arrays.train_labels.dtype == np.int64


def test_labels_in_one_column_are_the_same_data(tmp_path):
    plain = load_npz(write(tmp_path / "plain.npz"))
    column = {key: GREY[key][:, None] for key in ("y_train", "y_test")}
    assert load_npz(write(tmp_path / "column.npz", **column)).digest == plain.digest


def test_layout_in_memory_and_compression_do_not_matter(tmp_path):
    plain = load_npz(write(tmp_path / "plain.npz"))
    np.savez_compressed(
        tmp_path / "other.npz", **{key: np.asfortranarray(GREY[key]) for key in GREY}
    )
    assert load_npz(tmp_path / "other.npz").digest == plain.digest


def test_classes_are_numbered_unless_named(tmp_path):
    assert read_npz(write(tmp_path / "plain.npz")).classes == ("0", "1", "2")
    named = write(tmp_path / "named.npz", classes=np.array(["cat", "Käfer", "犬"]))
    assert read_npz(named).classes == ("cat", "Käfer", "犬")


def test_naming_the_classes_does_not_change_the_data(tmp_path):
    plain = load_npz(write(tmp_path / "plain.npz"))
    named = load_npz(write(tmp_path / "named.npz", classes=np.array(["a", "b", "c"])))
    assert named.digest == plain.digest


def test_a_class_may_be_absent_from_the_test_set(tmp_path):
    arrays = read_npz(write(tmp_path / "own.npz", y_test=np.array([0, 0, 0])))
    assert arrays.classes == ("0", "1", "2")


def test_other_arrays_in_the_file_are_ignored(tmp_path):
    extra = write(tmp_path / "own.npz", comment=np.array(["anything"]), x_val=np.zeros(3))
    assert load_npz(extra).digest == load_npz(write(tmp_path / "plain.npz")).digest


def test_the_name_is_the_stem_with_plain_characters(tmp_path):
    assert load_npz(write(tmp_path / "my data-2*.npz")).name == "my_data_2_"


# Files that cannot.

BAD_ARRAYS = {
    "no x_train": ({"x_train": None}, ["has no x_train", "y_train, x_test, y_test"]),
    "no y_train": ({"y_train": None}, ["has no y_train"]),
    "no x_test": ({"x_test": None}, ["has no x_test"]),
    "no y_test": ({"y_test": None}, ["has no y_test"]),
    "no test set": ({"x_test": None, "y_test": None}, ["has no x_test, y_test"]),
    "float pixels": ({"x_train": GREY["x_train"] / 255}, ["x_train", "float64", "uint8"]),
    "int64 pixels": ({"x_test": GREY["x_test"].astype(int)}, ["x_test", "int64", "uint8"]),
    "bool pixels": ({"x_test": GREY["x_test"] > 99}, ["x_test", "bool", "uint8"]),
    "pixels in records": (
        {"x_train": np.zeros((10, 4, 5), [("grey", "u1")])},
        ["x_train", "uint8"],
    ),
    "flat images": ({"x_train": GREY["x_train"].reshape(10, 20)}, ["x_train", "[10, 20]"]),
    "no images at all": ({"x_test": np.uint8(3)}, ["x_test", "[]"]),
    "five axes": ({"x_train": np.zeros((10, 4, 5, 3, 1), np.uint8)}, ["x_train", "[10, 4, 5, 3"]),
    "channels first": (
        {"x_train": np.zeros((10, 3, 4, 5), np.uint8)},
        ["x_train", "[10, 3, 4, 5]"],
    ),
    "four channels": ({"x_train": np.zeros((10, 4, 5, 4), np.uint8)}, ["x_train", "[10, 4, 5, 4]"]),
    "no channels": ({"x_train": np.zeros((10, 4, 5, 0), np.uint8)}, ["x_train", "[10, 4, 5, 0]"]),
    "no width": ({"x_train": np.zeros((10, 4, 0), np.uint8)}, ["x_train", "[10, 4, 0"]),
    "empty training set": (
        {"x_train": np.zeros((0, 4, 5), np.uint8), "y_train": np.zeros(0, int)},
        ["x_train", "[0, 4, 5", "at least one image"],
    ),
    "empty test set": (
        {"x_test": np.zeros((0, 4, 5), np.uint8), "y_test": np.zeros(0, int)},
        ["x_test", "[0, 4, 5", "at least one image"],
    ),
    "no training labels": ({"y_train": np.zeros(0, int)}, ["x_train has 10", "y_train 0"]),
    "no labels in a column": ({"y_test": np.zeros((0, 1), int)}, ["x_test has 3", "y_test 0"]),
    "a label short": ({"y_train": GREY["y_train"][:9]}, ["x_train has 10", "y_train 9"]),
    "a label too many": ({"y_test": np.array([2, 1, 0, 0])}, ["x_test has 3", "y_test 4"]),
    "a single label": ({"y_train": np.int64(1)}, ["y_train", "[]", "integers"]),
    "one-hot labels": ({"y_train": np.eye(3, dtype=int)[GREY["y_train"]]}, ["y_train", "[10, 3]"]),
    "float labels": ({"y_train": GREY["y_train"] * 1.0}, ["y_train", "float64", "integers"]),
    "string labels": ({"y_test": GREY["y_test"].astype(str)}, ["y_test", "integers"]),
    "bool labels": ({"y_test": GREY["y_test"] > 0}, ["y_test", "bool", "integers"]),
    "negative label": ({"y_test": np.array([2, -1, 0])}, ["y_test", "-1"]),
    "labels from 1": ({"y_train": GREY["y_train"] + 1}, ["y_train", "class 0", "0 to K - 1"]),
    "a label left out": ({"y_train": GREY["y_train"] * 2}, ["y_train", "class 1, 3", "0 to K - 1"]),
    "label beyond the classes": (
        {"classes": np.array(["a", "b"])},
        ["a label is 2", "classes", "only 2"],
    ),
    "class without training image": (
        {"classes": np.array(["a", "b", "c", "dog"])},
        ["y_train", "class dog"],
    ),
    "class in the test set only": ({"y_test": np.array([0, 1, 3])}, ["y_train", "class 3"]),
    "one class": ({"y_train": np.zeros(10, int), "y_test": np.zeros(3, int)}, ["one class"]),
    "no class names": ({"classes": np.array([], str)}, ["classes", "only 0"]),
    "heights differ": (
        {"x_test": np.zeros((3, 6, 5), np.uint8)},
        ["x_train", "(4, 5, 1)", "x_test", "(6, 5, 1)"],
    ),
    "channels differ": (
        {"x_test": np.zeros((3, 4, 5, 3), np.uint8)},
        ["x_train", "(4, 5, 1)", "x_test", "(4, 5, 3)"],
    ),
    "pickled labels": (
        {"y_train": np.array([0, None] * 5, object)},
        ["y_train holds Python objects"],
    ),
    "pickled classes": (
        {"classes": np.array(["a", None, "c"], object)},
        ["classes holds Python objects"],
    ),
    "enormous label": ({"y_train": np.array([0, 2**40] * 5)}, ["y_train", str(2**40)]),
    "large label": ({"y_train": np.array([0, 999] * 5)}, ["the label 999"]),
    "largest label": ({"y_train": np.array([0, 2**64 - 1] * 5, np.uint64)}, [str(2**64 - 1)]),
    "time labels": ({"y_train": np.array([0, 1] * 5, "m8[s]")}, ["y_train", "integers"]),
    "names in a table": ({"classes": np.array([["a", "b", "c"]])}, ["classes", "[1, 3]"]),
    "a name twice": ({"classes": np.array(["a", "b", "a"])}, ["classes", "twice"]),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_a_bad_array_is_refused_by_name(tmp_path, case):
    changes, words = BAD_ARRAYS[case]
    message = refusal(write(tmp_path / "own.npz", **changes))
    assert [word for word in words if word not in message] == []


def test_a_refused_file_leaves_no_imported_copy(tmp_path):
    refusal(write(tmp_path / "own.npz", y_train=None))
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"PK", b"x_train,y_train\n1,2\n", pickle.dumps(GREY), bytes(1000), "épée".encode()],
    ids=["empty", "two bytes", "text", "pickle", "zeros", "utf-8"],
)
def test_a_file_that_is_no_zip_is_refused(tmp_path, content):
    path = tmp_path / "own.npz"
    path.write_bytes(content)
    assert "cannot be read as .npz" in refusal(path)


def test_a_single_npy_array_is_refused(tmp_path):
    np.save(tmp_path / "own.npy", GREY["x_train"])
    assert "x_train" in refusal((tmp_path / "own.npy").rename(tmp_path / "own.npz"))


@pytest.mark.parametrize("share", [0.05, 0.5, 0.99])
def test_a_truncated_file_is_refused(tmp_path, share):
    path = write(tmp_path / "own.npz")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    assert "cannot be read as .npz" in refusal(path)


def test_a_file_damaged_anywhere_is_refused_or_read_but_never_crashes(tmp_path):
    path = tmp_path / "own.npz"
    np.savez_compressed(path, **GREY)
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        content = bytearray(whole)
        content[place] ^= 0xFF
        path.write_bytes(content)
        with contextlib.suppress(UserError):
            sources.read_npz(path)


def test_members_that_are_no_arrays_are_refused(tmp_path):
    path = tmp_path / "own.npz"
    with zipfile.ZipFile(path, "w") as file:
        for key in ("x_train", "y_train", "x_test", "y_test"):
            file.writestr(f"{key}.npy", "hi")
    assert "x_train is no array" in refusal(path)


def test_bytes_are_good_names(tmp_path):
    found = load_npz(write(tmp_path / "own.npz", classes=np.array([b"cat", b"dog", b"cow"])))
    assert found.arrays.classes == ("cat", "dog", "cow")


def test_paths_that_cannot_be_are_told(tmp_path):
    for path in ("~nobody-of-that-name/x.npz", "a\0b"):
        with pytest.raises(UserError, match=r"data\.path="):
            load(DataConfig(name="npz", path=path), str(tmp_path))
        with pytest.raises(UserError, match=r"data_dir="):
            load(DataConfig(name="mnist"), path)
    with pytest.raises(UserError, match="File name too long"):
        load(DataConfig(name="npz", path="x" * 5000), str(tmp_path))


def test_a_flipped_pixel_in_the_file_is_noticed(tmp_path):
    path = write(tmp_path / "own.npz")
    content = bytearray(path.read_bytes())
    content[content.index(GREY["x_train"].tobytes())] ^= 1
    path.write_bytes(content)
    assert "cannot be read as .npz" in refusal(path)


def test_a_zip_of_other_things_is_refused(tmp_path):
    path = tmp_path / "own.npz"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme.txt", "nothing")
    assert "has no x_train, y_train, x_test, y_test (found readme.txt)" in refusal(path)


def test_a_folder_or_nothing_in_place_of_the_file_is_refused(tmp_path):
    (tmp_path / "folder.npz").mkdir()
    assert "is a folder" in refusal(tmp_path / "folder.npz")
    assert "no such file" in refusal(tmp_path / "absent.npz")


def test_npz_needs_a_path_and_named_sets_take_none(tmp_path):
    with pytest.raises(UserError, match=r"needs data\.path=FILE\.npz"):
        load(DataConfig(name="npz"), str(tmp_path))
    with pytest.raises(UserError, match=r"goes with data=npz or data=imagefolder, not data=digits"):
        load(DataConfig(name="digits", path="own.npz"), str(tmp_path))


def test_an_unknown_set_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(UserError, match=r"imagenet: must be one of digits, mnist"):
        load(DataConfig(name="imagenet"), str(tmp_path))


def test_the_key_comes_before_the_environment_before_the_cache_folder(monkeypatch):
    monkeypatch.setenv("LSEXP_DATA_DIR", "/environment")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert data_folder("/key") == Path("/key")
    assert data_folder(None) == Path("/environment")
    monkeypatch.delenv("LSEXP_DATA_DIR")
    assert data_folder(None) == Path("/cache/lsexp")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert data_folder(None) == Path("/home/somebody/.cache/lsexp")
    assert data_folder("~/sets") == Path("/home/somebody/sets")


# The digits.


@pytest.fixture(scope="module")
def digits():
    return load(DataConfig(name="digits"), "/nowhere")


def test_digits_are_scikit_learns_split_once(digits):
    theirs = load_digits()
    pixels = np.array([round(value * 255 / 16) for value in range(17)], np.uint8)
    arrays = digits.arrays
    train = rows(arrays.train_images, arrays.train_labels)
    test = rows(arrays.test_images, arrays.test_labels)
    assert train + test == rows(pixels[theirs.images.astype(int)], theirs.target)
    assert sum(train.values()) + sum(test.values()) == 1797
    assert not train & test


def test_a_fifth_of_each_digit_is_for_the_test(digits):
    test = np.bincount(digits.arrays.test_labels)
    share = (np.bincount(digits.arrays.train_labels) + test) / 5
    assert np.abs(test - share).max() < 1


def test_digits_are_always_the_same(digits, tmp_path):
    assert digits.digest == load(DataConfig(name="digits"), str(tmp_path)).digest
    # Another split of them would need other names for all runs.
    assert digits.train_digest[:16] == "2ae65782251f20e2"
    assert digits.test_digest[:16] == "a05c71d8bbc8f75b"


def test_digits_through_scikit_learn_are_the_same(digits, monkeypatch):
    monkeypatch.setattr(sources, "find_spec", lambda _name: None)
    assert load(DataConfig(name="digits"), "/nowhere").digest == digits.digest


def test_digits_need_neither_network_nor_folder(tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "socket", refuse)
    load(DataConfig(name="digits"), str(tmp_path / "data"))
    assert not (tmp_path / "data").exists()


# MNIST, small: archives in the original format, in place of the real ones.


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


SMALL = {
    "train-images-idx3-ubyte": RNG.randint(0, 256, (20, 28, 28)).astype(np.uint8),
    "train-labels-idx1-ubyte": (np.arange(20) % 10).astype(np.uint8),
    "t10k-images-idx3-ubyte": RNG.randint(0, 256, (10, 28, 28)).astype(np.uint8),
    "t10k-labels-idx1-ubyte": np.arange(10).astype(np.uint8),
}


@pytest.fixture
def archives(tmp_path, monkeypatch):
    """A folder with the archives of a set that passes for MNIST."""
    from torchvision.datasets import MNIST

    folder, resources = tmp_path / "archives", []
    folder.mkdir()
    for name, array in SMALL.items():
        header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape)
        archive = gzip.compress(header + array.tobytes())
        (folder / f"{name}.gz").write_bytes(archive)
        resources.append((f"{name}.gz", hashlib.md5(archive).hexdigest()))
    parts = list(SMALL.values())
    digests = tuple(order_and_digest(*parts[i : i + 2])[1] for i in (0, 2))
    monkeypatch.setattr(MNIST, "resources", resources)
    monkeypatch.setitem(PUBLIC, "mnist", PUBLIC["mnist"]._replace(digests=digests))
    return folder


def get_mnist(data_dir, url=None):
    return load(DataConfig(name="mnist", url=url and str(url)), str(data_dir))


def test_mnist_once_downloaded_needs_no_network(tmp_path, archives, monkeypatch, request):
    first = get_mnist(tmp_path / "data", archives)
    request.getfixturevalue("no_network")
    second = get_mnist(tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "imported")
    third = get_mnist(tmp_path / "data")
    assert first.name == "mnist"
    assert first.image_shape == (28, 28, 1)
    assert first.arrays.classes == tuple("0123456789")
    assert first.digest == second.digest == third.digest


def test_a_packed_file_and_the_original_files_are_the_same_data(tmp_path, archives):
    original = get_mnist(tmp_path / "original", archives)
    keys = ("x_train", "y_train", "x_test", "y_test")
    write(tmp_path / "packed" / "mnist.npz", **dict(zip(keys, SMALL.values(), strict=True)))
    packed = get_mnist(tmp_path / "packed")
    for ours, theirs in zip(packed.arrays, original.arrays, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert packed.digest == original.digest


@pytest.mark.usefixtures("archives")
def test_a_packed_file_is_used_before_a_download(tmp_path):
    keys = ("x_train", "y_train", "x_test", "y_test")
    write(tmp_path / "mnist.npz", **dict(zip(keys, SMALL.values(), strict=True)))
    assert len(get_mnist(tmp_path, tmp_path / "absent").arrays.train_labels) == 20
    assert not (tmp_path / "MNIST").exists()


def test_downloaded_files_that_are_not_mnist_are_refused(tmp_path, archives, monkeypatch):
    other = PUBLIC["mnist"]._replace(digests=("0" * 64, PUBLIC["mnist"].digests[1]))
    monkeypatch.setitem(PUBLIC, "mnist", other)
    with pytest.raises(UserError, match="content digest"):
        get_mnist(tmp_path, archives)


def test_a_packed_file_that_is_not_mnist_is_refused_with_a_way_out(tmp_path):
    packed = write(tmp_path / "mnist.npz")
    with pytest.raises(UserError, match="content digest") as caught:
        get_mnist(tmp_path)
    assert f"data=npz data.path={packed}" in str(caught.value)
    assert load_npz(packed).name == "mnist"


@pytest.mark.usefixtures("no_network")
def test_without_mnist_and_network_one_line_says_what_to_put_where(tmp_path):
    with pytest.raises(UserError) as caught:
        get_mnist(tmp_path / "data")
    message = str(caught.value)
    assert caught.value.exit_code == 1
    assert "\n" not in message
    assert "put mnist.npz" in message
    assert f"into {tmp_path / 'data'} " in message
    assert "no route to host" in message


@pytest.mark.usefixtures("no_network")
def test_a_folder_that_cannot_be_made_is_told_in_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"put mnist\.npz .* into") as caught:
        get_mnist(tmp_path / "file" / "data")
    assert caught.value.exit_code == 1


def test_a_torchvision_that_does_not_fit_torch_is_told_as_such(tmp_path, monkeypatch):
    package = tmp_path / "site" / "torchvision"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')\n"
    )
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(package.parent)
    with pytest.raises(UserError, match="operator torchvision::nms does not exist") as caught:
        load(DataConfig(name="mnist"), str(tmp_path / "data"))
    assert caught.value.exit_code == 1
    assert "torchvision does not fit torch" in str(caught.value)


# MNIST, real.


@pytest.mark.data
def test_the_known_digests_are_those_of_the_shared_copies():
    manifest = Path(__file__).resolve().parents[3] / "shared" / "data" / "manifest.json"
    if not manifest.is_file():
        pytest.skip(f"no {manifest}")
    sets = json.loads(manifest.read_text())
    for name in sets:
        assert PUBLIC[name].digests == tuple(sets[name][x]["digest"] for x in ("train", "test"))


@pytest.fixture(scope="module")
def mnist(real_data, tmp_path_factory):
    """The real set, imported aside."""
    folder = tmp_path_factory.mktemp("mnist")
    (folder / "mnist.npz").symlink_to(real_data / "mnist.npz")
    return get_mnist(folder)


@pytest.fixture(scope="module")
def real_arrays(real_data):
    with np.load(real_data / "mnist.npz") as file:
        return {key: file[key] for key in ("x_train", "y_train", "x_test", "y_test")}


@pytest.mark.data
def test_the_real_mnist_is_whole(mnist):
    assert mnist.arrays.train_images.shape == (60_000, 28, 28, 1)
    assert mnist.arrays.test_images.shape == (10_000, 28, 28, 1)
    assert mnist.arrays.classes == tuple("0123456789")
    # As published with the set: images of each digit.
    train = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    test = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert np.bincount(mnist.arrays.train_labels).tolist() == train
    assert np.bincount(mnist.arrays.test_labels).tolist() == test


@pytest.mark.data
def test_a_shuffled_mnist_is_the_same_data_and_has_the_same_splits(mnist, real_arrays, tmp_path):
    train, test = RNG.permutation(60_000), RNG.permutation(10_000)
    orders = {"x_train": train, "y_train": train, "x_test": test, "y_test": test}
    np.savez(tmp_path / "mnist.npz", **{key: real_arrays[key][orders[key]] for key in orders})
    shuffled = get_mnist(tmp_path)
    assert shuffled.digest == mnist.digest
    for ours, theirs in zip(shuffled.arrays, mnist.arrays, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for ours, theirs in zip(
        draw_splits(shuffled, DataConfig()), draw_splits(mnist, DataConfig()), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.data
@pytest.mark.parametrize("key", ["x_train", "y_test"])
def test_mnist_with_one_value_altered_is_refused(real_arrays, tmp_path, key):
    altered = real_arrays[key].copy()
    altered.flat[0] ^= 1
    np.savez(tmp_path / "mnist.npz", **{**real_arrays, key: altered})
    with pytest.raises(UserError, match=r"mnist\.npz: not the original mnist.* content digest"):
        get_mnist(tmp_path)


@pytest.mark.data
def test_mnist_short_of_its_last_image_is_refused(real_arrays, tmp_path):
    short = {key: real_arrays[key][:-1] for key in ("x_train", "y_train")}
    np.savez(tmp_path / "mnist.npz", **{**real_arrays, **short})
    with pytest.raises(UserError, match="content digest"):
        get_mnist(tmp_path)
