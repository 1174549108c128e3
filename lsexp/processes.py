"""Which process something is of, and whether that still runs."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
from pathlib import Path
from typing import NamedTuple


class Process(NamedTuple):
    """A process as others can tell it.

    Attributes:
        machine: host, boot and container, within which process ids mean something.
        pid: its id there.
        start: when it started, in the kernel's ticks; "": cannot be told.
    """

    machine: str
    pid: int
    start: str


def this() -> Process:
    """The one that asks."""
    return Process(_machine(), os.getpid(), _start(os.getpid()) or "")


def is_gone(process: Process) -> bool:
    """Whether it was of this machine and runs no more; False where that cannot be told."""
    if process.machine != _machine():
        return False
    start = _start(process.pid)
    return start is None or ("" not in (start, process.start) and start != process.start)


@functools.cache
def _machine() -> str:
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return "/".join(parts)


def _start(pid: int) -> str | None:
    """None if it is gone, "" if unknown here."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if after_name[0] in "ZX" else after_name[19]
    except (OSError, IndexError):  # no /proc here, or another user's process is hidden
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except (OSError, OverflowError):
            pass
        return ""
