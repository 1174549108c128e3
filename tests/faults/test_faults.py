"""SIGKILL at every change of a run folder, and at random moments: the weights never differ."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from support import FINISHED, TINY, history, lsexp, names, until_it_saves, weights

# A process that plans once, then forks for every point at which the run may be killed: the child
# counts its calls that change the file system and kills itself at the one that it is told.
KILLER = """
import os, pathlib, shutil, signal, sys
import torch
torch.set_num_threads(1)
from dataclasses import replace
from lsexp.launch import local
import torch._dynamo  # by the optimizer, late: all imports before the forks
from lsexp.runs.store import RunFolder
from support import tiny_plan

base, words = pathlib.Path(sys.argv[1]), sys.argv[2:]
plan = tiny_plan(base, *words)

def child(folder, kill_at):
    pid = os.fork()
    if pid == 0:
        count = 0
        def counted(function):
            def wrapper(*args, **kwargs):
                nonlocal count
                count += 1
                if count == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*args, **kwargs)
            return wrapper
        for owner, name in [(os, "rename"), (os, "link"), (os, "fsync"), (pathlib.Path, "rename"),
                            (pathlib.Path, "replace"), (pathlib.Path, "unlink"),
                            (pathlib.Path, "mkdir"), (pathlib.Path, "write_bytes"),
                            (pathlib.Path, "write_text"), (shutil, "rmtree")]:
            setattr(owner, name, counted(getattr(owner, name)))
        code = 1
        try:
            local.execute(replace(plan, folder=RunFolder(folder / plan.folder.path.name)))
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

every = int(os.environ.get("LSEXP_TEST_EVERY", 3))  # 1: at each change, three times as long
kill_at, code = 1 - every, None
while code != 0:
    kill_at += every
    folder = base / f"{kill_at:03d}"
    code = child(folder, kill_at)
    assert code in (0, -signal.SIGKILL), (kill_at, code)
    if code != 0:
        assert child(folder, None) == 0, kill_at
print(kill_at)
"""


def only(runs_dir):
    """The one run folder in a runs_dir."""
    (folder,) = [path for path in runs_dir.iterdir() if path.is_dir()]
    return folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    runs = tmp_path_factory.mktemp("undisturbed")
    done = lsexp("train", *WORDS, f"runs_dir={runs}", cwd=runs)
    assert done.returncode == 0, done.stderr
    return only(runs)


# Dropout and shifts, so that every generator counts; checkpoints as often as the loop looks.
SCIENCE = ["model.dropout=0.2", "augment.shift=1", "loss.eps=0.1"]
WORDS = [*TINY, *SCIENCE, "artifacts.checkpoint_seconds=0"]


def test_killed_at_changes_of_the_folder(tmp_path, undisturbed):
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(tmp_path), *SCIENCE, "artifacts.checkpoint_seconds=0"],
        env={**os.environ, "PYTHONPATH": "tests"},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    points = int(done.stdout.split()[-1])
    assert points > 40
    for runs in sorted(tmp_path.glob("[0-9]*")):
        assert weights(only(runs)) == weights(undisturbed), runs.name
        assert history(only(runs)) == history(undisturbed), runs.name
        assert names(only(runs)) == FINISHED, runs.name


LONG = [*WORDS, "train.steps=2000"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The long run, undisturbed."""
    runs = tmp_path_factory.mktemp("whole")
    done = lsexp("train", *LONG, f"runs_dir={runs}", cwd=runs)
    assert done.returncode == 0, done.stderr
    return only(runs)


def test_killed_at_random_moments_by_another_process(tmp_path, whole):
    rng = random.Random(0)
    kills = 0
    for _ in range(3):
        process = lsexp("train", *LONG, "runs_dir=killed", cwd=tmp_path, start=True)
        until_it_saves(tmp_path / "killed", process)
        time.sleep(0.3 * rng.random())
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
    done = lsexp("train", *LONG, "runs_dir=killed", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert kills >= 1
    assert weights(only(tmp_path / "killed")) == weights(whole)
    assert names(only(tmp_path / "killed")) == FINISHED


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_stop_within_seconds_and_nothing_is_lost(tmp_path, number):
    process = lsexp(
        "train",
        *TINY,
        "train.steps=3000000",
        "artifacts.checkpoint_seconds=0",
        cwd=tmp_path,
        start=True,
    )
    until_it_saves(tmp_path / "runs", process)
    start = time.monotonic()
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert time.monotonic() - start < 60
    assert process.returncode == 1
    assert f"stopped by {number.name} at step" in said
    assert "Traceback" not in said
    folder = only(tmp_path / "runs")
    assert json.loads((folder / "claim.json").read_text())["released"]
    assert len(list(folder.glob("attempt-*/checkpoint.pt"))) == 1


def test_two_at_once_train_it_once(tmp_path):
    words = ["train", *TINY, "train.steps=8000"]
    both = [lsexp(*words, cwd=tmp_path, start=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sum("waiting for it" in text for text in said) == 1
    metrics = json.loads((only(tmp_path / "runs") / "metrics.json").read_text())
    assert [part["from_step"] for part in metrics["provenance"]["segments"]] == [0]


def test_a_stopped_owner_is_taken_over_and_harms_nothing_when_it_comes_back(tmp_path, whole):
    words = ["train", *LONG, "runs_dir=shared", "claim_timeout=5"]
    sleeper = lsexp(*words, cwd=tmp_path, start=True)
    until_it_saves(tmp_path / "shared", sleeper)
    sleeper.send_signal(signal.SIGSTOP)
    heir = lsexp(*words, cwd=tmp_path)
    assert heir.returncode == 0, heir.stderr
    assert "waiting for it" in heir.stderr
    sleeper.send_signal(signal.SIGCONT)
    sleeper.communicate(timeout=30)
    assert sleeper.returncode == 0
    folder = only(tmp_path / "shared")
    assert weights(folder) == weights(whole)
    assert names(folder) == FINISHED


def test_nohup_keeps_a_run_alive(tmp_path):
    import shutil

    words = ["train", *TINY, "train.steps=4000", "artifacts.checkpoint_seconds=0"]
    command = [shutil.which("nohup"), sys.executable, "-m", "lsexp.cli", *words]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    until_it_saves(tmp_path / "runs", process)
    process.send_signal(signal.SIGHUP)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert (tmp_path / out.splitlines()[-1] / "metrics.json").exists()
