"""Real processes, killed, stopped, starved and set upon each other: what they leave is never wrong.

Each test makes one fault of a kind, at a random change of the file system; `make faults` makes
hundreds. Afterwards the same command must end in what it leaves when nobody disturbs it, bit for
bit, with no file more.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from faults.harness import ENV, MANY, TIMES, Scene, ended, runs, told_in_a_line
from support import TINY, lsexp, until_it_saves

# Dropout and shifts, so that every generator counts; checkpoints as often as the loop looks.
OFTEN = ["model.dropout=0.2", "augment.shift=1", "artifacts.checkpoint_seconds=0"]
PLAIN = ("train", *TINY, *OFTEN, "loss.eps=0.1", "train.steps=200")
TRAIN = (*PLAIN, "artifacts.snapshots=4")
SWEEP = ("sweep", "eps", *TINY, *OFTEN, "train.steps=200", "workers=1", "eps=0,0.1", "seeds=1")


def spoil(cwd):
    [run] = runs(cwd)
    (run / "config.yaml").write_text("")
    with (run / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"?")


SCENES = {
    "train": (TRAIN, (), None),
    "aside": (TRAIN, (PLAIN,), None),
    "sweep": (SWEEP, (), None),
    "measure": (("plot", "projections"), (SWEEP,), None),
    "report": (("report",), (SWEEP,), None),
    "repair": (("runs", "repair", "--yes"), (TRAIN,), spoil),
}


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """The scene of that name, set once."""
    set_up = {}

    def scene_of(name):
        if name not in set_up:
            words, before, spoiled = SCENES[name]
            more = {} if spoiled is None else {"spoil": spoiled}
            set_up[name] = Scene(tmp_path_factory.mktemp(name), *words, before=before, **more)
        return set_up[name]

    return scene_of


KILLS = [
    ("train", "command", "kill"),
    ("sweep", "worker", "torn"),
    pytest.param("measure", "command", "torn", marks=MANY),
    pytest.param("sweep", "command", "kill", marks=MANY),
    pytest.param("train", "command", "torn", marks=MANY),
    pytest.param("aside", "command", "kill", marks=MANY),
    pytest.param("report", "command", "torn", marks=MANY),
    pytest.param("repair", "command", "kill", marks=MANY),
]


@pytest.mark.parametrize("case", range(TIMES))
@pytest.mark.parametrize(("name", "role", "what"), KILLS)
def test_killed(scene, tmp_path, happened, name, role, what, case):
    of, rng = scene(name), random.Random(f"{name} {role} {what} {case}")
    done = of.disturbed(tmp_path / "cwd", what, rng, role)
    if role == "worker":  # another goes on
        assert done.returncode == 0, done.stderr
    elif what == "kill":
        assert done.returncode == -signal.SIGKILL
    else:  # or nothing of that length was written any more
        assert done.returncode in (-signal.SIGXFSZ, 0)
    happened(f"{name}: {role} killed {'amid a write' if what == 'torn' else 'at a change'}")
    of.check(tmp_path / "cwd")


STOPS = [(name, what) for name in ("train", "sweep", "aside") for what in ("int", "term", "hup")]


@pytest.mark.parametrize("case", range(TIMES))
def test_stopped_by_a_signal(scene, tmp_path, happened, case):
    name, what = STOPS[case % len(STOPS)]
    of, rng = scene(name), random.Random(f"stop {case}")
    done = of.disturbed(tmp_path / "cwd", what, rng)
    assert done.returncode in (0, 1, -getattr(signal, f"SIG{what.upper()}")), done.stderr
    if done.returncode == 1:
        told_in_a_line(done)
    happened(f"{name}: SIG{what.upper()} at a change")
    of.check(tmp_path / "cwd")


@MANY
@pytest.mark.parametrize("case", range(TIMES))
def test_killed_at_any_moment(scene, tmp_path, happened, case):
    name = ("train", "sweep", "measure")[case % 3]
    of, rng = scene(name), random.Random(f"moment {case}")
    cwd = shutil.copytree(of.start, tmp_path / "cwd")
    process, began = of.run(cwd, start=True), time.monotonic()
    moment = rng.uniform(0, of.seconds)
    while process.poll() is None and time.monotonic() - began < moment:
        time.sleep(0.01)
    process.kill()
    process.wait(60)
    happened(f"{name}: killed at any moment")
    of.check(cwd)


FULL = [
    ("train", "command"),
    ("sweep", "worker"),
    ("measure", "command"),
    ("sweep", "command"),
    ("report", "command"),
    ("aside", "command"),
]


@pytest.mark.parametrize("case", range(TIMES))
def test_a_full_disk(scene, tmp_path, happened, case):
    name, role = FULL[case % len(FULL)]
    of, rng = scene(name), random.Random(f"full {case}")
    done = of.disturbed(tmp_path / "cwd", "full", rng, role)
    if done.returncode != 0:  # what is only kept for the next time may be lacking
        told_in_a_line(done)
    happened(f"{name}: no space left for the {role}")
    of.check(tmp_path / "cwd")


@pytest.fixture
def disk(tmp_path):
    """A function that mounts a file system of its own for the runs, below the folder it gives."""
    runs_dir = tmp_path / "cwd" / "runs"

    def mount(options):
        runs_dir.mkdir(parents=True)
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(runs_dir)]
        if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("no file system can be mounted here")
        return runs_dir.parent

    yield mount
    subprocess.run(["umount", str(runs_dir)], capture_output=True, check=False)


def remount(cwd, options):
    subprocess.run(["mount", "-o", f"remount,{options}", str(cwd / "runs")], check=True)


@pytest.mark.parametrize("case", range(TIMES))
def test_a_small_disk(scene, disk, happened, case):
    of, rng = scene("train"), random.Random(f"small {case}")
    whole = sum(path.stat().st_blocks * 512 for path in (of.whole / "runs").rglob("*"))
    cwd = disk(f"size={rng.randint(1, whole // 4096) * 4096}")
    told_in_a_line(of.run(cwd))
    happened("train: a file system that is too small")
    remount(cwd, "size=100m")
    of.check(cwd)


@MANY
def test_a_folder_that_is_read_only(scene, disk, happened):
    of = scene("sweep")
    cwd = disk("size=100m,ro")
    told_in_a_line(of.run(cwd))
    happened("sweep: a folder that is read-only")
    remount(cwd, "rw")
    of.check(cwd)
    remount(cwd, "ro")
    done = of.run(cwd)
    assert done.returncode == 0, done.stderr
    done = lsexp("plot", "eps", cwd=cwd, env=ENV)  # needs nothing of it
    assert done.returncode == 0, done.stderr
    of.compare(cwd)


@pytest.mark.parametrize("case", range(TIMES))
def test_several_at_once(scene, tmp_path, happened, case):
    """Two or four sweeps on one folder; of every second lot, one is killed."""
    count, killed = (2, 4)[case // 2 % 2], case % 2
    of, rng = scene("sweep"), random.Random(f"together {case}")
    cwd = shutil.copytree(of.start, tmp_path / "cwd")
    fault = of.fault(cwd, "kill", rng.randint(1, of.changes["command"]), "command")
    together = [of.run(cwd, fault if killed else None, start=True)]
    together += [of.run(cwd, start=True) for _ in range(count - 1)]
    said = [ended(process) for process in together]
    assert [process.returncode for process in together[killed:]] == [0] * (count - killed), said
    happened(f"sweep: {count} at once{', one killed' if killed else ''}")
    if not killed:  # each trained once, by whoever was first
        for folder in runs(cwd):
            provenance = json.loads((folder / "metrics.json").read_text())["provenance"]
            assert [part["from_step"] for part in provenance["segments"]] == [0]
    of.check(cwd)


@pytest.mark.parametrize("case", range(TIMES))
def test_one_that_sleeps_is_taken_over_and_harms_nothing_when_it_comes_back(
    scene, tmp_path, happened, case
):
    of, rng = scene("train"), random.Random(f"sleep {case}")
    cwd = shutil.copytree(of.start, tmp_path / "cwd")
    at = rng.randint(1, of.changes["command"])
    sleeper = of.run(cwd, of.fault(cwd, "stop", at, "command"), start=True)
    deadline = time.monotonic() + 60
    while not cwd.with_name("cwd.token").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    heir = lsexp(*of.words, "claim_timeout=5", cwd=cwd, env=ENV)
    assert heir.returncode == 0, heir.stderr
    between = {file: file.stat() for file in cwd.glob("runs/*/[!.e]*")}
    sleeper.send_signal(signal.SIGCONT)
    said = ended(sleeper)
    assert sleeper.returncode == 0, said
    happened("train: stopped at a change, taken over, come back")
    kept = {file: file.stat() for file in cwd.glob("runs/*/[!.e]*")}
    assert kept.keys() == between.keys()
    for file, stat in kept.items():  # not even replaced by files that are alike
        assert (stat.st_ino, stat.st_mtime_ns) == (between[file].st_ino, between[file].st_mtime_ns)
    of.check(cwd)


@pytest.mark.parametrize("case", range(TIMES))
def test_the_claim_of_another_host_is_watched_before_it_is_taken(scene, tmp_path, happened, case):
    of, rng = scene("train"), random.Random(f"host {case}")
    cwd = tmp_path / "cwd"
    of.disturbed(cwd, "kill", rng)
    for claim in cwd.glob("runs/*/claim*.json"):
        record = json.loads(claim.read_text())
        claim.write_text(json.dumps({**record, "machine": "another", "host": "another"}))
    held = bool(list(cwd.glob("runs/*/attempt-*/beat")) and list(cwd.glob("runs/*/claim.json")))
    began = time.monotonic()
    done = lsexp(*of.words, "claim_timeout=5", cwd=cwd, env=ENV)
    assert done.returncode == 0, done.stderr
    assert held or case > 0, "it was killed before or after its claim"
    assert ("is being trained by" in done.stderr) == held
    if held:
        assert time.monotonic() - began > 5
    happened("train: killed on another host")
    of.check(cwd)


@pytest.mark.parametrize("case", range(TIMES))
def test_a_worker_without_memory(scene, tmp_path, happened, case):
    of, rng = scene("sweep"), random.Random(f"memory {case}")
    # Before the first claim's thread has its memory, Python 3.11 itself can go round for ever.
    done = of.disturbed(tmp_path / "cwd", "memory", rng, "worker", least=20)
    assert done.returncode in (0, 1), done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    happened("sweep: no memory left for a worker")
    of.check(tmp_path / "cwd")


@MANY
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
    [folder] = runs(tmp_path)
    assert json.loads((folder / "claim.json").read_text())["released"]
    assert len(list(folder.glob("attempt-*/checkpoint.pt"))) == 1


@MANY
def test_nohup_keeps_a_run_alive(tmp_path):

    words = ["train", *TINY, "train.steps=4000", "artifacts.checkpoint_seconds=0"]
    command = [shutil.which("nohup"), sys.executable, "-m", "lsexp.cli", *words]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    until_it_saves(tmp_path / "runs", process)
    process.send_signal(signal.SIGHUP)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert (tmp_path / out.splitlines()[-1] / "metrics.json").exists()
