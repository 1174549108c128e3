"""Make results/: train, measure and draw what is reported, set by set.

    python scripts/results.py [SET ...] [--plan]       (make results, make results SETS=mnist)

Runs stay in <runs_dir>/<SET> (LSEXP_RUNS_DIR; default runs), tables, figures and the report go to
results/<SET>, and <runs_dir>/results.log tells what is done and what each command still has to do,
as its own dry run estimates it. Everything resumes: stopped or killed, the same command goes on,
over as many days as it takes. `--plan` only tells.

What is run is written down here before it is, in order of worth for its hours.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[1] / "results"

# Ten seeds where the paper's claims are judged, five elsewhere; the first have snapshots.
MNIST = "recipe=mnist_mlp budget=paper"
# In bf16, chosen on one machine or not: days of work may pass over several.
THIN = "recipe=cifar100_resnet56_thin precision=bf16"
ALEXNET = "recipe=cifar10_alexnet precision=bf16"
TEACHERS = "recipe=cifar10_resnet56_thin precision=bf16"
# A third of the paper's schedule, for which a GPU was there; what it left is finished on a CPU.
THIRD = (
    "recipe=cifar10_alexnet budget=paper train.steps=130000 precision=bf16 resume=any "
    "eps=0,0.1 seeds=3"
)
SETS = {
    "digits": [
        "sweep eps seeds=10",
        "sweep projections seeds=10",
        "sweep calibration seeds=10",
        "sweep distillation grid=full seeds=10",
        "sweep information students=true seeds=10",
        "sweep distillation grid=full seeds=10 loss.student_temperature=tied loss.t_squared=true",
        "report",
    ],
    "mnist": [
        f"sweep information {MNIST} eps=0,0.1 seeds=5 students=true student.train.steps=488",
        f"sweep eps {MNIST} eps=0,0.05,0.1 seeds=10",
        f"sweep eps {MNIST} eps=0,0.05,0.1,0.2,0.3 seeds=5",
        f"plot eps {MNIST} eps=0,0.05,0.1,0.2,0.3 seeds=10",
        f"plot calibration {MNIST} eps=0,0.05,0.1,0.2,0.3 seeds=10",
        f"plot projections {MNIST} eps=0,0.1 seeds=10",
        "sweep distillation recipe=mnist_distill grid=full eps=0,0.1,0.3,0.6 "
        "temperatures=1,2,4,8,16 seeds=5",
        "sweep distillation recipe=mnist_toy budget=paper eps=0,0.1 seeds=10",
        "report",
    ],
    "cifar": [
        f"sweep calibration {THIN} eps=0,0.05 seeds=3",
        f"sweep calibration {THIN} eps=0,0.05,0.1,0.2 seeds=3",
        f"sweep eps {THIN} eps=0,0.05,0.1,0.2 seeds=3",
        f"sweep projections {THIN} eps=0,0.1 seeds=3",
        f"sweep information {ALEXNET} eps=0,0.1 seeds=3",
        f"sweep eps {ALEXNET} artifacts.snapshots=17 eps=0,0.05,0.1,0.2 seeds=3",
        f"sweep calibration {ALEXNET} artifacts.snapshots=17 eps=0,0.05,0.1,0.2 seeds=3",
        f"sweep projections {ALEXNET} artifacts.snapshots=17 eps=0,0.1 seeds=3",
        f"sweep information {TEACHERS} eps=0,0.1 seeds=3",
        f"sweep information {TEACHERS} eps=0,0.1,0.3,0.6 seeds=3",
        "sweep distillation recipe=cifar10_distill_thin precision=bf16 eps=0,0.1,0.3,0.6 "
        "temperatures=1,2,4,8,16 seeds=3",
        f"sweep eps {THIRD}",
        f"sweep calibration {THIRD}",
        f"sweep projections {THIRD}",
        "report",
    ],
}


def main(words: list[str]) -> int:
    """The exit code: 1 where a command failed; the others were run all the same."""
    chosen = [word for word in words if word != "--plan"] or list(SETS)
    for name in chosen:
        if name not in SETS:
            print(f"{name}: no such set; {', '.join(SETS)} are", file=sys.stderr)
            return 2
    runs = Path(os.environ.get("LSEXP_RUNS_DIR") or "runs").absolute()
    runs.mkdir(parents=True, exist_ok=True)
    tell = _Log(runs / "results.log")
    for name in chosen:
        for command in SETS[name]:
            if command.partition(" ")[0] in ("sweep", "reproduce"):
                tell(f"{name}: {_estimate(command, _environment(runs, name))}  [{command}]")
    if "--plan" in words:
        return 0
    failed = 0
    for name in chosen:
        for number, command in enumerate(SETS[name], start=1):
            where = f"{name} {number}/{len(SETS[name])}"
            tell(f"{where} begins: lsexp {command}")
            began = time.monotonic()
            code = _run(command, _environment(runs, name))
            tell(f"{where} ended with {code} after {(time.monotonic() - began) / 60:.1f} min")
            failed += code != 0
    return int(failed > 0)


class _Log:
    """Lines with the time, on the terminal and at the end of a file."""

    def __init__(self, path: Path):
        self.path = path

    def __call__(self, line: str) -> None:
        line = f"{datetime.now():%Y-%m-%d %H:%M} {line}"
        print(line, flush=True)
        with self.path.open("a") as file:
            file.write(line + "\n")


def _environment(runs: Path, name: str) -> dict[str, str]:
    folders = {"LSEXP_RUNS_DIR": str(runs / name), "LSEXP_OUT_DIR": str(RESULTS / name)}
    return {**os.environ, **folders}


def _command(command: str) -> list[str]:
    return [sys.executable, "-m", "lsexp.cli", *shlex.split(command)]


def _estimate(command: str, env: dict[str, str]) -> str:
    """What a command has to do, in its own words, or why that cannot be told."""
    done = subprocess.run(
        [*_command(command), "--dry-run"], env=env, capture_output=True, text=True, check=False
    )
    lines = (done.stderr if done.returncode else done.stdout).splitlines()
    return " ".join(lines[-1].split()) if lines else f"exit code {done.returncode}"


def _run(command: str, env: dict[str, str]) -> int:
    """Its exit code; what stops us stops it first, and it keeps what it has."""
    caught: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def stop(number: int, _frame: object) -> None:
        caught.append(number)
        if process is not None:
            process.send_signal(number)

    before = {one: signal.signal(one, stop) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        process = subprocess.Popen(_command(command), env=env)
        for number in caught:  # while it began
            process.send_signal(number)
        code = process.wait()
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    if caught:
        sys.exit(128 + caught[0])
    return code


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
