"""Which process something is of, whether that still runs, what stops this one, and what memory it
can have."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NamedTuple

TOGETHER = 0.3
"""Seconds within which SIGINT after SIGINT is of one Ctrl-C."""


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


def is_here(process: Process) -> bool:
    """Whether it is of this machine and surely runs; False where that cannot be told."""
    return process.machine == _machine() and "" != process.start == _start(process.pid)


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


@contextlib.contextmanager
def caught_signals(*, raises: bool = False) -> Iterator[list[str]]:
    """Collect the names of SIGINT, SIGTERM and SIGHUP, to stop at a good moment.

    A terminal and the program that started this one may both tell of one Ctrl-C: what follows a
    SIGINT within `TOGETHER` counts as the same. One that was ignored before stays so: nohup, or a
    job in the background of a script.

    Args:
        raises: a second SIGINT raises KeyboardInterrupt, and in the end signals do what they did
            before. Else they do so only where none came: one more must not cut the last words off.
    """
    caught: list[str] = []
    last = -TOGETHER

    def note(number: int, _frame: FrameType | None) -> None:
        nonlocal last
        if number == signal.SIGINT:
            if time.monotonic() - last < TOGETHER:
                return
            last = time.monotonic()
            if raises and caught:
                raise KeyboardInterrupt
        caught.append(signal.Signals(number).name)

    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    numbers = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield caught
    finally:
        if raises or not caught:
            for number, handler in before.items():
                signal.signal(number, handler)


def available_memory(system: Path = Path("/")) -> int | None:
    """Bytes that can be had without swapping; None where `system` does not tell.

    MemAvailable counts the page cache as free, which it is. Limits of this process's cgroup and
    of those around it lower it, as in containers and under Slurm.
    """
    found = []
    with contextlib.suppress(OSError, IndexError, ValueError):
        memory = (system / "proc/meminfo").read_text()
        found.append(int(memory.partition("MemAvailable:")[2].split()[0]) * 1024)
    top = system / "sys/fs/cgroup"
    group = top
    with contextlib.suppress(OSError):
        for line in (system / "proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::/"):
                group = top / line.removeprefix("0::/")
    for folder in (group, *group.parents):
        if folder.is_relative_to(top):
            with contextlib.suppress(OSError, ValueError):  # "max": no limit
                found.append(int((folder / "memory.max").read_text()))
    return min(found, default=None)
