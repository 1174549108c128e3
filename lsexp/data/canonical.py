"""The content digest of a data set, its canonical order, and imported copies on disk.

The same images in any order, from any file, have one digest and one order: by the SHA-256 of
pixels and label. So split indices mean the same images everywhere, and the digest can stand in
a run's identity. Importing (hashing, sorting) is done once a file; the copy is memory-mapped.
Shape letters: N images, H height, W width, C channels.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lsexp.files import clear, fsync, remove, scratch_folder, seal, sha256_of, text_of


class Arrays(NamedTuple):
    """A data set as found, in any order.

    images: uint8 [N, H, W, C]; labels: int64 [N], in 0..len(classes)-1.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: tuple[str, ...]


PARTS = Arrays._fields[:4]
"""The arrays, a file each in an imported copy."""


@dataclass(frozen=True)
class Dataset:
    """A data set in canonical order.

    Attributes:
        name: as in a run's name.
        arrays: images and labels, each split sorted by SHA-256 of pixels and label;
            perhaps memory-mapped, never written to.
        train_digest, test_digest: content digests (64 hex), whatever the order was.
    """

    name: str
    arrays: Arrays
    train_digest: str
    test_digest: str

    @property
    def num_classes(self) -> int:
        return len(self.arrays.classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) in pixels."""
        height, width, channels = self.arrays.train_images.shape[1:]
        return height, width, channels

    @property
    def digest(self) -> str:
        """64 hex over both splits, the image shape and the number of classes."""
        parts = [self.train_digest, self.test_digest, list(self.image_shape), self.num_classes]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def canonical(name: str, arrays: Arrays) -> Dataset:
    """Sort both splits and take their digests."""
    width = 1 if len(arrays.classes) <= 256 else 8
    train_order, train_digest = order_and_digest(arrays.train_images, arrays.train_labels, width)
    test_order, test_digest = order_and_digest(arrays.test_images, arrays.test_labels, width)
    ordered = Arrays(
        np.ascontiguousarray(arrays.train_images[train_order]),
        arrays.train_labels[train_order],
        np.ascontiguousarray(arrays.test_images[test_order]),
        arrays.test_labels[test_order],
        arrays.classes,
    )
    return Dataset(name, ordered, train_digest, test_digest)


def order_and_digest(
    images: np.ndarray, labels: np.ndarray, label_bytes: int = 1
) -> tuple[np.ndarray, str]:
    """The canonical order of images and their content digest.

    Args:
        images: uint8 [N, H, W, C] (or [N, H, W]: the bytes are the same).
        labels: int64 [N].
        label_bytes: width of the label behind the pixels, little-endian.

    Returns:
        Indices int64 [N] that sort by SHA-256 of pixels and label, and the SHA-256 (hex) of
        those sorted digests one after the other.
    """
    digests = [
        hashlib.sha256(image.tobytes() + label.to_bytes(label_bytes, "little")).digest()
        for image, label in zip(images, labels.tolist(), strict=True)
    ]
    order = sorted(range(len(digests)), key=digests.__getitem__)
    digest = hashlib.sha256(b"".join(digests[i] for i in order)).hexdigest()
    return np.array(order, dtype=np.int64), digest


class Source(NamedTuple):
    """What an imported copy is made of.

    name: which files, and how they are read; a new copy replaces older ones of this name.
    state: the same only for the same files, unchanged, read in the same way.
    """

    name: str
    state: str


def files_source(paths: Sequence[Path]) -> Source:
    """Files known by path, size and time of change: changed ones are imported anew."""
    tokens = []
    for path in sorted(paths):
        stat = path.stat()
        tokens.append(f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}")
    return Source(str(paths[0].resolve()), "\0".join(tokens))


def load_imported(name: str, source: Source, data_dir: Path) -> Dataset | None:
    """The copy of `source` made by `save_imported`, memory-mapped; None if there is none."""
    folder = _import_folder(name, source, data_dir)
    try:
        meta = json.loads(text_of(folder / "meta.json"))
        if meta.pop("seal") != seal(meta):
            return None
        if meta["sha256"] != {part: sha256_of(folder / f"{part}.npy") for part in PARTS}:
            return None
        train_images, train_labels, test_images, test_labels = (
            np.load(folder / f"{part}.npy", mmap_mode="r", allow_pickle=False) for part in PARTS
        )
        classes = tuple(meta["classes"])
        arrays = Arrays(train_images, train_labels, test_images, test_labels, classes)
        shapes = [list(array.shape) for array in arrays[:4]]
        if meta["shapes"] != shapes or train_images.dtype != np.uint8:
            return None
        return Dataset(name, arrays, meta["train_digest"], meta["test_digest"])
    except (OSError, ValueError, EOFError, KeyError, TypeError, AttributeError):
        return None  # absent, or damaged: the source is imported again


def save_imported(dataset: Dataset, source: Source, data_dir: Path) -> None:
    """Keep a canonical copy below `data_dir`; without write access there is none, silently."""
    folder = _import_folder(dataset.name, source, data_dir)
    with contextlib.suppress(OSError):
        folder.parent.mkdir(parents=True, exist_ok=True)
        for old in folder.parent.glob(f"{dataset.name}-*/meta.json"):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                if json.loads(old.read_text())["source"] == source.name:
                    remove(old.parent)
        clear(folder.parent)
        with scratch_folder(folder) as parts:
            for part in PARTS:
                np.save(parts / f"{part}.npy", getattr(dataset.arrays, part))
            meta = {
                "source": source.name,
                "classes": dataset.arrays.classes,
                "shapes": [list(array.shape) for array in dataset.arrays[:4]],
                "train_digest": dataset.train_digest,
                "test_digest": dataset.test_digest,
                "sha256": {part: sha256_of(parts / f"{part}.npy") for part in PARTS},
            }
            (parts / "meta.json").write_text(json.dumps({**meta, "seal": seal(meta)}))
            for path in parts.iterdir():  # whole on disk before it is seen
                fsync(path)
            if load_imported(dataset.name, source, data_dir) is None:
                if folder.exists():  # damaged
                    remove(folder)
                parts.rename(folder)


def _import_folder(name: str, source: Source, data_dir: Path) -> Path:
    digest = hashlib.sha256(os.fsencode(source.state)).hexdigest()
    return data_dir / "imported" / f"{name}-{digest[:12]}"
