"""What several tests need: small runs planned in this process, and the command as a process."""

from __future__ import annotations

import contextlib
import csv
import json
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from lsexp import compose, studies
from lsexp.launch import pool
from lsexp.launch.plan import Plan, plan
from lsexp.runs.store import sealed

TINY = ["budget=smoke", "threads=1", "artifacts.tensorboard=false"]


def tiny_plan(runs_dir: Path, *words: str) -> Plan:
    """A run of 50 steps on the digits."""
    ((config, chosen),) = compose.train_configs([*TINY, f"runs_dir={runs_dir}", *words])
    return plan(config, chosen, ["lsexp", "train", *words])


FORKS = multiprocessing.get_context("forkserver")
"""A process that has imported what the command needs and forks for each call: importing takes four
times as long as the small runs of tests, and the first composing and drawing as long as they."""
FORKS.set_forkserver_preload(
    [
        "lsexp.cli",
        "lsexp.launch.local",
        "lsexp.launch.pool",
        "lsexp.reproduce",
        "lsexp.report.command",
    ]
    + [f"lsexp.studies.{name}" for name in studies.names()]
    + ["hydra.main", "matplotlib.figure", "pandas", "torch.utils.tensorboard"]
    + ["scipy.stats", "torchvision.models", "support", "warm"]
)


ALWAYS_SPAWN = "LSEXP_FAULTS" in os.environ or Path("/dev/nvidiactl").exists()
"""In `make faults`; and on a GPU, which a fork cannot use."""


class Forks(multiprocessing.context.ForkContext):
    """Workers of a command forked from it: each would import for longer than it trains.

    What a fork has of its parent and a new process does not is put right: signals, open pipes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ours: list[Any] = []
        outer = self

        class Process(multiprocessing.context.ForkProcess):
            def start(self) -> None:
                signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
                super().start()
                signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])

            def run(self) -> None:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
                for connection in outer.ours:  # what is closed there must not stay open here
                    connection.close()
                _with_faults()
                super().run()

        self.Process = Process  # type: ignore[assignment,misc]

    def Pipe(self, duplex: bool = True) -> Any:
        ours, theirs = super().Pipe(duplex)
        self.ours.append(ours)
        return ours, theirs


class Started:
    """The command in a process of its own; offers what tests use of `subprocess.Popen`.

    spawn: its workers start as they do elsewhere.
    """

    def __init__(self, words: tuple[str, ...], cwd: Path, env: dict[str, str], *, spawn: bool):
        self.args = ["lsexp", *words]
        self._folder = Path(tempfile.mkdtemp())
        told = (words, str(cwd), env, str(self._folder), spawn or ALWAYS_SPAWN)
        self._process = FORKS.Process(target=_run, args=told)
        with pytest.MonkeyPatch.context() as patch:  # where it finds `support` and `warm`
            patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
            self._process.start()
        self.pid: int = self._process.pid or 0

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self._process.exitcode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it has printed, when it has ended."""
        self.wait(timeout)
        out, err = ((self._folder / name).read_text() for name in ("out", "err"))
        return out, err


def _run(words: tuple[str, ...], cwd: str, env: dict[str, str], folder: str, spawn: bool) -> None:
    """In the forked process: as `python -m lsexp.cli`."""
    for number, name in ((1, "out"), (2, "err")):
        opened = os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    # Whatever the tests themselves were told to ignore, by nohup say.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.path.insert(0, cwd)
    sys.argv = ["lsexp", *words]
    if not spawn:
        pool.PROCESSES = Forks()
    _with_faults()
    from lsexp.cli import main

    sys.exit(main(list(words)))


def _with_faults() -> None:
    if "LSEXP_TEST_FAULT" in os.environ:
        runpy.run_path(str(Path(__file__).parent / "faults/inject/sitecustomize.py"))


def lsexp(
    *words: str,
    cwd: Path,
    env: dict[str, str] | None = None,
    start: bool = False,
    spawn: bool = False,
) -> Any:
    """Run the command in a process of its own; with `start`, do not wait for it.

    spawn: its workers start as they do elsewhere.
    """
    clean = {k: v for k, v in os.environ.items() if not k.startswith("LSEXP_")}
    process = Started(words, cwd, {**clean, **(env or {})}, spawn=spawn)
    if start:
        return process
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode or 0, out, err)


def until_it_saves(runs_dir: Path, process: Any) -> None:
    """Wait until the run that `process` trains has a checkpoint."""
    deadline = time.monotonic() + 180
    while not list(runs_dir.glob("*/attempt-*/checkpoint.pt")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def weights(folder: Path) -> dict[str, bytes]:
    """Final weights of a finished run, bit for bit."""
    return {
        name: value.tobytes() for name, value in load_file(folder / "model.safetensors").items()
    }


def history(folder: Path) -> list[dict[str, str]]:
    """Rows of history.csv without what a clock decides."""
    with (folder / "history.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def change_metrics(folder: Path, section: str, **changes: Any) -> None:
    """Change a section of a finished run's metrics, as if it had been written so."""
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics[section].update(changes)
    (folder / "metrics.json").write_text(json.dumps(sealed(metrics)))


@contextlib.contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[Any]:
    """A web server of this process; its `closing` is set before it is shut down."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.closing = threading.Event()
    server.handle_error = lambda *_arguments: None  # a client that hung up
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.closing.set()
    server.shutdown()
    thread.join()
    server.server_close()


def names(folder: Path) -> set[str]:
    """What lies in a folder, hidden files included."""
    return {path.name for path in folder.iterdir()}


FINISHED = {
    "config.yaml",
    "history.csv",
    "model.safetensors",
    "outputs.safetensors",
    "metrics.json",
}
"""What a finished run folder holds, TensorBoard apart."""
