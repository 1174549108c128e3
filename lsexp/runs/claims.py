"""Who trains a run now: claims, with no lock that a network file system lacks.

A claim is a file made exclusively. The first is claim.json; the one that takes over from a
claim with nonce N is `claim-after-N.json`, so exactly one process can succeed each claim, and
the owner is whoever stands at the end of that chain. Files of the chain are never removed while
a run is unfinished, so a process that slept for an hour cannot undo anything: it only finds that
it is not the owner any more. claim.json itself is replaced by the latest claim to be read by
people; since the chain goes on from any of its members, that replacement may come late.

An owner beats: it counts up a file in its attempt folder. Another process takes over only after
it has watched that count stand still for `claim_timeout` seconds by its own clock, or at once
where the owner has let go or is a process of this machine that is gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lsexp import processes
from lsexp.files import replace_file, scratch, text_of
from lsexp.processes import Process

BEAT_SECONDS = 1.0
STILL_SECONDS = 60.0
"""Without a beat, after which a look at a run takes it for interrupted."""

Record = dict[str, Any]
"""A claim as stored: nonce, host, machine, pid, process_start, time, environment, released."""


def attempt_folder(folder: Path, nonce: str) -> Path:
    return folder / f"attempt-{nonce}"


def owner(folder: Path) -> Record | None:
    """The claim at the end of the chain, None where nobody has claimed the run."""
    record = _read(folder / "claim.json")
    seen: set[str] = set()
    while record is not None and record["nonce"] not in seen:
        seen.add(record["nonce"])
        successor = _read(folder / f"claim-after-{record['nonce']}.json")
        if successor is None:
            return record
        record = successor
    return record


class Watch:
    """Watches the owner of a run from outside: is its beat still moving?"""

    def __init__(self, folder: Path, timeout: float):
        self.folder = folder
        self.timeout = timeout
        self._seen: tuple[str, str] | None = None
        self._since = 0.0

    def idle(self, record: Record) -> bool:
        """Whether `record`'s claim may be taken over; call it again and again."""
        if is_over(record):
            return True
        try:
            beat = text_of(attempt_folder(self.folder, record["nonce"]) / "beat")
        except (OSError, ValueError):
            beat = ""
        if self._seen != (record["nonce"], beat):
            self._seen, self._since = (record["nonce"], beat), time.monotonic()
        return time.monotonic() - self._since >= self.timeout


class Claim:
    """This process's claim on a run, and its attempt folder; beats in a thread.

    Attributes:
        attempt: the only folder that this process writes to, `attempt-<nonce>`.
    """

    def __init__(self, folder: Path, record: Record):
        self.folder = folder
        self.record = record
        self.attempt = attempt_folder(folder, record["nonce"])
        self._stop = threading.Event()
        self._lost = False
        self._thread = threading.Thread(target=self._beat, daemon=True, name="lsexp-claim")
        self._thread.start()

    def held(self) -> bool:
        """Whether this process is still the owner, read from the folder now."""
        if not self._lost:
            record = owner(self.folder)
            self._lost = record is None or record["nonce"] != self.record["nonce"]
        return not self._lost

    @property
    def lost(self) -> bool:
        """Whether the beat has found that another process took over; costs nothing."""
        return self._lost

    def stop_beat(self) -> None:
        self._stop.set()
        self._thread.join()
        (self.attempt / "beat").unlink(missing_ok=True)

    def release(self) -> None:
        """Let go: the next process need not wait. An attempt with a checkpoint stays."""
        self.stop_beat()
        if not (self.attempt / "checkpoint.pt").exists():
            shutil.rmtree(self.attempt, ignore_errors=True)
        _let_go(self.folder, self.record)

    def _beat(self) -> None:
        count = 0
        while not self._stop.wait(BEAT_SECONDS):
            count += 1
            try:
                # Not created: where the attempt was removed, the run was taken over.
                with (self.attempt / "beat").open("r+") as file:
                    file.write(str(count))
                if not self.held():
                    return
            except FileNotFoundError:
                self._lost = True
                return
            except OSError:
                continue  # a full disk or a network that comes back


def acquire(
    folder: Path,
    *,
    timeout: float,
    environment: dict[str, Any],
    over: Callable[[], bool],
    waiting: Callable[[Record], None],
) -> Claim | None:
    """Claim a run, waiting for whoever trains it.

    Args:
        folder: exists.
        timeout: seconds that another's beat must stand still before its claim is taken over.
        environment: recorded in the claim.
        over: whether the run has ended (finished or failed), so that there is nothing to claim.
        waiting: called about five times a second while another process owns the run.

    Returns:
        The claim, or None when the run has ended.
    """
    watch = Watch(folder, timeout)
    while not over():
        current = owner(folder)
        if current is None or watch.idle(current):
            record = _new_record(environment)
            before = None if current is None else current["nonce"]
            name = "claim.json" if before is None else f"claim-after-{before}.json"
            if _make(folder, name, record):
                try:
                    claim = Claim(folder, record)
                except BaseException:  # no thread to be had, say
                    shutil.rmtree(attempt_folder(folder, record["nonce"]), ignore_errors=True)
                    _let_go(folder, record)
                    raise
                try:
                    _show(folder, record)
                    # The run may have ended, and its claims been cleared, since we looked.
                    if not over():
                        return claim
                except BaseException:
                    claim.release()
                    raise
                claim.stop_beat()
                shutil.rmtree(claim.attempt, ignore_errors=True)
                clear(folder)
            continue
        waiting(current)
        time.sleep(0.2)
    return None


def _make(folder: Path, name: str, record: Record) -> bool:
    """Make an attempt folder, with its beat, and then the claim on it; whether it is the owner's.

    In this order, so that a disk that is full leaves no claim that nobody can let go of.
    """
    attempt = attempt_folder(folder, record["nonce"])
    mine = False
    try:
        attempt.mkdir()
        (attempt / "beat").write_text("0")
        mine = create_exclusively(folder / name, record) and _owns(folder, record)
    except FileNotFoundError:  # taken away by one that was quicker, while this process slept
        if not folder.is_dir():
            raise
    finally:
        if not mine:
            shutil.rmtree(attempt, ignore_errors=True)
    return mine


def _let_go(folder: Path, claimed: Record) -> None:
    record = {**claimed, "nonce": secrets.token_hex(8), "released": True}
    with contextlib.suppress(OSError):
        if create_exclusively(folder / f"claim-after-{claimed['nonce']}.json", record):
            _show(folder, record)


def clear(folder: Path) -> None:
    """Remove all claims of a run that has ended."""
    for path in folder.glob("claim*.json"):
        path.unlink(missing_ok=True)


def create_exclusively(path: Path, record: Record) -> bool:
    """Make `path` with `record` in it, whole; False if it exists already."""
    hidden = scratch(path)
    try:
        hidden.write_text(json.dumps(record))
        try:
            os.link(hidden, path)
            return True
        except FileExistsError:
            # A network file system may have made the link and lost the answer.
            return hidden.stat().st_nlink == 2
        except OSError:  # no hard links here
            try:
                with path.open("x") as file:
                    file.write(json.dumps(record))
                return True
            except FileExistsError:
                return False
    finally:
        hidden.unlink(missing_ok=True)


def describe(record: Record) -> str:
    """`"process 12 on host"`, for messages."""
    return f"process {record.get('pid', '?')} on {record.get('host', 'an unknown host')}"


def _owns(folder: Path, record: Record) -> bool:
    current = owner(folder)
    return current is not None and current["nonce"] == record["nonce"]


def _show(folder: Path, record: Record) -> None:
    replace_file(folder / "claim.json", json.dumps(record))


def _read(path: Path) -> Record | None:
    """None where there is no such claim; a damaged one can be succeeded like any other."""
    try:
        record = json.loads(text_of(path))
        if re.fullmatch(r"[\w-]{1,64}", record["nonce"], re.ASCII):  # it is in names of files
            return record
    except FileNotFoundError:
        return None
    except (IsADirectoryError, ValueError, KeyError, TypeError, RecursionError):
        pass
    return {"nonce": f"damaged-{path.stem}"}


def _new_record(environment: dict[str, Any]) -> Record:
    mine = processes.this()
    return {
        "nonce": secrets.token_hex(8),
        "host": socket.gethostname(),
        "machine": mine.machine,
        "pid": mine.pid,
        "process_start": mine.start,
        "time": time.time(),
        "environment": environment,
    }


def is_gone(record: Record) -> bool:
    """Whether the claim is that of a process of this machine that runs no more."""
    process = _process(record)
    return process is not None and processes.is_gone(process)


def is_here(record: Record) -> bool:
    """Whether the claim is that of a process of this machine that runs."""
    process = _process(record)
    return process is not None and processes.is_here(process)


def is_over(record: Record) -> bool:
    """Whether whoever made the claim has let go, or is a process of this machine that is gone."""
    return bool(record.get("released")) or is_gone(record)


def trainer(folder: Path) -> Record | None:
    """The claim of whoever trains a run, as one look tells; to take it over, `Watch` it.

    None where the owner's is over, or where it is of another machine and has not beaten for a
    minute by this machine's clock.
    """
    try:
        record = owner(folder)
        if record is None or is_over(record):
            return None
        beat = (attempt_folder(folder, record["nonce"]) / "beat").stat().st_mtime
    except OSError:
        return None
    # One of this machine may have been put to sleep.
    return record if is_here(record) or time.time() - beat < STILL_SECONDS else None


def _process(record: Record) -> Process | None:
    """None where the record is damaged: only its beat tells."""
    pid, start = record.get("pid"), record.get("process_start")
    if not isinstance(pid, int) or not isinstance(start, str):
        return None
    return Process(str(record.get("machine")), pid, start)
