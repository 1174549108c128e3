"""Numbers and tables as people read them, and lines for people on stderr."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Container, Iterable
from pathlib import Path

from lsexp.errors import UserError, printable


def user_path(key: str, text: str) -> Path:
    """The path that a person typed for `key`, with ~ filled in.

    Raises:
        UserError: ~somebody who does not exist, or a zero byte.
    """
    try:
        if "\0" in text:
            raise RuntimeError("a path cannot hold a zero byte")
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(f"{key}={text!r}: {error}") from error


def taken(words: Iterable[str], keys: Container[str]) -> tuple[dict[str, str], list[str]]:
    """The values of `keys` among words such as `key=value`, and the other words.

    >>> taken(["eps=0", "out_dir=o", "-m"], ["out_dir"])
    ({'out_dir': 'o'}, ['eps=0', '-m'])

    Raises:
        UserError: one is there twice.
    """
    typed: dict[str, str] = {}
    others = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in keys:
            others.append(word)
        elif key in typed:
            raise UserError(f"{key}: is given twice")
        else:
            typed[key] = value
    return typed, others


def say(message: str) -> None:
    """One line for people, on stderr; where nobody listens any more, that is no reason to stop."""
    with contextlib.suppress(OSError):
        print(message, file=sys.stderr, flush=True)


def plural(count: int, what: str) -> str:
    """`"1 run"`, `"2 runs"`."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def rounded(value: float, digits: int) -> str:
    """A number with so many digits behind the point; three in all where it would be a long line.

    >>> rounded(3.14159, 2), rounded(1.34e30, 2)
    ('3.14', '1.34e+30')
    """
    return f"{value:.{digits}f}" if abs(value) < 1e6 else f"{value:.3g}"


def places(value: float, least: int) -> int:
    """Digits behind the point that show three of a positive value's, at most 9.

    >>> places(3.14, 2), places(0.00123, 2)
    (2, 5)
    """
    return least if value >= 0.1 else min(9, 2 - math.floor(math.log10(max(value, 1e-9))))


def duration(seconds: float) -> str:
    """A time as people say it.

    >>> [duration(s) for s in (0.42, 8.4, 75, 4000, 200000)]
    ['0.4 s', '8 s', '1 min 15 s', '1 h 6 min', '2 d 7 h']
    """
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 3 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


def table(rows: list[list[str]], *, left: int) -> str:
    """Rows in columns; the first `left` columns flush left, the others right; cells `printable`.

    >>> print(table([["a", "1"], ["bcd", "10"]], left=1))
    a     1
    bcd  10
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if k < left else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def size(number: int) -> str:
    """Bytes as people say them.

    >>> size(999), size(1_500_000)
    ('999 B', '1.5 MB')
    """
    value = float(number)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
