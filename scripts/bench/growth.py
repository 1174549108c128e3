"""Time and memory against the number of runs, images and classes.

    python scripts/bench/growth.py

Runs: `lsexp sweep eps` of short runs on the digits, then `lsexp plot eps` and `lsexp runs`. Images
and classes: one short run on random images of 32 x 32 pixels, imported the first time. Prints a
table: seconds, and the most memory (MB, resident) of the command's own process and of all its
workers together.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

SHORT = ["train.steps=20", "artifacts.tensorboard=false"]


def measured(folder: Path, *words: str) -> tuple[float, float, float]:
    """Seconds, and peak MB of the process and of its children, of `lsexp WORDS`."""
    began, own, children = time.monotonic(), 0.0, 0.0
    process = subprocess.Popen(
        [sys.executable, "-m", "lsexp.cli", *words],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={k: v for k, v in os.environ.items() if not k.startswith("LSEXP_")},
        text=True,
    )
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            own = max(own, watched.memory_info().rss / 1e6)
            parts = [child.memory_info().rss for child in watched.children(recursive=True)]
            children = max(children, sum(parts) / 1e6)
        except psutil.Error:
            pass
        time.sleep(0.05)
    if process.returncode:
        sys.exit(process.stderr.read() if process.stderr else "")
    return time.monotonic() - began, own, children


def row(what: str, found: tuple[float, float, float]) -> None:
    seconds, own, children = found
    print(f"{what:<44} {seconds:7.2f} s  {own:6.0f} MB  {children:6.0f} MB", flush=True)


def noise(path: Path, images: int, classes: int) -> None:
    rng = np.random.default_rng(0)
    parts = {}
    for part, count in (("train", images), ("test", max(classes, 1000))):
        parts[f"x_{part}"] = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        parts[f"y_{part}"] = np.arange(count) % classes
    np.savez(path, **parts)


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for seeds in (5, 10, 20, 40):
            words = [f"seeds={seeds}", *SHORT, f"runs_dir=runs{seeds}"]
            row(f"sweep eps, {5 * seeds} runs", measured(folder, "sweep", "eps", *words))
            row("  again, finished", measured(folder, "sweep", "eps", *words))
            row("  plot eps", measured(folder, "plot", "eps", f"runs_dir=runs{seeds}"))
            row("  runs", measured(folder, "runs", f"runs_dir=runs{seeds}"))
        sizes = [(images, 10) for images in (10_000, 20_000, 40_000, 80_000)]
        sizes += [(20_000, classes) for classes in (2, 100, 1_000, 4_000)]
        for images, classes in sizes:
            path = folder / f"noise-{images}-{classes}.npz"
            noise(path, images, classes)
            words = ["train", "data=npz", f"data.path={path}", *SHORT, "data_dir=data"]
            row(f"train, {images} images, {classes} classes", measured(folder, *words))
            row("  another seed, imported", measured(folder, *words, "seed=1"))


if __name__ == "__main__":
    main()
