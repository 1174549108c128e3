"""Sweeps as jobs of a Slurm: what is planned and estimated without one; and, where LSEXP_SLURM is
set (`make slurm-test`), on a real one of this machine alone."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from support import TINY, tiny_plan, weights

from lsexp import studies
from lsexp.cli import main
from lsexp.compose import LAUNCHER_BEGINS
from lsexp.config import CustomConfig, SlurmConfig, TrainConfig
from lsexp.errors import UserError
from lsexp.launch.slurm import as_planned_here, jobs_for, name_of, submitting
from lsexp.sweep.asked import ask
from lsexp.sweep.command import Job

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "slurm.sh"


def base(**changes):
    return TrainConfig(**{"threads": 1, **changes})


def test_what_auto_means_is_the_same_for_all_nodes():
    auto = base(device="cuda")
    on_gpu = as_planned_here(auto, SlurmConfig(gpus_per_node=1))
    assert (on_gpu.device, on_gpu.precision) == ("cpu", "bf16")
    assert as_planned_here(auto, SlurmConfig()).precision == "auto"  # timed here
    fp32 = as_planned_here(base(precision="fp32"), SlurmConfig(gpus_per_node=1))
    assert fp32.precision == "fp32"


@pytest.mark.parametrize(
    ("launcher", "workers", "expected"),
    [
        ({}, None, (8, 8, 1)),
        ({"runs_per_job": 3}, None, (3, 3, 1)),
        ({"cpus_per_task": 5}, None, (5, 5, 1)),
        ({"runs_per_job": 30}, None, (9, 9, 1)),
        ({"cpus_per_task": 5}, 2, (2, 5, 1)),
        ({"gpus_per_node": 1}, None, (1, 4, None)),
        ({"gpus_per_node": 1, "cpus_per_task": 2}, None, (1, 2, None)),
    ],
)
def test_workers_cores_and_members_of_a_job(launcher, workers, expected):
    jobs = jobs_for(SlurmConfig(**launcher), base(), workers, None, 9)
    assert (jobs.workers, jobs.cores, jobs.members) == expected


def test_cores_are_for_all_threads():
    assert jobs_for(SlurmConfig(runs_per_job=3), base(threads=2), None, None, 9).cores == 6
    jobs = jobs_for(SlurmConfig(cpus_per_task=5), base(threads=2), None, None, 9)
    assert (jobs.workers, jobs.cores) == (2, 5)


def test_workers_have_cores():
    with pytest.raises(UserError, match="workers=6: need 6 cores with threads=1, a job has"):
        jobs_for(SlurmConfig(cpus_per_task=5), base(), 6, None, 9)


@pytest.mark.parametrize(
    ("launcher", "config", "members", "message"),
    [
        ({}, {"device": "cuda"}, None, "device=cuda: with launcher.gpus_per_node=1"),
        ({"gpus_per_node": 1}, {"device": "cpu"}, None, "device=cpu: with launcher.gpus_per"),
        ({}, {}, 2, "members=2: goes with launcher.gpus_per_node=1"),
        ({"cpus_per_task": 1}, {"threads": 2}, None, "launcher.cpus_per_task=1: must be at least"),
        ({"timeout_min": 2}, {}, None, "launcher.signal_delay_s=120: must leave a minute of"),
        ({"signal_delay_s": 3600}, {}, None, "launcher.signal_delay_s=3600: must leave"),
        ({"partition": "a\nrm x"}, {}, None, r"launcher.partition=.*: must be on one line"),
        ({"setup": ["a\x1b"]}, {}, None, "launcher.setup="),
        ({"sbatch": {"a": "b\nc"}}, {}, None, "launcher.sbatch="),
        ({"sbatch": {"job_name": "x"}}, {}, None, "launcher.sbatch: job_name is set by the launch"),
        ({"sbatch": {"parsable": True}}, {}, None, "launcher.sbatch: parsable is set by the laun"),
        ({"sbatch": {"part": "x"}}, {}, None, "part is set by launcher.partition, leave it out"),
        ({"sbatch": {"time": 5}}, {}, None, "time is set by launcher.timeout_min, leave it out"),
        ({"sbatch": {"gres": ["gpu"]}}, {}, None, "launcher.sbatch: gres=.* must be a long option"),
        ({"sbatch": {"a b": 1}}, {}, None, "launcher.sbatch: a b=1: must be a long option"),
        ({"gpus_per_node": 1}, {"model": CustomConfig()}, 2, "members=2: custom draws from"),
    ],
)
def test_what_does_not_go_together_is_told(launcher, config, members, message):
    with pytest.raises(UserError, match=message):
        jobs_for(SlurmConfig(**launcher), base(**config), None, members, 9)


def test_the_cost_at_a_stated_speed(tmp_path):
    plan = tiny_plan(tmp_path, "train.steps=3600", "train.batch_size=100")
    kinds = [(plan, [1.0] * 6 + [0.0])]  # seven runs, of which one is all but done
    assert jobs_for(
        SlurmConfig(gpus_per_node=1, runs_per_job=2, images_per_second=100), base(), None, None, 7
    ).cost(kinds) == (
        ", 4 jobs of 2 runs: about 6 GPU-hours, 1 h 30 min with 4 at once, at "
        "launcher.images_per_second=100, evaluation apart"
    )
    told = jobs_for(
        SlurmConfig(runs_per_job=2, images_per_second=100, jobs_at_once=1), base(), None, None, 7
    ).cost(kinds)
    assert "about 12 core-hours, 6 h 0 min with 1 at once" in told
    measured = jobs_for(SlurmConfig(runs_per_job=4), base(), None, None, 7).cost(kinds)
    assert ", 2 jobs of 4 runs: about " in measured
    assert "at this machine's speed" in measured
    unknown = jobs_for(SlurmConfig(gpus_per_node=1), base(), None, None, 7).cost(kinds)
    assert unknown == ", 1 job of 7 runs; launcher.images_per_second= of a job gives an estimate"


def test_the_same_runs_have_jobs_of_the_same_name(tmp_path):
    one, other = tiny_plan(tmp_path), tiny_plan(tmp_path, "seed=1")
    assert name_of([one, other]) == name_of([other, one]) != name_of([one])
    assert name_of([tiny_plan(tmp_path / "elsewhere")]) != name_of([one])
    for more in ("artifacts.snapshots=2", "resume=any"):  # jobs of before would not do it
        assert name_of([tiny_plan(tmp_path, more)]) != name_of([one])


def test_jobs_are_submitted_with_settings_that_keys_do_not_set(monkeypatch):
    mine = {"SBATCH_ACCOUNT": "mine", "SBATCH_QOS": "q", "SBATCH_RESERVATION": "r"}
    theirs = {"SBATCH_JOB_NAME": "x", "SLURM_JOB_ID": "1", "SUBMITIT_PREEMPT_SIGNAL": "USR1"}
    monkeypatch.setenv("SLURM_CONF", "conf")
    for name, value in (mine | theirs).items():
        monkeypatch.setenv(name, value)
    launcher = SlurmConfig(account="other", sbatch={"reservation": "s", "comment": None})
    with submitting(launcher):
        left = {n for n in os.environ if n.startswith(("SLURM_", "SBATCH_", "SUBMITIT_"))}
        assert left == {"SLURM_CONF", "SBATCH_QOS"}
    assert (mine | theirs).items() <= os.environ.items()


def test_a_precision_that_is_settled_for_the_nodes_is_written_down_with_the_sweep(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    module = studies.study("eps", "")

    def written(*more):
        words = [*TINY, *more]
        return Job("eps", module, words, ask("eps", module, words)).manifest([[]]).words

    on_gpu = ["launcher=slurm", "launcher.gpus_per_node=1"]
    assert written("precision=auto", *on_gpu) == [*TINY, "precision=bf16"]
    assert written("precision=fp32", *on_gpu) == [*TINY, "precision=fp32"]
    assert written("precision=auto", "launcher=slurm") == [*TINY, "precision=auto"]


def words(*more):
    return ["sweep", "eps", *TINY, "eps=0,0.1", "seeds=1", *more]


def test_without_a_slurm_it_says_so_and_tells_the_cost_all_the_same(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(words("launcher=slurm", "launcher.runs_per_job=1", "--dry-run")) == 0
    assert "2 jobs of 1 run: about " in capsys.readouterr().out
    assert main(words("launcher=slurm")) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "lsexp: launcher=slurm: there is no Slurm here (sbatch, squeue, scontrol, srun not found); "
        "launcher=local trains on this machine"
    )
    assert main(words("--detach")) == 2
    assert "--detach: goes with launcher=slurm" in capsys.readouterr().err
    assert main(["train", "launcher=slurm"]) == 2
    assert "goes with lsexp sweep" in capsys.readouterr().err
    assert main(words("launcher.partition=gpu")) == 2
    assert "launcher.partition: goes with launcher=slurm" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cpus_per_task: 1\n", "In 'launcher/mine': cpus_per_task goes with launcher=slurm, whose"),
        ("", "launcher=mine: its file must begin with `defaults: [/launcher_slurm_schema@_here_"),
        ("{begins}\ncpu_per_task: 1\n", "launcher=slurm has no cpu_per_task; `lsexp sweep eps"),
        ("{begins}\npartition: gpu\n", None),
    ],
)
def test_a_launcher_of_ones_own(tmp_path, monkeypatch, capsys, text, message):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "conf" / "launcher"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(text.replace("{begins}", LAUNCHER_BEGINS))
    code = main(words("--config-dir", "conf", "launcher=mine", "--dry-run"))
    told = capsys.readouterr()
    if message is None:
        assert (code, "1 job of 2 runs" in told.out) == (0, True)
    else:
        assert (code, message in told.err.splitlines()[-1]) == (2, True), told.err


def test_a_launcher_is_for_all_studies(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", "budget=smoke", "eps.launcher=slurm", "--dry-run"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "lsexp: eps.launcher=slurm: is for all studies, write launcher=slurm"
    )


# From here on with a real one.


@pytest.fixture(scope="module")
def cluster():
    if not os.environ.get("LSEXP_SLURM"):
        pytest.skip("`make slurm-test` runs these, with a Slurm of its own")
    folder = Path(tempfile.gettempdir()) / f"lsexp-slurm-{os.getpid()}"  # sockets have short names
    told = subprocess.run([SCRIPT, "up", folder], stdout=subprocess.PIPE, text=True, check=True)
    name, _, value = told.stdout.split()[-1].partition("=")
    before = os.environ.get(name)
    os.environ[name] = value
    yield
    subprocess.run([SCRIPT, "down", folder], check=True)
    os.environ.pop(name) if before is None else os.environ.update({name: before})
    shutil.rmtree(folder, ignore_errors=True)


JOBS = ["launcher=slurm", "launcher.runs_per_job=2", "launcher.cpus_per_task=1"]
ONE_JOB = [JOBS[0], "launcher.runs_per_job=4", JOBS[2]]
LONG = [*TINY, "eps=0,0.1", "seeds=2", "train.steps=60000", "artifacts.checkpoint_seconds=2"]


def start(cwd, *words):
    """The command in a process of its own, which says what it says into `said`."""
    with (cwd / "said").open("a") as said:
        command = [sys.executable, "-m", "lsexp.cli", *words]
        return subprocess.Popen(command, cwd=cwd, stdout=said, stderr=said)


def said(cwd):
    return (cwd / "said").read_text()


def until(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    return found


ALIVE = {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING"}


def queue(states="all"):
    command = ["squeue", "-h", "-r", "-t", states, "-o", "%i|%T|%r"]
    told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    lines = told.splitlines()
    return {line.split("|")[0]: line.split("|")[1:] for line in lines}


def checkpoints(cwd):
    return list(cwd.glob("runs/*/attempt-*/checkpoint.pt"))


def test_a_sweep_over_jobs_that_are_killed_and_put_back_ends_as_it_does_here(cluster, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    local = start(here, "sweep", "eps", *LONG)
    assert local.wait(600) == 0
    old = set(queue())

    # Submitted by a process that is killed: the next one finds the jobs, and submits none.
    limits = ["launcher.timeout_min=2", "launcher.signal_delay_s=30"]
    typed = ["sweep", "eps", *LONG, *JOBS, *limits]
    first = start(there, *typed)
    until(lambda: len(list(there.glob("runs/*/attempt-*"))) == 2)
    first.kill()
    first.wait()
    jobs = set(queue()) - old
    assert len(jobs) == 2
    second = start(there, *typed)
    until(lambda: "2 jobs of before go on" in said(there))
    assert set(queue()) - old == jobs

    # One is killed: another takes its place.
    until(lambda: len(checkpoints(there)) == 2)
    of_jobs = subprocess.run(
        ["pgrep", "-f", "^[^ ]*python[^ ]* -u -m submitit.core._submit"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    os.kill(int(of_jobs.stdout.split()[0]), signal.SIGKILL)
    until(lambda: "another takes its place" in said(there))
    # The other comes to its limit, and is put back.
    until(lambda: any(row == ["PENDING", "BeginTime"] for row in queue().values()), 300)
    assert second.wait(900) == 0, said(there)
    assert said(there).count("submitted") == 2
    assert not (there / "runs" / ".slurm").exists()
    assert not list(there.glob("runs/*/claim*"))

    folders = [path for path in sorted((here / "runs").iterdir()) if path.name[0] != "."]
    for folder in folders:
        found = there / "runs" / folder.name
        assert weights(found) == weights(folder)
        segments = json.loads((found / "metrics.json").read_text())["provenance"]["segments"]
        assert [part["from_step"] for part in segments].count(0) == 1
    for name in ("eps.csv", "findings.csv"):
        tables = [next(at.glob(f"out/eps/*/{name}")).read_bytes() for at in (here, there)]
        assert tables[0] == tables[1]


def test_detached_it_returns_and_the_same_command_draws_later(cluster, tmp_path):
    """Students wait for their teachers, whichever job trains them."""
    typed = ["sweep", "distillation", "budget=smoke", "threads=1", "artifacts.tensorboard=false"]
    typed += ["eps=0,0.1", "seeds=1", "train.steps=200"]
    assert start(tmp_path, *typed, *JOBS, "--detach").wait(120) == 0
    assert "submitted" in said(tmp_path)
    assert not (tmp_path / "out").exists()
    until(lambda: not {row[0] for row in queue().values()} & ALIVE, 300)
    assert start(tmp_path, *typed, *JOBS).wait(120) == 0, said(tmp_path)
    assert said(tmp_path).count("submitted") == 1
    assert list(tmp_path.glob("out/distillation/*/*.png"))
    assert not (tmp_path / "runs" / ".slurm").exists()


def test_a_job_that_is_held_is_told_of_and_a_run_that_failed_is_tried_again_once(cluster, tmp_path):
    typed = ["sweep", "eps", *TINY, "eps=0,0.1", "seeds=1"]
    assert start(tmp_path, *typed).wait(120) == 0
    folders = [path for path in sorted((tmp_path / "runs").iterdir()) if path.name[0] != "."]
    whole = [weights(folder) for folder in folders]
    for folder in folders:  # as one that has diverged
        shutil.rmtree(folder)
        folder.mkdir()
        (folder / "failure.json").write_text('{"error": "it diverged"}')
    assert start(tmp_path, *typed, *JOBS).wait(120) == 1
    assert said(tmp_path).count("failed before: it diverged") == 2
    assert "submitted" not in said(tmp_path)

    held = ["launcher.sbatch={hold: true, requeue: false, comment: null}", "retry_failed=true"]
    one_each = [JOBS[0], "launcher.runs_per_job=1", JOBS[2]]
    old = set(queue())
    process = start(tmp_path, *typed, *one_each, *held)
    until(lambda: "waiting: JobHeldUser" in said(tmp_path))
    jobs = sorted(set(queue()) - old)
    assert len(jobs) == 2
    for job in jobs:
        subprocess.run(["scontrol", "release", job], check=True)
    assert process.wait(240) == 0, said(tmp_path)
    assert [weights(folder) for folder in folders] == whole
    assert not list(tmp_path.glob("runs/*/failure.json"))


def test_a_preempted_job_is_put_back_and_a_cancelled_one_is_not(cluster, tmp_path):
    old = set(queue())
    process = start(tmp_path, "sweep", "eps", *LONG, *ONE_JOB)
    until(lambda: checkpoints(tmp_path))
    [job] = set(queue()) - old
    subprocess.run(["scancel", "--signal=TERM", job], check=True)
    until(lambda: queue()[job][0] == "PENDING")
    assert all(
        json.loads(path.read_text())["released"] for path in tmp_path.glob("runs/*/claim.json")
    )
    subprocess.run(["scancel", job], check=True)
    assert process.wait(240) == 1
    last = said(tmp_path).splitlines()[-1]
    assert f"job {job} was cancelled" in said(tmp_path)
    assert "no job is there any more" in said(tmp_path)
    assert last.startswith("lsexp: ")
    assert said(tmp_path).count("submitted") == 1

    # Of a running array one ends within seconds, and stays away; the other goes on.
    process = start(tmp_path, "sweep", "eps", *LONG, *JOBS)
    jobs = until(lambda: two if len(two := queue(states="R")) == 2 else None)
    time.sleep(8)
    last = sorted(jobs)[-1]
    subprocess.run(["scancel", last], check=True)
    until(lambda: f"job {last} was cancelled" in said(tmp_path))
    assert queue()[last][0] == "CANCELLED"
    assert len(queue(states="R")) == 1
    subprocess.run(["scancel", *queue(states="R")], check=True)
    assert process.wait(240) == 1


def test_what_slurm_refuses_is_one_line(cluster, tmp_path):
    process = start(tmp_path, "sweep", "eps", *LONG, *JOBS, "launcher.partition=nowhere")
    assert process.wait(120) == 1
    assert "Traceback" not in said(tmp_path)
    last = said(tmp_path).splitlines()[-1]
    assert last.startswith("lsexp: launcher=slurm: sbatch: error: ")
    assert "partition" in last
