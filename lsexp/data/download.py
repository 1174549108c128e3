"""Fetch a file over HTTP: mirrors in turn, md5 as the guard, progress, and never a hang.

A mirror is given up when it answers no file, goes silent for `SILENCE` seconds, or crawls while
another is left to try; what it sent so far is kept, and the next continues from there.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from lsexp.errors import UserError
from lsexp.files import is_left, whose

SILENCE = 30.0
"""Seconds without a byte after which a mirror is given up."""
CRAWL_SECONDS, CRAWL_SPEED = 20.0, 100_000.0
"""A mirror slower than this many bytes/s over its first seconds is left for another."""
CHUNK = 1 << 18
MOST = 1 << 30
"""Bytes of a file whose mirror does not say how long it is: six times the largest that we know."""


class Refused(Exception):
    """Why a mirror was given up, in a few words."""


def fetch(urls: Sequence[str], to: Path, md5: str) -> None:
    """Bring the file with this md5 to `to`, from the first of `urls` that has it.

    Returns at once where `to` has the md5 already.

    Raises:
        UserError: exit code 1: no mirror gave the file (each with its reason), or it cannot be
            written.
    """
    if to.exists() and md5_of(to) == md5:
        return
    reasons = [f"{to} is damaged, or another file (its md5 differs)"] if to.exists() else []
    try:
        partial = _partial(to)
        for number, url in enumerate(urls):
            try:
                begun = partial.stat().st_size > 0
                _from(url, partial, patient=number == len(urls) - 1)
                if begun and md5_of(partial) != md5:  # the beginning was not of this file
                    partial.write_bytes(b"")
                    _from(url, partial, patient=number == len(urls) - 1)
                if md5_of(partial) != md5:
                    partial.write_bytes(b"")
                    raise Refused("sent another file (its md5 differs)")
                partial.replace(to)
                for left in _left_of(to):
                    left.unlink(missing_ok=True)
                return
            except Refused as refusal:
                reasons.append(f"{url.partition('?')[0]} {refusal}")
    except OSError as error:
        raise UserError(f"{to}: {error.strerror or error}", exit_code=1) from error
    raise UserError(f"{to.name}: no mirror gave it: {'; '.join(reasons)}", exit_code=1)


def md5_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _partial(to: Path) -> Path:
    """A file of this process to write to, begun with what a killed process left."""
    to.parent.mkdir(parents=True, exist_ok=True)
    mine = to.with_name(f"{to.name}{whose()}.part")
    with contextlib.suppress(OSError):
        # Renaming gives it to one process only; one that may still grow is another's.
        if found := _left_of(to):
            found[-1].rename(mine)
    mine.touch()
    return mine


def _left_of(to: Path) -> list[Path]:
    """Parts of a file to which nobody writes any more, the longest last."""
    found = []
    for path in to.parent.glob(f"{to.name}~*.part"):
        with contextlib.suppress(FileNotFoundError):
            stat, gone = path.stat(), is_left(path.name.removesuffix(".part"))
            if time.time() - stat.st_mtime > 10 * SILENCE if gone is None else gone:
                found.append((stat.st_size, path))
    return [path for _, path in sorted(found)]


def _from(url: str, partial: Path, *, patient: bool) -> None:
    """Append what is missing of the file at `url` to `partial`."""
    done = partial.stat().st_size
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "lsexp"})
        if done:
            request.add_header("Range", f"bytes={done}-")
        with urllib.request.urlopen(request, timeout=SILENCE) as answer:
            if done and getattr(answer, "status", None) != 206:
                done = 0  # it sends the whole file
            if "html" in (answer.headers.get("Content-Type") or ""):
                raise Refused("answered a web page instead of the file")
            length = answer.headers.get("Content-Length")
            total = done + int(length) if length else None
            with partial.open("r+b") as file:
                file.truncate(done)
                file.seek(done)
                received = done + _copy(answer, file, partial.name, done, total, patient=patient)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is missing: the md5 tells whether it is right
            return
        raise Refused(f"answered {error.code} {error.reason}") from error
    except TimeoutError as error:
        raise Refused(f"sent nothing for {SILENCE:.0f} s") from error
    except urllib.error.URLError as error:
        silent = isinstance(error.reason, TimeoutError)
        reason = f"did not answer for {SILENCE:.0f} s" if silent else f"failed: {error.reason}"
        raise Refused(reason) from error
    except (http.client.HTTPException, ConnectionError, ssl.SSLError, ValueError) as error:
        raise Refused(f"broke off: {error}") from error
    if total is not None and received < total:
        raise Refused(f"broke off after {received:,} of {total:,} bytes")


def _copy(
    answer: IO[bytes], file: IO[bytes], name: str, done: int, total: int | None, *, patient: bool
) -> int:
    """Bytes written; shows a bar on a terminal, a line every ten seconds elsewhere."""
    start = said = time.monotonic()
    received = 0
    console = Console(stderr=True)
    columns = (TextColumn(name), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    with bar:
        task = bar.add_task("", total=total, completed=done)
        while chunk := _read(answer):
            file.write(chunk)
            received += len(chunk)
            if done + received > (MOST if total is None else total):
                raise Refused("sent more than there is of the file")
            bar.update(task, completed=done + received)
            now = time.monotonic()
            if not console.is_terminal and now - said > 10:
                said = now
                of = f" of {total / 1e6:.1f}" if total else ""
                console.print(f"{name}: {(done + received) / 1e6:.1f}{of} MB")
            slow = received < CRAWL_SPEED * (now - start)
            if not patient and slow and now - start > CRAWL_SECONDS:
                raise Refused(f"is slow ({received / (now - start) / 1000:.0f} kB/s)")
    return received


def _read(answer: IO[bytes]) -> bytes:
    """The next bytes; whatever breaks here is the mirror's, not our disk's."""
    try:
        return answer.read1(CHUNK)  # type: ignore[attr-defined]
    except TimeoutError:
        raise
    except OSError as error:
        raise Refused(f"broke off: {error}") from error
