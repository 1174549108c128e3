"""A folder of the user's pictures as arrays of one size: `data=imagefolder`.

The layout is that of torchvision's ImageFolder: DIR/train/<class>/ and DIR/test/<class>/, with
pictures anywhere below; the classes are the folders of train/ in the order of their names.
What torchvision's v2 Resize (shorter side, bilinear, antialiased) and CenterCrop make of a
decoded picture is kept; nothing else is done for speed that would change a pixel.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import time
import unicodedata
import warnings
from collections.abc import Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lsexp.data.canonical import Arrays, Source
from lsexp.errors import UserError, torchvision
from lsexp.processes import available_memory
from lsexp.text import plural, say, size

LAYOUT = "train/<class>/ and test/<class>/ of images"
ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""IMG_EXTENSIONS of torchvision, whose import would cost every run two seconds."""
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What a file may hold, whatever its ending; Pillow would start other programs for some others."""
VAL = ("val", "valid", "validation")
"""Names of folders that people expect to be read beside train/ and test/."""
IMAGE_SIZE = 32
"""Pixels, where `data.image_size` says nothing."""
READER = 1
"""Part of what names an imported copy: raise it when the same file would give other pixels."""
CHUNK = 64
"""Pictures that a thread reads before it reports."""


class File(NamedTuple):
    """A picture: its path, the index of its class, and what changes when it is replaced.

    That is its size in bytes, and in ns when it was written to and when it was moved or replaced.
    """

    path: str
    label: int
    size: int
    written: int
    changed: int


class Found(NamedTuple):
    """What is in a folder of pictures, sorted by path; nothing is opened yet.

    Attributes:
        left_out: paths of files and folders within train/ and test/ that are not read.
    """

    root: Path
    classes: tuple[str, ...]
    train: list[File]
    test: list[File]
    left_out: list[str]

    def source(self, image_size: int) -> Source:
        """Copies of several sizes live side by side, so that runs may alternate between them."""
        name = f"{self.root.resolve()} at {image_size} pixels"
        start = len(str(self.root / "train")) - len("train")  # the same for . and its whole path
        listing = "\0".join(
            f"{file.path[start:]}\0{file.size}\0{file.written}\0{file.changed}"
            for file in (*self.train, *self.test)
        )
        return Source(name, f"{name}\0{READER}\0{listing}")


# The folder.


def find(root: Path) -> Found:
    """List the pictures of a folder, by one walk.

    Raises:
        UserError: it does not have the layout, or a class has no pictures.
    """
    if not root.is_dir():
        what = (
            "is a file; it must be a folder with" if root.exists() else "no such folder; it needs"
        )
        npz = "; an .npz goes with data=npz" if root.suffix == ".npz" else ""
        raise UserError(f"data.path={root}: {what} {LAYOUT}{npz}")
    for split in ("train", "test"):
        if not (root / split).is_dir():
            raise UserError(_no_split(root, split))
    left_out: list[str] = []
    folders = {split: _class_folders(root / split, left_out) for split in ("train", "test")}
    classes = tuple(folders["train"])
    unknown = [name for name in folders["test"] if name not in folders["train"]]
    if unknown and classes:
        raise UserError(
            f"{root / 'test'}: has the class {unknown[0]}, which train/ does not have (it has "
            f"{_some(classes)}); test pictures must be of classes to learn"
        )
    files: dict[str, list[File]] = {"train": [], "test": []}
    for split, label, name in [
        (split, label, name)
        for split in files
        for label, name in enumerate(classes)
        if name in folders[split]
    ]:
        before, out = len(files[split]), len(left_out)
        for entry in _pictures(folders[split][name], left_out):
            stat = entry.stat()
            times = stat.st_mtime_ns, stat.st_ctime_ns
            files[split].append(File(entry.path, label, stat.st_size, *times))
        if split == "train" and len(files[split]) == before:
            others = _and_left_out(root, left_out[out:])
            raise UserError(
                f"{root / split / name}: a class without images{others}; put some there, or "
                f"remove the folder"
            )
    if len(classes) < 2:
        only = f"only the class {classes[0]}" if classes else "no folders of classes"
        raise UserError(
            f"{root / 'train'}: has {only}; at least two are needed, each in a folder "
            f"train/<class>/{_and_left_out(root, left_out)}"
        )
    if not files["test"]:
        raise UserError(
            f"{root / 'test'}: has no images in folders of classes"
            f"{_and_left_out(root, left_out)}; at least one is needed"
        )
    return Found(root, classes, files["train"], files["test"], left_out)


def _no_split(root: Path, split: str) -> str:
    here = sorted(path.name for path in root.iterdir() if path.is_dir())
    message = f"data.path={root}: has no {split}/ (found {_some(here)}); it must hold {LAYOUT}"
    val = next((name for name in VAL if name in here), None)
    if split == "test" and val is not None:
        message += (
            f"; rename {val}/ to test/ if that is what it is for: test is only ever evaluated, "
            f"and val is split off from train/"
        )
    return message


def _class_folders(folder: Path, left_out: list[str]) -> dict[str, str]:
    """Name to path of each class, in the order of the names."""
    found = {}
    for entry in _sorted(str(folder)):
        if entry.is_dir() and not entry.name.startswith("."):
            found[entry.name] = entry.path
        else:
            left_out.append(entry.path)
    return found


def _pictures(
    folder: str, left_out: list[str], above: tuple[tuple[int, int], ...] = ()
) -> Iterator[os.DirEntry[str]]:
    """Files below `folder` that are pictures by their ending; links are followed."""
    stat = Path(folder).stat()
    if (stat.st_dev, stat.st_ino) in above:  # a link to a folder that it lies in
        left_out.append(folder)
        return
    above = (*above, (stat.st_dev, stat.st_ino))
    for entry in _sorted(folder):
        if entry.name.startswith("."):
            left_out.append(entry.path)
        elif entry.is_dir():
            yield from _pictures(entry.path, left_out, above)
        elif entry.name.lower().endswith(ENDINGS) and _is_file(entry):
            yield entry
        else:
            left_out.append(entry.path)


def _is_file(entry: os.DirEntry[str]) -> bool:
    """A file, or a link to one or to nothing, which is told; no pipe or device: some never end."""
    return entry.is_file() or (entry.is_symlink() and not Path(entry.path).exists())


def _sorted(folder: str) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def _some(names: tuple[str, ...] | list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more if names else "nothing"


def _and_left_out(root: Path, left_out: list[str]) -> str:
    if not left_out:
        return ""
    return (
        f" (left out: {plural(len(left_out), 'file')}, such as "
        f"{os.path.relpath(left_out[0], root)}; images end in {', '.join(ENDINGS)})"
    )


# The pictures.


def read(found: Found, image_size: int) -> Arrays:
    """Decode, resize and crop all pictures.

    Colour is RGB; only if every picture is grey is there one channel. Transparent ones are laid
    on white, as a page shows them. Of 16 bits the upper 8 are kept, as Pillow does for colour,
    so that 65535 is white; more than 16, and floats, are refused since nothing says what white
    is. The orientation that EXIF tells is applied; of an animation the first frame counts.

    Raises:
        UserError: they would not fit the memory, or some cannot be read; exit code 1.
    """
    files = [*found.train, *found.test]
    _check_memory(len(files), image_size)
    if found.left_out:
        say(
            f"data.path={found.root}: {plural(len(found.left_out), 'file')} left out (hidden, "
            f"not of a class, or not ending in {', '.join(ENDINGS)}), such as "
            f"{os.path.relpath(found.left_out[0], found.root)}"
        )
    for name in VAL:
        if (found.root / name).is_dir():
            say(f"data.path={found.root}: {name}/ is not read; val is split off from train/")
    tested = {file.label for file in found.test}
    tell_absent(f"data.path={found.root}", "test/", found.classes, tested)
    functional = torchvision("transforms.v2.functional")
    from PIL import Image

    Image.init()  # here, and not by several threads at once
    images = np.empty((len(files), image_size, image_size, 3), np.uint8)
    coloured = np.zeros(len(files), bool)

    def work(start: int) -> list[tuple[str, str]]:
        """Fill CHUNK rows from `start`; gives (path, reason) of what cannot be read."""
        failures = []
        for i in range(start, min(start + CHUNK, len(files))):
            try:
                _check_size(files[i].size)
                picture = _open(files[i].path)
                picture = _resize(picture, image_size, functional)
                coloured[i] = picture.mode == "RGB"
                images[i] = np.asarray(picture).reshape(image_size, image_size, -1)
            except Exception as error:
                # Pillow raises whatever its parsing meets in a damaged file.
                failures.append((files[i].path, _reason(error)))
        return failures

    failures: list[tuple[str, str]] = []
    done, said = 0, time.monotonic()
    # Warnings are of metadata, and of more than 89 million pixels, which a photograph may have.
    with warnings.catch_warnings(), ThreadPoolExecutor(_threads()) as pool:
        warnings.simplefilter("ignore")
        for failed in pool.map(work, range(0, len(files), CHUNK)):
            failures += failed
            done += CHUNK
            if time.monotonic() - said > 10:
                said = time.monotonic()
                say(f"{found.root}: {min(done, len(files)):,} of {len(files):,} images read")
    if failures:
        path, reason = failures[0]
        others = [os.path.relpath(other, found.root) for other, _ in failures[1:]]
        more = f"; nor can {_some(others)}" if others else ""
        raise UserError(
            f"{path}: cannot be read as an image ({reason}){more}; mend or remove", exit_code=1
        )
    if not coloured.any():
        images = np.ascontiguousarray(images[..., :1])
    labels = np.array([file.label for file in files], np.int64)
    train = len(found.train)
    classes = tuple(map(class_name, found.classes))
    return Arrays(images[:train], labels[:train], images[train:], labels[train:], classes)


def class_name(name: str) -> str:
    """A name as it can be printed and written: line breaks, other control characters and bytes of
    unknown encoding as escapes, so that different names stay different.

    >>> class_name("ca\\nt"), class_name("K\\udce4tzchen"), class_name("Kätzchen")
    ('ca\\\\nt', 'K\\\\udce4tzchen', 'Kätzchen')
    """
    bad = ("Cc", "Cs", "Zl", "Zp")
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in bad else c for c in name
    )


def tell_absent(where: str, test: str, classes: Sequence[str], tested: Set[int]) -> None:
    """Say of which classes there is nothing to test on: what is measured is not of them."""
    absent = [class_name(name) for k, name in enumerate(classes) if k not in tested]
    if absent:
        say(f"{where}: {test} has no image of class {_some(absent)}; the others are tested")


def _check_size(file_size: int) -> None:
    """Before a file is read: what is empty may be a device's, whose end never comes."""
    if not file_size:
        raise ValueError("it is empty")
    most = 8 * _most_pixels()  # four channels of 16 bits
    if file_size > most:
        raise ValueError(f"its file has {size(file_size)}, more than {size(most)}")


def _open(path: str) -> Any:
    """The picture in a file, upright, as Pillow's mode L or RGB."""
    from PIL import Image, ImageOps

    content = Path(path).read_bytes()
    with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
        picture.load()
        with contextlib.suppress(Exception):  # EXIF that cannot be read tells no orientation
            ImageOps.exif_transpose(picture, in_place=True)
        mode = picture.mode
        if mode.startswith("I"):
            values = np.asarray(picture)
            if values.min() < 0 or values.max() > 65535:
                raise ValueError("its values are beyond 16 bits; save it with 8 or 16")
            return Image.fromarray((values >> 8).astype(np.uint8))
        if mode == "F":
            raise ValueError("its values are floats; save it with 8 or 16 bits")
        kept = "L" if mode in ("1", "L", "LA") else "RGB"
        if picture.has_transparency_data:
            above = picture.convert("RGBA")
            white = Image.new("RGBA", above.size, "white")
            return Image.alpha_composite(white, above).convert(kept)
        return picture.convert(kept)


def _resize(picture: Any, image_size: int, functional: Any) -> Any:
    short, long = sorted(picture.size)
    if image_size * image_size * long / short > _most_pixels():
        raise ValueError(f"{picture.width} x {picture.height} pixels are too narrow to resize")
    resized = functional.resize(picture, [image_size], antialias=True)
    return functional.center_crop(resized, [image_size, image_size])


def _reason(error: Exception) -> str:
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):  # its text shows an object in memory
        return f"damaged, or none of {', '.join(FORMATS)}"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {_most_pixels():,} pixels"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _most_pixels() -> int:
    """Where Pillow suspects a small file that would fill the memory."""
    from PIL import Image

    return 2 * (Image.MAX_IMAGE_PIXELS or 2**40)


def _threads() -> int:
    # Each may hold a large photograph; beyond some, Python's own share decides the speed.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(cores or 1, 16)


# The memory.


def _check_memory(num_images: int, image_size: int) -> None:
    each = 2 * 3 * image_size**2  # the canonical order is made by a second copy
    there = available_memory()
    if there is not None and num_images * each > there:
        fits = math.isqrt(there // (6 * num_images))
        smaller = f"data.image_size={fits} or less, or " if fits else ""
        raise UserError(
            f"data.image_size={image_size}: {num_images:,} images take "
            f"{size(num_images * each)} of memory to import, and {size(there)} is free; "
            f"{smaller}at most {there // each:,} images would fit",
            exit_code=1,
        )
