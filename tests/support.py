"""What several tests need: small runs planned in this process, and the command as a process."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from lsexp import compose
from lsexp.launch.plan import Plan, plan

TINY = ["budget=smoke", "threads=1", "artifacts.tensorboard=false"]


def tiny_plan(runs_dir: Path, *words: str) -> Plan:
    """A run of 50 steps on the digits."""
    ((config, chosen),) = compose.train_configs([*TINY, f"runs_dir={runs_dir}", *words])
    return plan(config, chosen, ["lsexp", "train", *words])


def lsexp(*words: str, cwd: Path, env: dict[str, str] | None = None, start: bool = False) -> Any:
    """Run the command in a process of its own; with `start`, do not wait for it."""
    command = [sys.executable, "-m", "lsexp.cli", *words]
    clean = {k: v for k, v in os.environ.items() if not k.startswith("LSEXP_")}
    options: dict[str, Any] = {
        "cwd": cwd,
        "env": {**clean, **(env or {})},
        "text": True,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
    }
    if start:
        return subprocess.Popen(command, **options)
    return subprocess.run(command, timeout=120, check=False, **options)


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
