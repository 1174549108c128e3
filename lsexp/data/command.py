"""`lsexp data`: fetch, import, verify data sets, and tell their sizes. Free of torch."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import numpy as np

from lsexp.config import DataConfig, MLPConfig, TrainConfig, check
from lsexp.data.canonical import Dataset
from lsexp.data.sources import OWN, PUBLIC, SOURCES, data_folder, load
from lsexp.errors import UserError, unknown
from lsexp.text import size, table, taken

NAMES = [name for name in SOURCES if name not in OWN]
HELP = f"""\
lsexp data [NAME ...] [FILE.npz ...] [DIR ...]: fetch, import and verify data sets, and tell
their sizes

  lsexp data                        what there is, and what is here
  lsexp data mnist cifar10          fetch what is missing, check, import
  lsexp data mine.npz               check a file of yours
  lsexp data DIR                    check a folder of yours: DIR/train/<class>/*.jpg, DIR/test/...

  names: {", ".join(NAMES)}
  data.image_size=N                 pixels: images of a DIR are resized and cropped to this (32)
  data.url=ADDRESS or PATH          fetch from there instead of the usual mirrors
  data_dir=FOLDER or LSEXP_DATA_DIR where data sets are (default: the user's cache folder)
"""
HEADER = ["data", "train", "test", "image", "classes", "pixels", "content"]


def run(words: list[str]) -> int:
    """The command's words after `lsexp data`; the exit code."""
    if any(word in ("-h", "--help") for word in words):
        print(HELP, end="")
        return 0
    keys = ("data_dir", "data.image_size", "data.url")
    typed, others = taken(words, keys)
    names = []
    for word in others:
        if word.startswith("-"):
            raise unknown(word, "flag", ["--help"], "lsexp data --help")
        if "=" in word:
            raise unknown(word, "key", keys, "lsexp data --help")
        if word in SOURCES or word.endswith(".npz") or _names_folder(word):
            names.append(word)
        else:
            raise unknown(word, "data set", NAMES, "lsexp data --help")
    if "data.url" in typed and not any(name in PUBLIC for name in names):
        raise UserError(
            f"data.url={typed['data.url']}: goes with a set that is fetched ({', '.join(PUBLIC)})"
        )
    folder = data_folder(typed.get("data_dir"))
    if not names:
        print(table([["data", "here"], *_overview(folder)], left=2))
        other = folder.resolve() != data_folder(None).resolve()
        there = f" data_dir={shlex.quote(str(folder))}" if other else ""
        print(f"in {folder}; `lsexp data NAME{there}` fetches")
        return 0
    configs = [_config(name, typed) for name in names]
    rows = [
        _row(name, load(config, typed.get("data_dir")))
        for name, config in zip(names, configs, strict=True)
    ]
    print(table([HEADER, *rows], left=1))
    return 0


def _names_folder(word: str) -> bool:
    return word != "" and (os.sep in word or Path(word).is_dir())


def _config(name: str, typed: dict[str, str]) -> DataConfig:
    pixels = typed.get("data.image_size")
    if pixels is not None and (name in SOURCES or name.endswith(".npz")):
        raise UserError(f"data.image_size={pixels}: goes with a folder of images, not {name}")
    if name in PUBLIC:
        return DataConfig(name=name, url=typed.get("data.url"))
    if name in SOURCES:
        return DataConfig(name=name)
    if name.endswith(".npz"):
        return DataConfig(name="npz", path=name)
    config = DataConfig(name="imagefolder", path=name)
    if pixels is not None:
        try:
            config.image_size = int(pixels)
        except ValueError as error:
            raise UserError(f"data.image_size={pixels}: must be a whole number") from error
        check(TrainConfig(data=config, model=MLPConfig()))
    return config


def _row(name: str, dataset: Dataset) -> list[str]:
    arrays = dataset.arrays
    height, width, channels = dataset.image_shape
    colour = "grey" if channels == 1 else "colour"
    known = name in PUBLIC and PUBLIC[name].digests is not None
    return [
        name,
        f"{len(arrays.train_labels):,}",
        f"{len(arrays.test_labels):,}",
        f"{height} x {width} {colour}",
        str(dataset.num_classes),
        size(int(np.prod(arrays.train_images.shape)) + int(np.prod(arrays.test_images.shape))),
        f"{dataset.digest[:12]} {'verified' if known else ''}".strip(),
    ]


def _overview(folder: Path) -> list[list[str]]:
    rows = [["digits", "always (in scikit-learn)"]]
    for name, public in PUBLIC.items():
        where = folder / public.folder
        if (folder / f"{name}.npz").exists():
            here = f"{name}.npz"
        elif (where / public.unpacked).exists():
            here = str(where.relative_to(folder) / public.unpacked)
        elif all((where / archive).exists() for archive in public.archives):
            here = str(where.relative_to(folder) / public.archives[0])
        else:
            here = "no"
        rows.append([name, here])
    return rows
