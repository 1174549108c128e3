"""Files that are there whole or not at all, and what killed processes leave of others.

What is not ready has a hidden name beside its place, `.<name>~<machine>-<pid>-<start>-<hex>`. It
tells whose it is, so that what a process that is gone has left can be cleared at any time.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lsexp import processes
from lsexp.processes import Process

DAY = 86400.0
WHOSE = re.compile(r"~([0-9a-f]{8})-(\d+)-(\d*)-[0-9a-f]{8}$")


def scratch(path: Path) -> Path:
    """A hidden place beside `path` for what this process makes of it, or moves out of sight."""
    name = os.fsencode(path.name)[:180].decode(errors="ignore")  # names have at most 255 bytes
    return path.parent / f".{name}{whose()}"


def whose() -> str:
    """The end of a name that tells that it is of this process; each is another."""
    mine = processes.this()
    return f"~{_mark(mine.machine)}-{mine.pid}-{mine.start}-{secrets.token_hex(4)}"


def is_left(name: str) -> bool | None:
    """Whether a name that ends in `whose` is of a process that is gone; None where that cannot be
    told: of another machine, or no such name."""
    match = WHOSE.search(name)
    here = processes.this().machine
    if match is None or match[1] != _mark(here):
        return None
    return processes.is_gone(Process(here, int(match[2]), match[3]))


def text_of(path: Path) -> str:
    """The text of a file.

    Raises:
        OSError: there is none, or something else, such as a pipe, which would be waited for.
        ValueError: it is no UTF-8.
    """
    _check_file(path)
    return path.read_text()


def _check_file(path: Path) -> None:
    if path.exists() and not path.is_file():
        raise IsADirectoryError(errno.EISDIR, "is no file", str(path))


def replace_file(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all. Fails where its folder is gone."""
    hidden = scratch(path)
    try:
        hidden.write_bytes(content.encode() if isinstance(content, str) else content)
        fsync(hidden)
        hidden.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            hidden.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """A folder with a hidden name beside `path`; gone afterwards, whatever is in it."""
    hidden = scratch(path)
    hidden.mkdir()
    try:
        yield hidden
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def remove(path: Path) -> None:
    """Delete a folder, or what stands in its place: out of sight whole, so that no half of it is
    ever met.

    Raises:
        OSError: it cannot be moved; what cannot be deleted then is left out of sight.
    """
    hidden = scratch(path)
    path.rename(hidden)
    if hidden.is_dir() and not hidden.is_symlink():
        shutil.rmtree(hidden, ignore_errors=True)
    else:
        hidden.unlink()


def clear(*folders: Path) -> None:
    """Delete what processes that are gone have left hidden in these folders.

    Those of another machine are gone when what they left is a day old. Where a folder is absent,
    or cannot be written, nothing happens.
    """
    for folder in folders:
        items: list[os.DirEntry[str]] = []
        with contextlib.suppress(OSError), os.scandir(folder) as found:
            items += (item for item in found if item.name[0] == "." and WHOSE.search(item.name))
        for item in items:
            with contextlib.suppress(OSError):  # somebody else's, or gone meanwhile
                if _left(item) and item.is_dir(follow_symlinks=False):
                    shutil.rmtree(item.path, ignore_errors=True)
                elif _left(item):
                    Path(item.path).unlink(missing_ok=True)


def _left(item: os.DirEntry[str]) -> bool:
    gone = is_left(item.name)
    return time.time() - item.stat(follow_symlinks=False).st_mtime > DAY if gone is None else gone


def _mark(machine: str) -> str:
    return hashlib.sha256(machine.encode()).hexdigest()[:8]


def fsync(path: Path) -> None:
    """Have a file, or the entries of a folder, on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def seal(values: dict[str, Any]) -> str:
    """SHA-256 of what JSON can hold, however it is written: of a file that tells it of itself."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """Raises OSError as `text_of`."""
    _check_file(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
