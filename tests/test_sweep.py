"""`lsexp sweep` and `lsexp plot STUDY` as processes: words, resuming, killing, sharing."""

import contextlib
import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support import FINISHED, TINY, lsexp, names, tiny_plan, until_it_saves, weights

from lsexp.cli import main
from lsexp.config import SweepConfig, TorchvisionConfig
from lsexp.errors import UserError
from lsexp.launch.hands import Hands, hands_for, members_of
from lsexp.launch.local import execute
from lsexp.sweep.manifest import Manifest

WORDS = ["budget=smoke", "artifacts.tensorboard=false", "workers=2"]
ONE = [*WORDS[:-1], "workers=1"]
SLOW = ["train.steps=1500", "artifacts.checkpoint_seconds=0.1"]
"""Seconds a run, with many checkpoints."""


def sweep(cwd, *words, code=0, command="sweep"):
    """(paths and tables on stdout, lines of stderr) of `lsexp sweep eps WORDS`."""
    done = lsexp(command, "eps", *words, cwd=cwd)
    assert done.returncode == code, done.stderr
    return done.stdout.splitlines(), done.stderr


def runs(cwd):
    return sorted(path for path in (cwd / "runs").iterdir() if path.name[0] != ".")


def planned(capsys, monkeypatch, cwd, *words):
    """The last line of a dry run."""
    monkeypatch.chdir(cwd)
    assert main(["sweep", "eps", *words, "--dry-run"]) == 0
    return capsys.readouterr().out.splitlines()[-1]


def workers_of(process):
    """Process ids of the children of a sweep that train."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            words = (folder / "cmdline").read_bytes()
            if int(parent) == process.pid and words and b"resource_tracker" not in words:
                found.append(int(folder.name))
    return found


def until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A folder in which two eps and three seeds have been swept, and what was printed."""
    cwd = tmp_path_factory.mktemp("swept")
    return cwd, *sweep(cwd, *WORDS, "eps=0,0.1", "seeds=3")


def test_a_sweep_prints_the_table_the_finding_and_last_its_files(swept):
    cwd, out, _ = swept
    assert out[0].split()[:2] == ["eps", "seeds"]
    assert [line.split()[:2] for line in out[1:3]] == [["0", "3"], ["0.1", "3"]]
    assert any("within one percentage point" in line for line in out)
    folder = "out/eps/digits_mlp-smoke"
    files = ["eps.png", "runs.csv", "eps.csv", "differences.csv", "findings.csv"]
    assert out[-5:] == [f"{folder}/{name}" for name in files]
    assert all((cwd / line).stat().st_size > 100 for line in out[-5:])


def test_it_says_before_what_is_to_do(swept):
    _, _, err = swept
    assert "6 runs: 0 finished, 6 to do, about " in err
    assert "with 2 workers" in err
    assert "threads=1" in err


def test_what_is_finished_is_drawn_of_a_folder_that_cannot_be_written(swept, capsys, monkeypatch):
    def refused(self, runs_dir):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "scratch")

    monkeypatch.chdir(swept[0])
    monkeypatch.setattr(Manifest, "write", refused)
    for eps, told in (
        ("0,0.1", ""),
        ("0", "Read-only file system; nothing is lost, but `lsexp pl"),
    ):
        assert main(["sweep", "eps", *WORDS, f"eps={eps}", "seeds=3", "out_dir=ro"]) == 0
        assert told in capsys.readouterr().err
    assert main(["sweep", "eps", *WORDS, "eps=0,0.1", "seeds=4", "out_dir=ro"]) == 1
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("lsexp: runs_dir=runs: Read-only file system (runs/.sweeps/eps-")
    assert last.endswith("runs_dir=FOLDER or LSEXP_RUNS_DIR")


def test_runs_of_a_sweep_have_one_thread_whatever_the_recipe_says_of_threads(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for typed, threads in (("null", 1), ("2", 2)):
        words = [*WORDS, f"threads={typed}", "eps=0", "seeds=1", "--dry-run"]
        assert main(["sweep", "eps", *words]) == 0
        assert f"threads={threads}" in capsys.readouterr().out
    assert not list(tmp_path.glob("runs/digits*"))


def test_a_run_of_a_sweep_is_bit_for_bit_the_run_alone(swept, tmp_path):
    cwd, _, _ = swept
    done = lsexp("train", *TINY, "runs_dir=alone", "loss.eps=0.1", "seed=2", cwd=tmp_path)
    alone = tmp_path / done.stdout.splitlines()[-1]
    assert weights(cwd / "runs" / alone.name) == weights(alone)
    assert names(cwd / "runs" / alone.name) == FINISHED


def test_the_tables_are_tidy(swept):
    cwd, _, _ = swept
    folder = cwd / "out/eps/digits_mlp-smoke"
    with (folder / "eps.csv").open() as file:
        rows = list(csv.DictReader(file))
    key = ("eps", "split", "metric", "interval")
    assert len({tuple(row[name] for name in key) for row in rows}) == len(rows)
    assert {row["interval"] for row in rows} == {"seeds", "examples", "both"}
    for row in rows:
        assert float(row["low"]) <= float(row["value"]) <= float(row["high"])
    with (folder / "runs.csv").open() as file:
        trained = list(csv.DictReader(file))
    assert [(row["seed"], row["eps"]) for row in trained[:3]] == [
        ("0", "0.0"),
        ("0", "0.1"),
        ("1", "0.0"),
    ]
    for row in trained:
        metrics = json.loads((cwd / "runs" / row["run"] / "metrics.json").read_text())
        assert float(row["test_accuracy"]) == metrics["test"]["accuracy"]
        assert row["command"].startswith("lsexp sweep eps budget=smoke ")
        assert (row["steps"], row["images"], row["device"], row["threads"]) == (
            *("50", "1150", "cpu", "1"),
        )
        git = metrics["provenance"]["git"] or {"commit": ""}
        assert row["commit"].split(" ")[0] == git["commit"]


def test_a_finished_sweep_trains_nothing_again(swept):
    cwd, out, _ = swept
    before = {path: path.stat().st_mtime_ns for path in cwd.glob("runs/*/metrics.json")}
    again, err = sweep(cwd, *WORDS, "eps=0,0.1", "seeds=3")
    assert "6 finished, 0 to do" in err
    assert again == out
    assert {path: path.stat().st_mtime_ns for path in cwd.glob("runs/*/metrics.json")} == before


def test_a_plot_without_words_is_of_the_newest_sweep(swept):
    cwd, out, _ = swept
    plotted, err = sweep(cwd, "figure.format=svg,pdf", command="plot")
    assert "the newest sweep: lsexp sweep eps budget=smoke" in err
    assert plotted[:-6] == out[:-5]
    assert plotted[-6:-4] == [f"out/eps/digits_mlp-smoke/eps.{kind}" for kind in ("svg", "pdf")]


def test_a_plot_of_runs_that_were_never_trained_calls_them_missing(tmp_path):
    _, err = sweep(tmp_path, *WORDS, "eps=0", "seeds=2", command="plot", code=1)
    [line] = [line for line in err.splitlines() if line.startswith("lsexp: ")]
    assert line.startswith("lsexp: plot eps: none of its 2 runs is finished with what")
    assert "damaged" not in err


def test_a_plot_with_words_shows_what_there_is_and_how_to_complete_it(swept):
    cwd, _, _ = swept
    out, err = sweep(cwd, *WORDS, "eps=0,0.1", "seeds=4", "out_dir=other", command="plot")
    assert "2 of 8 runs missing (eps=0 seed=3, eps=0.1 seed=3); `lsexp sweep eps" in err
    assert "seeds=4` completes them" in err
    assert out[-1] == "other/eps/digits_mlp-smoke/findings.csv"


def test_more_seeds_train_only_what_is_missing(swept, tmp_path, capsys, monkeypatch):
    cwd, _, _ = swept
    shutil.copytree(cwd / "runs", tmp_path / "runs")
    line = planned(capsys, monkeypatch, tmp_path, *WORDS, "eps=0,0.1", "seeds=0,7")
    assert "4 runs: 2 finished, 2 to do, about" in line
    assert len(runs(tmp_path)) == 6
    out, _ = sweep(tmp_path, *ONE, "eps=0,0.1", "seeds=0,7")
    assert len(runs(tmp_path)) == 8
    assert out[1].split()[:2] == ["0", "2"]


def test_a_multirun_of_hydra_fills_the_same_folders(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "-m", *TINY, "runs_dir=runs", "loss.eps=0,0.1", "seed=0,1"]) == 0
    line = planned(capsys, monkeypatch, tmp_path, *WORDS, "eps=0,0.1", "seeds=2")
    assert "4 runs: 4 finished, 0 to do" in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("epss", "epss: no such study; did you mean eps?"),
        ("eps seed=3", "seed=3: eps sets it; type seeds=5, or seeds=0,3,7"),
        ("eps loss.eps=0.1", "loss.eps=0.1: eps sets it; type eps=0,0.1"),
        ("eps eps=0,0", "eps=0.0,0.0: 0 is there twice"),
        ("eps eps=x", "eps=x: must be numbers with commas between"),
        ("eps eps=null", "eps=null: must be numbers with commas between"),
        ("eps eps=0 eps=0.1", "eps: is given twice"),
        ("eps study=1", "study=1: no such key"),
        ("eps seeds=20240101", "seeds=20240101: is how many, at most 10000"),
        ("eps seeds=range(5)", "seeds=range(5): must be numbers with commas between"),
        ("eps seeds=1.5", "seeds=[1.5]: must be a whole number; `lsexp sweep eps --help`"),
        ("eps eps=0,,0.1", "eps=0,,0.1: must be numbers with commas between"),
        (
            "budget=smoke eps",
            "budget=smoke: comes after the study: lsexp sweep eps budget=smoke ...",
        ),
        ("eps optim.lr=0.1,0.2", "optim.lr=0.1,0.2: several values; a sweep varies eps and seeds"),
        (
            "eps optim.milestones=0.5,0.75",
            "optim.milestones=0.5,0.75: several values; a sweep varies eps and seeds only, "
            "brackets make a list: optim.milestones=[0.5,0.75]",
        ),
        ("eps model.args.x=3", "model.args.x=3: goes with model=custom"),
        ("eps out_dir=a out_dir=b", "out_dir: is given twice"),
        ("eps out_dir=/dev/null/out", "out_dir=/dev/null/out: /dev/null is no folder that can be"),
        ("eps eps=1.5", "eps=1.5: must be at least 0 and below 1; `lsexp sweep eps --help`"),
        ("eps seeds=0", "seeds=0: is how many; seeds=0, is the one seed 0"),
        ("eps seeds=-1", "seeds=-1: must be at least 0"),
        ("eps workers=0", "workers=0: must be at least 1 and at most 1024; `lsexp sweep eps"),
        ("eps members=4 device=cpu", "members=4: a process trains several runs at once on a GPU o"),
        ("eps members=99", "members=99: must be at least 1 and at most 32"),
        ("eps members=auto workers=0", "workers=0: must be"),
        ("eps epss=1", "epss=1: no such key"),
        ("eps teacher.optim.lr=1", "teacher.optim.lr=1: eps has no other teachers"),
        ("information student.optim.lr=1", "student.optim.lr=1: needs students=true"),
        ("information teacher.optim.lr=1", "teacher.optim.lr=1: information has no other teachers"),
        ("information students=true student.runs_dir=x", "student.runs_dir=x: information sets it"),
        (
            "information students=true student.loss.teacher_step=3",
            "student.loss.teacher_step=3: ",
        ),
        (
            "information students=true student.seed=1",
            "student.seed=1: information sets it for its students",
        ),
        ("information students=true train.epochs=2", "train.epochs=2: with students=true the"),
        ("distillation teacher.optim.lrr=1", "of the teachers: optim.lrr=1: no such key"),
        ("distillation loss.temperature=2", "loss.temperature=2: distillation sets it; type temp"),
        ("distillation temperatures=0", "temperatures=0.0: must be more than 0"),
        ("distillation teacher.seed=3", "teacher.seed=3: distillation sets it for its teachers"),
        ("distillation teacher.--cfg=job", "teacher.--cfg=job: distillation sets it for its"),
        ("eps loss.beta=0.5", "loss.beta: goes with loss=distillation"),
        ("distillation eps=0.1", "eps=0.1: must have 0, the hard teacher"),
        ("eps -m optim.lr=1,2", "-m: a sweep trains lists by itself"),
        ("eps figure.format=gif", "figure.format=gif: must be png or pdf or svg"),
        ("eps study.eps=[1]", "study.eps=[1]: no such key"),
        ("eps loss.scale=0", "loss.scale=0.0: must be more than 0"),
    ],
)
def test_wrong_words_get_one_line(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", *words.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"lsexp: {message}")
    assert len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_help_names_studies_and_their_keys(capsys):
    helped = ((["sweep"], "eps "), (["sweep", "eps", "--help"], "  seeds="))
    for words, expected in (*helped, (["plot", "eps", "--help"], "lsexp plot eps")):
        assert main(words) == 0
        assert expected in capsys.readouterr().out


def test_a_plot_without_any_sweep_says_how_to_make_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["plot", "eps"]) == 1
    assert "no sweep for it in runs; `lsexp sweep eps` makes one" in capsys.readouterr().err


# Trouble.


def test_a_killed_worker_takes_nothing_with_it(tmp_path):
    words = [*WORDS, *SLOW, "eps=0,0.1", "seeds=1"]
    process = lsexp("sweep", "eps", *words, cwd=tmp_path, start=True, spawn=True)
    until_it_saves(tmp_path / "runs", process)
    os.kill(workers_of(process)[0], signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "its worker ended by SIGKILL; the run goes on in another" in err
    assert out.splitlines()[-1].endswith("findings.csv")
    assert all(names(path) == FINISHED for path in runs(tmp_path))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_sweep_that_is_stopped_goes_on_from_there(tmp_path, number):
    words = [*ONE, *SLOW, "eps=0", "seeds=1"]
    process = lsexp("sweep", "eps", *words, cwd=tmp_path, start=True, spawn=True)
    until_it_saves(tmp_path / "runs", process)
    children = workers_of(process)
    os.kill(process.pid, number)
    started = time.monotonic()
    process.wait(timeout=30)
    if number == signal.SIGKILL:  # the workers see it by themselves
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), 20)
    _, err = process.communicate()
    if number != signal.SIGKILL:
        assert process.returncode == 1
        name = signal.Signals(number).name
        assert f"stopped by {name}; nothing is lost: the same command goes on" in err
        assert time.monotonic() - started < 15
    assert not list(tmp_path.glob("runs/*/metrics.json"))
    saved = list(tmp_path.glob("runs/*/attempt-*/checkpoint.pt"))
    assert saved
    again = lsexp("sweep", "eps", *words, "resume=restart", "--dry-run", cwd=tmp_path).stdout
    assert "1 to do (1 of them begin again: resume=restart)" in again
    _, err = sweep(tmp_path, *words)
    assert "continuing runs/" in err
    assert all(names(path) == FINISHED for path in runs(tmp_path))


def test_a_failed_run_does_not_stop_the_others_and_is_told_again(tmp_path):
    sweep(tmp_path, *ONE, "eps=0", "seeds=2")
    one = next(path for path in runs(tmp_path) if "seed1" in path.name)
    shutil.rmtree(one)
    one.write_text("in the way")
    out, err = sweep(tmp_path, *ONE, "eps=0", "seeds=3", code=1)
    assert err.splitlines()[-1] == (
        "lsexp: 1 of 3 runs could not be finished, see above; the same command goes on"
    )
    assert any(line.startswith("lsexp: eps=0 seed=1: ") for line in err.splitlines())
    assert out[1].split()[:2] == ["0", "2"]


def test_a_damaged_student_does_not_stop_the_others(tmp_path):
    words = ["recipe=digits_distill", *ONE, "eps=0", "seeds=1"]
    assert lsexp("sweep", "distillation", *words, "temperatures=1", cwd=tmp_path).returncode == 0
    [student] = [path for path in runs(tmp_path) if "-T1-" in path.name]
    (student / "metrics.json").write_text("")
    done = lsexp("sweep", "distillation", *words, "temperatures=1,2", cwd=tmp_path)
    assert done.returncode == 1
    assert "4 runs: 2 finished, 1 damaged, 1 to do" in done.stderr
    assert f"`lsexp runs repair {student.name}` makes it again" in done.stderr
    assert [path for path in runs(tmp_path) if "-T2-" in path.name]


def test_an_estimate_is_of_what_the_cores_can_do(monkeypatch):
    measured = []
    monkeypatch.setattr(
        "lsexp.launch.plan.seconds_of_training", lambda plan: measured.append(plan) or 3600.0
    )
    monkeypatch.setattr("lsexp.training.hardware.default_threads", lambda: 4)

    def told(workers, threads, *shares):
        return Hands(workers, threads, 1).cost([(None, shares)])

    assert told(2, 1, 1, 1, 1).startswith(", about 2 h 0 min with 2 workers")  # two, then one
    assert told(64, 1, *[1] * 64).startswith(", about 16 h 0 min with 64 workers")
    assert told(4, 4, 1, 1).startswith(", about 2 h 0 min with 4 workers")
    assert told(2, 1, 1, 0.5, 0.5).startswith(", about 1 h 0 min with 2 workers")
    assert len(measured) == 4  # of a kind one, however many are left


def test_diverged_seeds_are_listed_now_and_the_next_time(tmp_path, capsys, monkeypatch):
    words = [*ONE, "eps=0", "seeds=2", "optim.lr=1e30"]
    for what in ("not finite at step", "failed before: "):
        out, err = sweep(tmp_path, *words, code=1)
        lines = err.splitlines()
        assert out == []
        for seed in (0, 1):
            [line] = [line for line in lines if line.startswith(f"lsexp: eps=0 seed={seed}: ")]
            assert what in line
        assert lines[-1].startswith("lsexp: 2 of 2 runs failed, see above; `lsexp sweep eps")
        assert lines[-1].endswith("retry_failed=true` trains them again")
        assert lines[-1].count("retry_failed=true") == 1
    line = planned(capsys, monkeypatch, tmp_path, *words)
    assert "2 failed (retry_failed=true tries again), 0 to do" in line
    line = planned(capsys, monkeypatch, tmp_path, *words, "retry_failed=true")
    assert "2 to do (2 of them failed before)" in line


def test_workers_that_die_while_nothing_is_trained_yet_are_replaced(tmp_path):
    words = [*WORDS, "eps=0", "seeds=2"]
    process = lsexp("sweep", "eps", *words, cwd=tmp_path, start=True, spawn=True)
    until(lambda: len(workers_of(process)) == 2)
    assert not list(tmp_path.glob("runs/*/attempt-*"))
    for pid in workers_of(process):
        os.kill(pid, signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out.splitlines()[-1].endswith("findings.csv")
    assert all(names(path) == FINISHED for path in runs(tmp_path))


def test_a_run_that_kills_its_workers_is_given_up(tmp_path):
    (tmp_path / "killer.py").write_text(
        "import multiprocessing, os, signal\n"
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, num_classes):\n"
        "        super().__init__()\n"
        "        self.fc = nn.Linear(64, num_classes)\n"
        "    def forward(self, x):\n"
        "        if self.training and multiprocessing.current_process().name == 'lsexp-worker':\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return self.fc(x.flatten(1))\n"
    )
    words = ["model=custom", "model.target=killer:Net", "eps=0", "seeds=1"]
    _, err = sweep(tmp_path, *ONE, *words, code=1)
    assert "its worker ended by SIGKILL (out of memory?), 3 times" in err


def test_a_sweep_of_eps_serves_the_studies_of_its_runs(swept):
    cwd, _, _ = swept
    done = lsexp("plot", "projections", cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert "the newest sweep: lsexp sweep eps " in done.stderr
    folder = "out/projections/digits_mlp-smoke"
    files = ["projections.png", "projections.csv", "points.csv", "runs.csv", "templates.csv"]
    out = done.stdout.splitlines()
    assert out[-6:] == [f"{folder}/{name}" for name in [*files, "findings.csv"]]
    assert [line.split()[:3] for line in out[1:5]] == [
        ["0", "train", "3"],
        ["0", "val", "3"],
        ["0.1", "train", "3"],
        ["0.1", "val", "3"],
    ]
    assert all(len(list((run / "measured").iterdir())) == 2 for run in runs(cwd))
    done = lsexp("plot", "calibration", "bins=10", cwd=cwd)
    assert done.returncode == 0, done.stderr
    with (cwd / "out/calibration/digits_mlp-smoke-bins=10/reliability.csv").open() as file:
        assert {row["low"] for row in csv.DictReader(file)} >= {"0.0", "0.1", "0.9"}


def test_what_was_measured_is_plotted_without_torch(swept):
    """Behind the test above or not: the first plot measures."""
    cwd, _, _ = swept
    words = ["plot", "projections"]
    assert lsexp(*words, cwd=cwd).returncode == 0
    code = (
        "import sys; from lsexp.cli import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=cwd, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "False"


def test_information_of_finished_runs_that_had_no_snapshots(tmp_path, capsys, monkeypatch):
    """Trained aside, killed in the middle, listed, gone on with by two sweeps at once."""
    shared = ["recipe=digits_shifted", "train.steps=600", "artifacts.checkpoint_seconds=0.1"]
    for eps in ("0", "0.1"):
        execute(tiny_plan(tmp_path / "runs", *shared, f"loss.eps={eps}"))
    before = {run: weights(run) for run in runs(tmp_path)}
    words = ["sweep", "information", *ONE, *shared, "eps=0,0.1", "seeds=1", "snapshots=4"]
    words += ["classes=3,5", "examples=40", "draws=4", "fresh=2"]
    monkeypatch.chdir(tmp_path)
    assert main([*words, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "0 finished, 2 to do (2 of them again, aside: finished without" in said
    process = lsexp(*words, cwd=tmp_path, start=True)
    until_it_saves(tmp_path / "runs" / ".aside" / "4", process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert main(["runs"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed[-2].startswith("2 runs (2 finished)")
    assert listed[-1].startswith("1 of them trained again aside (runs/.aside), for snapshots: ")
    both = [lsexp(*words, cwd=tmp_path, start=True) for _ in range(2)]
    printed = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    assert any("continuing" in err for _, err in printed)
    assert any("3 snapshots, " in err and "; the end " in err for _, err in printed)
    assert not (tmp_path / "runs" / ".aside").exists()
    left = tmp_path / "runs/.aside/4" / next(iter(before)).name
    left.mkdir(parents=True)
    assert main([*words, "--dry-run"]) == 0
    assert left.is_dir()  # of somebody who trains there, for all it knows
    for run, expected in before.items():
        assert weights(run) == expected
        assert len(names(run / "snapshots")) == 3
    folder = tmp_path / "out/information" / next(iter(names(tmp_path / "out/information")))
    with (folder / "information.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {int(row["step"]) for row in rows} == {0, 1, 300, 600}
    assert {row["interval"] for row in rows if row["step"] == "600"} >= {"redraws"}
    values = [float(row["value"]) for row in rows if row["metric"] == "information"]
    assert all(-0.2 < value < np.log(80) for value in values)
    for path in (tmp_path / "runs").glob("*/snapshots/*"):
        path.unlink()
    assert main(["plot", "information"]) == 1
    said = capsys.readouterr().err
    assert "finished without 3 of its snapshots, left out; `lsexp sweep information" in said


def test_students_learn_from_the_teachers_of_another_sweep(swept, capsys, monkeypatch):
    cwd, _, _ = swept
    words = [*ONE, "eps=0,0.1", "seeds=2", "temperatures=1,4", "teacher.model.widths=[128,128]"]
    monkeypatch.chdir(cwd)
    assert main(["sweep", "distillation", *words, "--dry-run"]) == 0
    assert "14 runs: 4 finished, 10 to do" in capsys.readouterr().out.splitlines()[-1]
    done = lsexp("sweep", "distillation", *words, cwd=cwd)
    assert done.returncode == 0, done.stderr
    folder = cwd / "out/distillation/digits_distill-smoke-teacher.model.widths=_128,128__0f606f"
    with (folder / "distillation.csv").open() as file:
        rows = list(csv.DictReader(file))
    places = {(row["role"], row["eps"], row["temperature"]) for row in rows}
    assert places == {
        *(("teacher", eps, "") for eps in ("0.0", "0.1")),
        *(("baseline", eps, "") for eps in ("0.0", "0.1")),
        *(("student", "0.0", "1.0"), ("student", "0.0", "4.0"), ("student", "0.1", "1.0")),
    }
    with (folder / "runs.csv").open() as file:
        trained = list(csv.DictReader(file))
    assert {row["status"] for row in trained} == {"finished"}
    students = [row for row in trained if row["role"] == "student"]
    teachers = {
        (row["eps"], row["seed"]): row["run"] for row in trained if row["role"] == "teacher"
    }
    for row in students:
        metrics = json.loads((cwd / "runs" / row["run"] / "metrics.json").read_text())
        assert metrics["teacher"]["run"] == teachers[row["eps"], row["seed"]]
        assert metrics["provenance"]["recipe"] == "digits_distill"
    assert main(["plot", "distillation"]) == 0
    assert capsys.readouterr().out == done.stdout
    kept = [path for path in (cwd / "runs").iterdir() if "-T" in path.name]
    for path in kept:  # only teachers and baselines are left
        path.rename(cwd / path.name)
    assert main(["plot", "distillation", "grid=full", *words]) == 0
    said = capsys.readouterr().out
    assert "the hard teacher: none is finished of: student, eps 0, T 1" in said
    assert "grid.png" in said
    for path in kept:
        (cwd / path.name).rename(path)


@pytest.mark.parametrize(
    ("words", "count"),
    [
        (["loss.student_temperature=tied", "loss.t_squared=true"], 8),  # Hinton's
        (["--config-dir", "own", "recipe=mine"], 8),
        (["recipe=digits_mlp"], 6),  # alike: the teachers are the baseline students
        (["loss.teachers=null"], 6),
        (["loss.teachers=null", "model.widths=[8]"], 6),  # what is typed is for both
        (["loss.teachers=null", "model.widths=[8]", "teacher.seed_of_nothing=1"], None),
        (["loss.teachers=null", "model.widths=[8]", "teacher.optim.lr=0.2"], 8),
        (["teacher.recipe=digits_shifted", "teacher.augment.shift=2"], 8),
        (["recipe=digits_mlp", "loss.scale=3"], 6),  # of all
        (["recipe=digits_mlp", "optim.lr=0.3", "teacher.recipe=digits_shifted"], 8),
    ],
)
def test_protocols_are_planned(tmp_path, monkeypatch, capsys, words, count):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own" / "recipe").mkdir(parents=True)
    recipe = "# @package _global_\ndefaults: [digits_distill]\n"
    (tmp_path / "own" / "recipe" / "mine.yaml").write_text(recipe)
    words = [*words, *ONE, "eps=0,0.1", "temperatures=1,4", "seeds=1", "grid=full", "--dry-run"]
    if count is None:
        assert main(["sweep", "distillation", *words]) == 2
        assert "of the teachers: seed_of_nothing=1: no such key" in capsys.readouterr().err
        return
    assert main(["sweep", "distillation", *words]) == 0
    assert f"{count} runs: 0 finished, {count} to do" in capsys.readouterr().out


def test_students_of_snapshots(tmp_path):
    """A finished teacher goes on aside for its snapshots, which its students wait for."""
    shared = ["train.steps=60", "runs_dir=runs"]
    execute(tiny_plan(tmp_path / "runs", "recipe=digits_shifted", *shared[:1]))
    words = [*ONE, *shared, "eps=0,0.1", "seeds=1", "snapshots=4", "classes=3,5", "examples=40"]
    words += ["students=true", "student.train.steps=40", "student.loss.temperature=2"]
    plain = lsexp("sweep", "information", *words, cwd=tmp_path)
    assert plain.returncode == 0, plain.stderr
    assert "9 runs: 0 finished, 9 to do (1 of them again, aside" in plain.stderr
    lines = plain.stdout.splitlines()
    folder = tmp_path / lines[-1].rpartition("/")[0]
    assert "students=true" in folder.name
    assert {"students.png", "students.csv", "students_by_seed.csv"} <= names(folder)
    with (folder / "students_by_seed.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["eps"], row["step"]) for row in rows] == [
        (eps, step) for eps in ("0.0", "0.1") for step in ("1", "30", "60")
    ]
    with (folder / "runs.csv").open() as file:
        trained = list(csv.DictReader(file))
    found = {"teacher": 0, "baseline": 0, "student": 0}
    for row in trained:
        found[row["role"]] += 1
        metrics = json.loads((tmp_path / "runs" / row["run"] / "metrics.json").read_text())
        assert metrics["steps"] == (60 if row["role"] == "teacher" else 40)
        if row["role"] == "student":
            step = None if row["step"] == "60" else int(row["step"])  # the end is no snapshot
            assert metrics["teacher"]["step"] == step
            assert metrics["config"]["loss.temperature"] == 2
    assert found == {"teacher": 2, "baseline": 1, "student": 6}
    again = lsexp("plot", "information", cwd=tmp_path)
    assert again.stdout == plain.stdout, again.stderr
    other = lsexp("plot", "information", "students=false", cwd=tmp_path)
    assert other.returncode == 0, other.stderr
    for path in (tmp_path / "runs").glob("*/snapshots/step-30.safetensors"):
        path.unlink()  # the student stands, its teacher's measurement has to come again
    assert (
        "2 of them again" in lsexp("sweep", "information", *words, "--dry-run", cwd=tmp_path).stdout
    )


def test_a_teacher_that_is_a_baseline_too_is_trained_with_snapshots(tmp_path, monkeypatch, capsys):
    """The baseline, which asks for none, comes first: a run of the same name."""
    words = ["students=true", "recipe=digits_shifted", "student.recipe=digits_shifted"]
    words = ["information", *ONE, *words, "eps=0.1,0", "seeds=1", "snapshots=4", "train.steps=30"]
    monkeypatch.chdir(tmp_path)
    execute(tiny_plan(tmp_path / "runs", "recipe=digits_shifted", "train.steps=30"))
    assert main(["sweep", *words]) == 0
    out, err = capsys.readouterr()
    assert "8 runs: 0 finished, 8 to do (1 of them again" in err
    assert "students at eps 0: of the end" in out


def test_a_recipe_without_a_teacher_leaves_the_others(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own" / "recipe").mkdir(parents=True)
    recipe = "# @package _global_\ndefaults: [digits_shifted]\noptim: {lr: 1e30}\n"
    (tmp_path / "own" / "recipe" / "bad.yaml").write_text(recipe)
    words = ["rows=bad,digits_shifted", "students=true", "student.optim.lr=0.1", "--config-dir"]
    words += ["own", "eps=0", "seeds=1", "snapshots=3", "train.steps=30", "student.train.steps=30"]
    assert main(["sweep", "information", *ONE, *words]) == 1
    out, err = capsys.readouterr()
    assert "bad: no run that information is drawn from is finished, left out" in err
    assert "its teacher failed" in err
    assert "students at eps 0: of the end" in out
    assert list(tmp_path.glob("out/information/*/students.png"))


def test_a_student_whose_teacher_fails_is_told_so(tmp_path):
    words = [*ONE, "eps=0", "seeds=1", "temperatures=1", "teacher.optim.lr=1e30"]
    done = lsexp("sweep", "distillation", *words, cwd=tmp_path)
    assert done.returncode == 1
    assert "its teacher failed (role=teacher eps=0 seed=0)" in done.stderr
    assert "2 of 3 runs failed" in done.stderr


def test_a_sweep_that_dies_between_teacher_and_student_goes_on_shared_by_two(tmp_path):
    words = [
        *WORDS[:-1],
        "eps=0,0.1",
        "seeds=1",
        "temperatures=1,4",
        "artifacts.checkpoint_seconds=0.2",
    ]
    words += ["train.steps=600", "teacher.train.steps=300"]
    one_worker = [*words, "workers=1"]
    process = lsexp("sweep", "distillation", *one_worker, cwd=tmp_path, start=True)
    folder = tmp_path / "runs"
    until(lambda: list(folder.glob("*/metrics.json")))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    finished = len(list(folder.glob("*/metrics.json")))
    assert finished < 7
    both = [lsexp("sweep", "distillation", *one_worker, cwd=tmp_path, start=True) for _ in range(2)]
    said = [one.communicate(timeout=120)[1] for one in both]
    assert [one.returncode for one in both] == [0, 0], said
    assert len(list(folder.glob("*/metrics.json"))) == 7
    assert not list(folder.glob("*/attempt-*"))
    alone = tmp_path / "alone"
    teacher = tiny_plan(alone, "recipe=digits_mlp", "train.steps=300")
    execute(teacher)
    taught = ["recipe=digits_distill", f"loss.teacher={teacher.folder.path.name}"]
    student = tiny_plan(alone, *taught, "loss.temperature=4", "train.steps=600")
    execute(student)
    for plan in (teacher, student):
        assert weights(folder / plan.folder.path.name) == weights(plan.folder.path)


def test_recipes_become_rows(swept):
    cwd, _, _ = swept
    (cwd / "own" / "recipe").mkdir(parents=True)
    recipe = "# @package _global_\ndefaults: [digits_mlp]\naugment: {shift: 1}\n"
    (cwd / "own" / "recipe" / "shifted.yaml").write_text(recipe)
    words = [*ONE, "eps=0,0.1", "seeds=1", "--config-dir", "own"]
    done = lsexp("sweep", "projections", "rows=digits_mlp,shifted", *words, cwd=cwd)
    assert done.returncode == 0, done.stderr
    [folder] = cwd.glob("out/projections/digits_mlp+shifted-smoke-own_*")
    with (folder / "projections.csv").open() as file:
        assert {row["recipe"] for row in csv.DictReader(file)} == {"digits_mlp", "shifted"}
    again = lsexp("plot", "projections", cwd=cwd)
    assert again.stdout.splitlines()[-1] == done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["classes=zero,1,2"], "classes=zero,1,2: digits has no class zero"),
        (["classes=0,0,2"], "classes=0,0,2: must be three different classes"),
        (["classes=[a],b\\,${x}"], "digits has no class [a]"),
        (["shown_seed=7"], "shown_seed=7: must be one of seeds: 0, 1, 2, 3, 4"),
    ],
)
def test_what_could_not_be_drawn_is_refused_before_training(
    tmp_path, monkeypatch, capsys, words, message
):
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", "projections", *WORDS, *words]) == 2
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "runs").glob("digits*"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["projections", "rows=digits_mlp,nope"], "recipe=nope: must be one of"),
        (["projections", "rows=digits_mlp,digits_mlp"], "a recipe is there twice"),
        (["projections", "rows=digits_mlp", "recipe=mnist_mlp"], "leave recipe= out"),
        (["projections", "method=umap"], "method=umap: must be paper or templates_pca or tsne"),
        (["projections", "examples=1"], "examples=1: must be at least 2"),
        (["projections", "classes=a,,b"], "must be names with commas between"),
        (["projections", "logits=a.npz"], "logits=a.npz: goes with calibration, not projections"),
        (["calibration", "protocol=test"], "protocol=test: must be halves or paper"),
        (["calibration", "bins=0"], "bins=0: must be at least 1"),
        (["calibration", "logits=none.npz"], "logits=none.npz: No such file"),
        (["calibration", "logits=a.npz", "eps=0"], "eps=0: chooses runs, and logits= is a file"),
    ],
)
def test_wrong_words_of_plots_get_one_line(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert main(["plot", *words]) in (1, 2)
    err = capsys.readouterr().err
    assert err.startswith("lsexp: ")
    assert err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "runs").exists()


def test_logits_of_anybody(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "theirs.npz", logits=rng.normal(size=(100, 3)), labels=rng.integers(3, size=100)
    )
    monkeypatch.chdir(tmp_path)
    assert main(["plot", "calibration", "logits=theirs.npz", "bins=10", "out_dir=o"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[1].split()[0] == "theirs"
    assert out[-1] == "o/calibration/logits-theirs-bins=10/risk_coverage.csv"
    assert all((tmp_path / line).exists() for line in out[-7:])
    (tmp_path / "other").mkdir()
    (tmp_path / "theirs.npz").rename(tmp_path / "other/theirs.npz")  # another's of that name
    assert main(["plot", "calibration", "logits=other/theirs.npz", "bins=10", "out_dir=o"]) == 0
    beside = capsys.readouterr().out.splitlines()
    assert not {*beside[-7:]} & {*out[-7:]}


@pytest.mark.parametrize(
    ("asked", "runs", "gigabytes", "needed", "members"),
    [
        (None, 20, 100, 1, 8),  # by then they fill it
        (None, 3, 100, 1, 3),
        (None, 20, 4, 1.5, 2),
        (None, 20, 1, 1.5, 1),
        (16, 20, 1, 1.5, 16),
    ],
)
def test_a_gpu_has_as_many_members_as_its_memory_has_room_for(
    asked, runs, gigabytes, needed, members, tmp_path, monkeypatch
):
    plans = [tiny_plan(tmp_path)] * runs
    monkeypatch.setattr("lsexp.launch.plan.device_memory", lambda _plans: (gigabytes, needed))
    assert members_of(plans, Hands(1, 1, asked)) == members
    foreign = replace(plans[0], config=replace(plans[0].config, model=TorchvisionConfig()))
    assert members_of([*plans, foreign], Hands(1, 1, asked)) == 1


def test_on_a_gpu_one_process_trains_all_and_foreign_networks_one_by_one(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    base = tiny_plan(tmp_path, "device=cpu").config
    on_gpu = replace(base, device="cuda")
    assert hands_for(SweepConfig(), on_gpu, 20) == Hands(1, 1, None)
    assert hands_for(SweepConfig(workers=2), base, 20) == Hands(2, 1, 1)
    foreign = replace(on_gpu, model=TorchvisionConfig())
    assert hands_for(SweepConfig(), foreign, 20) == Hands(1, 1, 1)
    with pytest.raises(UserError, match="members=2: networks that are not ours draw from a gen"):
        hands_for(SweepConfig(members=2), foreign, 20)
    assert str(Hands(1, 1, None)) == "1 worker, several runs at once in each"
