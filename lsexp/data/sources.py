"""Named data sets and files as arrays: what `data=` accepts.

A `<data_dir>/<name>.npz` in Keras' layout is used first, so that offline machines work; then
what torchvision has downloaded or can download. Known sets are checked by content digest.
"""

from __future__ import annotations

import contextlib
import os
import socket
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from lsexp.config import DataConfig
from lsexp.data.canonical import Arrays, Dataset, canonical, load_imported, save_imported
from lsexp.data.splits import stratified_counts
from lsexp.errors import UserError

KEYS = ("x_train", "y_train", "x_test", "y_test")
LAYOUT = (
    "x_train and x_test uint8 [N, H, W] or [N, H, W, 1 or 3], y_train and y_test integers [N], "
    "optionally classes"
)

# Content digests (train, test) of the public sets, whatever order their images come in.
KNOWN = {
    "mnist": (
        "54e1ab866c9484947dd4821c52bb7a43938f555d6b046be6af55247f8e6ffc64",
        "97b756d55950f1841ebd48df7379b9b2fc87a10d63e08d6213dad41d564e8508",
    ),
}


def data_folder(data_dir: str | None) -> Path:
    """`data_dir`, else $LSEXP_DATA_DIR, else lsexp/ in the user's cache folder."""
    if data_dir or os.environ.get("LSEXP_DATA_DIR"):
        return Path(data_dir or os.environ["LSEXP_DATA_DIR"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lsexp"


def load(config: DataConfig, data_dir: str | None) -> Dataset:
    """The data set that `config` names, in canonical order.

    Raises:
        UserError: an unknown name, a missing or malformed file, a failed download, or a known
            set whose content is not that of the original.
    """
    if config.name not in SOURCES:
        raise UserError(f"data.name={config.name}: must be one of {', '.join(SOURCES)}")
    if config.path is not None and config.name != "npz":
        raise UserError(f"data.path={config.path}: goes with data=npz, not data={config.name}")
    return SOURCES[config.name](config, data_folder(data_dir))


def _digits(_config: DataConfig, _data_dir: Path) -> Dataset:
    """scikit-learn's 1,797 digits of 8 x 8 pixels, embedded in that package.

    They come without a test set: a fifth of each class, drawn once for all, is ours. Their
    values 0..16 are spread over 0..255.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = digits.target.astype(np.int64)
    nothing = images[:0], labels[:0], tuple(str(k) for k in range(10))
    pool = canonical("digits", Arrays(images, labels, *nothing)).arrays
    rng = np.random.RandomState(0)
    in_test = np.zeros(len(labels), dtype=bool)
    counts = np.bincount(pool.train_labels)
    for k, number in enumerate(stratified_counts(counts, round(len(labels) / 5))):
        in_test[rng.permutation(np.flatnonzero(pool.train_labels == k))[:number]] = True
    train, test = ~in_test, in_test
    arrays = Arrays(
        pool.train_images[train],
        pool.train_labels[train],
        pool.train_images[test],
        pool.train_labels[test],
        pool.classes,
    )
    return canonical("digits", arrays)


def _mnist(_config: DataConfig, data_dir: Path) -> Dataset:
    packed = data_dir / "mnist.npz"
    if packed.exists():
        found = _imported("mnist", packed, data_dir, lambda: read_npz(packed))
        return _verified("mnist", packed, found)
    folder = data_dir / "MNIST" / "raw"
    raw = folder / "train-images-idx3-ubyte"
    if not raw.exists():
        with download_errors(
            "mnist", f"mnist.npz into {data_dir} (or MNIST's files into {folder})"
        ):
            _read_mnist(data_dir, download=True)
    found = _imported("mnist", raw, data_dir, lambda: _read_mnist(data_dir, download=False))
    return _verified("mnist", folder, found)


def _npz(config: DataConfig, data_dir: Path) -> Dataset:
    if config.path is None:
        raise UserError("data=npz: needs data.path=FILE.npz, a file with " + LAYOUT)
    path = Path(config.path).expanduser()
    if not path.is_file():
        raise UserError(f"data.path={path}: no such file; it must be an .npz with {LAYOUT}")
    name = "".join(c if c.isalnum() else "_" for c in path.stem)
    return _imported(name, path, data_dir, lambda: read_npz(path))


SOURCES: dict[str, Callable[[DataConfig, Path], Dataset]] = {
    "digits": _digits,
    "mnist": _mnist,
    "npz": _npz,
}


def _imported(name: str, source: Path, data_dir: Path, read: Callable[[], Arrays]) -> Dataset:
    """The imported copy of `source`, made the first time."""
    dataset = load_imported(name, source, data_dir)
    if dataset is None:
        dataset = canonical(name, read())
        save_imported(dataset, source, data_dir)
    return dataset


def _verified(name: str, source: Path, dataset: Dataset) -> Dataset:
    """`dataset` if its content is that of the public set `name`."""
    if (dataset.train_digest, dataset.test_digest) != KNOWN[name]:
        raise UserError(
            f"{source}: not the original {name}, or damaged (its content digest differs); "
            f"get it again, or use it as data of your own: data=npz data.path={source}"
        )
    return dataset


def read_npz(path: Path) -> Arrays:
    """Read and check a file in the layout of Keras' mnist.npz.

    Raises:
        UserError: naming the file, the array and what is wrong with it.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = [key for key in KEYS if key not in file]
            if missing:
                raise UserError(
                    f"{path}: has no {', '.join(missing)} (found {', '.join(file) or 'nothing'}); "
                    f"it must hold {LAYOUT}"
                )
            found = {key: file[key] for key in KEYS}
            named = file.get("classes")
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, TypeError) as error:
        raise UserError(
            f"{path}: cannot be read as .npz ({error}); it must hold {LAYOUT}"
        ) from error

    images = {
        split: _images(path, f"x_{split}", found[f"x_{split}"]) for split in ("train", "test")
    }
    labels = {
        split: _labels(path, f"y_{split}", found[f"y_{split}"]) for split in ("train", "test")
    }
    for split in ("train", "test"):
        if len(images[split]) != len(labels[split]):
            raise UserError(
                f"{path}: x_{split} has {len(images[split])} images, "
                f"y_{split} {len(labels[split])} labels; they must be as many"
            )
    if images["train"].shape[1:] != images["test"].shape[1:]:
        raise UserError(
            f"{path}: images of x_train are {images['train'].shape[1:]}, of x_test "
            f"{images['test'].shape[1:]}; they must be alike"
        )
    highest = max(int(labels["train"].max()), int(labels["test"].max()))
    classes = tuple(str(k) for k in range(highest + 1))
    if named is not None:
        classes = tuple(str(name) for name in np.atleast_1d(named))
    if highest >= len(classes):
        raise UserError(f"{path}: a label is {highest}, but classes names only {len(classes)}")
    absent = [classes[k] for k in range(len(classes)) if not (labels["train"] == k).any()]
    if absent:
        raise UserError(
            f"{path}: y_train has no image of class {', '.join(absent[:5])}; labels must be "
            f"0 to K - 1 with every class in the training set"
        )
    if len(classes) < 2:
        raise UserError(f"{path}: has one class; at least two are needed")
    return Arrays(images["train"], labels["train"], images["test"], labels["test"], classes)


def _images(path: Path, key: str, images: np.ndarray) -> np.ndarray:
    if images.dtype != np.uint8:
        raise UserError(f"{path}: {key} is {images.dtype}; pixels must be uint8, 0 to 255")
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape:
        raise UserError(
            f"{path}: {key} has shape {list(images.shape)}; it must be [N, H, W] or "
            f"[N, H, W, 1 or 3] with at least one image"
        )
    return images


def _labels(path: Path, key: str, labels: np.ndarray) -> np.ndarray:
    if labels.ndim == 2 and labels.shape[1] == 1:  # Keras' CIFAR files
        labels = labels[:, 0]
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"{path}: {key} is {labels.dtype} of shape {list(labels.shape)}; "
            f"labels must be integers [N]"
        )
    labels = labels.astype(np.int64)
    if len(labels) and labels.min() < 0:
        raise UserError(f"{path}: {key} has the label {labels.min()}; labels must be 0 to K - 1")
    return labels


def _read_mnist(data_dir: Path, *, download: bool) -> Arrays:
    datasets = import_torchvision_datasets()
    train = datasets.MNIST(str(data_dir), train=True, download=download)
    test = datasets.MNIST(str(data_dir), train=False, download=download)
    return Arrays(
        train.data.numpy()[..., None],
        train.targets.numpy().astype(np.int64),
        test.data.numpy()[..., None],
        test.targets.numpy().astype(np.int64),
        tuple(str(k) for k in range(10)),
    )


def import_torchvision_datasets():  # type: ignore[no-untyped-def]
    """torchvision.datasets, with a mismatched torch told as such."""
    try:
        from torchvision import datasets
    except RuntimeError as error:  # "operator torchvision::nms does not exist"
        import torch

        raise UserError(
            f"torchvision does not fit torch {torch.__version__} ({error}): install a matching "
            f"pair, e.g. pip install torch==2.14.1 torchvision==0.29.1",
            exit_code=1,
        ) from error
    return datasets


@contextlib.contextmanager
def download_errors(name: str, remedy: str) -> Iterator[None]:
    """Turn whatever a download fails with into one line that says what to put where."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"data={name}: not found, and the download failed ({error}); put {remedy}, or name "
            f"another folder with data_dir=",
            exit_code=1,
        ) from error
    finally:
        socket.setdefaulttimeout(before)
